"""What `tests/all_videos.py` found, as the table of docs/videos.md."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "videos" / "corpus.json"
PAGE = ROOT / "docs" / "videos.md"
BEGIN, END = "<!-- written by make test-videos -->\n", "<!-- end -->\n"


def read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def outcome(row: dict[str, Any], backend: str) -> str:
    found = row[backend]
    if found["wrong"]:
        return f"**wrong**: {found['wrong']}"
    by = {"pyav": "PyAV", "decord": "decord"}[found["used"]]
    if not found["levels"]:
        return f"exact, by {by}"
    return f"within {found['levels']} levels, {found['mean_levels']:g} on average, by {by}: {row['why']}"


def table(found: dict[str, Any]) -> str:
    """One line for the codecs of one container and oddity that end alike."""
    rows = found["cases"]

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["oddity"], row["container"], outcome(row, "pyav"), outcome(row, "decord")

    order = {row["oddity"]: at for at, row in reversed(list(enumerate(rows)))}
    lines = ["| oddity | container | codecs | `backend: pyav` | `backend: decord` |", "|---|---|---|---|---|"]
    for (oddity, container, ours, theirs), group in itertools.groupby(
        sorted(rows, key=lambda row: (order[row["oddity"]], key(row))), key
    ):
        codecs = ", ".join(row["codec"] for row in group)
        lines.append(f"| {oddity or 'none'} | {container} | {codecs} | {ours} | {theirs} |")
    exact = sum(not row[backend]["levels"] and not row[backend]["wrong"] for row in rows for backend in ("pyav", "decord"))
    by_decord = sum(row["decord"]["used"] == "decord" for row in rows)
    head = (
        f"{len(rows)} files, judged by FFmpeg's command ({found['ffmpeg']}) against PyAV {found['av']} and decord {found['decord']}: "
        f"{exact} of {2 * len(rows)} outcomes are exact, that is the same number of frames, a largest difference of 0 in any pixel, "
        f"and every frame within half a frame of its time. With `backend: decord`, decord decoded {by_decord} files itself and "
        f"PyAV the other {len(rows) - by_decord}.\n\n"
    )
    return head + "\n".join(lines) + "\n"


def in_page(text: str, part: str) -> str:
    """The page with its table replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + part + END + rest.split(END, 1)[1]
