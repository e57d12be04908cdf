"""`vidalign serve` on the device, of the run that part align made: its start, and what it answers, one by one and many at once."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from bench.built_in import MAX_NEW_TOKENS
from bench.serve import ask, bodies
from bench.serve_decode import as_url
from bench.serve_start import started
from serving.access import add_key
from serving.proxy import free_port
from vidalign import files
from vidalign.types import EvalAnswer

MODELS = ("base", "aligned")
ALONE, TOGETHER, AT_ONCE = 8, 128, 32  # requests one after the other; requests of a crowd, and how many of them at a time


def serve(work: pathlib.Path) -> dict[str, Any]:
    """Start it by its command, and ask both policies about the videos of the evaluation, sent as data: urls.

    Every reply has as many tokens, so that seconds compare. `same` counts replies of an OpenAI client that are those that the
    evaluation got to the same question.
    """
    run = work / "align/run"
    if not (run / "summary.json").is_file():
        raise SystemExit("part serve serves the run of part align; name align before it")
    folder = work / "serve"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    key, port = add_key(folder / "keys.txt", "bench"), free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(run), f"serve.port={port}", "cluster.address=local"]
    command.append(f"serve.access.keys_file={folder / 'keys.txt'}")
    url = f"http://127.0.0.1:{port}/v1"
    answers = {name: files.read_table(run / f"rounds/0/eval/{name}.parquet", EvalAnswer) for name in MODELS}
    videos = [as_url(pathlib.Path(row.video)) for row in answers["base"]]
    found: dict[str, Any] = {"policies": {}}
    with started(command, folder / "log", name="run", url=url, model="base", key=key) as (server, start_s):
        found["start_s"] = start_s
        first, alone, together = ALONE, 2 * ALONE, 2 * ALONE + TOGETHER
        asked = bodies(videos, together)
        for name in MODELS:
            same, policy = num_same(url, key, name, answers[name]), dataclasses.replace(server, model=name)
            ask(policy, asked[:first], 1)  # what only first requests cost
            _, latencies = ask(policy, asked[first:alone], 1)
            seconds, _ = ask(policy, asked[alone:], AT_ONCE)
            found["policies"][name] = {
                "same": same,
                "questions": len(answers[name]),
                "alone_s": statistics.median(latencies),
                "requests_a_second": TOGETHER / seconds,
            }
    return found | {"at_once": AT_ONCE, "tokens": MAX_NEW_TOKENS}


def num_same(url: str, key: str, name: str, answers: Sequence[EvalAnswer]) -> int:
    """How many of these questions, asked by an OpenAI client, are answered as they were."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)
    same = 0
    for row in answers:
        content: list[Any] = [
            {"type": "video_url", "video_url": {"url": as_url(pathlib.Path(row.video))}},
            {"type": "text", "text": row.question},
        ]
        reply = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=MAX_NEW_TOKENS
        )
        same += reply.choices[0].message.content == row.text
    return same
