"""Measure the built-in model on the held-out MP4 files: exact match by category, blind, and with hints.

    python -m examples.shapes.evaluate_base [--model examples/shapes/model --data data/shapes]

Blind: the same questions about noise. Hinted: the share of replies equal to the hint, which is the true answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.shapes.tiny_model import FRAME_SIZE, NUM_FRAMES
from examples.shapes.world import CATEGORIES
from vidalign.model.positions import correct_positions
from vidalign.prompts import HINT, PLAIN, REFLECT, chat, fill
from vidalign.types import FrameSpec
from vidalign.video import decoding

HERE = Path(__file__).parent


def decode(path: Path, num_frames: int = NUM_FRAMES) -> tuple[np.ndarray, dict]:
    """Frames [F, 56, 56, 3] uint8 as every stage of a run samples them, and their metadata for the processor."""
    clip = decoding.decode(path, FrameSpec(num_frames=num_frames, height=FRAME_SIZE, width=FRAME_SIZE))
    metadata = clip.metadata()
    metadata.pop("do_sample_frames")
    return clip.frames, metadata


def load_rows(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@torch.inference_mode()
def reply(
    model,
    processor,
    prompts: Sequence[str],
    videos: Sequence[tuple[np.ndarray, dict]],
    *,
    max_new_tokens: int = 32,
    **sampling,
) -> list[str]:
    """Replies to prompts, each about its own video; greedy, unless `sampling` (of Hugging Face's generate) says otherwise."""
    replies, batch = [], 100
    for at in range(0, len(prompts), batch):
        frames, metadata = zip(*videos[at : at + batch], strict=True)
        inputs = processor(
            text=[
                processor.apply_chat_template(chat(prompt), tokenize=False, add_generation_prompt=True)
                for prompt in prompts[at : at + batch]
            ],
            videos=list(frames),
            videos_kwargs={"video_metadata": list(metadata), "do_sample_frames": False},
            padding=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, **(sampling or {"do_sample": False}))
        replies += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in replies]


def accuracy(rows: Sequence[dict], replies: Sequence[str]) -> dict[str, float]:
    """Share of exact matches, overall and by category."""
    hits = [row["answer"] == text for row, text in zip(rows, replies, strict=True)]
    by = {
        category: [hit for hit, row in zip(hits, rows, strict=True) if row["category"] == category]
        for category in CATEGORIES
    }
    return {name: round(float(np.mean(values)), 3) for name, values in {"all": hits, **by}.items() if values}


def load(folder: Path) -> tuple:
    """The model of a folder, in float32, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    correct_positions(model)
    return model, AutoProcessor.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--data", type=Path, default=Path("data/shapes"))
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    model, processor = load(args.model)
    rows = load_rows(args.data / "heldout.jsonl")
    clips = {row["video"]: decode(args.data / row["video"]) for row in rows}
    videos = [clips[row["video"]] for row in rows]
    rng = np.random.default_rng(0)
    noise = [(rng.integers(0, 256, frames.shape, dtype=np.uint8), metadata) for frames, metadata in videos]
    plain = [fill(PLAIN, question=row["question"]) for row in rows]
    hinted = [fill(HINT, question=row["question"], answer=row["answer"]) for row in rows]
    base, blind = reply(model, processor, plain, videos), reply(model, processor, plain, noise)
    reflected = [
        fill(REFLECT, question=row["question"], answer=row["answer"], previous=text)
        for row, text in zip(rows, blind, strict=True)
    ]
    figures = {
        "base": accuracy(rows, base),
        "blind": accuracy(rows, blind),
        "hinted": accuracy(rows, reply(model, processor, hinted, videos)),
        "reflected": accuracy(rows, reply(model, processor, reflected, videos)),
        "num_examples": len(rows),
    }
    for name in ("base", "blind", "hinted", "reflected"):
        print(f"{name:>10}: " + "  ".join(f"{key} {100 * value:.1f}" for key, value in figures[name].items()))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
