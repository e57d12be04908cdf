"""vLLM's own OpenAI routes in the replica that holds the engine, as `serving.gate` wants them behind it.

    gate ── EngineApp ── vLLM's FastAPI application, of which two routes are left ── engine

HTTP handling and engine client share a process, as in vLLM's own server. This module imports vLLM.
"""

from __future__ import annotations

import contextvars
import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders

from serving import forms
from serving.adapters import SCOPE
from serving.answer import ERROR_EVENT, USAGE
from serving.decoders import client
from serving.engine_adapters import Adapters
from serving.gate import ASKED_TOKENS, CLIENT, IN_FORM
from serving.leaving import ended_with_its_client
from serving.replies import DIED, RESTARTING, Refusal, error_reply
from serving.request_rules import MAX_TOKENS_HEADER
from serving.schema import BODIES

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send


@dataclasses.dataclass(kw_only=True)
class Prompt:
    """What is learnt of a request while vLLM prepares it."""

    num_tokens: int = 0


_NAME = re.compile(r"(?!body$|str$|list$|int$|float$|bool$|dict$)[a-z0-9_]+")  # of a field, and none of vLLM's types
_prompt: contextvars.ContextVar[Prompt] = contextvars.ContextVar("prompt")


class EngineApp:
    """vLLM's application, which now says how many tokens a reply took, that its length was lowered, and that the engine is down."""

    def __init__(self, app: FastAPI, engine: Any, max_model_len: int) -> None:
        """`app`: what vLLM builds for its own server, with its state set; `engine`: its engine client."""
        app.router.routes = [route for route in app.router.routes if getattr(route, "path", None) in BODIES]
        app.add_exception_handler(RequestValidationError, _invalid)
        app.middleware_stack = None  # vLLM has already built it; Starlette rebuilds it at the next request
        for name in ("openai_serving_chat", "openai_serving_completion"):
            if serving := getattr(app.state, name, None):
                serving._extract_prompt_len = _noted(serving._extract_prompt_len)
        self._app, self._engine, self._max_model_len = app, engine, max_model_len
        self._forms = forms.of_engine(engine.vllm_config)
        self.adapters = Adapters(app.state, engine) if engine.vllm_config.lora_config else None

    @property
    def works(self) -> bool:
        """Whether the engine can take requests."""
        return not self._engine.errored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self.works:
            raise Refusal(503, "the engine is down", code=RESTARTING)
        client.set(scope.get(CLIENT, ""))
        if scope.get(IN_FORM) and self._forms is not None:
            receive = await self._checked(self._forms, receive)
        if SCOPE in scope:
            await self._use_adapter(*scope[SCOPE])
        prompt = Prompt()
        token = _prompt.set(prompt)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 500 and not self.works:
                    raise Refusal(503, "the engine died", code=DIED)
                if most := self._lowered_to(scope, prompt):
                    MutableHeaders(scope=message)[MAX_TOKENS_HEADER] = str(most)
            elif not self.works and message.get("body", b"").startswith(ERROR_EVENT):
                raise Refusal(503, "the engine died", code=DIED)
            await send(message)

        try:
            await ended_with_its_client(self._app, scope, receive, send_named)
        except Refusal:
            raise
        except Exception:
            if not self.works:
                raise Refusal(503, "the engine died", code=DIED) from None
            raise
        finally:
            _prompt.reset(token)
        usage = getattr(scope["state"].get("request_metadata"), "final_usage_info", None)
        if usage is not None:
            await send(
                {"type": USAGE, "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens or 0}
            )

    async def _checked(self, known: forms.Forms, receive: Receive) -> Receive:
        """Raises `Refusal` where the form of a reply takes too long; else what gives the request once more."""
        request: Message | None = await receive()
        assert request is not None
        await known.check(json.loads(request["body"]))

        async def receive_again() -> Message:
            nonlocal request
            if request is None:
                return await receive()
            message, request = request, None
            return message

        return receive_again

    async def _use_adapter(self, name: str, folder: str) -> None:
        """Raises where the adapter cannot be used, rather than answer as the base does."""
        assert self.adapters is not None, "the endpoint's table has adapters only where this engine takes them"
        try:
            await self.adapters.use(name, folder)
        except Exception:
            if not self.works:
                raise Refusal(503, "the engine died", code=DIED) from None
            raise

    def _lowered_to(self, scope: Scope, prompt: Prompt) -> int | None:
        """How many tokens a reply may have, if that is less than its request asks for: vLLM lowers it without a word."""
        left = self._max_model_len - prompt.num_tokens
        return left if prompt.num_tokens and scope.get(ASKED_TOKENS, 0) > left else None


def _noted(extract: Any) -> Any:
    def extract_prompt_len(prompt: Any) -> int:
        number = extract(prompt)
        if noted := _prompt.get(None):
            noted.num_tokens = max(noted.num_tokens, number)
        return number

    return extract_prompt_len


async def _invalid(request: Request, error: Exception) -> Response:
    """vLLM's handler writes paths of its source into the message."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    found = next(
        (each for each in errors if not each["type"].endswith("_type")), errors[0]
    )  # of what may be of several types
    place = ".".join(str(part) for part in found["loc"] if _NAME.fullmatch(str(part)))
    message = str(found["msg"]).removeprefix("Value error, ")
    return error_reply(Refusal(400, f"{place}: {message}".removeprefix(": ")), "")
