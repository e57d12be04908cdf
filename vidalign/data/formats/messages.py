"""Chat messages in a source's row: their texts, and the videos and images in them.

A message is {"role", "content"} or {"from", "value"}; its content is a text or a list of parts. Where a part is a video or an
image, or a text holds a literal <video> or <image>, the turn's text holds that tag, and `Turn.media` what it stands for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from vidalign.data.formats.fields import Notes, has_content, kind_of
from vidalign.data.formats.media import Kind, Medium, medium
from vidalign.data.rows import TAG
from vidalign.data.shown import PLACES
from vidalign.errors import RowError

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "system": "system",
}
_PLACED = re.compile(r"<(video|image|img)>([^<>\n]*\.[A-Za-z0-9]{2,5}\s*)</\1>|<(video|image)>")
_KINDS: dict[str, Kind] = {"video": "video", "video_url": "video", "image": "image", "image_url": "image"}


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message. `media` has an entry for each <video> and <image> in `text`, None where another column names it."""

    role: str
    text: str
    media: tuple[Medium | None, ...]

    @classmethod
    def of(cls, role: str, text: str) -> Turn:
        """A turn of a text, which may name a video or image itself, as ms-swift's <video>a.mp4</video> does."""
        media: list[Medium | None] = []
        pieces, last = [], 0
        for match in _PLACED.finditer(text):
            kind: Kind = "video" if "video" in (match[1], match[3]) else "image"
            media.append(Medium(kind, path=match[2].strip()) if match[2] else None)
            pieces += [text[last : match.start()], PLACES[kind]]
            last = match.end()
        return cls(role, "".join([*pieces, text[last:]]), tuple(media))


def turns_of(value: Any, field: str, role: str, notes: Notes) -> list[Turn]:
    """The turns of a text (one turn of `role`), of one message, or of a list of messages.

    Raises:
        RowError: anything else; a role other than user, assistant, system and their usual aliases.
    """
    if isinstance(value, str):
        return [Turn.of(role, value)]
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise RowError(field, f"must be a text or a list of messages, got {kind_of(value)}", "give one of the two")
    return [_turn(message, f"{field}[{number}]", notes) for number, message in enumerate(messages)]


def _turn(message: Any, field: str, notes: Notes) -> Turn:
    if not isinstance(message, dict):
        raise RowError(field, f"must be a message, got {kind_of(message)}", 'write {"role": …, "content": …}')
    message = {name: value for name, value in message.items() if value is not None}
    role_key, content_key = ("from", "value") if "from" in message else ("role", "content")
    role = ROLES.get(str(message.get(role_key)))
    if role is None:
        why = f"has the role {message.get(role_key)!r}, which neither a question nor a response has"
        raise RowError(field, why, "use user (human), assistant (gpt, bot) and system; rows with tools are not supported")
    for name in sorted(set(message) - {role_key, content_key}):
        if has_content(message[name]):
            notes[f"'{name}' of a message, which is not used"] += 1
    content = message.get(content_key)
    if isinstance(content, str):
        return Turn.of(role, content)
    if not isinstance(content, list):
        raise RowError(
            f"{field}.{content_key}", f"must be a text or a list of parts, got {kind_of(content)}", "write its text"
        )
    parts = [_part(part, f"{field}.{content_key}[{number}]", notes) for number, part in enumerate(content)]
    return Turn(role, "".join(part.text for part in parts), tuple(item for part in parts for item in part.media))


def _part(part: Any, field: str, notes: Notes) -> Turn:
    """One part of a message's content, as a turn of its own."""
    if isinstance(part, str):
        return Turn.of("", part)
    part = {name: value for name, value in part.items() if value is not None} if isinstance(part, dict) else {}
    kind = part.pop("type", None)
    if kind == "text" and isinstance(part.get("text"), str):
        made = Turn.of("", part.pop("text"))
    elif kind in _KINDS:
        names = {kind, _KINDS[kind], "path", "url"}
        found = None
        if any(has_content(part.get(name)) for name in names):
            found, part = medium(part, field, notes, _KINDS[kind]), {}
        made = Turn("", PLACES[found.kind if found else _KINDS[kind]], (found,))
    else:
        raise RowError(
            field, f"is a part of type {kind!r}", "use parts of type text, video and image; no other type is supported"
        )
    for name in sorted(name for name in part if has_content(part[name])):
        notes[f"'{name}' of a part of a message, which is not used"] += 1
    return made


def split_conversation(turns: Sequence[Turn], field: str) -> tuple[list[Turn], str]:
    """The prompt and the response of a conversation that ends with the assistant."""
    if turns[-1].role != "assistant":
        raise RowError(
            field, "does not end with the assistant, so there is no response", "add the response, or remove the row"
        )
    return list(turns[:-1]), turns[-1].text


def response_text(value: Any, field: str, notes: Notes, prompt: Sequence[Turn] = ()) -> str:
    """The text of a response: a text, a message, or messages that may repeat the `prompt` before it.

    Raises:
        RowError: the text is missing or empty, turns before the response differ from the prompt, or a video is inside it.
    """
    if value is None:
        raise RowError(field, "is missing or null", "a pair has two responses: add the missing one, or leave out both")
    before, text = split_conversation(turns_of(value, field, "assistant", notes), field)
    asked = _said(before)
    if asked and asked != _said(prompt):
        fix = "begin both responses with the prompt's turns, or with none"
        raise RowError(field, f"has {len(asked)} turns before the response that are not the prompt", fix)
    if not text.strip():
        raise RowError(field, "is empty", "write the response, or remove the row")
    if TAG.search(text):
        raise RowError(field, f"holds the literal tag {TAG.findall(text)[0]}", "remove it: a response cannot hold a video")
    return text


def _said(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text.strip()) for turn in turns if turn.role != "system"]


def history_turns(value: Any, field: str) -> list[Turn]:
    """Earlier turns that are given as a list of [question, response]. Raises `RowError` for anything else."""
    if not has_content(value):
        return []
    fine = isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item) for item in value
    )
    if not fine:
        raise RowError(field, "is no list of questions with their responses", 'write [["question", "response"], …]')
    return [Turn.of(role, text) for item in value for role, text in zip(("user", "assistant"), item, strict=True)]
