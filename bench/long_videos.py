"""An hour of video: how long its frames take to decode, and how much memory beside the frames themselves.

    vidalign bench long [--quick]

Every row is a decoding process of its own, as runs have it (`vidalign.video.decode_child`): from the file to frames in the cache. Its
peak of resident memory less the frames' own bytes must not follow their number.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import time
from typing import Any

from bench import decode_videos
from bench.memory import resident
from bench.pages import PERFORMANCE, add_arguments, publish
from bench.videos import write_video
from pipelines.summary import versions
from vidalign.types import DEADLINE_S, Backend, FrameSpec
from vidalign.video.decode_child import ChildDecoder
from vidalign.video.frame_cache import load_clip

MIB = 2**20
HOUR_S = 3600
TOTAL_PIXELS = 768 * 224 * 224  # the frames of a row together, as a model's budget for a video has it
SAMPLINGS: dict[str, dict[str, Any]] = {
    "8 frames": {"num_frames": 8},
    "128 frames": {"num_frames": 128},
    "768 frames": {"num_frames": 768},
    "1 a second": {"num_frames": None, "fps": 1.0, "max_frames": HOUR_S},
}
IN_DECORD = ("8 frames", "128 frames")  # it decodes every frame between a keyframe and the wanted one: more take minutes


def hour(height: int, width: int, part_s: int) -> pathlib.Path:
    """H.264, 25 frames a second: a part with a moving scene, again and again."""
    folder = decode_videos.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part_{width}x{height}_{part_s}s.mp4"
    if not part.exists():
        small = decode_videos.pictures(decode_videos.RATE * part_s, seed=7)
        scaled = (picture.repeat(height // 240, axis=0).repeat(width // 320, axis=1) for picture in small)
        write_video(part, scaled, codec="libx264", fps=decode_videos.RATE, options=decode_videos.OPTIONS)
    return decode_videos.repeat(part, folder / f"hour_{width}x{height}.mp4", HOUR_S // part_s)


def measure(path: pathlib.Path, sampling: dict[str, Any], backend: Backend, deadline_s: float) -> dict[str, Any]:
    spec = FrameSpec(**sampling, total_pixels=TOTAL_PIXELS)
    with tempfile.TemporaryDirectory(prefix="vidalign-bench-") as folder:
        child = ChildDecoder(spec, folder, backend=backend, deadline_s=deadline_s)
        try:
            child.decode(str(path.with_name("none.mp4")))  # starts the process
            assert child.pid is not None
            ready, cpu_before = resident("VmRSS", child.pid), cpu_seconds(child.pid)
            start = time.monotonic()
            row = child.decode(str(path))
            seconds = time.monotonic() - start
            peak, cpu = (resident("VmHWM", child.pid), cpu_seconds(child.pid)) if child.pid else (0, 0.0)
        finally:
            child.close()
        frames = load_clip(row.frames_path).frames if row.frames_path else None
    found: dict[str, Any] = {"reason": row.reason, "backend": row.backend, "seconds": round(seconds, 2)}
    if frames is None:  # the process is gone, and with it what it used
        return found
    return found | {
        "frames": list(frames.shape[:3]),
        "cpu_s": round(cpu - cpu_before, 2),
        "ready_mib": round(ready / MIB, 1),
        "peak_mib": round(peak / MIB, 1),
        "frames_mib": round(frames.nbytes / MIB, 1),
        "beside_mib": round((peak - ready - frames.nbytes) / MIB, 1),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table; what is not known of a video that was not decoded is a dash."""

    def number(name: str, form: str = ",.1f") -> str:
        return format(row[name], form) if name in row else "-"

    shape = "x".join(map(str, row["frames"])) if "frames" in row else "-"
    return (
        f"| {row['video']} | {row['sampling']} | {row['backend'] or row['reason']} | {shape} | {number('cpu_s', '.2f')} | "
        f"{number('seconds', '.2f')} | {number('frames_mib')} | {number('peak_mib')} | {number('beside_mib', '+,.1f')} |"
    )


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processor: on a busy machine, that says more than the clock."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    quick = sum(not row["reason"] and row["cpu_s"] < DEADLINE_S for row in found["runs"])
    late = [row for row in found["runs"] if row["reason"]]
    return "\n".join(
        [
            "## An hour of video",
            "",
            f"Written by `vidalign bench long` on {found['cores']} cores that others use too (load {found['load']:g}), so that "
            "seconds of the processor say more than those of the clock: one hour of H.264 at 25 frames a second, decoded by one "
            f"thread of a process of its own, `video.total_pixels: {found['total_pixels']}`. {len(found['runs']) - len(late)} of "
            f"{len(found['runs'])} rows ended within {found['deadline_s']:g} s of the clock, and {quick} took less of the processor "
            f"than the {DEADLINE_S:g} s of `video.deadline_s`. Peaks are of resident memory; the last column is what is beside "
            "the frames themselves and what the process held before: decoders and the index of the file. PyAV's does not follow "
            "the number of frames; decord decodes ahead, and its queue does.",
            "",
            "| video | sampling | decoded by | frames x height x width | CPU s | s | frames, MiB | peak, MiB | beside, MiB |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(line, found["runs"]),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deadline-s", type=float, default=600.0, help="more than video.deadline_s, for busy machines")
    add_arguments(parser, quick="the small video and 8 frames only")
    arguments = parser.parse_args()
    videos = {"320x240": hour(240, 320, 60)} | ({} if arguments.quick else {"1280x720": hour(720, 1280, 30)})
    samplings = {"8 frames": SAMPLINGS["8 frames"]} if arguments.quick else SAMPLINGS
    runs = []
    for video, path in videos.items():
        for name, sampling in samplings.items():
            backends: tuple[Backend, ...] = ("pyav", "decord") if name in IN_DECORD else ("pyav",)
            for backend in backends:
                measured = measure(path, sampling, backend, arguments.deadline_s)
                runs.append({"video": video, "sampling": name, "asked": backend, **measured})
                print(runs[-1], flush=True)
    found = {
        "versions": versions(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "deadline_s": arguments.deadline_s,
        "total_pixels": TOTAL_PIXELS,
        "runs": runs,
    }
    publish(arguments, PERFORMANCE, "long_videos", found, page(found))


if __name__ == "__main__":
    main()
