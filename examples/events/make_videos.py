"""Write the data of the events task: MP4 files, and the train, held-out, probe and dev questions about them.

    python -m examples.events.make_videos --out data/events [--train 720 --heldout 600 --probe 60 --dev 0 --seed 0]

Training answers are imperfect hints (`careless.imperfect`), and no training or probe video shows a kind that is kept unseen; held-out
and dev answers are true, and their videos show all kinds. Every row's caption is true. Splits share no video.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from examples.events.careless import NUM_STYLES, answer_from, imperfect
from examples.events.world import CATEGORIES, Event, answer, ask, balanced_scenes, events_of, listed
from examples.shapes.make_videos import QUESTIONS_PER_VIDEO, SPLITS, options, report, write_splits
from examples.shapes.world import Scene

NUM_FRAMES = 24
WITH_HINTS = ("train",)  # splits whose answers are imperfect
SEEN_ONLY = ("train", "probe")  # splits without unseen kinds


def split_rows(split: str, num_questions: int, seed: int) -> tuple[list[dict], list[tuple[str, Scene]]]:
    """JSONL rows of one split, and its scenes by video name. Categories take turns."""
    rng = np.random.default_rng([seed, 1000 + SPLITS.index(split)])
    stream = balanced_scenes(rng, unseen=split not in SEEN_ONLY)
    rows: list[dict] = []
    scenes: list[tuple[str, Scene]] = []
    pending: list[tuple[str, Scene]] = []
    for index, category in enumerate(itertools.islice(itertools.cycle(CATEGORIES), num_questions)):
        if not pending:
            scenes.append((f"videos/{split}-{len(scenes):05d}.mp4", next(stream)))
            pending = [scenes[-1]] * QUESTIONS_PER_VIDEO
        video, scene = pending.pop()
        events = events_of(scene)
        question, style = ask(events, category, rng), int(rng.integers(NUM_STYLES))
        hint: list[Event | None] = imperfect(events, rng)
        truth = answer(events, question, style)
        rows.append(
            {
                "id": f"{split}-{index:05d}",
                "video": video,
                "question": question.text,
                "answer": answer_from(hint, question, style) if split in WITH_HINTS else truth,
                "options": [],
                "category": category,
                "caption": f"{listed(events, 0)}.",
            }
        )
    return rows, scenes


def make(out: Path, sizes: dict[str, int], seed: int = 0) -> int:
    """Write `sizes[split]` questions for every split, their videos and scenes.jsonl; returns the number of videos."""
    splits = {split: split_rows(split, num, seed) for split, num in sizes.items()}
    return write_splits(out, splits, NUM_FRAMES)


def main() -> None:
    args = options(__doc__, "data/events", {"train": 720, "heldout": 600, "probe": 60})
    report(args.out, make(args.out, args.sizes, args.seed), args.sizes)


if __name__ == "__main__":
    main()
