"""From the start of the process to the first token: `vidalign align` against vLLM alone, on a warm machine.

    vidalign bench start [--rounds 3]

Both sides are processes of their own and take turns; the first turn fills the page cache and compiled Python files and does not
count. Bare vLLM imports, starts an engine with the same settings, decodes one video and generates one token about it. Ours is the
whole command: imports, checks, Ray, actor pools, decoding, engine. Between the marks that both write lies what each step costs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bench import processes
from bench.marks import mark, read_marks
from bench.pages import PERFORMANCE, add_arguments, publish
from bench.turns import Ratio, results_in_turns
from vidalign import files

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
    config = files.read_json(folder / "config.json")
    model = ModelConfig(**config["model"])
    llm = vllm.LLM(model=model.path, **generator_options(model, 0, seed=0))
    mark(folder, "engine")
    text = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What moves?<|im_end|>\n<|im_start|>assistant\n"
    clip = decode(sorted(folder.rglob("*.mp4"))[0], FrameSpec(**config["video"]))
    prompt: Any = {"prompt": text, "multi_modal_data": {"video": [(clip.frames, clip.metadata())]}}
    llm.generate([prompt], vllm.SamplingParams(max_tokens=1, temperature=0.0, logprobs=0), use_tqdm=False)
    mark(folder, "token")


def ours(folder: pathlib.Path) -> None:
    """`vidalign rollout CONFIG`, the first stage of `vidalign align`, with marks at its steps."""
    from pipelines import align, cli

    connect = align.connect

    @contextlib.contextmanager
    def marked(*arguments: Any, **options: Any) -> Iterator[Any]:
        mark(folder, "imported")
        with connect(*arguments, **options) as resources:
            mark(folder, "ray")
            yield resources

    align.connect = marked
    code = cli.main(["rollout", str(folder / "config.json")])
    if code:
        raise SystemExit(code)
    [part, *_] = sorted((folder / "run/rounds/0/responses/parts").glob("*.json"))
    # The engine starts while the pools start and the first videos are decoded.
    mark(folder, "called", at=read_marks(folder)["engine"] - files.read_json(part)["engine_s"]["starting"])


def run(side: str) -> dict[str, float]:
    """Seconds from the process's start to each mark."""
    from bench.built_in import MAX_NEW_TOKENS, make_run

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        recipe = {
            "name": "bench.first_token:FirstTokenMarked",
            "folder": temporary,
            "num_candidates": 1,
            "max_new_tokens": MAX_NEW_TOKENS,
        }
        files.write_json(folder / "config.json", make_run(folder, {"train": NUM_QUESTIONS}, recipe=recipe))  # JSON is YAML
        began = time.time()
        marks = processes.result_of("bench.start", "--side", side, folder)
        return {name: round(marks[name] - began, 3) for name in STEPS if name in marks}


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    ratio = Ratio.of(*([row["token"] for row in found[side]] for side in ("ours", "bare")))

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
            f"Written by `vidalign bench start` on 2 CPU cores: seconds from the process's start to the first token, of "
            f"`vidalign rollout` (the first stage of `vidalign align`; checks, Ray, decoding and all) and of vLLM alone with the same "
            f"engine settings, on a warm machine, medians of {len(found['ours'])} turns after one that does not count.",
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
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    add_arguments(parser, quick="one turn, without one before it that does not count")
    arguments = parser.parse_args()
    if arguments.side:
        side, folder = arguments.side
        {"ours": ours, "bare": bare}[side](pathlib.Path(folder))
        processes.tell(read_marks(pathlib.Path(folder)))
        return
    rounds, warm_up = (1, 0) if arguments.quick else (arguments.rounds, 1)
    sides = {side: functools.partial(run, side) for side in ("bare", "ours")}
    found = results_in_turns(sides, rounds, warm_up=warm_up, show=True)
    publish(arguments, PERFORMANCE, "start", found, page(found))


if __name__ == "__main__":
    main()
