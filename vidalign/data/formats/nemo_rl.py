"""NeMo RL's preference data (https://docs.nvidia.com/nemo/rl/latest/guides/dpo.html#datasets).

    context, the messages of the prompt; completions, a list of {"rank", "completion"} in which the lowest rank is preferred
    messages, the last of which is the response, for supervised fine-tuning

Videos are inside the messages' content. As in NeMo RL's DPO, the lowest rank is chosen and the highest rejected.
"""

from __future__ import annotations

from typing import Any

from vidalign.data.formats.chat import SourceRow
from vidalign.data.formats.exporting import conversation, more_columns, parts_of, response
from vidalign.data.formats.fields import Fields, Notes, has_content
from vidalign.data.formats.messages import response_text, split_conversation
from vidalign.errors import RowError

SCORES = ("score", "reward")


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    row = SourceRow(fields, notes)
    if "messages" in fields:
        asked, answer = split_conversation(row.turns("messages"), "messages")
        return row.example(asked, "messages", answer)
    if "context" not in fields or "completions" not in fields:
        raise row.unknown_columns(
            "a row has context and completions; prompt, chosen and rejected are imported with --from trl"
        )
    prompt = row.turns("context")
    ranked = _ranked(fields.pop("completions"), notes)
    responses = [
        response_text(item["completion"], f"completions[{place}].completion", notes, prompt) for _, place, item in ranked
    ]
    if len(ranked) == 1:
        return row.example(prompt, "context", responses[0])
    if ranked[0][0] == ranked[-1][0]:
        why = f"all have the rank {ranked[0][0]}, so none is preferred"
        raise RowError("completions", why, "give the better one a lower rank, or remove the row")
    if len(ranked) > 2:
        notes["completion between the best and the worst rank, which is not used"] += len(ranked) - 2
    for side, (_, _, item) in (("chosen", ranked[0]), ("rejected", ranked[-1])):
        if item["score"] is not None and f"{side}_score" not in fields:
            fields[f"{side}_score"] = item["score"]
    return row.pair(prompt, "context", responses[0], responses[-1])


def _ranked(completions: Any, notes: Notes) -> list[tuple[int, int, Fields]]:
    """(rank, place, {completion, score}) of each completion, best first; equal ranks keep the row's order."""
    if not isinstance(completions, list) or not completions:
        raise RowError("completions", "must be a list of completions", 'write [{"rank": 0, "completion": …}, …]')
    ranked = []
    for place, item in enumerate(completions):
        rank = item.get("rank") if isinstance(item, dict) else None
        if not isinstance(rank, int) or isinstance(rank, bool):
            why = f"must have a whole number as its rank, got {rank!r}"
            raise RowError(f"completions[{place}]", why, 'write {"rank": 0, "completion": …}')
        score = next((name for name in SCORES if isinstance(item.get(name), int | float)), None)
        for name in sorted(set(item) - {"rank", "completion", score}):
            if has_content(item[name]):
                notes[f"'{name}' of a completion, which is not used"] += 1
        ranked.append((rank, place, {"completion": item.get("completion"), "score": item[score] if score else None}))
    return sorted(ranked, key=lambda item: item[:2])


def from_row(row: Fields, notes: Notes) -> Fields:
    """A pair as context and two ranked completions, an example as messages. Raises `RowError`."""
    asked = conversation(row, notes)
    media = asked.media_fields()
    context: list[Fields] = [{"role": "system", "content": asked.system}] if asked.system else []
    context += [{"role": role, "content": parts_of(text, media) if role == "user" else text} for role, text in asked.turns]
    more = more_columns(row, notes)
    if "chosen" not in row:
        return {"messages": [*context, *response(row["answer"])], **more}
    ranked = [{"rank": rank, "completion": response(row[side])} for rank, side in enumerate(("chosen", "rejected"))]
    return {"context": context, "completions": ranked, **more}
