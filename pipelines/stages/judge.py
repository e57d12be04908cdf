"""What a judge does between rollout and pairs: score responses 1-5 by a caption (hound, rrpo), rewrite ground truths (rrpo)."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from actors.judge import Judge, Work, part_path
from cluster.resources import ResourcePlan
from pipelines import progress
from vidalign import files
from vidalign.config.recipes import HoundRecipe, JudgeConfig, RrpoRecipe
from vidalign.files import RunFolder
from vidalign.recipes import judging, rewriting
from vidalign.recipes.pairing import likeliest_wrong, responses_by_example, scores_by_example
from vidalign.types import Example, Judgement, Response

BATCH_SIZE = 32


def judge_responses(
    recipe: HoundRecipe | RrpoRecipe,
    run: RunFolder,
    plan: ResourcePlan,
    examples: Sequence[Example],
    responses: Sequence[Response],
    round_index: int,
) -> tuple[list[Judgement], dict[str, Any]]:
    """Score every distinct response. A finished stage is read, an unfinished one continues after its last batch on disk.

    Returns:
        The judgements, and for the manifest: {"judge": {"name", "judged", "quarantined" {reason: n}, "agreement"}}, where
        agreement compares the judge's verdict (score at least the threshold) with that of the ground truth. A response whose
        video the policy could not caption is not judged; it counts as quarantined for "empty_caption".
    """
    rows, num_uncaptioned = judge_inputs(recipe, examples, responses)
    stage = run.stage("judgements", round_index)
    done = _ask(recipe, stage, plan, rows, judging.judge_rows, f"judge, round {round_index}", {})
    judged: list[Judgement] = []
    quarantined: dict[str, int] = {"empty_caption": num_uncaptioned} if num_uncaptioned else {}
    for row in done:
        if "score" in row:
            judged.append(Judgement.from_row(row))
        else:
            quarantined[row["reason"]] = quarantined.get(row["reason"], 0) + 1
    facts = {
        "name": judged[0].judge if judged else None,
        "judged": len(judged),
        "quarantined": quarantined,
        "agreement": agreement(judged, responses, recipe.threshold),
    }
    return judged, {"judge": facts}


def rewrite_responses(
    recipe: RrpoRecipe,
    run: RunFolder,
    plan: ResourcePlan,
    examples: Sequence[Example],
    responses: Sequence[Response],
    judgements: Sequence[Judgement],
    round_index: int,
) -> list[Response]:
    """RRPO's two steps by the judge: "differences" and "rewritten" responses about each example's likeliest wrong reply."""
    scores, by_example = scores_by_example(judgements), responses_by_example(responses)
    rows = []
    for example in examples:
        wrong = likeliest_wrong(by_example.get(example.id, []), recipe, scores.get(example.id, {}))
        if wrong is not None:
            row = {
                "example_id": example.id,
                "candidate": wrong.candidate,
                "question": example.question,
                "answer": example.answer,
                "wrong": wrong.text.strip(),
            }
            rows.append(json.dumps(row, ensure_ascii=False))
    work = functools.partial(
        rewriting.rewrite_rows, differences_prompt=recipe.differences_prompt, rewrite_prompt=recipe.rewrite_prompt
    )
    prompts_of = {"differences_prompt": recipe.differences_prompt, "rewrite_prompt": recipe.rewrite_prompt}
    done = _ask(recipe, run.stage("rewrites", round_index), plan, rows, work, f"rewrite, round {round_index}", prompts_of)
    return [
        Response(
            example_id=row["example_id"],
            kind=kind,
            candidate=row["candidate"],
            turn=0,
            text=text,
            token_ids=(),
            log_probs=(),
            policy_version=row["judge"],
            seed=0,
            temperature=0.0,
            top_p=1.0,
            finish_reason="",
        )
        for row in done
        for kind, text in (("differences", row["differences"]), ("rewritten", row["rewritten"]))
        if text.strip()
    ]


def agreement(judged: Sequence[Judgement], responses: Sequence[Response], threshold: float) -> dict[str, float] | None:
    """How the judge's verdicts compare with the ground truth's: shares of all judged responses, None without any.

    accepted_right, accepted_wrong, rejected_right, rejected_wrong: judged at least `threshold` or not, and right (trust 1,
    what evaluation counts as correct) or not; agreement is the sum of the first and the last.
    """
    if not judged:
        return None
    right = {(r.example_id, r.text.strip()): r.trust == 1.0 for r in responses if r.kind in ("plain", "perturbed")}
    counts = {"accepted_right": 0, "accepted_wrong": 0, "rejected_right": 0, "rejected_wrong": 0}
    for judgement in judged:
        verdict = "accepted" if judgement.score >= threshold else "rejected"
        counts[f"{verdict}_{'right' if right[judgement.example_id, judgement.response] else 'wrong'}"] += 1
    shares = {name: count / len(judged) for name, count in counts.items()}
    return {"agreement": shares["accepted_right"] + shares["rejected_wrong"], **shares}


def judge_inputs(
    recipe: HoundRecipe | RrpoRecipe, examples: Sequence[Example], responses: Sequence[Response]
) -> tuple[list[str], int]:
    """One JSON row for each distinct response to judge, in the order of the responses, and how many have no caption to judge by.

    Recipe hound judges "plain" responses, rrpo "perturbed" ones. The caption is the policy's where it was asked for one
    (captions: policy), else the row's, else its reference answer.
    """
    by_id = {example.id: example for example in examples}
    captions = {r.example_id: r.text.strip() for r in responses if r.kind == "caption"}
    kind = "plain" if isinstance(recipe, HoundRecipe) else "perturbed"
    rows: dict[str, None] = {}
    uncaptioned: set[tuple[str, str]] = set()
    for response in responses:
        text = response.text.strip()
        if response.kind != kind or not text:
            continue
        example = by_id[response.example_id]
        caption = captions.get(example.id, example.caption or example.answer)
        if not caption:
            uncaptioned.add((example.id, text))
            continue
        row = {
            "example_id": example.id,
            "question": example.question,
            "answer": example.answer,
            "response": text,
            "caption": caption,
        }
        rows[json.dumps(row, ensure_ascii=False)] = None
    return list(rows), len(uncaptioned)


def _ask(
    recipe: HoundRecipe | RrpoRecipe,
    stage: pathlib.Path,
    plan: ResourcePlan,
    rows: Sequence[str],
    work: Work,
    label: str,
    asked_with: Mapping[str, str],
) -> list[dict[str, Any]]:
    """What the judge makes of the rows, batch by batch; a finished stage is read. `asked_with`: prompts outside of the judge's."""
    assert recipe.judge is not None
    parts = stage / "parts"
    inputs = {"judge": recipe.judge.model_dump(mode="json"), "rows": rows, **asked_with}
    batches = list(enumerate(rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)))
    if not files.is_finished(stage, inputs):
        files.claim(stage, inputs)
        _judge(recipe.judge, parts, plan, batches, work, label)
        files.finish(stage, inputs)
    return [row for number, _ in batches for row in files.read_json(part_path(parts, number))]


def _judge(
    judge: JudgeConfig,
    parts: pathlib.Path,
    plan: ResourcePlan,
    batches: Sequence[tuple[int, Sequence[str]]],
    work: Work,
    label: str,
) -> None:
    import pandas as pd
    import ray.data

    num_gpus = judge.num_gpus if judge.kind == "vllm" and plan.engines.gpus > 0 else 0
    todo = [(number, batch) for number, batch in batches if not part_path(parts, number).is_file()]
    with progress.bar(label, sum(len(batch) for _, batch in batches), "row") as shown:
        shown.update(sum(len(batch) for _, batch in batches) - sum(len(batch) for _, batch in todo))
        if not todo:
            return
        stream = ray.data.from_blocks(
            [pd.DataFrame({"part": number, "row": list(batch)}) for number, batch in todo]
        ).map_batches(
            Judge,
            fn_constructor_kwargs={
                "config": {**judge.model_dump(), "num_gpus": num_gpus},
                "parts": str(parts),
                "work": work,
            },
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=plan.engines.cpus if judge.kind == "vllm" else min(1.0, plan.engines.cpus),
            num_gpus=num_gpus,
        )
        for row in stream.iter_rows():
            shown.update(int(row["judged"]))
