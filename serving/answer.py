"""The way of an answer back to its client: the endpoint's headers, and errors in its own words."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

from serving.observed import Record
from serving.replies import DIED, ID_HEADER, Refusal, error_reply, refusal_of, refusal_of_event

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
        self.in_form = False  # whether the reply is to have a form
        self.held: Refusal | None = None
        self._start: Message | None = None
        self._error = (0, b"")

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == USAGE:
            self.record.prompt_tokens, self.record.completion_tokens = message["prompt_tokens"], message["completion_tokens"]
            return
        if kind == "http.response.start":
            if self.inner:
                self._start = message  # until it is known whether what comes is an error
            else:
                await self._begin(message)
            return
        if self.inner and self._start is not None and not await self._begins(message):
            return
        if self.record.first_s is None:
            self.record.first_s = self.record.since()
        if self.inner and message.get("body", b"").startswith(ERROR_EVENT):
            message = {**message, "body": self._error_event(message["body"])}
        await self._send(message)

    async def _begins(self, message: Message) -> bool:
        """Whether the engine's answer begins with this message. Where it is an error, it is put together in `held`."""
        assert self._start is not None
        body = message.get("body", b"")
        if self.held is None and self._start["status"] < 400 and not body.startswith(ERROR_EVENT):
            start, self._start = self._start, None
            await self._begin(start)
            return True
        if self._start["status"] < 400:  # a stream that begins with an error; the mark of its end follows
            if self.held is None:
                self._log(body)
                self.held = refusal_of_event(body, in_form=self.in_form)
            return False
        status, before = self._start["status"], self._error[1]
        self._error = (status, (before + body)[:LARGEST_ERROR])
        if not message.get("more_body"):
            if status >= 500:
                self._log(self._error[1])
            self.held = refusal_of(*self._error, in_form=self.in_form)
        return False

    async def _begin(self, start: Message) -> None:
        self.record.status = start["status"]
        headers = MutableHeaders(scope=start)
        for name, value in self.headers.items():
            headers.setdefault(name, value)
        self.begun = True
        await self._send(start)

    def _error_event(self, event: bytes) -> bytes:
        """An error of the engine within a stream, as the endpoint says it."""
        refusal = refusal_of_event(event, in_form=self.in_form)
        if refusal.status >= 500:
            self.broke = True
            self._log(event)
            refusal = Refusal(503, "the engine failed on this request", code=DIED)
        return _event(refusal, self.record.id)

    def _log(self, said: bytes) -> None:
        log.error("request %s failed in the engine: %s", self.record.id, said.decode(errors="replace")[:2000])

    async def end_in_error(self, refusal: Refusal) -> None:
        """End a stream that has begun with an error event."""
        self.record.why = refusal.logged
        await self._send({"type": "http.response.body", "body": _event(refusal, self.record.id) + b"data: [DONE]\n\n"})


def _event(refusal: Refusal, request_id: str) -> bytes:
    return b"data: " + bytes(error_reply(refusal, request_id).body) + b"\n\n"
