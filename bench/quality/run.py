"""One run: train one arm with one seed, then measure what became of the model.

Training is the project's own learner and DeepSpeed, without Ray around it: one worker needs no cluster.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.distributed as dist

from actors.learner import Learner
from actors.reference import Reference, parts_of
from actors.train_job import TrainJob
from bench.memory import resident
from bench.quality.arms import BASE
from bench.quality.data import Data, base_folder, prepare
from bench.quality.tasks import TASKS
from pipelines.stages.clip_pairs import altered_here, with_clip_pairs
from vidalign import files, prompts
from vidalign.config.run import ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.learning import objectives
from vidalign.learning.pair_data import usable_pairs
from vidalign.model.checkpoint import policy_version
from vidalign.types import PreferencePair

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: an arm with a seed at a learning rate, measured on a split ("dev" or "heldout"); or the base on any split."""

    arm: str
    seed: int = 0
    learning_rate: float = 0.0
    split: str = "heldout"

    def folder(self, root: pathlib.Path) -> pathlib.Path:
        """Where its files are. Dev seeds are not held-out seeds, so that the split tells only runs of the base apart."""
        if self.arm == BASE:
            return base_folder(root, self.split)
        return root / "runs" / self.arm.replace(" ", "-").replace("'", "") / f"{self.learning_rate:g}" / str(self.seed)

    def result(self, root: pathlib.Path) -> dict[str, Any] | None:
        """Its figures; None while it is not finished."""
        path = self.folder(root) / "result.json"
        return files.read_json(path) if path.is_file() else None


def run(task: str, root: pathlib.Path, job: Job) -> None:
    """Write result.json of one run into its folder; of what it trained only the figures are kept."""
    data, folder = prepare(TASKS[task], root), job.folder(root)
    torch.manual_seed(job.seed)
    result: dict[str, Any] = dataclasses.asdict(job)
    path = data.task.model.path
    if job.arm != BASE:
        result |= train(data, folder, job)
        path = str(folder / "model")
    began = time.process_time()
    result |= data.task.measure(data, path, job.split)
    files.write_json(folder / "result.json", result | {"measure_seconds": time.process_time() - began})


def train(data: Data, folder: pathlib.Path, run_of: Job) -> dict[str, Any]:
    """Train into folder/model. Returns pairs, steps, displacement (first and last measured), seconds of CPU time, peak memory."""
    task, arm = data.task, data.task.arms[run_of.arm]
    objective = objectives.build(arm.objective, arm.params)
    pairs = data.pairs(arm.recipe, run_of.seed)
    if arm.edit is not None:
        pairs = arm.edit(data, pairs)
    frames = data.root / "frames.json"
    if arm.clip_pairs is not None:
        alter = functools.partial(altered_here, config=arm.clip_pairs)
        pairs, altered, _ = with_clip_pairs(pairs, data.frames, arm.clip_pairs, seed=run_of.seed, alter=alter)
        files.write_json(frames := folder / "frames.json", {**data.frames, **altered})
    pairs, _ = usable_pairs(pairs, objective)
    files.write_table(folder / "pairs.parquet", pairs)
    files.write_table(folder / "probe.parquet", data.examples("probe"))
    job = TrainJob(
        model=task.model,
        policy_path=task.model.path,
        policy_version=policy_version(task.model.path).version,
        train=TrainConfig(learning_rate=run_of.learning_rate, **task.train),
        objective=ObjectiveConfig(name=arm.objective, params=arm.params),
        plain_prompt=prompts.PLAIN,
        frame_spec=task.spec,
        seed=run_of.seed,
        pairs=str(folder / "pairs.parquet"),
        frames=str(frames),
        probe=str(folder / "probe.parquet"),
        reference="",
        stage=str(folder),
        export=str(folder / "model"),
    )
    if objective.needs_reference or objective.needs_kl:
        job = with_reference(job, folder, pairs, keep_hidden=objective.needs_kl)
    began = time.process_time()
    with one_rank():
        learner = Learner(job, torch.device("cpu"))
        learner.run(report=lambda *_, **__: None)
    rows = files.read_jsonl(folder / "metrics.jsonl")
    return {
        "num_pairs": len(pairs),
        "num_steps": rows[-1]["step"],
        "start": rows[0],
        "end": rows[-1],
        "train_seconds": time.process_time() - began,
        "peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """Peak resident memory of this process. Linux's own figure where there is one: getrusage's begins with the parent's."""
    if pathlib.Path("/proc/self/status").is_file():
        return resident("VmHWM") / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def with_reference(job: TrainJob, folder: pathlib.Path, pairs: Sequence[PreferencePair], *, keep_hidden: bool) -> TrainJob:
    """The job with what the starting policy says of the pairs, computed here."""
    parts = parts_of(hidden=keep_hidden, features=False)
    kept = {pair.id: str(folder / "reference" / f"{pair.id}.safetensors") for pair in pairs}
    files.write_json(folder / "reference.json", kept)
    actor = Reference(
        job.model.model_dump(mode="json"),
        job.policy_path,
        job.pairs,
        job.frames,
        job.plain_prompt,
        use_gpu=False,
        kept=str(folder / "reference.json"),
        parts=parts,
    )
    for start in range(0, len(pairs), BATCH):
        actor({"index": np.arange(start, min(start + BATCH, len(pairs)))})
    return dataclasses.replace(job, reference=str(folder / "reference.json"))


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """torch.distributed with this process alone."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_alone(task: str, root: pathlib.Path, job: Job) -> None:
    """`run` as all that a process does: one thread, and what it prints in console.txt of the run's folder."""
    with (job.folder(root) / "console.txt").open("w") as console:
        for descriptor in (1, 2):
            os.dup2(console.fileno(), descriptor)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.set_flush_denormal(True)
        run(task, root, job)
