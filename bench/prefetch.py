"""Time a whole training whose prompts take 0.3 s each to render: rendered by a thread ahead of use, against one after the other.

    vidalign bench prefetch [--pairs 64 --turns 3 --device cpu --dtype float32]

    floor      prompts cost nothing to render, and nothing is measured
    ahead      0.3 s a prompt, rendered while another batch is computed; measurements                  (ours)
    in turn    0.3 s a prompt, rendered when its batch is needed; the same measurements

Each run is the real learner on one rank with its optimizer. Rendering waits 0.3 s without computing: it stands for work on cores that
a GPU's training leaves free, while on CPUs that train as well, work in a thread would only move. The measurements are in proportion to
those of configs/: 2 pairs and 2 probe rows for every 64 pairs. The variants take turns; ratios are within a turn. Writes
bench/results/prefetch.json and its part of docs/performance.md.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from actors import learner
from actors.train_job import TrainJob
from bench.built_in import MODEL, SPEC
from bench.pages import PERFORMANCE, add_arguments, publish, versions_line
from bench.turns import Ratio, results_in_turns
from vidalign import files
from vidalign.config.run import ModelConfig, ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.learning.ahead import Renderer
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import TrainingGroup
from vidalign.model.batch import Batch, Prompt
from vidalign.model.rendering import load_processor
from vidalign.types import Example, PreferencePair
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import FrameCache

RENDER_S = 0.3
GOAL = 1.03
BATCH = 4  # pairs an optimizer step
MEASURED = 2  # pairs, and as many probe rows
QUESTION_WORDS = 260
WIDTH, LAYERS = 256, 8  # of the text model


def make_model(folder: pathlib.Path, width: int, layers: int) -> None:
    """A random Qwen2.5-VL around the built-in tokenizer and processor, so large that a pair takes longer than its rendering."""
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
            log_every=max(1, 64 // BATCH),
            num_monitored=MEASURED,
            num_probed=MEASURED,
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


class InTurn:
    """What the learner asks of a renderer, without a thread."""

    def __init__(self, source: BatchSource, **_: Any) -> None:
        self._source = source

    def batches(self, forwards: Sequence[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        return self._source.batches(forwards)

    def prepare(self, groups: Sequence[TrainingGroup]) -> None:
        pass

    def close(self) -> None:
        pass


def train(job: TrainJob, device: torch.device, *, renders: bool, renderer: Any, measures: bool) -> float:
    """Seconds of a whole training, without loading and export."""
    made_source = learner.batch_source

    def slow(*given: Any, **options: Any) -> BatchSource:
        source = made_source(*given, **options)
        assert source.number is not None
        return BatchSource(
            frames=source.frames,
            processor=source.processor,
            plain_prompt=source.plain_prompt,
            max_model_len=source.max_model_len,
            number=functools.partial(waiting, source.number) if renders else source.number,
        )

    learner.batch_source, learner.Renderer = slow, renderer  # type: ignore[assignment, misc]
    try:
        one = learner.Learner(job, device)
    finally:
        learner.batch_source, learner.Renderer = made_source, Renderer  # type: ignore[misc]
    if not measures:
        one.measure = lambda **_: None  # type: ignore[method-assign]
    began = time.perf_counter()
    try:
        one.train(None)
    finally:
        one.renderer.close()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def start_alone(folder: pathlib.Path, device: torch.device) -> None:
    """The process group of one rank, in this process."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)


def measure(job: TrainJob, device: torch.device, turns: int) -> dict[str, list[float]]:
    """Seconds of each variant in each turn."""
    variants: dict[str, Callable[[], float]] = {
        "floor": functools.partial(train, job, device, renders=False, renderer=Renderer, measures=False),
        "ahead": functools.partial(train, job, device, renders=True, renderer=Renderer, measures=True),
        "in turn": functools.partial(train, job, device, renders=True, renderer=InTurn, measures=True),
    }
    return results_in_turns(variants, turns, warm_up=0, show=True)


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    seconds, pairs = found["seconds"], found["num_pairs"]
    rows = [
        f"| {name} | {statistics.median(seconds[name]) / pairs:.2f} | {Ratio.of(seconds[name], seconds['floor'])} |"
        for name in ("floor", "ahead", "in turn")
    ]
    reached = Ratio.of(seconds["ahead"], seconds["floor"]).median
    return "\n".join(
        [
            "## Rendering ahead",
            "",
            f"Written by `vidalign bench prefetch` on {found['device']}, {found['threads']} threads, {found['dtype']}: a training on "
            f"{pairs} pairs with the real learner, one pair a forward pass, where rendering a prompt takes {RENDER_S:g} s (a wait, in "
            "place of work on cores that training leaves free). *Floor* renders for nothing and measures nothing; *ahead* renders in "
            f"a thread one forward pass ahead and measures {MEASURED} pairs and {MEASURED} probe rows for every 64 pairs; *in turn* "
            "renders when a batch is needed, with the same measurements. "
            f"Medians of {len(seconds['floor'])} turns (minimum to maximum).",
            "",
            "| variant | s a pair | times the floor |",
            "|---|---|---|",
            *rows,
            "",
            f"Goal: *ahead* at most {GOAL:g}x the floor: {'reached' if reached <= GOAL else 'missed'}.",
            "",
            f"{versions_line('torch', 'transformers', 'deepspeed')}. Only run on {'a GPU' if found['on_gpu'] else 'CPUs'}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--width", type=int, default=WIDTH, help="of the text model; so large that a pair takes longer than 0.3 s"
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    add_arguments(parser, quick="one turn of 4 pairs on a smaller model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    pairs, turns, width, layers = arguments.pairs, arguments.turns, arguments.width, arguments.layers
    if arguments.quick:
        pairs, turns, width, layers = BATCH, 1, 64, 1
    with tempfile.TemporaryDirectory() as folder:
        start_alone(pathlib.Path(folder), device)
        job = make_job(pathlib.Path(folder), pairs, arguments.dtype, width, layers)
        seconds = measure(job, device, turns)
        dist.destroy_process_group()
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "on_gpu": device.type == "cuda",
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "num_pairs": pairs,
        "seconds": seconds,
    }
    publish(arguments, PERFORMANCE, "prefetch", found, page(found))


if __name__ == "__main__":
    main()
