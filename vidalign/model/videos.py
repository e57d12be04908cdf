"""How a Hugging Face model takes the videos of a batch, where transformers 5.19 takes less than processors give.

- Videos of unequal length that are not cut into patches (LLaVA) cannot be one tensor: they come as a list of [1, F, C, H, W]. The
  tower computes frame by frame, so that they are one video to it. It is called once for every batch, as under ZeRO stage 3 all
  ranks must call it equally often.
- Gemma 4's forward does not pass on the number of frames of each video, which its `get_video_features` asks for; that only splits
  what the forward joins again (`Family.one_tower_call`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch

from vidalign.model.families import family_of


def correct_videos(model: Any) -> None:
    """Make a model's `get_video_features` take what `vidalign.model.batch` gives its forward."""
    inner = model.base_model
    if hasattr(inner, "get_video_features"):
        corrected = _in_one_call if family_of(model).one_tower_call else _end_to_end
        # A bound method, and no closure over the model: a copy of the model must not compute with the tower of the original.
        inner.get_video_features = types.MethodType(_with_signature(corrected, type(inner).get_video_features), inner)


def _with_signature(function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the original's signature, by which `generate` decides what it passes on."""

    @functools.wraps(original)
    def made(self: Any, *given: Any, **options: Any) -> Any:
        return function(self, *given, **options)

    return made


def _end_to_end(self: Any, pixel_values_videos: Any, *given: Any, **options: Any) -> Any:
    compute = functools.partial(type(self).get_video_features, self)
    if not isinstance(pixel_values_videos, list):
        return compute(pixel_values_videos, *given, **options)
    made = compute(torch.cat(pixel_values_videos, dim=1), *given, **options)
    made.pooler_output = _split(made.pooler_output, [video.shape[1] for video in pixel_values_videos])
    return made


def _in_one_call(self: Any, pixel_values_videos: torch.Tensor, *given: Any, **options: Any) -> Any:
    if len(given) < 2 and options.get("num_frames_per_video") is None:
        options["num_frames_per_video"] = torch.tensor([len(pixel_values_videos)])
    return type(self).get_video_features(self, pixel_values_videos, *given, **options)


def _split(joined: Any, lengths: list[int]) -> Any:
    """The embeddings of videos of F frames each, by those of all their frames as of one video.

    That is a tuple of one tensor [F, T, D], which becomes one tensor a video; or a tensor [1, F T + E, D] in which E embeddings end
    a video, which becomes [1, all T, D] with these at the end of each.
    """
    if not isinstance(joined, torch.Tensor):
        (frames,) = joined
        return frames.split(lengths)
    each, rest = divmod(joined.shape[1], sum(lengths))
    *videos, end = joined.split([*(length * each for length in lengths), rest], dim=1)
    return torch.cat([part for video in videos for part in (video, end)], dim=1)
