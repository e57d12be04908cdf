"""Checks whether a data set is fit for training and testing: every row of every file, and the files against each other.

    rows as a run reads them (`vidalign.data.reading`) ─► their video files ─► ids and videos across files ─► what is in the videos

Each file is one split. An error is a row that a run refuses or could not use, or that makes a result worthless; a warning is
something worth knowing. Nothing is decoded unless the caller looks into the videos (`vidalign.data.decodable.look`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from vidalign import prompts
from vidalign.data.answers import verdict
from vidalign.data.leakage import find_leaks, locate
from vidalign.data.reading import check_rows, no_rows, root_of_videos
from vidalign.data.rows import SIDES, ExampleRow, PreferenceRow, special_token_errors, to_example
from vidalign.data.words import normalise
from vidalign.errors import DataError, RowError
from vidalign.special_tokens import KNOWN_ONLY, SpecialTokens
from vidalign.video.naming import IMAGE_SUFFIXES, Visual, images_in, local_path, short, visual_of

_LETTERED = re.compile(r"[(\[]?[A-Za-z][.):\]]+\s")
TEXTS = ("question", "answer", *SIDES)


@dataclasses.dataclass
class Split:
    """What one file holds.

    `num_listed` rows of `num_with_options` name their options in the question. `videos` maps each video, as
    `vidalign.data.leakage.locate` names it, to the place of its first row. `names` does so by the names by which a run decodes
    them, for videos whose files are there.
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
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    num_words: dict[str, list[int]] = dataclasses.field(default_factory=lambda: {name: [] for name in TEXTS})


@dataclasses.dataclass
class Report:
    """Broken rules in the order of the files, then shared videos; and warnings, each with the number of rows it concerns.

    `decoded` counts the videos that were opened: "" those that decode, the others by their quarantine reason.
    """

    splits: list[Split] = dataclasses.field(default_factory=list)
    errors: list[RowError] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    decoded: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class Looked(Protocol):
    """What became of one opened video, see `vidalign.data.decodable.Looked`."""

    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def signature(self) -> Any: ...


def validate(
    paths: Sequence[str | pathlib.Path],
    *,
    video_root: str | pathlib.Path | None = None,
    special: SpecialTokens = KNOWN_ONLY,
    look: Callable[[Sequence[str]], Mapping[str, Looked]] | None = None,
) -> Report:
    """Check the files of one data set, each of which is one split.

    Args:
        paths: what `vidalign.data.source` reads, of examples or of pairs.
        video_root: the folder that relative videos are relative to; None means the folder of each file.
        special: the special tokens of the model that is to be trained, beside those that every row is checked for.
        look: opens videos by name; None: they are not opened.

    Raises:
        DataError: a file does not exist or is named twice.
    """
    report = Report()
    files = [pathlib.Path(path) for path in paths]
    for number, path in enumerate(files):
        if any(_same(path, other) for other in files[:number]):
            raise DataError(f"{path} is named twice; each file is one split, so name it once")
    places_of_ids: dict[str, str] = {}
    for path in files:
        report.splits.append(
            _check_split(
                path, root_of_videos(path, video_root), places_of_ids, report, special=special, opened=look is not None
            )
        )
    report.errors += _shared_videos(report.splits)
    if look is not None:
        looked = look(list(dict.fromkeys(name for split in report.splits for name in split.names)))
        report.decoded.update(found.reason for found in looked.values())
        report.errors += _undecodable(report.splits, looked)
        report.warnings += _look_alikes(report.splits, looked)
    return report


def _undecodable(splits: Sequence[Split], looked: Mapping[str, Looked]) -> Iterator[RowError]:
    for name, found in looked.items():
        if found.reason:
            where = next(split.names[name] for split in splits if name in split.names)
            why, _, fix = found.message.partition("; ")  # some messages name their own way out
            yield RowError("video", f"{found.reason}: {why}", fix or "replace the file, or remove its rows", where)


def _look_alikes(splits: Sequence[Split], looked: Mapping[str, Looked]) -> Iterator[str]:
    """Warnings for videos of two splits that look alike and are not the same file."""
    from vidalign.data.decodable import alike

    places = {name: locate(name, pathlib.Path()) for name in looked}
    seen = [{name: looked[name].signature for name in split.names if looked[name].signature is not None} for split in splits]
    for number, split in enumerate(splits):
        for other, others in zip(splits[:number], seen, strict=False):
            for name, earlier in alike(seen[number], others):
                if places[name] != places[earlier]:
                    place = f"{short(earlier)}, of another split, at {other.names[earlier]}"
                    yield f"{split.names[name]}: {short(name)} looks like {place}; if it is a copy, keep it in one split"


