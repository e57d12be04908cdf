"""Judge: between rollout and pairs, the rows of a recipe's `JudgeTask`, batch by batch."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from actors.judge import Judge
from cluster.resources import Workers
from pipelines import progress
from pipelines.stages.base import Stage
from vidalign import files
from vidalign.config.recipes import JudgeConfig
from vidalign.recipes.base import Recipe
from vidalign.recipes.judging import JudgeTask, agreement
from vidalign.types import Judgement, Response, stable_hash

BATCH_SIZE = 32


@dataclasses.dataclass(kw_only=True)
class Judging(Stage):
    """One task of a judge; its results are on disk, one file per batch.

    `label`: of the progress bar. `engines`: the resources that one engine may take.
    """

    name: ClassVar[str] = "judge"

    folder: pathlib.Path
    judge: JudgeConfig
    task: JudgeTask
    engines: Workers
    label: str
    earlier: Callable[[], Stage | None] | None = None

    def inputs(self) -> dict[str, Any]:
        rows = f"{len(self.task.rows)} rows, {stable_hash(list(self.task.rows))}"
        return {"recipe.judge": self.judge.deciding(), "rows": rows, "recipe": dict(self.task.asked_with)}

    def inputs_v1(self) -> dict[str, Any]:
        return {"judge": self.judge.recorded(), "rows": list(self.task.rows), **self.task.asked_with}

    def run(self) -> dict[str, Any]:
        parts = self.folder / "parts"
        todo = [(number, batch) for number, batch in self._batches() if not files.part_path(parts, number).is_file()]
        with progress.bar(self.label, len(self.task.rows), "row") as shown:
            shown.update(len(self.task.rows) - sum(len(batch) for _, batch in todo))
            if todo:
                for row in self._stream(todo, parts).iter_rows():
                    shown.update(int(row["judged"]))
        return {}

    def rows(self) -> list[dict[str, Any]]:
        """What the judge made of the rows, once the stage is finished."""
        parts = self.folder / "parts"
        return [row for number, _ in self._batches() for row in files.read_json(files.part_path(parts, number))]

    def _batches(self) -> list[tuple[int, Sequence[str]]]:
        rows = self.task.rows
        return list(enumerate(rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)))

    def _stream(self, todo: Sequence[tuple[int, Sequence[str]]], parts: pathlib.Path) -> Any:
        import pandas as pd
        import ray.data

        num_gpus = self.judge.num_gpus if self.judge.kind == "vllm" and self.engines.gpus > 0 else 0
        # As many as fit where the rollout's engines were; one on CPUs, and one client of an endpoint, which has its own threads.
        num_judges = self.engines.num * int(self.engines.gpus // num_gpus) if num_gpus else 1
        return ray.data.from_blocks(
            # A batch is one row: Ray Data joins blocks where it makes batches.
            [pd.DataFrame({"part": [number], "rows": [f"[{','.join(batch)}]"]}) for number, batch in todo]
        ).map(
            Judge,
            fn_constructor_kwargs={
                "config": {**self.judge.model_dump(), "num_gpus": num_gpus},
                "parts": str(parts),
                "work": self.task.work,
            },
            compute=ray.data.ActorPoolStrategy(size=min(max(1, num_judges), len(todo))),
            num_cpus=self.engines.cpus if self.judge.kind == "vllm" else min(1.0, self.engines.cpus),
            num_gpus=num_gpus,
        )


def judgements_of(
    rows: Sequence[dict[str, Any]], task: JudgeTask, recipe: Recipe[Any], responses: Sequence[Response]
) -> tuple[list[Judgement], dict[str, Any]]:
    """The judgements among a judge's rows, and for the manifest {"name", "judged", "quarantined" {reason: n}, "agreement"}.

    Agreement compares the judge's verdicts with those of the ground truth, see `vidalign.recipes.judging.agreement`.
    """
    judged = [Judgement.from_row(row) for row in rows if "score" in row]
    quarantined = collections.Counter(task.quarantined)
    quarantined.update(row["reason"] for row in rows if "score" not in row)
    return judged, {
        "name": judged[0].judge if judged else None,
        "judged": len(judged),
        "quarantined": dict(quarantined),
        "agreement": agreement(judged, responses, recipe.accepts),
    }
