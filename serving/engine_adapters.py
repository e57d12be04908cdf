"""Adapters in the process that holds their base's engine: each is loaded when a request first needs it, and tried once.

This module imports vLLM.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from typing import Any

from vllm import SamplingParams
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

PROBE = "Which way does it move?"  # what both are asked, to see that they differ
NUM_LOGPROBS = 5
_adapter: contextvars.ContextVar[str] = contextvars.ContextVar("adapter", default="")  # of the running request

log = logging.getLogger("vidalign.serving")


class AdapterError(Exception):
    """An adapter cannot be served."""


class Adapters:
    """The adapters of one engine. vLLM knows each by its name, ID@VERSION, which is of these weights alone."""

    def __init__(self, state: Any, engine: Any) -> None:
        """`state`: that of vLLM's application; `engine`: its engine client."""
        self._models, self._engine = state.openai_serving_models, engine
        self._tried: dict[str, str] = {}  # name → folder
        self._lock = asyncio.Lock()
        self._numbers = itertools.count()
        named = self._models.model_name
        self._models.model_name = lambda lora=None: named(lora).partition("@")[0] if lora is not None else named()
        for name in ("openai_serving_chat", "openai_serving_completion"):
            if serving := getattr(state, name, None):
                _name_versions(serving)

    async def use(self, name: str, folder: str) -> None:
        """Let the running request be answered by an adapter. Raises `AdapterError` where it cannot."""
        if self._tried.get(name) != folder:
            async with self._lock:
                if self._tried.get(name) != folder:
                    await self._load(name, folder)
                    self._tried[name] = folder
        _adapter.set(name)

    async def _load(self, name: str, folder: str) -> None:
        self._tried.pop(name, None)
        self._models.lora_requests.pop(name, None)
        refused = await self._models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=folder))
        if name not in self._models.lora_requests:
            raise AdapterError(" ".join(str(refused.error.message).split())[:300])
        lora = self._models.lora_requests[name]
        if await self._probe(None) == await self._probe(lora):
            del self._models.lora_requests[name]
            raise AdapterError("vLLM loads it, and answers as the base does: none of its weights is used")
        log.info("%s is loaded from %s", name, folder)

    async def _probe(self, lora: Any) -> dict[int, float]:
        """The log-probs of the likeliest first tokens of a reply."""
        params = SamplingParams(max_tokens=1, temperature=0, logprobs=NUM_LOGPROBS)
        number = f"adapter-probe-{next(self._numbers)}"
        async for output in self._engine.generate(PROBE, params, number, lora_request=lora):
            last = output
        return {token: found.logprob for token, found in last.outputs[0].logprobs[0].items()}


def _name_versions(serving: Any) -> None:
    """Let vLLM write an adapter's version where it writes that of its base (`system_fingerprint`)."""
    of_base = serving.system_fingerprint

    def fingerprint(self: Any) -> str | None:
        return _adapter.get().partition("@")[2] or of_base

    kind = type(serving)
    serving.__class__ = type(kind.__name__, (kind,), {"system_fingerprint": property(fingerprint)})
