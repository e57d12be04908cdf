"""What the formats share: `SourceRow`, a source's row on its way to becoming a vidalign row, and the chat messages in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from vidalign.data.formats.fields import ONE_QUESTION, Fields, Notes, has_content, kind_of, media_path, take_videos
from vidalign.data.rows import SIDES, TAG
from vidalign.errors import RowError

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "system": "system",
}
PLACES = {"<video>", "<image>"}  # LLaVA and its relatives also write <image> for a video
EXAMPLE_FIELDS = ("id", "category", "options", "caption")
PAIR_FIELDS = (*EXAMPLE_FIELDS, "chosen_score", "rejected_score")
OWN_TYPES: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: isinstance(value, str | int) and not isinstance(value, bool),
    "category": lambda value: isinstance(value, str),
    "caption": lambda value: isinstance(value, str),
    "options": lambda value: isinstance(value, list) and all(isinstance(option, str) for option in value),
    "chosen_score": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "rejected_score": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message. In `text`, a <video> tag stands where the content had a video; `videos` are the ones named there."""

    role: str
    text: str
    videos: tuple[str, ...] = ()


def turns_of(value: Any, field: str, role: str, notes: Notes) -> list[Turn]:
    """The turns of a text (one turn of `role`), of one message, or of a list of messages.

    A message is {"role", "content"} or {"from", "value"}; its content is a text or a list of parts.

    Raises:
        RowError: anything else; a role other than user, assistant, system and their usual aliases.
    """
    if isinstance(value, str):
        return [Turn(role, value)]
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
        return Turn(role, content)
    if not isinstance(content, list):
        raise RowError(
            f"{field}.{content_key}", f"must be a text or a list of parts, got {kind_of(content)}", "write its text"
        )
    texts, videos = [], []
    for number, part in enumerate(content):
        text, video = _part(part, f"{field}.{content_key}[{number}]", notes)
        texts.append(text)
        videos += video
    return Turn(role, "".join(texts), tuple(videos))


def _part(part: Any, field: str, notes: Notes) -> tuple[str, list[str]]:
    """The text that stands for one part of a message's content, and the video that the part names, if any."""
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
            field, f"is a part of type {kind!r}", 'use {"type": "text"} and {"type": "video"}; no other type is supported'
        )
    for name in sorted(name for name in part if has_content(part[name])):
        notes[f"'{name}' of a part of a message, which is not used"] += 1
    return text, videos


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
    asked = [turn.text.strip() for turn in before if turn.role != "system"]
    if asked and asked != [turn.text.strip() for turn in prompt if turn.role != "system"]:
        raise RowError(field, f"has {len(asked)} turns before the response that are not the prompt", ONE_QUESTION)
    if not text.strip():
        raise RowError(field, "is empty", "write the response, or remove the row")
    if TAG.search(text):
        raise RowError(field, f"holds the literal tag {TAG.findall(text)[0]}", "remove it: a response cannot hold a video")
    return text


def question(prompt: Sequence[Turn], field: str, notes: Notes) -> Turn:
    """The only user turn of a prompt. System turns are noted as unused.

    Raises:
        RowError: no user turn, or several turns.
    """
    asked = [turn for turn in prompt if turn.role != "system"]
    if len(asked) != 1 or asked[0].role != "user":
        raise RowError(field, f"has {len(asked)} turns before the response instead of one question", ONE_QUESTION)
    if len(asked) < len(prompt):
        notes["system prompt, which is not used (vidalign asks with recipe.plain_prompt)"] += 1
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
    """A vidalign row: a pair of `chosen` and `rejected`, or an example with `answer`; with an id if the source has one.

    Args:
        fields: the rest of the source's row, from which the optional fields of a vidalign row are taken.
        asked: the question, with the videos that its content names.
        videos: the videos of the row's columns.
        answer: the ground truth. None for a pair means the row's `answer`, or else the chosen response, which is noted.

    Raises:
        RowError: there is not exactly one video, or the question has several places for it.
    """
    row: Fields = {"video": _one_video(asked, videos), "question": _without_tag(asked.text, notes)}
    if chosen is None:
        return {**row, "answer": answer, **_own_fields(fields, EXAMPLE_FIELDS)}
    if answer is None and isinstance(fields.get("answer"), str):
        answer = fields.pop("answer")
    if answer is None:
        notes["no answer in the row, so the chosen response is used as the answer"] += 1
        answer = chosen
    return {**row, "answer": answer, "chosen": chosen, "rejected": rejected, **_own_fields(fields, PAIR_FIELDS)}


