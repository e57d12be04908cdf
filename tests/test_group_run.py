"""GRPO from videos to an exported policy, through real Ray, vLLM and DeepSpeed, by the command."""

import json
import math

import pytest
import torch
import yaml
from conftest import vidalign

from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.data.reading import read_examples
from vidalign.data.scorers import exact
from vidalign.learning import objectives
from vidalign.learning.advantages import is_uniform
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.group_data import training_group
from vidalign.learning.views import by_rows
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import read_tensors
from vidalign.types import Response, ResponseGroup

pytestmark = pytest.mark.heavy
TOLERANCE = 1.5e-3  # nats; vLLM and transformers use different attention kernels and batch shapes (tests/test_engine.py)
NUM_EXAMPLES, NUM_REPLIES = 24, 4


def test_grpo_starts_where_its_replies_were_sampled(small_config, shapes, model_path, tmp_path):
    raw = yaml.safe_load(small_config.read_text())
    raw["data"].pop("eval")
    raw["data"]["limit"] = raw["rollout"]["batch_size"] = NUM_EXAMPLES
    raw["train"] |= {"batch_size": 12, "micro_batch_size": 4, "log_every": 1, "checkpoint_every": 1000}
    raw |= {
        "run_dir": str(tmp_path / "run"),
        "recipe": {"name": "group", "num_candidates": NUM_REPLIES, "max_new_tokens": 24, "trust": "exact"},
        "objective": {"name": "grpo"},
        "cluster": {"address": "local"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = vidalign("align", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "run"
    groups = files.read_table(run / "rounds/0/pairs/groups.parquet", ResponseGroup)
    replies = files.read_table(run / "rounds/0/responses/responses.parquet", Response)
    sampled = {(r.example_id, r.candidate): (r.token_ids, r.log_probs) for r in replies}
    assert len(replies) == len(sampled) == NUM_EXAMPLES * NUM_REPLIES
    examples = {example.id: example for example in read_examples(shapes / "train.jsonl")}
    for group in groups:
        right = [exact(text, examples[group.example_id]) for text in group.texts]
        assert [r for r, why in zip(group.rewards, group.left_out, strict=True) if not why] == [
            value for value, why in zip(right, group.left_out, strict=True) if not why
        ]
    summary = json.loads((run / "summary.json").read_text())
    counted = summary["groups"]
    assert counted["kept"] + sum(counted["dropped"].values()) == NUM_EXAMPLES
    assert counted["all_alike"] == sum(is_uniform(group.rewards) for group in groups) < len(groups)
    assert counted["replies"] + sum(counted["left_out"].values()) == len(groups) * NUM_REPLIES
    assert summary["policy"]["aligned"] != summary["policy"]["base"]
    assert "Groups" in (run / "report/index.html").read_text()

    # Behaviour log-probs are the learner's own: computed again here, by its parts, and as the learner kept and logged them.
    model = load_policy(ModelConfig(path=model_path, dtype="float32", max_model_len=512))
    source = BatchSource(
        frames=files.read_json(run / "rounds/0/responses/frames.json"),
        processor=cached_processor(model_path),
        plain_prompt="{question}",
        max_model_len=512,
        number=shared_prefix.numbering(model),
    )
    made = [training_group(group, sampled, objectives.build("grpo", {})) for group in groups]
    batch = source.batch(made)
    with torch.no_grad():
        logps, _, _ = ResponseScorer(model, packed=True).eval()(batch.inputs, batch.labels, None, batch.sources)
    mask = batch.labels != IGNORED
    kept = files.read_json(run / "rounds/0/reference/files.json")
    reference = {group.id: read_tensors(kept[group.id]) for group in made}
    for row, response in enumerate(by_rows(made)):
        if response.weight:
            behaviour = torch.tensor(response.behaviour_logps)
            name = made[row % len(made)].names[row // len(made)]
            torch.testing.assert_close(logps[row][mask[row]], behaviour, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(reference[response.group][name], behaviour, atol=TOLERANCE, rtol=0)
    rows = files.read_jsonl(run / "rounds/0/train/metrics.jsonl")
    assert 0 < rows[0]["behaviour_gap"] < TOLERANCE
    assert abs(rows[1]["loss"]) < TOLERANCE, (
        "at ratio 1 the advantages of each group add up to 0, and the KL to the reference is 0"
    )
    assert rows[0]["chosen_logp"] < 0
    assert len(rows) == 1 + math.ceil(len(groups) / 12)
    assert rows[-1]["margin"] > rows[0]["margin"], "the best replies should have gained on the worst"
