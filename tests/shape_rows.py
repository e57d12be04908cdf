"""Rows of every shape that training data may have, made of the built-in data."""

from __future__ import annotations

import json
import pathlib
import shutil

import PIL.Image

from vidalign import files
from vidalign.types import FrameSpec
from vidalign.video.decoding import decode

TURNS = [{"role": "user", "content": "What moves?"}, {"role": "assistant", "content": "A shape."}]


def write_frames(video: pathlib.Path, folder: pathlib.Path) -> float:
    """The frames of a video as PNG files; how many there are for one second."""
    folder.mkdir()
    clip = decode(video, FrameSpec(num_frames=16))
    for number, frame in enumerate(clip.frames):
        PIL.Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return 16 / clip.duration_s


def mixed(shapes: pathlib.Path, folder: pathlib.Path, split: str, count: int) -> list[dict]:
    """Rows of a split of the built-in data, in turn of each of five shapes."""
    lines = (shapes / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: 2 * count : 2]]
    for number, row in enumerate(rows):
        video = str(shapes / row["video"])
        row["video"] = video
        if number % 5 == 0:
            row |= {"system": "Answer in one sentence.", "turns": TURNS}
        elif number % 5 == 1:
            row["videos"] = [row.pop("video"), {"video": video, "clip": {"start": 0.5}}]
        elif number % 5 == 2:
            row |= {"video": str(folder / row["id"]), "fps": write_frames(pathlib.Path(video), folder / row["id"])}
        elif number % 5 == 3:
            row["clip"] = {"start": 0.25, "end": 3}
        else:
            write_frames(pathlib.Path(video), folder / row["id"])
            row |= {"images": [str(folder / row["id"] / "frame_8.png")], "question": f"<image> <video> {row['question']}"}
    return rows


def write_mixed(shapes: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
    """The files of 20 training rows of five shapes, of two more that cannot be read, and of 5 rows of the probe."""
    train = mixed(shapes, folder, "train", 20)
    broken = folder / "broken"
    shutil.copytree(folder / train[2]["id"], broken)
    (broken / "frame_3.png").write_bytes((broken / "frame_3.png").read_bytes()[:60])
    train.append({**train[2], "id": "broken", "video": str(broken)})
    train.append({**train[3], "id": "beyond", "clip": {"start": 60}})
    for name, rows in (("train", train), ("probe", mixed(shapes, folder, "probe", 5))):
        files.write_text_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "probe")}
