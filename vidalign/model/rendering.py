"""From a prompt, a clip and responses to model inputs, the same for generation, training and scoring.

The prompt is rendered by the model's own processor and chat template with `do_sample_frames=False`: frames were sampled
once, by one FrameSpec, and no processor samples them again. A response is the tokens of its text plus the closing end-of-turn
token.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vidalign import prompts
from vidalign.errors import ModelError
from vidalign.model.batch import Prompt
from vidalign.model.families import family_of_processor
from vidalign.video.clip import Clip


def load_processor(path: str, *, trust_remote_code: bool = False) -> Any:
    """The model folder's Hugging Face processor. Raises `ModelError` if it or its chat template is missing."""
    from transformers import AutoProcessor

    if not pathlib.Path(path).is_dir() and path.startswith((".", "/", "~")):
        raise ModelError(f"no model folder at {path}; model.path must name a Hugging Face folder or hub name")
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
    """The chat-formatted prompt with one unexpanded video placeholder, ready for the response."""
    return processor.apply_chat_template(prompts.chat(text), tokenize=False, add_generation_prompt=True)


def response_ids(processor: Any, text: str) -> list[int]:
    """Token ids of a response, including its end-of-turn token."""
    tokenizer = processor.tokenizer
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


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
    return _prompt(processor, inputs)


def render_without_pixels(processor: Any, text: str, num_video_tokens: int, vision: dict[str, torch.Tensor]) -> Prompt:
    """The prompt of `render_prompt`, but with the given vision tensors and without pixels.

    It suits a processor that expands a video into `num_video_tokens` equal tokens.
    """
    video_token = processor.video_token
    expanded = prompt_text(processor, text).replace(video_token, video_token * num_video_tokens, 1)
    return dataclasses.replace(_prompt(processor, processor(text=[expanded], return_tensors="pt")), vision=vision)


def _prompt(processor: Any, inputs: Mapping[str, Any]) -> Prompt:
    """The tensors that a processor made from one prompt, told apart by shape."""
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
    return Prompt(tokens=tokens, vision=vision, video_axis=family_of_processor(processor).video_axis)


@functools.lru_cache(maxsize=4)
def cached_processor(path: str, trust_remote_code: bool = False) -> Any:
    """`load_processor`, called once per process."""
    return load_processor(path, trust_remote_code=trust_remote_code)
