"""NeMo RL's preference data (https://docs.nvidia.com/nemo/rl/latest/guides/dpo.html#datasets).

    context, the messages of the prompt; completions, a list of {"rank", "completion"} in which the lowest rank is preferred

Videos are inside the messages' content. As in NeMo RL's DPO, the lowest rank is chosen and the highest rejected.
"""

from __future__ import annotations

from typing import Any

from vidalign.data.formats.chat import SourceRow, response_text
from vidalign.data.formats.fields import Fields, Notes, has_content
from vidalign.errors import RowError


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    row = SourceRow(fields, notes)
    if "context" not in fields or "completions" not in fields:
        raise row.unknown_columns(
            "a row has context and completions; prompt, chosen and rejected are imported with --from trl"
        )
    prompt = row.turns("context")
    ranked = _ranked(fields.pop("completions"), notes)
    responses = [response_text(value, f"completions[{place}].completion", notes, prompt) for _, place, value in ranked]
    if len(ranked) == 1:
        return row.example(prompt, "context", responses[0])
    if ranked[0][0] == ranked[-1][0]:
        why = f"all have the rank {ranked[0][0]}, so none is preferred"
        raise RowError("completions", why, "give the better one a lower rank, or remove the row")
    if len(ranked) > 2:
        notes["completion between the best and the worst rank, which is not used"] += len(ranked) - 2
    return row.pair(prompt, "context", responses[0], responses[-1])


def _ranked(completions: Any, notes: Notes) -> list[tuple[int, int, Any]]:
    """(rank, place, completion) of each completion, best first; equal ranks keep the row's order."""
    if not isinstance(completions, list) or not completions:
        raise RowError("completions", "must be a list of completions", 'write [{"rank": 0, "completion": …}, …]')
    ranked = []
    for place, item in enumerate(completions):
        rank = item.get("rank") if isinstance(item, dict) else None
        if not isinstance(rank, int) or isinstance(rank, bool):
            why = f"must have a whole number as its rank, got {rank!r}"
            raise RowError(f"completions[{place}]", why, 'write {"rank": 0, "completion": …}')
        for name in sorted(set(item) - {"rank", "completion"}):
            if has_content(item[name]):
                notes[f"'{name}' of a completion, which is not used"] += 1
        ranked.append((rank, place, item.get("completion")))
    return sorted(ranked, key=lambda item: item[:2])
