"""What a reply has to look like (a JSON schema, a regex, a grammar) is compiled in a child under a deadline before vLLM sees it.

    request ── its forms ── known ones ──────────────────────► vLLM
                    └ a child (serving/form_child.py) ── done ──┘
                                                      └ too slow: 400

vLLM reads a form where everybody's requests pass, and compiles it in a thread that nothing can stop. A form is compiled here once;
no client has all children, so one that is as slow as it may be delays no other client's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from serving.admission import Admission
from serving.decoders import client
from serving.replies import Refusal

VARIABLE = "VIDALIGN_FORM_S"
MOST_CHILDREN, MOST_WAITING, MOST_WAIT_S = 2, 4096, 60.0  # the gate bounds how many requests there are
MOST_KNOWN = 4096
PARSE_SHARE = 0.25  # of the time of a form: vLLM parses where nothing else goes on meanwhile
START_S = 120.0
TOO_SLOW = {signal.SIGPROF, signal.SIGALRM}
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}

log = logging.getLogger("vidalign.serving")


class Forms:
    """The children of one replica, and what they have found. `settings` gives the first line of a child, which may take a while."""

    def __init__(self, settings: Callable[[], dict[str, Any]], limit_s: float) -> None:
        self._settings, self._limit_s = settings, limit_s
        self._first_line = ""
        self._places = Admission(MOST_CHILDREN, MOST_WAITING, MOST_WAIT_S, most_each=1)
        self._idle: list[subprocess.Popen[str]] = []
        self._known: collections.OrderedDict[bytes, str] = collections.OrderedDict()

    async def check(self, body: dict[str, Any]) -> None:
        """Raises `Refusal` where what is asked for takes too long to compile."""
        for name, kind, spec in forms_of(body):
            key = hashlib.sha256(f"{kind}\n{spec}".encode()).digest()
            if key not in self._known:
                async with self._places.place(client.get(), 1):
                    if key not in self._known:
                        self._known[key] = await self._outcome(kind, spec)
            self._known.move_to_end(key)
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
            if self._known[key] not in ("done", "refused"):
                raise Refusal(
                    400,
                    f"{name} takes more than {self._limit_s:g} s of processor time, or too much memory, to compile "
                    "(serve.limits.form_s); make it smaller, above all its counts (maxLength, maxItems, {m,n}) and alternatives",
                )

    async def _outcome(self, kind: str, spec: str) -> str:
        """What a child says of a form; "slow" where it did not come to its end."""
        child = self._idle.pop() if self._idle else await self._start()
        limits = {"parse_s": PARSE_SHARE * self._limit_s, "compile_s": self._limit_s}
        said = await _exchange(child, json.dumps({"kind": kind, "spec": spec, **limits}))
        if said:
            self._idle.append(child)
            return said
        code = _end(child)
        if code < 0 and -code in TOO_SLOW | CRASHES:
            return "slow"
        raise self._cannot(f"ended with {code}")

    async def _start(self) -> subprocess.Popen[str]:
        if not self._first_line:
            self._first_line = json.dumps(await asyncio.to_thread(self._settings))
        child = subprocess.Popen(  # by the thread of the loop, with which it ends
            [sys.executable, "-m", "serving.form_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            async with asyncio.timeout(START_S):
                said = await _exchange(child, self._first_line)
        except TimeoutError:
            raise self._cannot("did not start") from None
        if said != "ready":
            raise self._cannot(f"ended at its start with {_end(child)}")
        return child

    def _cannot(self, why: str) -> Refusal:
        log.error("the process that compiles forms %s", why)
        return Refusal(503, "the form of a reply cannot be compiled now; try again later", retry_after_s=10.0)

    def close(self) -> None:
        """End the children that have nothing to do."""
        while self._idle:
            child = self._idle.pop()
            child.kill()
            _end(child)


async def _exchange(child: subprocess.Popen[str], line: str) -> str:
    """What a child says to a line; "" where it ended. It is killed with who waits, else its word would be taken for the next."""

    def exchange() -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(f"{line}\n")
            child.stdin.flush()
        return child.stdout.readline().strip()

    work = asyncio.ensure_future(asyncio.to_thread(exchange))
    try:
        return await asyncio.shield(work)
    except BaseException:
        child.kill()
        work.add_done_callback(lambda _: _end(child))
        raise


def _end(child: subprocess.Popen[str]) -> int:
    """The code of a child that ends."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    return child.wait()


def forms_of(body: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every form of a request: its field, its kind as the child knows it, and what vLLM compiles."""
    found = body.get("response_format")
    if isinstance(found, dict):
        wrapped = found.get("json_schema")
        if found.get("type") == "json_schema" and isinstance(wrapped, dict):
            yield from _form("response_format", "json", wrapped.get("schema"))
        if found.get("type") == "structural_tag":
            yield from _tag("response_format", found)
    found = body.get("structured_outputs")
    if isinstance(found, dict):
        for kind in ("json", "regex", "choice", "grammar"):
            yield from _form("structured_outputs", kind, found.get(kind))
        yield from _tag("structured_outputs", found.get("structural_tag"))
    tools = body.get("tools") or []
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    schemas = [function["parameters"] for function in functions if isinstance(function, dict) and function.get("parameters")]
    if schemas:
        yield from _form("tools", "json", {"anyOf": schemas})


def _form(name: str, kind: str, spec: Any) -> Iterator[tuple[str, str, str]]:
    if kind == "choice" and isinstance(spec, list) and spec and all(isinstance(each, str) for each in spec):
        from vllm.v1.structured_output.utils import choice_as_grammar

        yield name, "grammar", choice_as_grammar(spec)
    elif kind == "grammar" and isinstance(spec, str):
        from vllm.v1.structured_output.utils import grammar_is_likely_lark

        yield name, "lark" if grammar_is_likely_lark(spec) else "grammar", spec
    elif kind == "json" and isinstance(spec, dict):
        yield name, kind, json.dumps(spec)
    elif kind in ("json", "regex") and isinstance(spec, str):
        yield name, kind, spec


def _tag(name: str, spec: Any) -> Iterator[tuple[str, str, str]]:
    """A structural tag; of one in the form of before, the schemas."""
    with contextlib.suppress(ValueError):
        spec = json.loads(spec) if isinstance(spec, str) else spec
    if not isinstance(spec, dict):
        return
    if isinstance(structures := spec.get("structures"), list):
        for each in structures:
            yield from _form(name, "json", each.get("schema") if isinstance(each, dict) else None)
    else:
        yield name, "structural_tag", json.dumps(spec)


def of_engine(vllm_config: Any) -> Forms | None:
    """Those of vLLM's engine; None where another library than xgrammar makes its forms."""
    options = vllm_config.structured_outputs_config
    if options.backend not in ("auto", "xgrammar"):
        return None

    def settings() -> dict[str, Any]:
        from vllm.tokenizers import cached_tokenizer_from_config
        from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

        model = vllm_config.model_config
        tokenizer = cached_tokenizer_from_config(model_config=model)
        compiler = XgrammarBackend(vllm_config, tokenizer=tokenizer, vocab_size=model.get_vocab_size()).compiler
        info = compiler.compile_grammar('root ::= "a"').tokenizer_info
        return {"tokenizer": info.serialize_json(), "whitespace": not options.disable_any_whitespace}

    return Forms(settings, float(os.environ.get(VARIABLE, "2")))
