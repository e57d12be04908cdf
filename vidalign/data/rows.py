"""The rows of a data file, one JSON object per line, and the rules that each row must keep on its own.

    example      {"id", "video", "question", "answer", ["options", "category", "caption", "answer_type", "system", "turns", "fps",
                 "clip", "videos", "images", "rejected_video"]}
    preference   the same, and {"chosen", "rejected", ["chosen_score", "rejected_score", "chosen_phrases",
                 "rejected_phrases", "chosen_win_rate", "rejected_win_rate"]}

What a row shows is `video`, or `videos` and `images`. A video is a file, or a folder or list of images with `fps`; `clip` bounds it.
`rejected_video` is another clip, with which the response that is right of the video is wrong (`recipe.clip_pairs`).
`system` and `turns` are the conversation before the question. `vidalign.data.shown` makes names of what is shown.

A row that has `chosen` or `rejected` is a preference row. Phrases are spans [start, end) of characters in their response.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pydantic
import pydantic_core

from vidalign import special_tokens
from vidalign.data import shown
from vidalign.data.answers import ANSWER_TYPES, AnswerType, fits, is_correct
from vidalign.data.fields import (
    FORMS,
    AnyVideo,
    ClipRow,
    FramesPerSecond,
    OneVideo,
    Span,
    Text,
    TurnRow,
    Unicode,
    Video,
    WinRate,
)
from vidalign.data.words import normalise
from vidalign.errors import RowError
from vidalign.special_tokens import KNOWN_ONLY, SpecialTokens
from vidalign.types import Example

TAG = special_tokens.MEDIA
NO_TEXT = frozenset(
    {"id", "video", "videos", "images", "rejected_video", "category", "answer_type"}
)  # fields that are never put into a chat template
SIDES = ("chosen", "rejected")
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"\(?[a-z][.:)]+\s*")
_FIXES = {
    "id": "give the row its own id, in quotes",
    "video": "give the path of the row's video, or name several with videos or images; text alone is not learned from",
    "videos": 'write a list of videos, each a path, a list of images, or {"video": …, "fps": …, "clip": …}, or leave the field out',
    "images": "write a list of paths of images, or leave the field out",
    "rejected_video": 'give the path of another video, or {"video": …, "clip": …}, in a row that shows one, or leave the field out',
    "fps": "write how many frames of the folder or list there are for one second, such as 2, or leave the field out",
    "clip": 'write {"start": seconds, "end": seconds} with 0 <= start < end, or leave the field out',
    "system": "write a text, or leave the field out",
    "turns": 'write a list of {"role": "user" or "assistant", "content": text}, the user first, the assistant last',
    "question": "write the question, or remove the row",
    "answer": "write the right answer, or remove the row",
    "options": "write a list of texts, or leave the field out",
    "category": "write a text, or leave the field out",
    "answer_type": f"write one of {', '.join(ANSWER_TYPES)}, or leave the field out",
    "caption": "write what the video shows as a text, or leave the field out",
    "chosen": "write the better response, or leave out both chosen and rejected",
    "rejected": "write the worse response, or leave out both chosen and rejected",
    "chosen_score": "write a finite number, or leave the field out",
    "rejected_score": "write a finite number, or leave the field out",
    "chosen_win_rate": "write a probability from 0 to 1, or leave the field out",
    "rejected_win_rate": "write a probability from 0 to 1, or leave the field out",
    "chosen_phrases": "write spans [start, end) of characters in order, such as [[4, 9]], or leave the field out",
    "rejected_phrases": "write spans [start, end) of characters in order, such as [[4, 9]], or leave the field out",
}


class ExampleRow(pydantic.BaseModel):
    """A question about a video and its ground truth. Unknown fields are kept in `model_extra`."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow", frozen=True)

    id: Text
    video: OneVideo | None = None
    question: Text
    answer: Text
    options: list[Text] = []
    category: Unicode = ""
    caption: Unicode = ""
    answer_type: AnswerType | None = None
    system: Unicode = ""
    turns: list[TurnRow] = []
    fps: FramesPerSecond | None = None
    clip: ClipRow | None = None
    videos: list[AnyVideo] = []
    images: list[Video] = []
    rejected_video: AnyVideo | None = None


class PreferenceRow(ExampleRow):
    """Two responses to the question, the first preferred."""

    chosen: Text
    rejected: Text
    chosen_score: pydantic.FiniteFloat | None = None
    rejected_score: pydantic.FiniteFloat | None = None
    chosen_phrases: list[Span] = []
    rejected_phrases: list[Span] = []
    chosen_win_rate: WinRate | None = None
    rejected_win_rate: WinRate | None = None


def parse_row(fields: dict[str, Any]) -> tuple[ExampleRow | None, list[RowError]]:
    """The row and every rule that it breaks on its own. The row is None if a field is missing or of the wrong type.

    A field that is null counts as absent.
    """
    present = {name: value for name, value in fields.items() if value is not None}
    kind = PreferenceRow if any(side in present for side in SIDES) else ExampleRow
    unseen = [RowError("video", "is missing or null", _FIXES["video"])] if shown.shows_nothing(present) else []
    try:
        row = kind.model_validate(present)
    except pydantic.ValidationError as error:
        return None, unseen + [_explain(item) for item in error.errors(include_url=False)]
    return (None, unseen) if unseen else (row, list(_broken_rules(row)))


