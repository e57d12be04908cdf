"""`vidalign data`: import other projects' preference data, export pairs, and check whether data files can be used."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Sequence

from vidalign.data import validate
from vidalign.data.formats import EXPORTERS, IMPORTERS, exporter, importer
from vidalign.data.formats.convert import Conversion, export_file, import_file
from vidalign.data.formats.fields import Fields
from vidalign.errors import ConfigError, RowError
from vidalign.files import write_text_atomic
from vidalign.special_tokens import KNOWN_ONLY, SpecialTokens

MAX_SHOWN = 50
MAX_CATEGORIES = 20


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `data` with its own commands."""
    text = "import, export and check data files"
    actions = commands.add_parser("data", help=text, description=text).add_subparsers(required=True, metavar="ACTION")
    text = "write other projects' preference data as rows of vidalign"
    action = actions.add_parser("import", help=text, description=text)
    action.add_argument(
        "--from", dest="format", required=True, metavar="FORMAT", help=f"the format of SOURCE: {_names(IMPORTERS)}"
    )
    action.add_argument("source", metavar="SOURCE", help="a JSONL, JSON or Parquet file")
    action.add_argument(
        "--video-root", metavar="DIR", help="what SOURCE's relative videos are relative to (default: its folder)"
    )
    action.set_defaults(run=_import)
    _add_common(action)
    text = "write pairs of vidalign as another project's rows"
    action = actions.add_parser("export", help=text, description=text)
    action.add_argument(
        "--to", dest="format", required=True, metavar="FORMAT", help=f"the format to write: {_names(EXPORTERS)}"
    )
    action.add_argument("source", metavar="FILE", help="a JSONL file of pairs")
    action.set_defaults(run=_export)
    _add_common(action)
    text = "check rows, their videos, and the files against one another; exit code 2 when there are errors"
    action = actions.add_parser("validate", help=text, description=text)
    action.add_argument("files", nargs="+", metavar="FILE", help="JSONL files of examples or pairs, each one split")
    action.add_argument(
        "--video-root", metavar="DIR", help="what relative videos are relative to (default: each file's folder)"
    )
    action.add_argument("--model", metavar="DIR", help="also look for the special tokens of this model in every text")
    action.set_defaults(run=_validate)


def _names(formats: Iterable[str]) -> str:
    return f"{', '.join(sorted(formats))}, or package.module:attribute of a function like theirs"


def _add_common(action: argparse.ArgumentParser) -> None:
    action.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    action.add_argument("--skip-errors", action="store_true", help="write the other rows where some cannot be converted")


def _import(arguments: argparse.Namespace) -> int:
    _refuse_same_file(arguments)
    to_row = importer(arguments.format)
    done = import_file(arguments.source, to_row, out=arguments.out, video_root=arguments.video_root)
    return _write(done, arguments, "".join(f"{_json(row)}\n" for row in done.rows))


def _export(arguments: argparse.Namespace) -> int:
    _refuse_same_file(arguments)
    done = export_file(arguments.source, exporter(arguments.format), out=arguments.out)
    return _write(done, arguments, "[\n" + ",\n".join(_json(row) for row in done.rows) + "\n]\n")


def _validate(arguments: argparse.Namespace) -> int:
    special = _special_tokens(arguments.model) if arguments.model else KNOWN_ONLY
    report = validate.validate(arguments.files, video_root=arguments.video_root, special=special)
    _print_errors(report.errors)
    _print_capped([f"warning: {warning}" for warning in report.warnings], "warning")
    print(table(report.splits))
    print(f"\n{validate.plural(len(report.errors), 'error')}, {validate.plural(len(report.warnings), 'warning')}")
    return 2 if report.errors else 0


def _special_tokens(model: str) -> SpecialTokens:
    from vidalign.model.rendering import load_processor  # imports torch
    from vidalign.model.turns import turns_of

    return turns_of(load_processor(model)).special


def _refuse_same_file(arguments: argparse.Namespace) -> None:
    source, out = pathlib.Path(arguments.source), pathlib.Path(arguments.out)
    if out.is_dir() or (out.exists() and source.exists() and out.samefile(source)):
        raise ConfigError(f"--out must name a file other than the source, got {out}; choose another name")


def _write(done: Conversion, arguments: argparse.Namespace, text: str) -> int:
    """Write the converted rows and say what they hold, unless there are errors that were not to be skipped."""
    _print_errors(done.errors)
    if done.errors and not (arguments.skip_errors and done.rows):
        print(
            f"nothing was written; correct the rows above{', or leave them out with --skip-errors' if done.rows else ''}",
            file=sys.stderr,
        )
        return 2
    write_text_atomic(pathlib.Path(arguments.out), text)
    print("\n".join(summary(done, arguments.out)))
    return 0


def summary(done: Conversion, out: str) -> list[str]:
    """What was written, and everything that the rows do not hold as their source did."""
    num_pairs = sum("rejected" in row or "pred" in row for row in done.rows)
    num_left = done.num_read - len(done.rows)
    counts = [(num_pairs, "pair"), (len(done.rows) - num_pairs, "example")]
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


def _print_errors(errors: Sequence[RowError]) -> None:
    _print_capped([str(error) for error in errors], "error")


def _print_capped(lines: Sequence[str], noun: str) -> None:
    for line in lines[:MAX_SHOWN]:
        print(line, file=sys.stderr)
    if len(lines) > MAX_SHOWN:
        print(f"… and {validate.plural(len(lines) - MAX_SHOWN, f'more {noun}')}, {len(lines):,} in total", file=sys.stderr)


def _json(row: Fields) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)
