"""Ray Serve LLM's OpenAI routes, with every model card and every answer naming its policy version.

This module imports vLLM (through Ray) and is imported by the process that builds the application and by its replicas.
"""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request, Response
from ray.serve.llm.ingress import OpenAiIngress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

VERSION_HEADER = "x-policy-version"
SAMPLING_OVERRIDES = ("media_io_kwargs", "mm_processor_kwargs")


class PolicyIngress(OpenAiIngress):
    """`/v1/models` shows each policy's version in `metadata`; answers carry it as a header and as `system_fingerprint`."""

    def __init__(
        self, llm_deployments: Any, model_cards: Any, *, policies: dict[str, dict[str, Any]], **kwargs: Any
    ) -> None:
        """Args: policies: model id → metadata with at least "policy_version"."""
        cards = {
            model_id: card.model_copy(update={"metadata": {**card.metadata, **policies[model_id]}})
            for model_id, card in model_cards.items()
        }
        super().__init__(llm_deployments, cards, **kwargs)
        self._versions = {model_id: metadata["policy_version"] for model_id, metadata in policies.items()}

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        for name in SAMPLING_OVERRIDES:
            if getattr(body, name, None):
                raise HTTPException(
                    400,
                    f"{name} is not accepted: this endpoint samples frames as the model was trained (see metadata.frame_spec "
                    "in /v1/models); leave it out",
                )
        return self._name_version(await super().chat(body, request), body.model)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        return self._name_version(await super().completions(body, request), body.model)

    def _name_version(self, response: Response, model_id: str | None) -> Response:
        """A request may leave the model out where only one is served."""
        response.headers[VERSION_HEADER] = self._versions[model_id or next(iter(self._versions))]
        return response
