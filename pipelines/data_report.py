"""What `vidalign data` prints: what was written and lost, what files hold, and their errors."""

from __future__ import annotations

import collections
import statistics
import sys
from collections.abc import Sequence

from vidalign.data import validate
from vidalign.data.formats.convert import Conversion
from vidalign.errors import RowError

MAX_SHOWN = 50
MAX_CATEGORIES = 20


def summary(done: Conversion, out: str) -> list[str]:
    """What was written, and everything that the rows do not hold as their source did."""
    num_left = len({error.where for error in done.errors})
    counts = [(done.num_pairs, "pair"), (len(done.rows) - done.num_pairs, "example")]
    lines = [f"{out}: " + " and ".join(validate.plural(count, noun) for count, noun in counts if count)]
    if num_left:
        lines.append(f"  {validate.plural(num_left, 'row')} with errors left out")
    if done.notes:
        lines.append("what the rows do not hold, or hold differently from the source:")
        lines += [
            f"  {count:>8,} x {note}" for note, count in sorted(done.notes.items(), key=lambda item: (-item[1], item[0]))
        ]
    if done.missing_videos:
        missing = done.missing_videos
        lines.append(
            f"warning: {validate.plural(len(missing), 'video')} not found, first {missing[0]}; --video-root names their folder"
        )
    return lines


def table(splits: Sequence[validate.Split]) -> str:
    """Rows by kind, videos, categories and median lengths in words, a column a file."""
    rows = [["", *(split.path.name for split in splits)]]
    for name, values in (
        ("rows", [split.num_rows for split in splits]),
        ("  examples", [split.num_examples for split in splits]),
        ("  pairs", [split.num_preferences for split in splits]),
        ("  pairs with marked phrases", [split.num_marked for split in splits]),
        ("videos", [len(split.videos) for split in splits]),
    ):
        rows.append([name, *(f"{value:,}" for value in values)])
    if any(split.num_with_options for split in splits):
        for name, counts in (
            ("rows with options", [split.num_with_options for split in splits]),
            ("  listed in the question", [split.num_listed for split in splits]),
            ("  added by options_prompt", [split.num_with_options - split.num_listed for split in splits]),
        ):
            rows.append([name, *(f"{count:,}" for count in counts)])
    for text in (text for text in validate.TEXTS if any(split.num_words[text] for split in splits)):
        medians = [f"{statistics.median(words):g}" if (words := split.num_words[text]) else "-" for split in splits]
        rows.append([f"median words of {text}", *medians])
    total: collections.Counter[str] = sum((split.categories for split in splits), collections.Counter())
    for category, _ in total.most_common(MAX_CATEGORIES):
        rows.append([f"category {category or '(none)'}", *(f"{split.categories[category]:,}" for split in splits)])
    if len(total) > MAX_CATEGORIES:
        rows.append([f"… {len(total):,} categories in all", *(f"{len(split.categories):,}" for split in splits)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def decoded_line(report: validate.Report) -> str:
    """How many videos decode, and how many do not for each reason."""
    bad = {reason: count for reason, count in report.decoded.most_common() if reason}
    reasons = "".join(f", {reason} {count:,}" for reason, count in bad.items())
    return f"opened {validate.plural(report.decoded.total(), 'video')}: {report.decoded['']:,} decode{reasons}"


def print_errors(errors: Sequence[RowError]) -> None:
    """Print the first errors to standard error, and the number of all."""
    print_capped([str(error) for error in errors], "error")


def print_capped(lines: Sequence[str], noun: str) -> None:
    """Print the first lines to standard error, and the number of all."""
    for line in lines[:MAX_SHOWN]:
        print(line, file=sys.stderr)
    if len(lines) > MAX_SHOWN:
        print(f"… and {validate.plural(len(lines) - MAX_SHOWN, f'more {noun}')}, {len(lines):,} in total", file=sys.stderr)
