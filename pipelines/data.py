"""`vidalign data`: import and export preference data, change the kind of a data file, and check whether files can be used."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines import data_report
from vidalign.data import validate
from vidalign.data.formats import EXPORTERS, IMPORTERS, exporter, importer, llamafactory
from vidalign.data.formats.convert import Conversion, import_file
from vidalign.data.formats.export import convert_file, export_file
from vidalign.data.writing import SUFFIXES, write_rows
from vidalign.errors import ConfigError
from vidalign.special_tokens import KNOWN_ONLY, SpecialTokens
from vidalign.types import DEADLINE_S

SOURCE = "JSONL, JSON, Parquet, Arrow or CSV, a folder of one of them, or hf:org/name[:config][/split]"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `data` with its own commands."""
    text = "import, export, convert and check data files"
    actions = commands.add_parser("data", help=text, description=text).add_subparsers(required=True, metavar="ACTION")
    text = "write other projects' preference data as rows of vidalign"
    action = actions.add_parser("import", help=text, description=text)
    action.add_argument(
        "--from", dest="format", required=True, metavar="FORMAT", help=f"the format of SOURCE: {_names(IMPORTERS)}"
    )
    action.add_argument("source", metavar="SOURCE", help=SOURCE)
    action.add_argument(
        "--fps", type=_positive, metavar="N", help="frames for one second in lists and folders of frames that do not say it"
    )
    action.set_defaults(run=_import)
    _add_common(action, ".jsonl unless its name says .json, .parquet, .csv or .tsv")
    text = "write rows of vidalign, or the pairs of a run, as another project's rows"
    action = actions.add_parser("export", help=text, description=text)
    action.add_argument(
        "--to", dest="format", required=True, metavar="FORMAT", help=f"the format to write: {_names(EXPORTERS)}"
    )
    action.add_argument("source", metavar="SOURCE", help=f"a run, the pairs of one of its rounds, or a data file: {SOURCE}")
    action.add_argument("--only", choices=("pairs", "examples"), help="write only the rows of this kind")
    action.set_defaults(run=_export)
    _add_common(action, "a JSON array unless its name says .jsonl, .parquet, .csv or .tsv")
    text = "write a data file, or the pairs of a run, as another kind of file; every field is kept"
    action = actions.add_parser("convert", help=text, description=text)
    action.add_argument("source", metavar="SOURCE", help=f"a run, the pairs of one of its rounds, or a data file: {SOURCE}")
    action.set_defaults(run=_convert)
    _add_common(action, f"its name ends in {', '.join(SUFFIXES)}")
    text = "check rows, their videos, and the files against one another; exit code 2 when there are errors"
    action = actions.add_parser("validate", help=text, description=text)
    action.add_argument("files", nargs="+", metavar="SOURCE", help=f"examples or pairs, each one split: {SOURCE}")
    _add_root(action)
    action.add_argument(
        "--decode", action="store_true", help="open every video, and warn of videos in different splits that look alike"
    )
    action.add_argument(
        "--num-decoders", type=int, metavar="N", help="processes that open videos (default: one for each CPU)"
    )
    action.add_argument(
        "--deadline-s", type=_positive, metavar="S", help=f"seconds that one video may take (default: {DEADLINE_S:g})"
    )
    action.add_argument("--model", metavar="DIR", help="also look for the special tokens of this model in every text")
    action.set_defaults(run=_validate)


def _names(formats: Iterable[str]) -> str:
    return f"{', '.join(sorted(formats))}, or package.module:attribute of a function like theirs"


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text}") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _add_root(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--video-root", metavar="DIR", help="what relative videos are relative to (default: each source's folder)"
    )


def _add_common(action: argparse.ArgumentParser, kind: str) -> None:
    _add_root(action)
    action.add_argument("--out", required=True, metavar="FILE", help=f"the file to write: {kind}")
    action.add_argument("--skip-errors", action="store_true", help="write the other rows where some cannot be converted")


