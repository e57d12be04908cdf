"""RRPO's parallel rejected responses: a text model lists what a wrong response gets wrong and swaps only that into the ground truth.

Source: arXiv 2504.12083 (the wording is ours). Whether a rewrite changed only the listed phrases is checked when pairs are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.recipes.judging import Chat, Messages
from vidalign.recipes.phrases import differs_only_in, parse_differences


def is_usable(answer: str, text: str, listed: str) -> bool:
    """Whether a text differs from the answer in the phrases of the list of differences, and in nothing else."""
    return bool(text.strip()) and differs_only_in(answer, text, parse_differences(listed))


def rewrite_rows(
    rows: Sequence[dict[str, Any]],
    config: JudgeConfig,
    chat: Chat,
    name: str,
    *,
    differences_prompt: str,
    rewrite_prompt: str,
) -> list[dict[str, Any]]:
    """Rewrite the ground truth of each row {example_id, question, answer, wrong: [{candidate, text}, …]}.

    The wrong responses of a row are tried in their order until one gives a usable rewrite, or is parallel to the answer itself.

    Returns:
        A row {example_id, candidate, differences, rewritten ("" if no difference was listed), judge: its name} for each try.
    """

    def ask(template: str, row: dict[str, Any], previous: str) -> Messages:
        text = prompts.fill(template, question=row["question"], answer=row["answer"], previous=previous)
        return [{"role": "user", "content": text}]

    made: list[dict[str, Any]] = []
    left, number = list(rows), 0
    while left := [row for row in left if number < len(row["wrong"])]:
        tried = [row["wrong"][number] for row in left]
        listed = chat([ask(differences_prompt, row, wrong["text"]) for row, wrong in zip(left, tried, strict=True)])
        usable = [index for index, text in enumerate(listed) if parse_differences(text)]
        asked = [ask(rewrite_prompt, left[index], listed[index].strip()) for index in usable]
        rewritten = dict(zip(usable, chat(asked) if asked else [], strict=True))
        made += [
            {
                "example_id": row["example_id"],
                "candidate": wrong["candidate"],
                "differences": listed[index],
                "rewritten": rewritten.get(index, ""),
                "judge": name,
            }
            for index, (row, wrong) in enumerate(zip(left, tried, strict=True))
        ]
        left = [
            row for index, row in enumerate(left) if not is_usable(row["answer"], rewritten.get(index, ""), listed[index])
        ]
        number += 1
    return made
