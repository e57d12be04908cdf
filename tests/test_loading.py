"""Weights are those of their architecture, name by name and shape by shape, or the folder is refused: by headers and when loaded."""

import json
import pickle
import shutil

import pytest
import safetensors.torch
import tiny_families
import torch
import transformers

from vidalign.errors import ModelError
from vidalign.model import loading, rendering, weight_checks
from vidalign.model.folder import missing_package, model_folder, weight_files

OTHERWISE = {  # how else checkpoints of these families name their tensors: as they did before transformers 4.52, or since then
    "qwen2_5_vl": [("model.", "model.language_model."), ("visual.", "model.visual.")],
    "llava_onevision": [
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("", "model."),
    ],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return lambda name: tiny_families.checkpoint(name, root)


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders("qwen2_5_vl"), tmp_path / "model")


def rewritten(folder, change):
    """The folder after `change` of its tensors by name."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    return folder


def configured(folder, **values):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | values))
    return folder


def refusal(folder):
    """What is said of a folder: by its headers and when it is loaded, in the same words."""
    said = []
    for read in (lambda: loading.outline(str(folder)), lambda: loading.load(str(folder), torch.float32)):
        with pytest.raises(ModelError) as caught:
            read()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    return said[0]


@pytest.mark.parametrize("name", ["gemma4", "llava_next_video", "qwen3_vl_moe"])
def test_a_family_is_read_whole(folders, name):
    outline, model = loading.outline(str(folders(name))), loading.load(str(folders(name)), torch.float32)
    assert {n: p.shape for n, p in outline.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    seen, size = weight_checks.check_stored_numbers(folders(name), seconds=60)
    assert 0.9 * size < seen <= size
    processor = rendering.load_processor(str(folders(name)))
    weight_checks.check_vocabulary(name, outline, processor.tokenizer)


@pytest.mark.parametrize("name", sorted(OTHERWISE))
def test_names_of_older_and_newer_checkpoints_are_understood(folders, name, tmp_path):
    folder = shutil.copytree(folders(name), tmp_path / "other")
    now = loading.load(str(folder), torch.float32).state_dict()
    renamed = []

    def rename(tensors):
        for key in list(tensors):
            old, new = next((pair for pair in OTHERWISE[name] if key.startswith(pair[0])), ("", ""))
            tensors[new + key.removeprefix(old)] = tensors.pop(key)
            renamed.append(old != new)

    rewritten(folder, rename)
    assert sum(renamed) > len(renamed) / 2
    loading.outline(str(folder))
    loaded = loading.load(str(folder), torch.float32).state_dict()
    assert loaded.keys() == now.keys()
    assert all(torch.equal(loaded[key], value) for key, value in now.items())


def test_missing_and_misnamed_tensors(copied):
    rewritten(copied, lambda tensors: tensors.pop("model.norm.weight"))
    assert (
        "lacks 1 tensor (model.language_model.norm.weight) of a Qwen2_5_VLForConditionalGeneration, which would be random"
        in (refusal(copied))
    )
    rewritten(copied, lambda tensors: tensors.update({"transformer.norm.weight": torch.ones(64)}))
    assert "lacks 1 tensor (" in (said := refusal(copied))
    assert "holds 1 tensor (transformer.norm.weight) that a Qwen2_5_VL" in said


def test_names_of_another_architecture(copied):
    def rename(tensors):
        for key in list(tensors):
            tensors[f"backbone.{key}"] = tensors.pop(key)

    assert "…) of a Qwen2_5_VLForConditionalGeneration, which would be random and holds " in refusal(
        rewritten(copied, rename)
    )


def test_a_tensor_of_another_shape(copied):
    rewritten(copied, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    assert "of another shape, the first (65,) where config.json means (64,); config.json and weights are not of one" in (
        refusal(copied)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_not_finite(copied, value, dtype):
    def spoil(tensors):
        tensors["visual.blocks.0.norm1.weight"][5] = value

    rewritten(copied, spoil)
    loading.outline(str(copied))  # headers say nothing of numbers
    with pytest.raises(ModelError, match=r"NaN or infinite in 1 tensor \(visual\.blocks\.0\.norm1\.weight\)"):
        weight_checks.check_stored_numbers(copied, seconds=60)
    seen, size = weight_checks.check_stored_numbers(copied, seconds=0)
    assert seen == 0 < size
    with pytest.raises(ModelError, match=r"NaN or infinite in 1 tensor \(model\.visual\.blocks\.0\.norm1\.weight\)"):
        loading.load(str(copied), dtype)


# --- the output layer ---


def test_an_output_layer_of_its_own_needs_weights(copied):
    rewritten(copied, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lacks 1 tensor (lm_head.weight)" in (said := refusal(copied))
    assert "set tie_word_embeddings to true" in said


def tied(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"]["tie_word_embeddings"] = True
    return configured(folder, **raw | {"tie_word_embeddings": True})


def test_a_tied_output_layer_is_the_embeddings(copied):
    tied(rewritten(copied, lambda tensors: tensors.pop("lm_head.weight")))
    model = loading.load(str(copied), torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    outline = loading.outline(str(copied))
    assert outline.get_output_embeddings().weight is outline.get_input_embeddings().weight


def test_an_output_layer_that_is_stored_beside_the_embeddings_it_is_tied_to(copied):
    tied(copied)
    assert "the weights hold two that differ" in refusal(copied)

    def twice(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewritten(copied, twice)
    model = loading.load(str(copied), torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    total = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in loading.outline(str(copied)).parameters()) == total


# --- the vocabulary ---


def test_a_tokenizer_of_another_model(copied):
    tokenizer = rendering.load_processor(str(copied)).tokenizer
    outline = loading.outline(str(copied))
    weight_checks.check_vocabulary("m", outline, tokenizer)
    rows = outline.get_input_embeddings().weight.shape[0]
    added = [f"<new {index}>" for index in range(rows + 2 - len(tokenizer))]
    tokenizer.add_tokens(added)
    with pytest.raises(ModelError, match=rf"gives '<new \d+>' the id {rows + 1}, but .* ids below {rows}; 2 of its words"):
        weight_checks.check_vocabulary("m", outline, tokenizer)


# --- files ---


class Marker:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_never_loaded(copied, tmp_path):
    marker = tmp_path / "was loaded"
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (copied / name).write_bytes(pickle.dumps(Marker(str(marker))))
    loading.load(str(copied), torch.float32)
    (copied / "model.safetensors").unlink()
    assert "holds only pickled weights (model.pt), which can run code when loaded" in refusal(copied)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.safetensors": "adapter_model.safetensors"}, "holds a LoRA adapter and not a model"),
        (
            {"model.safetensors": "consolidated.safetensors"},
            "holds consolidated.safetensors, but neither model.safetensors nor",
        ),
        ({"model.safetensors": None}, r"holds no *.safetensors weights"),
    ],
)
def test_files_that_are_not_a_models(copied, change, says):
    for name, new in change.items():
        (copied / name).rename(copied / new) if new else (copied / name).unlink()
    assert says in refusal(copied)


def test_shards(copied):
    model = loading.load(str(copied), torch.float32)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="40KB")
    files = weight_files(copied)
    assert len(files) > 2
    loading.outline(str(copied))
    shutil.copy(files[0], copied / "model.safetensors")
    assert "holds both model.safetensors and model.safetensors.index.json" in refusal(copied)
    (copied / "model.safetensors").unlink()
    files[1].write_bytes(files[1].read_bytes()[:-10])
    assert "is cut: its header promises" in refusal(copied)
    files[1].unlink()
    assert f"lacks 1 of its {len(files)} weight files, first {files[1].name}" in refusal(copied)


def test_a_number_type_that_is_not_read(copied):
    rewritten(copied, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(2, dtype=torch.complex64)}))
    with pytest.raises(ModelError, match=r"holds lm_head\.weight as C64"):
        loading.outline(str(copied))


# --- architectures and packages ---


def test_an_architecture_that_training_does_not_load(tmp_path):
    transformers.Qwen2_5OmniConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is a qwen2_5_omni model, which transformers does not load .* cannot be trained"):
        loading.outline(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(ModelError, match=r"cannot be loaded as a video language model: .*never_heard_of"):
        loading.outline(str(tmp_path))


def test_a_text_config_that_lists_only_what_is_not_default(folders, tmp_path):
    folder = shutil.copytree(folders("qwen2_5_vl"), tmp_path / "short")
    raw = json.loads((folder / "config.json").read_text())
    for name in ("num_attention_heads", "rms_norm_eps", "attention_dropout"):
        raw["text_config"].pop(name, None)
    configured(folder, **raw)
    text = loading.read_config(str(folder)).get_text_config()
    assert text.num_attention_heads == transformers.Qwen2_5_VLConfig().get_text_config().num_attention_heads


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ImportError(
                "SmolVLMProcessor requires the num2words library. You can install it with pip: `pip install num2words`."
            ),
            "run `pip install num2words` on every node",
        ),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), "run `pip install timm` on every node"),
        (ImportError("something else"), "needs a package that is not installed: something else"),
    ],
)
def test_a_missing_package_is_a_sentence(error, says, folders, monkeypatch):
    assert says in missing_package("m", error)

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fails)
    with pytest.raises(ModelError, match="needs a package"):
        rendering.load_processor(str(folders("qwen2_5_vl")))
    monkeypatch.setattr(transformers.Qwen2_5_VLForConditionalGeneration, "from_pretrained", fails)
    with pytest.raises(ModelError, match="needs a package"):
        loading.load(str(folders("qwen2_5_vl")), torch.float32)


# --- where a model is ---


def test_a_path_with_a_tilde_and_a_relative_one(copied, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    assert model_folder("~/model") == copied
    monkeypatch.chdir(copied.parent)
    assert model_folder("model").samefile(copied)
    assert rendering.load_processor("~/model").tokenizer


def test_a_hub_name_is_fetched_without_pickles(copied, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(copied)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert model_folder("owner/model") == copied
    assert model_folder("owner/model", weights=False) == copied
    (name, whole), (_, small) = asked
    assert name == "owner/model"
    assert set(whole) - set(small) == {"*.safetensors"}
    assert not [pattern for pattern in whole if pattern.endswith((".bin", ".pt", "*"))]

    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"no folder owner/model, .* cannot be fetched \(no route\)"):
        model_folder("owner/model")
    with pytest.raises(ModelError, match="is a file"):
        model_folder(str(copied / "config.json"))
