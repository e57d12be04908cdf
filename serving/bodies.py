"""The body of a request: read whole within bounds, and parsed."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import TYPE_CHECKING, Any

import pydantic_core
from starlette.datastructures import Headers

from serving.admission import Bytes
from serving.replies import ClientLeft, Refusal
from vidalign.config.serving import LimitsConfig

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

LARGE_JSON = 2**20  # bytes that are parsed beside the event loop
MOST_VALUES = 250_000  # in one body: while more are parsed, which nothing can interrupt, everybody else would wait
MARKS = (b",", b"[", b"{")


async def read_body(scope: Scope, receive: Receive, limits: LimitsConfig, held_bytes: Bytes) -> bytes:
    """The whole body, whose bytes are then held. Raises `Refusal` for one that is too large, or that does not come."""
    headers, most = Headers(scope=scope), int(limits.max_body_mb * 2**20)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"the body must be application/json, got Content-Type {kind[:60]!r}", connection="close")
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise Refusal(415, f"the body must not be compressed, got Content-Encoding {coding[:60]!r}", connection="close")
    too_large = Refusal(
        413,
        f"a body may have {most:,} bytes (serve.limits.max_body_mb); send the video as a file: or https: url",
        connection="close",
    )
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        raise too_large
    chunks: list[bytes] = []
    held = 0
    try:
        while True:
            async with asyncio.timeout(limits.body_idle_s):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            if held + len(chunk) > most:
                raise too_large
            held_bytes.take(len(chunk))
            held += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)
    except TimeoutError:
        held_bytes.give_back(held)
        raise Refusal(
            408,
            f"nothing of the body came for {limits.body_idle_s:g} s (serve.limits.body_idle_s)",
            connection="close",
        ) from None
    except BaseException:
        held_bytes.give_back(held)
        raise


async def parsed(body: bytes) -> Any:
    """The JSON of a body. Raises `Refusal`."""
    parse = functools.partial(_parse, body)
    try:
        return parse() if len(body) < LARGE_JSON else await asyncio.to_thread(parse)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {str(error)[:100]}") from None


def _parse(body: bytes) -> Any:
    if (number := sum(body.count(mark) for mark in MARKS)) > MOST_VALUES:
        raise Refusal(
            400, f"the body has {number:,} values or commas, and one request may have {MOST_VALUES:,}; send several"
        )
    found = pydantic_core.from_json(body, allow_inf_nan=False)
    if _may_have_doubles(body, found) and (name := _doubled(body)) is not None:
        raise Refusal(
            400, f"the body has the key {name[:60]!r} twice in one object, and only one can be meant; leave one out"
        )
    return found


def _may_have_doubles(body: bytes, found: Any) -> bool:
    """Whether the text has more keys than were parsed: every colon of JSON follows a key or is inside a text."""
    number, inside = 0, [found]
    while inside:
        value = inside.pop()
        if isinstance(value, str):
            number += value.count(":")
        elif isinstance(value, dict):
            number += len(value) + "".join(value).count(":")
            inside += value.values()
        elif isinstance(value, list):
            inside += value
    return number != body.count(b":")  # also where one in a text is written as an escape


def _doubled(body: bytes) -> str | None:
    """The first key that an object of the body has twice."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                found.append(name)
            seen.add(name)

    json.loads(body, object_pairs_hook=look)
    return found[0] if found else None
