"""Do rows with a conversation, several videos or images go with the model, its context and its training? Decodes nothing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jinja2
import numpy as np

from pipelines.checks import model as check_model
from pipelines.checks.context import num_tokens, vision_tokens
from vidalign import prompts
from vidalign.config.run import VideoConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError, ModelError, VideoError
from vidalign.model import rendering, vision_features
from vidalign.model.families import FAMILIES, GENERAL
from vidalign.recipes.base import Asked
from vidalign.records import Context
from vidalign.types import Example, FrameSpec
from vidalign.video.clip import Clip
from vidalign.video.naming import visual_of
from vidalign.video.planning import planned
from vidalign.video.scene import Scene

Row: TypeAlias = tuple[Asked, Example]
MAX_WRITTEN = 64  # of the largest prompts
MAX_PROBED = 256  # videos and images whose headers are read
ONE_IMAGE = Context(videos=(), images=("",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """The tokens of one prompt with its reply."""

    text: int
    vision: int
    reply: int
    where: str

    @property
    def total(self) -> int:
        return self.text + self.vision + self.reply


def check_shapes(
    asked: Sequence[Asked], video: VideoConfig, model: check_model.ModelFacts, max_model_len: int
) -> tuple[list[str], list[str]]:
    """Lines and warnings about prompts that are more than one video and one question.

    Raises:
        ModelError: the model's family does not take several videos and images, its chat template does not write such a prompt, or
            the prompt does not fit into the context.
    """
    rich = [(kind, example) for kind in asked for example in kind.examples if not example.context.is_plain]
    for _, example in rich:
        _check_family(example, model.config.model_type)
    if not rich:
        return [], []
    tokens_of = _Tokens(model, video.frame_spec())
    written = _to_write(rich, model.processor, tokens_of)
    largest = max(
        (_need(kind, example, model.processor, tokens_of) for kind, example in written), key=lambda need: need.total
    )
    if largest.total > max_model_len:
        raise ModelError(
            f"the {largest.where} needs {largest.total:,} tokens ({largest.text:,} of text, {largest.vision:,} of what it shows, "
            f"{largest.reply:,} for the response), but model.max_model_len={max_model_len:,}; raise it to {largest.total}, take fewer "
            "or smaller frames (video.num_frames, video.max_pixels), or leave the row out"
        )
    line = f"largest prompt with a conversation, several videos or images: {largest.total:,} tokens ({largest.where})"
    unseen = len(tokens_of.unseen)
    warnings = [f"{unseen:,} videos and images of such rows could not be looked at, or were too many"] if unseen else []
    return [line], warnings


def check_training(train: TrainConfig, examples: Sequence[Example], model_type: str) -> None:
    """Raises `ConfigError` where training cannot take what these rows show together, or this model on several workers."""
    if train.cache_vision_features:
        vision_features.check_shown(example.context for example in examples)
    if train.zero_stage < 3 or train.most_workers == 1:
        return
    if FAMILIES.get(model_type, GENERAL).calls_per_frame:
        raise ConfigError(
            f"with train.zero_stage=3, all workers go through a model's modules equally often, but a {model_type} calls some of them "
            "once for each frame; lower train.zero_stage to 2, or train.num_workers to 1"
        )
    kinds = {(bool(example.context.videos), bool(example.context.images)): example for example in examples}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise ConfigError(
            "with train.zero_stage=3 and several workers, all rows of data.train and data.probe must show videos, or images, or both, "
            f"since all workers go through the vision tower together; {one.id} and {other.id} differ. Lower train.zero_stage to 2, or "
            "train them apart"
        )


def _check_family(example: Example, model_type: str) -> None:
    context = example.context
    if len(context.visuals) == 1 and not context.images:
        return
    if not FAMILIES.get(model_type, GENERAL).mixes:
        fitting = ", ".join(name for name, family in FAMILIES.items() if family.mixes)
        shows = f"{_count(len(context.videos), 'video')} and {_count(len(context.images), 'image')}"
        raise ModelError(
            f"example {example.id} shows {shows}, and models of type {model_type} are known here to take one video a prompt; use a "
            f"model of type {fitting}, or leave such rows out"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Tokens:
    """The vision tokens of what prompts show, by name; 0 for what could not be looked at, which `unseen` holds."""

    def __init__(self, model: check_model.ModelFacts, spec: FrameSpec) -> None:
        self._model, self._spec = model, spec
        self._image = functools.cache(functools.partial(image_tokens, model.processor))
        self._known: dict[str, int] = {}
        self.unseen: set[str] = set()

    def __call__(self, name: str) -> int:
        if name not in self._known:
            clip = self._planned(name) if len(self._known) < MAX_PROBED else None
            if clip is None:
                self.unseen.add(name)
                return 0
            height, width = clip.frames.shape[1:3]
            is_image = visual_of(name).kind == "image"
            self._known[name] = self._image(height, width) if is_image else vision_tokens(self._model, clip)
        return self._known[name]

    def _planned(self, name: str) -> Clip | None:
        try:
            return planned(name, self._spec)
        except VideoError:
            return None


def image_tokens(processor: Any, height: int, width: int) -> int:
    """Vision tokens of an image, counted in what the processor makes of a black one."""
    pixels = np.zeros((1, height, width, 3), np.uint8)
    clip = Clip(frames=pixels, fps=1.0, total_num_frames=1, duration_s=1.0, indices=(0,))
    length = rendering.render_prompt(processor, "", Scene(context=ONE_IMAGE, clips=(clip,))).length
    return length - len(rendering.prompt_ids(processor, "", context=ONE_IMAGE)) + 1


def _to_write(rich: Sequence[Row], processor: Any, tokens_of: _Tokens) -> list[Row]:
    """The rows that are looked at as the chat template writes them: the largest by their texts alone, and one of each shape."""
    said = [[example.context.system, *(turn.content for turn in example.turns)] for _, example in rich]
    filled = [prompts.fill(kind.template, question=example.question, answer=example.answer) for kind, example in rich]
    lengths = num_tokens(processor, ["\n".join([*before, text]) for before, text in zip(said, filled, strict=True)])
    answers = num_tokens(processor, [example.answer for _, example in rich])
    sizes = [
        length + kind.quoted + max(kind.reply, answer + 1) + sum(map(tokens_of, example.context.visuals))
        for (kind, example), length, answer in zip(rich, lengths, answers, strict=True)
    ]
    largest = sorted(range(len(rich)), key=lambda number: -sizes[number])[:MAX_WRITTEN]
    shapes = {(kind.kind, shape_of(example.context)): number for number, (kind, example) in enumerate(rich)}
    return [rich[number] for number in sorted({*largest, *shapes.values()})]


def shape_of(context: Context) -> tuple[int, int, bool, int]:
    """What a chat template may write in another way: numbers of videos, images and turns, and whether there is a system text."""
    return len(context.videos), len(context.images), bool(context.system), len(context.turns)


def _need(kind: Asked, example: Example, processor: Any, tokens_of: _Tokens) -> Need:
    """What one prompt of an example needs. Raises `ModelError` where the chat template does not write it."""
    context = example.context
    text = prompts.fill(kind.template, question=example.question, answer=example.answer)
    written = _written(processor, text, example)
    length = len(processor.tokenizer(written, add_special_tokens=False)["input_ids"]) - len(context.visuals)
    return Need(
        text=length + kind.quoted,
        vision=sum(map(tokens_of, context.visuals)),
        reply=max(kind.reply, len(rendering.response_ids(processor, example.answer))),
        where=f"{kind.kind} prompt of example {example.id}",
    )


def _written(processor: Any, text: str, example: Example) -> str:
    """The prompt as the chat template writes it, with everything that it should say, in order."""
    context = example.context
    refused = f"the chat template cannot write the prompt of example {example.id}"
    way_out = "leave such rows out, or use a model whose template writes system texts, earlier turns, videos and images"
    try:
        written = rendering.prompt_text(processor, text, context)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{refused} ({' '.join(str(error).split())}); {way_out}") from error
    at = 0
    for message in prompts.chat(text, context):
        for part in message["content"]:
            said = part.get("text", "").strip()
            found = written.find(said, at)
            if found < 0:
                raise ModelError(f"{refused}: it leaves out {said[:60]!r} of the {message['role']}; {way_out}")
            at = found + len(said)
    for token, count in (("video_token", len(context.videos)), ("image_token", len(context.images))):
        place = getattr(processor, token, None)
        if isinstance(place, str) and written.count(place) != count:
            raise ModelError(f"{refused}: it writes {place} {written.count(place)} times for {count}; {way_out}")
    return written
