"""Gives vLLM what a request's urls stand for (`serving.reading`), in the place of vLLM's own connector.

That one reads whatever url it is given, in threads that nothing can stop. This module imports vLLM and is imported by its plugin
(serving/video_loader.py).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import PIL.Image
from vllm.multimodal.media import ImageMediaIO, MediaConnector, MediaWithBytes

from serving.decoders import MediaOptions, decoders
from serving.frames import check_taken, spec_of
from serving.reading import Reader
from serving.refusals import unusable_message
from serving.replies import Refusal
from vidalign.errors import ClusterError, DataError, VideoError
from vidalign.types import DEFAULT_BACKEND

log = logging.getLogger("vidalign.serving")


class PolicyMediaConnector(MediaConnector):
    """vLLM reports a `ValueError` as a 400 response with its message. Images come in the size of the FrameSpec, as frames do."""

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        return asyncio.run(self.load_from_url_async(url, media_io))

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        is_image = isinstance(media_io, ImageMediaIO)
        options = dict(self.media_io_kwargs.get("video", {}))
        options.pop("video_backend", None)
        backend = options.pop("decoder", DEFAULT_BACKEND)
        spec = spec_of(options.pop("num_frames", None), **options)
        reader = Reader(decoders=decoders(), config=MediaOptions.of_process().media, root=self.allowed_local_media_path)
        try:
            clip, key = await reader.clip_of(url, spec, backend, image=is_image)
            if not is_image:
                check_taken(clip)
        except VideoError as error:
            raise ValueError(unusable_message(error)) from None
        except (DataError, ClusterError) as error:
            log.error("%s", error)
            raise RuntimeError("the frames cannot be decoded here now") from error
        except Refusal as refusal:
            raise RuntimeError(refusal.message) from None
        # vLLM's caches know media by these bytes: what was decoded, and how.
        if is_image:
            return MediaWithBytes(PIL.Image.fromarray(clip.frames[0]), key.encode())
        return MediaWithBytes((clip.frames, clip.metadata()), key.encode())
