"""Groups as batches of model inputs, rendered on demand."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vidalign import prompts
from vidalign.errors import ModelError
from vidalign.learning.phrase_tokens import phrase_ids
from vidalign.learning.sequences import TrainingGroup, TrainingResponse
from vidalign.model import vision_features
from vidalign.model.batch import Batch, Prompt, collate, collate_packed
from vidalign.model.rendering import render_prompt, response_ids
from vidalign.records import Context
from vidalign.video.frame_cache import load_clip
from vidalign.video.scene import shown

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Renders groups. `frames` maps the name of a video or image to its clip in the frame cache.

    A batch holds the first response of every group, in the order of the groups, then every second one, and so on: for pairs, all
    chosen responses and then all rejected ones. With `number`, which gives the positions of a prompt's tokens
    (`vidalign.model.shared_prefix.numbering`), a batch is one packed row; without it, one padded row per response. `features` maps
    clips to the files of their features (`vidalign.model.vision_features`); other clips go in as pixels.

    A prompt is rendered on request. If it was requested with `keep`, it is kept, within a total of `cache_bytes`, until a batch
    without `keep` takes it: memory depends on how much will be requested again soon, not on how many groups there are.
    """

    frames: Mapping[str, str]
    processor: Any
    plain_prompt: str
    max_model_len: int
    number: Callable[[Prompt], torch.Tensor] | None = None
    features: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    cache_bytes: int = 512 << 20
    _kept: dict[tuple[Context, str], Prompt] = dataclasses.field(default_factory=dict, repr=False)
    _lengths: dict[tuple[Context, str], int] = dataclasses.field(default_factory=dict, repr=False)

    def batch(self, groups: Sequence[TrainingGroup], *, keep: bool = False) -> Batch:
        """The prompts and responses of these groups, which all have the same number of responses."""
        assert len({len(group.responses) for group in groups}) == 1, [len(group.responses) for group in groups]
        rows: list[tuple[Prompt, list[tuple[int, ...]]]] = []
        places: list[list[int]] = []  # row of each response: the first of every group, then every second one
        for number, group in enumerate(groups):
            for context, sides in group.prompts:
                rows.append((self._prompt(context, group.question, keep), [self.tokens(group.responses[n]) for n in sides]))
                places.append([number + side * len(groups) for side in sides])
        self._check_length(max(prompt.length + len(response) for prompt, responses in rows for response in responses))
        if self.number is not None:
            return collate_packed(rows, places)
        padded = {
            place: (prompt, response)
            for (prompt, responses), taken in zip(rows, places, strict=True)
            for place, response in zip(taken, responses, strict=True)
        }
        return collate([padded[place] for place in sorted(padded)], pad_id=self._pad_id)

    def batches(self, forwards: Iterable[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        """The batch of each forward pass, rendered when it is taken."""
        return map(self.batch, forwards)

    def clips(self, groups: Iterable[TrainingGroup], only: Collection[str] | None = None) -> Iterator[tuple[Prompt, str]]:
        """A prompt for each different clip of these groups, or those of `only`, and the clip's file. Every prompt shows one video."""
        seen: set[str] = set()
        for group in groups:
            for context, _ in group.prompts:
                [clip] = [self.frames[name] for name in context.visuals]
                if clip not in seen and (only is None or clip in only):
                    seen.add(clip)
                    yield self._prompt(context, group.question, keep=False), clip

    def phrases(self, groups: Sequence[TrainingGroup]) -> list[tuple[int, ...]]:
        """Phrase ids of the tokens of each response, from its marks, in the order of a batch's rows."""
        sides = range(len(groups[0].responses))
        rows = [group.responses[side] for side in sides for group in groups]
        return [phrase_ids(self.processor, row.text, row.marks) for row in rows]

    def num_tokens(self, group: TrainingGroup) -> int:
        """The number of tokens that a group takes in a batch, without padding. A prompt rendered for it is kept for that batch."""
        total = sum(len(self.tokens(response)) for response in group.responses)
        for context, sides in group.prompts:
            length = self._lengths.get((context, group.question)) or self._prompt(context, group.question, keep=True).length
            total += length * (1 if self.number is not None else len(sides))
        return total

    def prepare(self, group: TrainingGroup) -> None:
        """Render a group's prompt and keep it for its batch, if one more as large as those that are kept is allowed."""
        for context, _ in group.prompts:
            held = [prompt.num_bytes for prompt in self._kept.values()]
            if sum(held) + max(held, default=0) <= self.cache_bytes:
                self._prompt(context, group.question, keep=True)

    def tokens(self, response: TrainingResponse) -> tuple[int, ...]:
        """Token ids of a response, including its end-of-turn token."""
        return response.token_ids or _response_ids(self.processor, response.text)

    def _prompt(self, context: Context, question: str, keep: bool) -> Prompt:
        key = context, question
        prompt = self._kept.pop(key, None) or self._render(*key)
        self._lengths[key] = prompt.length
        if keep and sum(kept.num_bytes for kept in self._kept.values()) + prompt.num_bytes <= self.cache_bytes:
            self._kept[key] = prompt
        return prompt

    def _render(self, context: Context, question: str) -> Prompt:
        text = prompts.fill(self.plain_prompt, question=question)
        clips = [self.frames[name] for name in context.visuals]
        if (features := self.features.get(clips[0])) is not None and len(clips) == 1:
            prompt = vision_features.render(self.processor, text, features, context)
        else:
            prompt = render_prompt(self.processor, text, shown(context, tuple(map(load_clip, clips))))
        return prompt if self.number is None else dataclasses.replace(prompt, positions=self.number(prompt))

    def _check_length(self, longest: int) -> None:
        if longest > self.max_model_len:
            raise ModelError(
                f"a training sequence has {longest:,} tokens, but model.max_model_len={self.max_model_len:,}; lower "
                "video.num_frames, the frame size or recipe.max_new_tokens, or raise model.max_model_len"
            )

    @property
    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


@functools.lru_cache(maxsize=65536)
def _response_ids(processor: Any, text: str) -> tuple[int, ...]:
    return tuple(response_ids(processor, text))
