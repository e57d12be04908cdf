"""Does the driver's memory grow with the number of videos? It must not: it holds uris and paths, never pixels.

    python bench/driver_memory.py --counts 50 1000 --out bench/results/driver_memory.json

Makes distinct small videos, decodes each count of them with `actors.decoder.decode_videos` in a driver process of its own
(a peak never falls within one), and reports the driver's peak resident memory above what it held before decoding.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from bench.memory import resident
from vidalign.types import FrameSpec

SPEC = FrameSpec(num_frames=8, height=128, width=128)
MIB = 2**20
ROOT = pathlib.Path(__file__).resolve().parents[1]


def write_videos(folder: pathlib.Path, count: int) -> None:
    """`count` MPEG-4 videos of 16 frames of 64x64 pixels, no two alike (equal ones would share one cache file)."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    for number in range(count):
        blocks = rng.integers(0, 256, (16, 8, 8, 3), np.uint8)
        with av.open(str(folder / f"{number:05d}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for frame in blocks.repeat(8, axis=1).repeat(8, axis=2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def drive(folder: pathlib.Path, count: int, cache_dir: pathlib.Path, num_decoders: int) -> dict:
    """One driver: decode `count` videos, consuming rows as they come. Runs in a process of its own."""
    import ray

    from actors.decoder import decode_videos

    ray.init(num_cpus=num_decoders + 1, include_dashboard=False, log_to_driver=False)
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
    pixels = count * (SPEC.num_frames or 0) * (SPEC.height or 0) * (SPEC.width or 0) * 3
    return {
        "num_videos": count,
        "before_mib": round(before / MIB, 1),
        "peak_mib": round(peak / MIB, 1),
        "growth_mib": round((peak - before) / MIB, 1),
        "decoded_pixels_mib": round(pixels / MIB, 1),
        "seconds": round(seconds, 1),
        "videos_per_s": round(count / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--num-decoders", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results" / "driver_memory.json")
    parser.add_argument("--drive", nargs=3, metavar=("VIDEOS", "COUNT", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        videos, count, cache = args.drive
        print(json.dumps(drive(pathlib.Path(videos), int(count), pathlib.Path(cache), args.num_decoders)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        videos = pathlib.Path(temporary) / "videos"
        videos.mkdir()
        write_videos(videos, max(args.counts))
        for count in args.counts:
            command = [
                sys.executable,
                __file__,
                "--num-decoders",
                str(args.num_decoders),
                "--drive",
                str(videos),
                str(count),
            ]
            done = subprocess.run([*command, f"{temporary}/frames{count}"], check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"python": platform.python_version(), "num_decoders": args.num_decoders, "spec": SPEC.to_row(), "runs": rows}
    args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
