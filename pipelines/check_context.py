"""Does the longest prompt with the largest video fit the model's context? Reads headers of videos, decodes nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import av
import av.error
import numpy as np

from pipelines import check_model
from pipelines.inputs import Inputs
from vidalign import prompts
from vidalign.config.run import EvaluateConfig, VideoConfig
from vidalign.errors import VideoError
from vidalign.model import estimate, rendering
from vidalign.model.turns import turns_of
from vidalign.recipes.base import Asked, Recipe
from vidalign.types import FrameSpec
from vidalign.video import display
from vidalign.video.clip import Clip
from vidalign.video.decoding import frame_indices
from vidalign.video.naming import Visual, images_in, local_path, visual_of
from vidalign.video.readers import target_size
from vidalign.video.stills import shown_size
from vidalign.video.timing import Timing, part_of

MAX_PROBED_VIDEOS = 64


def prompts_asked(inputs: Inputs, recipe: Recipe[Any], evaluate: EvaluateConfig) -> list[Asked]:
    """Every kind of prompt of a run: the recipe's, those of evaluation, and those of the probe."""
    plain = recipe.config.plain_prompt
    return [
        *recipe.asked(inputs.train),
        Asked(kind="evaluation", examples=inputs.eval, template=plain, reply=evaluate.max_new_tokens),
        Asked(kind="probe", examples=inputs.probe, template=plain),
    ]


def check_tokens(
    asked: Sequence[Asked],
    videos: Sequence[str],
    video: VideoConfig,
    model: check_model.ModelFacts,
    max_model_len: int,
) -> tuple[list[str], list[str]]:
    """Lines and warnings about the context. Raises `ModelError` when the longest prompt with the largest video does not fit."""
    text, where, reply = longest_prompt(asked, model.processor)
    shapes = probe_videos(videos, video.frame_spec())
    if not shapes:
        warning = "no video could be opened to see its size, so its vision tokens are not checked"
        return [f"longest prompt: {text:,} tokens without its video ({where})"], [warning]
    costs = {size: vision_tokens(model, *size) for size in {shape[2:] for shape in shapes}}
    uri, num_frames, height, width = max(shapes, key=lambda shape: costs[shape[2:]](shape[1]))
    tokens_of = costs[height, width]
    needed = estimate.check_context(
        tokens_of,
        num_frames=num_frames,
        frames_key="video.num_frames" if video.fps is None else "video.max_frames",
        num_text_tokens=text,
        max_new_tokens=reply,
        max_model_len=max_model_len,
        model_limit=estimate.position_limit(model.config),
        where=f"{where}, {uri}",
    )
    warnings = []
    if video.fps is not None and video.max_frames > num_frames:
        worst = tokens_of(video.max_frames) + text + reply
        if worst > max_model_len:
            fits = estimate.frames_that_fit(tokens_of, video.max_frames, max_model_len - text - reply)
            warnings.append(
                f"a video long enough for video.max_frames={video.max_frames} would need {worst:,} tokens of "
                f"model.max_model_len={max_model_len:,}; lower video.max_frames to {fits} to be safe"
            )
    lines = [
        f"largest video: {num_frames} frames of {height}x{width} pixels are {tokens_of(num_frames):,} vision tokens ({uri})",
        f"longest prompt: {text:,} tokens without its video ({where})",
        f"reply: at most {reply:,} tokens",
        f"context: {needed:,} of model.max_model_len={max_model_len:,} tokens",
        f"looked at {len(shapes):,} of {len(videos):,} videos and at every prompt",
    ]
    return lines, warnings


def longest_prompt(asked: Sequence[Asked], processor: Any) -> tuple[int, str, int]:
    """(text tokens without the video, which example, reply tokens) of the longest of all prompts with its reply.

    The ground truth is scored in the reply's place, with its end-of-turn token.
    """
    frame = _frame_tokens(processor)
    best = (0, "", 0)
    turns = turns_of(processor)
    for kind in asked:
        examples = [example for example in kind.examples if example.context.is_plain]  # others: `pipelines.check_shapes`
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


def probe_videos(videos: Iterable[str], spec: FrameSpec) -> list[tuple[str, int, int, int]]:
    """(uri, frames, height, width) after sampling and resizing, of the first videos whose header can be read.

    A file that cannot be read is skipped here; whether it can be used is found out when it is decoded.
    """
    found: list = []
    for video in videos:
        if len(found) == MAX_PROBED_VIDEOS:
            break
        if visual_of(video).kind != "image" and (size := size_of(video, spec)):
            found.append((video, *size))
    return found


def size_of(name: str, spec: FrameSpec) -> tuple[int, int, int] | None:
    """(frames, height, width) after sampling and resizing of what a name stands for; None if it is remote or cannot be read."""
    visual = visual_of(name)
    path = local_path(visual.uris[0])
    if path is None:
        return None
    try:
        total, fps, height, width = _stills(visual, path) if visual.kind != "video" else _header(path, spec)
        if visual.is_part:
            part = part_of(path, total, Timing(fps=fps, duration_s=total / fps), visual.start_s, visual.end_s)
            total = part.count
        count = len(frame_indices(total, fps, spec)) if total else 1
        height, width = target_size(height, width, spec, 1 if visual.kind == "image" else count)
    except (av.error.FFmpegError, IndexError, ValueError, VideoError, OSError):
        return None
    if visual.kind == "image":
        return 1, height, width
    return (count, height, width) if total >= spec.min_frames and height and width else None


def _header(path: str, spec: FrameSpec) -> tuple[int, float, int, int]:
    """(frames, frames a second, height, width as shown) of a video file."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        seconds = float((container.duration or 0) / av.time_base)
        size = display.shown_size((stream.height, stream.width), display.pixel_aspect(stream, spec))
        return stream.frames or round(seconds * fps), fps, *size


def _stills(visual: Visual, path: str) -> tuple[int, float, int, int]:
    """The same of frames in files, or of one image."""
    paths = images_in(path) if visual.kind == "folder" else [path]
    height, width = shown_size(paths[0])
    return len(paths) if visual.kind == "folder" else len(visual.uris), visual.fps or 1.0, height, width


def vision_tokens(model: check_model.ModelFacts, height: int, width: int) -> Callable[[int], int]:
    """Vision tokens as a function of the number of frames: by formula for Qwen2-VL-like models, else by rendering."""
    cost = estimate.read_vision_cost(model.folder)
    if cost is None:
        return functools.cache(functools.partial(measure_tokens, model.processor, height, width))
    return lambda num_frames: cost.tokens(num_frames, height, width)


def measure_tokens(processor: Any, height: int, width: int, num_frames: int) -> int:
    """Vision tokens of black frames, counted in what the processor makes of them."""
    clip = Clip(
        frames=np.zeros((num_frames, height, width, 3), np.uint8),
        fps=1.0,
        total_num_frames=num_frames,
        duration_s=float(num_frames),
        indices=tuple(range(num_frames)),
    )
    return rendering.render_prompt(processor, "", clip).length - _frame_tokens(processor)


def _frame_tokens(processor: Any) -> int:
    """Tokens of the chat template around a prompt; its one video placeholder becomes the video and does not count."""
    return num_tokens(processor, [rendering.prompt_text(processor, "")])[0] - 1
