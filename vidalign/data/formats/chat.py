"""What the formats share: `SourceRow`, a source's row on its way to becoming a vidalign row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vidalign.data.formats.fields import Fields, Notes, has_content
from vidalign.data.formats.media import Medium, take_media, with_clip
from vidalign.data.formats.messages import Turn, history_turns, response_text, turns_of
from vidalign.data.formats.parts import take_clips
from vidalign.data.rows import SIDES
from vidalign.data.shown import PLACE, PLACES, without_usual_places
from vidalign.errors import RowError


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_spans(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(span, list) and len(span) == 2 for span in value)


# vidalign's optional fields, which mean the same as columns of any source where they have this type.
EXAMPLE_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "id": lambda value: isinstance(value, str | int) and not isinstance(value, bool),
    "category": _is_text,
    "options": _are_texts,
    "caption": _is_text,
    "answer_type": _is_text,
}
PAIR_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **EXAMPLE_FIELDS,
    "chosen_score": _is_number,
    "rejected_score": _is_number,
    "chosen_win_rate": _is_number,
    "rejected_win_rate": _is_number,
    "chosen_phrases": _are_spans,
    "rejected_phrases": _are_spans,
}


class SourceRow:
    """One row of a source on its way to becoming a vidalign row.

    What is used is taken out of `fields`; `notes` counts what is lost. Every method raises `RowError` for what a vidalign row
    cannot hold.
    """

    def __init__(self, fields: Fields, notes: Notes) -> None:
        self.fields, self.notes = fields, notes

    @functools.cached_property
    def media(self) -> list[Medium]:
        """The videos and images named in the columns `videos`, `video`, `images` and `image`."""
        return take_media(self.fields, self.notes)

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

    def with_context(self, prompt: list[Turn]) -> list[Turn]:
        """The prompt, preceded by the columns `system` and `history`, if any."""
        system = self.fields.pop("system", None)
        before = [Turn.of("system", str(system))] if has_content(system) else []
        return [*before, *history_turns(self.fields.pop("history", None), "history"), *prompt]

    def response(self, name: str, prompt: Sequence[Turn] = ()) -> str:
        """The text of the response in the column `name`."""
        return response_text(self.fields.pop(name, None), name, self.notes, prompt)

    def responses(self, prompt: Sequence[Turn] = ()) -> tuple[str, str]:
        """The columns `chosen` and `rejected`."""
        return self.response("chosen", prompt), self.response("rejected", prompt)

    def example(self, prompt: Sequence[Turn], field: str, answer: str) -> Fields:
        """The row as an example; `field` is the column of the prompt."""
        if any(turn.role == "assistant" for turn in prompt):
            self.notes["earlier response in a conversation, which becomes context and is not learnt from"] += sum(
                turn.role == "assistant" for turn in prompt
            )
        return {**self._asked(prompt, field), "answer": answer, **self._own(EXAMPLE_FIELDS)}

    def pair(self, prompt: Sequence[Turn], field: str, chosen: str, rejected: str, *, answer: str | None = None) -> Fields:
        """The row as a pair; `field` is the column of the prompt. Without an `answer`, the row's own is taken, or else `chosen`."""
        row = self._asked(prompt, field)
        if answer is None and isinstance(self.fields.get("answer"), str):
            answer = self.fields.pop("answer")
        if answer is None:
            self.notes["no answer in the row, so the chosen response is used as the answer"] += 1
            answer = chosen
        return {**row, "answer": answer, "chosen": chosen, "rejected": rejected, **self._own(PAIR_FIELDS)}

    def _own(self, known: Mapping[str, Callable[[Any], bool]]) -> Fields:
        """Take the columns that have the name and the type of one of vidalign's optional fields."""
        taken = {
            name: self.fields.pop(name)
            for name, fits in known.items()
            if has_content(self.fields.get(name)) and fits(self.fields[name])
        }
        return {name: str(value) if name == "id" else value for name, value in taken.items()}

    def _asked(self, prompt: Sequence[Turn], field: str) -> Fields:
        """What the row shows, and the conversation up to its question. Raises `RowError` for other orders of turns."""
        systems = [turn.text for turn in prompt if turn.role == "system"]
        spoken = [turn for turn in prompt if turn.role != "system"]
        if len(systems) > 1 or (systems and prompt[0].role != "system"):
            why = f"has {len(systems)} system messages" if len(systems) > 1 else "has a system message after other turns"
            raise RowError(field, why, "write one, at the beginning")
        if not spoken or spoken[-1].role != "user":
            raise RowError(
                field, "does not end with the user, so there is no question", "add the question, or remove the row"
            )
        row, texts = self._shown([turn for turn in spoken if turn.role == "user"])
        said = iter(texts)
        turns = [{"role": turn.role, "content": next(said) if turn.role == "user" else turn.text} for turn in spoken]
        question = turns.pop()["content"]
        return (
            row | ({"system": systems[0]} if systems else {}) | ({"turns": turns} if turns else {}) | {"question": question}
        )

    def _shown(self, asked: Sequence[Turn]) -> tuple[Fields, list[str]]:
        """The fields that name the videos and images, and the user's texts. Raises `RowError` where there is nothing to see."""
        texts = [turn.text for turn in asked]
        places = [item for turn in asked for item in turn.media]
        column = self.media
        if column == [item for item in places if item is not None]:
            column = []  # the content and the columns name the same
        if all(
            item.kind == "video" for item in (*filter(None, places), *column)
        ):  # LLaVA and its relatives write <image> for a video
            texts = [text.replace(PLACES["image"], PLACES["video"]) for text in texts]
        kinds = [place.strip("<>") for text in texts for place in PLACE.findall(text)]
        waiting = {kind: [item for item in column if item.kind == kind] for kind in ("video", "image")}
        found = [item or (waiting[kind].pop(0) if waiting[kind] else None) for item, kind in zip(places, kinds, strict=True)]
        media = [item for item in (*found, *waiting["video"], *waiting["image"]) if item is not None]
        if not media:
            raise RowError("videos", "holds no video", "a row shows a video or an image: name one, or remove the row")
        shown = [item for item in media if item.kind == "video"]
        clips = take_clips(self.fields, len(shown)) if shown else []
        videos = [with_clip(item, clip, "clip").form() for item, clip in zip(shown, clips, strict=True)]
        images = [item.path for item in media if item.kind == "image"]
        row: Fields = videos[0] if len(videos) == 1 else {}
        if len(videos) > 1:
            row = {"videos": [form["video"] if len(form) == 1 else form for form in videos]}
        return row | ({"images": images} if images else {}), without_usual_places(texts, len(videos), len(images))
