"""The words the policy and a judge see. Every template is a config field; these are the defaults.

Placeholders: `{question}`, `{answer}` (the ground truth), `{previous}` (the reply that is worked on), `{reasoning}` (its
reasoning) and `{options}`. `{question}` stands for `asked_question`, the row's question with its options, where the policy is asked.
Sources of the steps (the wording is ours): LeanPO, arXiv 2506.05260, for hint and reflection; RRPO, arXiv 2504.12083, for
differences and rewrite; LLaVA-Hound, arXiv 2404.01258, for the caption; VerIPO, arXiv 2505.19000, for consistency; ReAgent-V,
arXiv 2506.01300, for a critic's report (`{report}`: what it says of the earlier answer) and the three ways to reflect on it.
"""

from __future__ import annotations

import collections
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Literal, TypeAlias

from vidalign.records import Context
from vidalign.types import Example

OptionsStyle: TypeAlias = Literal["letters", "texts"]

PLAIN = "{question}"
OPTIONS = "{question}\n{options}"
HINT = "{question}\nHint: {answer}"
REFLECT = "{question}\nEarlier reply: {previous}\nIt can be improved. Align it with: {answer}"

DIFFERENCES = (
    "{question}\nRight answer: {answer}\nWrong answer: {previous}\nList what the wrong answer gets wrong (objects, actions, "
    "attributes, places, times), one a line, as: phrase of the right answer => phrase of the wrong answer"
)
REWRITE = "{question}\nRight answer: {answer}\nRewrite the right answer. Swap in these phrases and change nothing else:\n{previous}"
BRIDGE = (
    "{question}\nRight answer: {answer}\nWrong answer: {previous}\nCorrect the wrong answer. Change as few words as it takes to make "
    "it right, keep everything else as it is, and write the corrected answer alone."
)
CONSISTENCY = (
    "Question: {question}\nSomebody reasoned: {reasoning}\nWhich answer to the question does this reasoning lead to, right or wrong? "
    "Write that answer alone, in the form in which the question asks for it."
)
REPORT = """\
Question: {question}
Answer to judge: {previous}

Judge the answer by the video. First say in one or two sentences what is wrong with it, if anything is. Then write these five lines,
where each N is a number from 0 (wrong in everything) to 5 (nothing to improve):
Visual alignment: N
Temporal accuracy: N
Option disambiguation: N
Reasoning specificity: N
Linguistic precision: N"""
CONSERVATIVE = (
    "{question}\nEarlier answer: {previous}\nA critic says of it: {report}\nKeep this answer unless the video contradicts it. Write "
    "the final answer alone, in the form in which the question asks for it."
)
NEUTRAL = (
    "{question}\nEarlier answer: {previous}\nA critic says of it: {report}\nLook again at which things, people and places the video "
    "shows, and correct what the answer gets wrong. Write the final answer alone, in the form in which the question asks for it."
)
AGGRESSIVE = (
    "{question}\nEarlier answer: {previous}\nA critic says of it: {report}\nDoubt both what the answer saw and what it concluded from "
    "it, and think of another answer. Write the final answer alone, in the form in which the question asks for it."
)
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

JUDGE_SEEING = """\
You judge an answer to a question about the video that you see.

Question: {question}
Reference answer: {answer}
Answer to judge: {response}

Judge by the video whether the answer is relevant to the question, accurate, clear, and complete. What the video contradicts is an
error, however well it is written; what says the same as the reference answer in other words is right. First explain in one or two
sentences. Then write one last line, in this form:
Score: N
where N is a whole number: 5 right in everything, 4 right with a small flaw, 3 right in the main, 2 mostly wrong, 1 wrong."""

