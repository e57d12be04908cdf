"""A suite's replies before a judge: only those that it has not judged yet, and every verdict kept in one file."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cluster.resources import ClusterResources, Workers
from pipelines.stages.base import once
from pipelines.stages.judge import Judging
from pipelines.suites.models import AskedModels
from vidalign import files, mirror
from vidalign.config.judging import JudgeConfig
from vidalign.data.suites.base import Suite
from vidalign.data.suites.question import SuiteQuestion
from vidalign.recipes.judging import JudgeTask
from vidalign.recipes.suite_judging import judge_suite_rows, suite_rows
from vidalign.types import stable_hash


def verdicts(
    name: str,
    suite: Suite,
    replies: Sequence[tuple[SuiteQuestion, str]],
    asked: AskedModels,
    path: pathlib.Path,
    resources: ClusterResources | None,
) -> dict[str, dict[str, Any]]:
    """Question id → verdict: {"judge", "explanation"} and, where the judge stated one, {"values"}.

    Args:
        path: the file of verdicts; those in it on the same replies, by the same judge, are not asked for again.
        resources: of the cluster where the judge works; not needed for an empty list of replies.
    """
    if not replies:
        return {}
    judge = asked.evaluate.judge
    assert judge is not None
    assert suite.judge is not None
    assert resources is not None
    settings = {**judge.model_dump(mode="json", exclude={"prompt", *judge.NEUTRAL}), "asks": suite.judge.version}
    rows = suite_rows(name, replies)
    keys = [stable_hash([settings, row]) for row in rows]
    known = _read(path)
    todo = [row for row, key in zip(rows, keys, strict=True) if key not in known]
    if todo:
        made = _judged(todo, judge, path.with_name(f"{path.stem}-{stable_hash(todo, 8)}"), resources)
        known |= {stable_hash([settings, row]): verdict for row, verdict in zip(todo, made, strict=True)}
        lines = [json.dumps({"key": key, "verdict": verdict}, ensure_ascii=False) + "\n" for key, verdict in known.items()]
        files.write_text_atomic(path, "".join(lines))
    return {question.id: known[key] for (question, _), key in zip(replies, keys, strict=True)}


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row["verdict"] for row in files.read_jsonl(path)} if path.is_file() else {}


def _judged(
    rows: Sequence[str], judge: JudgeConfig, folder: pathlib.Path, resources: ClusterResources
) -> Sequence[dict[str, Any]]:
    """The verdicts on these rows, in order. A run that was killed continues in the same folder, which goes when it is finished."""
    stage = Judging(
        folder=folder,
        judge=judge,
        task=JudgeTask(rows=rows, work=judge_suite_rows),
        engines=_workers(judge, resources),
        label="judge replies",
        key="evaluate.judge",
    )
    once(stage)
    made = stage.rows()
    mirror.remove(folder)
    return made


def _workers(judge: JudgeConfig, resources: ClusterResources) -> Workers:
    """Nothing else runs beside the judge: one engine on CPUs, as many as fit on GPUs."""
    gpus = judge.num_gpus if judge.kind == "vllm" and resources.total_gpus else 0
    num = max(1, resources.total_gpus // gpus) if gpus else 1
    return Workers(num=num, cpus=max(1.0, min(float(resources.node_cpus) - 1, 4.0)) if not gpus else 1.0, gpus=gpus)
