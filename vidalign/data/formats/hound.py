"""LLaVA-Hound-DPO (arXiv 2404.01258, https://github.com/RifleZhang/LLaVA-Hound-DPO).

    id, video, prompt, answer, chosen, rejected, chosen_score, rejected_score

The scores are a judge's, from 1 to 5. The videos are published as folders of frames; how many there are for one second is said to
the import.
"""

from __future__ import annotations

from vidalign.data.formats.chat import SourceRow
from vidalign.data.formats.fields import Fields, Notes


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    row = SourceRow(fields, notes)
    if "prompt" not in fields:
        raise row.unknown_columns(
            "a row has video, prompt, chosen and rejected; conversations are imported with --from llamafactory"
        )
    prompt = row.turns("prompt")
    if row.is_pair:
        return row.pair(prompt, "prompt", *row.responses())
    return row.example(prompt, "prompt", row.response("answer"))
