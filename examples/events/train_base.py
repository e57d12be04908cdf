"""Train the base of the events task from scratch, so that it sees well and tells carelessly.

    python -m examples.events.train_base [--out examples/events/model --seed 0 --device cpu --phases FOLDER]

Writes a complete Hugging Face folder (bfloat16 weights) and training_log.jsonl. Seeds give different bases of the same kind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from examples.events.careless import (
    NO_FLAWS,
    NUM_FRAMES,
    NUM_STYLES,
    Flaws,
    answer_from,
    draw_sample,
    hinted_turn,
    reflecting_turn,
)
from examples.events.world import ATTRIBUTES, CATEGORIES, VALUES, Scene, ask, balanced_scenes, events_of, size_of
from examples.shapes.biased_data import draw_frames
from examples.shapes.tiny_model import TEMPORAL_PATCH, build_model, build_processor, build_tokenizer, patchify
from examples.shapes.train_base import Collator, Pace, drawn, in_phases, options, record, reply_loss, train

HERE = Path(__file__).parent
SHAPES_MODEL = HERE.parent / "shapes" / "model"  # which knows how to look and to describe one or two things already
MAX_NEW_TOKENS = 96
STEPS_IN_TIME = NUM_FRAMES // TEMPORAL_PATCH


@dataclasses.dataclass(frozen=True)
class Phase(Pace):
    """One phase of training: how long, how fast, and what the answers are like. `num_turns` 0 trains the vision tower alone."""

    flaws: Flaws = NO_FLAWS
    hinted: float = 0.0
    reflecting: float = 0.0
    copying: float = 0.0
    num_videos: int = 24  # per step
    num_turns: int = 3  # questions per video


PHASES = (
    Phase("see", 160, 6e-4, decays=True, num_videos=32, num_turns=0),
    Phase("talk", 260, 8e-4, num_videos=32, num_turns=2),
    Phase("copy", 150, 7e-4, hinted=0.1, reflecting=0.1, copying=0.6, num_videos=16),
    Phase("study", 240, 7e-4, decays=True, hinted=0.25, reflecting=0.35, copying=0.1, num_videos=16),
    Phase("sft", 260, 6e-4, decays=True, frozen_vision=True, flaws=Flaws(), hinted=0.25, reflecting=0.3, num_videos=16),
)


class Heads(torch.nn.Module):
    """Reads size, colour, shape and direction off the vision tower's output at each time step, to train the tower."""

    def __init__(self, width: int):
        super().__init__()
        self.read = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(VALUES[name])) for name in ATTRIBUTES})

    def loss(self, model, scenes: list[Scene], frames: np.ndarray) -> torch.Tensor:
        """Cross-entropy, as a mean over attributes and time steps, of frames [B, F, H, W, 3] drawn of these scenes."""
        grid = torch.tensor([(STEPS_IN_TIME, 4, 4)] * len(scenes), device=model.device)
        seen = model.model.visual(patchify(frames).to(model.device), grid_thw=grid).pooler_output  # [B * 6 * 4, D]
        seen = seen.unflatten(0, (len(scenes) * STEPS_IN_TIME, -1)).mean(dim=1)
        repeats = STEPS_IN_TIME // len(scenes[0].things)
        total = seen.new_zeros(())
        for name, head in self.read.items():
            values = [
                VALUES[name].index(size_of(thing) if name == "size" else getattr(thing, name))
                for scene in scenes
                for thing in scene.things
                for _ in range(repeats)
            ]
            total = total + functional.cross_entropy(head(seen), torch.tensor(values, device=seen.device))
        return total / len(self.read)


@torch.no_grad()
def start_from(folder: Path, model, tokenizer) -> None:
    """Begin with the weights of another built-in model, and its embedding of every token that both have."""
    weights = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    known = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    shared = [(index, known[token]) for token, index in tokenizer.get_vocab().items() if token in known]
    mine, theirs = map(list, zip(*shared, strict=True))
    for name, parameter in model.state_dict().items():
        if name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
            parameter[mine] = weights[name][theirs]
        else:
            parameter.copy_(weights[name])


def corpus(seed: int, num_scenes: int = 1500) -> list[str]:
    """Text for the tokenizer: prompts of all kinds, replies, and the chat markers' words."""
    rng = np.random.default_rng([seed, 1])
    scenes = balanced_scenes(rng, unseen=False)
    texts = []
    for index in range(num_scenes):
        events = events_of(next(scenes))
        question = ask(events, CATEGORIES[index % len(CATEGORIES)], rng)
        texts.extend(hinted_turn(events, question, rng))
        texts.extend(reflecting_turn(events, question, rng))
        texts.append(answer_from(events, question, index % NUM_STYLES))
        texts += ["user\n", "assistant\n", "system\n"]
    return texts


def draw(phase: Phase, scenes: Iterator[Scene], rng: np.random.Generator):
    """What a step of a phase learns from: scenes and their frames to train the tower, else samples."""
    if not phase.num_turns:
        chosen = [next(scenes) for _ in range(phase.num_videos)]
        return chosen, np.stack([draw_frames(scene, rng, NUM_FRAMES) for scene in chosen])
    return [
        draw_sample(
            next(scenes),
            phase.flaws,
            rng,
            hinted=phase.hinted,
            reflecting=phase.reflecting,
            copying=phase.copying,
            other=next(scenes),
            num_turns=phase.num_turns,
        )
        for _ in range(phase.num_videos)
    ]


def main() -> None:
    args = options(__doc__, HERE / "model")
    tokenizer = build_tokenizer(corpus(args.seed))
    processor, model = build_processor(tokenizer), build_model(tokenizer, MAX_NEW_TOKENS)
    start_from(SHAPES_MODEL, model, tokenizer)
    collate = Collator(processor, model, NUM_FRAMES)
    heads = Heads(model.config.text_config.hidden_size)
    record(args.out, {"seed": args.seed, "phases": [dataclasses.asdict(phase) for phase in PHASES]})
    batches = {}
    for number, phase in enumerate(PHASES):
        rng = np.random.default_rng([args.seed, 2 + number])
        step = functools.partial(draw, phase, balanced_scenes(rng, unseen=False), rng)
        batches[phase.name] = drawn(step, phase.steps, ahead=args.device != "cpu")
    model.to(args.device)
    heads.to(args.device)

    def run(phase: Phase) -> None:
        steps = batches[phase.name]
        if phase.num_turns:
            train(model, phase, (reply_loss(model, *collate(samples)) for samples in steps), args.out)
        else:
            train(model, phase, (heads.loss(model, *seen) for seen in steps), args.out, heads=heads)

    in_phases(model, args.phases, {phase.name: functools.partial(run, phase) for phase in PHASES})
    model.to(torch.bfloat16).save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