PLACEHOLDERS = {
    "plain_prompt": ("{question}",),
    "hint_prompt": ("{question}", "{answer}"),
    "reflect_prompt": ("{question}", "{answer}", "{previous}"),
    "differences_prompt": ("{answer}", "{previous}"),
    "rewrite_prompt": ("{answer}", "{previous}"),
    "bridge_prompt": ("{answer}", "{previous}"),
    "consistency_prompt": ("{question}", "{reasoning}"),
    "options_prompt": ("{question}", "{options}"),
    "report_prompt": ("{question}", "{previous}"),
    "conservative_prompt": ("{question}", "{previous}"),
    "neutral_prompt": ("{question}", "{previous}"),
    "aggressive_prompt": ("{question}", "{previous}"),
}
FIELDS = ("question", "answer", "previous", "options", "reasoning", "report")
JUDGE_FIELDS = ("caption", "question", "answer", "response")


# Characters that Unicode reserves for a program's own use: no text of a row or reply has them.
MARKS = {"<video>": "\ufdd0", "<image>": "\ufdd1"}
_MARK = re.compile(f"([{''.join(MARKS.values())}])")
ONE_VIDEO = Context(videos=("",))  # of a prompt that is one video and one question

# A digit that a digit follows ("1:30", "1.5", "1 - 0") is part of a text, and so is a letter of an abbreviation ("A.M.").
_LABELLED = re.compile(
    r"(?:\*\*|__)?(?:(?:[Oo]ption|[Cc]hoice|选项)\s*)?[(\[]?(?:([A-Za-z])(?!\.\w\.)|(\d{1,2})(?![.:]\d|\s+[-–]\s+\d))(?:\*\*|__)?\s*"
    r"(?:[.):、\]]+(?:\*\*|__)?\s*|\s+[-–]\s+)(?=\S)"
)
_LABEL_ALONE = re.compile(r"[(\[]?([A-Za-z]|\d{1,2})[.):\]]*")


def labelled(options: Sequence[str]) -> list[tuple[str, str]]:
    """(label, text) of each option: the labels that all carry ("A. left", "(1) left"), in any order, else the letters from A on.

    An option that alone carries its letter loses it from its text, which is otherwise as it was written (2½, x²). More than 26 options
    have numbers.
    """
    plain = [unicodedata.normalize("NFKC", option).strip("\ufeff\u200b \t\n\r") for option in options]
    found = [_LABELLED.match(option) for option in plain]
    carried = [(match[1] or match[2]).upper() if match else "" for match in found]
    numbers = [str(index + 1) for index in range(len(plain))]
    letters = list(string.ascii_uppercase[: len(plain)]) if len(plain) <= len(string.ascii_uppercase) else numbers
    own_labels = len(set(carried)) == len(plain) and len({label.isdigit() for label in carried}) == 1
    dashed = any(match and re.search("[-–]", match[0]) for match in found)
    labels = carried if "" not in carried and own_labels and (not dashed or carried in (numbers, letters)) else letters
    return [
        (label, _without(match[0], option.strip()) if match and own == label else option.strip())
        for label, own, match, option in zip(labels, carried, found, options, strict=True)
    ]


def _without(label: str, option: str) -> str:
    """An option without the label at its beginning, which is given in Unicode NFKC."""
    ends = (end for end in range(1, len(option) + 1) if unicodedata.normalize("NFKC", option[:end]) == label)
    return option[max(ends, default=0) :].lstrip()


def lists_options(example: Example) -> bool:
    """Whether the question of a row names every option already; by label too, where the row's answer is a label."""
    question = _folded(example.question)
    options = labelled(example.options)
    with_label = _answered_by_label(example)
    for label, text in sorted(options, key=lambda option: -len(option[1])):
        shown = re.escape(" ".join(_folded(text).rstrip(" .").split())).replace(r"\ ", r"\s+")
        before = rf"(?<!\w){label.casefold()}\s*[.):、\]-]+\s*" if with_label and label.casefold() != _folded(text) else ""
        edges = ("(?<!\\w)", "(?!\\w)") if text.isascii() else ("", "")
        match = re.search(before + (edges[0] if not before else "") + shown + edges[1], question)
        if match is None:
            return False
        question = question[: match.start()] + "\0" * len(match[0]) + question[match.end() :]
    return True


