"""Questions to a served policy over HTTP: concurrent, resumable, and a broken video never counts as a wrong answer.

    examples ── video_url + question ── endpoint (decodes by its FrameSpec, greedy) ── text ── is_correct ── EvalAnswer

Every result is appended to `eval/{model_id}.jsonl` as it arrives; asking again continues there. The finished table is
`eval/{model_id}.parquet`. A *blind* run asks the same questions on noise: what a model scores without seeing the video.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import mimetypes
import pathlib
import random
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import openai
import tqdm

from pipelines.answer_log import AnswerLog
from serving.app import Endpoint
from serving.refusals import unusable_video
from vidalign import files, prompts
from vidalign.config.run import EvaluateConfig
from vidalign.data.answers import is_correct
from vidalign.errors import ClusterError, ModelError, VideoError
from vidalign.types import EvalAnswer, Example, QuarantineRow, stable_hash

MAX_ATTEMPTS = 5
FIRST_BACKOFF_S = 0.25
NUM_NOISE_CLIPS = 4
TRANSIENT = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, openai.ConflictError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Answers in the order of the examples, and the videos that the endpoint could not use: those are not scored."""

    answers: list[EvalAnswer]
    quarantined: list[QuarantineRow]


def evaluate(
    examples: Sequence[Example],
    endpoint: Endpoint,
    *,
    model_id: str,
    stage: pathlib.Path,
    config: EvaluateConfig,
    prompt: str = prompts.PLAIN,
    blind: bool = False,
    progress: bool = True,
    is_right: Callable[[str, Example], bool] = is_correct,
    made_from: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Ask every example at temperature 0, score by `is_right`, and write `stage/{model_id}.parquet`.

    Args:
        model_id: one of `endpoint.model_ids`.
        stage: the run's eval folder.
        prompt: template with {question}, the same as in training.
        blind: noise instead of each example's video; the results are filed under the name "blind".
        made_from: what else decides the answers, where no manifest of a stage says it.

    Raises:
        ClusterError: the endpoint does not answer, or answers with another policy version than it announced.
        ModelError: the endpoint refuses an example for a reason other than its video.
        ConfigError: the stage holds answers to other questions, or of another policy.
    """
    assert model_id in endpoint.versions, (model_id, endpoint.model_ids)
    name = "blind" if blind else model_id
    version = endpoint.versions[model_id]
    videos = {example.id: example.video for example in examples}
    if blind:
        clips = noise_clips(stage / "noise")
        videos = {id_: str(clips[int(stable_hash(id_), 16) % len(clips)]) for id_ in videos}
    asker = _Asker(
        endpoint=endpoint, model_id=model_id, name=name, version=version, config=config, prompt=prompt, is_right=is_right
    )
    log = AnswerLog.open(stage / f"{name}.jsonl", _settings(version, prompt, config, blind=blind) | dict(made_from or {}))
    todo = [example for example in examples if not log.holds(example)]
    if todo:
        asyncio.run(asker.ask_all(todo, videos, log, _bar(name, len(examples), len(examples) - len(todo), progress)))
    found = [log.results[example.id] for example in examples]
    answers = [result for result in found if isinstance(result, EvalAnswer)]
    files.write_table(stage / f"{name}.parquet", answers)
    bad = {result.uri: result for result in found if isinstance(result, QuarantineRow)}
    return Evaluation(answers=answers, quarantined=list(bad.values()))


def num_unanswered(
    examples: Sequence[Example],
    *,
    model_id: str,
    version: str,
    stage: pathlib.Path,
    config: EvaluateConfig,
    prompt: str = prompts.PLAIN,
    made_from: Mapping[str, Any] | None = None,
) -> int:
    """How many of the examples `evaluate` would still have to ask. Raises `ConfigError` as it does."""
    path = stage / f"{model_id}.jsonl"
    if not path.is_file():
        return len(examples)
    log = AnswerLog.open(path, _settings(version, prompt, config, blind=False) | dict(made_from or {}))
    return sum(not log.holds(example) for example in examples)


def _settings(version: str, prompt: str, config: EvaluateConfig, *, blind: bool) -> dict[str, Any]:
    return {"policy_version": version, "prompt": prompt, "max_new_tokens": config.max_new_tokens, "blind": blind}


def video_url(video: str, media_root: str | None) -> str:
    """A url under which the endpoint can read `video`: file: below its media root, otherwise data: with the bytes.

    Raises:
        VideoError: a local file that is missing or cannot be read.
    """
    if "://" in video:
        parsed = urllib.parse.urlsplit(video)
        if parsed.scheme != "file":
            return video
        video = urllib.request.url2pathname(parsed.path)
    path = pathlib.Path(video).resolve()
    if media_root is not None and path.is_relative_to(pathlib.Path(media_root).resolve()):
        return path.as_uri()
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise VideoError("missing", f"no file at {path}") from error
    except OSError as error:
        raise VideoError("unreadable", f"{path} cannot be read: {error.strerror}") from error
    kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def noise_clips(folder: pathlib.Path) -> list[pathlib.Path]:
    """Four MP4 files of coloured noise, 4 seconds at 8 frames a second; written once, the same every time."""
    import av
    import numpy as np

    paths = [folder / f"{index}.mp4" for index in range(NUM_NOISE_CLIPS)]
    for index, path in enumerate(paths):
        if path.is_file():
            continue
        pixels = np.random.default_rng(index).integers(0, 256, (32, 64, 64, 3), np.uint8)
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 64, "yuv420p", 4_000_000
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        files.write_bytes_atomic(path, buffer.getvalue())
    return paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asker:
    """One model's questions; the answers are filed under `name`, and each must name `version` as its policy, if that is known."""

    endpoint: Endpoint
    model_id: str
    name: str
    version: str
    config: EvaluateConfig
    prompt: str
    is_right: Callable[[str, Example], bool]

    async def ask_all(self, examples: Sequence[Example], videos: dict[str, str], log: AnswerLog, bar: tqdm.tqdm) -> None:
        slots = asyncio.Semaphore(self.config.concurrency)
        client = openai.AsyncOpenAI(
            base_url=self.endpoint.base_url, api_key="none", timeout=self.config.request_timeout_s, max_retries=0
        )

        async def one(example: Example) -> None:
            async with slots:
                log.add(example, await self.ask(client, example, videos[example.id]))
                bar.update()

        with bar:
            async with client:
                tasks = [asyncio.create_task(one(example)) for example in examples]
                try:
                    await asyncio.gather(*tasks)
                finally:  # after an error the others must not go on asking
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, client: openai.AsyncOpenAI, example: Example, video: str) -> EvalAnswer | QuarantineRow:
        try:
            url = video_url(video, self.endpoint.media_root)
        except VideoError as error:
            return QuarantineRow(uri=video, reason=error.reason, message=error.message)
        content: list[Any] = [
            {"type": "video_url", "video_url": {"url": url}},
            {"type": "text", "text": prompts.fill(self.prompt, question=example.question)},
        ]
        try:
            completion, latency_s = await self._complete(client, example, content)
        except openai.APIStatusError as error:
            problem = unusable_video(_message(error))
            if problem is None:
                raise ModelError(
                    f"example {example.id}: {self.model_id} refuses the request ({error.status_code}): {_short(error)}"
                ) from error
            return QuarantineRow(uri=video, reason=problem.reason, message=problem.message)
        if self.version and completion.system_fingerprint != self.version:
            raise ClusterError(
                f"example {example.id}: {self.model_id} answered as policy {completion.system_fingerprint}, expected "
                f"{self.version}; was the endpoint restarted with another model?"
            )
        text = completion.choices[0].message.content or ""
        return EvalAnswer(
            example_id=example.id,
            category=example.category,
            video=example.video,
            question=example.question,
            answer=example.answer,
            text=text,
            correct=self.is_right(text, example),
            model_id=self.name,
            policy_version=self.version,
            latency_s=latency_s,
        )

    async def _complete(self, client: openai.AsyncOpenAI, example: Example, content: list[Any]) -> tuple[Any, float]:
        """The completion and its latency in seconds; waits and asks again where the endpoint is busy or restarting."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            started_at = time.monotonic()
            try:
                completion = await client.chat.completions.create(
                    model=self.model_id,
                    messages=[{"role": "user", "content": content}],
                    temperature=0,
                    max_tokens=self.config.max_new_tokens,
                )
                return completion, time.monotonic() - started_at
            except TRANSIENT as error:
                if attempt == MAX_ATTEMPTS:
                    raise ClusterError(
                        f"example {example.id}: {self.endpoint.base_url} failed {MAX_ATTEMPTS} times, the last time with "
                        f"{type(error).__name__}: {_short(error)}; see the replicas' logs, or raise "
                        f"evaluate.request_timeout_s={self.config.request_timeout_s:g} or lower evaluate.concurrency="
                        f"{self.config.concurrency} if it is only slow"
                    ) from error
                await asyncio.sleep(FIRST_BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
        raise AssertionError("unreachable")


def _bar(name: str, total: int, done: int, progress: bool) -> tqdm.tqdm:
    return tqdm.tqdm(total=total, initial=done, desc=f"evaluate {name}", unit="answer", disable=not progress)


def _message(error: openai.APIError) -> str:
    """What the server wrote, without the client's wrapping."""
    return str(error.body["message"]) if isinstance(error.body, dict) and "message" in error.body else error.message


def _short(error: openai.APIError) -> str:
    return " ".join(_message(error).split())[:400]
