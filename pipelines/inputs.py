"""The data of a run: every file read once, its videos looked for, and none shared by training and what is held out."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from vidalign import prompts
from vidalign.config.recipe import RecipeSection
from vidalign.config.run import DataConfig
from vidalign.data.leakage import Leak, find_leaks, locate
from vidalign.data.reading import DataRow, read_rows
from vidalign.data.shown import missing_file
from vidalign.errors import DataError
from vidalign.records import FrameChoice
from vidalign.types import Example
from vidalign.video.naming import asked_about, without_question

SplitName: TypeAlias = Literal["train", "eval", "probe"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """The rows and examples of a config, and which of their videos are there.

    `held_out` are the rows of `eval` and `probe`. `present` and `missing` are the names of the videos and images of all splits in
    order, each once; a uri of another machine counts as present.
    """

    train: list[DataRow]
    eval: list[Example]
    probe: list[Example]
    present: list[str]
    missing: list[str]
    held_out: Sequence[DataRow] = ()

    @property
    def examples(self) -> list[Example]:
        return [*(row.example for row in self.train), *self.eval, *self.probe]


def read_inputs(
    data: DataConfig,
    recipe: RecipeSection | None = None,
    *,
    choice: FrameChoice | None = None,
    splits: Iterable[SplitName] = ("train", "eval", "probe"),
) -> Inputs:
    """Read the files of `splits`, each once. A split that the config does not name is empty.

    The question of every example is the one that the policy is asked, with its options as the recipe shows them
    (`vidalign.prompts.asked_question`): rollouts, pairs, training, evaluation and the dry run all take it from here. Where that
    question chooses the frames (`choice`), it is also in the names of the example's videos, and with them goes everywhere.

    Raises:
        DataError: malformed rows; a video of train that eval or probe has too, by path, link or content; with train among
            `splits`, no video exists at all.
    """
    files = {"train": data.train, "eval": data.eval, "probe": data.probe}
    limits = {"train": data.limit, "eval": data.eval_limit, "probe": None}
    wanted = frozenset(splits)
    rows: dict[str, list[DataRow]] = {
        name: _asked(read_rows(path, video_root=data.video_root, limit=limits[name], key=f"data.{name}"), recipe, choice)
        if path and name in wanted
        else []
        for name, path in files.items()
    }
    videos = sorted({name for split in rows.values() for row in split for name in row.example.decoded})
    locations = {video: locate(video, pathlib.Path()) for video in videos}
    missing = [video for video in videos if missing_file(video) is not None]
    if "train" in wanted and len(missing) == len(videos):
        raise DataError(
            f"none of the {len(videos):,} videos exists, first {missing[0]}; set data.video_root to the folder that the "
            "'video' fields are relative to"
        )
    _refuse_leaks(rows, locations)
    gone = frozenset(missing)
    return Inputs(
        train=rows["train"],
        eval=[row.example for row in rows["eval"]],
        probe=[row.example for row in rows["probe"]],
        present=[video for video in videos if video not in gone],
        missing=missing,
        held_out=[*rows["eval"], *rows["probe"]],
    )


def _asked(rows: Sequence[DataRow], recipe: RecipeSection | None, choice: FrameChoice | None) -> list[DataRow]:
    """The rows with their questions as the policy is asked them; None: as recipes do by default."""
    shown = recipe or RecipeSection(name="")
    asked = [
        prompts.asked_question(row.example, options_prompt=shown.options_prompt, options_style=shown.options_style)
        for row in rows
    ]
    return [
        dataclasses.replace(row, example=_named(dataclasses.replace(row.example, question=question), choice))
        for row, question in zip(rows, asked, strict=True)
    ]


def _named(example: Example, choice: FrameChoice | None) -> Example:
    """The example with the names of its videos as they are decoded: with its question where that chooses their frames."""
    question = example.question if choice is not None and choice.needs_question else ""

    def named(name: str) -> str:
        return asked_about(name, question) if question and name else without_question(name)

    videos, other = tuple(map(named, example.videos)), named(example.rejected_video)
    return dataclasses.replace(example, video=named(example.video), videos=videos, rejected_video=other)


def _refuse_leaks(rows: dict[str, list[DataRow]], locations: dict[str, str]) -> None:
    """Raises `DataError` for videos of train in another split. Eval and probe may share theirs."""
    names = list(rows)
    places: list[dict[str, str]] = [{} for _ in names]
    for name, place in zip(names, places, strict=True):
        for row in rows[name]:
            for name in row.example.decoded:
                place.setdefault(locations[name], row.where)
    leaks = [leak for leak in find_leaks(places) if names[leak.other_split] == "train"]
    for name, place in zip(names, places, strict=True):
        shared = [leak for leak in leaks if names[leak.split] == name]
        if shared:
            raise DataError(
                f"data.{name} must share no video with data.train, but {len(shared):,} of its {len(place):,} videos are in "
                f"both, first {_first(shared)}; remove them from one of the two files"
            )


def _first(leaks: Sequence[Leak]) -> str:
    leak = leaks[0]
    places = f"({leak.where} and {leak.other_where})"
    return f"{leak.video} and {leak.other} are copies of one file {places}" if leak.is_copy else f"{leak.video} {places}"
