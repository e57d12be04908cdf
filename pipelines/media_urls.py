"""What an endpoint is asked: chat messages, with urls under which it reads the frames that training saw.

    a video, an image       file: below the endpoint's media root, else data: with the bytes
    a part of a video       the same, with #t=START,END
    frames in a folder      file: of the folder below the media root, with #fps=RATE; else as a list
    frames in a list        data:video/jpeg;base64,FRAME,FRAME,… with #fps=RATE: the form that vLLM has for frames

The fragment is that of the name (`vidalign.video.naming`); `serving.media` reads it.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import mimetypes
import pathlib
import urllib.parse
from typing import Any

from vidalign import files, prompts
from vidalign.errors import VideoError
from vidalign.records import Context
from vidalign.types import stable_hash
from vidalign.video import naming

NUM_NOISE_CLIPS = 4


def messages(text: str, context: Context, media_root: str | None) -> list[dict[str, Any]]:
    """The chat messages of a prompt, with urls in the places of its videos and images.

    Raises:
        VideoError: a local file that is missing or cannot be read.
    """
    urls = {
        "video": iter([media_url(name, media_root) for name in context.videos]),
        "image": iter([media_url(name, media_root) for name in context.images]),
    }

    def part(kind: str, **rest: Any) -> dict[str, Any]:
        if kind == "text":
            return {"type": kind, **rest}
        return {"type": f"{kind}_url", f"{kind}_url": {"url": next(urls[kind])}}

    return [
        {"role": message["role"], "content": [part(each["type"], **_without_type(each)) for each in message["content"]]}
        for message in prompts.chat(text, context)
    ]


def _without_type(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != "type"}


def media_url(name: str, media_root: str | None) -> str:
    """The url of what a name stands for. Raises `VideoError` as `video_url` does."""
    visual = naming.visual_of(name)
    if visual.kind == "image":
        return video_url(visual.uris[0], media_root, default="image/jpeg")
    end = f"#{visual.fragment}" if visual.fragment else ""
    if visual.kind == "video":
        return video_url(visual.uris[0], media_root) + end
    if visual.kind == "folder" and (url := _below(naming.local_path(visual.uris[0]), media_root)):
        return url + end
    from vidalign.video.visuals import opened

    with opened(name) as local:
        frames = [base64.b64encode(_bytes_of(pathlib.Path(path))).decode() for path in local.paths]
    return f"data:video/jpeg;base64,{','.join(frames)}{end}"


def _below(path: str | None, media_root: str | None) -> str | None:
    """The file: url of a path below the media root."""
    if path is None or media_root is None:
        return None
    resolved, root = pathlib.Path(path).resolve(), pathlib.Path(media_root).resolve()
    return resolved.as_uri() if root in resolved.parents else None


def video_url(video: str, media_root: str | None, default: str = "video/mp4") -> str:
    """A url under which the endpoint can read `video`: file: below its media root, otherwise data: with the bytes.

    Raises:
        VideoError: a local file that is missing or cannot be read.
    """
    if url := _below(naming.local_path(video), media_root):
        return url
    from vidalign.video.fetching import local_file

    kind = mimetypes.guess_type(urllib.parse.urlsplit(video).path if "://" in video else video)[0] or default
    with local_file(video) as (path, _):  # a remote one is fetched here: an endpoint reads no stores
        return f"data:{kind};base64,{base64.b64encode(_bytes_of(pathlib.Path(path).resolve())).decode()}"


def _bytes_of(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise VideoError("missing", f"no file at {path}") from error
    except OSError as error:
        raise VideoError("unreadable", f"{path} cannot be read: {error.strerror}") from error


def in_noise(id_: str, context: Context, folder: pathlib.Path) -> Context:
    """The same prompt with noise in place of everything that it shows; which noise depends on the example's id."""
    clips = [str(path) for path in noise_clips(folder)]
    pictures = noise_images(folder) if context.images else []
    stills = [naming.name_of(naming.Visual(kind="image", uris=(str(path.absolute()),))) for path in pictures]
    first = int(stable_hash(id_), 16)
    videos = tuple(clips[(first + number) % len(clips)] for number in range(len(context.videos)))
    images = tuple(stills[(first + number) % len(stills)] for number in range(len(context.images)))
    return dataclasses.replace(context, videos=videos, images=images)


def noise_clips(folder: pathlib.Path) -> list[pathlib.Path]:
    """Four MP4 files of coloured noise, 4 seconds at 8 frames a second; written once, the same every time."""
    import av
    import numpy as np

    paths = [folder / f"{index}.mp4" for index in range(NUM_NOISE_CLIPS)]
    for index, path in enumerate(paths):
        if path.is_file():
            continue
        pixels = np.random.default_rng(index).integers(0, 256, (32, 64, 64, 3), np.uint8)
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 64, "yuv420p", 4_000_000
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        files.write_bytes_atomic(path, buffer.getvalue())
    return paths


def noise_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Four PNG files of coloured noise; written once, the same every time."""
    import numpy as np
    import PIL.Image

    paths = [folder / f"{index}.png" for index in range(NUM_NOISE_CLIPS)]
    for index, path in enumerate(paths):
        if path.is_file():
            continue
        buffer = io.BytesIO()
        pixels = np.random.default_rng(NUM_NOISE_CLIPS + index).integers(0, 256, (64, 64, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(buffer, "PNG")
        files.write_bytes_atomic(path, buffer.getvalue())
    return paths
