"""What one prompt shows: a clip, or several clips with the conversation that they stand in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from vidalign.prompts import ONE_VIDEO
from vidalign.records import Context
from vidalign.video.clip import Clip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The clips of a context's videos, then of its images (clips of one frame), in its order. `other`: the clip of the row's
    `rejected_video`, which no prompt shows beside them.
    """

    context: Context
    clips: tuple[Clip, ...]
    other: Clip | None = None

    def __post_init__(self) -> None:
        assert len(self.clips) == len(self.context.visuals), (len(self.clips), self.context)

    @property
    def videos(self) -> tuple[Clip, ...]:
        """The clips of the videos."""
        return self.clips[: len(self.context.videos)]

    @property
    def images(self) -> tuple[Clip, ...]:
        """The clips of the images."""
        return self.clips[len(self.context.videos) :]


Shown: TypeAlias = Clip | Scene  # a clip alone is one video before one question


def shown(context: Context, clips: tuple[Clip, ...]) -> Shown:
    """What a prompt shows: the clip alone where it shows one video and says nothing before its question."""
    return clips[0] if context.is_plain else Scene(context=context, clips=clips)


def scene_of(what: Shown) -> Scene:
    """What a prompt shows, as a scene."""
    return what if isinstance(what, Scene) else Scene(context=ONE_VIDEO, clips=(what,))


def without_conversation(what: Shown) -> Shown:
    """The same videos and images, before a question of their own."""
    if not isinstance(what, Scene):
        return what
    return shown(dataclasses.replace(what.context, system="", turns=()), what.clips)


def changed(what: Shown, change: Callable[[Clip], Clip]) -> Shown:
    """The same with every clip changed, in order."""
    if isinstance(what, Scene):
        return dataclasses.replace(what, clips=tuple(change(clip) for clip in what.clips))
    return change(what)
