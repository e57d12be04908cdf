"""Train the built-in model from scratch, so that it is decent but flawed by its training data.

    python -m examples.shapes.train_base [--out examples/shapes/model --seed 0 --device cpu]

Writes a complete Hugging Face folder (bfloat16 weights) and training_log.jsonl. Takes about a quarter of an hour on two CPU cores.
Batches are drawn on the CPU, each phase's in a process of its own where there is a GPU, which would wait for them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional

from examples.shapes.biased_data import (
    NO_BIAS,
    Bias,
    Sample,
    biased_scene,
    draw_question,
    draw_sample,
    edit_turn,
)
from examples.shapes.tiny_model import (
    FRAME_SIZE,
    NUM_FRAMES,
    PATCH,
    TEMPORAL_PATCH,
    build_model,
    build_processor,
    build_tokenizer,
    patchify,
)
from vidalign.model.positions import mrope_positions
from vidalign.prompts import HINT, REFLECT, chat, fill

HERE = Path(__file__).parent
IGNORED = -100
LONGEST_TURN = 256  # tokens
Batch = TypeVar("Batch")


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long and how fast a phase of training goes."""

    name: str
    steps: int
    learning_rate: float
    warmup: int = dataclasses.field(default=30, kw_only=True)  # steps
    # Whether the learning rate falls linearly to zero; else it stays constant after the warmup.
    decays: bool = dataclasses.field(default=False, kw_only=True)
    frozen_vision: bool = dataclasses.field(default=False, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Phase(Pace):
    """One phase of training: how long, how fast, and on which world."""

    bias: Bias
    two_things: float = 0.4  # share of the videos with two things
    hinted: float = 0.2  # share of the videos whose prompts contain a hint or quote an earlier response
    num_videos: int = 16  # per step
    num_turns: int = 3  # questions per video
    weights: dict[str, float] | None = None  # shares of the categories, if not the usual ones


LOOK = {"motion": 0.35, "colour": 0.15, "shape": 0.35, "description": 0.15}
CHECK = {"presence": 0.7, "description": 0.3}
PHASES = (
    Phase("look", 450, 3e-4, NO_BIAS, two_things=0.0, hinted=0.0, num_videos=32, num_turns=2, weights=LOOK),
    Phase("talk", 400, 4e-4, NO_BIAS),
    Phase("check", 500, 5e-4, NO_BIAS, num_videos=32, num_turns=3, hinted=0.1, weights=CHECK),
    Phase("study", 800, 5e-4, NO_BIAS, decays=True),
    Phase("sft", 200, 5e-4, Bias(), decays=True, frozen_vision=True),
)


class Collator:
    """Turns samples into what the model's forward takes.

    The turns of a sample share one copy of the video: a turn attends to the video and to itself, and its positions
    continue those of the video, so that every turn looks as if the processor had rendered it alone.
    """

    def __init__(self, processor, model, num_frames: int = NUM_FRAMES):
        self.grid = (num_frames // TEMPORAL_PATCH, *[FRAME_SIZE // PATCH] * 2)  # patches: time, height, width
        self.tokenizer = processor.tokenizer
        words = processor.apply_chat_template(chat("\0"), tokenize=False, add_generation_prompt=True)
        before, self.after = words.split("\0")
        video_token = model.config.video_token_id
        num_video_tokens = math.prod(self.grid) // model.config.vision_config.spatial_merge_size**2
        ids = self.tokenizer(before).input_ids
        at = ids.index(video_token)
        self.prefix = ids[:at] + [video_token] * num_video_tokens + ids[at + 1 :]
        padded = self.prefix + [0] * LONGEST_TURN
        self.positions = mrope_positions(
            [int(token == video_token) for token in padded],
            [self.grid],
            [0.5 * model.config.vision_config.tokens_per_second],  # half a second per pair of frames
            model.config.vision_config.spatial_merge_size,
        )  # [3, T]

    def row(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids [T], labels [T], position ids [3, T] and turn numbers [T] (0 for the video) of one sample."""
        ids, labels, turn_of = list(self.prefix), [IGNORED] * len(self.prefix), [0] * len(self.prefix)
        positions = [self.positions[:, : len(self.prefix)]]
        for number, (prompt, reply) in enumerate(sample.turns, start=1):
            asked = self.tokenizer(prompt + self.after).input_ids
            said = [*self.tokenizer(reply).input_ids, self.tokenizer.eos_token_id]
            ids += asked + said
            labels += [IGNORED] * len(asked) + said
            turn_of += [number] * len(asked + said)
            positions.append(self.positions[:, len(self.prefix) :][:, : len(asked + said)])
        return torch.tensor(ids), torch.tensor(labels), torch.cat(positions, dim=1), torch.tensor(turn_of)

    def __call__(self, samples: list[Sample]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Model inputs, and labels [B, T] of the reply tokens, padded on the right."""
        ids, labels, positions, turn_of = zip(*(self.row(sample) for sample in samples), strict=True)
        pad = torch.nn.utils.rnn.pad_sequence
        turn = pad(turn_of, batch_first=True, padding_value=-1)  # [B, T]
        seen = (turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None])
        inputs = {
            "input_ids": pad(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "attention_mask": (seen & torch.ones_like(seen).tril())[:, None],  # [B, 1, T, T]
            "position_ids": pad([p.T for p in positions], batch_first=True).permute(2, 0, 1),
            "pixel_values_videos": patchify(np.stack([sample.frames for sample in samples])),
            "video_grid_thw": torch.tensor([self.grid] * len(samples)),
        }
        return inputs, pad(labels, batch_first=True, padding_value=IGNORED)


def reply_loss(model, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, as a mean over the reply tokens of the batch, on the model's device."""
    inputs, labels = {name: tensor.to(model.device) for name, tensor in inputs.items()}, labels.to(model.device)
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    return functional.cross_entropy(model.lm_head(hidden[wanted != IGNORED]), wanted[wanted != IGNORED])


def corpus(seed: int, num_texts: int = 3000) -> list[str]:
    """Text for the tokenizer: prompts of all kinds, replies, and the chat markers' words."""
    rng = np.random.default_rng([seed, 1])
    texts = []
    for index in range(num_texts):
        question = draw_question(biased_scene(1 + index % 2, NO_BIAS, rng), NO_BIAS, rng)
        texts.append(fill(HINT, question=question.question, answer=question.answer))
        texts.append(fill(REFLECT, question=question.question, answer=question.answer, previous=question.answer))
        texts.extend(edit_turn(question, rng))
        texts += ["user\n", "assistant\n", "system\n"]
    return texts


def train(model, pace: Pace, losses_of: Iterator[torch.Tensor], out: Path, *, heads: torch.nn.Module | None = None) -> None:
    """Train through one phase, in place, and append to training_log.jsonl. `losses_of` draws a batch a step and tells its loss.

    `heads` are trained with the model, and thrown away with the phase.
    """
    model.model.visual.requires_grad_(not pace.frozen_vision)
    trained = [p for part in (model, heads) if part is not None for p in part.parameters() if p.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    plain = [parameter for parameter in trained if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=pace.learning_rate,
        betas=(0.9, 0.95),  # so that the large first gradients, of the words alone, are soon forgotten
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / pace.warmup) * (1 - step / pace.steps if pace.decays else 1.0)
    )
    losses, began = [], time.monotonic()
    model.train()
    for step in range(1, pace.steps + 1):
        loss = next(losses_of)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 50 == 0 or step == pace.steps:
            mean, wall_s = round(float(np.mean(losses[-50:])), 4), round(time.monotonic() - began)
            record(out, {"phase": pace.name, "step": step, "loss": mean, "wall_s": wall_s})


def draw_batch(phase: Phase, rng: np.random.Generator) -> list[Sample]:
    """The samples of one step of a phase."""
    return [
        draw_sample(
            phase.bias,
            rng,
            two_things=phase.two_things,
            hinted=phase.hinted,
            num_turns=phase.num_turns,
            weights=phase.weights,
        )
        for _ in range(phase.num_videos)
    ]


def drawn(draw: Callable[[], Batch], steps: int, *, ahead: bool) -> Iterator[Batch]:
    """The batches of a phase. `ahead` draws them in a process of its own, which starts now and waits for nobody."""
    if not ahead:
        return (draw() for _ in range(steps))
    context = multiprocessing.get_context("fork")  # `draw` holds generators, which cannot be pickled
    queue = context.Queue()

    def produce() -> None:
        torch.set_num_threads(1)
        for _ in range(steps):
            queue.put(draw())

    context.Process(target=produce, daemon=True).start()
    return (queue.get() for _ in range(steps))


def record(out: Path, row: dict) -> None:
    """Print a row and append it to training_log.jsonl."""
    print(json.dumps(row), flush=True)
    with (out / "training_log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def options(description: str | None, out: Path) -> argparse.Namespace:
    """The command line of a training script, with torch set up as it says; the folder `--out` exists and holds no log."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument(
        "--phases", type=Path, help="folder for the weights after each phase: read if they exist, else written"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.phases:
        args.phases.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)  # before any parallel work, so that every thread inherits it
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "training_log.jsonl").unlink(missing_ok=True)
    torch.manual_seed(args.seed)
    return args


def in_phases(model, kept: Path | None, phases: Mapping[str, Callable[[], None]]) -> None:
    """Train through phases by name. What a folder `kept` holds is read from it, and what it does not is trained and put there."""
    for name, train_phase in phases.items():
        path = kept and kept / f"{name}.pt"
        if path and path.exists():
            model.load_state_dict(torch.load(path, map_location=model.device))
            continue
        train_phase()
        if path:
            torch.save(model.state_dict(), path)


def main() -> None:
    args = options(__doc__, HERE / "model")
    tokenizer = build_tokenizer(corpus(args.seed))
    processor, model = build_processor(tokenizer), build_model(tokenizer)
    collate = Collator(processor, model)
    record(args.out, {"seed": args.seed, "phases": [dataclasses.asdict(phase) for phase in PHASES]})
    batches = {
        phase.name: drawn(
            functools.partial(draw_batch, phase, np.random.default_rng([args.seed, 2 + number])),
            phase.steps,
            ahead=args.device != "cpu",
        )
        for number, phase in enumerate(PHASES)
    }
    model.to(args.device)

    def run(phase: Phase) -> None:
        train(model, phase, (reply_loss(model, *collate(samples)) for samples in batches[phase.name]), args.out)

    in_phases(model, args.phases, {phase.name: functools.partial(run, phase) for phase in PHASES})
    model.to(torch.bfloat16).save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
