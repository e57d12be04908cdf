"""What the formats share: chat messages, places for a video in a text, and the row of ours that comes of them.

`Notes` counts, by a sentence each, what a source holds and a row of ours does not: the summary of an import names it.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from vidalign.data.rows import TAG
from vidalign.errors import RowError

Fields: TypeAlias = dict[str, Any]
Notes = collections.Counter[str]

VIDEO_SUFFIXES = (
    ".3gp",
    ".avi",
    ".flv",
    ".gif",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
)
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "system": "system",
}
PLACES = {"<video>", "<image>"}  # LLaVA and its relatives write <image> for a video too
PAIR_FIELDS = ("id", "category", "options", "chosen_score", "rejected_score")
EXAMPLE_FIELDS = PAIR_FIELDS[:3]
OWN_TYPES: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: isinstance(value, str | int) and not isinstance(value, bool),
    "category": lambda value: isinstance(value, str),
    "options": lambda value: isinstance(value, list) and all(isinstance(option, str) for option in value),
    "chosen_score": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "rejected_score": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
ONE_QUESTION = "a row holds one question: give each turn a row of its own, or remove the row"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message. In `text`, a tag <video> stands where the content had a video; `videos` are those named there."""

    role: str
    text: str
    videos: tuple[str, ...] = ()


def turns_of(value: Any, field: str, role: str, notes: Notes) -> list[Turn]:
    """The turns of a text (one turn of `role`), of one message, or of a list of messages.

    A message is {"role", "content"} or {"from", "value"}; its content is a text or a list of parts.

    Raises:
        RowError: anything else; a role other than user, assistant, system and their usual other names.
    """
    if isinstance(value, str):
        return [Turn(role, value)]
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise RowError(field, f"must be a text or messages, got {_kind(value)}", "give a text or a list of messages")
    return [_turn(message, f"{field}[{number}]", notes) for number, message in enumerate(messages)]


def _turn(message: Any, field: str, notes: Notes) -> Turn:
    if not isinstance(message, dict):
        raise RowError(field, f"must be a message, got {_kind(message)}", 'write {"role": …, "content": …}')
    message = {name: value for name, value in message.items() if value is not None}
    role_key, content_key = ("from", "value") if "from" in message else ("role", "content")
    role = ROLES.get(str(message.get(role_key)))
    if role is None:
        why = f"has the role {message.get(role_key)!r}, which a question and its responses do not have"
        raise RowError(field, why, "use user (human), assistant (gpt, bot) and system; rows with tools cannot be held")
    for name in sorted(set(message) - {role_key, content_key}):
        if has_content(message[name]):
            notes[f"'{name}' of a message, which is not used"] += 1
    content = message.get(content_key)
    if isinstance(content, str):
        return Turn(role, content)
    if not isinstance(content, list):
        raise RowError(
            f"{field}.{content_key}", f"must be a text or a list of parts, got {_kind(content)}", "write its text"
        )
    texts, videos = [], []
    for number, part in enumerate(content):
        text, video = _part(part, f"{field}.{content_key}[{number}]", notes)
        texts.append(text)
        videos += video
    return Turn(role, "".join(texts), tuple(videos))


def _part(part: Any, field: str, notes: Notes) -> tuple[str, list[str]]:
    """The text that stands for a part of a message's content, and the video that the part names, if it names one."""
    if isinstance(part, str):
        return part, []
    part = {name: value for name, value in part.items() if value is not None} if isinstance(part, dict) else {}
    kind = part.pop("type", None)
    if kind == "text" and isinstance(part.get("text"), str):
        text, videos = part.pop("text"), []
    elif kind in ("video", "video_url", "image", "image_url"):
        medium = "video" if kind.startswith("video") else "image"
        named = next((name for name in (kind, medium, "path", "url") if has_content(part.get(name))), None)
        videos = [] if named is None else [media_path(part.pop(named), field, notes, is_video=medium == "video")]
        text = f"<{medium}>" if named is None else "<video>"
    else:
        raise RowError(
            field, f"is a part of type {kind!r}", 'use {"type": "text"} and {"type": "video"}; no other can be held'
        )
    for name in sorted(name for name in part if has_content(part[name])):
        notes[f"'{name}' of a message's part, which is not used"] += 1
    return text, videos


def media_path(value: Any, field: str, notes: Notes, *, is_video: bool = True) -> str:
    """The path or uri of a video, given as a text or as {"path"} or {"url"}; for an image field, of a video in its place.

    Raises:
        RowError: embedded bytes, lists of frames, images.
    """
    if isinstance(value, dict) and not has_content(value.get("bytes")):
        named = next((name for name in ("path", "url") if has_content(value.get(name))), "path")
        for name in sorted(name for name in value if name != named and has_content(value[name])):
            notes[f"'{name}' of a video, which is not used"] += 1
        value = value.get(named)
    if isinstance(value, list):
        raise RowError(
            field, f"is a list of {len(value)} frames", "join the frames to a video file (ffmpeg) and name that file"
        )
    if not isinstance(value, str) or not value.strip():
        why = f"must name a video file, got {_kind(value)}"
        raise RowError(field, why, "write embedded videos to files and give their paths")
    if not is_video and pathlib.PurePath(value).suffix.lower() not in VIDEO_SUFFIXES:
        raise RowError(field, f"names an image ({value})", "vidalign trains on videos: remove the row")
    return value


