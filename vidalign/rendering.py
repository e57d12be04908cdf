"""From a prompt, a clip and responses to model inputs, the same for generation, training and scoring.

The prompt is rendered by the model's own processor and chat template with `do_sample_frames=False`: frames were sampled
once, by one FrameSpec, and no processor samples them again. A response is its text's tokens and the closing end-of-turn
token.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vidalign import prompts
from vidalign.errors import ModelError
from vidalign.shared_prefix import Group, packed_positions
from vidalign.video import Clip

IGNORED = -1  # label of a position that is not a response token


def load_processor(path: str, *, trust_remote_code: bool = False) -> Any:
    """The model folder's Hugging Face processor. Raises `ModelError` when it has none or no chat template."""
    from transformers import AutoProcessor

    if not pathlib.Path(path).is_dir() and path.startswith((".", "/", "~")):
        raise ModelError(f"no model folder at {path}; model.path names a Hugging Face folder or hub name")
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} has no processor that transformers can load: {' '.join(str(error).split())}") from error
    if not hasattr(processor, "video_processor"):
        raise ModelError(f"{path} is not a video model: its processor ({type(processor).__name__}) takes no videos")
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise ModelError(f"{path} has no chat template; add chat_template.jinja to the model folder")
    return processor


def prompt_text(processor: Any, text: str) -> str:
    """The chat-formatted prompt with one unexpanded video placeholder, ready for the reply."""
    return processor.apply_chat_template(prompts.chat(text), tokenize=False, add_generation_prompt=True)


def response_ids(processor: Any, text: str) -> list[int]:
    """Token ids of a reply, its end-of-turn token included."""
    tokenizer = processor.tokenizer
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One rendered prompt.

    `tokens` holds per-token arrays [T], `vision` tensors that concatenate along their first axis. `positions` [axes, T]: where
    the model sees its tokens, see `vidalign.shared_prefix.numbering`; only packed rows need them.
    """

    tokens: dict[str, torch.Tensor]
    vision: dict[str, torch.Tensor]
    positions: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return int(self.tokens["input_ids"].shape[0])

    @functools.cached_property
    def num_bytes(self) -> int:
        held = [*self.tokens.values(), *self.vision.values(), *([] if self.positions is None else [self.positions])]
        return sum(value.nbytes for value in held)


def render_prompt(processor: Any, text: str, clip: Clip) -> Prompt:
    """Render one prompt with its video expanded to placeholder tokens. Frames are uint8 [F, H, W, 3]."""
    from transformers.video_utils import VideoMetadata

    metadata = clip.metadata()
    metadata.pop("do_sample_frames")
    known = {field.name for field in dataclasses.fields(VideoMetadata)}
    inputs = processor(
        text=[prompt_text(processor, text)],
        videos=[np.ascontiguousarray(clip.frames.transpose(0, 3, 1, 2))],
        video_metadata=[VideoMetadata(**{name: value for name, value in metadata.items() if name in known})],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return _prompt(inputs)


def render_without_pixels(processor: Any, text: str, num_video_tokens: int, vision: dict[str, torch.Tensor]) -> Prompt:
    """The prompt of `render_prompt` with other vision tensors, for a processor that expands a video to so many equal tokens."""
    video_token = processor.video_token
    expanded = prompt_text(processor, text).replace(video_token, video_token * num_video_tokens, 1)
    return dataclasses.replace(_prompt(processor(text=[expanded], return_tensors="pt")), vision=vision)


def _prompt(inputs: Mapping[str, Any]) -> Prompt:
    """What a processor made of one prompt, told apart by shape."""
    ids = inputs["input_ids"]
    tokens, vision = {}, {}
    for name, value in inputs.items():
        if name == "attention_mask" or name == "video_metadata":
            continue
        tensor = torch.as_tensor(value)
        if tensor.shape[:2] == ids.shape:
            tokens[name] = tensor[0]
        else:
            vision[name] = tensor
    return Prompt(tokens=tokens, vision=vision)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences for the model's forward, and where the tokens of R responses are predicted in them.

    `inputs`: keyword arguments of the model's forward; in a packed row also `groups` (see `vidalign.shared_prefix`).
    `labels` [R, T] holds response tokens, and `IGNORED` everywhere else. `sources` [R, T]: which position of the packed row
    predicts each label; None where that is the label's own place.
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    sources: torch.Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        moved = {
            name: value.to(device, dtype if value.is_floating_point() and name.startswith("pixel_values") else None)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in self.inputs.items()
        }
        sources = None if self.sources is None else self.sources.to(device)
        return Batch(inputs=moved, labels=self.labels.to(device), sources=sources)


def collate(rows: Sequence[tuple[Prompt, Sequence[int]]], *, pad_id: int) -> Batch:
    """Join (prompt, response token ids) rows into one batch; each row brings its own video."""
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
    for name in rows[0][0].vision:
        inputs[name] = torch.cat([prompt.vision[name] for prompt, _ in rows])
    return Batch(inputs=inputs, labels=labels)


def collate_packed(rows: Sequence[tuple[Prompt, Sequence[Sequence[int]]]]) -> Batch:
    """Lay (prompt, token ids of its responses) groups end to end in one row without padding; each prompt stands in it once.

    All groups have equally many responses. The labels are those of the first response of every group, then of every second one.
    """
    groups = tuple(Group(prompt.length, tuple(map(len, responses))) for prompt, responses in rows)
    longest = max(length for group in groups for length in group.responses)
    labels = torch.full((len(rows) * len(groups[0].responses), longest), IGNORED, dtype=torch.long)
    sources = torch.zeros_like(labels)
    start = 0
    for index, (prompt, responses) in enumerate(rows):
        last = start + prompt.length - 1  # predicts the first token of every response
        start += prompt.length
        for side, response in enumerate(responses):
            row, length = index + side * len(rows), len(response)
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
    for name in rows[0][0].vision:
        inputs[name] = torch.cat([prompt.vision[name] for prompt, _ in rows])
    return Batch(inputs=inputs, labels=labels, sources=sources)


@functools.lru_cache(maxsize=4)
def cached_processor(path: str, trust_remote_code: bool = False) -> Any:
    """`load_processor`, once a process."""
    return load_processor(path, trust_remote_code=trust_remote_code)
