"""Broken configurations, command lines and rows, drawn at random from what people and programs get wrong."""

import copy
import json
import random
from typing import Any

import yaml

DUMPER = getattr(yaml, "CDumper", yaml.Dumper)  # faster, where it is built
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "a",
    "null", "leanpo", "dpo", "auto", "{question}", "{question", "{answer} {question} {previous}", "{0}", "{}", "%s", "é", "方",
    "\u202e", "\x00", "a\x00b", "\ud800", "\ufdd0", "<video>", "<|im_end|>", "~", "~/x", "~nobody-here/x", "/dev/null",
    "/proc/none/x", "/", ".", "..", "-", "--", "a" * 300, "a/" * 3000, "s3://", "s3:/x", "hf:", "hf:a/b/c", "http://x",
    "file:///x", "os:getcwd", "no_such:thing", "a.b:c d", "x:", ":", "1e5", "0x10", "2020-01-01", "12:30", "1_000", [], [[]],
    [1, "a", None], ["a"] * 3, {}, {"a": {"b": []}}, {"name": "leanpo"}, {"name": None}, {"": 1}, {"name": ["x"]}, [{"a": 1}],
    b"bytes",
)  # fmt: skip
BYTES = (b"\x00", b"\xff", b"\xe9", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\r", b"\n", b"\n\n", b":", b"- ", b"{", b"}", b"[", b"]",
         b'"', b"'", b"&a ", b"*a", b"!!python/name:os.system ", b"!!binary ", b"<<: ", b"%", b"@", b"`", b"|", b"#", b"? ", b"---\n",
         b"\xed\xa0\x80", b"\xc2\x85", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\x1b[31m", b"seed: 1\n", b"1e999")  # fmt: skip


def config_text(draw: random.Random, base: dict[str, Any]) -> bytes:
    """A configuration file from a good one: with values and keys changed, or bytes."""
    raw = copy.deepcopy(base)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        node, key = draw.choice(list(_places(raw)))
        change = draw.random()
        if change < 0.75:
            node[key] = copy.deepcopy(draw.choice(VALUES))
        elif isinstance(node, dict) and change < 0.85:
            node[draw.choice((f"{key}s", key.upper(), "lr", "", "name", "a.b"))] = node.pop(key)
        elif isinstance(node, dict):
            del node[key]
    try:
        text = yaml.dump(raw, Dumper=DUMPER, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):
        text = json.dumps(raw, default=str).encode()
    return damaged(draw, text) if draw.random() < 0.3 else text


def damaged(draw: random.Random, text: bytes) -> bytes:
    """A text with bytes changed, cut, doubled or in another encoding."""
    at, end = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
    return draw.choice(
        (
            lambda: text[:at] + draw.choice(BYTES) + text[at:],
            lambda: text[:at] + draw.choice(BYTES) + text[at + 1 :],
            lambda: text[:at] + text[end:],
            lambda: text[:at],
            lambda: text + text[at:end],
            lambda: text.decode("utf-8", "replace").encode("utf-16"),
            lambda: b"",
        )
    )()


def arguments(draw: random.Random, config: str, keys: list[str]) -> list[str]:
    """Arguments of a command that works on a configuration, some of them wrong."""
    given = [draw.choice(("align", "rollout", "train", "evaluate", "report", "serve", "algin", "data", "")), config]
    for _ in range(draw.randrange(1, 4)):
        key, value = draw.choice(keys), draw.choice(VALUES)
        text = json.dumps(value) if isinstance(value, list | dict | float | None) else str(value)
        forms = (
            *[f"{key}={text}"] * 4, f"{key}.x={text}", f"--{key}={text}", f"--{key}", key, text, f"={text}", f".{key}={text}",
            f"{key}.=1", f"{key.upper()}=1", "--on", "--on=8x80", "--on=0x0x0", "--on=x", "-h1", "--no-such", "--suite",
            "--suite=none", "--data=/dev/null", f"{key}=[", f"{key}=*a", f"{key}=!!x y", f"{key}={{a: 1, a: 2}}",
        )  # fmt: skip
        given.append(draw.choice(forms))
    if draw.random() < 0.1:
        draw.shuffle(given)
    return [item.replace("\x00", "") for item in given]  # the system passes none


def rows_text(draw: random.Random, rows: list[dict[str, Any]]) -> bytes:
    """A data file of JSON lines from good rows."""
    made = copy.deepcopy(rows)
    row = draw.choice(made)
    for _ in range(draw.choice((1, 1, 2))):
        row[draw.choice((*row, "options", "category", "caption", "chosen", "messages", "images", "start_s"))] = draw.choice(
            VALUES
        )
    lines = [json.dumps(each, default=str, ensure_ascii=draw.random() < 0.8) for each in made]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged(draw, text) if draw.random() < 0.4 else text


def _places(node: Any):
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in pairs:
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)
