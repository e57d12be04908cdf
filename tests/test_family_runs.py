"""A whole `vidalign align` for a family: rollout, pairs, training, export, endpoint and evaluation, through real parts."""

import pathlib

import pytest
import torch
import yaml
from conftest import free_port, vidalign, write_video
from test_family_engines import NOT_SERVED, STATE_SPACE, named
from tiny_families import WRITERS

from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.data.reading import read_examples
from vidalign.model.batch import collate
from vidalign.model.families import FAMILIES
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import load_processor, render_prompt
from vidalign.model.turns import turns_of
from vidalign.types import EvalAnswer, FrameSpec, PreferencePair, Response
from vidalign.video.decoding import decode

pytestmark = pytest.mark.heavy

# In every run of the heavy tests, because it differs most from the built-in model: patches on three axes of positions, whose features
# enter several layers. `make test-families` runs all.
ALWAYS = ("qwen3_vl",)

NUM_TOKENS = 6
RUN = ("pairs", "align", "serve", "evaluate")  # the columns that a whole run fills
SPEC = FrameSpec(num_frames=None, fps=2.0)  # 4 frames of the longer videos, 3 of the shorter ones


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """8 training questions, 3 held-out ones and 2 for the probe, on videos of 2 s and of 1.5 s in turn."""
    from examples.shapes.make_videos import FPS, make

    folder = tmp_path_factory.mktemp("questions")
    make(folder, {"train": 8, "heldout": 3, "probe": 2}, 0)
    for path in sorted((folder / "videos").glob("*.mp4"))[::2]:
        write_video(path, decode(path, FrameSpec(num_frames=2 * FPS)).frames[: 3 * FPS // 2], codec="libx264", fps=FPS)
    return folder


def config_of(name, model, data, folder):
    port = free_port()
    raw = {
        "run_dir": str(folder / "run"),
        "model": {
            "path": model,
            "dtype": "bfloat16" if name in STATE_SPACE else "float32",
            "max_model_len": 768,
        },
        "data": {
            key: str(data / f"{file}.jsonl") for key, file in (("train", "train"), ("eval", "heldout"), ("probe", "probe"))
        },
        "video": {"num_frames": None, "fps": SPEC.fps},
        "recipe": {"name": "rrpo", "num_candidates": 8, "max_new_tokens": 96},
        "objective": {"name": "dpo"},
        "train": {"learning_rate": 1e-3, "batch_size": 2, "micro_batch_size": 2, "num_monitored": 2, "log_every": 1},
        "evaluate": {"max_new_tokens": NUM_TOKENS},
        "serve": {"port": port},
        "cluster": {"address": "local"},
    }
    path = folder / "align.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path, folder / "run"


def greedy(folder, example):
    """What transformers says to an example, token by token, up to the end of its turn."""
    processor = load_processor(str(folder))
    scorer = ResponseScorer(load_policy(ModelConfig(path=str(folder), dtype="float32"))).eval()
    prompt = render_prompt(processor, example.question, decode(pathlib.Path(example.video), SPEC))
    tokens: list[int] = []
    with torch.no_grad():
        while len(tokens) < NUM_TOKENS:
            batch = collate([(prompt, [*tokens, 0])], pad_id=0)
            tokens.append(int(scorer.logits(scorer.hidden(batch.inputs, batch.labels)[-1:]).argmax()))
            if tokens[-1] == turns_of(processor).end[-1]:
                break
    return processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def whole(text):
    """The text without a last character of which not all bytes came: vLLM waits for the others."""
    return text.rstrip("\ufffd").strip()


@pytest.mark.parametrize("name", named((name for name in WRITERS if name not in NOT_SERVED), ALWAYS))
def test_a_whole_run(name, checkpoints, questions, cell, tmp_path):
    passed = {column: cell(name, column) for column in RUN}
    base = checkpoints(name)
    path, run = config_of(name, base, questions, tmp_path)
    done = vidalign("align", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    passed["align"]()

    responses = files.read_table(run / "rounds/0/responses/responses.parquet", Response)
    pairs = files.read_table(run / "rounds/0/pairs/pairs.parquet", PreferencePair)
    assert pairs
    assert {pair.rejected for pair in pairs} <= {response.text.strip() for response in responses}
    passed["pairs"](f"{len(pairs)} of 8")

    aligned = run / "rounds/0/model"
    examples = {example.id: example for example in read_examples(questions / "heldout.jsonl")}
    for model_id, folder in (("base", base), ("aligned", aligned)):
        answers = files.read_table(run / f"rounds/0/eval/{model_id}.parquet", EvalAnswer)
        assert {answer.example_id for answer in answers} == examples.keys()
        if name not in STATE_SPACE:  # which round differently in vLLM
            assert [whole(answer.text) for answer in answers] == [
                whole(greedy(folder, examples[a.example_id])) for a in answers
            ]
    summary = files.read_json(run / "summary.json")
    assert summary["policy"]["base"] != summary["policy"]["aligned"]
    assert summary["endpoint"] == {"model_ids": ["base", "aligned"]}
    passed["serve"]()
    passed["evaluate"]()


@pytest.mark.families
@pytest.mark.parametrize("name", NOT_SERVED)
def test_a_family_that_vllm_does_not_read_is_refused_before_anything_starts(name, checkpoints, questions, cell, tmp_path):
    passed = [cell(name, column) for column in RUN]
    path, run = config_of(name, checkpoints(name), questions, tmp_path)
    for arguments in (["--dry-run"], []):
        done = vidalign("align", str(path), *arguments)
        assert done.returncode == 2
        assert FAMILIES[name].not_served in done.stderr
        assert "Traceback" not in done.stderr
    assert not (run / "rounds").exists()
    for each in passed:
        each(f"no: {FAMILIES[name].not_served}")
