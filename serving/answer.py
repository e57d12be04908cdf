"""The way of an answer back to its client: the endpoint's headers, and errors in its own words."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

from serving.observed import Record
from serving.replies import DIED, ID_HEADER, Refusal, error_reply

if TYPE_CHECKING:
    from starlette.types import Message, Send

USAGE = "vidalign.usage"  # the message with the tokens of a reply
LARGEST_ERROR = 2**16  # bytes of vLLM's
ERROR_EVENT = b'data: {"error"'

log = logging.getLogger("vidalign.serving")


class Answer:
    """Passes an answer on to the client, with the endpoint's headers; holds back what vLLM says of its errors."""

    def __init__(self, send: Send, record: Record, *, names_itself: bool = True) -> None:
        """`names_itself`: whether the request's id is to be added; Ray Serve does so for the one that came with the request."""
        self._send, self.record = send, record
        self.headers = {ID_HEADER: record.id} if names_itself else {}
        self.inner = self.begun = self.broke = False
        self.held: tuple[int, bytes] | None = None

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == USAGE:
            self.record.prompt_tokens, self.record.completion_tokens = message["prompt_tokens"], message["completion_tokens"]
            return
        if kind == "http.response.start":
            if self.inner and message["status"] >= 400:
                self.held = (message["status"], b"")
                return
            self.record.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self.headers.items():
                headers.setdefault(name, value)
            self.begun = True
        elif self.held is not None and self.inner:
            status, body = self.held
            self.held = (status, (body + message.get("body", b""))[:LARGEST_ERROR])
            return
        elif self.record.first_s is None:
            self.record.first_s = self.record.since()
        if self.inner and message.get("body", b"").startswith(ERROR_EVENT):
            self.broke = True
            status, code = self.record.status, DIED
            log.error("request %s: the stream ended in %s", self.record.id, message["body"][:1000])
            refusal = Refusal(status, "the engine failed on this request", code=code)
            message = {**message, "body": _event(refusal, self.record.id)}
        await self._send(message)

    async def end_in_error(self, refusal: Refusal) -> None:
        """End a stream that has begun with an error event."""
        self.record.why = refusal.message
        await self._send({"type": "http.response.body", "body": _event(refusal, self.record.id) + b"data: [DONE]\n\n"})


def _event(refusal: Refusal, request_id: str) -> bytes:
    return b"data: " + bytes(error_reply(refusal, request_id).body) + b"\n\n"
