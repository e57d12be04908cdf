"""Rollouts against bare `LLM.generate`, ray.data.llm and Hugging Face generate: n candidates with one reflection turn.

    vidalign bench rollout [--rounds 3] [--quick]

Every side answers the same hints and the same kind of reflection prompts about the same decoded clips of the built-in videos, with
the same model, sampling parameters and number of replies.

    in this process   ours (the recipe on `VllmEngine`), bare (`LLM.generate` on the very same engine), Hugging Face; in turns
    on Ray            ours (Decoder and Generator pools, decoding included) and ray.data.llm (frames read from the cache),
                      a process each, in turns; rates between the first and the last output, so that no start counts

Caches are emptied before each timed run. ray.data.llm keeps one reply of a request, so n candidates are n rows there, and it has
no turns: it gets both turns' prompts at once, the reflection prompts ready-made.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from bench.pages import PERFORMANCE, Output, add_arguments, publish
from bench.rollout_page import page
from bench.rollout_sides import SETTINGS, in_process, make_larger_model
from bench.rollout_stream import on_ray
from examples.shapes.make_videos import make
from pipelines.summary import versions
from vidalign.data.reading import read_examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 8], help="numbers of candidates")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--part", choices=("in_process", "on_ray"), help="measure one part; the other is kept as it was")
    add_arguments(parser, quick="one turn of 16 examples or less, without one before it, and two settings")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    num_examples = min(16, arguments.examples) if arguments.quick else arguments.examples
    found = (arguments.out or Output()).found("rollout") or {"in_process": None, "on_ray": None}
    if arguments.part in (None, "in_process"):
        with tempfile.TemporaryDirectory() as temporary:
            make(pathlib.Path(temporary), {"train": num_examples}, 0)
            larger = make_larger_model(pathlib.Path(temporary, "larger"))
            examples = read_examples(f"{temporary}/train.jsonl")
            settings, warm_up = (SETTINGS[::2], 0) if arguments.quick else (SETTINGS, 1)
            measured = in_process(rounds, arguments.counts, examples, settings, larger, warm_up=warm_up)
        found["in_process"] = {**measured, "num_examples": num_examples}
    if arguments.part in (None, "on_ray"):
        found["on_ray"] = on_ray(rounds, 8 * num_examples)
    found |= {"rounds": rounds, "versions": versions()}
    if found["in_process"] is None:
        raise SystemExit("measure --part in_process first")
    publish(arguments, PERFORMANCE, "rollout", found, page(found))


if __name__ == "__main__":
    main()
