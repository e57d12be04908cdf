"""Does the driver's memory grow with the number of videos? It must not: it holds uris and paths, never pixels.

    vidalign bench memory [--counts 50 1000]

Makes distinct small videos, decodes each count of them with `actors.decoder.decode_videos` in a driver process of its own
(a peak never falls within one), and reports the driver's peak resident memory above what it held before decoding.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from bench import processes
from bench.memory import resident
from bench.pages import PERFORMANCE, Output, add_arguments
from bench.videos import write_video
from pipelines.summary import versions
from vidalign.types import FrameSpec

NUM_FRAMES, SIZE = 8, 128
SPEC = FrameSpec(num_frames=NUM_FRAMES, height=SIZE, width=SIZE)
MIB = 2**20


def write_videos(folder: pathlib.Path, count: int) -> None:
    """`count` MPEG-4 videos of 16 frames of 64x64 pixels, no two alike (equal ones would share one cache file)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        blocks = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)
        write_video(folder / f"{number:05d}.mp4", blocks.repeat(8, axis=1).repeat(8, axis=2), codec="mpeg4", fps=8)


def drive(folder: pathlib.Path, count: int, cache_dir: pathlib.Path, num_decoders: int) -> dict[str, float]:
    """One driver: decode `count` videos, consuming rows as they come. Runs in a process of its own."""
    import ray

    from actors.decoder import decode_videos

    ray.init(address="local", num_cpus=num_decoders + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    uris = [str(path) for path in sorted(folder.glob("*.mp4"))[:count]]
    # A first small run loads what Ray Data loads lazily, so that the figures show growth with videos and nothing else.
    warm = decode_videos(uris[:2], SPEC, str(cache_dir / "warm"), num_decoders=num_decoders)
    assert warm.count() == 2
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # peak := now
    before, start = resident("VmRSS"), time.monotonic()
    num_decoded = 0
    for batch in decode_videos(uris, SPEC, str(cache_dir), num_decoders=num_decoders).iter_batches(batch_size=None):
        num_decoded += sum(path != "" for path in batch["frames_path"])
    seconds, peak = time.monotonic() - start, resident("VmHWM")
    ray.shutdown()
    assert num_decoded == count, (num_decoded, count)
    return {
        "num_videos": count,
        "before_mib": round(before / MIB, 1),
        "peak_mib": round(peak / MIB, 1),
        "growth_mib": round((peak - before) / MIB, 1),
        "decoded_pixels_mib": round(count * NUM_FRAMES * SIZE * SIZE * 3 / MIB, 1),
        "seconds": round(seconds, 1),
        "videos_per_s": round(count / seconds, 1),
    }


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    rows = [
        f"| {row['num_videos']:,} | {row['before_mib']:.1f} | {row['peak_mib']:.1f} | {row['growth_mib']:+.1f} | "
        f"{row['decoded_pixels_mib']:,.1f} | {row['videos_per_s']:.1f} |"
        for row in found["runs"]
    ]
    spec = FrameSpec.from_row(found["spec"])
    return "\n".join(
        [
            "## Memory of the driver",
            "",
            f"Written by `vidalign bench memory`: a driver process decodes distinct small videos to {spec.num_frames} frames of "
            f"{spec.width}x{spec.height}, {found['num_decoders']} at a time. It holds uris and paths and never pixels, so its memory "
            "must not follow theirs.",
            "",
            "| videos | MiB before decoding | peak MiB | growth | their pixels, MiB | videos a second |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 1000], help="numbers of videos")
    parser.add_argument("--num-decoders", type=int, default=1)
    parser.add_argument("--drive", nargs=3, metavar=("VIDEOS", "COUNT", "CACHE"), help=argparse.SUPPRESS)
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.drive:
        videos, count, cache = arguments.drive
        processes.tell(drive(pathlib.Path(videos), int(count), pathlib.Path(cache), arguments.num_decoders))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_videos(folder / "videos", max(arguments.counts))
        for count in arguments.counts:
            own = ("--num-decoders", arguments.num_decoders, "--drive", folder / "videos", count, folder / f"frames{count}")
            rows.append(processes.result_of("bench.driver_memory", *own))
            print(rows[-1], flush=True)
    found = {"versions": versions(), "num_decoders": arguments.num_decoders, "spec": SPEC.to_row(), "runs": rows}
    out = arguments.out or Output()
    out.keep("driver_memory", found)
    out.write_part(PERFORMANCE, "driver_memory", page(found))


if __name__ == "__main__":
    main()
