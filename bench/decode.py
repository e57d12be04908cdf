"""Time decoding against plain loops over other decoders, and the decode stage against ray.data.read_videos.

    vidalign bench decode [--rounds 5 --quick --decord2 FOLDER --torchcodec FOLDER]

Every variant runs in a process of its own with one thread (bench/decode_worker.py says what each does) and they take turns:
A B C A B C …. All give the same frames, resized to the same size by the same filter. decord2 has decord's import name and
torchcodec brings its own libraries, so each is installed apart: `pip install --no-deps --target FOLDER decord2`.
Writes bench/results/decode.json and its part of docs/performance.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bench import decode_page, decode_videos
from bench.decode_worker import SIZE, indices_of, small, spec_of
from bench.pages import PERFORMANCE, Output, add_arguments, publish
from bench.turns import take_turns

NUM_FRAMES = (8, 32, 128)
RAW = ("decord", "decord2", "pyav_in_order", "pyav_seek", "opencv", "opencv_in_order", "torchcodec")
OURS = ("ours_pyav", "ours_decord", "ours_cached", "cache_hit", "cache_read", "ours_snapped")
SLOW_S, SLOW = 1.0, 3.0  # a loop that takes more seconds than this, and this many times as long as ours, is timed once
IN_ORDER = ("pyav_in_order", "opencv_in_order")  # on the 1-hour video with 8 frames only: more take as long

DEADLINE_S = 40  # for one video


class Worker:
    """A decode_worker process."""

    def __init__(self, variant: str, folder: str = "") -> None:
        self.variant, self.folder = variant, folder
        self.start()

    def start(self) -> None:
        """Start the process, anew after one that was killed."""
        paths = [self.folder, os.getcwd(), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.decode_worker", self.variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ready_kib: int = self._answer()["ready"]

    def ask(self, path: pathlib.Path, num_frames: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"path": str(path), "num_frames": num_frames}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], DEADLINE_S)[0]:
            self.process.kill()
            raise TimeoutError(self.variant)
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            said = [text for text in self.process.stderr.read().splitlines() if text.strip()]
            raise RuntimeError(said[-1].strip() if said else "ended without a word")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start_workers(names: Iterable[str], folders: dict[str, str]) -> tuple[dict[str, Worker], dict[str, str]]:
    """Those that load, and why the others do not."""
    workers, missing = {}, {}
    for name in names:
        if name in folders and not folders[name]:
            missing[name] = f"not installed (see --{name})"
            continue
        try:
            workers[name] = Worker(name, folders.get(name, ""))
        except RuntimeError as error:
            missing[name] = re.sub(r"\S*/", "", str(error))  # without this machine's folders
    return workers, missing


def measure(workers: dict[str, Worker], path: pathlib.Path, num_frames: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Of each variant: seconds in every turn, none where it did not end once, and whether its frames are those of ours."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "same_frames": False} for name in workers}
    digests: dict[str, set[str]] = {}
    ours, hung = 0.0, set()

    def is_slow(seconds: float) -> bool:
        return seconds > SLOW_S and seconds > SLOW * ours

    for turn in range(-1, rounds):
        for name, worker in workers.items():
            seconds = found[name]["seconds"]
            if name in hung or (seconds and is_slow(seconds[0])):
                continue
            try:
                answer = worker.ask(path, num_frames)
            except TimeoutError:
                print(f"{name} did not end in {DEADLINE_S} s", flush=True)
                hung.add(name)
                seconds.clear()
                worker.start()
                continue
            digests.setdefault(name, set()).add(answer["frames_sha"])
            ours = ours or answer["seconds"]
            if turn >= 0 or is_slow(answer["seconds"]):
                seconds.append(answer["seconds"])
    for name, row in found.items():
        row["same_frames"] = name not in hung and digests[name] == digests["ours_pyav"]
    return found


def measure_memory(videos: dict[str, pathlib.Path]) -> list[dict[str, Any]]:
    """Peak resident memory of a fresh process that decodes one video, after its imports and after decoding."""
    rows = []
    for name, path in videos.items():
        for num_frames in (8, 128):
            worker = Worker("ours_pyav")
            rows.append(
                {
                    "video": name,
                    "num_frames": num_frames,
                    "ready_mib": worker.ready_kib / 1024,
                    "peak_mib": worker.ask(path, num_frames)["peak_kib"] / 1024,
                }
            )
            worker.close()
    return rows


def measure_ray(sets: dict[str, list[pathlib.Path]], rounds: int) -> list[dict[str, Any]]:
    """The decode stage against ray.data.read_videos, in one local Ray with two CPUs; 8 frames of each video."""
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=500 * 2**20, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows: list[dict[str, Any]] = []
    try:
        for name, videos in sets.items():
            variants: dict[str, Callable[[], int]] = {
                "ours": functools.partial(stage, videos),
                "read_videos": functools.partial(read_videos, videos),
            }
            if not rows:  # warms up as well
                assert all(run() == 8 * len(videos) for run in variants.values())
            seconds = take_turns(variants, rounds, warm_up=0)
            rows.append({"videos": name, "count": len(videos), "seconds": seconds})
    finally:
        ray.shutdown()
    return rows


def stage(videos: list[pathlib.Path]) -> int:
    """Decode into an empty cache on a pool of two decoders, and read all frames back. Returns their number."""
    from actors.decoder import decode_videos as decode_stage
    from vidalign.video.frame_cache import load_clip

    folder = tempfile.mkdtemp(prefix="vidalign-bench-")
    try:
        rows = decode_stage([str(path) for path in videos], spec_of(8), folder, num_decoders=2).iter_rows()
        return sum(len(load_clip(row["frames_path"]).frames) for row in rows)
    finally:
        shutil.rmtree(folder)


def read_videos(videos: list[pathlib.Path]) -> int:
    """Ray Data decodes every frame to a row; the wanted ones are kept, resized and taken. Returns their number."""
    import ray.data

    wanted = {str(path.absolute()): set(indices_of(count_frames(path), 8)) for path in videos}

    def keep(batch: dict[str, Any]) -> dict[str, Any]:
        chosen = [
            row
            for row, (path, number) in enumerate(zip(batch["path"], batch["frame_index"], strict=True))
            if number in wanted[path]
        ]
        frames = (
            np.stack([small(batch["frame"][row]) for row in chosen]) if chosen else np.empty((0, SIZE, SIZE, 3), np.uint8)
        )
        return {"frame": frames, "frame_index": batch["frame_index"][chosen]}

    dataset = ray.data.read_videos([str(path.absolute()) for path in videos], include_paths=True)
    kept = dataset.map_batches(keep, batch_size=64)
    return sum(len(batch["frame"]) for batch in kept.iter_batches(batch_size=None))


def count_frames(path: pathlib.Path) -> int:
    import av

    with av.open(str(path)) as container:
        return container.streams.video[0].frames


def installed(folders: dict[str, str]) -> dict[str, str]:
    found = {}
    for name in ("av", "decord", "opencv-python-headless", "opencv-python", "ray", "pillow", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, folder in folders.items():
        for item in importlib.metadata.distributions(path=[folder] if folder else []):
            if item.metadata["Name"] == name:
                found[name] = item.version
    return found


def measure_loops(
    videos: dict[str, pathlib.Path], numbers_of_frames: Sequence[int], rounds: int, folders: dict[str, str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One row a video and number of frames, with all variants; and why variants are missing."""
    workers, missing = start_workers((*OURS, *RAW), folders)
    rows, began = [], time.perf_counter()
    for name, path in videos.items():
        for num_frames in numbers_of_frames:
            skipped = IN_ORDER if name == "1 hour" and num_frames > 8 else ()
            running = {key: worker for key, worker in workers.items() if key not in skipped}
            variants = measure(running, path, num_frames, rounds)
            rows.append({"video": name, "num_frames": num_frames, "variants": variants})
            medians = {key: round(statistics.median(v["seconds"]), 4) for key, v in variants.items() if v["seconds"]}
            print(f"{time.perf_counter() - began:.0f} s", name, num_frames, medians, flush=True)
    for worker in workers.values():
        worker.close()
    return rows, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decord2", default="", metavar="FOLDER", help="where decord2 is installed")
    parser.add_argument("--torchcodec", default="", metavar="FOLDER", help="where torchcodec is installed")
    parser.add_argument(
        "--videos", default="", help="only these, with commas between; the others are kept from the last time"
    )
    parser.add_argument(
        "--parts", default="loops,memory,ray", help="what to measure again; the rest is kept from the last time"
    )
    add_arguments(parser, quick="one turn, 8 and 32 frames, no 1-hour video, no Ray")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    folders = {"decord2": arguments.decord2, "torchcodec": arguments.torchcodec}
    clips, long = decode_videos.clips(), decode_videos.long_videos()
    videos = {f"{seconds} s": clips[at] for at, seconds in ((0, 8), (3, 32))} | long | decode_videos.real_videos()
    found: dict[str, Any] = (arguments.out or Output()).found("decode") or {}
    parts = set(arguments.parts.split(",")) - ({"ray"} if arguments.quick else set())
    if arguments.quick:
        del videos["1 hour"]
    found |= {"versions": installed(folders), "size": SIZE, "cores": os.cpu_count()}
    if "loops" in parts:
        wanted = {name: path for name, path in videos.items() if name in (arguments.videos or ",".join(videos)).split(",")}
        made, missing = measure_loops(wanted, NUM_FRAMES[: 2 if arguments.quick else 3], rounds, folders)
        rows = [row for row in found.get("loops", []) if row["video"] not in wanted]
        order = list(videos)
        rows = sorted([*rows, *made], key=lambda row: order.index(row["video"]) if row["video"] in order else len(order))
        found |= {"loops": rows, "missing": missing, "rounds": rounds}
    if "memory" in parts:
        found["memory"] = measure_memory({name: path for name, path in long.items() if name in videos})
        print(found["memory"], flush=True)
    if "ray" in parts:
        sets = {
            f"{len(clips)} short clips": clips,
            f"{4 * len(clips)} short clips": decode_videos.variations(clips, 4),
            "the 10-minute video": [long["10 minutes"]],
        }
        found["ray"] = measure_ray(sets, min(rounds, 3))
        print(found["ray"], flush=True)
    publish(arguments, PERFORMANCE, "decode", found, decode_page.page(found))


if __name__ == "__main__":
    main()
