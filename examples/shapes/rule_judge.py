"""A judge for the built-in world that needs no language model: rules behind an OpenAI-compatible endpoint.

    python -m examples.shapes.rule_judge --port 8100        then recipe.judge: {kind: openai, model: rules, base_url: …/v1}

It reads the same prompt as a language model would (`vidalign.prompts.JUDGE`), rebuilds the scene from the caption, answers
the question by rule, and compares. It is for machines on which no judge model can run. Unlike a language model, it never errs.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from examples.shapes.world import COLOURS, DIRECTIONS, SHAPES, read_description, solve
from vidalign.data.words import normalise
from vidalign.prompts import JUDGE

MODEL = "rules"
_ASKED = re.compile("(.*)".join(map(re.escape, re.split(r"\{\w+\}", JUDGE))), re.DOTALL)
_KNOWN = {*SHAPES, *COLOURS, *DIRECTIONS, "yes", "no"}


def judge(prompt: str) -> str:
    """The reply to a judge's prompt: an explanation and a score; no score if the caption does not answer the question.

    Raises:
        ValueError: the prompt is not `vidalign.prompts.JUDGE`.
    """
    caption, question, response = asked(prompt)
    try:
        truth = solve(read_description(caption), question)
    except ValueError as error:
        return f"The caption does not answer the question: {error}."
    score, why = compare(response, truth, question)
    return f"By the caption the answer is {truth!r}; the answer given {why}.\nScore: {score}"


def asked(prompt: str) -> tuple[str, str, str]:
    """The caption, the question and the response that a judge's prompt holds.

    Raises:
        ValueError: the prompt is not `vidalign.prompts.JUDGE`.
    """
    match = _ASKED.fullmatch(prompt)
    if match is None:
        raise ValueError(
            "this judge reads only the prompt of vidalign.prompts.JUDGE; leave recipe.judge.prompt at its default"
        )
    caption, question, _, response = match.groups()
    return caption, question, response


def compare(response: str, truth: str, question: str) -> tuple[int, str]:
    """Score a response: 5 for the truth, 4 for its facts in other words, 2 for some of its facts, 1 for none; with the reason.

    Words that the question already contains do not count as facts.
    """
    if normalise(response) == normalise(truth):
        return 5, "is the same"
    asked = set(re.findall(r"\w+", question.partition("\n")[0]))
    true = _facts(truth) - asked or _facts(truth)  # "which of these two" names the answer
    told = _facts(response) - (asked - true)
    if told == true and len(true) == 1:
        return 4, "says the same in other words"
    return (2, "differs in what it says") if told & true else (1, "says nothing of it")


def _facts(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", normalise(text)) if word in _KNOWN}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    reply: Callable[[str], str]  # to a judge's prompt; set by `serve`
    owner: str

    def do_GET(self) -> None:
        self._reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": self.owner}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            # A reminder that may follow asks the same question again.
            text = type(self).reply(body["messages"][0]["content"])
        except ValueError as error:
            self._reply(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
            return
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self._reply(200, {"id": "judgement", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices})

    def _reply(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args) -> None:
        pass


def serve(port: int = 0, reply: Callable[[str], str] = judge, owner: str = "shapes") -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that is not yet running; port 0 takes a free port, see `server_address`.

    `reply` is the judge: a function of its prompt.
    """
    handler = type("Handler", (_Handler,), {"reply": staticmethod(reply), "owner": owner})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def run(server: ThreadingHTTPServer) -> None:
    """Say where a server is, and let it answer until it is stopped."""
    print(f"rule-based judge at http://127.0.0.1:{server.server_address[1]}/v1, model {MODEL}", flush=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8100)
    run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
