"""Packed rows that ranks share: the log-probs, gradients and trainings of whole rows, and what cannot be shared is refused."""

import json
import os
import subprocess
import sys
import types

import gloo_ranks
import pytest
from conftest import ROOT
from test_dry_run import connected, folders, raw, refusals  # noqa: F401 (fixtures)
from test_zero3 import CHUNK_SIZE, figures, folder, job  # noqa: F401 (fixtures)

from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError
from vidalign.model import sequence_parallel
from vidalign.model.training_memory import accumulates


def model(model_type="qwen2_5_vl", heads=28, kv_heads=4):
    text = types.SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads)
    return types.SimpleNamespace(config=types.SimpleNamespace(model_type=model_type, get_text_config=lambda: text))


@pytest.mark.parametrize(
    ("made", "count", "packed", "says"),
    [
        (
            model("qwen3_vl"),
            2,
            True,
            "works only for qwen2_vl, qwen2_5_vl, llava_onevision, but this model is qwen3_vl; set",
        ),
        (model(), 2, False, "divides packed rows, but this training takes separate sequences; set train.shared_prefix to"),
        (
            model(),
            8,
            True,
            "must divide the model's 28 attention heads and 4 heads of keys and values; set it to 1 or 2 or 4",
        ),
        (model(heads=14, kv_heads=2), 4, True, "set it to 1 or 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(made, count, packed, says):
    with pytest.raises(ConfigError, match=f"train.sequence_parallel={count} .*{says}") as caught:
        sequence_parallel.check(made, count, packed=packed)
    assert "\n" not in str(caught.value)
    sequence_parallel.check(made, 1, packed=packed)


def test_a_dry_run_refuses_what_the_run_refuses(raw, connected):  # noqa: F811
    raw["train"] = {"sequence_parallel": 2, "num_workers": 2}
    dry, real = refusals(raw)
    assert dry == real
    assert "must divide the model's 2 attention heads and 1 heads of keys and values; set it to 1" in dry


def test_workers_that_share_count_once():
    train = TrainConfig(num_workers=8, sequence_parallel=4, batch_size=2)
    assert train.num_readers == 2
    assert not accumulates(train)
    with pytest.raises(ValueError, match="set num_workers to 4, or sequence_parallel to 1"):
        TrainConfig(num_workers=2, sequence_parallel=4)
    with pytest.raises(ValueError, match="1 x 8 / sequence_parallel 4 = 2; set batch_size to 2"):
        TrainConfig(num_workers=8, sequence_parallel=4, batch_size=3)


@pytest.mark.heavy
def test_two_ranks_compute_what_one_computes(tmp_path):
    """Also where all response tokens are in one rank's share, and rows of an odd number of tokens."""
    command = [sys.executable, str(ROOT / "tests" / "shard_ranks.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    logs = [(tmp_path / f"rank{rank}.log") for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        for rank, log in enumerate(logs)
    ]
    codes = [rank.wait(300) for rank in ranks]
    assert codes == [0, 0], "\n".join(log.read_text()[-2500:] for log in logs)
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found) == 6
    for case, rows in found.items():
        for row, differences in rows.items():
            assert max(differences.values()) < 1e-5, (case, row, differences)


@pytest.mark.long
@pytest.mark.heavy
def test_a_training_on_shared_rows_is_that_of_one_rank(folder, model_path, tmp_path):  # noqa: F811
    """rrpo has a KL, dpo a reference that is computed by the ranks too."""
    cases: dict = {
        "stage 3": {"zero_stage": 3, "tokens_per_micro_batch": 100, "gradient_checkpointing": True},
        "stage 2": {"zero_stage": 2, "micro_batch_size": 2},
        "features": {"zero_stage": 2, "cache_vision_features": True},
    }
    jobs = {
        name: {
            "job": job(folder, model_path, num_workers=2, sequence_parallel=2, **train),
            "chunk_size": CHUNK_SIZE,
        }
        for name, train in cases.items()
    }
    alone = {"alone": {"job": job(folder, model_path, zero_stage=0), "chunk_size": CHUNK_SIZE}}
    expected = gloo_ranks.run(alone, tmp_path / "one", count=1)["alone"]
    made = gloo_ranks.run(jobs, tmp_path / "two", count=2)
    for name in cases:
        assert figures(made[name]) == pytest.approx(figures(expected), abs=1e-5, rel=1e-5), name
