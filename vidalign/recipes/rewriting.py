"""RRPO's parallel rejected responses: a text model lists what a wrong response gets wrong and swaps only that into the ground truth.

Source: arXiv 2504.12083 (the wording is ours). Whether a rewrite changed only the listed phrases is checked when pairs are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.recipes.judging import Chat, Messages
from vidalign.recipes.phrases import parse_differences


def rewrite_rows(
    rows: Sequence[dict[str, Any]],
    config: JudgeConfig,
    chat: Chat,
    name: str,
    *,
    differences_prompt: str,
    rewrite_prompt: str,
) -> list[dict[str, Any]]:
    """Rewrite the ground truth of each row {example_id, candidate, question, answer, wrong}.

    Returns:
        The rows with `differences`, `rewritten` ("" if no difference was listed) and `judge`, the judge's name.
    """

    def ask(template: str, row: dict[str, Any], previous: str) -> Messages:
        text = prompts.fill(template, question=row["question"], answer=row["answer"], previous=previous)
        return [{"role": "user", "content": text}]

    listed = chat([ask(differences_prompt, row, row["wrong"]) for row in rows]) if rows else []
    usable = [index for index, text in enumerate(listed) if parse_differences(text)]
    asked = [ask(rewrite_prompt, rows[index], listed[index].strip()) for index in usable]
    rewritten = dict(zip(usable, chat(asked) if asked else [], strict=True))
    return [
        {**row, "differences": listed[index], "rewritten": rewritten.get(index, ""), "judge": name}
        for index, row in enumerate(rows)
    ]
