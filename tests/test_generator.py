"""The generator's part of a chunk: what the model does not take is quarantined, and the others are responded to."""

import json
import multiprocessing
import os
import types

import pytest

from actors import generator
from vidalign.config.run import ModelConfig
from vidalign.errors import ModelError
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


def test_an_engine_whose_process_dies_while_it_loads_is_an_error_the_fourth_time(made, monkeypatch, tmp_path):
    """The constructor has returned by then, so Ray Data would start the actor again without end."""
    context = multiprocessing.get_context("fork")

    def load_and_die(*_: object, **__: object) -> None:
        os._exit(1)

    def start() -> None:
        one, _ = made()
        one._engine.result()

    monkeypatch.setattr(generator, "VllmEngine", load_and_die)
    for _ in range(3):
        process = context.Process(target=start)
        process.start()
        process.join(60)
        assert process.exitcode == 1
    one, _ = made()
    with pytest.raises(ModelError, match="died 3 times while it loaded"):
        one({"chunk": 0, "examples": "[]", "decoded": "[]", "missed": "[]"})
    assert list((tmp_path / "parts").iterdir()) == [], "nothing is left behind"


def test_an_engine_that_fails_in_words_is_not_counted(made, monkeypatch, tmp_path):
    def fail(*_: object, **__: object) -> None:
        raise ModelError("vLLM cannot serve it")

    monkeypatch.setattr(generator, "VllmEngine", fail)
    for _ in range(5):
        one, _ = made()
        with pytest.raises(ModelError, match="cannot serve it"):
            one({"chunk": 0, "examples": "[]", "decoded": "[]", "missed": "[]"})
    assert list((tmp_path / "parts").iterdir()) == []
