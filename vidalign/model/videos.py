"""How a Hugging Face model takes the videos of a batch, where transformers 5.19 takes less than processors give.

- Videos of unequal length that are not cut into patches (LLaVA) cannot be one tensor: they come as a list of [1, F, C, H, W], and
  the tower computes one after the other.
- Gemma 4's forward does not pass on the number of frames of each video, which its `get_video_features` asks for; that only splits
  what the forward joins again (`Family.one_tower_call`).
"""

from __future__ import annotations

from typing import Any

import torch

from vidalign.model.families import family_of


def correct_videos(model: Any) -> None:
    """Make a model's `get_video_features` take what `vidalign.model.batch` gives its forward."""
    inner = model.base_model
    compute = getattr(inner, "get_video_features", None)
    if compute is None:
        return
    one_call = family_of(model).one_tower_call

    def get_video_features(pixel_values_videos: Any, *given: Any, **options: Any) -> Any:
        if isinstance(pixel_values_videos, list):
            made = [compute(video, *given, **options) for video in pixel_values_videos]
            made[0].pooler_output = _joined([each.pooler_output for each in made])
            return made[0]
        if one_call and len(given) < 2 and options.get("num_frames_per_video") is None:
            options["num_frames_per_video"] = torch.tensor([len(pixel_values_videos)])
        return compute(pixel_values_videos, *given, **options)

    inner.get_video_features = get_video_features


def _joined(videos: list[Any]) -> Any:
    """The embeddings of all videos: [1, T, D] each, or a tuple of tensors each."""
    return (
        torch.cat(videos, dim=1)
        if isinstance(videos[0], torch.Tensor)
        else tuple(part for parts in videos for part in parts)
    )
