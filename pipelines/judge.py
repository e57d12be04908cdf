"""Judge: responses ─► prompts with the caption in the video's place ─► scores 1-5, between rollout and pairs (recipe hound)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from actors.judge import Judge, part_path
from cluster.plan import ResourcePlan
from pipelines import progress
from vidalign import files
from vidalign.config import HoundRecipe, RunConfig
from vidalign.files import RunFolder
from vidalign.types import Example, Judgement, Response

BATCH_SIZE = 32


def judge_responses(
    config: RunConfig,
    recipe: HoundRecipe,
    run: RunFolder,
    plan: ResourcePlan,
    examples: Sequence[Example],
    responses: Sequence[Response],
    round_index: int,
) -> tuple[list[Judgement], dict[str, Any]]:
    """Score every distinct response. A finished stage is read, an unfinished one continues after its last batch on disk.

    Returns:
        The judgements, and for the manifest: {"judge": {"name", "judged", "quarantined" {reason: n}, "agreement"}}, where
        agreement compares the judge's verdict (score at least the threshold) with that of the ground truth.
    """
    stage = run.stage("judgements", round_index)
    rows = judge_inputs(recipe, examples, responses)
    inputs = {"judge": recipe.judge.model_dump(mode="json"), "rows": rows}
    if not files.is_finished(stage, inputs):
        files.claim(stage, inputs)
        _judge(recipe, stage / "parts", plan, rows, round_index)
        files.finish(stage, inputs)
    judged: list[Judgement] = []
    quarantined: dict[str, int] = {}
    for path in sorted((stage / "parts").glob("*.json")):
        for row in files.read_json(path):
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


def agreement(judged: Sequence[Judgement], responses: Sequence[Response], threshold: float) -> dict[str, float] | None:
    """How the judge's verdicts compare with the ground truth's: shares of all judged responses, None without any.

    accepted_right, accepted_wrong, rejected_right, rejected_wrong: judged at least `threshold` or not, and right (trust 1,
    what evaluation counts as correct) or not; agreement is the sum of the first and the last.
    """
    if not judged:
        return None
    right = {(r.example_id, r.text.strip()): r.trust == 1.0 for r in responses if r.kind == "plain"}
    counts = {"accepted_right": 0, "accepted_wrong": 0, "rejected_right": 0, "rejected_wrong": 0}
    for judgement in judged:
        verdict = "accepted" if judgement.score >= threshold else "rejected"
        counts[f"{verdict}_{'right' if right[judgement.example_id, judgement.response] else 'wrong'}"] += 1
    shares = {name: count / len(judged) for name, count in counts.items()}
    return {"agreement": shares["accepted_right"] + shares["rejected_wrong"], **shares}


def judge_inputs(recipe: HoundRecipe, examples: Sequence[Example], responses: Sequence[Response]) -> list[str]:
    """One JSON row for each distinct response, in the order of the responses."""
    by_id = {example.id: example for example in examples}
    captions = {r.example_id: r.text.strip() for r in responses if r.kind == "caption"}
    rows: dict[str, None] = {}
    for response in responses:
        if response.kind != "plain" or not response.text.strip():
            continue
        example = by_id[response.example_id]
        row = {
            "example_id": example.id,
            "question": example.question,
            "answer": example.answer,
            "response": response.text.strip(),
            "caption": captions[example.id] if recipe.captions == "policy" else example.caption,
        }
        rows[json.dumps(row, ensure_ascii=False)] = None
    return list(rows)


def _judge(recipe: HoundRecipe, parts: pathlib.Path, plan: ResourcePlan, rows: Sequence[str], round_index: int) -> None:
    import pandas as pd
    import ray.data

    num_gpus = recipe.judge.num_gpus if recipe.judge.kind == "vllm" and plan.engines.gpus > 0 else 0
    todo = [
        (number, batch)
        for number, batch in enumerate(rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE))
        if not part_path(parts, number).is_file()
    ]
    with progress.bar(f"judge, round {round_index}", len(rows), "response") as shown:
        shown.update(len(rows) - sum(len(batch) for _, batch in todo))
        if not todo:
            return
        stream = ray.data.from_pandas(
            [pd.DataFrame({"part": number, "row": list(batch)}) for number, batch in todo]
        ).map_batches(
            Judge,
            fn_constructor_kwargs={"config": {**recipe.judge.model_dump(), "num_gpus": num_gpus}, "parts": str(parts)},
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=plan.engines.cpus if recipe.judge.kind == "vllm" else min(1.0, plan.engines.cpus),
            num_gpus=num_gpus,
        )
        for row in stream.iter_rows():
            shown.update(int(row["judged"]))
