"""Is a data set fit to train and to test on? Every row of every file is checked, and the files against one another.

    lines ─► row by itself (`vidalign.data.rows`) ─► its video file ─► ids and questions in its split ─► videos across splits

Each file is one split. An error is a row that would be trained on wrongly, would not be trained on, or makes a result
worthless; a warning is worth knowing. Nothing is decoded.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence

from vidalign.data.formats.source import read_lines
from vidalign.data.rows import SIDES, ExampleRow, PreferenceRow, parse_row
from vidalign.errors import DataError, RowError

TEXTS = ("question", "answer", *SIDES)


@dataclasses.dataclass
class Split:
    """What one file holds. `videos` maps each video, as `where_is` names it, to the place of its first row."""

    path: pathlib.Path
    num_rows: int = 0
    num_examples: int = 0
    num_preferences: int = 0
    num_marked: int = 0
    categories: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    videos: dict[str, str] = dataclasses.field(default_factory=dict)
    num_words: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {name: [] for name in TEXTS})


@dataclasses.dataclass
class Report:
    """Broken rules in the order of the files, then those between files; warnings with the number of rows each is about."""

    splits: list[Split] = dataclasses.field(default_factory=list)
    errors: list[RowError] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def validate(paths: Sequence[str | pathlib.Path], *, video_root: str | pathlib.Path | None = None) -> Report:
    """Check the files of one data set, each of them one split.

    Args:
        paths: JSONL files of rows of either kind.
        video_root: the folder that relative videos are relative to; None: the folder of each file.

    Raises:
        DataError: no such file; a file named twice.
    """
    report = Report()
    files = [pathlib.Path(path) for path in paths]
    for number, path in enumerate(files):
        if not path.is_file():
            raise DataError(f"no data file at {path}; name JSONL files")
        if any(path.samefile(other) for other in files[:number]):
            raise DataError(f"{path} was named twice; each file is one split and is named once")
    lines_of_ids: dict[str, str] = {}
    for path in files:
        root = pathlib.Path(video_root) if video_root is not None else path.parent
        report.splits.append(_check_split(path, root, lines_of_ids, report))
    report.errors += shared_videos(report.splits)
    return report


def _check_split(path: pathlib.Path, root: pathlib.Path, lines_of_ids: dict[str, str], report: Report) -> Split:
    split, remarks = Split(path), _Remarks()
    asked: dict[tuple[str, ...], str] = {}
    paired: dict[tuple[str, str], str] = {}
    look = functools.cache(video_problem)
    for where, fields in read_lines(path):
        split.num_rows += 1
        if isinstance(fields, RowError):
            report.errors.append(fields)
            continue
        row, broken = parse_row(fields)
        report.errors += [error.at(where) for error in broken]
        if row is None:
            continue
        video = where_is(row.video, root)
        _count(split, row, video, where)
        _remark(remarks, row, where)
        problem = look(video)
        if problem:
            report.errors.append(RowError("video", *problem, where))
        report.errors += _used_before(row, video, where, lines_of_ids, asked)
        if isinstance(row, PreferenceRow) and paired.setdefault((video, row.question), where) != where:
            remarks.add("more than one pair for one video and question", where)
    if not split.num_rows:
        report.errors.append(
            RowError("file", "holds no rows", "write one JSON object a line, or leave the file out", str(path))
        )
    if 0 < split.num_marked < split.num_preferences:
        remarks.add(
            "pairs without marked phrases beside pairs with them", str(path), split.num_preferences - split.num_marked
        )
    report.warnings += remarks.sentences()
    return split


def _count(split: Split, row: ExampleRow, video: str, where: str) -> None:
    split.categories[row.category] += 1
    split.videos.setdefault(video, where)
    if isinstance(row, PreferenceRow):
        split.num_preferences += 1
        split.num_marked += bool(row.chosen_phrases or row.rejected_phrases)
    else:
        split.num_examples += 1
    for name in TEXTS:
        if hasattr(row, name):
            split.num_words[name].append(len(getattr(row, name).split()))


class _Remarks:
    """Warnings of one file: what is worth knowing, how often, and where first."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: dict[str, str] = {}

    def add(self, remark: str, where: str, count: int = 1) -> None:
        self.counts[remark] += count
        self.first.setdefault(remark, where)

    def sentences(self) -> list[str]:
        return [f"{self.first[remark]}: {remark} ({plural(count, 'row')})" for remark, count in self.counts.items()]


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _remark(remarks: _Remarks, row: ExampleRow, where: str) -> None:
    for name in row.model_extra or {}:
        remarks.add(f"'{name}' is no field of a row and is not used", where)
    if "://" in row.video and not row.video.startswith("file://"):
        remarks.add("the video is a uri of another machine and was not looked at", where)
    if len(set(row.options)) < len(row.options):
        remarks.add("an option is listed twice", where)
    if not isinstance(row, PreferenceRow):
        return
    for side in SIDES:
        if getattr(row, side) != getattr(row, side).strip():
            remarks.add(f"'{side}' begins or ends with white space, which is trained on", where)
    if row.chosen_score is not None and row.rejected_score is not None and row.chosen_score <= row.rejected_score:
        remarks.add("'chosen_score' is not above 'rejected_score'", where)


