"""Everything that only a GPU can show, on one GPU, in less than eight minutes, without a download.

    vidalign bench gpu [--device cuda] [--minutes 8] [--work FOLDER] [--parts facts numbers …]

Models have random weights at the shapes of real ones; their tokenizer and processor are the built-in model's. Each part is a
process of its own: one that fails or takes too long is said so in the table, and the others go on. Parts that no time is left for
are left out, and said to be.

    facts      the device, and how fast it copies and multiplies
    numbers    log-probs and gradients on the device against the CPU's in float32
    vision     a vision tower whose windows go through attention one by one, by size, and all at once
    step       a training step of packed rows against what trainers do otherwise (bench.train_step), at the shape of a 3B model
    training   the learner with DeepSpeed: seconds and memory of a step (against what --dry-run says), checkpoint, export
    engine     vLLM: its start, its log-probs against training's, how busy it is kept, scoring many replies of one video
    align      a whole `vidalign align` of the built-in model: rollout, training, serving and evaluation on the GPU
    serve      `vidalign serve` of that run: its start, an OpenAI client's answers, and many requests at once

Writes bench/results/gpu.json and its part of docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from bench.gpu_page import page
from bench.pages import PERFORMANCE, Output, add_arguments, publish

NEEDS = {"training": ("deepspeed",), "engine": ("vllm",), "align": ("vllm", "ray", "deepspeed"), "serve": ("vllm", "ray")}
PARTS = ("facts", "numbers", "vision", "step", "training", "engine", "align", "serve")
LIMITS_S = {"facts": 60, "numbers": 90, "vision": 90, "step": 90, "training": 180, "engine": 180, "align": 480, "serve": 360}
CPU_SLOWER = 10  # times as long as on a GPU may a part take
GRACE_S = 20  # for a part that takes too long, to end what it started
LAST_WORDS = 700  # characters of what a failed part printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part starts later than this")
    parser.add_argument("--work", type=pathlib.Path, help="a folder with 40 GB of room, best in memory (/dev/shm)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", help="only these of the cases of training and engine")
    parser.add_argument("--again", action="store_true", help="keep what the last time measured of other parts")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    add_arguments(parser, quick="a tiny model")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as by `timeout`: its part ends with it
    require(arguments.device)
    room = pathlib.Path("/dev/shm") if pathlib.Path("/dev/shm").is_dir() and arguments.device != "cpu" else None
    with tempfile.TemporaryDirectory(dir=room, prefix="vidalign-gpu-") as temporary:
        work = arguments.work or pathlib.Path(temporary)
        found = ((arguments.out or Output()).found("gpu") if arguments.again else None) or {"parts": {}}
        found["quick"] = arguments.quick
        failed = measure(arguments, work, found)
    publish(arguments, PERFORMANCE, "gpu", found, page(found))
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed; the page says how")


def require(device: str) -> None:
    """Raises `SystemExit` with a sentence where PyTorch cannot use this device."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            f"--device={device}, but PyTorch {torch.__version__} sees no GPU; install it with `make setup EXTRA=gpu`, or give "
            "--device cpu, which says nothing of a GPU"
        )


def tasks(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(name in the table, part, case) of everything that is asked for, in order."""
    made: list[tuple[str, str, str]] = []
    for part in arguments.parts:
        known = cases_of(part, quick=arguments.quick)
        cases = [case for case in arguments.cases or known if case in known]
        made += [(f"{part}: {case}", part, case) for case in cases] if known else [(part, part, "")]
    return made


def cases_of(part: str, *, quick: bool) -> Sequence[str]:
    """The cases of a part, each measured in a process of its own; none for a part that is a process itself."""
    if part == "training":
        from bench.gpu_parts import training

        return list(training.QUICK if quick else training.CASES)
    if part == "engine":
        from bench.gpu_parts import engine

        return engine.QUICK_CASES if quick else engine.CASES
    return ()


def measure(arguments: argparse.Namespace, work: pathlib.Path, found: dict[str, Any]) -> list[str]:
    """Run every part in a process of its own; returns the names of those that failed."""
    began, failed = time.monotonic(), []
    for name, part, case in tasks(arguments):
        missing = [package for package in NEEDS.get(part, ()) if importlib.util.find_spec(package) is None]
        left = arguments.minutes * 60 - (time.monotonic() - began)
        if missing:
            found["parts"][name] = {"left_out": f"{' and '.join(missing)} cannot be imported here"}
        elif left <= 0:
            found["parts"][name] = {"left_out": f"no time was left of {arguments.minutes:g} minutes"}
        else:
            found["parts"][name] = run(arguments, part, case, work)
        row = found["parts"][name]
        if "failed" in row:
            failed.append(name)
        print(f"[{time.monotonic() - began:5.0f} s] {name}: {json.dumps(row)}", flush=True)
    return failed


def run(arguments: argparse.Namespace, part: str, case: str, work: pathlib.Path) -> dict[str, Any]:
    """What a part's process measured, or how it failed."""
    options = ["--device", arguments.device, "--work", str(work), *(["--quick"] if arguments.quick else [])]
    command = [sys.executable, "-m", "bench.gpu", *options, "--one", part, *([case] if case else [])]
    began, log = time.monotonic(), work / f"{part}.log"
    limit_s = LIMITS_S[part] * (CPU_SLOWER if arguments.device == "cpu" else 1)
    work.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | str = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = f"did not end in {limit_s} s"
            end_session(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            end_session(process.pid, signal.SIGKILL)
    said = log.read_text(errors="replace")
    result = told(said)
    if code != 0 or result is None:
        return {"failed": f"{f'code {code}' if isinstance(code, int) else code}: {said[-LAST_WORDS:]}"}
    return {"result": result, "wall_s": round(time.monotonic() - began, 1)}


def told(said: str) -> dict[str, Any] | None:
    """What a part's process told: the last line that is JSON, because an engine may print at its end."""
    for line in reversed(said.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):
            if isinstance(found := json.loads(line), dict):
                return found
    return None


def end_session(leader: int, number: signal.Signals) -> None:
    """Signal what a part left running, such as an engine's process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


def one(arguments: argparse.Namespace) -> None:
    """Measure one part in this process, and print what `told` reads."""
    from bench import processes

    part, *case = arguments.one
    device = processes.device_of(arguments.device)
    work, quick = arguments.work, arguments.quick
    if part == "facts":
        from bench.gpu_parts.facts import facts

        processes.tell(facts(device, quick=quick))
    elif part == "numbers":
        from bench.gpu_parts.numbers import numbers

        processes.tell(numbers(work, device))
    elif part == "vision":
        from bench.gpu_parts.vision import vision

        processes.tell(vision(work, device, quick=quick))
    elif part == "step":
        from bench.gpu_parts.steps import steps

        processes.tell(steps(device, quick=quick))
    elif part == "training":
        from bench.gpu_parts.training import training

        processes.tell(training(work, device, case[0]))
    elif part == "engine":
        from bench.gpu_parts.engine import engine

        processes.tell(engine(work, device, case[0]))
    elif part == "serve":
        from bench.gpu_parts.serve import serve

        processes.tell(serve(work))
    else:
        from bench.gpu_parts.align import align

        processes.tell(align(work, device))


if __name__ == "__main__":
    main()
