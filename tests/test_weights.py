"""Weights written part by part are what `save_pretrained` writes: the same files, byte for byte, for single and sharded ones."""

import contextlib

import pytest
import safetensors.torch
import torch
import transformers
from test_shared_prefix import ARCHITECTURES, TEXT

from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.model import checkpoint, weights
from vidalign.model.adapters import add_adapter
from vidalign.model.checkpoint import MAX_SHARD_BYTES
from vidalign.model.policy import load_policy
from vidalign.model.weights import plan_files, tensors_of, unwrapped, write_weights
from vidalign.types import FrameSpec

SMALL = 40_000  # bytes: many shards, and tensors that are larger


def loaded(model, tmp_path):
    """The same model as users have it: from a folder, whose names and layouts may differ from the module's."""
    model.save_pretrained(tmp_path / "given")
    return load_policy(ModelConfig(path=str(tmp_path / "given"), dtype="float32"))


def moe():
    config = transformers.Qwen3VLMoeConfig(
        text_config={**TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        vision_config={"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32},
    )
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


MODELS = {name: lambda make=make: make()[0] for name, make in ARCHITECTURES.items()} | {"moe": moe}


def written(model, folder, size):
    """All files of the folder by name. Nothing is held but what `write_weights` says."""
    folder.mkdir()
    unwrapped(model).save_pretrained(folder, state_dict={})
    write_weights(model, folder, whole=lambda _: contextlib.nullcontext(), max_shard_bytes=size)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(model, folder, size):
    model.save_pretrained(folder, max_shard_size=size)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", [SMALL, MAX_SHARD_BYTES])
@pytest.mark.parametrize("name", MODELS)
def test_files_of_random_models(name, size, tmp_path):
    torch.manual_seed(0)
    model = loaded(MODELS[name](), tmp_path)
    ours, theirs = written(model, tmp_path / "ours", size), saved(model, tmp_path / "theirs", size)
    assert ours.keys() == theirs.keys()
    assert ours == theirs
    assert ("model.safetensors.index.json" in ours) is (size == SMALL)


@pytest.mark.parametrize("size", [SMALL, MAX_SHARD_BYTES])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_of_the_built_in_model(model_path, size, dtype, tmp_path):
    model = load_policy(ModelConfig(path=model_path, dtype=dtype))
    assert written(model, tmp_path / "ours", size) == saved(model, tmp_path / "theirs", size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_merged_and_stays(model_path, dtype, tmp_path):
    torch.manual_seed(0)
    model = add_adapter(
        load_policy(ModelConfig(path=model_path, dtype=dtype)), TrainConfig(lora={"rank": 4, "alpha": 8})
    ).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = written(model, tmp_path / "ours", SMALL)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert ours == saved(model.merge_and_unload(), tmp_path / "theirs", SMALL)


def test_a_block_at_a_time(monkeypatch, model_path, tmp_path):
    """Read tensors wait for their shard only, and no block of the model holds another one up."""
    held, most, shard = {}, 0, 0
    plain_host, plain_save = weights.on_host, safetensors.torch.save_file

    def on_host(tensor):
        nonlocal most
        copy = plain_host(tensor)
        held[copy.data_ptr()] = copy.nbytes
        most = max(most, sum(held.values()))
        return copy

    def save_file(tensors, path, metadata):
        nonlocal shard
        shard = max(shard, sum(tensor.nbytes for tensor in tensors.values()))
        plain_save(tensors, path, metadata)
        for tensor in tensors.values():
            del held[tensor.data_ptr()]

    monkeypatch.setattr(weights, "on_host", on_host)
    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    model = load_policy(ModelConfig(path=model_path, dtype="float32"))
    plan, sizes = plan_files(model, tensors_of(model), 10**6), {n: t.nbytes for n, t in model.state_dict().items()}
    blocks = [sum(sizes[name] for name in group) for group in plan.groups]
    written(model, tmp_path / "ours", 10**6)
    assert not held
    assert len(plan.shards) > 5
    assert most <= max(blocks) + shard < sum(blocks) / 3


def test_an_export_that_dies_leaves_the_old_one(monkeypatch, model_path, tmp_path):
    def export():
        model = load_policy(ModelConfig(path=model_path, dtype="float32"))
        with torch.no_grad():
            model.get_input_embeddings().weight += 1
        checkpoint.export_policy(
            model, folder, base=model_path, parent="v", frame_spec=FrameSpec(), prompt="{question}", zero_stage=2
        )

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "of an older export").touch()

    def full(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match="no space"):
            export()
    assert [path.name for path in folder.iterdir()] == ["of an older export"]
    export()
    card = checkpoint.read_card(folder)
    assert card is not None
    assert card["version"] == checkpoint.policy_version(folder).version != checkpoint.policy_version(model_path).version
    assert not (folder / "of an older export").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
