"""Checks whether a data set is fit for training and testing: every row of every file, and the files against each other.

    rows as a run reads them (`vidalign.data.reading`) ─► their video files ─► ids and videos across files

Each file is one split. An error is a row that a run refuses or could not use, or that makes a result worthless; a warning is
something worth knowing. Nothing is decoded.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

from vidalign import prompts
from vidalign.data.leakage import find_leaks
from vidalign.data.reading import check_rows, folder_of_videos, no_rows
from vidalign.data.rows import SIDES, ExampleRow, PreferenceRow, local_path, special_token_errors, to_example
from vidalign.errors import DataError, RowError
from vidalign.special_tokens import KNOWN_ONLY, SpecialTokens

TEXTS = ("question", "answer", *SIDES)


@dataclasses.dataclass
class Split:
    """What one file holds. `num_listed` rows of `num_with_options` name their options in the question. `videos` maps each video, as
    `vidalign.data.leakage.locate` names it, to the place of its first row.
    """

    path: pathlib.Path
    num_rows: int = 0
    num_examples: int = 0
    num_preferences: int = 0
    num_marked: int = 0
    num_with_options: int = 0
    num_listed: int = 0
    categories: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    videos: dict[str, str] = dataclasses.field(default_factory=dict)
    num_words: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {name: [] for name in TEXTS})


@dataclasses.dataclass
class Report:
    """Broken rules in the order of the files, then shared videos; and warnings, each with the number of rows it concerns."""

    splits: list[Split] = dataclasses.field(default_factory=list)
    errors: list[RowError] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def validate(
    paths: Sequence[str | pathlib.Path],
    *,
    video_root: str | pathlib.Path | None = None,
    special: SpecialTokens = KNOWN_ONLY,
) -> Report:
    """Check the files of one data set, each of which is one split.

    Args:
        paths: JSONL files of examples or of pairs.
        video_root: the folder that relative videos are relative to; None means the folder of each file.
        special: the special tokens of the model that is to be trained, beside those that every row is checked for.

    Raises:
        DataError: a file does not exist or is named twice.
    """
    report = Report()
    files = [pathlib.Path(path) for path in paths]
    for number, path in enumerate(files):
        if not path.is_file():
            raise DataError(f"no data file at {path}; name a JSONL file")
        if any(path.samefile(other) for other in files[:number]):
            raise DataError(f"{path} is named twice; each file is one split, so name it once")
    places_of_ids: dict[str, str] = {}
    for path in files:
        report.splits.append(_check_split(path, folder_of_videos(path, video_root), places_of_ids, report, special))
    report.errors += _shared_videos(report.splits)
    return report


def _check_split(
    path: pathlib.Path, root: pathlib.Path, places_of_ids: dict[str, str], report: Report, special: SpecialTokens
) -> Split:
    split, remarks = Split(path), _Remarks()
    paired: dict[tuple[str, str], str] = {}
    look = functools.cache(video_problem)
    for checked in check_rows(path, root, places_of_ids):
        split.num_rows += 1
        report.errors += checked.errors
        row, where = checked.row, checked.where
        if row is None:
            continue
        if special != KNOWN_ONLY:
            known = {(error.field, error.why) for error in checked.errors}
            own = [error for error in special_token_errors(row, special) if (error.field, error.why) not in known]
            report.errors += [error.at(where) for error in own]
        _count(split, row, checked.location, where)
        _remark(remarks, row, where)
        problem = look(checked.location)
        if problem:
            report.errors.append(RowError("video", *problem, where))
        if isinstance(row, PreferenceRow) and paired.setdefault((checked.location, row.question), where) != where:
            remarks.add("more than one pair for the same video and question", where)
    if not split.num_rows:
        report.errors.append(no_rows(path))
    if 0 < split.num_marked < split.num_preferences:
        remarks.add(
            "pairs without marked phrases among pairs with them", str(path), split.num_preferences - split.num_marked
        )
    report.warnings += remarks.sentences()
    return split


def _count(split: Split, row: ExampleRow, video: str, where: str) -> None:
    split.categories[row.category] += 1
    split.videos.setdefault(video, where)
    if row.options:
        split.num_with_options += 1
        split.num_listed += prompts.lists_options(to_example(row, split.path.parent))
    if isinstance(row, PreferenceRow):
        split.num_preferences += 1
        split.num_marked += bool(row.chosen_phrases or row.rejected_phrases)
    else:
        split.num_examples += 1
    for name in TEXTS:
        if hasattr(row, name):
            split.num_words[name].append(len(getattr(row, name).split()))


class _Remarks:
    """The warnings of one file: what is worth knowing, how often it occurs, and where it occurs first."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: dict[str, str] = {}

    def add(self, remark: str, where: str, count: int = 1) -> None:
        self.counts[remark] += count
        self.first.setdefault(remark, where)

    def sentences(self) -> list[str]:
        return [f"{self.first[remark]}: {remark} ({plural(count, 'row')})" for remark, count in self.counts.items()]


def plural(count: int, noun: str) -> str:
    """A count with its noun, such as "1 row" or "1,200 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _remark(remarks: _Remarks, row: ExampleRow, where: str) -> None:
    for name in row.model_extra or {}:
        remarks.add(f"'{name}' is not a known field and is ignored", where)
    if local_path(row.video) is None:
        remarks.add("the video is a remote uri and was not checked", where)
    if len(set(row.options)) < len(row.options):
        remarks.add("an option is listed twice", where)
    if not isinstance(row, PreferenceRow):
        return
    for side in SIDES:
        if getattr(row, side) != getattr(row, side).strip():
            remarks.add(f"'{side}' begins or ends with white space, which will be trained on", where)
    if row.chosen_score is not None and row.rejected_score is not None and row.chosen_score <= row.rejected_score:
        remarks.add("'chosen_score' is not higher than 'rejected_score'", where)


def video_problem(path: str) -> tuple[str, str] | None:
    """What is wrong with a local video file and how to fix it, or None. Whether it decodes is not checked."""
    if "://" in path:
        return None
    if os.path.isdir(path):
        return f"{path} is a folder", "name a video file; ffmpeg joins frames into one"
    if not os.path.exists(path):
        return f"no file at {path}", "correct the path, or name the folder that it is relative to with --video-root"
    if not os.access(path, os.R_OK):
        return f"{path} cannot be read", "change its permissions"
    if os.path.getsize(path) == 0:
        return f"{path} is empty", "copy it again, or remove the row"
    return None


def _shared_videos(splits: Sequence[Split]) -> Iterator[RowError]:
    for leak in find_leaks([split.videos for split in splits]):
        copy = f" as {leak.other}, a copy" if leak.is_copy else ""
        why = f"{leak.video} is also in another split, at {leak.other_where}{copy}"
        yield RowError("video", why, "keep each video in one split: what is tested must not be trained on", leak.where)
