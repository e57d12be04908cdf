"""All pairs, groups and answers of a run to search and filter: `report/browse.html`, with their rows beside it.

    report/browse.html          the page: no row in it, and nothing from elsewhere
    report/rows/pairs-000.js    ROWS_A_FILE rows; a page that is opened from a disk may load scripts, but no other files

Texts are data until they are shown as text: no row becomes markup.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from vidalign import mirror
from vidalign.files import RunFolder, write_bytes_atomic
from vidalign.types import MODEL_IDS, EvalAnswer, PreferencePair, ResponseGroup
from vidalign.video.naming import without_question

ROWS_A_FILE = 500
MAX_CHARACTERS = 3000  # of one text


def write_browser(
    run: RunFolder,
    environment: jinja2.Environment,
    *,
    pairs: Mapping[int, Sequence[PreferencePair]],
    groups: Mapping[int, Sequence[ResponseGroup]],
    answers: Mapping[str, Sequence[EvalAnswer]],
) -> dict[str, int]:
    """Write the page and its rows anew. `pairs` and `groups` are by round. Returns how many rows of each kind there are."""
    kinds: dict[str, list[dict[str, Any]]] = {
        "pairs": [pair_row(pair, index) for index, made in pairs.items() for pair in made],
        "groups": [group_row(group, index) for index, made in groups.items() for group in made],
        "answers": list(answer_rows(answers)),
    }
    counts = {name: len(rows) for name, rows in kinds.items()}
    folder = run.report / "rows"
    mirror.remove(folder)
    written: dict[str, list[str]] = {name: [] for name, rows in kinds.items() if rows}
    for name, rows in kinds.items():
        for number, start in enumerate(range(0, len(rows), ROWS_A_FILE)):
            path = folder / f"{name}-{number:03d}.js"
            text = json.dumps(rows[start : start + ROWS_A_FILE], ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            write_bytes_atomic(path, f"rowsOf({json.dumps(name)},{text});\n".encode("utf-8", "replace"), durable=False)
            written[name].append(f"rows/{path.name}")
    page = environment.get_template("browse.html").render(name=run.name, counts=counts, parts=json.dumps(written))
    write_bytes_atomic(run.report / "browse.html", page.encode("utf-8", "replace"))
    return counts


def pair_row(pair: PreferencePair, round_index: int) -> dict[str, Any]:
    """A pair as the page has it; what is empty is left out."""
    made = _provenance(pair.provenance)
    sides: dict[str, Any] = {
        side: found if isinstance(found := made.get(side), dict) else {} for side in ("chosen", "rejected")
    }
    row: dict[str, Any] = {
        **_asked(pair.example_id, pair.context.visuals, pair.question, pair.answer, pair.category),
        "round": round_index,
        "recipe": " ".join(str(made[key]) for key in ("recipe", "rule") if made.get(key)),
    }
    for side in ("chosen", "rejected"):
        row[side] = _cut(getattr(pair, side))
        row[f"{side}_marks"] = [list(span) for span in getattr(pair, f"{side}_marks")]
        row[f"{side}_kind"] = str(sides[side].get("kind", ""))
        for figure in ("reward", "trust"):
            value = getattr(pair, f"{side}_{figure}")
            row[f"{side}_{figure}"] = None if math.isnan(value) else round(value, 3)
    return {name: value for name, value in row.items() if value not in ("", None, [])}


def group_row(group: ResponseGroup, round_index: int) -> dict[str, Any]:
    """A group as the page has it: its replies as [text, reward or None, why it was left out]."""
    replies = [
        [_cut(text), None if math.isnan(reward) else round(reward, 3), why]
        for text, reward, why in zip(group.texts, group.rewards, group.left_out, strict=True)
    ]
    asked = _asked(group.example_id, group.context.visuals, group.question, group.answer, group.category)
    return {**asked, "round": round_index, "replies": replies}


def answer_rows(answers: Mapping[str, Sequence[EvalAnswer]]) -> Iterator[dict[str, Any]]:
    """One row a question, with the answer of each model and whether it was right: "right", "wrong" or "unscored"."""
    questions: dict[str, dict[str, Any]] = {}
    for model in MODEL_IDS:
        for answer in answers.get(model, ()):
            row = questions.setdefault(
                answer.example_id,
                {
                    **_asked(answer.example_id, answer.context.visuals, answer.question, answer.answer, answer.category),
                    **({"kind": answer.kind} if answer.kind else {}),
                },
            )
            row[model] = _cut(answer.text)
            row[f"{model}_is"] = "unscored" if answer.correct is None else "right" if answer.correct else "wrong"
    yield from questions.values()


def _asked(example_id: str, visuals: Sequence[str], question: str, answer: str, category: str) -> dict[str, Any]:
    found = {
        "id": example_id,
        "video": " ".join(map(without_question, visuals)),
        "question": _cut(question),
        "answer": _cut(answer),
        "category": category,
    }
    return {name: value for name, value in found.items() if value}


def _provenance(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …"