def _used_before(
    row: ExampleRow, video: str, where: str, lines_of_ids: dict[str, str], asked: dict[tuple[str, ...], str]
) -> Iterable[RowError]:
    """An id of an earlier row of any file; the video and question of an earlier row of this file."""
    earlier = lines_of_ids.setdefault(row.id, where)
    if earlier != where:
        yield RowError("id", f"{row.id!r} is the id of {earlier} too", "give every row an id of its own", where)
    texts = ("question", *SIDES) if isinstance(row, PreferenceRow) else ("question",)  # two pairs may share a question
    key = (video, *(getattr(row, name).strip() for name in texts))
    earlier = asked.setdefault(key, where)
    if earlier != where:
        why = f"the same video and {'pair' if isinstance(row, PreferenceRow) else 'question'} as at {earlier}"
        yield RowError("question", why, "remove one of the two rows", where)


def where_is(video: str, root: pathlib.Path) -> str:
    """The real path of a local video, whatever way it was named; other uris as they are."""
    if video.startswith("file://"):
        video = urllib.request.url2pathname(urllib.parse.urlsplit(video).path)
    return video if "://" in video else os.path.realpath(root / video)


def video_problem(path: str) -> tuple[str, str] | None:
    """What is wrong with a local video file as a file, and how to mend it. Whether it decodes is found out by decoding it."""
    if "://" in path:
        return None
    if os.path.isdir(path):
        return f"{path} is a folder", "name a video file; join frames to one with ffmpeg"
    if not os.path.exists(path):
        return f"no file at {path}", "mend the path, or name the folder that it is relative to with --video-root"
    if not os.access(path, os.R_OK):
        return f"{path} may not be read", "mend its permissions"
    if os.path.getsize(path) == 0:
        return f"{path} is empty", "copy it again, or remove the row"
    return None


def shared_videos(splits: Sequence[Split]) -> list[RowError]:
    """Videos of more than one split, under one path or as copies of one file, each named where a later split has it first.

    Only files of a size that more than one split has are read, and each once.
    """
    alike = _of_equal_size(splits)
    first: dict[str, tuple[int, str, str]] = {}
    errors = []
    for number, split in enumerate(splits):
        for video, where in split.videos.items():
            key = content_hash(video) if video in alike else video
            seen, place, other = first.setdefault(key, (number, where, video))
            if seen != number:
                copy = "" if other == video else f" as {other}, a copy"
                why = f"{video} is also in another split, at {place}{copy}"
                fix = "keep each video in one split: what is tested must not be trained on"
                errors.append(RowError("video", why, fix, where))
    return errors


def _of_equal_size(splits: Sequence[Split]) -> set[str]:
    """Readable files whose size in bytes another file has, of which one at least is in another split."""
    paths: dict[int, set[str]] = collections.defaultdict(set)
    numbers: dict[int, set[int]] = collections.defaultdict(set)
    for number, split in enumerate(splits):
        for video in split.videos:
            if video_problem(video) is None and "://" not in video:
                size = os.path.getsize(video)
                paths[size].add(video)
                numbers[size].add(number)
    return {video for size in paths if len(paths[size]) > 1 and len(numbers[size]) > 1 for video in paths[size]}


@functools.cache
def content_hash(path: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
