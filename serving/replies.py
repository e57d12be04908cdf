"""The errors of the endpoint: one JSON form, one sentence, and an id under which the log says more."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from starlette.responses import Response

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "overloaded_error",
}
ID_HEADER = "x-request-id"
LONGEST = 600  # characters of a message
LATEST_S = 60.0  # OpenAI's clients take no later time for what it says
RESTARTING = "engine_restarting"  # the engine was down when the request came
DIED = "engine_died"  # the engine ended while it worked on the request
GAVE_UP = "Internal server error"  # vLLM's words where its grammar does not take the token that it has written
_MESSAGE = re.compile(r'"message": ?"([^"\\]{1,2000})')
_INSIDES = (  # of vLLM's messages
    (re.compile(r"Failed to apply \w+ on data=.*", re.DOTALL), "the model's processor cannot use this video or image"),
    (re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: "), ""),
)
_SENT = re.compile(r", got | \(parameter=")
_TRACE = re.compile(r'Traceback \(most recent call last\)|\bFile "[^"]*", line \d+')


class ClientLeft(Exception):
    """The client closed its connection before it had its answer."""


class Refusal(Exception):
    """A request that is not answered; `status` and `message` are the reply."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, retry_after_s: float | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if retry_after_s is not None:
            self.headers |= come_back(retry_after_s)

    @property
    def logged(self) -> str:
        """The message without what the client sent, which may be a part of its prompt."""
        return _SENT.split(self.message)[0]


def come_back(after_s: float) -> dict[str, str]:
    """When to ask again, in whole seconds and, as OpenAI's clients read it, in milliseconds that differ from reply to reply.

    Clients that were turned away together would come back together, and leave the places empty in between.
    """
    spread_s = random.uniform(0.0, max(1.0, min(5.0, after_s / 2)))
    milliseconds = 1000 * min(LATEST_S, max(0.5, after_s) + spread_s)
    return {"retry-after": str(max(1, round(after_s))), "retry-after-ms": str(round(milliseconds))}


def error_reply(refusal: Refusal, request_id: str) -> Response:
    """The reply to a refused request."""
    error = {
        "message": refusal.message,
        "type": TYPES.get(refusal.status, "invalid_request_error"),
        "param": None,
        "code": refusal.code or refusal.status,
        "request_id": request_id,
    }
    return json_reply({"error": error}, refusal.status, refusal.headers)


def json_reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON as Starlette would send it."""
    return Response(json.dumps(content), status, headers, media_type="application/json")


def refusal_of(status: int, body: bytes, *, in_form: bool = False) -> Refusal:
    """What vLLM's error says, as the endpoint says it: a client's mistake in one line, and of the engine's own faults nothing.

    `in_form`: the reply was to have a form, which is at fault where vLLM gives up a reply and says no more.
    """
    message = _said(body)
    if status >= 500 and in_form and message == GAVE_UP:
        return Refusal(400, "no reply can be written in the form that is asked for: its schema or grammar leads nowhere")
    if status >= 500:
        return internal()
    status = 400 if status == 422 else status
    return Refusal(status, one_line(message) or "the request cannot be answered")


def refusal_of_event(event: bytes, *, in_form: bool = False) -> Refusal:
    """The same of an error that vLLM says within a stream."""
    said = event.removeprefix(b"data: ")
    found = re.search(rb'"code": ?(\d{3})\b', said)
    return refusal_of(int(found[1]) if found else 500, said, in_form=in_form)


def _said(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError:  # more than is held of an error
        cut = _MESSAGE.search(body.decode(errors="replace"))
        return cut[1] if cut else ""
    error = found.get("error", found) if isinstance(found, dict) else {}
    return str(error.get("message") or error.get("detail") or "") if isinstance(error, dict) else str(error)


def internal() -> Refusal:
    """The reply where the endpoint is at fault."""
    return Refusal(500, "the endpoint failed on this request; its log says why under the request_id of this reply")


def one_line(message: str) -> str:
    """A message without line breaks, tracebacks and the rest of what follows them."""
    for pattern, says in _INSIDES:
        message = pattern.sub(says, message)
    found = _TRACE.search(message)
    text = " ".join((message[: found.start()] if found else message).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
