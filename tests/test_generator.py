"""The generator's part of a chunk: what the model does not take is quarantined, and the others are responded to."""

import json
import types

import pytest

from actors import generator
from vidalign.config.run import ModelConfig
from vidalign.model.clip_check import black
from vidalign.types import Example, FrameSpec
from vidalign.video.frame_cache import FrameCache


@pytest.fixture
def made(monkeypatch, model_path, tmp_path):
    """A generator without an engine, and the ids of the examples that it responds to."""
    asked = []
    engine = types.SimpleNamespace(take_seconds=lambda: {"waiting": 0.0, "working": 0.0})
    monkeypatch.setattr(generator, "VllmEngine", lambda *_, **__: engine)

    def respond(engine, examples, clips):
        asked.extend(example.id for example in examples)
        return []

    def make(**options):
        config = ModelConfig(path=model_path, max_model_len=512).model_dump(mode="json")
        own = {
            "num_gpus": 0,
            "seed": 0,
            "engine_args": {},
            "limits": {"video": 1},
            "parts": str(tmp_path / "parts"),
            "num_examples": 1,
        }
        return generator.Generator(config, model_path, respond=respond, **own, **options), asked

    return make


@pytest.mark.parametrize(
    ("reserved", "reasons"),
    [(0, ["", "unfit", "", "missing"]), (490, ["", "unfit", "too_long", "missing"])],
)
def test_clips_that_the_model_does_not_take_cost_themselves_alone(made, tmp_path, reserved, reasons):
    cache = FrameCache(tmp_path / "frames")
    clips = {"good": black(8, 56, 56), "strip": black(8, 2, 2000), "long": black(64, 56, 56)}
    decoded = [
        {"video": name, "frames_path": str(cache.put(name, FrameSpec(), clip)), "reason": "", "message": ""}
        for name, clip in clips.items()
    ]
    decoded.append({"video": "gone", "frames_path": "", "reason": "missing", "message": "no file"})
    examples = [Example(id=row["video"], video=row["video"], question="q", answer="a") for row in decoded]
    one, asked = made(reserved_tokens=reserved)
    row = {
        "chunk": 0,
        "examples": json.dumps([example.to_row() for example in examples]),
        "decoded": json.dumps(decoded),
        "missed": "[]",
    }
    assert one(row) == {"chunk": 0, "num_examples": 4, "missed": "[]"}
    part = json.loads((tmp_path / "parts" / "000000.json").read_text())
    assert [row["reason"] for row in part["decoded"]] == reasons
    assert asked == [example.id for example, reason in zip(examples, reasons, strict=True) if not reason]
