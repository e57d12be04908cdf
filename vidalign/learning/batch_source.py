"""Groups as batches of model inputs, rendered on demand."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        rows = [(self._prompt(group, keep), [self.tokens(each) for each in group.responses]) for group in groups]
        self._check_length(max(prompt.length + len(response) for prompt, responses in rows for response in responses))
        if self.number is not None:
            return collate_packed(rows)
        sides = range(len(groups[0].responses))
        return collate([(prompt, responses[side]) for side in sides for prompt, responses in rows], pad_id=self._pad_id)

    def batches(self, forwards: Iterable[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        """The batch of each forward pass, rendered when it is taken."""
        return map(self.batch, forwards)

    def clips(self, groups: Iterable[TrainingGroup]) -> Iterator[tuple[Prompt, str]]:
        """A prompt for each different clip of these groups, and the clip's file. Every group shows one video."""
        seen: set[str] = set()
        for group in groups:
            [clip] = [self.frames[name] for name in group.context.visuals]
            if clip not in seen:
                seen.add(clip)
                yield self._prompt(group, keep=False), clip

    def phrases(self, groups: Sequence[TrainingGroup]) -> list[tuple[int, ...]]:
        """Phrase ids of the tokens of each response, from its marks, in the order of a batch's rows."""
        sides = range(len(groups[0].responses))
        rows = [group.responses[side] for side in sides for group in groups]
        return [phrase_ids(self.processor, row.text, row.marks) for row in rows]

    def num_tokens(self, group: TrainingGroup) -> int:
        """The number of tokens that a group takes in a batch, without padding. A prompt rendered for it is kept for that batch."""
        key = group.context, group.question
        length = self._lengths.get(key) or self._prompt(group, keep=True).length
        num_prompts = 1 if self.number is not None else len(group.responses)
        return sum(len(self.tokens(response)) for response in group.responses) + length * num_prompts

    def prepare(self, group: TrainingGroup) -> None:
        """Render a group's prompt and keep it for its batch, if one more as large as those that are kept is allowed."""
        held = [prompt.num_bytes for prompt in self._kept.values()]
        if sum(held) + max(held, default=0) <= self.cache_bytes:
            self._prompt(group, keep=True)

    def tokens(self, response: TrainingResponse) -> tuple[int, ...]:
        """Token ids of a response, including its end-of-turn token."""
        return response.token_ids or _response_ids(self.processor, response.text)

    def _prompt(self, group: TrainingGroup, keep: bool) -> Prompt:
        key = group.context, group.question
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
