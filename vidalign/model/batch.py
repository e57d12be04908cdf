"""Model inputs: a rendered prompt, and prompts with responses joined into batches, padded or packed end to end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

IGNORED = -1  # label of a position that is not a response token
PIXELS = "pixel_values_videos"  # what most processors call the frames of videos
STACKED = 5  # axes of videos that are stacked as they are, [B, F, C, H, W], and not cut into patches


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt and its responses in a packed row, as lengths in tokens."""

    prompt: int
    responses: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One rendered prompt.

    `tokens` holds per-token arrays [T], `vision` holds tensors that concatenate along their first axis; only for
    `pixel_values_videos` it is `video_axis`. `positions` [axes, T] says where the model sees the tokens
    (`vidalign.model.shared_prefix.numbering`); only packed rows need it.
    """

    tokens: dict[str, torch.Tensor]
    vision: dict[str, torch.Tensor]
    positions: torch.Tensor | None = None
    video_axis: int = 0

    @property
    def length(self) -> int:
        """The number of tokens T."""
        return int(self.tokens["input_ids"].shape[0])

    @functools.cached_property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        held = [*self.tokens.values(), *self.vision.values(), *([] if self.positions is None else [self.positions])]
        return sum(value.nbytes for value in held)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences for a forward pass, and where in them the tokens of R responses are predicted.

    `inputs` are the keyword arguments of the model's forward; in a packed row also `groups` (see `vidalign.model.shared_prefix`).
    `labels` [R, T] holds response tokens, and `IGNORED` everywhere else. `sources` [R, T] says which position of the packed row
    predicts each label; None means the label's own place.
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    sources: torch.Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The batch on a device, its pixels as `dtype`. From pinned memory the copy does not wait."""

        def move(name: str, value: torch.Tensor) -> torch.Tensor:
            pixels = value.is_floating_point() and name.startswith("pixel_values")
            return value.to(device, dtype if pixels else None, non_blocking=True)

        return self._with(move)

    def pinned(self) -> Batch:
        """The batch in memory from which a GPU copies by itself."""
        return self._with(lambda _, value: value.pin_memory())

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        sizes: list[int] = []

        def count(_: str, value: torch.Tensor) -> torch.Tensor:
            sizes.append(value.nbytes)
            return value

        self._with(count)
        return sum(sizes)

    def _with(self, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with other tensors, made of each one's name and itself."""

        def changed(name: str, value: Any) -> Any:
            if isinstance(value, list):
                return [changed(name, each) for each in value]
            return change(name, value) if isinstance(value, torch.Tensor) else value

        return Batch(
            inputs={name: changed(name, value) for name, value in self.inputs.items()},
            labels=change("labels", self.labels),
            sources=None if self.sources is None else change("sources", self.sources),
        )


def collate(rows: Sequence[tuple[Prompt, Sequence[int]]], *, pad_id: int) -> Batch:
    """Join (prompt, response token ids) rows into one padded batch; each row brings its own videos and images."""
    width = max(prompt.length + len(response) for prompt, response in rows)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    inputs: dict[str, torch.Tensor] = {}
    for name in rows[0][0].tokens:
        inputs[name] = torch.full((len(rows), width), pad_id if name == "input_ids" else 0, dtype=torch.long)
    for index, (prompt, response) in enumerate(rows):
        start, end = prompt.length, prompt.length + len(response)
        for name, values in prompt.tokens.items():
            inputs[name][index, :start] = values
        inputs["input_ids"][index, start:end] = torch.as_tensor(response)
        labels[index, start - 1 : end - 1] = torch.as_tensor(response)
        mask[index, :end] = 1
    inputs["attention_mask"] = mask
    return Batch(inputs={**inputs, **_join_vision([prompt for prompt, _ in rows])}, labels=labels)


def collate_packed(
    rows: Sequence[tuple[Prompt, Sequence[Sequence[int]]]], places: Sequence[Sequence[int]] | None = None
) -> Batch:
    """Lay (prompt, token ids of its responses) groups end to end in one row without padding; each prompt occurs once.

    `places`: the row of the labels that each response of each prompt takes. By default all prompts have the same number of responses,
    and the labels are those of every prompt's first response, then of every second one.
    """
    groups = tuple(Group(prompt.length, tuple(map(len, responses))) for prompt, responses in rows)
    longest = max(length for group in groups for length in group.responses)
    if places is None:
        places = [range(index, len(rows) * len(groups[0].responses), len(rows)) for index in range(len(rows))]
    labels = torch.full((sum(map(len, places)), longest), IGNORED, dtype=torch.long)
    sources = torch.zeros_like(labels)
    start = 0
    for (prompt, responses), taken in zip(rows, places, strict=True):
        last = start + prompt.length - 1  # predicts the first token of every response
        start += prompt.length
        for row, response in zip(taken, responses, strict=True):
            length = len(response)
            labels[row, :length] = torch.as_tensor(response)
            sources[row, :length] = torch.tensor([last, *range(start, start + length - 1)])
            start += length
    joined = [torch.as_tensor([token for response in responses for token in response]) for _, responses in rows]
    inputs: dict[str, Any] = {"groups": groups}
    for name in rows[0][0].tokens:
        parts = [
            (prompt.tokens[name], ids if name == "input_ids" else torch.zeros_like(ids))
            for (prompt, _), ids in zip(rows, joined, strict=True)
        ]
        inputs[name] = torch.cat([part for pair in parts for part in pair])[None]
    positions = []
    for (prompt, _), group in zip(rows, groups, strict=True):
        assert prompt.positions is not None
        positions.append(packed_positions(prompt.positions, group.responses))
    numbered = torch.cat(positions, dim=1)
    inputs["position_ids"] = numbered[:, None] if len(numbered) > 1 else numbered  # [3, 1, T] or [1, T]
    inputs |= _join_vision([prompt for prompt, _ in rows])
    return Batch(inputs=inputs, labels=labels, sources=sources)


def _join_vision(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The vision tensors of all prompts, end to end.

    Videos [1, F, C, H, W] of unequal length stay a list, and the model takes them one by one (`vidalign.model.videos`).
    """
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.vision):  # not every prompt has images
        tensors = [prompt.vision[name] for prompt in prompts if name in prompt.vision]
        axis = prompts[0].video_axis if name == PIXELS else 0
        unequal = name == PIXELS and tensors[0].ndim == STACKED and len({tensor.shape[1:] for tensor in tensors}) > 1
        joined[name] = tensors if unequal else torch.cat(tensors, dim=axis)
    return joined


def packed_positions(prompt: torch.Tensor, responses: Sequence[int]) -> torch.Tensor:
    """Positions [axes, T] of a group: those of its prompt, then those of each response, counted on from the prompt's end."""
    start = int(prompt.max()) + 1
    return torch.cat([prompt, *(torch.arange(start, start + length).expand(len(prompt), -1) for length in responses)], dim=1)