def take_videos(fields: Fields, notes: Notes) -> list[str]:
    """Take the videos out of the columns `videos` and `video`, and those that stand in `images` and `image`."""
    videos = []
    for name in ("videos", "video", "images", "image"):
        value = fields.pop(name, None)
        if has_content(value):
            values = value if isinstance(value, list) else [value]
            videos += [media_path(item, name, notes, is_video=name.startswith("video")) for item in values]
    return videos


def split_conversation(turns: Sequence[Turn], field: str) -> tuple[list[Turn], str]:
    """The prompt and the reply of a conversation that ends with the assistant."""
    if turns[-1].role != "assistant":
        raise RowError(
            field, "does not end with the assistant, so there is no response", "add the response, or remove the row"
        )
    return list(turns[:-1]), turns[-1].text


def reply(value: Any, field: str, notes: Notes, prompt: Sequence[Turn] = ()) -> str:
    """The text of a response: a text, a message, or messages that may repeat the `prompt` before it.

    Raises:
        RowError: no text, or an empty one; turns before the response that are not the prompt's; a video inside of it.
    """
    if value is None:
        raise RowError(field, "is missing or null", "a pair has two responses: add it, or leave out both")
    before, text = split_conversation(turns_of(value, field, "assistant", notes), field)
    asked = [turn.text.strip() for turn in before if turn.role != "system"]
    if asked and asked != [turn.text.strip() for turn in prompt if turn.role != "system"]:
        raise RowError(field, f"has {len(asked)} turns before the response that are not the prompt", ONE_QUESTION)
    if not text.strip():
        raise RowError(field, "is empty", "write the response, or remove the row")
    if TAG.search(text):
        raise RowError(field, f"holds the literal tag {TAG.findall(text)[0]}", "remove it: a response holds no video")
    return text


def question(prompt: Sequence[Turn], field: str, notes: Notes) -> Turn:
    """The one user turn of a prompt; system turns are noted.

    Raises:
        RowError: no user turn, or several turns.
    """
    asked = [turn for turn in prompt if turn.role != "system"]
    if len(asked) != 1 or asked[0].role != "user":
        raise RowError(field, f"has {len(asked)} turns before the response, not one question", ONE_QUESTION)
    if len(asked) < len(prompt):
        notes["system prompt, which is not used (vidalign asks by recipe.plain_prompt)"] += 1
    return asked[0]


def make_row(
    fields: Fields,
    asked: Turn,
    videos: Sequence[str],
    notes: Notes,
    *,
    answer: str | None = None,
    chosen: str | None = None,
    rejected: str | None = None,
) -> Fields:
    """A row of ours: a pair of `chosen` and `rejected`, or an example with `answer`. Its id is there if the source has one.

    Args:
        fields: the rest of the source's row, of which our optional fields are taken.
        asked: the question, with the videos that its content names.
        videos: those of the row's columns.
        answer: the ground truth; None in a pair: the row's `answer`, else the chosen response stands in, and is noted.

    Raises:
        RowError: not exactly one video; two places for it in the question.
    """
    row: Fields = {"video": _one_video(asked, videos), "question": _without_tag(asked.text, notes)}
    if chosen is None:
        return {**row, "answer": answer, **_own_fields(fields, EXAMPLE_FIELDS)}
    if answer is None and isinstance(fields.get("answer"), str):
        answer = fields.pop("answer")
    if answer is None:
        notes["no answer in the row, so the chosen response is its answer"] += 1
        answer = chosen
    return {**row, "answer": answer, "chosen": chosen, "rejected": rejected, **_own_fields(fields, PAIR_FIELDS)}


def _one_video(asked: Turn, column: Sequence[str]) -> str:
    videos = [*asked.videos, *column]
    if asked.videos and asked.videos == tuple(column):
        videos = [*column]  # named in the content and in the column: the same place
    if len(videos) != 1:
        why = f"holds {len(videos)} videos" if videos else "holds no video"
        raise RowError("videos", why, "a row has exactly one video: name one, or remove the row")
    places = TAG.findall(asked.text)
    if len(places) > 1 or not set(places) <= PLACES:
        why = f"has the tags {', '.join(places)} and the row has 1 video"
        raise RowError("question", why, "leave one <video> tag, or none, or remove the row")
    return videos[0]


def _without_tag(text: str, notes: Notes) -> str:
    tag = TAG.search(text)
    if tag is None:
        return text
    before, after = text[: tag.start()], text[tag.end() :]
    if before.strip() and after.strip():
        notes["video in the middle of the question, which now comes before it"] += 1
        gap = "\n" if "\n" in text[len(before.rstrip()) : len(text) - len(after.lstrip())] else " "
        return f"{before.rstrip()}{gap}{after.lstrip()}".strip()
    return (before + after).strip()


def _own_fields(fields: Fields, names: Sequence[str]) -> Fields:
    """Take the columns that have the name and the type of an optional field of ours: they keep their meaning."""
    own = {name: fields.pop(name) for name in names if has_content(fields.get(name)) and OWN_TYPES[name](fields[name])}
    return {name: str(value) if name == "id" else value for name, value in own.items()}


def has_content(value: Any) -> bool:
    """False for null and for empty texts, lists and objects. Zero and false are content."""
    return value is not None and value not in ("", [], {}, ())


def refuse_worse_only(fields: Fields, name: str) -> None:
    """Raises `RowError` for a row that only says of one response that it is bad."""
    if fields.get(name) is False:
        raise RowError(
            name, "is false: the row holds a worse response and no better one", "give both responses, or remove the row"
        )


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
