"""One way of decoding, in a process of its own: `python -m bench.decode_worker VARIANT`, driven by bench/decode.py.

For each line {"path", "num_frames"} on standard input it decodes the frames at `frame_indices`, resizes each to SIZE with Pillow's
bicubic filter, one thread, and answers {"seconds", "frames_sha", "peak_kib"}. The raw loops believe what the container says
about its number of frames and its frame rate; they check nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import PIL.Image

from bench.memory import resident
from vidalign.types import FrameSpec
from vidalign.video import decoding

SIZE = 224


def spec_of(num_frames: int, snap: bool = False) -> FrameSpec:
    return FrameSpec(num_frames=num_frames, height=SIZE, width=SIZE, snap_to_keyframes=snap)


def indices_of(total: int, num_frames: int) -> list[int]:
    return decoding.frame_indices(total, 1.0, spec_of(num_frames))


def small(frame: np.ndarray) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(frame).resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC))


def decord(path: str, num_frames: int) -> np.ndarray:
    """decord and decord2: one get_batch."""
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    return np.stack([small(frame) for frame in reader.get_batch(indices_of(len(reader), num_frames)).asnumpy()])


def repeated(frames: Iterator[tuple[int, np.ndarray]], wanted: Sequence[int]) -> np.ndarray:
    """The resized frames in the order wanted, where some may be wanted twice."""
    found: dict[int, np.ndarray] = {}
    for number, frame in frames:
        found[number] = small(frame)
        if len(found) == len(set(wanted)):
            break
    return np.stack([found[number] for number in wanted])


def pyav_in_order(path: str, num_frames: int) -> np.ndarray:
    """Decode from the first frame to the last wanted one."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = indices_of(stream.frames, num_frames)
        decoded = enumerate(container.decode(stream))
        numbers = frozenset(wanted)
        return repeated(((i, frame.to_ndarray(format="rgb24")) for i, frame in decoded if i in numbers), wanted)


def pyav_seek(path: str, num_frames: int) -> np.ndarray:
    """Seek before each wanted frame and decode up to it, with the time that a constant frame rate gives it."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = indices_of(stream.frames, num_frames)
        assert stream.average_rate is not None
        assert stream.time_base is not None
        step = Fraction(1) / stream.average_rate / stream.time_base

        def frames() -> Iterator[tuple[int, np.ndarray]]:
            for number in sorted(set(wanted)):
                moment = (stream.start_time or 0) + round(number * step)
                container.seek(moment, stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is not None and frame.pts + step / 2 > moment:
                        yield number, frame.to_ndarray(format="rgb24")
                        break

        return repeated(frames(), wanted)


def opencv(path: str, num_frames: int, seek: bool = True) -> np.ndarray:
    """Set the position before each wanted frame."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = indices_of(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), num_frames)

    def frames() -> Iterator[tuple[int, np.ndarray]]:
        at = 0
        for number in sorted(set(wanted)):
            if seek:
                capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            else:
                while at < number:
                    capture.grab()
                    at += 1
            ok, frame = capture.read()
            at += 1
            assert ok, (path, number)
            yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    return repeated(frames(), wanted)


def opencv_in_order(path: str, num_frames: int) -> np.ndarray:
    """Grab every frame up to the last wanted one and retrieve the wanted ones."""
    return opencv(path, num_frames, seek=False)


def torchcodec(path: str, num_frames: int) -> np.ndarray:
    """get_frames_at, with seek_mode approximate."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    frames = decoder.get_frames_at(indices_of(len(decoder), num_frames)).data.numpy()
    return np.stack([small(frame) for frame in frames])


def ours(path: str, num_frames: int) -> np.ndarray:
    return decoding.decode(path, spec_of(num_frames)).frames


def ours_decord(path: str, num_frames: int) -> np.ndarray:
    return decoding.decode(path, spec_of(num_frames), "decord").frames


def ours_pyav(path: str, num_frames: int) -> np.ndarray:
    return decoding.decode(path, spec_of(num_frames), "pyav").frames


def ours_snapped(path: str, num_frames: int) -> np.ndarray:
    return decoding.decode(path, spec_of(num_frames, snap=True)).frames


class Cached:
    """With the frame cache: "ours_cached" is the decoder child's work on an empty one (SHA-256 of the file, decoding, writing) and
    reading the frames back; "cache_hit" is the same where the frames are there; "cache_read" only reads them, as every stage
    after decoding does."""

    def __init__(self, name: str) -> None:
        self.name, self.folder, self.frames_path = name, tempfile.mkdtemp(prefix="vidalign-bench-"), ""

    def __call__(self, path: str, num_frames: int) -> np.ndarray:
        from vidalign.video.frame_cache import load_clip
        from vidalign.video.into_cache import decode_into_cache

        if self.name != "cache_read" or not self.frames_path:
            self.frames_path = decode_into_cache(path, spec_of(num_frames), self.folder)["frames_path"]
        return load_clip(self.frames_path).frames

    def before(self, path: str, num_frames: int) -> None:
        """Not timed: empty the cache, or fill it."""
        self.frames_path = ""
        if self.name == "ours_cached":
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self(path, num_frames)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


CACHED = ("ours_cached", "cache_hit", "cache_read")
VARIANTS: dict[str, Callable[[str, int], np.ndarray]] = {
    "decord": decord,
    "decord2": decord,
    "pyav_in_order": pyav_in_order,
    "pyav_seek": pyav_seek,
    "opencv": opencv,
    "opencv_in_order": opencv_in_order,
    "torchcodec": torchcodec,
    "ours": ours,
    "ours_pyav": ours_pyav,
    "ours_decord": ours_decord,
    "ours_snapped": ours_snapped,
}


def main() -> None:
    name = sys.argv[1]
    cached = Cached(name) if name in CACHED else None
    run = cached or VARIANTS[name]
    if name in ("decord", "decord2"):
        import decord as module

        module.logging.set_level(module.logging.QUIET)
    elif name == "torchcodec":
        import torchcodec.decoders  # noqa: F401
    elif name.startswith("opencv"):
        import cv2  # noqa: F401
    print(json.dumps({"ready": resident("VmHWM") // 1024}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if cached is not None:
            cached.before(request["path"], request["num_frames"])
        began = time.perf_counter()
        frames = run(request["path"], request["num_frames"])
        seconds = time.perf_counter() - began
        assert frames.shape == (request["num_frames"], SIZE, SIZE, 3), frames.shape
        sha = hashlib.sha256(frames.tobytes()).hexdigest()
        print(json.dumps({"seconds": seconds, "frames_sha": sha, "peak_kib": resident("VmHWM") // 1024}), flush=True)
    if cached is not None:
        cached.close()


if __name__ == "__main__":
    main()
