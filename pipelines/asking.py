"""Questions to a served policy over HTTP: concurrent, resumable, and a broken video never counts as a wrong answer.

    examples ── messages with urls (media_urls) ── endpoint (decodes by its FrameSpec, greedy) ── text ── is_correct ── EvalAnswer

Every result is appended to `eval/{model_id}.jsonl` as it arrives; asking again continues there. The finished table is
`eval/{model_id}.parquet`. A *blind* run asks the same questions on noise: what a model scores without seeing the video.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import openai

from pipelines import coroutines
from pipelines import patience as waiting
from pipelines import progress as shown
from pipelines.answer_log import AnswerLog
from pipelines.media_urls import in_noise, messages
from pipelines.patience import EndsEngineError, GivenUpError, Patience
from serving.app import Endpoint
from serving.refusals import unusable_video
from vidalign import files, prompts
from vidalign.config.run import EvaluateConfig
from vidalign.data.answers import is_correct
from vidalign.errors import ClusterError, DataError, ModelError, VideoError
from vidalign.records import Context
from vidalign.types import EvalAnswer, Example, QuarantineRow
from vidalign.video.fetching import is_node_fault
from vidalign.video.naming import short


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Answers in the order of the examples, and the videos that the endpoint could not use: those are not scored."""

    answers: list[EvalAnswer]
    quarantined: list[QuarantineRow]


def evaluate(
    examples: Sequence[Example], endpoint: Endpoint, *, model_id: str, blind: bool = False, **options: Any
) -> Evaluation:
    """Ask every example at temperature 0, score, and write `stage/{model_id}.parquet`; options and errors: see `evaluate_each`."""
    [found] = evaluate_each(examples, endpoint, [(model_id, blind)], **options)
    return found


def evaluate_each(
    examples: Sequence[Example],
    endpoint: Endpoint,
    asked: Sequence[tuple[str, bool]],
    *,
    stage: pathlib.Path,
    config: EvaluateConfig,
    prompt: str = prompts.PLAIN,
    progress: bool = True,
    at_once: bool = False,
    is_right: Callable[[str, Example], bool] = is_correct,
    made_from: Mapping[str, Any] | None = None,
) -> list[Evaluation]:
    """Evaluate several models of an endpoint, one after the other or `at_once`.

    Args:
        asked: (model id, blind) of each: one of `endpoint.model_ids`, and whether it gets noise instead of each example's video; those
            results are filed under the name "blind".
        stage: the run's eval folder.
        prompt: template with {question}, the same as in training.
        is_right: scores a reply.
        made_from: what else decides the answers, where no manifest of a stage says it.

    Raises:
        ClusterError: the endpoint does not answer, or answers with another policy version than it announced.
        ModelError: the endpoint refuses an example for a reason other than its video.
        ConfigError: the stage holds answers to other questions, or of another policy.
    """
    runs = []
    for model_id, blind in asked:
        assert model_id in endpoint.versions, (model_id, endpoint.model_ids)
        name, version = "blind" if blind else model_id, endpoint.versions[model_id]
        asker = _Asker(
            endpoint=endpoint, model_id=model_id, name=name, version=version, config=config, prompt=prompt, is_right=is_right
        )
        settings = _settings(version, prompt, config, blind=blind) | dict(made_from or {})
        runs.append(_Run(asker, AnswerLog.open(stage / f"{name}.jsonl", settings), examples, stage, blind, progress))
    if at_once:
        # Who is asked alone is alone among all.
        patience = Patience(config.concurrency * len(runs), was_ready=endpoint.was_ready)
        coroutines.run(_all(run.ask(patience) for run in runs))
    for run in [] if at_once else runs:
        coroutines.run(run.ask(Patience(config.concurrency, was_ready=endpoint.was_ready)))
    return [run.finish() for run in runs]


