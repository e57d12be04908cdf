"""Does the longest prompt with the largest video fit the model's context? Reads what videos say of themselves, decodes nothing."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipelines.checks import model as check_model
from pipelines.checks.memory import gib
from pipelines.inputs import Inputs
from vidalign import prompts
from vidalign.config.run import EvaluateConfig, ModelConfig, VideoConfig
from vidalign.errors import ModelError, VideoError
from vidalign.model import estimate
from vidalign.model.clip_check import TRIED_FRAMES, ClipCheck, measure_tokens, obstacle, template_tokens
from vidalign.model.turns import turns_of
from vidalign.recipes.base import Asked, Recipe
from vidalign.types import FrameSpec
from vidalign.video.clip import Clip
from vidalign.video.naming import without_question
from vidalign.video.planning import planned

MAX_PROBED_VIDEOS = 64
MAX_PROBED_S = 10.0  # some files must be read to their end
MAX_MEASURED = 4  # videos that are rendered
TRIED_SIDE = 56  # pixels


def prompts_asked(inputs: Inputs, recipe: Recipe[Any], evaluate: EvaluateConfig) -> list[Asked]:
    """Every kind of prompt of a run: the recipe's, those of evaluation, and those of the probe."""
    plain = recipe.config.plain_prompt
    return [
        *recipe.asked(inputs.train),
        Asked(kind="evaluation", examples=inputs.eval, template=plain, reply=evaluate.max_new_tokens),
        Asked(kind="probe", examples=inputs.probe, template=plain),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Lines and warnings about the context.

    `text`: tokens of the longest prompt and its reply, without its video; `needed`: with the largest video, 0 if not known.
    """

    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    text: int = 0
    needed: int = 0


def check_tokens(
    asked: Sequence[Asked], videos: Sequence[str], video: VideoConfig, model: check_model.ModelFacts, config: ModelConfig
) -> Tokens:
    """Does the longest prompt fit with the largest video?

    Raises:
        ModelError: it does not, or the model takes no videos of so few frames.
    """
    _check_frames(model.processor, video)
    text, where, reply = longest_prompt(asked, model.processor)
    takes = ClipCheck(str(model.folder), max_model_len=config.max_model_len, trust_remote_code=config.trust_remote_code)
    clips, refused = probe_videos(videos, video.frame_spec(), takes)
    warnings: list[str] = []
    if refused:
        warnings.append(f"{len(refused):,} of the videos looked at will be quarantined, first: {refused[0].message}")
    if not clips:
        warning = "no video could be opened to see its size, so its vision tokens are not checked"
        lines = [f"longest prompt: {text:,} tokens without its video ({where})"]
        return Tokens(lines=lines, warnings=[*warnings, warning], text=text + reply)
    uri, clip, tokens_of = largest(clips, model)
    uri = without_question(uri)
    num_frames, height, width = clip.frames.shape[:3]
    needed = estimate.check_context(
        tokens_of,
        num_frames=num_frames,
        frames_key="video.num_frames" if video.fps is None else "video.max_frames",
        num_text_tokens=text,
        max_new_tokens=reply,
        max_model_len=config.max_model_len,
        model_limit=estimate.position_limit(model.config),
        where=f"{where}, {uri}",
    )
    if video.fps is not None and video.max_frames > num_frames:
        worst = tokens_of(video.max_frames) + text + reply
        if worst > config.max_model_len:
            fits = estimate.frames_that_fit(tokens_of, video.max_frames, config.max_model_len - text - reply)
            warnings.append(
                f"a video long enough for video.max_frames={video.max_frames} would need {worst:,} tokens of "
                f"model.max_model_len={config.max_model_len:,}; lower video.max_frames to {fits} to be safe"
            )
    frames = sum(clip.frames.nbytes for _, clip in clips) / len(clips) * len(videos)
    lines = [
        f"largest video: {num_frames} frames of {height}x{width} pixels are {tokens_of(num_frames):,} vision tokens ({uri})",
        f"longest prompt: {text:,} tokens without its video ({where})",
        f"reply: at most {reply:,} tokens",
        f"context: {needed:,} of model.max_model_len={config.max_model_len:,} tokens",
        f"decoded frames: about {gib(frames)} on disk",
        f"looked at {len(clips) + len(refused):,} of {len(videos):,} videos and at every prompt",
    ]
    return Tokens(lines=lines, warnings=warnings, text=text + reply, needed=needed)


def _check_frames(processor: Any, video: VideoConfig) -> None:
    """Raises `ModelError` for a number of frames that the processor takes of no video."""
    if video.num_frames is None or video.num_frames >= TRIED_FRAMES:
        return
    why = obstacle(processor, video.num_frames, TRIED_SIDE, TRIED_SIDE)
    if why and not obstacle(processor, TRIED_FRAMES, TRIED_SIDE, TRIED_SIDE):
        fits = next(
            n for n in range(video.num_frames + 1, TRIED_FRAMES + 1) if not obstacle(processor, n, TRIED_SIDE, TRIED_SIDE)
        )
        raise ModelError(
            f"video.num_frames={video.num_frames}, but this model's processor takes no such videos ({why}); set video.num_frames to "
            f"{fits} or more"
        )


def largest(clips: Sequence[tuple[str, Clip]], model: check_model.ModelFacts) -> tuple[str, Clip, Callable[[int], int]]:
    """(uri, clip, vision tokens by the number of frames) of the video that takes most tokens.

    For Qwen2-VL-like models by formula. Otherwise by rendering, since the tokens may say when each frame is shown: those with most
    pixels and the longest ones are measured, at their own times.
    """
    cost = estimate.read_vision_cost(model.folder)
    if cost is not None:
        uri, clip = max(clips, key=lambda each: cost.tokens(*_size(each[1])))
        height, width = clip.frames.shape[1:3]
        return uri, clip, functools.partial(cost.tokens, height=height, width=width)
    by_size = sorted(clips, key=lambda each: each[1].frames.size, reverse=True)[:MAX_MEASURED]
    by_length = sorted(by_size, key=lambda each: each[1].duration_s, reverse=True)
    by_length += sorted(clips, key=lambda each: each[1].duration_s, reverse=True)[:1]
    uri, clip = max(by_length, key=lambda each: measure_tokens(model.processor, each[1]))
    return uri, clip, functools.cache(lambda num_frames: measure_tokens(model.processor, _resampled(clip, num_frames)))


def _size(clip: Clip) -> tuple[int, int, int]:
    num_frames, height, width = clip.frames.shape[:3]
    return num_frames, height, width


def _resampled(clip: Clip, num_frames: int) -> Clip:
    """The black clip with another number of frames, spread over the same video."""
    if num_frames == len(clip.indices):
        return clip
    total = clip.total_num_frames
    indices = tuple((2 * index + 1) * total // (2 * num_frames) for index in range(num_frames))
    times = None if clip.times is None else tuple(clip.duration_s * index / total for index in indices)
    frames = np.zeros((num_frames, *clip.frames.shape[1:]), np.uint8)
    return dataclasses.replace(clip, frames=frames, indices=indices, times=times)


def longest_prompt(asked: Sequence[Asked], processor: Any) -> tuple[int, str, int]:
    """(text tokens without the video, which example, reply tokens) of the longest of all prompts with its reply.

    The ground truth is scored in the reply's place, with its end-of-turn token.
    """
    frame = template_tokens(processor)
    best = (0, "", 0)
    turns = turns_of(processor)
    for kind in asked:
        examples = [example for example in kind.examples if example.context.is_plain]  # others: `pipelines.checks.shapes`
        texts = [prompts.fill(kind.template, question=e.question, answer=e.answer) for e in examples]
        answers = num_tokens(processor, [turns.reply(e.answer)[0] for e in examples])
        for example, length, answer in zip(examples, num_tokens(processor, texts), answers, strict=True):
            after = max(kind.reply, answer + len(turns.end))
            if frame + length + kind.quoted + after > best[0] + best[2]:
                best = (frame + length + kind.quoted, f"{kind.kind} prompt of example {example.id}", after)
    return best


def num_tokens(processor: Any, texts: list[str]) -> list[int]:
    """The number of tokens of each text alone."""
    if not texts:
        return []
    return [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def probe_videos(
    videos: Iterable[str], spec: FrameSpec, takes: Callable[[str, int, int, int, float], None]
) -> tuple[list[tuple[str, Clip]], list[VideoError]]:
    """The clips (black) of the first videos by uri, and why others of them will be quarantined. Decodes nothing.

    Args:
        takes: raises `VideoError` for a clip that the model does not take, see `vidalign.model.clip_check.ClipCheck`.
    """
    found: list[tuple[str, Clip]] = []
    refused: list[VideoError] = []
    deadline = time.monotonic() + MAX_PROBED_S
    for video in videos:
        if len(found) == MAX_PROBED_VIDEOS or time.monotonic() > deadline:
            break
        try:
            clip = planned(video, spec)
            if clip is not None:
                takes(video, *_size(clip), clip.duration_s)
                found.append((video, clip))
        except VideoError as error:
            refused.append(error)
    return found, refused


def vision_tokens(model: check_model.ModelFacts, clip: Clip) -> int:
    """Vision tokens of a video: by formula for Qwen2-VL-like models, else by rendering."""
    cost = estimate.read_vision_cost(model.folder)
    return measure_tokens(model.processor, clip) if cost is None else cost.tokens(*_size(clip))
