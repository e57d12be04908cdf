"""Which web pages' scripts may ask an endpoint: those that are listed, without cookies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

from serving.catalog import VERSION_HEADER
from serving.observed import SERVES_ID, new_id
from serving.replies import ID_HEADER, Refusal, error_reply
from serving.request_rules import FRAMES_HEADER, MAX_TOKENS_HEADER

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.types import ASGIApp

READABLE = (ID_HEADER, VERSION_HEADER, MAX_TOKENS_HEADER, FRAMES_HEADER, "retry-after", "retry-after-ms")


class Cors(CORSMiddleware):
    """An application that a browser lets the scripts of these pages ask, with any header: OpenAI's own sends a dozen."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=READABLE
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether a script may; a no in the form of every error."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin, method = request_headers["origin"], request_headers["access-control-request-method"]
        message = f"scripts of {origin[:80]!r} may not ask this endpoint by {method[:20]} (serve.access.cors_origins)"
        of_serve = SERVES_ID.fullmatch(request_headers.get(ID_HEADER, ""))
        request_id = of_serve[0] if of_serve else new_id()
        refused = error_reply(Refusal(400, message, vary=response.headers["vary"]), request_id)
        if not of_serve:
            refused.headers[ID_HEADER] = request_id
        return refused
