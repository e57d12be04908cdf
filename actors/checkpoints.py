"""When a training writes a checkpoint, and where: by steps, by minutes, and at once when a machine is about to be taken away."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

from actors.rank import Rank
from vidalign.config.training import TrainConfig


class Checkpoints:
    """Writes and reads one rank's checkpoints below `folder`, where Ray Train keeps them. All ranks make the same calls."""

    def __init__(self, rank: Rank, train: TrainConfig, folder: pathlib.Path) -> None:
        self._rank, self._train, self._folder = rank, train, folder
        self._saved_at = time.monotonic()
        self._answered: set[Any] = set()

    def are_due(self, step_index: int, notice: Any = None) -> bool:
        """Whether enough steps or minutes have passed since the last one, by rank 0's clock, or a machine is to go. Collective.

        `notice`: which machines are to be taken away, the same on all ranks; None for none. Each is answered once.
        """
        if notice is not None and notice not in self._answered:
            self._answered.add(notice)
            return True
        every, minutes = self._train.checkpoint_every, self._train.checkpoint_minutes
        if every is not None and step_index % every == 0:
            return True
        passed = time.monotonic() - self._saved_at
        return minutes is not None and bool(self._rank.largest(self._rank.is_first and passed >= minutes * 60))

    def write(self, state: dict[str, Any], report: Callable[..., None], *, num_steps: int) -> None:
        """Write and report a checkpoint from which a training continues exactly. Collective.

        It is written where Ray Train keeps checkpoints, so that none of its many gigabytes is copied.
        """
        from ray.train import Checkpoint, CheckpointUploadMode

        name = f"step-{state['step_index']:06d}-{self._rank.largest(time.time_ns() // 1_000_000)}"
        folder = self._folder / name
        self._rank.save(folder, state)
        report(
            {"step": state["step_index"], "num_steps": num_steps},
            checkpoint=Checkpoint(str(folder)) if self._rank.is_first else None,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
        self._saved_at = time.monotonic()


def preemption_notice() -> tuple[str, ...] | None:
    """The nodes of this training that are about to be taken away, as Ray knows of it; None for none. Collective."""
    import ray.train

    found = ray.train.get_preemption_info()
    return tuple(found.preempted_node_ids) if found is not None else None