async def _all(askings: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; after an error in one, the others do not go on asking."""
    tasks = [asyncio.create_task(asking) for asking in askings]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def num_unanswered(
    examples: Sequence[Example],
    *,
    model_id: str,
    version: str,
    stage: pathlib.Path,
    config: EvaluateConfig,
    prompt: str = prompts.PLAIN,
    blind: bool = False,
    made_from: Mapping[str, Any] | None = None,
) -> int:
    """How many of the examples `evaluate` would still have to ask. Raises `ConfigError` as it does."""
    path = stage / f"{'blind' if blind else model_id}.jsonl"
    if not path.is_file():
        return len(examples)
    log = AnswerLog.open(path, _settings(version, prompt, config, blind=blind) | dict(made_from or {}))
    return sum(not log.holds(example) for example in examples)


def _settings(version: str, prompt: str, config: EvaluateConfig, *, blind: bool) -> dict[str, Any]:
    return {"policy_version": version, "prompt": prompt, "max_new_tokens": config.max_new_tokens, "blind": blind}


@dataclasses.dataclass(frozen=True)
class _Run:
    """The questions of one evaluation, and where their answers go."""

    asker: _Asker
    log: AnswerLog
    examples: Sequence[Example]
    stage: pathlib.Path
    blind: bool
    progress: bool

    async def ask(self, patience: Patience) -> None:
        """Ask what is not answered yet."""
        todo = [example for example in self.examples if not self.log.holds(example)]
        if not todo:
            return
        contexts = {example.id: example.context for example in todo}
        if self.blind:
            contexts = {id_: in_noise(id_, context, self.stage / "noise") for id_, context in contexts.items()}
        done = len(self.examples) - len(todo)
        bar = shown.bar(f"evaluate {self.asker.name}", len(self.examples), "answer", initial=done) if self.progress else None
        await self.asker.ask_all(todo, contexts, self.log, bar, patience)

    def finish(self) -> Evaluation:
        """Write the table of all answers."""
        found = [self.log.results[example.id] for example in self.examples]
        answers = [result for result in found if isinstance(result, EvalAnswer)]
        files.write_table(self.stage / f"{self.asker.name}.parquet", answers)
        bad = {result.uri: result for result in found if isinstance(result, QuarantineRow)}
        return Evaluation(answers=answers, quarantined=list(bad.values()))


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

    async def ask_all(
        self,
        examples: Sequence[Example],
        contexts: dict[str, Context],
        log: AnswerLog,
        bar: shown.Bar | None,
        patience: Patience,
    ) -> None:
        at_once = asyncio.Semaphore(self.config.concurrency)  # so that not all videos are read before they are sent
        client = openai.AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            timeout=self.config.request_timeout_s,
            max_retries=0,
        )

        async def one(example: Example) -> None:
            async with at_once:
                log.add(example, await self.ask(client, patience, example, contexts[example.id]))
                if bar is not None:
                    bar.update()

        with bar or contextlib.nullcontext(), log.lines:
            async with client:
                await _all(one(example) for example in examples)

    async def ask(
        self, client: openai.AsyncOpenAI, patience: Patience, example: Example, context: Context
    ) -> EvalAnswer | QuarantineRow:
        video = ", ".join(map(short, context.visuals))
        text = prompts.fill(self.prompt, question=example.question)
        try:
            asked = await self._messages(text, context)
        except VideoError as error:
            return QuarantineRow(uri=video, reason=error.reason, message=error.message)
        try:
            completion, latency_s = await self._complete(client, patience, example, asked)
        except EndsEngineError:
            message = (
                "the endpoint's engine died twice on this question, the second time on nothing else; see the replica's log"
            )
            return QuarantineRow(uri=video, reason="crashed", message=message)
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
            **example.context_fields(),
            question=example.question,
            answer=example.answer,
            text=text,
            correct=self.is_right(text, example),
            model_id=self.name,
            policy_version=self.version,
            latency_s=latency_s,
        )

    async def _messages(self, text: str, context: Context) -> list[Any]:
        """The messages of a prompt. A store that does not answer is asked again; what it says of a video is raised."""
        for attempt in range(1, waiting.MAX_ATTEMPTS + 1):
            try:
                return await asyncio.to_thread(messages, text, context, self.endpoint.media_root)
            except VideoError as error:
                if not is_node_fault(error):
                    raise
                if attempt == waiting.MAX_ATTEMPTS:
                    raise DataError(
                        f"{error.message} ({waiting.MAX_ATTEMPTS} attempts). That is no fault of the video: look at the store and the "
                        "network, and start the evaluation again: it continues"
                    ) from error
                await asyncio.sleep(waiting.FIRST_BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    async def _complete(
        self, client: openai.AsyncOpenAI, patience: Patience, example: Example, asked: list[Any]
    ) -> tuple[Any, float]:
        """The completion and its latency in seconds; waits and asks again where the endpoint is busy or restarting."""

        async def send() -> tuple[Any, float]:
            started_at = time.monotonic()
            # Our endpoint names a version. It would apply generation_config.json, which rollouts and training do not.
            extra = {"repetition_penalty": 1.0} if self.version else None
            completion = await client.chat.completions.create(
                model=self.model_id, messages=asked, temperature=0, max_tokens=self.config.max_new_tokens, extra_body=extra
            )
            return completion, time.monotonic() - started_at

        try:
            return await patience.ask(send)
        except GivenUpError as given_up:
            error = given_up.error
            raise ClusterError(
                f"example {example.id}: {self.endpoint.base_url} failed {given_up.attempts} times, the last time with "
                f"{type(error).__name__}: {_short(error)}; see the replicas' logs, or raise "
                f"evaluate.request_timeout_s={self.config.request_timeout_s:g} or lower evaluate.concurrency="
                f"{self.config.concurrency} if it is only slow"
            ) from error


def _message(error: openai.APIError) -> str:
    """What the server wrote, without the client's wrapping."""
    return str(error.body["message"]) if isinstance(error.body, dict) and "message" in error.body else error.message


def _short(error: openai.APIError) -> str:
    return " ".join(_message(error).split())[:400]
