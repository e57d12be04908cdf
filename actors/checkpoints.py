"""When a training writes a checkpoint, and where: by steps, by minutes, and at once when a machine is about to be taken away."""

from __future__ import annotations

import fnmatch
import json
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vidalign import files, mirror, stored

if TYPE_CHECKING:
    from actors.rank import Rank
    from vidalign.config.training import TrainConfig

DRAFTS = ".checkpoints"  # on a node's own disk, of a training whose checkpoints are in a store
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints that there are


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

        It is written where Ray Train keeps checkpoints, so that none of its many gigabytes is copied. Where that is a store, each node
        writes its ranks' share on its own disk, and puts it.
        """
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        name = f"step-{state['step_index']:06d}-{self._rank.largest(time.time_ns() // 1_000_000)}"
        folder = self._folder / name
        if stored.of(folder) is None:
            self._rank.save(folder, state)
            checkpoint = Checkpoint(str(folder))
        else:
            self._save_in_store(folder, state)
            kept = ray.train.get_context().get_storage()
            checkpoint = Checkpoint(f"{kept.experiment_fs_path}/{name}", kept.storage_filesystem)
        report(
            {"step": state["step_index"], "num_steps": num_steps},
            checkpoint=checkpoint if self._rank.is_first else None,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
        self._saved_at = time.monotonic()

    def _save_in_store(self, folder: pathlib.Path, state: dict[str, Any]) -> None:
        """Collective; returns once the shares of all nodes are in the store."""
        import ray.train

        drafts = folder.parents[1] / DRAFTS
        draft = drafts / folder.name
        draft.mkdir(parents=True, exist_ok=True)
        self._rank.save(draft, state)
        if ray.train.get_context().get_local_rank() == 0:
            mirror.put_files(folder, draft)
            shutil.rmtree(drafts, ignore_errors=True)  # also those of a rank that was killed
        self._rank.wait()


def leads_here(checkpoint: Any) -> bool | None:
    """Whether this rank writes for the others of its node into a checkpoint that was fetched; None for one that all ranks share."""
    import ray.train
    from pyarrow.fs import LocalFileSystem

    if isinstance(getattr(checkpoint, "filesystem", None), LocalFileSystem | None):
        return None
    return ray.train.get_context().get_local_rank() == 0


def is_whole(checkpoint: pathlib.Path) -> bool:
    """Whether all of a checkpoint's tensors are there to their ends: a power failure leaves files that were cut off."""
    found = list(checkpoint.glob("state/*.pt"))  # see actors.rank.TAG
    return bool(found) and all(zipfile.is_zipfile(path) for path in found)  # whose list of contents is at the end


def leave_out_torn(folder: pathlib.Path, warn: Callable[[str], None]) -> None:
    """Take checkpoints that are cut off or gone from Ray Train's list, so that a training goes on from the one before.

    Without any that is whole it begins anew: its order of groups depends on the seed alone, so the result is the same.
    """
    path, place = mirror.fetched(folder / SNAPSHOT), stored.of(folder)
    if not path.is_file():
        return
    there = None if place is None else stored.listing(place)  # a store has a file whole or not at all
    rows: list[Any] = [None]
    whole: list[Any] = []
    try:
        listed = json.loads(path.read_bytes())
        rows = list(zip(listed["checkpoint_results"], listed["checkpoint_report_indices"], strict=True))
        for row in rows:
            name = row[0]["checkpoint_dir_name"]
            if is_whole(folder / name) if there is None else fnmatch.filter(there, f"{name}/state/*.pt"):
                whole.append(row)
    except (ValueError, KeyError, TypeError):  # the list itself is cut off
        pass
    if len(whole) == len(rows):
        return
    if whole:
        (newest, _), step = whole[-1], whole[-1][0]["metrics"].get("step")
        results, indices = map(list, zip(*whole, strict=True))
        listed |= {"checkpoint_results": results, "checkpoint_report_indices": indices, "latest_checkpoint_result": newest}
        files.write_json(path, listed)
        warn(
            f"the newest checkpoint in {stored.shown(folder)} is cut off; the training continues from the one of step {step}"
        )
    else:
        mirror.remove(path)
        warn(f"no checkpoint in {stored.shown(folder)} is whole, as after a power failure; the training begins anew")


def preemption_notice() -> tuple[str, ...] | None:
    """The nodes of this training that are about to be taken away, as Ray knows of it; None for none. Collective."""
    import ray.train

    found = ray.train.get_preemption_info()
    return tuple(found.preempted_node_ids) if found is not None else None
