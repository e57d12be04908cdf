"""Judge: a text model in vLLM, or behind any OpenAI-compatible endpoint, that scores responses or rewrites ground truths.

    rows ─► work(rows, judge, chat, name) ─► rows, on disk

What is asked and how replies are read are functions passed to the actor: `judging.py` and `rewriting.py` in vidalign/recipes.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from cluster.engines import actor_environment, judge_options
from vidalign import files
from vidalign.config.recipes import JudgeConfig
from vidalign.errors import ConfigError, ModelError
from vidalign.recipes import judging
from vidalign.recipes.judging import Chat, Messages


class Work(Protocol):
    """What a judge does with a batch of rows; `name` identifies the judge."""

    def __call__(
        self, rows: Sequence[dict[str, Any]], config: JudgeConfig, chat: Chat, name: str
    ) -> list[dict[str, Any]]: ...


class Judge:
    """Ray Data `map` callable: one row is one batch of the task's rows; what is made of them is on disk before it returns."""

    def __init__(self, config: dict[str, Any], parts: str, work: Work) -> None:
        self._config = JudgeConfig(**config)
        self._parts = pathlib.Path(parts)
        self._work = work
        self._chat: Chat | None = None
        self._name = ""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Columns: part (int), rows (JSON list of the task's rows)."""
        if self._chat is None:
            self._chat, model = (vllm_chat if self._config.kind == "vllm" else openai_chat)(self._config)
            self._name = f"{self._config.kind}:{model}:{judging.prompt_version(self._config.prompt)}"
        rows = json.loads(row["rows"])
        made = self._work(rows, self._config, self._chat, self._name)
        files.write_json(files.part_path(self._parts, int(row["part"])), made)
        return {"judged": len(rows)}


def openai_chat(config: JudgeConfig) -> tuple[Chat, str]:
    """A chat with an OpenAI-compatible endpoint, `concurrency` requests at a time, and the model's name.

    Raises:
        ConfigError: by the chat, if the endpoint cannot be reached, refuses the key, or does not have the model.
    """
    import openai

    key = os.environ.get(config.api_key_env) or "none"
    client = openai.OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=config.max_retries)

    def reply(messages: Messages) -> str:
        try:
            answer = client.chat.completions.create(
                model=config.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0.0,
                max_tokens=config.max_new_tokens,
            )
        except openai.OpenAIError as error:
            raise ConfigError(
                f"the judge {config.model} at {config.base_url} did not answer: {' '.join(str(error).split())[:300]}. Check "
                f"recipe.judge.base_url and recipe.judge.model, and that {config.api_key_env} holds its key; then run the same "
                "command again: the judgements made so far are kept"
            ) from error
        return answer.choices[0].message.content or ""

    def chat(conversations: Sequence[Messages]) -> list[str]:
        with ThreadPoolExecutor(config.concurrency) as pool:
            return list(pool.map(reply, conversations))

    return chat, config.model


def vllm_chat(config: JudgeConfig) -> tuple[Chat, str]:
    """A chat with a model folder in a vLLM engine of this process, and its content hash.

    Raises:
        ModelError: vLLM cannot serve the folder or, by the chat, refuses a prompt.
    """
    from vidalign.model.checkpoint import policy_version

    for name, value in actor_environment(config.num_gpus).items():
        os.environ.setdefault(name, value)
    import vllm
    from vllm.exceptions import VLLMValidationError

    try:
        engine = vllm.LLM(model=config.model, **judge_options(config))
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise ModelError(f"vLLM cannot serve the judge {config.model}: {' '.join(str(error).split())[:600]}") from error
    params = vllm.SamplingParams(temperature=0.0, max_tokens=config.max_new_tokens)

    def chat(conversations: Sequence[Messages]) -> list[str]:
        try:
            outputs = engine.chat(list(conversations), params, use_tqdm=False)  # type: ignore[arg-type]
        except (VLLMValidationError, ValueError) as error:
            raise ModelError(
                f"vLLM refused a judge's prompt at recipe.judge.max_model_len={config.max_model_len:,}: "
                f"{' '.join(str(error).split())[:400]}. Raise recipe.judge.max_model_len, or lower recipe.judge.max_response_chars"
            ) from error
        return [output.outputs[0].text for output in outputs]

    return chat, policy_version(config.model).version
