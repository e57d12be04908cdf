"""The words the policy and a judge see. Every template is a config field; these are the defaults.

Placeholders: `{question}`, `{answer}` (the ground truth) and `{previous}` (the response being worked on).
Sources of the steps (the wording is ours): LeanPO, arXiv 2506.05260, for hint and reflection; RRPO, arXiv 2504.12083, for
differences and rewrite; LLaVA-Hound, arXiv 2404.01258, for the caption.
"""

from __future__ import annotations

import re

PLAIN = "{question}"
HINT = "{question}\nHint: {answer}"
REFLECT = "{question}\nEarlier reply: {previous}\nIt can be improved. Align it with: {answer}"

DIFFERENCES = (
    "{question}\nRight answer: {answer}\nWrong answer: {previous}\nList what the wrong answer gets wrong (objects, actions, "
    "attributes, places, times), one a line, as: phrase of the right answer => phrase of the wrong answer"
)
REWRITE = "{question}\nRight answer: {answer}\nRewrite the right answer. Swap in these phrases and change nothing else:\n{previous}"
CAPTION = "Describe the video in detail: every object, its colour and shape, how it moves, and the order of events."

JUDGE = """\
You judge an answer to a question about a video. You cannot see the video; this caption describes it completely.

Caption: {caption}
Question: {question}
Reference answer: {answer}
Answer to judge: {response}

Judge whether the answer is relevant to the question, accurate by the caption, clear, and complete. What the caption contradicts
is an error, however well it is written. First explain in one or two sentences. Then write one last line, in this form:
Score: N
where N is a whole number: 5 right in everything, 4 right with a small flaw, 3 right in the main, 2 mostly wrong, 1 wrong."""

PLACEHOLDERS = {
    "plain_prompt": ("{question}",),
    "hint_prompt": ("{question}", "{answer}"),
    "reflect_prompt": ("{question}", "{answer}", "{previous}"),
    "differences_prompt": ("{answer}", "{previous}"),
    "rewrite_prompt": ("{answer}", "{previous}"),
}
JUDGE_FIELDS = ("caption", "question", "answer", "response")


def fill(template: str, *, question: str, answer: str = "", previous: str = "") -> str:
    """Fill in one of the policy's templates."""
    return substitute(template, question=question, answer=answer, previous=previous)


def substitute(template: str, **values: str) -> str:
    """Replace each {name} from `values` in one pass. All other braces are left alone, including those inside a value."""
    places = re.compile("{(" + "|".join(values) + ")}")
    return places.sub(lambda match: values[match[1]], template)


def missing_fields(template: str) -> list[str]:
    """The placeholders that a judge's template lacks."""
    return [name for name in JUDGE_FIELDS if f"{{{name}}}" not in template]


def chat(text: str) -> list[dict]:
    """The chat messages of one video turn, as `apply_chat_template` of a Hugging Face processor takes them."""
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
