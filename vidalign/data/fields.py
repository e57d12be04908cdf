"""The types of a row's fields: texts, places of videos and images, spans, turns."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core

from vidalign.video.naming import local_path, mistyped

_RESERVED = re.compile("[\ufdd0-\ufdef]")


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise pydantic_core.PydanticCustomError("surrogate", "holds half of a character (an unpaired surrogate)") from error
    if _RESERVED.search(text):
        raise pydantic_core.PydanticCustomError(
            "reserved", "holds a character that Unicode reserves for programs (U+FDD0 to U+FDEF)"
        )
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise pydantic_core.PydanticCustomError("blank", "is empty")
    return text


def _nameable(video: str) -> str:
    try:
        path = local_path(video)
    except ValueError as error:
        raise pydantic_core.PydanticCustomError("uri", "is not a uri") from error
    if path is not None and "\0" in path:
        raise pydantic_core.PydanticCustomError("null", "holds a null character, which no path can have")
    if problem := mistyped(video):
        raise pydantic_core.PydanticCustomError("uri", "{problem}", {"problem": problem})
    return video


Unicode = Annotated[str, pydantic.AfterValidator(_encodable)]
Text = Annotated[Unicode, pydantic.AfterValidator(_not_blank)]
Video = Annotated[Text, pydantic.AfterValidator(_nameable)]
WinRate = Annotated[float, pydantic.Field(ge=0, le=1)]
Span = Annotated[list[int], pydantic.Field(min_length=2, max_length=2)]
FramesPerSecond = Annotated[pydantic.FiniteFloat, pydantic.Field(gt=0)]


FORMS = ("path", "list", "object")  # of a video in a row


def _form_of(video: Any) -> str:
    return "list" if isinstance(video, list) else "object" if isinstance(video, dict | pydantic.BaseModel) else "path"


class ClipRow(pydantic.BaseModel):
    """The part of a video that is shown, in seconds; `end` None means to its end."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    start: Annotated[pydantic.FiniteFloat, pydantic.Field(ge=0)] = 0.0
    end: Annotated[pydantic.FiniteFloat, pydantic.Field(gt=0)] | None = None


class TurnRow(pydantic.BaseModel):
    """One message of a conversation."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    role: Literal["user", "assistant"]
    content: Text


Path = Annotated[Video, pydantic.Tag("path")]
Listed = Annotated[list[Video], pydantic.Field(min_length=1), pydantic.Tag("list")]
OneVideo = Annotated[Path | Listed, pydantic.Discriminator(_form_of)]


class VideoRow(pydantic.BaseModel):
    """One of several videos."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    video: OneVideo
    fps: FramesPerSecond | None = None
    clip: ClipRow | None = None


AnyVideo = Annotated[Path | Listed | Annotated[VideoRow, pydantic.Tag("object")], pydantic.Discriminator(_form_of)]