def _one_video(asked: Turn, column: Sequence[str]) -> str:
    videos = [*asked.videos, *column]
    if asked.videos and asked.videos == tuple(column):
        videos = [*column]  # the content and the column name the same video
    if len(videos) != 1:
        why = f"holds {len(videos)} videos" if videos else "holds no video"
        raise RowError("videos", why, "a row must have exactly one video: name one, or remove the row")
    places = TAG.findall(asked.text)
    if len(places) > 1 or not set(places) <= PLACES:
        why = f"has the tags {', '.join(places)}, but the row has one video"
        raise RowError("question", why, "leave at most one <video> tag, or remove the row")
    return videos[0]


def _without_tag(text: str, notes: Notes) -> str:
    tag = TAG.search(text)
    if tag is None:
        return text
    before, after = text[: tag.start()], text[tag.end() :]
    if before.strip() and after.strip():
        notes["video in the middle of the question, which was moved before it"] += 1
        gap = "\n" if "\n" in text[len(before.rstrip()) : len(text) - len(after.lstrip())] else " "
        return f"{before.rstrip()}{gap}{after.lstrip()}".strip()
    return (before + after).strip()


def _own_fields(fields: Fields, names: Sequence[str]) -> Fields:
    """Take the columns that have the name and the type of one of vidalign's optional fields; their meaning is kept."""
    own = {name: fields.pop(name) for name in names if has_content(fields.get(name)) and OWN_TYPES[name](fields[name])}
    return {name: str(value) if name == "id" else value for name, value in own.items()}


class SourceRow:
    """One row of a source on its way to becoming a vidalign row.

    What is used is taken out of `fields`; `notes` counts what is lost. Every method raises `RowError` for what a vidalign row
    cannot hold.
    """

    def __init__(self, fields: Fields, notes: Notes) -> None:
        self.fields, self.notes = fields, notes

    @functools.cached_property
    def videos(self) -> list[str]:
        """The videos named in the columns `videos`, `video`, `images` and `image`."""
        return take_videos(self.fields, self.notes)

    @property
    def is_pair(self) -> bool:
        """Whether the row has a chosen or a rejected response."""
        return any(side in self.fields for side in SIDES)

    def unknown_columns(self, needs: str) -> RowError:
        """The error for a row that lacks the columns of its format."""
        return RowError("row", f"has the columns {', '.join(self.fields) or '(none)'}", needs)

    def turns(self, name: str) -> list[Turn]:
        """The turns of the column `name`; a text counts as a user turn."""
        return turns_of(self.fields.pop(name), name, "user", self.notes)

    def with_system(self, prompt: list[Turn]) -> list[Turn]:
        """The prompt, preceded by the system prompt in the column `system`, if any."""
        if has_content(self.fields.get("system")):
            return [Turn("system", str(self.fields.pop("system"))), *prompt]
        return prompt

    def response(self, name: str, prompt: Sequence[Turn] = ()) -> str:
        """The text of the response in the column `name`."""
        return response_text(self.fields.pop(name, None), name, self.notes, prompt)

    def responses(self, prompt: Sequence[Turn] = ()) -> tuple[str, str]:
        """The columns `chosen` and `rejected`."""
        return self.response("chosen", prompt), self.response("rejected", prompt)

    def example(self, prompt: Sequence[Turn], field: str, answer: str) -> Fields:
        """The row as an example; `field` is the column of the prompt."""
        asked = question(prompt, field, self.notes)
        return make_row(self.fields, asked, self.videos, self.notes, answer=answer)

    def pair(self, prompt: Sequence[Turn], field: str, chosen: str, rejected: str) -> Fields:
        """The row as a pair; `field` is the column of the prompt."""
        asked = question(prompt, field, self.notes)
        return make_row(self.fields, asked, self.videos, self.notes, chosen=chosen, rejected=rejected)
