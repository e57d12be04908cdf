"""From the start of the process to the first token: `vidalign align` against vLLM alone, on a warm machine.

    python -m bench.start [--rounds 3]

Both sides are processes of their own and take turns; the first turn fills the page cache and compiled Python files and does not
count. Bare vLLM imports, starts an engine with the same settings, decodes one video and generates one token about it. Ours is the
whole command: imports, checks, Ray, actor pools, decoding, engine. Between the marks that both write lies what each step costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bench.pages import PERFORMANCE, write_part
from bench.turns import Ratio
from vidalign import files

RESULTS = pathlib.Path("bench/results/start.json")
MODEL = "examples/shapes/model"
GOAL = 1.3
NUM_QUESTIONS = 8
STEPS = {
    "imported": "imports, config and data checked",
    "ray": "Ray started",
    "called": "model checked, pools of actors started, first videos decoded",
    "engine": "engine started",
    "token": "first token",
}


def bare(folder: pathlib.Path) -> None:
    """vLLM by itself, in this process."""
    import os

    from cluster.engines import actor_environment, generator_options  # light: the same settings for both

    os.environ.update(actor_environment(0))
    import vllm

    from vidalign.config.run import ModelConfig
    from vidalign.types import FrameSpec
    from vidalign.video.decoding import decode

    mark(folder, "imported")
    model = ModelConfig(path=MODEL, dtype="float32", max_model_len=512)
    llm = vllm.LLM(model=MODEL, **generator_options(model, 0, seed=0))
    mark(folder, "engine")
    text = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What moves?<|im_end|>\n<|im_start|>assistant\n"
    clip = decode(sorted(folder.rglob("*.mp4"))[0], FrameSpec(num_frames=8, height=56, width=56))
    prompt: Any = {"prompt": text, "multi_modal_data": {"video": [(clip.frames, clip.metadata())]}}
    llm.generate([prompt], vllm.SamplingParams(max_tokens=1, temperature=0.0, logprobs=0), use_tqdm=False)
    mark(folder, "token")


def ours(folder: pathlib.Path) -> None:
    """`vidalign rollout CONFIG`, the first stage of `vidalign align`, with marks at its steps."""
    import functools

    from pipelines import align, cli
    from vidalign.recipes import RECIPES

    connect = align.connect

    @contextlib.contextmanager
    def marked(*arguments: Any, **options: Any) -> Iterator[Any]:
        mark(folder, "imported")
        with connect(*arguments, **options) as resources:
            mark(folder, "ray")
            yield resources

    align.connect = marked
    RECIPES["leanpo"] = functools.partial(first_token, folder=folder, real=RECIPES["leanpo"])
    cli.main(["rollout", str(folder / "config.yaml")])
    [part, *_] = sorted((folder / "run/rounds/0/responses/parts").glob("*.json"))
    marks = files.read_json(folder / "marks.json")
    marks["called"] = (
        marks["engine"] - files.read_json(part)["engine_s"]["starting"]
    )  # the engine has been starting meanwhile
    files.write_json(folder / "marks.json", marks)


def first_token(engine: Any, examples: Any, clips: Any, *, folder: pathlib.Path, real: Any, **options: Any) -> Any:
    """The recipe, after one token whose time is noted."""
    from vidalign.recipes.engine import Request

    if "token" not in files.read_json(folder / "marks.json"):
        mark(folder, "engine")
        request = Request(prompt="What moves?", clip=clips[0], seed=0, temperature=0.0, top_p=1.0, max_new_tokens=1)
        engine.generate([request])
        mark(folder, "token")
    return real(engine, examples, clips, **options)


def mark(folder: pathlib.Path, name: str) -> None:
    path = folder / "marks.json"
    marks = files.read_json(path) if path.is_file() else {}
    files.write_json(path, {**marks, name: time.time()})


def run(side: str) -> dict[str, float]:
    """Seconds from the process's start to each mark."""
    import yaml

    from examples.shapes.make_videos import make

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make(folder, {"train": NUM_QUESTIONS}, 0)
        raw = {
            "run_dir": str(folder / "run"),
            "model": {"path": MODEL, "dtype": "float32", "max_model_len": 512},
            "data": {"train": str(folder / "train.jsonl")},
            "video": {"num_frames": 8, "height": 56, "width": 56},
            "recipe": {"num_candidates": 1, "max_new_tokens": 24},
            "cluster": {"address": "local"},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(raw))
        began = time.time()
        command = [sys.executable, "-m", "bench.start", "--side", side, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (folder / "marks.json").is_file() or "token" not in files.read_json(folder / "marks.json"):
            raise SystemExit(f"{side} failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
        marks = files.read_json(folder / "marks.json")
        return {name: marks[name] - began for name in STEPS if name in marks}


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    ratios = [ours["token"] / bare["token"] for ours, bare in zip(found["ours"], found["bare"], strict=True)]
    ratio = Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def median(side: str, name: str) -> float:
        return statistics.median(row[name] for row in found[side])

    engine = statistics.median(row["token"] - row["called"] for row in found["ours"])
    best = (median("ours", "ray") + engine) / median("bare", "token")
    table = []
    for name, words in STEPS.items():
        cells = []
        for side in ("bare", "ours"):
            values = [row[name] for row in found[side] if name in row]
            cells.append(f"{statistics.median(values):.1f} s" if values else "")
        table.append(f"| {words} | {cells[0]} | {cells[1]} |")
    return "\n".join(
        [
            "## Start",
            "",
            f"Written by `python -m bench.start` on 2 CPU cores: seconds from the process's start to the first token, of "
            f"`vidalign rollout` (the first stage of `vidalign align`; checks, Ray, decoding and all) and of vLLM alone with the same "
            f"engine settings, on a warm machine, medians of {len(ratios)} turns after one that does not count.",
            "",
            "| reached after | bare vLLM | ours |",
            "|---|---|---|",
            *table,
            "",
            f"Ours takes {ratio} of bare vLLM's time, goal ≤ {GOAL:g}x: {'reached' if ratio.median <= GOAL else 'missed'}. "
            f"Even if actors started in no time it would be {best:.2f}x: Ray is up after "
            f"{median('ours', 'ray'):.1f} s, and the engine takes {engine:.1f} s from the first call, most of it the imports that "
            "bare vLLM needs too.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one turn, nothing is written")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder = arguments.side
        {"ours": ours, "bare": bare}[side](pathlib.Path(folder))
        return
    found: dict[str, Any] = {"ours": [], "bare": []}
    rounds = 1 if arguments.quick else arguments.rounds
    for turn in range(-1, rounds):
        for side in ("bare", "ours"):
            seconds = run(side)
            print(side, json.dumps({name: round(value, 1) for name, value in seconds.items()}), flush=True)
            if turn >= 0:
                found[side].append(seconds)
    if arguments.quick:
        print(page(found))
        return
    files.write_json(RESULTS, found)
    write_part(PERFORMANCE, "start.md", page(found))


if __name__ == "__main__":
    main()
