"""Preference pairs as training batches: a repeatable order, and rendering on demand."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vidalign import prompts
from vidalign.errors import DataError, ModelError
from vidalign.learning.objectives.base import Objective
from vidalign.learning.phrase_tokens import phrase_ids
from vidalign.model import vision_features
from vidalign.model.batch import Batch, Prompt, collate, collate_packed
from vidalign.model.rendering import render_prompt, response_ids
from vidalign.types import Example, PreferencePair
from vidalign.video.frame_cache import load_clip

if TYPE_CHECKING:
    import torch


def batch_order(num_pairs: int, batch_size: int, num_epochs: int, seed: int) -> list[np.ndarray]:
    """Indices of the pairs of every optimizer step, [batch_size] each, a function of its arguments alone.

    Epochs are joined into one stream, each shuffled anew, so no pair is dropped at the end of an epoch. The last step is
    filled up from one more shuffled epoch.
    """
    if num_pairs < 1:
        raise DataError("no preference pair is left to train on; see pairs.dropped in summary.json for the reasons")
    num_steps = -(-num_pairs * num_epochs // batch_size)
    rng = np.random.default_rng(seed)
    num_shuffles = -(-num_steps * batch_size // num_pairs)
    stream = np.concatenate([rng.permutation(num_pairs) for _ in range(num_shuffles)])
    return list(stream[: num_steps * batch_size].reshape(num_steps, batch_size))


def usable_pairs(pairs: Sequence[PreferencePair], objective: Objective) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs that an objective can be trained on, and how many are dropped by reason: no_rejected, no_key_phrase."""
    kept: list[PreferencePair] = []
    dropped: collections.Counter[str] = collections.Counter()
    for pair in pairs:
        if objective.needs_rejected and not pair.rejected:
            dropped["no_rejected"] += 1
        elif objective.needs_phrases and not (pair.chosen_marks or pair.rejected_marks):
            dropped["no_key_phrase"] += 1
        else:
            kept.append(pair)
    return kept, dict(dropped)


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows in as few bins of `budget` tokens as first fit, longest first, makes; a longer row has its own bin."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fitting = next((place for place, free in enumerate(room) if free >= lengths[index]), None)
        if fitting is None:
            bins.append([])
            room.append(budget)
            fitting = len(bins) - 1
        bins[fitting].append(index)
        room[fitting] -= lengths[index]
    return bins


