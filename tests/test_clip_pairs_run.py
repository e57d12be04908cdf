"""Pairs over videos from a data file to an exported policy, through real Ray and DeepSpeed, by the command."""

import json

import pytest
import yaml
from conftest import vidalign

from vidalign import files
from vidalign.model.checkpoint import read_card
from vidalign.types import PreferencePair

pytestmark = [pytest.mark.heavy, pytest.mark.long]
NUM_EXAMPLES = 12


def test_answers_alone_are_preferred_with_their_own_videos(small_config, tmp_path):
    """VDPO of answers: no rollout. The packed pass holds both prompts, features of both clips are kept, and the margin grows."""
    raw = yaml.safe_load(small_config.read_text())
    raw["data"].pop("eval")
    raw["data"]["limit"] = NUM_EXAMPLES
    raw["train"] |= {"learning_rate": 3e-4, "log_every": 1, "num_epochs": 2, "cache_vision_features": True}
    raw |= {
        "run_dir": str(tmp_path / "run"),
        "recipe": {
            "name": "given",
            "clip_pairs": {"with_others": "alone", "perturb": {"mask_area": None, "shuffle": "reverse"}},
        },
        "objective": {"name": "dpo", "params": {"weigh_stale": True}},
        "cluster": {"address": "local"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = vidalign("align", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "run"
    pairs = files.read_table(run / "rounds/0/pairs/pairs.parquet", PreferencePair)
    facts = json.loads((run / "rounds/0/pairs/manifest.json").read_text())
    assert len(pairs) == facts["clip_pairs"]["kept"] == NUM_EXAMPLES
    assert all(pair.rejected == pair.chosen == pair.answer and len(pair.rejected_videos) == 1 for pair in pairs)
    clips = files.read_places(run / "rounds/0/pairs/frames.json")
    assert all(clips[pair.video] != clips[pair.rejected_videos[0]] for pair in pairs)
    rows = files.read_jsonl(run / "rounds/0/train/metrics.jsonl")
    assert all(row["grad_norm"] > 0 for row in rows[1:])
    assert rows[0]["chosen_logp"] != rows[0]["rejected_logp"], "the two clips are not one"
    assert rows[-1]["margin"] > rows[0]["margin"]
    assert read_card(run / "rounds/0/model") is not None
