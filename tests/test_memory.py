"""Memory by phase, of real 7B configs on described clusters: meta tensors, no weights. Figures are GiB."""

import functools
import pathlib

import pytest
import tiny_families
import torch
import transformers
from conftest import plan_of

from cluster.described import described
from cluster.resources import ClusterResources
from pipelines.checks.memory import check_memory
from pipelines.checks.model import ModelFacts
from vidalign.config.loading import parse_config
from vidalign.config.training import TrainConfig
from vidalign.errors import ClusterError
from vidalign.model import families, loading, memory, training_memory

GIB = 2**30
TEXT_7B = {  # config.json of Qwen2.5-VL-7B-Instruct
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
}
VISION_7B = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
LLAVA_ONEVISION_7B = {  # of llava-onevision-qwen2-7b-ov-hf: its text_config lists only what is not default
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152128,
        "max_position_embeddings": 32768,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


@functools.cache
def outline(name, dtype):
    config = {
        "qwen2_5_vl": lambda: transformers.Qwen2_5_VLConfig(
            text_config=TEXT_7B, vision_config=VISION_7B, tie_word_embeddings=False
        ),
        "llava_onevision": lambda: transformers.LlavaOnevisionConfig(**LLAVA_ONEVISION_7B, tie_word_embeddings=False),
    }[name]()
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """The outlines are shared, so what is counted of them is too."""
    monkeypatch.setattr(memory, "activations", count_activations)


count_activations = functools.cache(memory.activations)


def facts(name="qwen2_5_vl", dtype="bfloat16"):
    made = outline(name, dtype)
    return ModelFacts(folder=pathlib.Path(), config=made.config, processor=None, outline=made, lines=[], warnings=[])


def run_config(**sections):
    raw = {
        "run_dir": "r",
        "model": {"path": "m", "max_model_len": 8192},
        "data": {"train": "t.jsonl", "eval": "e.jsonl"},
        "objective": {"name": "dpo"},
        "train": {"num_workers": 8, "zero_stage": 3, "batch_size": 32, "gradient_checkpointing": True},
    }
    for section, values in sections.items():
        raw[section] = raw.get(section, {}) | values
    return parse_config(raw)


def planned(on, name="qwen2_5_vl", num_tokens=4000, **sections):
    config, machines = run_config(**sections), described(on)
    made = plan_of(config, machines.resources)
    stages = ("rollout", "train", "evaluate")
    return check_memory(config, made, facts(name, config.model.dtype), machines, num_tokens=num_tokens, stages=stages)


@pytest.mark.parametrize(("stage", "expected"), [(1, 40.3), (2, 27.9), (3, 14.3)])
def test_training_states_of_a_7b_model_on_eight_gpus(stage, expected):
    """Figures that were checked against DeepSpeed's own."""
    train = TrainConfig(num_workers=8, batch_size=8, zero_stage=stage)
    count = training_memory.count_parameters(outline("qwen2_5_vl", "bfloat16"), train)
    assert count.total == pytest.approx(8.29e9, rel=1e-3)
    assert training_memory.train_memory(count, train, "bfloat16").total / GIB == pytest.approx(expected, abs=0.05)


def test_training_states_with_adapters_on_one_gpu():
    for batch_size, expected in ((1, 20.3), (16, 20.9)):  # gradients of several forward passes are float32
        train = TrainConfig(lora={"rank": 128, "alpha": 256}, batch_size=batch_size)
        count = training_memory.count_parameters(outline("qwen2_5_vl", "bfloat16"), train)
        assert training_memory.train_memory(count, train, "bfloat16").total / GIB == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava_onevision", "internvl", "glm4v"])
def test_what_autograd_keeps_is_counted_without_computing(name, tmp_path_factory):
    """The same count on the CPU, with the numbers and its fused attention."""
    folder = str(tiny_families.checkpoint(name, tmp_path_factory.mktemp("memory")))
    counted = memory.activations(loading.outline(folder), "float32")
    decoder, kept = families.decoder(loading.load(folder, torch.float32)), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*decoder.parameters(), *decoder.buffers())}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = torch.randn(1, 512, counted.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 512
    output.sum().backward()
    assert counted.per_token == pytest.approx(measured, rel=0.05)


def test_gradient_checkpointing_and_short_forwards_hold_less():
    acts = memory.activations(outline("qwen2_5_vl", "bfloat16"), "bfloat16")
    assert acts.num_layers == 28
    assert acts.per_token == pytest.approx(28 * 32 * 3584 * 2, rel=0.2)
    whole = acts.training(8000, 8000, checkpointing=False)
    parts = acts.training(8000, 8000, checkpointing=True)
    assert whole > 8 * parts
    assert acts.training(4000, 4000, checkpointing=True) < parts
    assert acts.inference(8000, 8000) < parts


# --- phases ---


def test_zero_3_of_7b_on_eight_cards_of_24_gb_fits():
    lines = planned("8x24")
    assert [line.partition(":")[0] for line in lines] == [
        "rollout",
        "training",
        "evaluation",
        "host memory",
        "disk",
    ]
    assert "rollout: each GPU holds 15.9 GiB, of 21.6 GiB: 15.4 GiB of weights, and 0.4 GiB of key-value cache" in lines[0]
    assert lines[0].endswith("room for 14 at a time")  # 6.2 GiB are left beside the weights
    assert "7,615,616,512 of 8,292,166,656 parameters change in bfloat16 with train.zero_stage=3 on 8 workers" in lines[1]


def test_zero_2_of_7b_on_eight_cards_of_24_gb_does_not():
    with pytest.raises(ClusterError, match=r"training holds .* a GPU has 24.0 GiB; .*raise train.zero_stage to 3"):
        planned("8x24", train={"zero_stage": 2})
    assert planned("8x80", train={"zero_stage": 2})


def test_a_float32_engine_of_7b_on_24_gb_does_not_fit():
    with pytest.raises(
        ClusterError, match=r"rollout holds 31.* but a GPU has 24.0 GiB, of which 0.9 is used; set model.dtype to"
    ):
        planned("8x24", model={"dtype": "float32"})


def test_weights_of_15_gb_on_12_gb_do_not_fit():
    with pytest.raises(ClusterError, match=r"rollout holds 15.* GiB of weights.* GiB.* raise rollout.gpus_per_engine to 2"):
        planned("8x12")
    # sharing the engine's weights mends the rollout
    with pytest.raises(ClusterError, match=r"training holds .* a GPU has 12.0 GiB"):
        planned("8x12", rollout={"gpus_per_engine": 2})


def test_only_doubts_need_a_reference_of_their_own():
    """Any other is computed by the ranks, with the weights that they share anyway."""
    lines = planned("8x24", train={"uncertainty": {}}, objective={"name": "leanpo"})
    assert lines[1].startswith("reference: each GPU holds 18.")
    with pytest.raises(ClusterError, match=r"reference holds 1\d\.\d GiB"):
        planned("8x12", train={"uncertainty": {}}, objective={"name": "leanpo"}, rollout={"gpus_per_engine": 2})


def test_two_models_on_one_card():
    alone = {"num_workers": 1, "lora": {"rank": 64, "alpha": 128}}
    small = {"train": alone, "objective": {"name": "sft"}}
    assert any("evaluation: each GPU holds 15" in line for line in planned("1x24", **small)), "one model after the other"
    with pytest.raises(
        ClusterError,
        match=r"evaluation, 2 models on one GPU holds 15.* a GPU has 24.0 GiB, of which 0.45 is used; set evaluate.in_turn to null",
    ):
        planned("1x24", **small, evaluate={"in_turn": False})
    assert planned("1x48", train=alone)


def test_long_prompts_take_activations():
    long = {"gradient_checkpointing": False}
    with pytest.raises(
        ClusterError,
        match=r"training holds .* for 32,000 tokens and .* of buffers; .*\), .* set train.gradient_checkpointing or",
    ):
        planned("8x80", num_tokens=32_000, train=long, model={"max_model_len": 32_000})
    assert planned("8x80", num_tokens=32_000, model={"max_model_len": 32_000})


def test_a_text_config_of_a_few_lines():
    lines = planned("8x80", name="llava_onevision")
    assert "15.0 GiB of weights, and 0.4 GiB of key-value cache" in lines[0]


def test_a_judge_has_a_phase_of_its_own(tmp_path):
    judge = tiny_families.checkpoint("qwen2_5_vl", tmp_path)
    recipe = {"name": "hound", "captions": "policy", "judge": {"kind": "vllm", "model": str(judge), "max_model_len": 512}}
    lines = planned("8x80", recipe=recipe)
    assert lines[1].startswith("judge: each GPU holds ")
    assert lines[2].startswith("training")
    recipe["judge"] |= {"dtype": "float32", "max_model_len": 10**9}
    with pytest.raises(
        ClusterError, match=r"judge holds .* set recipe.judge.dtype to bfloat16 or .* lower recipe.judge.max_m"
    ):
        planned("8x80", recipe=recipe)


# --- descriptions ---


def test_a_described_cluster():
    one, two = described("8x80"), described("2x4x24GB")
    assert one.resources == ClusterResources(num_cpus=64, num_gpus=8, num_nodes=1, cpus_per_node=64, gpus_per_node=8)
    assert one.gpu_memory == 80 * GIB
    assert (two.resources.num_gpus, two.resources.num_nodes, two.resources.gpus_per_node) == (8, 2, 4)
    assert not one.here
    assert two.note == "planned for 2 nodes with 4 GPUs of 24 GB each, and 8 CPUs a GPU"


@pytest.mark.parametrize("text", ["8", "x80", "0x80", "8x0", "8x80x", "eight", "1x2x3x4"])
def test_a_description_that_describes_nothing(text):
    with pytest.raises(ClusterError, match=f"--on={text} describes no cluster"):
        described(text)
