"""DeepSpeed's configuration of a training job, and the options that it is made from."""

import pydantic
import pytest
import torch

from actors.rank import deepspeed_config, merged
from vidalign.config.training import TrainConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(dtype="bfloat16", device=CPU, num_workers=1, **train):
    return deepspeed_config(TrainConfig(**train), dtype, num_workers=num_workers, device=device, num_trainable=1000)


def test_adam_is_fused_where_there_is_a_gpu():
    assert config(device=CUDA)["optimizer"]["params"] == {"lr": 5e-7, "weight_decay": 0.0, "torch_adam": True, "fused": True}
    assert "fused" not in config()["optimizer"]["params"]


def test_states_on_the_host_are_updated_by_deepspeeds_own_adam():
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memory": True}}}
    made = config(device=CUDA, zero_stage=3, deepspeed=offload)
    assert made["optimizer"]["params"] == {"lr": 5e-7, "weight_decay": 0.0}
    assert made["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": 1000,
        **offload["zero_optimization"],
    }


def test_buckets_are_no_larger_than_the_gradients():
    def size(num_trainable, **train):
        made = deepspeed_config(TrainConfig(**train), "bfloat16", num_workers=1, device=CPU, num_trainable=num_trainable)
        return made["zero_optimization"].get("reduce_bucket_size")

    assert size(160_000_000) == 160_000_000
    assert size(7_000_000_000) == 500_000_000
    assert size(1000, zero_stage=0) is None


@pytest.mark.parametrize(
    ("dtype", "train", "accumulates"),
    [
        ("bfloat16", {"batch_size": 8}, True),
        ("bfloat16", {"batch_size": 8, "micro_batch_size": 8}, False),  # nothing is added up
        ("bfloat16", {"batch_size": 8, "micro_batch_size": 8, "tokens_per_micro_batch": 100}, True),
        ("float16", {"batch_size": 8, "zero_stage": 3}, True),
        ("float32", {"batch_size": 8}, False),
        ("bfloat16", {"batch_size": 8, "zero_stage": 0}, False),  # DeepSpeed has no such mix
    ],
)
def test_gradients_of_several_forwards_add_up_in_float32(dtype, train, accumulates):
    assert (config(dtype, **train).get("data_types") == {"grad_accum_dtype": "fp32"}) == accumulates


def test_what_a_user_sets_is_merged_in_last():
    made = config(deepspeed={"data_types": {"grad_accum_dtype": "bf16"}, "zero_optimization": {"reduce_bucket_size": 5}})
    assert made["data_types"] == {"grad_accum_dtype": "bf16"}
    assert made["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 5}
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}


@pytest.mark.parametrize(
    ("deepspeed", "way_out"),
    [
        ({"train_batch_size": 4}, "train.batch_size"),
        ({"optimizer": {"type": "Lion"}}, "train.learning_rate"),
        ({"bf16": {"enabled": False}}, "model.dtype"),
        ({"zero_optimization": {"stage": 3}}, "train.zero_stage"),
    ],
)
def test_what_has_an_option_of_its_own_is_refused(deepspeed, way_out):
    with pytest.raises(pydantic.ValidationError, match=f"is decided by {way_out}"):
        TrainConfig(deepspeed=deepspeed)
