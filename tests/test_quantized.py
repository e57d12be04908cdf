"""A model in 4 bits under an adapter: what is refused, what it takes, and that it trains and is exported in full precision."""

import json

import pytest
import torch
from conftest import plan_of
from safetensors.torch import load_file
from test_dry_run import connected, folders, raw, refusals  # noqa: F401 (fixtures)
from test_memory import facts, outline, run_config
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)

from cluster.described import described
from pipelines.checks.memory import check_memory
from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.model import quantized, training_memory
from vidalign.model.adapters import adapter_targets
from vidalign.model.checkpoint import export_policy
from vidalign.model.policy import ResponseScorer, load_policy, prepare_training
from vidalign.types import FrameSpec

GIB = 2**30
LORA = {"rank": 4, "alpha": 8, "quantize": "4bit"}
needs_bitsandbytes = pytest.mark.skipif(
    not quantized.is_installed(), reason="bitsandbytes is not installed, which has kernels for CPUs too"
)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"zero_stage": 3}, "keeps the model whole on each device, and zero_stage=3 divides it; set zero_stage to 2, or"),
        ({"uncertainty": {}}, "rounds them; set one of the two to null"),
    ],
)
def test_what_does_not_go_together_is_refused(train, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(lora=LORA, **train)
    TrainConfig(lora={**LORA, "quantize": None}, **train)


def test_a_missing_package_is_refused_before_anything_starts(raw, connected, monkeypatch):  # noqa: F811
    raw["train"] = {"lora": LORA}
    monkeypatch.setattr(quantized, "is_installed", lambda: False)
    dry, real = refusals(raw)
    assert dry == real
    assert dry.startswith(
        "train.lora.quantize=4bit needs the package bitsandbytes, which is not installed; run `pip install "
    )
    assert "\n" not in dry


def test_weights_in_4_bits_by_hand():
    count = training_memory.ParameterCount(total=1_000_000, trainable=1000, quantized=16_384 * 50)
    # The others in bfloat16; of a block of 16,384 weights: 4 bits each, a byte for each 64, and four bytes.
    assert count.weight_bytes("bfloat16") == 2 * (1_000_000 - 819_200) + 50 * (8192 + 256 + 4)


def test_a_7b_model_trains_on_one_card_of_24_gb():
    """Of 8.29 G parameters 6.53 G are in the language model's layers."""
    train = TrainConfig(lora={"rank": 64, "alpha": 128, "quantize": "4bit"})
    count = training_memory.count_parameters(outline("qwen2_5_vl", "bfloat16"), train)
    layers = adapter_targets(outline("qwen2_5_vl", "bfloat16")).values()
    assert count.quantized == sum(layer.weight.numel() for layer in layers) == 6_525_288_448
    assert training_memory.train_memory(count, train, "bfloat16").weights / GIB == pytest.approx(6.7, abs=0.1)
    options = {"num_workers": 1, "zero_stage": 2, "batch_size": 16, "gradient_checkpointing": True}
    config, machines = run_config(train={**options, "lora": {"rank": 64, "quantize": "4bit"}}), described("1x24")
    made = plan_of(config, machines.resources)
    lines = check_memory(config, made, facts(), machines, num_tokens=4000, stages=("train",))
    (line,) = [line for line in lines if line.startswith("training")]
    assert "(6,525,288,448 of them in 4 bits)" in line
    host = next(line for line in lines if line.startswith("host memory"))
    assert "the export holds up to 21.1 GiB" in host  # the base whole, and a shard


@needs_bitsandbytes
def test_only_the_language_models_linear_layers_are_in_4_bits(prepared):  # noqa: F811
    model = quantized.load_quantized(prepared[0], prepared[0].path, torch.device("cpu"))
    plain = load_policy(prepared[0])
    rounded = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    assert rounded == {f"{name}.weight" for name in adapter_targets(plain)}
    others = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        assert name in rounded or torch.equal(others[name], parameter), name
    assert quantized.is_quantized(model)
    assert not quantized.is_quantized(plain)


@needs_bitsandbytes
def test_a_training_on_the_cpu_moves_the_adapter_and_exports_whole_weights(prepared, source, groups, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    config = prepared[0]
    train = TrainConfig(lora={**LORA, "targets": ["q_proj", "down_proj"]}, gradient_checkpointing=True)
    model = prepare_training(quantized.load_quantized(config, config.path, torch.device("cpu")), train)
    scorer = ResponseScorer(model)
    batch = source.batch(groups)
    before = [parameter.clone() for parameter in model.parameters() if not parameter.requires_grad]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    with torch.no_grad():
        measured = -scorer.eval()(batch.inputs, batch.labels)[0].sum().item()
    scorer.train()
    for _ in range(3):
        logps, *_ = scorer(batch.inputs, batch.labels)
        loss = -logps.sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert measured == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] < losses[1] < losses[0]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(before, frozen, strict=True))
    exact, *_ = ResponseScorer(load_policy(config))(batch.inputs, batch.labels)
    assert losses[0] == pytest.approx(-exact.sum().item(), rel=0.05)  # rounded to 4 bits

    folder = tmp_path / "model"
    export_policy(
        model,
        folder,
        base=config.path,
        parent="",
        frame_spec=FrameSpec(),
        prompt="{question}",
        zero_stage=2,
        keep_adapter=True,
    )
    made = load_file(folder / "model.safetensors")
    base = {name: weight.float() for name, weight in load_file(f"{config.path}/model.safetensors").items()}
    assert made.keys() == base.keys()
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    moved = {name.split("base_model.model.")[1].split(".lora_")[0].replace(".language_model", "") for name in adapter}
    assert {name.rpartition(".")[2] for name in moved} == {"q_proj", "down_proj"}
    for name, weight in base.items():
        assert made[name].dtype == weight.dtype
        layer = name.removesuffix(".weight")
        if layer not in moved:
            assert torch.equal(made[name], weight), name
            continue
        stored = layer.replace("model.", "base_model.model.model.language_model.", 1)
        one, other = (adapter[f"{stored}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(made[name], weight + 2 * other @ one, atol=1e-6, rtol=1e-6)  # alpha / rank
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    load_policy(ModelConfig(path=str(folder), dtype="float32"))
