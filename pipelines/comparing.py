"""`vidalign report A B C`: runs beside one another, in the console and as one page.

    summary.json, config.yaml, scored answers of each ─► `compared` (plain values) ─► table of text, templates/comparison.html

Runs are compared by the questions that all of them were asked. Whether two differ is told by the questions on which exactly one of
them is right (McNemar's exact test).
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from pipelines.reports.tables import duration, number, percent, points
from pipelines.stages.base import changes, flat
from pipelines.summary import scored_answers
from vidalign import files, mirror
from vidalign.config.loading import load_config
from vidalign.errors import ConfigError, DataError
from vidalign.files import RunFolder
from vidalign.statistics import wilson_interval
from vidalign.stored import shown

PLACES = (
    "run_dir",
    "video.cache_dir",
    "train.cache_dir",
    "serve.port",
    "serve.host",
)  # options that say nothing of a result


def compare(names: Sequence[str], out: pathlib.Path) -> str:
    """Write the page and return the console's table. Raises `DataError` and `ConfigError` for what is no run with a summary."""
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file, such as {out / 'comparison.html'}")
    found = compared([run_of(name) for name in names])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "number": number, "duration": duration}
    page = environment.get_template("comparison.html").render(found)
    files.write_bytes_atomic(out, page.encode("utf-8", "replace"))
    return table(found)


def run_of(name: str) -> RunFolder:
    """The run that a folder is, or that a configuration names. Raises `DataError` where it has no summary."""
    path = pathlib.Path(mirror.opened(name))
    run = RunFolder.at(load_config(path).run_dir) if path.is_file() else RunFolder(path.absolute())
    mirror.refresh(run.root)
    if not run.summary.is_file():
        raise DataError(f"{name} is no run with a summary.json; give folders of runs, or their configurations")
    return run


def compared(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Everything that is shown, as plain values."""
    names = _names([run.root for run in runs])
    if len(set(names)) < len(names):
        raise ConfigError(f"a run is named twice: {', '.join(names)}; name each once")
    summaries = [files.read_json(run.summary) for run in runs]
    options = [flat(load_config(run.config).model_dump(mode="json")) if run.config.is_file() else {} for run in runs]
    answers = [_right(run) for run in runs]
    common = set.intersection(*(set(each) for each in answers)) if all(answers) else set()
    rows = [
        _row(name, summary, {id_: right for id_, right in each.items() if id_ in common}, num_asked=len(each))
        for name, summary, each in zip(names, summaries, answers, strict=True)
    ]
    first = answers[0]
    for row, each in zip(rows[1:], answers[1:], strict=True):
        row["against_first"] = _against({id_: (first[id_], each[id_]) for id_ in common})
    categories = sorted({name for s in summaries for name in ((s.get("accuracy") or {}).get("by_category") or {})})
    return {
        "names": names,
        "rows": rows,
        "num_common": len(common),
        "num_asked": sorted({len(each) for each in answers}),
        "categories": [(category, [_share(summary, category) for summary in summaries]) for category in categories],
        "options": _differing(options),
        "seeds": [summary.get("seed") for summary in summaries],
    }


def table(found: Mapping[str, Any]) -> str:
    """The comparison in plain text."""
    width = max(len("run"), *(len(name) for name in found["names"]))
    lines = [
        f"{'run':<{width}}  {'n':>6}  {'base':>7}  {'aligned':>7}  {'95 % interval':>16}  {'change':>9}  {'against the first':>24}"
    ]
    lines.append("-" * len(lines[0]))
    for row in found["rows"]:
        low, high = row["interval"] or (None, None)
        interval = f"{percent(low)} to {percent(high)}" if row["interval"] else "–"
        lines.append(
            f"{row['name']:<{width}}  {row['n']:>6,}  {percent(row['base']):>7}  {percent(row['aligned']):>7}  {interval:>16}  "
            f"{points(row['change']):>9}  {_in_words(row.get('against_first')):>24}"
        )
    if len(found["num_asked"]) > 1:
        lines.append(
            f"n is of the {found['num_common']:,} questions that all runs were asked, of {max(found['num_asked']):,}"
        )
    lines += [f"{key}: {', '.join(map(str, values))}" for key, values in found["options"][:20]]
    return "\n".join(lines)


def _names(roots: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of paths that tell the runs apart."""
    for depth in range(1, max(len(pathlib.PurePath(shown(root)).parts) for root in roots) + 1):
        names = ["/".join(pathlib.PurePath(shown(root)).parts[-depth:]) for root in roots]
        if len(set(names)) == len(set(roots)):
            return names
    return [str(root) for root in roots]


def _right(run: RunFolder) -> dict[str, bool]:
    """Example id → whether the aligned model is right, of the questions that could be scored; of the last round with answers."""
    rounds = sorted((int(path.name) for path in run.root.glob("rounds/*") if path.name.isdigit()), reverse=True)
    for index in rounds:
        answers = scored_answers(run, index)
        if "aligned" in answers:
            return {answer.example_id: bool(answer.correct) for answer in answers["aligned"] if answer.correct is not None}
    return {}


def _row(name: str, summary: Mapping[str, Any], right: Mapping[str, bool], *, num_asked: int) -> dict[str, Any]:
    accuracy = summary.get("accuracy") or {}
    whole = len(right) == num_asked
    aligned = sum(right.values()) / len(right) if right else accuracy.get("aligned") if not num_asked else None
    base = accuracy.get("base")
    likelihood = summary.get("log_likelihood") or {}
    return {
        "name": name,
        "n": len(right),
        "base": base,
        "aligned": aligned,
        "interval": wilson_interval(sum(right.values()), len(right)) if right else None,
        "change": aligned - base if whole and aligned is not None and base is not None else None,
        "pairs": (summary.get("pairs") or {}).get("kept"),
        "dropped": sum(((summary.get("pairs") or {}).get("dropped") or {}).values()),
        "both_fell": likelihood.get("both_fell"),
        "ends": {side: (likelihood.get(side) or {}).get("end") for side in ("chosen", "rejected", "truth")},
        "seconds": sum(value for value in (summary.get("wall_s") or {}).values() if value is not None),
        "version": (summary.get("policy") or {}).get("aligned"),
        "against_first": None,
    }


def _against(pairs: Mapping[str, tuple[bool, bool]]) -> dict[str, Any] | None:
    """How another run does on the questions of the first: those that it gained and lost, and how likely that is by chance."""
    if not pairs:
        return None
    gained = sum(not before and now for before, now in pairs.values())
    lost = sum(before and not now for before, now in pairs.values())
    return {"difference": (gained - lost) / len(pairs), "gained": gained, "lost": lost, "p": sign_test(gained, lost)}


def sign_test(gained: int, lost: int) -> float:
    """McNemar's exact test: how likely it is, were both as good, that the one question in two falls at least as unevenly."""
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    return min(1.0, 2 * tail)


def _in_words(against: Mapping[str, Any] | None) -> str:
    return f"{points(against['difference'])} (p = {against['p']:.3f})" if against else "–"


def _share(summary: Mapping[str, Any], category: str) -> float | None:
    part = ((summary.get("accuracy") or {}).get("by_category") or {}).get(category) or {}
    return part.get("aligned")


def _differing(options: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Options that are not the same in all runs, with the value of each."""
    keys = dict.fromkeys(key for each in options for key in each)
    differing = [key for key in keys if any(changes({key: options[0].get(key)}, {key: each.get(key)}) for each in options)]
    return [(key, [each.get(key, "–") for each in options]) for key in differing if key not in PLACES]
