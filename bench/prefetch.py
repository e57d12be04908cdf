"""What rendering and measuring take of a training whose prompts cost 0.3 s each: rendered by a thread ahead of use, or in turn.

    vidalign bench prefetch [--pairs 256 --turns 2 --device cpu --dtype float32]

    ahead      a prompt is rendered while another batch is computed     (ours)
    in turn    a prompt is rendered when its batch is needed

Each run is the real learner on one rank with its optimizer. Timed are the whole of its training, the waits for batches in it, and its
measurements, which are in proportion to those of configs/: 2 pairs and 1 probe row for every 64 pairs. Rendering waits 0.3 s without
computing: it stands for work on cores that training leaves free. On a CPU the device is a wait too, of 0.4 s a pair and a quarter of
that where nothing is differentiated, around a tiny model: a CPU that trains leaves no core free. On a GPU the model is a real one
(--width, --layers). The variants take turns. Writes bench/results/prefetch.json and its part of docs/performance.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from actors import learner
from actors.rank import Rank
from actors.train_job import TrainJob
from bench import processes
from bench.built_in import MODEL, SPEC
from bench.pages import PERFORMANCE, add_arguments, publish
from bench.prefetch_page import DEVICE_S, EVERY, MEASURED, PROBED, RENDER_S, page
from bench.turns import results_in_turns
from vidalign import files
from vidalign.config.run import ModelConfig, ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.learning.ahead import Renderer
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import TrainingGroup
from vidalign.model.batch import Batch, Prompt
from vidalign.model.logps import RowLogps
from vidalign.model.rendering import load_processor
from vidalign.types import Example, PreferencePair
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import FrameCache

FORWARD_SHARE = 0.25  # of a pair's time, without a backward pass, with checkpointed activations
BATCH = 4  # pairs an optimizer step
QUESTION_WORDS = 260
WIDTH, LAYERS = 64, 1  # of the text model


def make_model(folder: pathlib.Path, width: int, layers: int) -> None:
    """A random Qwen2.5-VL around the built-in tokenizer and processor."""
    config = Qwen2_5_VLConfig.from_pretrained(MODEL.path)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 4 * width, layers
    text.num_attention_heads = width // 32
    text.num_key_value_heads = 2
    text.layer_types = ["full_attention"] * layers
    vision.out_hidden_size = width
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    load_processor(MODEL.path).save_pretrained(folder)


def make_job(folder: pathlib.Path, num_pairs: int, dtype: str, width: int, layers: int) -> TrainJob:
    """A training of one epoch on pairs of one video with questions of their own."""
    make_model(folder / "base", width, layers)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (SPEC.num_frames or 8, 56, 56, 3), generator=generator, dtype=torch.uint8)
    clip = Clip(
        frames=pixels.numpy(),
        fps=1.0,
        total_num_frames=len(pixels),
        duration_s=float(len(pixels)),
        indices=tuple(range(len(pixels))),
    )
    cached = FrameCache(folder / "frames").put("clip", SPEC, clip)
    files.write_json(folder / "frames.json", {"clip": str(cached)})
    words = ("red", "blue", "circle", "square", "moves", "left", "right")

    def question(number: int) -> str:
        return (
            " ".join(words[(number + place * (1 + number)) % len(words)] for place in range(QUESTION_WORDS)) + f" {number}"
        )

    pairs = [
        PreferencePair(
            id=f"p{number}",
            example_id=f"e{number}",
            video="clip",
            question=question(number),
            answer="red",
            chosen="A red circle moves left.",
            rejected="A blue square moves right.",
        )
        for number in range(num_pairs)
    ]
    files.write_table(folder / "pairs.parquet", pairs)
    probe = [
        Example(id=f"t{n}", video="clip", question=question(1000 + n), answer="A red circle moves left.") for n in range(8)
    ]
    files.write_table(folder / "probe.parquet", probe)
    return TrainJob(
        model=ModelConfig(path=str(folder / "base"), dtype=dtype, max_model_len=4096),  # type: ignore[arg-type]
        policy_path=str(folder / "base"),
        policy_version="v",
        train=TrainConfig(
            batch_size=BATCH,
            zero_stage=0,
            log_every=EVERY // BATCH,
            num_monitored=MEASURED,
            num_probed=PROBED,
            gradient_checkpointing=True,
            checkpoint_minutes=None,
        ),
        objective=ObjectiveConfig(name="leanpo"),
        plain_prompt="{question}",
        frame_spec=SPEC,
        seed=0,
        pairs=str(folder / "pairs.parquet"),
        frames=str(folder / "frames.json"),
        probe=str(folder / "probe.parquet"),
        reference="",
        stage=str(folder / "stage"),
        export=str(folder / "model"),
    )


def waiting(number: Callable[[Prompt], torch.Tensor], prompt: Prompt) -> torch.Tensor:
    """In place of a prompt's numbering, which happens once a rendering."""
    time.sleep(RENDER_S)
    return number(prompt)


