"""Do a suite's prompts fit the context of the models that are served for it? With subtitles some are very long."""

from __future__ import annotations

import pathlib

from pipelines.checks import context as check_context
from pipelines.checks.model import ModelFacts
from pipelines.suites.models import AskedModels
from pipelines.suites.task import Task, num_unanswered
from vidalign.data.suites.question import SuiteQuestion
from vidalign.model import estimate, loading, rendering
from vidalign.model.clip_check import ClipCheck, template_tokens


def check_prompts(task: Task, asked: AskedModels) -> list[str]:
    """Lines about the longest question with its video; none where nothing is served for it.

    Of the videos of the longest prompts as many are looked at as in a check of a run (`check_context.probe_videos`).

    Raises:
        ModelError: it does not fit, or the model has no processor that can be used.
    """
    if asked.serving is None or not any(num_unanswered(task, asked, name) for name in asked.versions):
        return []
    config, reply = asked.serving.config, asked.evaluate.max_new_tokens
    model = _facts(next(iter(asked.serving.models.values())).path, config.model.trust_remote_code)
    lengths = check_context.num_tokens(model.processor, [question.prompt for question in task.present])
    around = template_tokens(model.processor)
    longest: dict[str, tuple[int, SuiteQuestion]] = {}
    for length, question in sorted(zip(lengths, task.present, strict=True), key=lambda pair: -pair[0]):
        longest.setdefault(question.shown, (around + length, question))
    limit = config.model.max_model_len
    takes = ClipCheck(str(model.folder), max_model_len=limit, trust_remote_code=config.model.trust_remote_code)
    clips, _ = check_context.probe_videos(longest, asked.serving.frame_spec, takes)
    if not clips:
        return ["no video could be opened to see its size, so it is not known whether the prompts fit the context"]
    by_name = dict(clips)
    measured = [*list(by_name)[: check_context.MAX_MEASURED], check_context.largest(clips, model)[0]]
    name = max(measured, key=lambda each: longest[each][0] + check_context.vision_tokens(model, by_name[each]))
    text, question = longest[name]
    _, clip, tokens_of = check_context.largest([(name, by_name[name])], model)
    needed = estimate.check_context(
        tokens_of,
        num_frames=len(clip.frames),
        frames_key="video.num_frames" if config.video.fps is None else "video.max_frames",
        num_text_tokens=text,
        max_new_tokens=reply,
        reply_key="evaluate.max_new_tokens",
        max_model_len=limit,
        model_limit=estimate.position_limit(model.config),
        where=f"{question.where}, {question.video}",
    )
    return [
        f"context: at most {needed:,} of model.max_model_len={limit:,} tokens, of which {text:,} are text ({question.where}; "
        f"looked at {len(clips):,} videos)"
    ]


def _facts(path: str, trust_remote_code: bool) -> ModelFacts:
    """What of a model's folder says how long prompts are; base and aligned have the same."""
    config = loading.read_config(path, trust_remote_code=trust_remote_code)
    processor = rendering.cached_processor(path, trust_remote_code)
    return ModelFacts(folder=pathlib.Path(path), config=config, processor=processor, outline=None, lines=[], warnings=[])