def to_example(row: ExampleRow, root: pathlib.Path | str) -> Example:
    """The example of a row. A relative path becomes an absolute path below `root`; a uri is kept."""
    videos, images = shown.names(row, root)
    turns, question = shown.conversation(row)
    return Example(
        id=row.id,
        video=videos[0] if videos else "",
        videos=videos if len(videos) > 1 else (),
        images=images,
        system=row.system,
        turns=turns,
        question=question,
        answer=row.answer,
        options=tuple(row.options),
        category=row.category,
        caption=row.caption,
        answer_type=row.answer_type or "",
        rejected_video=shown.rejected_name(row, root),
    )


def _explain(item: pydantic_core.ErrorDetails) -> RowError:
    name, *inside = (step for step in item["loc"] if step not in FORMS)
    why = item["msg"][0].lower() + item["msg"][1:]
    if item["type"] == "missing":
        why = "is missing or null"
    elif item["type"] == "union_tag_invalid":
        why = f"must be a path, or a list of the paths of frames, got {_short(item['input'])}"
    elif item["type"] != "blank":
        why += f", got {_short(item['input'])}"
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in inside)
    return RowError(f"{name}{place}", why, _FIXES[str(name)])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _broken_rules(row: ExampleRow) -> Iterator[RowError]:
    yield from shown.broken_rules(row)
    for name, text in texts_of(row):
        yield from _literal_tags(name, text)
    yield from special_token_errors(row)
    if row.options and not holds_answer(row.options, row.answer):
        yield RowError(
            "options",
            f"none of {_short(row.options)} is the answer {_short(row.answer)}",
            "add the right option, or correct the answer",
        )
    if row.options and row.answer_type not in (None, "choice"):
        yield RowError(
            "answer_type",
            f"is {row.answer_type}, and the row has options, of which a reply may name one by its letter",
            "leave answer_type out, or options",
        )
    elif row.answer_type and not fits(to_example(row, pathlib.Path())):
        yield RowError("answer_type", f"is {row.answer_type}, which {_short(row.answer)} is not", _FIXES["answer_type"])
    if isinstance(row, PreferenceRow):
        if row.chosen.strip() == row.rejected.strip():
            yield RowError("rejected", "equals chosen, so neither is preferred", "correct one of the two, or remove the row")
        for side in SIDES:
            yield from _bad_phrases(f"{side}_phrases", getattr(row, f"{side}_phrases"), getattr(row, side))


def texts_of(row: ExampleRow) -> Iterator[tuple[str, str]]:
    """The fields of a row that become text of a prompt or response, by name, without the places of videos and images."""
    yield "system", row.system
    for number, turn in enumerate(row.turns):
        yield f"turns[{number}]", shown.PLACE.sub("", turn.content) if turn.role == "user" else turn.content
    yield "question", shown.PLACE.sub("", row.question)
    for name in ("answer", *SIDES):
        yield name, getattr(row, name, "")
    for number, option in enumerate(row.options):
        yield f"options[{number}]", option


def special_token_errors(row: ExampleRow, special: SpecialTokens = KNOWN_ONLY) -> Iterator[RowError]:
    """An error for each text of a row that holds special tokens: of known families or, with a model's `special`, also of that.

    Tags such as <video> are left to the rules of a row, also where a model has them as tokens.
    """
    for name in type(row).model_fields:
        if name not in NO_TEXT:
            yield from _special_tokens(name, getattr(row, name), special)


def _special_tokens(place: str, value: Any, special: SpecialTokens) -> Iterator[RowError]:
    if isinstance(value, str):
        with_places = place == "question" or place.startswith("turns")
        text = shown.PLACE.sub("", value) if with_places else value
        if found := [token for token in special.found(text) if not TAG.fullmatch(token)]:
            yield RowError(place, special_tokens.why(found), special_tokens.FIX)
    elif isinstance(value, pydantic.BaseModel | dict):
        for name, inside in dict(value).items():
            yield from _special_tokens(f"{place}.{name}", inside, special)
    elif isinstance(value, list | tuple):
        for number, inside in enumerate(value):
            yield from _special_tokens(f"{place}[{number}]", inside, special)


def _literal_tags(name: str, text: str) -> Iterator[RowError]:
    tags = TAG.findall(text)
    if tags:
        why = f"holds {len(tags)} literal {'tag' if len(tags) == 1 else 'tags'} ({', '.join(tags)})"
        yield RowError(name, why, "remove them from the text: <video> and <image> have a place only in the user's texts")


def _bad_phrases(name: str, spans: list[list[int]], text: str) -> Iterator[RowError]:
    last = 0
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            why = f"{_short([start, end])} is not a span within the {len(text)} characters of its response"
            yield RowError(name, why, _FIXES[name])
        elif start < last:
            yield RowError(name, f"[{start}, {end}] begins before {last}, where the previous span ends", _FIXES[name])
        last = max(last, end)


def holds_answer(options: list[str], answer: str) -> bool:
    """Whether an option is the answer by the rules of `vidalign.data.answers`, or is named in an answer that is a sentence."""
    example = Example(id="", video="", question="", answer=answer, options=tuple(options))
    if any(is_correct(option, example) for option in options):
        return True
    sentence = _words(normalise(answer))
    named = [_words(_LETTER.sub("", normalise(option), count=1)) for option in options]
    return any(words.strip() and words in sentence for words in named)


def _words(text: str) -> str:
    """The text's words with a space before and after each, so that only whole words are found in it."""
    return f" {' '.join(_WORD.findall(text))} "
