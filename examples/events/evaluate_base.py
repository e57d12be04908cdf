"""Measure a model of the events task: phrase scores of its answers, blind in two ways, and how true its hinted replies are by turn.

    python -m examples.events.evaluate_base [--model examples/events/model --data data/events --split heldout --out figures.json]

Blind: the same questions about noise, and about another row's video. Turns: training rows are asked with their hints, and then to
reflect on the reply, as recipe leanpo does (temperature 1, top_p 0.9); a winner is true if nothing that it tells is wrong and whole if
it also leaves nothing out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from examples.events.careless import NUM_FRAMES
from examples.events.phrases import mark
from examples.events.scorers import phrase_f1
from examples.events.train_base import MAX_NEW_TOKENS
from examples.shapes.evaluate_base import decode, load, load_rows, reply
from vidalign.prompts import HINT, PLAIN, REFLECT, fill
from vidalign.types import Example

HERE = Path(__file__).parent
NUM_TURNS = 3


class Asker:
    """Asks a model about the videos of rows."""

    def __init__(self, folder: Path, data: Path, rows: list[dict]):
        self.model, self.processor = load(folder)
        self.examples = [Example.from_row(row) for row in rows]
        clips = {row["video"]: decode(data / row["video"], NUM_FRAMES) for row in rows}
        self.videos = [clips[row["video"]] for row in rows]

    def ask(self, template: str, *, videos=None, previous: list[str] | None = None, **sampling) -> list[str]:
        """Replies to a template filled in for every row."""
        earlier = previous or [""] * len(self.examples)
        prompts = [
            fill(template, question=row.question, answer=row.answer, previous=said)
            for row, said in zip(self.examples, earlier, strict=True)
        ]
        return reply(self.model, self.processor, prompts, videos or self.videos, max_new_tokens=MAX_NEW_TOKENS, **sampling)


def answered(asker: Asker) -> dict[str, dict[str, float]]:
    """Phrase scores of plain answers, and of answers about noise and about another row's video."""
    rng = np.random.default_rng(0)
    noise = [(rng.integers(0, 256, frames.shape, dtype=np.uint8), metadata) for frames, metadata in asker.videos]
    half = len(asker.videos) // 2
    shown = {"base": asker.videos, "noise": noise, "swapped": asker.videos[half:] + asker.videos[:half]}
    return {name: phrase_f1.measure(asker.ask(PLAIN, videos=videos), asker.examples) for name, videos in shown.items()}


def by_turn(asker: Asker) -> list[dict[str, float]]:
    """Of hinted replies and each turn of reflection: shares that are true and whole, and phrase scores by the captions."""
    torch.manual_seed(0)
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
    figures, previous = [], None
    for _ in range(NUM_TURNS):
        previous = asker.ask(REFLECT if previous else HINT, previous=previous, **sampling)
        marks = [mark(text, row) for text, row in zip(previous, asker.examples, strict=True)]
        true = [found is not None and found.right == found.told for found in marks]
        whole = [is_true and found.omitted == 0 for is_true, found in zip(true, marks, strict=True)]
        told = phrase_f1.measure(previous, asker.examples)
        shares = {"true": round(float(np.mean(true)), 4), "whole": round(float(np.mean(whole)), 4)}
        figures.append(shares | {name: told[name] for name in ("precision", "recall", "f1", "omitted", "exact")})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--data", type=Path, default=Path("data/events"))
    parser.add_argument("--split", default="heldout", help="whose questions are asked plainly")
    parser.add_argument("--limit", type=int, default=300, help="number of rows of each split")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    figures: dict = answered(Asker(args.model, args.data, load_rows(args.data / f"{args.split}.jsonl")[: args.limit]))
    figures["turns"] = by_turn(Asker(args.model, args.data, load_rows(args.data / "train.jsonl")[: args.limit]))
    figures["num_examples"] = args.limit
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
