"""A run over rows of every shape through real parts: rollouts, training and the report."""

from __future__ import annotations

import json
import pathlib
import shutil

import PIL.Image
import pytest
import yaml
from conftest import vidalign

from vidalign import files
from vidalign.types import FrameSpec, PreferencePair, QuarantineRow, Response
from vidalign.video.decoding import decode

pytestmark = pytest.mark.heavy

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


@pytest.fixture(scope="module")
def finished(shapes, small_config, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("mixed")
    raw = yaml.safe_load(small_config.read_text())
    train = mixed(shapes, folder, "train", 20)
    broken = folder / "broken"
    shutil.copytree(folder / train[2]["id"], broken)
    (broken / "frame_3.png").write_bytes((broken / "frame_3.png").read_bytes()[:60])
    train.append({**train[2], "id": "broken", "video": str(broken)})
    train.append({**train[3], "id": "beyond", "clip": {"start": 60}})
    for name, rows in (("train", train), ("probe", mixed(shapes, folder, "probe", 5))):
        raw["data"][name] = str(folder / f"{name}.jsonl")
        files.write_text_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    raw["data"]["eval"] = None
    raw["run_dir"] = str(folder / "run")
    (folder / "align.yaml").write_text(yaml.safe_dump(raw))
    done = vidalign("align", str(folder / "align.yaml"))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


def test_every_shape_is_answered_paired_and_trained_on(finished):
    responses = files.read_table(finished / "rounds/0/responses/responses.parquet", Response)
    assert len({response.example_id for response in responses}) == 20
    quarantined = files.read_table(finished / "rounds/0/quarantine/quarantine.parquet", QuarantineRow)
    assert sorted(row.reason for row in quarantined) == ["out_of_bounds", "truncated"]
    assert any("frame_3.png" in row.message for row in quarantined)
    pairs = files.read_table(finished / "rounds/0/pairs/pairs.parquet", PreferencePair)
    contexts = [pair.context for pair in pairs]
    shown = {(len(c.videos), len(c.images), bool(c.turns), "#" in c.visuals[0]) for c in contexts}
    assert shown == {(1, 0, True, False), (2, 0, False, False), (1, 0, False, True), (1, 1, False, False)}
    summary = files.read_json(finished / "summary.json")
    assert summary["pairs"]["dropped"]["video_quarantined"] == 2
    assert summary["log_likelihood"]["truth"]["start"] < 0
    page = (finished / "report/index.html").read_text(encoding="utf-8")
    assert "video 2, " in page or "image 1" in page
