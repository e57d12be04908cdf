"""`vidalign chat RUN|MODEL --video FILE`: questions about a video in the terminal, answered as they are written."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from vidalign.errors import ClusterError, ConfigError, VidalignError

HELP = "an empty line or Ctrl-D ends, /video FILE takes another video, /new forgets what was said"


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "ask a model about a video in the terminal"
    command = commands.add_parser("chat", help=text, description=f"{text}. {HELP[0].upper()}{HELP[1:]}.")
    command.add_argument("target", help="a run folder or a model folder; with --endpoint, the name of a model there")
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides, as of vidalign serve")
    command.add_argument("--video", required=True, metavar="FILE", help="the video that is asked about")
    command.add_argument("--ask", metavar="TEXT", help="one question, whose answer is printed, instead of a conversation")
    command.add_argument("--model", metavar="NAME", help="base or aligned of a run (default: aligned, if it has one)")
    command.add_argument("--endpoint", metavar="URL", help="ask a running endpoint, such as http://127.0.0.1:8000/v1")
    command.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of one answer (default: 256)")
    command.add_argument("--verbose", action="store_true", help="show what Ray and its workers print")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    video = _checked(arguments.video)
    if arguments.max_tokens < 1:
        raise ConfigError(f"--max-tokens must be at least 1, got {arguments.max_tokens}")
    with _stream_of(arguments) as stream:
        chat = Chat(stream, video)
        if arguments.ask is not None:
            chat.ask(arguments.ask, sys.stdout)
        else:
            print(HELP, file=sys.stderr)
            talk(chat, _typed(), sys.stdout)
    return 0


class Chat:
    """A conversation about one video. `stream(messages)` yields the parts of a reply."""

    def __init__(self, stream: Callable[[list[dict[str, Any]]], Iterable[str]], video: pathlib.Path) -> None:
        self._stream, self.video = stream, video
        self.messages: list[dict[str, Any]] = []

    def ask(self, text: str, out: IO[str]) -> str:
        """Ask, and write the reply as it comes. What was asked in vain is forgotten."""
        content: Any = text
        if not self.messages:
            content = [{"type": "video_url", "video_url": {"url": data_url(self.video)}}, {"type": "text", "text": text}]
        asked = [*self.messages, {"role": "user", "content": content}]
        parts: list[str] = []
        for part in self._stream(asked):
            parts.append(part)
            print(part, end="", file=out, flush=True)
        print(file=out, flush=True)
        reply = "".join(parts)
        self.messages = [*asked, {"role": "assistant", "content": reply}]
        return reply

    def begin(self, video: pathlib.Path | None = None) -> None:
        """Forget what was said, and take another video, if one is given."""
        self.messages, self.video = [], video or self.video


def talk(chat: Chat, lines: Iterable[str], out: IO[str]) -> None:
    """Ask what is typed until a line is empty or there are no more; what goes wrong is said, and the conversation goes on."""
    for line in lines:
        text = line.strip()
        if not text:
            return
        word, _, rest = text.partition(" ")
        try:
            if word == "/video":
                chat.begin(_checked(rest.strip()))
            elif word == "/new":
                chat.begin()
            elif word.startswith("/"):
                raise ConfigError(f"{word} is no command; {HELP}")
            else:
                chat.ask(text, out)
        except VidalignError as error:
            print(f"error: {error}", file=sys.stderr)


def data_url(video: pathlib.Path) -> str:
    """The video as a url that every endpoint takes, wherever it runs."""
    import base64

    return f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"


def _checked(name: str) -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    if not name or not path.is_file():
        raise ConfigError(f"no video at {name or 'an empty name'}; give a file")
    return path


def _typed() -> Iterator[str]:
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


@contextlib.contextmanager
def _stream_of(arguments: argparse.Namespace) -> Iterator[Callable[[list[dict[str, Any]]], Iterable[str]]]:
    """What answers: a running endpoint, or one that is started for this conversation on a port that is free."""
    if arguments.endpoint:
        if arguments.overrides or arguments.model:
            raise ConfigError(
                "--endpoint serves what it serves; leave out overrides and --model, and name its model as target"
            )
        key = os.environ.get("VIDALIGN_API_KEY") or "none"  # clients want one where none is needed
        yield lambda messages: streamed(arguments.endpoint, key, arguments.target, messages, arguments.max_tokens)
        return
    from cluster.session import connect
    from pipelines import serve
    from serving.app import endpoint

    found = serve.find_target(arguments.target, [*_free_port(arguments.overrides), *arguments.overrides])
    name = arguments.model or list(found.models)[-1]
    if name not in found.models:
        raise ConfigError(f"--model {name} is not there; choose one of {', '.join(found.models)}")
    found = serve.only(found, name)
    print(f"starting {name} …", file=sys.stderr)
    needed = serve.num_cpus_needed(found)
    with (
        connect(found.config.cluster, num_cpus_needed=needed, verbose=arguments.verbose) as resources,
        endpoint(serve.spec_of(found, resources)) as running,
    ):
        yield lambda messages: streamed(running.base_url, running.api_key, name, messages, arguments.max_tokens)


def _free_port(overrides: Sequence[str]) -> list[str]:
    from serving.proxy import free_port

    if any(override.startswith("serve.port=") for override in overrides):
        return []
    return [f"serve.port={free_port()}"]


def streamed(base_url: str, api_key: str, model: str, messages: list[Any], max_tokens: int) -> Iterator[str]:
    """The parts of a reply at temperature 0. Raises `ClusterError` with what the endpoint says where it does not answer."""
    import openai

    client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=1)
    try:
        reply = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=max_tokens, stream=True
        )
        for chunk in reply:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content
    except openai.APIError as error:
        body = error.body if isinstance(error.body, dict) else {}
        reason = " ".join(str(body.get("message") or error).split())[:400]
        raise ClusterError(f"{base_url} does not answer as {model}: {reason}") from error
