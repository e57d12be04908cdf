"""Pairs over videos: for each pair of a round, its chosen response with the video against the same response with an altered clip.

The clips are written beside those of the videos, and where each is into frames.json of the round's pairs, for training.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vidalign import files
from vidalign.config.degrading import ClipPairsConfig
from vidalign.recipes.sampling import request_seed
from vidalign.stored import here
from vidalign.types import PreferencePair, stable_hash
from vidalign.video.altered import write_altered

FRAMES = "frames.json"
Alter = Callable[[Sequence[tuple[str, int]]], Mapping[tuple[str, int], str]]
"""From clips and the seeds of their alterations to the files of the altered clips; without those that would show the same."""


def with_clip_pairs(
    pairs: Sequence[PreferencePair],
    frames: Mapping[str, str],
    config: ClipPairsConfig,
    *,
    seed: int,
    alter: Alter,
    of_rows: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[PreferencePair], dict[str, str], dict[str, int]]:
    """The pairs to train on, the altered clips by name, and the number of pairs that have no other clip by reason.

    no_video: only images are shown, or the row names no other clip. video_quarantined: that clip could not be decoded. same_clip:
    nothing that was drawn shows anything else than the video does, such as frames in another order of a video that stands still; or
    the row's clip is the video again. A response that several pairs of an example prefer has one pair over videos.

    Args:
        frames: the clip of each video. seed: of the round; an example's alteration depends on nothing else. of_rows: the name of the
            other clip of each example whose row has one.
    """
    first = {(pair.example_id, pair.chosen): pair for pair in reversed(pairs)}
    wanted = [pair for pair in pairs if first[pair.example_id, pair.chosen] is pair]
    if config.of_rows:
        over, dropped = _of_rows(wanted, frames, of_rows)
        return [*(pairs if config.with_others == "beside" else ()), *over], {}, dropped
    draws = {pair.id: request_seed(seed, pair.example_id, "clip") for pair in wanted}
    asked = {(frames[name], draws[pair.id]): None for pair in wanted for name in pair.context.videos}
    made = alter(list(asked))
    lost: collections.Counter[str] = collections.Counter()
    placed: dict[str, str] = {}
    over = []
    for pair in wanted:
        clips = [made.get((frames[name], draws[pair.id])) for name in pair.context.videos]
        if not clips or None in clips:
            lost["same_clip" if clips else "no_video"] += 1
            continue
        named = {
            f"{name} ({pathlib.Path(str(clip)).stem})": str(clip)
            for name, clip in zip(pair.context.videos, clips, strict=True)
        }
        placed |= named
        over.append(over_videos(pair, tuple(named), [pathlib.Path(str(clip)).name for clip in clips]))
    return [*(pairs if config.with_others == "beside" else ()), *over], placed, dict(lost)


def _of_rows(
    pairs: Sequence[PreferencePair], frames: Mapping[str, str], of_rows: Mapping[str, str]
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs over videos with the clips that rows name, and how many have none by reason. Clips of one content are one file."""
    made: list[PreferencePair] = []
    lost: collections.Counter[str] = collections.Counter()
    for pair in pairs:
        name = of_rows.get(pair.example_id, "")
        if not name:
            lost["no_video"] += 1
        elif name not in frames:
            lost["video_quarantined"] += 1
        elif frames[name] == frames[pair.video]:
            lost["same_clip"] += 1
        else:
            made.append(over_videos(pair, (name,), [pathlib.Path(frames[name]).name]))
    return made, dict(lost)


def over_videos(pair: PreferencePair, names: tuple[str, ...], clips: Sequence[str]) -> PreferencePair:
    """The pair over videos of a pair's chosen response: `names` are shown on its rejected side, and `clips` are their files' names."""
    made = json.loads(pair.provenance)
    return dataclasses.replace(
        pair,
        id=stable_hash([pair.example_id, pair.chosen, list(clips)]),
        rejected=pair.chosen,
        chosen_marks=(),
        rejected_marks=(),
        rejected_reward=math.nan,
        rejected_trust=math.nan,
        chosen_win_rate=math.nan,
        rejected_win_rate=math.nan,
        rejected_videos=names,
        provenance=json.dumps(
            {**made, "rule": "clip_pairs", "rejected": {"kind": "clip", "clips": list(clips)}}, ensure_ascii=False
        ),
    )


def altered_here(asked: Sequence[tuple[str, int]], config: ClipPairsConfig) -> dict[tuple[str, int], str]:
    """`Alter` in this process."""
    made = {key: write_altered(pathlib.Path(key[0]), config, key[1]) for key in asked}
    return {key: str(path) for key, path in made.items() if path is not None}


def altered_on_cluster(asked: Sequence[tuple[str, int]], config: ClipPairsConfig) -> dict[tuple[str, int], str]:
    """`Alter` by tasks of Ray Data, so that the driver holds no pixels."""
    if not asked:
        return {}
    import ray.data

    def one(row: dict[str, Any]) -> dict[str, Any]:
        found = altered_here([(row["clip"], int(row["seed"]))], config)
        return {**row, "made": next(iter(found.values()), "")}

    rows = ray.data.from_items([{"clip": clip, "seed": seed} for clip, seed in asked]).map(one, num_cpus=1)
    return {(row["clip"], int(row["seed"])): here(row["made"]) for row in rows.iter_rows() if row["made"]}


def write_frames(folder: pathlib.Path, frames: Mapping[str, str], altered: Mapping[str, str]) -> None:
    """Write where the clips of a round are, those of its pairs over videos among them."""
    files.write_places(folder / FRAMES, {**frames, **altered})
