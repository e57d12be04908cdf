"""One run, in a process of its own: train one arm with one seed, then measure what became of the model.

    python -m bench.quality.run ROOT ARM SEED LEARNING_RATE SPLIT      (called by `python -m bench.quality`)

Training is the project's own learner and DeepSpeed, without Ray around it: one worker needs no cluster. The measurements are
taken through the Hugging Face model, which answers like the served one (tests/test_engine.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import resource
import sys
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
from bench.built_in import MODEL, SPEC
from bench.memory import resident
from bench.quality.arms import ARMS, edit_pairs
from bench.quality.data import Data, prepare
from examples.shapes.evaluate_base import reply
from vidalign import files, prompts
from vidalign.config.degrading import PerturbConfig
from vidalign.config.run import ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.data.answers import is_correct
from vidalign.learning import objectives
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.pair_data import usable_pairs
from vidalign.learning.sequences import truth_group
from vidalign.model.batch import IGNORED
from vidalign.model.checkpoint import policy_version
from vidalign.model.logps import forward_kl, pad_to_mask
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import load_processor
from vidalign.types import Example, PreferencePair, stable_hash
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import load_clip
from vidalign.video.perturb import perturb

BASE = "Base"
TRAIN: dict[str, Any] = {
    "num_epochs": 3,
    "batch_size": 16,
    "micro_batch_size": 16,
    "log_every": 20,
    "checkpoint_minutes": None,
}
PERTURB = PerturbConfig()
NUM_KL = 300  # held-out questions on whose base answers the divergence from the base is measured
BATCH = 32


def run(root: pathlib.Path, arm_name: str, seed: int, learning_rate: float, split: str) -> None:
    """Write result.json of one run into its folder. `split` "dev" measures accuracy only, "heldout" everything."""
    data = prepare(root)
    folder = run_folder(root, arm_name, seed, learning_rate)
    torch.manual_seed(seed)
    result: dict[str, Any] = {"arm": arm_name, "seed": seed, "learning_rate": learning_rate, "split": split}
    path = MODEL.path
    if arm_name != BASE:
        result |= train(data, folder, arm_name, seed, learning_rate)
        path = str(folder / "model")
    result |= measure(data, path, split)
    files.write_json(folder / "result.json", result)


def run_folder(root: pathlib.Path, arm_name: str, seed: int, learning_rate: float) -> pathlib.Path:
    return root / "runs" / arm_name.replace(" ", "-").replace("'", "") / f"{learning_rate:g}" / str(seed)


def train(data: Data, folder: pathlib.Path, arm_name: str, seed: int, learning_rate: float) -> dict[str, Any]:
    """Train into folder/model. Returns pairs, steps, displacement (first and last measured), seconds of CPU time, peak memory."""
    arm = ARMS[arm_name]
    objective = objectives.build(arm.objective, arm.params)
    pairs, _ = usable_pairs(edit_pairs(arm, data.pairs(arm.recipe, seed)), objective)
    files.write_table(folder / "pairs.parquet", pairs)
    files.write_table(folder / "probe.parquet", data.examples("probe"))
    job = TrainJob(
        model=MODEL,
        policy_path=MODEL.path,
        policy_version=policy_version(MODEL.path).version,
        train=TrainConfig(learning_rate=learning_rate, **TRAIN),
        objective=ObjectiveConfig(name=arm.objective, params=arm.params),
        plain_prompt=prompts.PLAIN,
        frame_spec=SPEC,
        seed=seed,
        pairs=str(folder / "pairs.parquet"),
        frames=str(data.root / "frames.json"),
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
        MODEL.model_dump(mode="json"),
        MODEL.path,
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


@torch.inference_mode()
def measure(data: Data, path: str, split: str) -> dict[str, Any]:
    """Accuracy on a split; on "heldout" also on perturbed videos, hallucination, and the divergence from the base."""
    examples = data.examples(split)
    processor, model = load_processor(path), load_policy(MODEL, path).eval()
    clips = [load_clip(data.frames[example.video]) for example in examples]
    correct = answer(model, processor, examples, clips)
    figures: dict[str, Any] = {"accuracy": float(np.mean(correct)), "by_category": by_category(examples, correct)}
    if split != "heldout":
        return figures
    absent = [not right for example, right in zip(examples, correct, strict=True) if is_absent(example)]
    spoiled = [spoil(example, clip) for example, clip in zip(examples, clips, strict=True)]
    on_spoiled = answer(model, processor, examples, spoiled)
    absent_spoiled = [not right for example, right in zip(examples, on_spoiled, strict=True) if is_absent(example)]
    return figures | {
        "hallucination": float(np.mean(absent)),
        "perturbed_accuracy": float(np.mean(on_spoiled)),
        "perturbed_hallucination": float(np.mean(absent_spoiled)),
        **divergence(data, model, processor),
    }


def answer(model: Any, processor: Any, examples: Sequence[Example], clips: Sequence[Clip]) -> list[bool]:
    """Whether each greedy answer is correct."""
    asked = [prompts.fill(prompts.PLAIN, question=example.question) for example in examples]
    texts = reply(model, processor, asked, shown(clips))
    return [is_correct(text, example) for text, example in zip(texts, examples, strict=True)]


def shown(clips: Sequence[Clip]) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Frames and metadata as transformers takes them."""
    return [(clip.frames, {k: v for k, v in clip.metadata().items() if k != "do_sample_frames"}) for clip in clips]


