"""Do a suite's prompts fit the context of the models that are served for it? With subtitles some are very long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pipelines import check_context, check_model
from pipelines.suites.models import AskedModels
from pipelines.suites.task import Task, num_unanswered
from vidalign.data.suites.question import SuiteQuestion
from vidalign.errors import VideoError
from vidalign.model import estimate
from vidalign.model.clip_check import template_tokens
from vidalign.video.clip import Clip
from vidalign.video.planning import planned


def check_prompts(task: Task, asked: AskedModels) -> list[str]:
    """Lines about the longest question with its video; none where nothing is served for it.

    The videos of the longest prompts are looked at, by their headers (`check_context.MAX_PROBED_VIDEOS` of them).

    Raises:
        ModelError: it does not fit, or the model's folder is not one that can be served.
    """
    if asked.serving is None or not any(num_unanswered(task, asked, name) for name in asked.versions):
        return []
    config = asked.serving.config
    policy = next(iter(asked.serving.models.values()))  # base and aligned have the same processor
    model = check_model.inspect(config.model.model_copy(update={"path": policy.path}), ask_vllm=False)
    lengths = check_context.num_tokens(model.processor, [question.prompt for question in task.present])
    clips: dict[str, Clip] = {}
    longest: dict[str, tuple[int, SuiteQuestion]] = {}
    for length, question in sorted(zip(lengths, task.present, strict=True), key=lambda pair: -pair[0]):
        if question.shown in longest or len(longest) == check_context.MAX_PROBED_VIDEOS:
            continue
        longest[question.shown] = length, question
        with contextlib.suppress(VideoError):  # it is quarantined when it is asked for
            if (clip := planned(question.shown, asked.serving.frame_spec)) is not None:
                clips[question.shown] = clip
    if not clips:
        return ["no video could be opened to see its size, so it is not known whether the prompts fit the context"]
    costs: dict[tuple[int, int], Callable[[int], int]] = {}
    found = []
    for name, clip in clips.items():
        length, question = longest[name]
        num_frames, height, width = clip.frames.shape[:3]
        if (height, width) not in costs:
            costs[height, width] = check_context.largest([(name, clip)], model)[2]
        tokens_of = costs[height, width]
        found.append((length + tokens_of(num_frames), length, num_frames, tokens_of, question))
    _, length, num_frames, tokens_of, question = max(found, key=lambda one: one[0])
    around = template_tokens(model.processor)
    needed = estimate.check_context(
        tokens_of,
        num_frames=num_frames,
        frames_key="video.num_frames" if config.video.fps is None else "video.max_frames",
        num_text_tokens=around + length,
        max_new_tokens=asked.evaluate.max_new_tokens,
        reply_key="evaluate.max_new_tokens",
        max_model_len=config.model.max_model_len,
        model_limit=estimate.position_limit(model.config),
        where=f"{question.where}, {question.video}",
    )
    return [
        f"context: at most {needed:,} of model.max_model_len={config.model.max_model_len:,} tokens, of which {around + length:,} are "
        f"text ({question.where}; looked at {len(clips):,} videos)"
    ]
