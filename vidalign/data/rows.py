"""The rows of a data file, one JSON object per line, and the rules that each row must keep on its own.

    example      {"id", "video", "question", "answer", ["options", "category", "caption", "answer_type"]}
    preference   the same, and {"chosen", "rejected", ["chosen_score", "rejected_score", "chosen_phrases",
                 "rejected_phrases", "chosen_win_rate", "rejected_win_rate"]}

A row that has `chosen` or `rejected` is a preference row. Phrases are spans [start, end) of characters in their response.
"""

from __future__ import annotations

import pathlib
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Annotated, Any

import pydantic
import pydantic_core

from vidalign import special_tokens
from vidalign.data.answers import ANSWER_TYPES, AnswerType, fits, is_correct
from vidalign.data.words import normalise
from vidalign.errors import RowError
from vidalign.special_tokens import KNOWN_ONLY, SpecialTokens
from vidalign.types import Example

TAG = special_tokens.MEDIA
NO_TEXT = frozenset({"id", "video", "videos", "category", "answer_type"})  # fields that are never put into a chat template
SIDES = ("chosen", "rejected")
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"\(?[a-z][.:)]+\s*")
_FIXES = {
    "id": "give the row its own id, in quotes",
    "video": "give the path of the row's one video, or remove the row",
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


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise pydantic_core.PydanticCustomError("surrogate", "holds half of a character (an unpaired surrogate)") from error
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
    return video


def local_path(video: str) -> str | None:
    """The path of a video that is named by a path or a file: uri; None for any other uri. Raises `ValueError`."""
    if "://" not in video:
        return video
    parts = urllib.parse.urlsplit(video)
    return urllib.request.url2pathname(parts.path) if parts.scheme == "file" else None


Unicode = Annotated[str, pydantic.AfterValidator(_encodable)]
Text = Annotated[Unicode, pydantic.AfterValidator(_not_blank)]
Video = Annotated[Text, pydantic.AfterValidator(_nameable)]
WinRate = Annotated[float, pydantic.Field(ge=0, le=1)]
Span = Annotated[list[int], pydantic.Field(min_length=2, max_length=2)]


class ExampleRow(pydantic.BaseModel):
    """A question about a video and its ground truth. Unknown fields are kept in `model_extra`."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow", frozen=True)

    id: Text
    video: Video
    question: Text
    answer: Text
    options: list[Text] = []
    category: Unicode = ""
    caption: Unicode = ""
    answer_type: AnswerType | None = None


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
    try:
        row = kind.model_validate(present)
    except pydantic.ValidationError as error:
        return None, [_explain(item) for item in error.errors(include_url=False)]
    return row, list(_broken_rules(row))


def to_example(row: ExampleRow, root: pathlib.Path) -> Example:
    """The example of a row. A relative video path becomes an absolute path below `root`; a uri is kept."""
    return Example(
        id=row.id,
        video=row.video if "://" in row.video else str((root / row.video).absolute()),
        question=row.question,
        answer=row.answer,
        options=tuple(row.options),
        category=row.category,
        caption=row.caption,
        answer_type=row.answer_type or "",
    )


def _explain(item: pydantic_core.ErrorDetails) -> RowError:
    name, *inside = item["loc"]
    why = item["msg"][0].lower() + item["msg"][1:]
    if item["type"] == "missing":
        why = "is missing or null"
    elif item["type"] != "blank":
        why += f", got {_short(item['input'])}"
    place = "".join(f"[{step}]" for step in inside)
    return RowError(f"{name}{place}", why, _FIXES[str(name)])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _broken_rules(row: ExampleRow) -> Iterator[RowError]:
    for name in ("question", "answer", *SIDES):
        yield from _literal_tags(name, getattr(row, name, ""))
    for number, option in enumerate(row.options):
        yield from _literal_tags(f"options[{number}]", option)
    yield from special_token_errors(row)
    if row.options and not holds_answer(row.options, row.answer):
        yield RowError(
            "options",
            f"none of {_short(row.options)} is the answer {_short(row.answer)}",
            "add the right option, or correct the answer",
        )
    if row.answer_type and not fits(to_example(row, pathlib.Path())):
        yield RowError("answer_type", f"is {row.answer_type}, which {_short(row.answer)} is not", _FIXES["answer_type"])
    if isinstance(row, PreferenceRow):
        if row.chosen.strip() == row.rejected.strip():
            yield RowError("rejected", "equals chosen, so neither is preferred", "correct one of the two, or remove the row")
        for side in SIDES:
            yield from _bad_phrases(f"{side}_phrases", getattr(row, f"{side}_phrases"), getattr(row, side))


def special_token_errors(row: ExampleRow, special: SpecialTokens = KNOWN_ONLY) -> Iterator[RowError]:
    """An error for each text of a row that holds special tokens: of known families or, with a model's `special`, also of that.

    Tags such as <video> are left to the rules of a row, also where a model has them as tokens.
    """
    for name in type(row).model_fields:
        if name not in NO_TEXT:
            yield from _special_tokens(name, getattr(row, name), special)


def _special_tokens(place: str, value: Any, special: SpecialTokens) -> Iterator[RowError]:
    if isinstance(value, str):
        if found := [token for token in special.found(value) if not TAG.fullmatch(token)]:
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
        why = f"holds {len(tags)} literal {'tag' if len(tags) == 1 else 'tags'} ({', '.join(tags)}) for the row's one video"
        yield RowError(name, why, "remove them from the text: the model's chat template puts the video before the question")


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
