"""The examples of a report: pairs and changed answers drawn at random, each with thumbnails of its video."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from pipelines.reports import plots
from vidalign.config.run import VideoConfig
from vidalign.errors import DataError
from vidalign.files import RunFolder, read_places
from vidalign.records import Context
from vidalign.types import EvalAnswer, PreferencePair
from vidalign.video.decode_child import ChildDecoder
from vidalign.video.frame_cache import load_clip

NUM_PAIRS, NUM_CHANGED, NUM_THUMBNAILS = 12, 6, 6
Strip = Callable[
    [str], dict[str, Any]
]  # name of a video or image -> {"thumbnails": [(data uri, time)], "wide", "note": why none}


class Thumbnails:
    """Calls give the thumbnails of a video: from the clip that the rollout kept, else decoded in the same way."""

    def __init__(self, run: RunFolder, round_index: int, video: VideoConfig) -> None:
        places = [
            run.stage(stage, round_index) / "frames.json" for stage in ("pairs", "responses")
        ]  # the first has the other clips
        found = next((path for path in places if path.is_file()), None)
        self._clips: dict[str, str] = read_places(found) if found is not None else {}
        cache = str(pathlib.Path(video.cache_dir).absolute() if video.cache_dir else run.frames)
        self._decoder = ChildDecoder(video.frame_spec(), cache, backend=video.backend, deadline_s=video.deadline_s)

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._decoder.close()

    def __call__(self, uri: str) -> dict[str, Any]:
        if uri not in self._clips:  # a held-out video: the endpoint decodes those for itself
            decoded = self._decoder.decode(uri)
            if not decoded.frames_path:
                return {"thumbnails": [], "note": decoded.message}
            self._clips[uri] = decoded.frames_path
        try:
            clip = load_clip(self._clips[uri])
        except DataError as error:
            return {"thumbnails": [], "note": str(error)}
        shown = np.linspace(0, len(clip.frames) - 1, min(NUM_THUMBNAILS, len(clip.frames))).round().astype(int)
        times = told_apart([clip.times_s[i] for i in shown])
        thumbnails = [(plots.thumbnail(clip.frames[i]), time) for i, time in zip(shown, times, strict=True)]
        return {"thumbnails": thumbnails, "note": None, "wide": clip.frames.shape[2] > 1.25 * clip.frames.shape[1]}


def told_apart(times_s: Sequence[float]) -> list[str]:
    """Times in seconds, with as many digits as tell them apart, or three."""
    texts: list[str] = []
    for digits in (1, 2, 3):
        texts = [f"{time:.{digits}f} s" for time in times_s]
        if len(set(texts)) == len(set(times_s)):
            break
    return texts


def thumbnails(context: Context, strip: Strip) -> dict[str, Any]:
    """The thumbnails of everything that a prompt shows; of several videos and images, a share of each."""
    strips = [strip(name) for name in context.visuals]
    if len(strips) == 1:
        return strips[0]
    share = max(1, NUM_THUMBNAILS // len(strips))
    names = [f"video {number + 1}" for number in range(len(context.videos))]
    names += [f"image {number + 1}" for number in range(len(context.images))]
    taken = []
    for name, one in zip(names, strips, strict=True):
        found = one["thumbnails"]
        times = np.linspace(0, len(found) - 1, min(share, len(found))).round().astype(int)
        taken += [(found[at][0], name if name.startswith("image") else f"{name}, {found[at][1]}") for at in times]
    notes = [one["note"] for one in strips if one["note"]]
    return {"thumbnails": taken, "note": "; ".join(notes) or None, "wide": any(one.get("wide") for one in strips)}


def answer_changes(answers: Mapping[str, list[EvalAnswer]], strip: Strip, draw: random.Random) -> dict[str, Any] | None:
    """What became right and what became wrong, question by question; None unless answers of both were scored."""
    aligned = {answer.example_id: answer for answer in answers.get("aligned", ())}
    answered = [(base, aligned[base.example_id]) for base in answers.get("base", ()) if base.example_id in aligned]
    both = [pair for pair in answered if None not in (pair[0].correct, pair[1].correct)]
    if not both:
        return None
    counts = collections.Counter((base.correct, after.correct) for base, after in both)
    gained, lost, n = counts[False, True], counts[True, False], len(both)
    half = 1.959964 * math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0.0)) / n  # Wald, paired proportions
    difference = (gained - lost) / n

    def drawn(before: bool, after: bool) -> list[dict[str, Any]]:
        chosen = _draw([pair for pair in both if (pair[0].correct, pair[1].correct) == (before, after)], NUM_CHANGED, draw)
        return [{"base": base, "aligned": after, "frames": thumbnails(base.context, strip)} for base, after in chosen]

    return {
        "n": n,
        "unscored": len(answered) - n,
        "kept_right": counts[True, True],
        "kept_wrong": counts[False, False],
        "gained": gained,
        "lost": lost,
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "examples": [
            ("Wrong before, right after", gained, drawn(False, True)),
            ("Right before, wrong after", lost, drawn(True, False)),
        ],
    }


def drawn_pairs(pairs: Sequence[PreferencePair], strip: Strip, draw: random.Random) -> list[dict[str, Any]]:
    """A dozen pairs with thumbnails, texts cut along their marks, scores and provenance."""
    return [_pair_view(pair, strip) for pair in _draw(pairs, NUM_PAIRS, draw)]


def _pair_view(pair: PreferencePair, strip: Strip) -> dict[str, Any]:
    """Provenance of a side goes beside its text, the rest below the pair."""
    try:
        provenance = json.loads(pair.provenance)
    except json.JSONDecodeError:
        provenance = pair.provenance
    if not isinstance(provenance, dict):
        provenance = {"provenance": provenance}
    sides = []
    for name in ("chosen", "rejected"):
        text, marks, reward, trust = (getattr(pair, f"{name}{part}") for part in ("", "_marks", "_reward", "_trust"))
        source = provenance.pop(name, None)
        source = ", ".join(f"{key} {value}" for key, value in source.items()) if isinstance(source, dict) else source
        sides.append({"name": name, "parts": marked(text, marks), "reward": reward, "trust": trust, "source": source})
    rest = {key: value if isinstance(value, str) else json.dumps(value) for key, value in provenance.items()}
    other = thumbnails(pair.rejected_context, strip) if pair.rejected_videos else None
    return {"pair": pair, "frames": thumbnails(pair.context, strip), "other": other, "provenance": rest, "sides": sides}


def marked(text: str, marks: Iterable[Sequence[int]]) -> list[tuple[str, bool]]:
    """Cut `text` into (part, is marked) along (start, end) spans; overlapping spans join."""
    parts, position = [], 0
    for start, end in sorted((int(mark[0]), int(mark[1])) for mark in marks):
        start, end = max(start, position), min(end, len(text))
        if end > start:
            parts += [(text[position:start], False), (text[start:end], True)]
            position = end
    return [part for part in [*parts, (text[position:], False)] if part[0]]


def _draw(items: Sequence[Any], count: int, draw: random.Random) -> list[Any]:
    """At most `count` items at random, in their own order."""
    return [items[i] for i in sorted(draw.sample(range(len(items)), min(count, len(items))))]
