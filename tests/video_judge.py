"""FFmpeg's command makes the files of `tests/video_cases.py` and is the judge of what they hold: which frames, shown when."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
import re
import shutil
import subprocess

import numpy as np
import PIL.Image
from video_cases import Case

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video.decoding import decode

BACKENDS = ("pyav", "decord")
# To RGB: fields by themselves where there are fields. It is said, for the command would otherwise take them together.
RGB = "scale=interl=-1,format=rgb24"


@functools.cache
def ffmpeg() -> str:
    """FFmpeg's command: of the package imageio-ffmpeg, or else the one on the PATH."""
    if importlib.util.find_spec("imageio_ffmpeg"):
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    found = shutil.which("ffmpeg")
    assert found, "install imageio-ffmpeg (requirements/dev.lock) or the Debian package ffmpeg"
    return found


def run(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[bytes]:
    """FFmpeg's command; where it fails, the test fails with what it wrote."""
    command = [ffmpeg(), "-y", "-nostdin", "-hide_banner", "-threads", "1", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, (" ".join(command), done.stderr.decode(errors="replace")[-2000:])
    return done


def version() -> str:
    return subprocess.run([ffmpeg(), "-version"], capture_output=True, text=True, check=True).stdout.split()[2]


def make(case: Case, folder: pathlib.Path) -> pathlib.Path:
    path = folder / f"{case.name}.{case.container}"
    for step in case.steps:
        run(*(word.format(out=path, tmp=folder) for word in step.split()))
    return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """What FFmpeg's command decodes: frames uint8 [N, H, W, 3], and when each is shown, in seconds from the first."""

    frames: np.ndarray
    times_s: np.ndarray

    @property
    def twins(self) -> list[int]:
        """Frames that equal the one before them, so that one could stand in for the other unnoticed."""
        return [at for at in range(1, len(self.frames)) if (self.frames[at] == self.frames[at - 1]).all()]


def judge(path: pathlib.Path, filters: str = "", *, squared: bool = False) -> Truth:
    """Frames of another size than the first are resized by Pillow, as `vidalign.video` does: FFmpeg has many filters for that."""
    chain = ",".join(filter(None, (filters, RGB, "showinfo")))
    done = run(
        *(
            "-i",
            path,
            "-fps_mode",
            "passthrough",
            "-noautoscale",
            "-vf",
            chain,
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "pipe:1",
        )
    )
    said = done.stderr.decode(errors="replace")
    lines = re.findall(r" n: *\d+ pts: *\S+ pts_time:(\S+) .*? s:(\d+)x(\d+) ", said)
    frames, at = [], 0
    for _, width, height in lines:
        size = int(height) * int(width) * 3
        frames.append(np.frombuffer(done.stdout, np.uint8, size, at).reshape(int(height), int(width), 3))
        at += size
    assert at == len(done.stdout), (at, len(done.stdout))
    height, width = frames[0].shape[:2]
    if squared:  # by what the command says of the pixels of frames that are turned already
        across, down = map(int, re.search(r" sar:(\d+)/(\d+) ", said).groups())  # type: ignore[union-attr]
        height, width = (height, round(width * across / down)) if across >= down else (round(height * down / across), width)
    times = np.array([float(time) for time, _, _ in lines])
    return Truth(frames=np.stack([resized(frame, height, width) for frame in frames]), times_s=times - times[0])


def resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.BICUBIC))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one backend did.

    used: what decoded it. levels: the largest difference of a pixel, and mean_levels the mean one. reason: of its quarantine.
    wrong: what is not as judged, in words.
    """

    used: str = ""
    levels: int = 0
    mean_levels: float = 0.0
    reason: str = ""
    wrong: str = ""


def measure(case: Case, path: pathlib.Path, truth: Truth, backend: str) -> Outcome:
    """One backend against the judge, with three samplings: a few frames, all of them, and two a second."""
    count = len(truth.frames)
    last = truth.times_s[-1] - truth.times_s[-2] if count > 1 else 1.0
    lengths = np.diff(truth.times_s, append=truth.times_s[-1] + last)
    used, levels, means = "", 0, [0.0]
    for sampling in ({"num_frames": 7}, {"num_frames": count}, {"num_frames": None, "fps": 2.0}):
        try:
            clip = decode(path, FrameSpec(**{**sampling, **dict(case.spec)}), backend)  # type: ignore[arg-type]
        except VideoError as error:
            return Outcome(reason=error.reason, wrong=error.message.replace(str(path), path.name))
        used = clip.backend
        if clip.total_num_frames != count:
            return Outcome(used=used, wrong=f"{clip.total_num_frames} frames, judged {count}")
        if clip.frames.shape[1:] != truth.frames.shape[1:]:
            return Outcome(used=used, wrong=f"frames of {clip.frames.shape[1:3]}, judged {truth.frames.shape[1:3]}")
        at = list(clip.indices)
        late = np.abs(np.array(clip.times_s) - truth.times_s[at]) - lengths[at] / 2
        if (late > 0.001).any():
            return Outcome(used=used, wrong=f"frame {at[int(late.argmax())]} is {late.max():.3f} s too far from its time")
        difference = np.abs(clip.frames.astype(np.int16) - truth.frames[at])
        levels = max(levels, int(difference.max()))
        means.append(float(difference.mean()))
    found = Outcome(used=used, levels=levels, mean_levels=round(max(means), 3))
    if found.levels > case.levels or found.mean_levels > case.mean_levels:
        return dataclasses.replace(found, wrong=f"pixels differ by {found.levels} levels, by {found.mean_levels} on average")
    return found
