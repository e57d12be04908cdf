"""Ray Serve LLM's OpenAI routes, in which every model card and every answer names its policy version.

This module imports vLLM (through Ray). It is imported by the process that builds the application and by its replicas.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException
from ray.serve.llm.ingress import OpenAiIngress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from serving.chat_rules import ChatRules

VERSION_HEADER = "x-policy-version"


def policy_card(card: Any, policy: dict[str, Any]) -> Any:
    """A model's card with its policy in `metadata`: "policy_version", "parent", "frame_spec"."""
    return card.model_copy(update={"metadata": {**card.metadata, **policy}})


class PolicyIngress(OpenAiIngress):
    """`/v1/models` shows each policy's version in `metadata`; answers carry it as a header and as `system_fingerprint`."""

    def __init__(
        self,
        llm_deployments: Any,
        model_cards: Any,
        *,
        policies: dict[str, dict[str, Any]],
        rules: dict[str, ChatRules],
        **kwargs: Any,
    ) -> None:
        """By model id, `policies` are metadata, with at least "policy_version", and `rules` what is done with chat requests."""
        cards = {model_id: policy_card(card, policies[model_id]) for model_id, card in model_cards.items()}
        super().__init__(llm_deployments, cards, **kwargs)
        self._rules = rules
        self._versions = {model_id: metadata["policy_version"] for model_id, metadata in policies.items()}

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        rules = self._rules.get(body.model or next(iter(self._rules)))
        if rules is not None:  # an unknown model is refused below
            if refusal := rules.refusal(body):
                return _error(400, refusal)
            rules.apply(body)
        return await self._named(super().chat(body, request), body.model)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        return await self._named(super().completions(body, request), body.model)

    async def _named(self, answer: Awaitable[Response], model_id: str | None) -> Response:
        """The answer with its policy's version, or the client's mistake as an OpenAI error (Ray's message repeats it three times)."""
        try:
            response = await answer
        except OpenAIHTTPException as error:
            if error.status_code >= 500:
                raise
            return _error(error.status_code, error.message)
        except HTTPException as error:
            return _error(error.status_code, str(error.detail))
        # A request may omit the model if only one is served.
        response.headers[VERSION_HEADER] = self._versions[model_id or next(iter(self._versions))]
        return response


def _error(status: int, message: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)