def split_further(bins: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The same rows in exactly `count` bins, `count` at least as many as there are and at most as many as rows."""
    made = [list(rows) for rows in bins]
    while len(made) < count:
        fullest = max(range(len(made)), key=lambda place: len(made[place]))
        rows = made[fullest]
        assert len(rows) > 1, f"{sum(map(len, bins))} rows in {count} bins"
        made[fullest : fullest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return made


@dataclasses.dataclass(frozen=True)
class PairSource:
    """Renders pairs and examples. `frames` maps a video uri to its clip in the frame cache.

    A rendered batch holds all chosen responses first, then all rejected ones, in the order of the indices. With `number`, which
    gives the positions of a prompt's tokens (`vidalign.model.shared_prefix.numbering`), it is one packed row; without, a padded row a
    response. `features` maps clips to what the vision tower makes of them (`vidalign.model.vision_features`); others go in as pixels.

    A prompt is rendered when it is asked for. One that was asked for with `keep` is kept, up to `cache_bytes` of them, until a
    batch without `keep` takes it: what is held depends on how much is asked for again soon, not on how many pairs there are.
    """

    pairs: Sequence[PreferencePair]
    frames: Mapping[str, str]
    processor: Any
    plain_prompt: str
    max_model_len: int
    number: Callable[[Prompt], torch.Tensor] | None = None
    features: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    cache_bytes: int = 512 << 20
    _kept: dict[tuple[str, str], Prompt] = dataclasses.field(default_factory=dict, repr=False)

    def batch(self, indices: Sequence[int], *, rejected: bool = True, keep: bool = False) -> Batch:
        """Prompts and responses of these pairs, without the second half where `rejected` is False."""
        return self._collate([self._group(self.pairs[index], rejected, keep) for index in indices])

    def rendered(self, rows: Iterable[PreferencePair | Example]) -> Iterator[tuple[Prompt, str]]:
        """Each clip of these rows once: a prompt that it stands in, and its file."""
        seen: set[str] = set()
        for row in rows:
            clip = self.frames[row.video]
            if clip not in seen:
                seen.add(clip)
                yield self._prompt(row.video, row.question, keep=False), clip

    def phrases(self, indices: Sequence[int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Phrase ids of the tokens of each pair's chosen and rejected response, from their marks."""
        pairs = [self.pairs[i] for i in indices]
        return (
            [phrase_ids(self.processor, pair.chosen, pair.chosen_marks) for pair in pairs],
            [phrase_ids(self.processor, pair.rejected, pair.rejected_marks) for pair in pairs],
        )

    def truth_batch(self, examples: Sequence[Example], *, keep: bool = False) -> Batch:
        """Rows of question and ground-truth answer."""
        return self._collate([(self._prompt(e.video, e.question, keep), [self.response(e.answer)]) for e in examples])

    def num_chosen_tokens(self, indices: Sequence[int]) -> int:
        """Chosen response tokens of these pairs: the denominator of the SFT term."""
        return sum(len(self.response(self.pairs[i].chosen)) for i in indices)

    def num_tokens(self, index: int, *, rejected: bool = True) -> int:
        """Tokens that a pair takes in a batch, padding not counted. Its prompt is kept for that batch."""
        prompt, responses = self._group(self.pairs[index], rejected, keep=True)
        return sum(map(len, responses)) + prompt.length * (1 if self.number is not None else len(responses))

    def response(self, text: str) -> tuple[int, ...]:
        return _response_ids(self.processor, text)

    def _group(self, pair: PreferencePair, rejected: bool, keep: bool) -> tuple[Prompt, list[tuple[int, ...]]]:
        """A pair's prompt, and the tokens of its responses."""
        texts = [pair.chosen, pair.rejected] if rejected else [pair.chosen]
        return self._prompt(pair.video, pair.question, keep), [self.response(text) for text in texts]

    def _prompt(self, video: str, question: str, keep: bool) -> Prompt:
        key = video, question
        prompt = self._kept.pop(key, None) or self._render(video, question)
        if keep and sum(kept.num_bytes for kept in self._kept.values()) + prompt.num_bytes <= self.cache_bytes:
            self._kept[key] = prompt
        return prompt

    def _render(self, video: str, question: str) -> Prompt:
        text = prompts.fill(self.plain_prompt, question=question)
        clip = self.frames[video]
        if (features := self.features.get(clip)) is not None:
            prompt = vision_features.render(self.processor, text, features)
        else:
            prompt = render_prompt(self.processor, text, load_clip(clip))
        return prompt if self.number is None else dataclasses.replace(prompt, positions=self.number(prompt))

    def _collate(self, rows: Sequence[tuple[Prompt, Sequence[Sequence[int]]]]) -> Batch:
        self._check_length(max(prompt.length + len(response) for prompt, responses in rows for response in responses))
        if self.number is not None:
            return collate_packed(rows)
        sides = range(len(rows[0][1]))
        return collate([(prompt, responses[side]) for side in sides for prompt, responses in rows], pad_id=self._pad_id)

    def _check_length(self, longest: int) -> None:
        if longest > self.max_model_len:
            raise ModelError(
                f"a training sequence has {longest:,} tokens but model.max_model_len={self.max_model_len:,}; lower "
                "video.num_frames, the frame size or recipe.max_new_tokens, or raise model.max_model_len"
            )

    @property
    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


@functools.lru_cache(maxsize=65536)
def _response_ids(processor: Any, text: str) -> tuple[int, ...]:
    return tuple(response_ids(processor, text))
