"""One engine in a rollout (bench/engine_load.py) on CPUs, with the built-in model and with a larger one of random weights.

vidalign bench engine [--rounds 2] [--model built-in] [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # so that seconds of the processor count work and no waiting of threads
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from bench.built_in import MODEL
from bench.engine_load import Load, measure, nudged
from bench.pages import PERFORMANCE, Output, add_arguments, publish
from bench.rollout_engine_page import page
from bench.rollout_sides import make_larger_model
from pipelines.summary import versions

BUILT_IN = Load(num_examples=128, chunk=32)
LARGER = Load(num_examples=16, chunk=8, num_frames=32, side=112)
LONG = Load(num_frames=32, side=224)  # a video of as many tokens as video LLMs usually have
QUICK = {"num_examples": 4, "chunk": 2, "median_tokens": 12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", choices=("built-in", "36M"), help="measure one model; the other is kept as it was")
    add_arguments(parser, quick="one turn of few examples, and short replies")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    found = (arguments.out or Output()).found("rollout_engine") or {"rows": []}
    rows = {row["model"]: row for row in found["rows"]}
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        larger = make_larger_model(work / "larger")
        for name, model, load, scored in (("built-in", MODEL, BUILT_IN, BUILT_IN), ("36M", larger, LARGER, LONG)):
            if arguments.model not in (None, name):
                continue
            asked = dataclasses.replace(load, **QUICK) if arguments.quick else load
            other = nudged(model.path, work / f"{name}-nudged")
            made = measure(model, other, num_gpus=0, load=asked, scored=scored, rounds=rounds, compare=True)
            rows[name] = {"model": name, **made}
            print(rows[name], flush=True)
    found = {
        "rounds": rounds,
        "load": os.getloadavg()[2],
        "rows": [rows[name] for name in sorted(rows, reverse=True)],
        "versions": versions(),
    }
    publish(arguments, PERFORMANCE, "rollout_engine", found, page(found))


if __name__ == "__main__":
    main()
