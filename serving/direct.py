"""An endpoint with one policy: vLLM's own OpenAI routes in the replica that holds the engine.

    client ── HTTP ── HAProxy ── replica of PolicyServer (vLLM's routes, reduced by `policy_routes`, and the engine)

HTTP server and engine client share a process, so requests and replies need not be sent from one to the other. This module imports
vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException
from starlette.datastructures import MutableHeaders
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from serving.chat_rules import ChatRules
from serving.ingress import VERSION_HEADER

if TYPE_CHECKING:
    from ray.serve.llm.openai_api_models import ModelCard
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROUTES = ("/v1/chat/completions", "/v1/completions")


def policy_routes(app: FastAPI, card: ModelCard, rules: ChatRules) -> FastAPI:
    """Reduce vLLM's application to the routes and rules of `PolicyIngress`: answers name the policy, prompts are those of training.

    Args:
        app: what vLLM builds for its own server, with its state set.
        card: the model's card; `metadata` names its "policy_version".
        rules: what is done with chat requests.
    """
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]
    cards = {"object": "list", "data": [card.model_dump()]}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return cards

    @app.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> dict[str, Any]:
        if model_id != card.id:
            raise HTTPException(404, f"Unknown model: {model_id}")
        return cards["data"][0]

    chat = app.state.openai_serving_chat
    answer = chat.create_chat_completion

    async def create_chat_completion(request: ChatCompletionRequest, *args: Any, **kwargs: Any) -> Any:
        if refusal := rules.refusal(request):
            return chat.create_error_response(refusal)
        rules.apply(request)
        return await answer(request, *args, **kwargs)

    chat.create_chat_completion = create_chat_completion
    app.middleware_stack = None  # vLLM has already built it; Starlette rebuilds it at the next request
    app.add_middleware(VersionHeader, version=card.metadata["policy_version"])
    return app


class VersionHeader:
    """ASGI middleware that adds the policy's version as a header to every successful answer."""

    def __init__(self, app: ASGIApp, version: str) -> None:
        self.app, self.version = app, version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                MutableHeaders(scope=message)[VERSION_HEADER] = self.version
            await send(message)

        await self.app(scope, receive, named if scope.get("path") in ROUTES else send)
