"""What the records of `vidalign.types` are made of: their conversion to rows, and the context in which a question is asked."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Self


class Record:
    """Conversion between a frozen dataclass and the plain dict that is stored."""

    def to_row(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: _plain(value) for name, value in row.items() if name in names})


def _plain(value: Any) -> Any:
    """Turn what Parquet gives back (NumPy arrays and scalars) into lists and Python scalars."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn(Record):
    """One message of a conversation before its question."""

    role: Literal["user", "assistant"]
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameChoice(Record):
    """How frames are chosen by the question that is asked about a video (`vidalign.video.frame_choice`): of `pool` evenly spread
    candidates, those that are relevant and hold much, at least `keep` of them.

    `relevance` is the folder of a CLIP or SigLIP model, "none" for the frames alone, or `package.module:attribute`.
    """

    kind: Literal["relevance"] = "relevance"
    pool: int = 128
    keep: int = 32
    relevance: str = "none"

    @property
    def needs_question(self) -> bool:
        """Whether other frames may be chosen for another question."""
        return self.relevance != "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a prompt holds beside its question: a system text, earlier turns, and the names of what it shows.

    Where a video or image stands is said by `<video>` and `<image>` in the texts of the user, in order; without them, all videos
    and then all images come before the first of these texts (`vidalign.prompts.chat`). Names: `vidalign.video.naming`.
    """

    videos: tuple[str, ...]
    images: tuple[str, ...] = ()
    system: str = ""
    turns: tuple[Turn, ...] = ()

    @property
    def visuals(self) -> tuple[str, ...]:
        """The names of all videos, then of all images."""
        return self.videos + self.images

    @property
    def is_plain(self) -> bool:
        """Whether it is one video and nothing else."""
        return len(self.videos) == 1 and not (self.images or self.system or self.turns)


class Prompted(Record):
    """A record of a question in its context. Fields that are empty are not stored: rows and hashes are as they were before them."""

    video: str
    videos: tuple[str, ...]
    images: tuple[str, ...]
    system: str
    turns: tuple[Turn, ...]
    OMITTED: ClassVar[tuple[str, ...]] = ("videos", "images", "system", "turns")

    @property
    def context(self) -> Context:
        """Everything that the prompt holds beside the question."""
        videos = self.videos or ((self.video,) if self.video else ())
        return Context(videos=videos, images=self.images, system=self.system, turns=self.turns)

    def context_fields(self) -> dict[str, Any]:
        """The fields of `context` and `video`, for another record of the same prompt."""
        return {name: getattr(self, name) for name in ("video", *Prompted.OMITTED)}

    def to_row(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_row().items() if value or name not in self.OMITTED}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        given = {name: value for name, value in row.items() if value is not None or name not in cls.OMITTED}
        if "turns" in given:
            given["turns"] = [Turn.from_row(turn) for turn in given["turns"]]
        return super().from_row(given)
