"""The table of a suite: scores of each model side by side, as plain values, Markdown and text for the console."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign import files

MAX_NAMED = 10


def kept(folders: Sequence[pathlib.Path]) -> list[tuple[str, dict[str, Any]]]:
    """Of each suite in these folders, its name and what its `scores.json` holds."""
    paths = [path for folder in folders for path in sorted(folder.glob("*/scores.json"))]
    return [(path.parent.name, files.read_json(path)) for path in paths]


def views(folders: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    """The suites in these folders for the report: title, what was asked, the table's header and its rows."""
    found = []
    for name, scores in kept(folders):
        found.append(
            {
                "name": name,
                "title": scores["title"],
                "header": _header(scores),
                "rows": rows(scores),
                "facts": facts(scores),
            }
        )
    return found


def _header(scores: Mapping[str, Any]) -> list[str]:
    return ["measure", "n", *scores["models"], *(["change"] if scores["difference"] else [])]


def markdown(scores: Mapping[str, Any]) -> str:
    """The page `table.md`: what was asked, the table, and everything that the numbers leave out."""
    header = _header(scores)
    lines = [
        f"# {scores['title']}",
        "",
        *(f"- {fact}" for fact in facts(scores)),
        "",
        _row(header),
        _row(["---"] * len(header)),
    ]
    lines += [_row(cells) for cells in rows(scores)]
    return "\n".join([*lines, "", "Intervals are 95 %.", ""])


def console(scores: Mapping[str, Any]) -> str:
    """The same for the console, without what the command says already."""
    table = [_header(scores), *rows(scores)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([f"{scores['title']}: {scores['rule']}", *lines, *facts(scores)[3:]])


def rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """One row a measure: name, how many units, the value of each model with its interval, and the change with its own."""
    tables = [model["scores"] for model in scores["models"].values()]
    changes = scores["difference"]["scores"] if scores["difference"] else []
    found = []
    for index, first in enumerate(tables[0]):
        same = [table[index] for table in tables]
        counts = dict.fromkeys(f"{score['n']:,}" for score in same)
        unit = "" if first["counts"] == "questions" else f" {first['counts']}"
        cells = [first["measure"], " / ".join(counts) + unit, *(shown(score) for score in same)]
        found.append([*cells, *([shown(changes[index], signed=True)] if changes else [])])
    return found


def shown(score: Mapping[str, Any], *, signed: bool = False) -> str:
    """A share in percent, a score as "3.20 of 5", each with its interval."""
    if score["value"] is None:
        return "–"
    is_share = score["top"] == 1
    scale, digits = (100, 1) if is_share else (1, 2)
    unit = (" pt" if signed else " %") if is_share else ("" if signed else f" of {score['top']:g}")

    def number(value: float) -> str:
        return f"{scale * value:{'+' if signed else ''}.{digits}f}".replace("-", "−")

    interval = "" if score["low"] is None else f" ({number(score['low'])} to {number(score['high'])})"
    return f"{number(score['value'])}{unit}{interval}"


def facts(scores: Mapping[str, Any]) -> list[str]:
    """What was asked, by which rule, and what the numbers leave out."""
    asked = f"{scores['num_questions']:,} questions in {scores['data']}"
    tasks = f", tasks {', '.join(scores['tasks'])}" if scores["tasks"] else ""
    found = [
        f"rule: {scores['rule']}",
        f"source of the rule: {scores['source']}",
        f"{asked}{tasks}{', with subtitles' if scores['subtitles'] else ''}; replies of up to {scores['max_new_tokens']:,} tokens",
    ]
    if scores["without_answer"]:
        found.append(f"published without a right option, counted as wrong: {_named(scores['without_answer'])}")
    missing = scores["missing_videos"]
    if missing:
        found.append(
            f"videos that are not there: {_named(missing)}; questions on them, not asked: {scores['num_missing']:,}"
        )
    for name, model in scores["models"].items():
        of = f"{model['num_answers']:,} of {scores['num_questions']:,} questions"
        policy = f" (policy {model['policy_version']})" if model["policy_version"] else ""
        found.append(f"{name}{policy}: answered {of}")
        unusable = [video["uri"] for video in model["unusable_videos"]]
        if unusable:
            found.append(f"videos that {name} could not use, not scored: {_named(unusable)}")
        if model["num_unread"]:
            found.append(f"replies of {name} in which no answer is read, counted as wrong: {model['num_unread']:,}")
        if model["judge"]:
            found.append(f"judge of {name}: {model['judge']}")
        if model["num_unjudged"]:
            found.append(f"replies of {name} on which the judge states no verdict, not scored: {model['num_unjudged']:,}")
    return found


def _named(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return f"{len(names):,} ({', '.join(names[:MAX_NAMED])}{f' and {more:,} more, see scores.json' if more > 0 else ''})"


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