class WaitingRank(Rank):
    """A rank whose device takes its time."""

    def outputs(self, batch: Batch, reference_hidden: torch.Tensor | None = None) -> tuple[RowLogps, torch.Tensor]:
        began = time.perf_counter()
        made = super().outputs(batch, reference_hidden)
        takes = DEVICE_S * (1.0 if torch.is_grad_enabled() else FORWARD_SHARE)
        time.sleep(max(0.0, takes - (time.perf_counter() - began)))
        return made


class InTurn:
    """What the learner asks of a renderer, without a thread."""

    def __init__(self, source: BatchSource, **_: Any) -> None:
        self._source = source

    def batches(self, forwards: Sequence[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        return self._source.batches(forwards)

    def prepare(self, groups: Sequence[TrainingGroup], first: Any = None) -> None:
        pass

    def close(self) -> None:
        pass


class Timed:
    """A renderer, and how long its user waited for batches."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.waited_s = inner, 0.0
        self.prepare, self.close = inner.prepare, inner.close

    def batches(self, forwards: Sequence[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        return self._timed(
            self._inner.batches(forwards)
        )  # asked for at once, as without a clock: it decides what is rendered next

    def _timed(self, made: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(made, None)
            self.waited_s += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def train(job: TrainJob, device: torch.device, renderer: Any) -> dict[str, float]:
    """Seconds of a whole training without loading and export, and of them what went into waits and measurements."""
    made_source = learner.batch_source

    def slow(*given: Any, **options: Any) -> BatchSource:
        source = made_source(*given, **options)
        assert source.number is not None
        return dataclasses.replace(source, number=functools.partial(waiting, source.number))

    learner.batch_source, learner.Renderer = slow, renderer  # type: ignore[assignment, misc]
    learner.Rank = WaitingRank if device.type == "cpu" else Rank  # type: ignore[misc]
    try:
        one = learner.Learner(job, device)
    finally:
        learner.batch_source, learner.Renderer, learner.Rank = made_source, Renderer, Rank  # type: ignore[misc]
    timed, measured, inner = Timed(one.renderer), [0.0], one.measure
    one.renderer = timed  # type: ignore[assignment]

    def measure(**given: Any) -> None:
        began, waited_s = time.perf_counter(), timed.waited_s
        inner(**given)
        measured[0] += time.perf_counter() - began
        timed.waited_s = waited_s  # a wait within a measurement is a part of that

    one.measure = measure  # type: ignore[method-assign, assignment]
    began = time.perf_counter()
    try:
        one.train(None)
    finally:
        one.renderer.close()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"total": time.perf_counter() - began, "waits": timed.waited_s, "measurements": measured[0]}


def measure(job: TrainJob, device: torch.device, turns: int) -> dict[str, list[dict[str, float]]]:
    """What each variant took in each turn."""
    variants: dict[str, Callable[[], dict[str, float]]] = {
        "ahead": functools.partial(train, job, device, Renderer),
        "in turn": functools.partial(train, job, device, InTurn),
    }
    return results_in_turns(variants, turns, warm_up=0, show=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--width", type=int, default=WIDTH, help="of the text model; on a GPU so large that a pair takes longer than 0.3 s"
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    add_arguments(parser, quick="one turn of 4 pairs on a smaller model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = processes.device_of(arguments.device)
    pairs, turns, width, layers = arguments.pairs, arguments.turns, arguments.width, arguments.layers
    if arguments.quick:
        pairs, turns, width, layers = BATCH, 1, 64, 1
    with tempfile.TemporaryDirectory() as folder:
        processes.join_alone(device)
        job = make_job(pathlib.Path(folder), pairs, arguments.dtype, width, layers)
        runs = measure(job, device, turns)
        dist.destroy_process_group()
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "on_gpu": device.type == "cuda",
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "num_pairs": pairs,
        "runs": runs,
    }
    publish(arguments, PERFORMANCE, "prefetch", found, page(found))


if __name__ == "__main__":
    main()