def _same(path: pathlib.Path, other: pathlib.Path) -> bool:
    return path == other or (path.exists() and other.exists() and path.samefile(other))


def _check_split(
    path: pathlib.Path,
    root: pathlib.Path | str,
    places_of_ids: dict[str, str],
    report: Report,
    *,
    special: SpecialTokens,
    opened: bool,
) -> Split:
    split, remarks = Split(path), _Remarks()
    paired: dict[tuple[str, ...], str] = {}
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
        _count(split, row, checked.locations, where)
        shown = [visual_of(name) for name in checked.names]
        if not opened and any(local_path(uri) is None for visual in shown for uri in visual.uris):
            remarks.add("the video is a remote uri and was not checked", where)
        _remark(remarks, row, shown, where)
        if checked.pair is None and isinstance(
            row, PreferenceRow
        ):  # a run's scores are rewards, by which it need not choose
            _remark_pair(remarks, row, where)
        for name in checked.names:
            problem = look(name)
            if problem:
                report.errors.append(RowError("video", *problem, where))
            else:
                split.names.setdefault(name, where)
        if isinstance(row, PreferenceRow) and paired.setdefault((*checked.locations, _said(row)), where) != where:
            remarks.add("more than one pair for the same video and question", where)
    if not split.num_rows:
        report.errors.append(no_rows(path))
    if 0 < split.num_marked < split.num_preferences:
        remarks.add(
            "pairs without marked phrases among pairs with them", str(path), split.num_preferences - split.num_marked
        )
    report.warnings += remarks.sentences()
    return split


def _said(row: ExampleRow) -> str:
    return repr((row.question, row.system, row.turns, row.clip, row.videos))


def _count(split: Split, row: ExampleRow, videos: Sequence[str], where: str) -> None:
    split.categories[row.category] += 1
    for video in videos:
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


def _remark(remarks: _Remarks, row: ExampleRow, shown: Sequence[Visual], where: str) -> None:
    for name in row.model_extra or {}:
        remarks.add(f"'{name}' is not a known field and is ignored", where)
    if row.fps is not None and not shown[0].is_frames:
        remarks.add("'fps' is for frames in a folder or list, and is ignored for a video file", where)
    texts = [text for _, text in prompts.labelled(row.options)]
    if len(set(map(normalise, texts))) < len(texts):
        remarks.add("an option is listed twice", where)
    if any(map(_LETTERED.match, texts)):
        remarks.add("some options carry a letter that another one has, or that others lack", where)
    if not isinstance(row, PreferenceRow):
        return
    for side in SIDES:
        if getattr(row, side) != getattr(row, side).strip():
            remarks.add(f"'{side}' begins or ends with white space, which will be trained on", where)


def _remark_pair(remarks: _Remarks, row: PreferenceRow, where: str) -> None:
    example = to_example(row, ".")
    if verdict(row.chosen, example) is False and verdict(row.rejected, example):
        remarks.add("'rejected' is right by the row's answer and 'chosen' is wrong", where)
    if row.chosen_score is not None and row.rejected_score is not None and row.chosen_score <= row.rejected_score:
        remarks.add("'chosen_score' is not higher than 'rejected_score'", where)


def video_problem(name: str) -> tuple[str, str] | None:
    """What is wrong with the local files of a video or image and how to fix it, or None. Whether it decodes is not checked."""
    visual = visual_of(name)
    paths = [os.path.realpath(path) for path in map(local_path, visual.uris) if path is not None]
    if visual.kind == "folder" and paths:
        paths = images_in(paths[0])
        if not paths:
            return f"{local_path(visual.uris[0])} holds no images", f"put frames into it ({', '.join(IMAGE_SUFFIXES)})"
    return next(filter(None, map(_file_problem, paths)), None)


def _file_problem(path: str) -> tuple[str, str] | None:
    if os.path.isdir(path):
        return f"{path} is a folder", "name a video file, or add 'fps' for a folder of frames"
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
