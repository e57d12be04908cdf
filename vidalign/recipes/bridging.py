"""BMC's bridging phase: a wrong response, corrected in as few words as it takes, is preferred to itself.

Source: arXiv 2408.07471, section 3.1 (the wording and the checks are ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.rewriting import RrpoRecipe
from vidalign.data.scorers import trust_by
from vidalign.recipes.judging import Chat, Messages
from vidalign.recipes.phrases import differing_marks
from vidalign.types import Example


def why_no_bridge(example: Example, wrong: str, corrected: str, config: RrpoRecipe) -> str:
    """Why a correction of a wrong response cannot be chosen; empty where it can.

    no_bridge: there is none, or nothing was changed. bridge_not_right: it is not known to be right. bridge_rewritten: it differs from
    the response in more words than the ground truth does.
    """
    if not corrected.strip() or not any(differing_marks(corrected.strip(), wrong.strip())):
        return "no_bridge"
    if not trust_by(config.trust, corrected, example) > config.max_trust:  # nor where nobody can tell
        return "bridge_not_right"
    return "bridge_rewritten" if num_changed(corrected, wrong) > num_changed(example.answer, wrong) else ""


def num_changed(text: str, other: str) -> int:
    """In how many words two texts differ, those of both together."""
    texts = text.strip(), other.strip()
    marks = differing_marks(*texts)
    return sum(len(each[start:end].split()) for each, spans in zip(texts, marks, strict=True) for start, end in spans)


def bridge_rows(
    rows: Sequence[dict[str, Any]],
    config: JudgeConfig,
    chat: Chat,
    name: str,
    *,
    bridge_prompt: str,
    recipe: RrpoRecipe,
) -> list[dict[str, Any]]:
    """Correct the wrong responses of each row {example, wrong: [{candidate, text}, …]}, in their order until one can be chosen.

    Returns:
        A row {example_id, candidate, bridged, judge: its name} for each try.
    """

    def ask(example: Example, previous: str) -> Messages:
        question = prompts.conversation(example)
        return [
            {
                "role": "user",
                "content": prompts.fill(bridge_prompt, question=question, answer=example.answer, previous=previous),
            }
        ]

    made: list[dict[str, Any]] = []
    left = [(Example.from_row(row["example"]), row["wrong"]) for row in rows]
    number = 0
    while left := [each for each in left if number < len(each[1])]:
        written = chat([ask(example, wrong[number]["text"]) for example, wrong in left])
        made += [
            {"example_id": example.id, "candidate": wrong[number]["candidate"], "bridged": text, "judge": name}
            for (example, wrong), text in zip(left, written, strict=True)
        ]
        left = [
            each
            for each, text in zip(left, written, strict=True)
            if why_no_bridge(each[0], each[1][number]["text"], text, recipe)
        ]
        number += 1
    return made
