"""What the exporters share: a vidalign row as messages of another project, with its videos and images.

Fields that the other format has no name for are written as columns of their own (`more_columns`): other projects leave them
alone, and an import reads them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from vidalign.data.formats.chat import EXAMPLE_FIELDS, PAIR_FIELDS
from vidalign.data.formats.fields import Fields, Notes, has_content
from vidalign.data.shown import PLACE, PLACES
from vidalign.errors import RowError

_PROMPT = {"video", "videos", "images", "fps", "clip", "system", "turns", "question", "chosen", "rejected", "rejected_video"}


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A row's prompt. In `turns`, (role, text), each video and image has its tag; the user has the last turn.

    `videos` are paths, or lists of paths of frames, whose `rates` are frames a second; None for a file.
    """

    system: str
    turns: Sequence[tuple[str, str]]
    videos: Sequence[str | list[str]]
    rates: Sequence[float | None]
    images: Sequence[str]

    def media_fields(self) -> dict[str, Iterator[Fields]]:
        """What the parts of messages say beside their type, in order. The rate of frames has the name that qwen-vl-utils reads."""
        videos = (
            {"video": video, **({} if rate is None else {"sample_fps": rate})}
            for video, rate in zip(self.videos, self.rates, strict=True)
        )
        return {"video": iter(videos), "image": iter({"image": image} for image in self.images)}

    def media_columns(self) -> Fields:
        """The columns `videos` and `images`, and `fps` for what is read back."""
        columns: Fields = {"videos": list(self.videos)} if self.videos else {}
        columns |= {"images": list(self.images)} if self.images else {}
        if any(rate is not None for rate in self.rates):
            columns["fps"] = (
                self.rates[0] if len(self.rates) == 1 and not self.images else [*self.rates, *(None for _ in self.images)]
            )
        return columns


def conversation(row: Fields, notes: Notes) -> Conversation:
    """The prompt of a row. Raises `RowError` for a clip or another clip, which no other format holds."""
    if has_content(row.get("rejected_video")):
        fix = "leave the field out, or leave the row out with --skip-errors"
        raise RowError("rejected_video", "is of a pair over videos, which other projects' rows cannot hold", fix)
    forms = [video if isinstance(video, dict) else {"video": video} for video in row.get("videos", ())]
    if has_content(row.get("video")):
        forms = [{name: row[name] for name in ("video", "fps", "clip") if has_content(row.get(name))}]
    if any(form.get("clip") for form in forms):
        fix = "cut the part into a file of its own (ffmpeg -ss -to), or leave the row out with --skip-errors"
        raise RowError("clip", "is a part of a video, which other projects' rows cannot hold", fix)
    videos = [form["video"] for form in forms]
    rates = [form.get("fps") if isinstance(form["video"], list) else None for form in forms]
    if any(rate is not None for rate in rates):
        notes["rate of frames in a list, kept as fps or sample_fps, which other projects may not read"] += 1
    images = list(row.get("images", ()))
    turns = [(turn["role"], turn["content"]) for turn in row.get("turns", ())] + [("user", row["question"])]
    if not any(PLACE.search(text) for role, text in turns if role == "user"):
        role, text = turns[0]
        turns[0] = role, PLACES["video"] * len(videos) + PLACES["image"] * len(images) + text
    return Conversation(row.get("system", ""), turns, videos, rates, images)


def more_columns(row: Fields, notes: Notes) -> Fields:
    """The row's other fields under their own names. Fields that no row of its kind has are counted and left out."""
    names = ("answer", *PAIR_FIELDS) if "chosen" in row else tuple(EXAMPLE_FIELDS)
    for name in sorted(set(row) - _PROMPT - {"answer", *names}):
        notes[f"'{name}'"] += 1
    return {name: row[name] for name in names if has_content(row.get(name))}


def parts_of(text: str, media: Mapping[str, Iterator[Fields]] | None = None) -> list[Fields]:
    """A text with tags as the parts of a message's content. `media` has what the parts of each kind say beside their type."""
    parts: list[Fields] = []
    last = 0
    for place in PLACE.finditer(text):
        parts += _text(text[last : place.start()])
        kind = place[0].strip("<>")
        parts.append({"type": kind, **(next(media[kind]) if media else {})})
        last = place.end()
    return parts + _text(text[last:])


def _text(text: str) -> list[Fields]:
    return [{"type": "text", "text": text}] if text else []


def response(text: str) -> list[Fields]:
    """A response as the messages of a conversation."""
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
