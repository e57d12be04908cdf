"""What a value model learned and what a policy learned from it, beside GRPO; writes its part of docs/results.md.

    python -m bench.dvpo --make-pairs data/shapes/train.jsonl data/shapes/answer_pairs.jsonl
    vidalign align configs/shapes-dvpo.yaml
    vidalign align configs/shapes-grpo.yaml
    python -m bench.dvpo --dvpo runs/shapes-dvpo --beside runs/shapes-grpo runs/shapes-dvpo-seed-1

Reads finished runs: how often the value model ranks pairs that it was not trained on, and what it says of the first token in which
their two responses differ; and accuracy on held-out questions against the tokens that were generated to learn from. Trains nothing.
With `--make-pairs` it writes rows with pairs instead: each answer with every other answer to a question of the same words.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from bench.dvpo_page import page
from bench.pages import RESULTS, Output, add_arguments
from pipelines.rounds import is_trained
from vidalign import files
from vidalign.config.loading import load_config
from vidalign.config.rounds import at
from vidalign.config.run import RunConfig
from vidalign.data.reading import read_examples
from vidalign.data.scorers import exact
from vidalign.data.source import GROUPS_FILE
from vidalign.files import RunFolder
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import pair_group
from vidalign.model.batch import IGNORED
from vidalign.model.policy import load_policy
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import read_tensors
from vidalign.model.value_head import ValueScorer, read_head
from vidalign.statistics import wilson_interval
from vidalign.types import PreferencePair, Response, ResponseGroup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What a value model says of a pair: the change of value at the first token that differs, chosen and rejected, and whether that
    is the largest fall in the rejected response. None where the first difference is the end of a response.
    """

    chosen: float
    rejected: float
    is_largest_fall: bool


def told(chosen: Sequence[float], rejected: Sequence[float], place: int) -> Told | None:
    """`chosen`, `rejected`: values of the states before each token. `place`: of the first token that differs."""
    if place + 1 >= min(len(chosen), len(rejected)):
        return None
    falls = [after - before for before, after in itertools.pairwise(rejected)]
    return Told(
        chosen=chosen[place + 1] - chosen[place],
        rejected=falls[place],
        is_largest_fall=falls[place] == min(falls),
    )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that two responses begin with in common."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def answer_pairs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every other answer to a question of the same words: `chosen`, the row's answer, and `rejected`, the other one.

    Chosen and rejected are of one kind, so that nothing but the video tells them apart.
    """
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["question"], set()).add(row["answer"])
    return [
        {**row, "id": f"{row['id']}-{number}", "chosen": row["answer"], "rejected": other}
        for row in rows
        if row.get("category") != "description"
        for number, other in enumerate(sorted(answers[row["question"]] - {row["answer"]}))
    ]


def value_figures(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """How the run's first value model ranks the pairs that were held out, and what it says of the words that differ."""
    folder = run.stage("value", 0)
    made = files.read_json(folder / "manifest.json")
    pairs = files.read_table(folder / "heldout.parquet", PreferencePair)
    scorer = ValueScorer(load_policy(config.model, str(folder / "model"))).eval()
    read_head(scorer.value_head, folder)
    source = BatchSource(
        frames=files.read_places(run.stage("responses", 0) / "frames.json"),
        processor=cached_processor(config.model.path),
        plain_prompt=config.recipe.plain_prompt,
        max_model_len=config.model.max_model_len,
    )
    found, shown = [], []
    for pair in pairs:
        group = pair_group(pair)
        batch = source.batch([group])
        with torch.inference_mode():
            values, *_ = scorer(batch.inputs, batch.labels, None, batch.sources)
        mask = batch.labels != IGNORED
        chosen, rejected = (values[row][mask[row]].tolist() for row in (0, 1))
        ids = [source.tokens(response) for response in group.responses]
        place = first_difference(*ids)
        if (one := told(chosen, rejected, place)) is not None:
            found.append(one)
        words = [source.processor.tokenizer.convert_ids_to_tokens(list(each)) for each in ids]
        shown.append(
            {
                "question": pair.question,
                "chosen": list(zip(words[0], map(rounded, chosen), strict=True)),
                "rejected": list(zip(words[1], map(rounded, rejected), strict=True)),
                "first_difference": place,
            }
        )
    return {
        "recipe": config.recipe.name,
        "learning_rate": config.train.learning_rate,
        "num_epochs": config.train.num_epochs,
        "lora_rank": config.train.lora.rank if config.train.lora else None,
        "num_pairs": made["num_pairs"],
        "num_heldout": made["num_heldout"],
        "accuracy": made["accuracy"],
        "interval": made["interval"],
        "compared": len(found),
        "falls": sum(one.rejected < 0 for one in found),
        "falls_more": sum(one.rejected < one.chosen for one in found),
        "largest_fall": sum(one.is_largest_fall for one in found),
        "mean_rejected": statistics.fmean(one.rejected for one in found),
        "mean_chosen": statistics.fmean(one.chosen for one in found),
        "pairs": shown,
    }


