"""BMC's bridging phase: a wrong response, corrected in as few words as it takes, is preferred to itself.

Source: arXiv 2408.07471, section 3.1 (the wording and the checks are ours).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.rewriting import RrpoRecipe
from vidalign.data.answers import is_correct
from vidalign.data.scorers import trust_by
from vidalign.data.words import written_words
from vidalign.recipes.judging import Chat, Messages
from vidalign.recipes.kinds import is_cut, spells_special_token
from vidalign.recipes.pairing import build_pair, side
from vidalign.recipes.phrases import differing_marks
from vidalign.types import Example, PreferencePair, Response


def why_no_bridge(example: Example, wrong: str, corrected: str, config: RrpoRecipe) -> str:
    """Why a correction of a wrong response cannot be chosen; empty where it can.

    no_bridge: there is none, or nothing was changed. bridge_not_right: it is not known to be right. bridge_rewritten: it differs from
    the response in more words than the ground truth does.
    """
    if not corrected.strip() or not any(differing_marks(corrected.strip(), wrong.strip())):
        return "no_bridge"
    if not _is_right(example, corrected, config):
        return "bridge_not_right"
    return "bridge_rewritten" if num_changed(corrected, wrong) > num_changed(example.answer, wrong) else ""


def _is_right(example: Example, corrected: str, config: RrpoRecipe) -> bool:
    """Whether a correction is known to be right. What overlaps with the ground truth is not, however little a wrong response may."""
    if config.trust in (None, "f1"):
        return is_correct(corrected, example)
    return trust_by(config.trust, corrected, example) > config.max_trust  # nor where nobody can tell


def why_not_bridged(example: Example, wrong: Response, written: Response | None, config: RrpoRecipe) -> str:
    """`why_no_bridge` of a response's correction as it was written, or why that cannot be learned from."""
    if written is not None and (is_cut(written) or spells_special_token(written)):
        return "cut_by_length" if is_cut(written) else "special_token"
    return why_no_bridge(example, wrong.text, "" if written is None else written.text, config)


def bridged_pair(
    example: Example, wrong: Sequence[Response], responses: Sequence[Response], config: RrpoRecipe
) -> PreferencePair | str:
    """The pair of the first wrong response whose correction can be chosen; or what is wrong with the first one's."""
    written = {r.candidate: r for r in responses if r.kind == "bridged"}
    reasons = [why_not_bridged(example, each, written.get(each.candidate), config) for each in wrong]
    if "" not in reasons:
        return reasons[0]
    rejected = wrong[reasons.index("")]
    chosen = dataclasses.replace(side(written[rejected.candidate]), trust=1.0)
    made_by = {"recipe": config.name, "rule": f"bridge={config.bridge}", "policy_version": rejected.policy_version}
    return build_pair(example, chosen, side(rejected), **made_by)


def num_changed(text: str, other: str) -> int:
    """In how many words two texts differ, those of both together."""
    texts = text.strip(), other.strip()
    marks = differing_marks(*texts)
    return sum(len(written_words(each[start:end])) for each, spans in zip(texts, marks, strict=True) for start, end in spans)


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