def by_category(examples: Sequence[Example], correct: Sequence[bool]) -> dict[str, float]:
    names = sorted({example.category for example in examples})
    return {
        name: float(np.mean([right for example, right in zip(examples, correct, strict=True) if example.category == name]))
        for name in names
    }


def is_absent(example: Example) -> bool:
    """A question on an object that is not there: every wrong answer claims that it is, or is no answer."""
    return example.category == "presence" and example.answer.startswith("No")


def spoil(example: Example, clip: Clip) -> Clip:
    """The example's perturbed video, the same for every run."""
    return perturb(clip, PERTURB, np.random.default_rng(int(stable_hash(["perturbed", example.id], 8), 16)))


def divergence(data: Data, model: Any, processor: Any) -> dict[str, float]:
    """KL(base || model) in nats, full vocabulary, summed over the tokens of the base's own greedy answer.

    `kl_to_base` is the mean over all questions, `kl_where_right` over those that the base answers correctly: there, nothing has
    to change.
    """
    examples = data.examples("heldout")[:NUM_KL]
    base = load_policy(MODEL, MODEL.path).eval()
    clips = [load_clip(data.frames[example.video]) for example in examples]
    asked = [prompts.fill(prompts.PLAIN, question=example.question) for example in examples]
    texts = reply(base, processor, asked, shown(clips))
    answered = [dataclasses.replace(example, answer=text or ".") for example, text in zip(examples, texts, strict=True)]
    source = BatchSource(
        frames=data.frames, processor=processor, plain_prompt=prompts.PLAIN, max_model_len=MODEL.max_model_len
    )
    ours, theirs = ResponseScorer(model), ResponseScorer(base)
    sums: list[float] = []
    for start in range(0, len(answered), BATCH):
        batch = source.batch([truth_group(example) for example in answered[start : start + BATCH]])
        mask = batch.labels != IGNORED
        kl = forward_kl(
            ours.hidden(batch.inputs, batch.labels),
            theirs.hidden(batch.inputs, batch.labels),
            model.get_output_embeddings(),
            base.get_output_embeddings(),
        )
        sums += pad_to_mask(kl, mask).sum(-1).tolist()
    right = [is_correct(text, example) for text, example in zip(texts, examples, strict=True)]
    return {
        "kl_to_base": float(np.mean(sums)),
        "kl_where_right": float(np.mean([value for value, known in zip(sums, right, strict=True) if known])),
    }


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_flush_denormal(True)
    run(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
