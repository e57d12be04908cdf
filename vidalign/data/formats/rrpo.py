"""RRPO (arXiv 2504.12083, https://github.com/pritamqu/RRPO/blob/main/docs/DATA.md), in both directions.

    question, answer, pred, answer_masked, pred_masked, video, sample_id, src

`answer` is preferred to `pred`. In the masked texts, key phrases are enclosed in <MASK> and </MASK>. RRPO's documentation calls
the file `video`, but its loader reads `media_path`. Its tokenizer drops one space next to each tag, so the masked texts may have
spaces there that the plain ones lack. A row that it cannot align silently loses its marks; here that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vidalign.data.formats.chat import SourceRow
from vidalign.data.formats.fields import Fields, Notes, has_content
from vidalign.data.formats.media import media_path
from vidalign.data.formats.messages import Turn, response_text
from vidalign.errors import RowError

OPEN, CLOSE = "<MASK>", "</MASK>"
_MARK = re.compile(r"</?MASK>")
_SOURCES = {"answer": "chosen", "pred": "rejected"}
_EXPORTED = {"id", "video", "question", "answer", "category", "chosen", "rejected", "chosen_phrases", "rejected_phrases"}


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    if not isinstance(fields.get("question"), str):
        raise RowError("question", "is missing or not a text", "write the question, or remove the row")
    texts = {side: response_text(fields.pop(name, None), name, notes) for name, side in _SOURCES.items()}
    marks = {}
    for name, side in _SOURCES.items():
        masked = fields.pop(f"{name}_masked", texts[side])
        marks[f"{side}_phrases"] = phrases_of(masked, texts[side], f"{name}_masked", notes)
    asked = Turn.of("user", fields.pop("question"))
    for theirs, ours in (("sample_id", "id"), ("src", "category")):
        if theirs in fields and ours not in fields:
            fields[ours] = fields.pop(theirs)
    fields["video"] = _video(fields, notes)
    row = SourceRow(fields, notes).pair([asked], "question", **texts, answer=texts["chosen"])
    if not any(marks.values()):
        notes["no mark in either response; the row is kept, but objectives on key phrases learn nothing from it"] += 1
        return row
    if not all(marks.values()):
        notes["marks in only one of the two responses"] += 1
    return row | {name: [list(span) for span in spans] for name, spans in marks.items()}


def _video(fields: Fields, notes: Notes) -> str:
    named = {name: media_path(fields.pop(name), name, notes) for name in ("media_path", "video") if name in fields}
    if len(set(named.values())) == 2:
        notes["'video', which differs from 'media_path' (used, as by RRPO's own loader)"] += 1
    return named.get("media_path") or named.get("video") or media_path(None, "video", notes)


def phrases_of(masked: Any, plain: str, field: str, notes: Notes) -> list[tuple[int, int]]:
    """Spans [start, end) of characters of `plain` that are enclosed in tags in `masked`, in order.

    Raises:
        RowError: a tag has no partner, is inside another phrase or encloses nothing; the texts differ in more than white space.
    """
    if not isinstance(masked, str):
        raise RowError(field, f"must be a text, got {type(masked).__name__}", "write the response with <MASK>…</MASK>")
    bare, spans = _without_marks(masked, field)
    if bare == plain:
        return spans
    places = [place for place, letter in enumerate(plain) if not letter.isspace()]
    letters = [place for place, letter in enumerate(bare) if not letter.isspace()]
    ours, theirs = "".join(plain.split()), "".join(bare.split())
    if ours != theirs:
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        at = letters[first] if first < len(letters) else len(bare)
        why = f"without its tags differs from the plain text, from {bare[at : at + 20]!r} on"
        raise RowError(field, why, "write the plain response with <MASK>…</MASK> around its key phrases")
    notes["white space next to the tags of a masked text, which the plain text does not have"] += 1
    to_plain = dict(zip(letters, places, strict=True))
    inside = [[to_plain[place] for place in letters if start <= place < end] for start, end in spans]
    return [(found[0], found[-1] + 1) for found in inside]


def _without_marks(masked: str, field: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without tags, and the spans of what the tags enclosed."""
    bare, spans, start, last = "", [], None, 0
    for tag in _MARK.finditer(masked):
        bare += masked[last : tag.start()]
        last = tag.end()
        if (tag[0] == OPEN) is (start is not None):
            why = f"has {tag[0]} at character {tag.start()} " + (
                "inside a phrase" if tag[0] == OPEN else "without <MASK> before it"
            )
            raise RowError(field, why, "close each <MASK> with one </MASK> before the next")
        if start is None:
            start = len(bare)
        elif not bare[start:].strip():
            raise RowError(
                field, f"marks nothing before character {tag.start()}", "put a phrase between the tags, or remove them"
            )
        else:
            spans.append((start, len(bare)))
            start = None
    if start is not None:
        raise RowError(field, "has <MASK> without </MASK> after it", "close each <MASK> with one </MASK> before the next")
    return bare + masked[last:], spans


def from_row(row: Fields, notes: Notes) -> Fields:
    """A vidalign pair as a row of RRPO's authors. Raises `RowError` if a response already contains their tags."""
    for name in ("turns", "videos", "images", "clip", "rejected_video"):
        if has_content(row.get(name)):
            why = "is part of the prompt, which RRPO's rows cannot hold"
            raise RowError(name, why, "export to another format, or leave the row out with --skip-errors")
    if isinstance(row["video"], list):
        raise RowError("video", "is a list of frames, which RRPO's rows cannot hold", "join them into a file (ffmpeg)")
    if "chosen" not in row:
        raise RowError("chosen", "is missing: the row is an example, not a pair", "export only files of pairs")
    if row["answer"] != row["chosen"]:
        notes["answer, where it is not the chosen response"] += 1
    for name in sorted(set(row) - _EXPORTED):
        notes[f"'{name}'"] += 1
    theirs: Fields = {"question": f"<image>\n{row['question']}"}
    theirs |= {name: row[side] for name, side in _SOURCES.items()}
    for name, side in _SOURCES.items():
        theirs[f"{name}_masked"] = masked_text(row[side], row.get(f"{side}_phrases", ()), side)
    number = row["id"]
    theirs["sample_id"] = int(number) if re.fullmatch("0|-?[1-9][0-9]*", number) else number
    if row.get("category"):
        theirs["src"] = row["category"]
    return theirs | {"video": row["video"], "media_path": row["video"]}


def masked_text(text: str, spans: Sequence[Sequence[int]], field: str) -> str:
    """The text with tags around its spans, with a space next to each tag where the authors' tokenizer drops one."""
    if _MARK.search(text):
        raise RowError(field, f"holds the literal tag {_MARK.findall(text)[0]}", "remove it: RRPO marks key phrases with it")
    for spaced in (True, False):
        masked, last = "", 0
        for start, end in spans:
            gap = " " if spaced and text[:start].endswith(" ") else ""
            masked += f"{text[last:start]}{OPEN}{gap}{text[start:end]}{' ' if spaced else ''}{CLOSE}"
            last = end
        masked += text[last:]
        if phrases_of(masked, text, field, Notes()) == [tuple(span) for span in spans]:
            break
    return masked