def own_replies(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Whether the values at the end of the policy's own replies, as the run kept them, tell right ones from wrong ones."""
    examples = {example.id: example for example in read_examples(pathlib.Path(config.data.train))}
    right: list[float] = []
    wrong: list[float] = []
    for index in range(config.rounds):
        if not (run.stage("values", index) / "files.json").is_file() or not is_trained(run, index):
            continue
        kept = files.read_places(run.stage("values", index) / "files.json")
        for group in files.read_table(run.stage("pairs", index) / GROUPS_FILE, ResponseGroup):
            values = read_tensors(kept[group.id])
            for place, text in enumerate(group.texts):
                if not group.left_out[place]:
                    is_right = exact(text, examples[group.example_id]) == 1
                    (right if is_right else wrong).append(float(values[f"member_{place}"][-1]))
    return {"right": len(right), "wrong": len(wrong), "auc": auc(right, wrong)}


def auc(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """How often a right reply has the higher value of one right and one wrong one; a tie counts half. None without both."""
    if not right or not wrong:
        return None
    return sum((a > b) + 0.5 * (a == b) for a in right for b in wrong) / (len(right) * len(wrong))


def rounded(value: float) -> float:
    return round(value, 3)


def policy_figures(run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Accuracy of a run's policy, and what was generated for each kind of its rounds: in tokens that its responses have."""
    summary = files.read_json(run.summary)
    tokens: dict[str, int] = {}
    prompts: dict[str, int] = {}
    for index in range(config.rounds):
        assert is_trained(run, index), f"round {index} of {run} is not finished"
        name = at(config, index).objective.name
        replies = files.read_table(run.stage("responses", index) / "responses.parquet", Response)
        tokens[name] = tokens.get(name, 0) + sum(len(reply.token_ids) for reply in replies)
        prompts[name] = prompts.get(name, 0) + len({reply.example_id for reply in replies})
    accuracy = summary["accuracy"]
    asked = accuracy["num_examples"]
    return {
        "objective": at(config, config.rounds - 1).objective.name,
        "ranked": ranked(run),
        "seed": config.seed,
        "learning_rate": at(config, config.rounds - 1).train.learning_rate,
        "num_epochs": at(config, config.rounds - 1).train.num_epochs,
        "rounds": config.rounds,
        "tokens": tokens,
        "prompts": prompts,
        "num_questions": asked,
        "base": accuracy["base"],
        "aligned": accuracy["aligned"],
        "interval": list(wilson_interval(round(accuracy["aligned"] * asked), asked)),
        "by_round": (summary.get("groups") or {}).get("mean_reward_by_round"),
    }


def ranked(run: RunFolder) -> float | None:
    """The share of its held-out pairs that a run's first value model ranks rightly; None without one."""
    path = run.stage("value", 0) / "manifest.json"
    return files.read_json(path)["accuracy"] if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dvpo", type=pathlib.Path, help="a run whose first round has trained a value model")
    parser.add_argument(
        "--make-pairs", type=pathlib.Path, nargs=2, metavar=("ROWS", "OUT"), help="write rows with pairs, and stop"
    )
    parser.add_argument(
        "--beside",
        type=pathlib.Path,
        nargs="+",
        default=[],
        help="finished runs on groups, of GRPO or of DVPO with another seed",
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.make_pairs:
        rows, out = arguments.make_pairs
        made = answer_pairs(files.read_jsonl(rows))
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
        print(f"wrote {len(made):,} rows with pairs to {out}")
        return
    out = arguments.out or Output()
    found: dict[str, Any] | None = Output().found("dvpo")
    if arguments.dvpo is not None:
        config = load_config(arguments.dvpo)
        run = RunFolder.at(config.run_dir)
        found = {"value": value_figures(run, at(config, 0)), "own": own_replies(run, config), "policies": []}
    elif found is None or not arguments.beside:
        parser.error(
            "name a run with --dvpo, runs to add to the figures that were kept with --beside, or rows with --make-pairs"
        )
    assert found is not None
    policies = {key(each): each for each in found["policies"]}
    for path in (*([arguments.dvpo] if arguments.dvpo else []), *arguments.beside):
        config = load_config(path)
        run = RunFolder.at(config.run_dir)
        if run.summary.is_file() and files.read_json(run.summary)["accuracy"]:
            policy = policy_figures(run, config)
            policies[key(policy)] = policy
    found["policies"] = [policies[each] for each in sorted(policies)]
    out.keep("dvpo", found)
    out.write_part(RESULTS, "dvpo", page(found))


def key(policy: dict[str, Any]) -> tuple[str, int, int]:
    """What tells policies apart: objective, seed, tokens sampled for it."""
    return policy["objective"], policy["seed"], policy["tokens"][policy["objective"]]


if __name__ == "__main__":
    main()