def _import(arguments: argparse.Namespace) -> int:
    _refuse_same_file(arguments)
    to_row = importer(arguments.format)
    done = import_file(arguments.source, to_row, out=arguments.out, video_root=arguments.video_root, fps=arguments.fps)
    return _write(done, arguments, ".jsonl")


def _export(arguments: argparse.Namespace) -> int:
    _refuse_same_file(arguments)
    from_row = exporter(arguments.format)
    done = export_file(
        arguments.source,
        from_row,
        out=arguments.out,
        video_root=arguments.video_root,
        only=arguments.only,
        one_kind=from_row in EXPORTERS.values(),
    )
    code = _write(done, arguments, ".json")
    if code == 0 and from_row is EXPORTERS["llamafactory"]:
        entry = llamafactory.dataset_info(done.rows, pathlib.Path(arguments.out).name)
        print(f"add this to LLaMA-Factory's dataset_info.json:\n{json.dumps(entry, indent=2)[2:-2]}")
    return code


def _convert(arguments: argparse.Namespace) -> int:
    _refuse_same_file(arguments)
    if pathlib.Path(arguments.out).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {arguments.out} says no kind of file; let its name end in {', '.join(SUFFIXES)}")
    return _write(convert_file(arguments.source, out=arguments.out, video_root=arguments.video_root), arguments, ".jsonl")


def _validate(arguments: argparse.Namespace) -> int:
    for option in ("num_decoders", "deadline_s"):
        if getattr(arguments, option) is not None and not arguments.decode:
            raise ConfigError(f"--{option.replace('_', '-')} is about opening videos; add --decode, or leave it out")
    look = _look(arguments) if arguments.decode else None
    special = _special_tokens(arguments.model) if arguments.model else KNOWN_ONLY
    report = validate.validate(arguments.files, video_root=arguments.video_root, special=special, look=look)
    data_report.print_errors(report.errors)
    data_report.print_capped([f"warning: {warning}" for warning in report.warnings], "warning")
    print(data_report.table(report.splits))
    if look is not None:
        print(f"\n{data_report.decoded_line(report)}", end="")
    print(f"\n{validate.plural(len(report.errors), 'error')}, {validate.plural(len(report.warnings), 'warning')}")
    return 2 if report.errors else 0


def _special_tokens(model: str) -> SpecialTokens:
    from vidalign.model.rendering import load_processor  # imports torch
    from vidalign.model.turns import turns_of

    return turns_of(load_processor(model)).special


def _look(arguments: argparse.Namespace) -> Any:
    """What opens the videos of `validate --decode`, with a progress bar."""
    if arguments.num_decoders is not None and arguments.num_decoders < 1:
        raise ConfigError(f"--num-decoders must be at least 1, got {arguments.num_decoders}; leave it out for one per CPU")

    def look(videos: Sequence[str]) -> Mapping[str, validate.Looked]:
        from pipelines import progress
        from vidalign.data import decodable

        if not videos:
            return {}
        with progress.bar("open videos", len(videos), "video") as shown:
            return decodable.look(
                videos,
                num_decoders=arguments.num_decoders,
                deadline_s=arguments.deadline_s or DEADLINE_S,
                on_done=lambda: shown.update(1),
            )

    return look


def _refuse_same_file(arguments: argparse.Namespace) -> None:
    source, out = pathlib.Path(arguments.source), pathlib.Path(arguments.out)
    if out.is_dir() or (out.exists() and source.exists() and out.samefile(source)):
        raise ConfigError(f"--out must name a file other than the source, got {out}; choose another name")


def _write(done: Conversion, arguments: argparse.Namespace, default: str) -> int:
    """Write the converted rows and say what they hold, unless there are errors that were not to be skipped."""
    data_report.print_errors(done.errors)
    if (done.errors and not arguments.skip_errors) or not done.rows:
        way_out = ", or leave them out with --skip-errors" if done.rows else ""
        what = f"correct the rows above{way_out}" if done.errors else "no row is of the kind that --only asks for"
        print(f"nothing was written; {what}", file=sys.stderr)
        return 2
    write_rows(pathlib.Path(arguments.out), done.rows, default=default)
    print("\n".join(data_report.summary(done, arguments.out)))
    return 0
