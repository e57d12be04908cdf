"""Replies that are a list of verdicts on the options: "A: wrong, B: right", "✓ B", a line each that ends in yes or no."""

from __future__ import annotations

import re

from vidalign.data.labels import CONFLICT, Options

_RIGHT = ("yes", "true", "correct", "right", "✓", "✔", "✅")
_JUDGED_LINE = re.compile(
    r"^\s*[(\[]?([a-z]|\d{1,2})[)\].:]+[^\n]*?[\s-]*"
    r"(?<!\w)(yes|true|correct|right|no|false|incorrect|wrong|✓|✔|✅|✗|✘|✖|❌)[\s.!\ufe0f]*$",
    re.MULTILINE,
)
_MARKED_LINE = re.compile(r"^\s*(✓|✔|✅|✗|✘|✖|❌)\ufe0f?\s*[(\[]?([a-z]|\d{1,2})(?!\w)", re.MULTILINE)
_JUDGED_BRIEFLY = re.compile(
    r"(?<!\w)[(\[]?([a-z]|\d{1,2})[)\].:]*\s*[:=-]?\s*(yes|true|correct|right|no|false|incorrect|wrong|✓|✔|✅|✗|✘|✖|❌)(?!\w)"
)
_JUDGED_OPTION = re.compile(
    r"\b(?:option|choice)\s+[(\[]?([a-z]|\d{1,2})[)\]]?\s*(?::|is|-)\s*(yes|true|correct|right|no|false|incorrect|wrong)\b"
)


def by_verdicts(text: str, listed: Options) -> int | None:
    """The one option that is called right, in a list of verdicts on the options; None where a text is no such list."""
    marked = {match[2]: match[1] in _RIGHT for match in _MARKED_LINE.finditer(text)}
    if len(marked) > 1 and set(marked) == set(listed.labels) and sum(marked.values()) == 1:
        return listed.index(next(label for label, right in marked.items() if right))
    called = {match[1]: match[2] in _RIGHT for match in _JUDGED_OPTION.finditer(text)}
    if len(called) > 1 and sum(called.values()) == 1:
        return listed.index(next(label for label, right in called.items() if right))
    lines, words = ({m[1]: m[2] in _RIGHT for m in judged.finditer(text)} for judged in (_JUDGED_LINE, _JUDGED_BRIEFLY))
    said = lines if set(lines) == set(listed.labels) else words
    if len(listed.labels) < 2 or set(said) != set(listed.labels) or {"yes", "true"} & set(listed.texts):
        return None
    right = [label for label in listed.labels if said[label]]
    return listed.index(right[0]) if len(right) == 1 else CONFLICT
