"""Which frames of a video are shown: evenly spread ones, or those that the question calls for."""

from __future__ import annotations

from typing import Literal, Self

import pydantic

from vidalign.config.section import Section
from vidalign.errors import ConfigError
from vidalign.plugins import resolve
from vidalign.records import FrameChoice


class ChoiceConfig(Section):
    """ReAgent-V's choice of frames (arXiv 2506.01300): by how much they have to do with the question, and how much they hold.

    `pool` evenly spread candidates are decoded. At least `keep` of them are shown, and at most `video.num_frames`.
    """

    kind: Literal["uniform", "relevance"] = "uniform"
    """Show evenly spread frames (uniform), or choose them by the question (relevance)."""
    pool: int = pydantic.Field(128, ge=2)
    """Frames that are looked at, evenly spread."""
    keep: int = pydantic.Field(32, ge=1)
    """Fewest frames that are shown of a video with so many."""
    relevance: str = "none"
    """What says how much a frame has to do with the question: the folder of a CLIP or SigLIP model, none (only how much a frame
    holds counts), or `package.module:attribute`, a function (frames uint8 [F, H, W, 3], question) -> F numbers.
    """

    @pydantic.field_validator("relevance")
    @classmethod
    def _can_be_called(cls, name: str) -> str:
        if not name.strip():
            raise ValueError('must name something, got ""; none goes by the frames alone')
        if "://" in name:
            raise ValueError(
                f"must be a folder on every node, none, or package.module:attribute, got {name!r}; fetch the model first"
            )
        if ":" in name and not callable(resolve(name, {}, what="video.choice.relevance")):
            raise ConfigError(
                f"video.choice.relevance={name!r} cannot be called; name a function (frames, question) -> a number for each frame"
            )
        return name

    @pydantic.model_validator(mode="after")
    def _is_used(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in ("pool", "keep", "relevance") if getattr(self, name) != fields[name].default]
        if self.kind == "uniform" and idle:
            raise ValueError(
                f"choice.{idle[0]} is set, but kind=uniform takes evenly spread frames and looks at no others; set kind to relevance, "
                f"or leave {idle[0]} out"
            )
        return self

    def frame_choice(self) -> FrameChoice | None:
        """The choice as a FrameSpec holds it; None where frames are evenly spread."""
        if self.kind == "uniform":
            return None
        return FrameChoice(pool=self.pool, keep=self.keep, relevance=self.relevance)


def check_choice(choice: ChoiceConfig, num_frames: int | None) -> None:
    """Raises `ValueError` where so many frames cannot be chosen."""
    if choice.kind == "uniform":
        return
    if num_frames is None:
        raise ValueError(
            "choice.kind=relevance chooses among choice.pool evenly spread frames, however long the video is, so fps must be null; "
            "set num_frames to the most that are shown"
        )
    if not choice.keep <= num_frames <= choice.pool:
        raise ValueError(
            f"choice.keep={choice.keep} is the fewest frames that are shown, num_frames={num_frames} the most, and "
            f"choice.pool={choice.pool} how many are looked at; set them so that keep <= num_frames <= pool"
        )
