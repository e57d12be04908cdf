"""Judge: the rows of a `JudgeTask`, batch by batch; between rollout and pairs, and after the answers of an evaluation."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from actors.judge import Judge
from actors.pools import pool
from cluster.resources import Workers
from pipelines import progress
from pipelines.moved import Moved
from pipelines.stages.base import Stage
from vidalign import files, mirror
from vidalign.config.judging import JudgeConfig
from vidalign.config.run import ModelConfig
from vidalign.recipes.base import Recipe
from vidalign.recipes.judging import SHOWN, JudgeTask, agreement
from vidalign.types import Example, Judgement, PolicyVersion, stable_hash

BATCH_SIZE = 32


@dataclasses.dataclass(kw_only=True)
class Judging(Stage):
    """One task of a judge; its results are on disk, one file per batch.

    `label`: of the progress bar. `engines`: the resources that one engine may take. `key`: the option that holds `judge`. `frames`:
    where the decoded clip of each video is, for a judge that sees them. `policy`, `model`: the policy, where it is the judge.
    """

    name: ClassVar[str] = "judge"

    folder: pathlib.Path
    judge: JudgeConfig
    task: JudgeTask
    engines: Workers
    label: str
    key: str = "recipe.judge"
    frames: Mapping[str, str] = dataclasses.field(default_factory=dict)
    policy: PolicyVersion | None = None
    model: ModelConfig | None = None
    data: Moved = dataclasses.field(default_factory=Moved)
    earlier: Callable[[], Stage | None] | None = None

    def inputs(self) -> dict[str, Any]:
        rows = f"{len(self.task.rows)} rows, {stable_hash(list(self.task.rows))}"
        policy = {"policy": self.policy.version} if self.policy and self.judge.kind == "policy" else {}
        return {self.key: self.judge.deciding(), "rows": rows, "recipe": dict(self.task.asked_with), **policy}

    def elsewhere(self) -> Iterator[Judging]:
        if not self.judge.sees_video:
            return
        split, rows = "eval" if self.key == "evaluate.judge" else "train", [json.loads(row) for row in self.task.rows]
        names = list(dict.fromkeys(name for row in rows for kind in SHOWN for name in row[kind]))
        for former in self.data.names(split, names):
            place = dict(zip(names, former, strict=True))
            were = [{**row, **{kind: [place[name] for name in row[kind]] for kind in SHOWN}} for row in rows]
            task = dataclasses.replace(self.task, rows=[json.dumps(row, ensure_ascii=False) for row in were])
            yield dataclasses.replace(self, task=task)

    def inputs_v1(self) -> dict[str, Any]:
        return {"judge": self.judge.recorded(), "rows": list(self.task.rows), **self.task.asked_with}

    def run(self) -> dict[str, Any]:
        parts = self.folder / "parts"
        todo = [each for each in self._batches() if not files.is_part_whole(parts, each[0])]
        with progress.bar(self.label, len(self.task.rows), "row") as shown:
            shown.update(len(self.task.rows) - sum(len(batch) for _, batch in todo))
            if todo:
                for row in self._stream(todo, parts).iter_rows():
                    shown.update(int(row["judged"]))
                mirror.refresh(parts)
        return {}

    def rows(self) -> list[dict[str, Any]]:
        """What the judge made of the rows, once the stage is finished."""
        parts = self.folder / "parts"
        return [row for number, _ in self._batches() for row in files.read_json(files.part_path(parts, number))]

    def served(self) -> JudgeConfig:
        """The judge as it is started: the policy itself is a model folder like any other."""
        if self.judge.kind != "policy":
            return self.judge
        assert self.policy is not None, "who lets the policy judge says which one it is"
        assert self.model is not None, "and how it is loaded"
        remote = {"trust_remote_code": True} if self.model.trust_remote_code else {}
        return self.judge.model_copy(
            update={
                "kind": "vllm",
                "model": self.policy.path,
                "dtype": self.model.dtype,
                "max_model_len": self.model.max_model_len,
                "num_gpus": int(self.engines.gpus) or self.judge.num_gpus,
                "engine_args": {**remote, **self.judge.engine_args},
            }
        )

    def _batches(self) -> list[tuple[int, Sequence[str]]]:
        rows = self.task.rows
        return list(enumerate(rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)))

    def _stream(self, todo: Sequence[tuple[int, Sequence[str]]], parts: pathlib.Path) -> Any:
        import pandas as pd
        import ray.data

        judge = self.served()
        num_gpus = judge.num_gpus if judge.kind == "vllm" and self.engines.gpus > 0 else 0
        # As many as fit where the rollout's engines were; one on CPUs, and one client of an endpoint, which has its own threads.
        each = int(self.engines.gpus // num_gpus) if num_gpus else 0
        fewest = None if self.engines.fewest is None else max(1, self.engines.fewest * each)
        return ray.data.from_blocks(
            # A batch is one row: Ray Data joins blocks where it makes batches.
            [pd.DataFrame({"part": [number], "rows": [f"[{','.join(batch)}]"]}) for number, batch in todo]
        ).map(
            Judge,
            fn_constructor_kwargs={
                "config": {**judge.model_dump(), "num_gpus": num_gpus},
                "parts": str(parts),
                "work": self.task.work,
                "frames": dict(self.frames) if judge.needs_frames else {},
                "limits": limits_of(self.task.rows) if judge.needs_frames else {},
                "key": self.key,
                "model_path": self.model.path if self.model is not None and self.judge.kind == "policy" else "",
            },
            compute=pool(max(1, self.engines.num * each), len(todo), fewest),
            num_cpus=self.engines.cpus if judge.kind == "vllm" else min(1.0, self.engines.cpus),
            num_gpus=num_gpus,
        )


def limits_of(rows: Sequence[str]) -> dict[str, int]:
    """How many videos and images a row of a judge's task shows at most, as vLLM's limit_mm_per_prompt."""
    shown = [json.loads(row) for row in rows]
    return {kind: max((len(row.get(f"{kind}s", ())) for row in shown), default=0) for kind in ("video", "image")}


def judgements_of(
    rows: Sequence[dict[str, Any]], task: JudgeTask, recipe: Recipe[Any], examples: Sequence[Example]
) -> tuple[list[Judgement], dict[str, Any]]:
    """The judgements among a judge's rows, and for the manifest {"name", "judged", "quarantined" {reason: n}, "agreement"}.

    Agreement compares the judge's verdicts with those of the rules, see `vidalign.recipes.judging.agreement`.
    """
    judged = [Judgement.from_row(row) for row in rows if "score" in row]
    quarantined = collections.Counter(task.quarantined)
    quarantined.update(row["reason"] for row in rows if "score" not in row)
    return judged, {
        "name": judged[0].judge if judged else None,
        "judged": len(judged),
        "quarantined": dict(quarantined),
        "agreement": agreement(judged, examples, recipe.accepts),
    }
