"""The part of a reply that answers: after the reasoning, inside the tags or the box, without markdown."""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata

from vidalign.data.words import apart

_REASONING = r"(?:think|thinking|thought|reasoning|reflection|analysis|scratchpad)"
_CLOSED = re.compile(rf"<({_REASONING})>.*?</\1>", re.DOTALL | re.IGNORECASE)
_OPENING = re.compile(rf"<{_REASONING}>", re.IGNORECASE)
_CLOSING = re.compile(rf"</{_REASONING}>", re.IGNORECASE)
_TAGGED = re.compile(
    r"<(?:final[_ ]?)?answer>(.*?)(?:</(?:final[_ ]?)?answer>|(?=<(?:final[_ ]?)?answer>)|\Z)", re.DOTALL | re.IGNORECASE
)
_SPECIAL = re.compile(r"<\|[^|<>]*\|>|</?(?:p|br|span|response|output|(?:final[_ ]?)?answer)\s*/?>", re.IGNORECASE)
_STYLED = re.compile(r"<(b|i|u|em|strong|code)>([^<>]*)</\1>", re.IGNORECASE)
_LATEX = re.compile(
    r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathit|mathsf|operatorname|rm|bf)\s*\{((?:[^{}]|\{[^{}]*\})*)\}",
    re.IGNORECASE,
)
_MEMBERS = tuple(
    re.compile(
        rf"\{{[^{{}}]*?[\"'](?:{keys})[\"']\s*:\s*"
        r"(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|(\[[^\[\]{}]*\]|[^\s,\"'{}\[\]]+))",
        re.IGNORECASE,
    )
    for keys in ("final[_ ]?answer", "answer", "choice|option|prediction|pred|response|count|number|result")
)
_CIRCLED = {start + index: chr(ord("A") + index) for start in (0x1F150, 0x1F170) for index in range(26)}  # negative 🅑, 🅱
_CIRCLED |= {
    start + index: str(index + 1) for start in (0x24F5, 0x2776, 0x2780, 0x278A) for index in range(10)
}  # ⓵, ❶, ➀, ➊
_EXPLICIT = re.compile(
    r".*(?:\b(?:answer|antwort|réponse|respuesta|risposta|resposta|ответ)\b(?:\s+(?:is|est|ist|es|è|é)\b|\s*[:=]|\s+would be\b)|"
    r"(?:答案|答え|정답)\s*(?:是|为|は|은|:))",
    re.DOTALL | re.IGNORECASE,
)
_GOES_ON = re.compile(r"[.!?。]\s+\S|[.!?。]?\s*\n\s*\S|\?|,|\bbut\b", re.IGNORECASE)
_HEAD, _TAIL = 1000, 2000  # characters of a long reply in which an answer is looked for


def answering_part(text: str) -> tuple[str, bool]:
    """(the part that answers, in Unicode NFKC; whether it is reasoning that was never closed, where only an explicit
    "the answer is …" counts)."""
    text = (
        unicodedata.normalize("NFKC", apart(text).translate(_CIRCLED)).replace("◁", "<").replace("▷", ">").replace("’", "'")
    )
    text = text.replace("<|begin_of_box|>", r"\boxed{").replace("<|end_of_box|>", "}")
    text = re.split(r"<\|channel\|>\s*final\s*<\|message\|>", text)[-1]
    text, unfinished = without_reasoning(text)
    tagged = [part for part in _TAGGED.findall(text) if part.strip()]
    text = _json_answer(without_reasoning(tagged[-1])[0] if tagged else text)
    text = _LATEX.sub(r"\1", _LATEX.sub(r"\1", text))
    boxed = _last_box(text)
    explicit = bool(tagged) or boxed is not None
    text = _plain(text if boxed is None else boxed)
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]}\n{text[-_TAIL:]}"
    unfinished = unfinished and not explicit
    return _last_words(text) if unfinished else text, unfinished


def _last_words(text: str) -> str:
    """Of reasoning that was cut off, "the answer is …" where nothing follows it; else nothing: what it weighs is no answer."""
    stated = _EXPLICIT.match(text)
    return text if stated and not _GOES_ON.search(text, stated.end()) else ""


def _json_answer(text: str) -> str:
    """What a JSON object says under "answer" or the like; any other text as it is."""
    found = next((match for member in _MEMBERS if (match := member.search(text))), None)
    if found is None:
        return text
    value = next(value for value in found.groups() if value is not None)
    if found[3] and found[3].startswith("["):
        return ", ".join(item.strip(" \"'") for item in found[3].strip("[]").split(","))
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(f'"{value}"')
    return _json_answer(value)


def without_reasoning(text: str) -> tuple[str, bool]:
    """(a reply after its reasoning block, whether that block was never closed)."""
    if _CLOSING.search(text):  # without one, every opening tag would be searched to the end
        text = _CLOSED.sub(" ", text)
    text = _CLOSING.split(text)[-1]  # a template may hold the opening tag, so that the reply does not
    before, *inside = _OPENING.split(text, maxsplit=1)
    if inside and not before.strip():
        return inside[0], True
    return before, False


def reasoning_part(text: str) -> str:
    """The reasoning that a reply closes before it answers, without its tags; "" where there is none."""
    text = unicodedata.normalize("NFKC", text).replace("◁", "<").replace("▷", ">")
    before, *after = _CLOSING.split(text, maxsplit=1)
    return _OPENING.sub(" ", before).strip() if after else ""


def from_answer_on(text: str) -> str:
    """The end of a reply that closes its reasoning, from the closing tag on; "" where it has none."""
    closings = list(_CLOSING.finditer(text))
    return text[closings[-1].start() :] if closings else ""


def _last_box(text: str) -> str | None:
    """What the last \\boxed{…} holds, braces inside of it included."""
    lower = text.lower()
    start = max(lower.rfind("\\boxed{"), lower.rfind("\\fbox{"))
    if start < 0:
        return None
    first = text.index("{", start) + 1
    depth = 1
    for end in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[first:end]
    return text[first:]


def _plain(text: str) -> str:
    """Without markup: markdown, LaTeX's signs of mathematics, special tokens; what is struck through goes as well."""
    text = re.sub(r"~~[^~]*~~", " ", _STYLED.sub(r"\2", _SPECIAL.sub(" ", text)))
    text = text.replace("$$", "")
    text = re.sub(r"\\[()\[\]]|\\[,;!]", "", re.sub(r"\$(?=\S)([^$\n]*?\S)\$(?!\d)", r"\1", text))
    text = re.sub(r"\\[dt]?frac\s*(?:\{([^{}]+)\}\s*\{([^{}]+)\}|(\d)(\d))", r"\1\3/\2\4", text)
    text = re.sub(r"\$(?!\d)", "", text)
    text = re.sub(r"(?<![\d*])\*+|\*+(?![\d*])|`+|__+|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)", "", text)
    text = re.sub(r"^[ \t]*(?:(?:#{1,6}|>|[-*+•])[ \t]+)+", "", text, flags=re.MULTILINE)
    return text.strip()