def asked_question(example: Example, *, options_prompt: str = OPTIONS, options_style: OptionsStyle = "letters") -> str:
    """The question as the policy is asked it: with the row's options, one a line, unless the question lists them already.

    `options_style` "letters": "A. left"; "texts": "left". A row whose answer is a letter is shown letters in any case.
    """
    if not example.options or lists_options(example):
        return example.question
    letters = options_style == "letters" or _answered_by_label(example)
    lines = [f"{label}. {text}" if letters and label != text else text for label, text in labelled(example.options)]
    return substitute(options_prompt, question=example.question, options="\n".join(lines))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _answered_by_label(example: Example) -> bool:
    """Whether the ground truth is the label of an option, such as "B" or "(B)", and not an option's text."""
    match = _LABEL_ALONE.fullmatch(unicodedata.normalize("NFKC", example.answer).strip())
    options = labelled(example.options)
    texts = {_folded(text) for _, text in options}
    return match is not None and match[1].upper() in [label for label, _ in options] and match[1].casefold() not in texts


def fill(template: str, *, question: str, answer: str = "", previous: str = "", **more: str) -> str:
    """Fill in one of the policy's templates. The places of videos and images in the question become marks, which `chat` reads."""
    said = {name: _MARK.sub("", text) for name, text in {"answer": answer, "previous": previous, **more}.items()}
    return substitute(template, question=_marked(question), **said)


def _marked(text: str) -> str:
    """A text of the user with marks for `<video>` and `<image>`: what a policy replied, and is quoted, may hold these as text."""
    for place, mark in MARKS.items():
        text = text.replace(place, mark)
    return text


def substitute(template: str, **values: str) -> str:
    """Replace each {name} from `values` in one pass. All other braces are left alone, including those inside a value."""
    places = re.compile("{(" + "|".join(values) + ")}")
    return places.sub(lambda match: values[match[1]], template)


def missing_fields(template: str) -> list[str]:
    """The placeholders that a judge's template lacks."""
    return [name for name in JUDGE_FIELDS if f"{{{name}}}" not in template]


def chat(text: str, context: Context = ONE_VIDEO) -> list[dict]:
    """The chat messages of a prompt, as `apply_chat_template` of a Hugging Face processor takes them.

    They are the system text, the earlier turns, and `text` as the user's last turn. The n-th part of type video stands for the
    context's n-th video, and likewise for images. Where no text of the user has a place for them, all videos and then all images come
    before the first of these texts; those that only a question has places for, which `text` does not quote, come before `text`.
    """
    said = [(turn.role, _marked(turn.content) if turn.role == "user" else turn.content) for turn in context.turns]
    said.append(("user", text))
    placed = collections.Counter(mark for role, content in said if role == "user" for mark in _MARK.findall(content))
    unplaced: list[dict] = [{"type": "video"}] * (len(context.videos) - placed[MARKS["<video>"]])
    unplaced += [{"type": "image"}] * (len(context.images) - placed[MARKS["<image>"]])
    contents = [_parts(content, splits=role == "user") for role, content in said]
    before = -1 if placed else 0
    contents[before] = unplaced + contents[before]
    turns: list[dict] = [{"role": role, "content": content} for (role, _), content in zip(said, contents, strict=True)]
    system = [{"role": "system", "content": [{"type": "text", "text": context.system}]}] if context.system else []
    return system + turns


def conversation(example: Example) -> str:
    """The question as a judge of texts reads it: after the earlier turns, if there are any."""
    said = [f"{turn.role.capitalize()}: {turn.content}" for turn in example.turns]
    return "\n".join([*said, f"User: {example.question}"]) if said else example.question


def _parts(text: str, *, splits: bool) -> list[dict]:
    """The parts of a message: its text, cut at the marks of videos and images if it `splits`."""
    kinds = {mark: place.strip("<>") for place, mark in MARKS.items()}
    pieces = [piece for piece in _MARK.split(text) if piece] if splits else []
    return [{"type": kinds[piece]} if piece in kinds else {"type": "text", "text": piece} for piece in pieces or [text]]
