"""What a training is said to hold: by hand, and against every tensor that DeepSpeed and autograd make on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

from vidalign.config.training import TrainConfig
from vidalign.model.training_memory import ParameterCount, TrainMemory, bucket_elements, predict, train_memory

M = 10**6
COUNT = ParameterCount(total=1000 * M, trainable=800 * M, largest=100 * M)


def of(dtype="bfloat16", on_gpu=True, count=COUNT, **train):
    return train_memory(count, TrainConfig(**train), dtype, on_gpu=on_gpu)


def offload(**what):
    return {"zero_optimization": {f"offload_{name}": {"device": "cpu"} for name in what}}


def test_gradients_that_are_added_up_take_four_bytes():
    assert of(zero_stage=2, batch_size=1).gradients == 2 * 800 * M
    assert of(zero_stage=2, batch_size=2).gradients == 4 * 800 * M
    assert of(zero_stage=2, batch_size=8, num_workers=4).gradients == 800 * M
    assert (
        of(zero_stage=1, batch_size=8, num_workers=4).gradients == 6 * 800 * M
    )  # float32 is not divided, and beside bfloat16
    assert of(zero_stage=0, batch_size=2).gradients == 2 * 800 * M  # DeepSpeed has no such mix
    assert of(zero_stage=2, batch_size=2, deepspeed={"data_types": {"grad_accum_dtype": "bf16"}}).gradients == 2 * 800 * M


def test_what_the_optimizers_step_makes():
    assert of(zero_stage=2, batch_size=1).step == 4 * 800 * M
    assert of(zero_stage=2, batch_size=2).step == 0  # they are float32 already
    assert of(zero_stage=2, batch_size=2, on_gpu=False).step == 8 * 800 * M  # AdamW is not fused there
    assert of(zero_stage=3, batch_size=2).step == (4 * 800 + 2 * 500) * M  # and the bucket stays


def test_buckets_are_there_on_one_rank_too():
    assert of(zero_stage=2).buffers == 2 * 2 * 500 * M
    assert of(zero_stage=2, on_gpu=False).buffers == 2 * 500 * M
    assert of(zero_stage=0).buffers == 0
    assert of(zero_stage=3, num_workers=4, batch_size=4).buffers == 2 * (500 + 1000) * M  # and live parameters
    small = ParameterCount(total=1000 * M, trainable=10 * M, largest=M)
    assert of(zero_stage=2, count=small).buffers == 2 * 2 * 10 * M
    assert bucket_elements(TrainConfig(deepspeed={"zero_optimization": {"reduce_bucket_size": 7}}), 10) == 7


def test_what_is_offloaded_is_on_the_host():
    states = of(zero_stage=3, num_workers=4, batch_size=4, deepspeed=offload(optimizer=1))
    assert (states.optimizer, states.gradients, states.step) == (0, 0, 0)
    assert states.host == 16 * 200 * M
    both = of(zero_stage=3, num_workers=4, batch_size=4, deepspeed=offload(optimizer=1, param=1))
    assert both.weights == 0
    assert both.host == 16 * 200 * M + 2 * 250 * M


def test_gradients_added_up_in_float32_stay_on_the_device():
    """As on an H200: a 3B model at stage 2 with its optimizer on the host had a peak of 23.3 GiB; without them 11.5 GiB are said."""
    added_up = of(zero_stage=2, batch_size=2, deepspeed=offload(optimizer=1))
    assert added_up.gradients == 4 * 800 * M
    assert added_up.optimizer == 0
    assert added_up.buffers == of(zero_stage=2, batch_size=2).buffers + 2 * 100 * M
    assert of(zero_stage=2, batch_size=1, deepspeed=offload(optimizer=1)).gradients == 0
    assert of(zero_stage=3, batch_size=2, deepspeed=offload(optimizer=1)).gradients == 0


def test_the_peak_is_in_the_forward_pass_or_in_the_step():
    states = TrainMemory(weights=10, gradients=5, optimizer=20, buffers=3, backward=1, step=7, accumulates=True)
    assert states.peak(100) == 10 + 20 + 3 + 1 + 5 + 100
    assert states.peak(0) == 10 + 5 + 20 + 7
    alone = TrainMemory(weights=10, gradients=5, optimizer=20, buffers=3, backward=1, step=0)
    assert alone.peak(100) == 10 + 20 + 3 + 1 + 100  # its own gradients come as its activations go


CASES = {
    "stage 0, float32": ("float32", 64, {"zero_stage": 0, "batch_size": 1}),
    "stage 0": ("bfloat16", 64, {"zero_stage": 0, "batch_size": 1}),
    "stage 1": ("bfloat16", 64, {"zero_stage": 1, "batch_size": 1}),
    "stage 1, two forwards": ("bfloat16", 64, {"zero_stage": 1, "batch_size": 2}),
    "stage 2, float32": ("float32", 64, {"zero_stage": 2, "batch_size": 1}),
    "stage 2": ("bfloat16", 64, {"zero_stage": 2, "batch_size": 1}),
    "stage 2, two forwards": ("bfloat16", 64, {"zero_stage": 2, "batch_size": 2}),
    "stage 3": ("bfloat16", 64, {"zero_stage": 3, "batch_size": 1}),
    "stage 3, two forwards": ("bfloat16", 64, {"zero_stage": 3, "batch_size": 2}),
    "adapter": ("bfloat16", 64, {"zero_stage": 2, "batch_size": 2, "lora": {"rank": 64}}),
    "activations": ("bfloat16", 1000, {"zero_stage": 2, "batch_size": 2}),
}


@pytest.mark.long
@pytest.mark.heavy
def test_a_step_holds_what_is_predicted(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "tracked_steps.py"), json.dumps(CASES), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    folder = pathlib.Path(tmp_path / "model")
    for name, (dtype, num_tokens, options) in CASES.items():
        tokens = 2 * (num_tokens + 16)
        _, said = predict(str(folder), TrainConfig(**options), dtype, num_tokens=tokens, num_vision_tokens=0, on_gpu=False)
        rough = 0.15 if name in ("activations", "adapter") else 0.03
        assert said == pytest.approx(measured[name], rel=rough), name
