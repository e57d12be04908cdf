"""Questions to a served policy over HTTP: concurrent, resumable, and a broken video never counts as a wrong answer.

    examples ── messages with urls (media_urls) ── endpoint (decodes by its FrameSpec, greedy) ── text ── is_correct ── EvalAnswer

Every result is appended to `eval/{model_id}.jsonl` as it arrives; asking again continues there. The finished table is
`eval/{model_id}.parquet`. A *blind* run asks the same questions on noise: what a model scores without seeing the video.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import openai
import tqdm

from pipelines import patience as waiting
from pipelines.media_urls import in_noise, messages
from pipelines.patience import EndsEngineError, GivenUpError, Patience
from serving.app import Endpoint
from serving.refusals import unusable_video
from vidalign import files, prompts
from vidalign.config.run import EvaluateConfig
from vidalign.data.answers import is_correct
from vidalign.errors import ClusterError, ConfigError, DataError, ModelError, VideoError
from vidalign.records import Context
from vidalign.types import EvalAnswer, Example, QuarantineRow, stable_hash
from vidalign.video.fetching import is_node_fault
from vidalign.video.naming import short


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
    contexts = {example.id: example.context for example in examples}
    if blind:
        contexts = {id_: in_noise(id_, context, stage / "noise") for id_, context in contexts.items()}
    asker = _Asker(
        endpoint=endpoint, model_id=model_id, name=name, version=version, config=config, prompt=prompt, is_right=is_right
    )
    log = _Log.open(stage / f"{name}.jsonl", _settings(version, prompt, config, blind=blind) | dict(made_from or {}))
    todo = [example for example in examples if not log.holds(example)]
    if todo:
        asyncio.run(asker.ask_all(todo, contexts, log, _bar(name, len(examples), len(examples) - len(todo), progress)))
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
    log = _Log.open(path, _settings(version, prompt, config, blind=False) | dict(made_from or {}))
    return sum(not log.holds(example) for example in examples)


def _settings(version: str, prompt: str, config: EvaluateConfig, *, blind: bool) -> dict[str, Any]:
    return {"policy_version": version, "prompt": prompt, "max_new_tokens": config.max_new_tokens, "blind": blind}


@dataclasses.dataclass(kw_only=True)
class _Log:
    """Results so far, one JSON line each, after a line that says which questions they answer."""

    path: pathlib.Path
    results: dict[str, EvalAnswer | QuarantineRow]
    keys: dict[str, str]

    @classmethod
    def open(cls, path: pathlib.Path, settings: dict[str, Any]) -> _Log:
        log = cls(path=path, results={}, keys={})
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # the process was killed while it wrote this line
            files.write_text_atomic(path, "".join(lines))
        if not lines:
            files.write_text_atomic(path, json.dumps(settings) + "\n")
            return log
        begun_with = json.loads(lines[0])
        if begun_with != settings:
            changed = ", ".join(key for key in settings if begun_with.get(key) != settings[key])
            raise ConfigError(f"{path} was begun with another {changed}; delete the file to evaluate again")
        for line in lines[1:]:
            row = json.loads(line)
            record = EvalAnswer if "answer" in row["result"] else QuarantineRow
            log.results[row["example_id"]] = record.from_row(row["result"])
            log.keys[row["example_id"]] = row["example"]
        return log

    def holds(self, example: Example) -> bool:
        """Whether there is a result for exactly this question."""
        return self.keys.get(example.id) == stable_hash(example.to_row())

    def add(self, example: Example, result: EvalAnswer | QuarantineRow) -> None:
        key = stable_hash(example.to_row())
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"example_id": example.id, "example": key, "result": result.to_row()}) + "\n")
        self.results[example.id], self.keys[example.id] = result, key


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

    async def ask_all(self, examples: Sequence[Example], contexts: dict[str, Context], log: _Log, bar: tqdm.tqdm) -> None:
        patience = Patience(self.config.concurrency)
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
            completion = await client.chat.completions.create(
                model=self.model_id, messages=asked, temperature=0, max_tokens=self.config.max_new_tokens
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


def _bar(name: str, total: int, done: int, progress: bool) -> tqdm.tqdm:
    return tqdm.tqdm(total=total, initial=done, desc=f"evaluate {name}", unit="answer", disable=not progress)


def _message(error: openai.APIError) -> str:
    """What the server wrote, without the client's wrapping."""
    return str(error.body["message"]) if isinstance(error.body, dict) and "message" in error.body else error.message


def _short(error: openai.APIError) -> str:
    return " ".join(_message(error).split())[:400]
