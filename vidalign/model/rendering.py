"""From a prompt, a clip and responses to model inputs, the same for generation, training and scoring.

The prompt is rendered by the model's own processor and chat template with `do_sample_frames=False`: frames were sampled
once, by one FrameSpec, and no processor samples them again. A response is the tokens of its text plus the end of turn, which, like
bos, comes from `vidalign.model.turns`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vidalign import prompts
from vidalign.errors import ModelError
from vidalign.model.batch import Prompt
from vidalign.model.families import family_of_processor
from vidalign.model.folder import missing_package, model_folder
from vidalign.model.turns import turns_of
from vidalign.records import Context
from vidalign.special_tokens import FIX, why
from vidalign.video.clip import Clip
from vidalign.video.scene import Shown, scene_of


def load_processor(path: str, *, trust_remote_code: bool = False) -> Any:
    """The model folder's Hugging Face processor. Raises `ModelError` if it or its chat template is missing."""
    from transformers import AutoProcessor

    folder = str(model_folder(path, weights=False))
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise ModelError(missing_package(path, error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} has no processor that transformers can load: {' '.join(str(error).split())}") from error
    if not hasattr(processor, "video_processor"):
        raise ModelError(f"{path} is not a video model: its processor ({type(processor).__name__}) takes no videos")
    if not getattr(processor, "chat_template", None):
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    if not processor.chat_template:
        raise ModelError(f"{path} has no chat template; add chat_template.jinja to the model folder")
    return processor


def prompt_text(processor: Any, text: str, context: Context = prompts.ONE_VIDEO) -> str:
    """The chat-formatted prompt with its videos and images unexpanded, ready for the response; exactly one bos, if the model has any.

    Raises:
        ModelError: the text holds a special token, which would end its turn or forge another.
    """
    turns, messages = turns_of(processor), prompts.chat(text, context)
    for part in (part for message in messages for part in message["content"] if part["type"] == "text"):
        _check_plain(processor, part["text"], "a prompt")
    return turns.bos + processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _check_plain(processor: Any, text: str, what: str) -> None:
    if found := turns_of(processor).special.found(text):
        at = max(text.find(found[0]), 0)
        raise ModelError(f"{what} {why(found)}: {text[max(0, at - 40) : at + 40]!r}; {FIX}")


def prompt_ids(processor: Any, text: str, prefix: str = "", context: Context = prompts.ONE_VIDEO) -> list[int]:
    """Token ids of the prompt with its videos and images unexpanded, and of the beginning of a response after it."""
    begun = turns_of(processor).reply(prefix)[0] if prefix else ""
    return processor.tokenizer(prompt_text(processor, text, context) + begun, add_special_tokens=False)["input_ids"]


def response_ids(processor: Any, text: str) -> list[int]:
    """Token ids of a response, including its end of turn.

    Raises:
        ModelError: the text holds a special token.
    """
    _check_plain(processor, text, "a response")
    turns = turns_of(processor)
    return [*processor.tokenizer(turns.reply(text)[0], add_special_tokens=False)["input_ids"], *turns.end]


def _text_options(processor: Any) -> dict[str, bool]:
    """Options of a processor's call that keep it from adding to `prompt_text`; some processors take none, so only where needed."""
    return {"add_special_tokens": False} if turns_of(processor).adds else {}


def render_prompt(processor: Any, text: str, shown: Shown) -> Prompt:
    """Render one prompt with its videos and images expanded to placeholder tokens. Frames are uint8 [F, H, W, 3]."""
    scene = scene_of(shown)
    options = {**_text_options(processor), **_videos(scene.videos)}
    if scene.images:
        options["images"] = [image(clip) for clip in scene.images]
    text = prompt_text(processor, text, scene.context)
    return _prompt(processor, processor(text=[text], return_tensors="pt", **options))


def _videos(clips: Sequence[Clip]) -> dict[str, Any]:
    """What a processor is told of a prompt's videos."""
    from transformers.video_utils import VideoMetadata

    if not clips:
        return {}
    known = {field.name for field in dataclasses.fields(VideoMetadata)}
    told = [{name: value for name, value in clip.metadata().items() if name in known} for clip in clips]
    return {
        "videos": [np.ascontiguousarray(clip.frames.transpose(0, 3, 1, 2)) for clip in clips],
        "video_metadata": [VideoMetadata(**metadata) for metadata in told],
        "do_sample_frames": False,
    }


def image(clip: Clip) -> Any:
    """The image that a clip of one frame holds, as processors and vLLM take it."""
    import PIL.Image

    [frame] = clip.frames
    return PIL.Image.fromarray(frame)


def render_without_pixels(
    processor: Any,
    text: str,
    num_video_tokens: int,
    vision: dict[str, torch.Tensor],
    context: Context = prompts.ONE_VIDEO,
) -> Prompt:
    """The prompt of `render_prompt` for one video, but with the given vision tensors and without pixels.

    It suits a processor that expands a video into `num_video_tokens` equal tokens.
    """
    video_token = processor.video_token
    expanded = prompt_text(processor, text, context).replace(video_token, video_token * num_video_tokens, 1)
    inputs = processor(text=[expanded], return_tensors="pt", **_text_options(processor))
    return dataclasses.replace(_prompt(processor, inputs), vision=vision)


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


def difference(processor: Any, trained: Sequence[int], generated: Sequence[int], visual: Sequence[bool]) -> str:
    """Where the prompt that training sees is not the one that an engine generates from, as the rest of a sentence; empty if nowhere.

    Tokens that stand in for embeddings (`visual`, as the engine places them) may differ; their places may not.
    """
    if len(trained) != len(generated):
        return f"training sees {len(trained):,} tokens and the engine {len(generated):,}"
    words = {token for token, embedded in zip(trained, visual, strict=True) if not embedded}
    for place, (ours, theirs, embedded) in enumerate(zip(trained, generated, visual, strict=True)):
        if ours in words if embedded else ours != theirs:
            around = slice(max(0, place - 3), place + 3)
            one, other = (processor.tokenizer.decode(ids[around]) for ids in (trained, generated))
            return f"at token {place:,} of {len(trained):,}, training sees {one!r} and the engine {other!r}"
    return ""


@functools.lru_cache(maxsize=4)
def cached_processor(path: str, trust_remote_code: bool = False) -> Any:
    """`load_processor`, called once per process."""
    return load_processor(path, trust_remote_code=trust_remote_code)
