"""Write the built-in data: MP4 files, and the train, held-out and probe questions about them.

    python -m examples.shapes.make_videos --out data/shapes [--train 800 --heldout 600 --probe 64 --seed 0]

Everything here is balanced: shapes, colours and directions are independent. Splits share no video.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np

from examples.shapes.biased_data import TWO_THINGS
from examples.shapes.world import CATEGORIES, Scene, ask, balanced_scenes, render, solve

NUM_FRAMES = 16
FPS = 8
QUESTIONS_PER_VIDEO = 2
SPLITS = ("train", "heldout", "probe", "dev")


def frame_times(num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Fractions of the video's length, in [0, 1), at which frames are drawn."""
    return (np.arange(num_frames) + 0.5) / num_frames


def write_video(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Encode frames, uint8 [F, H, W, 3], as H.264, or as MPEG-4 if FFmpeg has no libx264.

    Equal frames give equal bytes: encoding uses one thread and no macroblock tree, whose result in x264 differs by a few bits from
    run to run in the same process.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"} if codec == "libx264" else {"qscale": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def split_rows(split: str, num_questions: int, seed: int) -> tuple[list[dict], list[tuple[str, Scene]]]:
    """JSONL rows of one split, and its scenes by video name. Categories take turns."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    streams = {num_things: balanced_scenes(num_things, rng) for num_things in (1, 2)}
    pending: dict[int, list[tuple[str, Scene]]] = {1: [], 2: []}  # scenes that still need questions
    rows, scenes = [], []
    for index, category in enumerate(itertools.islice(itertools.cycle(CATEGORIES), num_questions)):
        num_things = 2 if category == "order" or (category in TWO_THINGS and rng.random() < 0.5) else 1
        if not pending[num_things]:
            named = (f"videos/{split}-{len(scenes):05d}.mp4", next(streams[num_things]))
            scenes.append(named)
            pending[num_things] = [named] * QUESTIONS_PER_VIDEO
        video, scene = pending[num_things].pop()
        # Yes and no, and the order of naming, alternate exactly.
        half = float(index // len(CATEGORIES) % 2)
        question = ask(scene, category, rng, yes=half, named_first=half)
        rows.append(
            {
                "id": f"{split}-{index:05d}",
                "video": video,
                "question": question.question,
                "answer": question.answer,
                "options": list(question.options),
                "category": category,
                "caption": solve(scene, "Describe the video."),
            }
        )
    return rows, scenes


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(out: Path, sizes: dict[str, int], seed: int = 0) -> int:
    """Write `sizes[split]` questions for every split, their videos and scenes.jsonl; returns the number of videos."""
    return write_splits(out, {split: split_rows(split, num_questions, seed) for split, num_questions in sizes.items()})


def write_splits(
    out: Path, splits: Mapping[str, tuple[list[dict], list[tuple[str, Scene]]]], num_frames: int = NUM_FRAMES
) -> int:
    """Write the rows of every split, its videos, and scenes.jsonl; returns the number of videos."""
    (out / "videos").mkdir(parents=True, exist_ok=True)
    described = []
    for split, (rows, scenes) in splits.items():
        for video, scene in scenes:
            write_video(out / video, render(scene, frame_times(num_frames)))
            described.append({"video": video, **scene.to_row()})
        write_jsonl(out / f"{split}.jsonl", rows)
    write_jsonl(out / "scenes.jsonl", described)
    return len(described)


def options(description: str | None, out: str, defaults: Mapping[str, int]) -> argparse.Namespace:
    """The command line: `out`, `seed`, and the number of questions of every split in `sizes`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out))
    for split in SPLITS:
        purpose = "number of questions" + (" for choosing settings; none by default" if split == "dev" else "")
        parser.add_argument(f"--{split}", type=int, default=defaults.get(split, 0), help=purpose)
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all these numbers, for tests of growth")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.sizes = {split: round(getattr(args, split) * args.scale) for split in SPLITS if getattr(args, split)}
    return args


def report(out: Path, num_videos: int, sizes: Mapping[str, int]) -> None:
    """Say what was written."""
    print(f"{out}: {num_videos} videos, questions: " + ", ".join(f"{n} {split}" for split, n in sizes.items()))


def main() -> None:
    args = options(__doc__, "data/shapes", {"train": 800, "heldout": 600, "probe": 64})
    report(args.out, make(args.out, args.sizes, args.seed), args.sizes)


if __name__ == "__main__":
    main()
