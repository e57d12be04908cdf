"""Model folders with random weights at the shapes of real models, and jobs on random videos: nothing is downloaded.

Tokenizer, processor and chat template are those of the built-in model; the vocabulary is a real one's, most of which no text uses.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import torch

from actors.train_job import TrainJob
from bench.built_in import MODEL
from vidalign import files
from vidalign.config.run import ModelConfig, ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.recipes.phrases import differing_marks
from vidalign.types import Example, FrameSpec, PreferencePair
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import FrameCache

WORD, ANSWER_WORD = "red", "blue"  # one token each
SHORT_SIDE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Qwen2.5-VL, as its config.json calls them, and of what it is shown.

    `num_pairs`, `num_frames`, `side` (pixels) and `response` (tokens) are of a training's data.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool
    num_pairs: int = 16
    num_frames: int = 16
    side: int = 448
    response: int = 160


VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
SHAPES = {
    "3B": Shape(
        text={
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
        },
        vision=VISION,
        tied=True,
    ),
    "7B": Shape(
        text={
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        vision=VISION,
        tied=False,
    ),
    "tiny": Shape(
        text={
            "vocab_size": 1024,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        vision={
            **VISION,
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "fullatt_block_indexes": [1],
        },
        tied=True,
        num_pairs=4,
        num_frames=4,
        side=112,
        response=12,
    ),
}


def config_of(shape: Shape) -> Any:
    """A Qwen2.5-VL's config in this shape."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(MODEL.path)
    half = shape.text["hidden_size"] // shape.text["num_attention_heads"] // 2
    third = 3 * half // 8
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [half - 2 * third, third, third]}
    layers = shape.text["num_hidden_layers"]
    more = {"rope_parameters": rope, "max_position_embeddings": 32_768, "initializer_range": 0.02}
    for name, value in {**shape.text, **more, "layer_types": ["full_attention"] * layers}.items():
        setattr(config.text_config, name, value)
    for name, value in {**shape.vision, "out_hidden_size": shape.text["hidden_size"], "initializer_range": 0.02}.items():
        setattr(config.vision_config, name, value)
    config.tie_word_embeddings = shape.tied
    return config


def make_model(folder: pathlib.Path, shape: Shape, *, device: torch.device, dtype: str) -> ModelConfig:
    """Write a model folder, if it is not there, and say how it is configured."""
    made = ModelConfig(path=str(folder), dtype=dtype, max_model_len=8192)
    if (folder / "done").is_file():
        return made
    from transformers import AutoModelForImageTextToText

    from vidalign.model.rendering import load_processor

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config_of(shape), dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    processor = load_processor(MODEL.path)
    processor.video_processor.size["longest_edge"] = (
        shape.side**2
    )  # pixels of a frame; the built-in model's would shrink them
    processor.save_pretrained(folder)
    shutil.copy(pathlib.Path(MODEL.path, "generation_config.json"), folder)
    (folder / "done").touch()
    return made


def make_clip(num_frames: int, side: int, seed: int) -> Clip:
    """A video of noise: every pixel counts for something."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, side, side, 3), np.uint8)
    indices = tuple(range(num_frames))
    return Clip(frames=frames, fps=2.0, total_num_frames=num_frames, duration_s=num_frames / 2, indices=indices)


def make_data(folder: pathlib.Path, shape: Shape) -> None:
    """Pairs on as many videos, a probe of two, and the files that a training job reads."""
    cache, frames, pairs = FrameCache(folder / "frames"), {}, []
    for number in range(shape.num_pairs):
        clip = make_clip(shape.num_frames, shape.side, number)
        frames[f"v{number}"] = str(cache.put(f"{number:04}", FrameSpec(), clip))
        lengths = shape.response - number % 5, max(1, shape.response // 2 + number % 7)
        chosen, rejected = (" ".join([word] * count) for word, count in zip((WORD, ANSWER_WORD), lengths, strict=True))
        marks = differing_marks(chosen, rejected)
        pairs.append(
            PreferencePair(
                id=f"p{number}",
                example_id=f"e{number}",
                video=f"v{number}",
                question="Describe the video.",
                answer=chosen,
                chosen=chosen,
                rejected=rejected,
                chosen_marks=marks[0],
                rejected_marks=marks[1],
            )
        )
    probe = [Example(id=f"x{n}", video=f"v{n}", question="What?", answer=WORD) for n in range(2)]
    files.write_json(folder / "frames.json", frames)
    files.write_table(folder / "pairs.parquet", pairs)
    files.write_table(folder / "probe.parquet", probe)


def make_job(folder: pathlib.Path, data: pathlib.Path, model: ModelConfig, shape: Shape, **train: Any) -> TrainJob:
    """A training on the pairs of `data`, with `train` over a step of 8 pairs each in a forward pass of its own."""
    options = {"batch_size": min(8, shape.num_pairs), "num_monitored": 2, "warmup_ratio": 0, "learning_rate": 1e-6, **train}
    files.write_json(folder / "reference.json", {})
    return TrainJob(
        model=model,
        policy_path=model.path,
        policy_version="random",
        train=TrainConfig(**options),
        objective=ObjectiveConfig(name="leanpo"),
        plain_prompt="{question}",
        frame_spec=FrameSpec(num_frames=shape.num_frames),
        seed=0,
        pairs=str(data / "pairs.parquet"),
        frames=str(data / "frames.json"),
        probe=str(data / "probe.parquet"),
        reference=str(folder / "reference.json"),
        cache=str(folder / "cache"),
        stage=str(folder / "stage"),
        checkpoints=str(folder / "checkpoints"),
        export=str(folder / "model"),
    )
