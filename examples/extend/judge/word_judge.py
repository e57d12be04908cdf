"""A judge of one's own: anything that answers a prompt with a text that ends in "Score: N". This one counts shared words.

    recipe: {name: leanpo, trust: judge, judge: {kind: "word_judge:open_judge"}}
    evaluate: {scorer: judge, judge: {kind: "word_judge:open_judge"}}

`open_judge` is called once in each judge's process, with the section of options (`model`, `timeout_s`, `engine_args` … mean what it
makes of them): load a model here, or open a connection. It returns the chat: conversations, each a list of {"role", "content"}, to the
next reply to each, in order. A reply without a readable score is asked for once more, then quarantined. With `sees: video` the first
message of a conversation also has "videos" and "images", the files' names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from vidalign.config.judging import JudgeConfig
from vidalign.data.words import content_words

_PART = r"^Reference answer: (?P<answer>.*?)^Answer to judge: (?P<response>.*?)^Judge "  # of `vidalign.prompts.JUDGE`


def open_judge(config: JudgeConfig) -> Callable[[Sequence[list[dict[str, Any]]]], list[str]]:
    """The chat of this judge."""
    return lambda conversations: [judged(conversation[0]["content"]) for conversation in conversations]


def judged(prompt: str) -> str:
    """An explanation, and a score from 1 (no word of the reference answer) to 5 (all of them)."""
    found = re.search(_PART, prompt, re.DOTALL | re.MULTILINE)
    if found is None:
        return "This is not the prompt that I know."
    wanted, said = (set(content_words(found[name])) for name in ("answer", "response"))
    share = len(wanted & said) / len(wanted) if wanted else 0.0
    return f"{len(wanted & said)} of {len(wanted)} words are there.\nScore: {1 + round(4 * share)}"
