"""The table of families: which parameters are trained and adapted, counted alike, and what a new row changes."""

import copy
import dataclasses

import pytest
import torch
import transformers
from test_shared_prefix import ARCHITECTURES, assert_equal, flat_logps, llava_onevision

from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError, ModelError
from vidalign.model import estimate, families, shared_prefix, training_memory, vision_features
from vidalign.model.adapters import adapter_targets, add_adapter
from vidalign.model.batch import collate, collate_packed
from vidalign.model.families import FAMILIES, GENERAL, Family, family_of, parts
from vidalign.model.loading import outline
from vidalign.model.policy import ResponseScorer, prepare_training, set_trainable
from vidalign.model.positions import correct_positions
from vidalign.model.tensor_cache import read_tensors
from vidalign.model.weights import unwrapped

# Of each model type: the start of a parameter's name, and the part that every such parameter belongs to. All are covered.
QWEN = {
    "lm_head.": "language_model",
    "model.language_model.": "language_model",
    "model.visual.": "vision_tower",
    "model.visual.merger.": "projector",
}
LLAVA = {
    "lm_head.": "language_model",
    "model.language_model.": "language_model",
    "model.vision_tower.": "vision_tower",
    "model.multi_modal_projector.": "projector",
}
EXPECTED = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": {**QWEN, "model.visual.deepstack_merger_list.": "projector"},
    "glm4v": QWEN,
    "llava_onevision": {**LLAVA, "model.image_newline": "projector"},
    "llava_next_video": {**LLAVA, "model.image_newline": "projector"},
    "internvl": LLAVA,
    "video_llava": {
        "lm_head.": "language_model",
        "model.language_model.": "language_model",
        "model.video_tower.": "vision_tower",
        "model.image_tower.": "vision_tower",
        "model.multi_modal_projector.": "projector",
    },
    "video_llama_3": {  # no row: the general rule
        "lm_head.": "language_model",
        "model.language_model.": "language_model",
        "model.vision_model.": "vision_tower",
        "model.projector.": "projector",
    },
    "instructblipvideo": {  # no row, and its language model has a wrapper around the decoder
        "language_model.": "language_model",
        "vision_model.": "vision_tower",
        "qformer.": "projector",
        "query_tokens": "projector",
        "language_projection.": "projector",
    },
}


def on_meta(name):
    """A model of this type with two layers in each half, on the meta device."""
    config = transformers.AutoConfig.for_model(name)
    text = config.get_text_config()
    text.num_hidden_layers = 2
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    for key in ("depth", "num_hidden_layers"):
        if hasattr(config.vision_config, key):
            setattr(config.vision_config, key, 2)
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("name", EXPECTED)
def test_parts_of_a_model(name):
    found, seen = parts(on_meta(name)), set()
    for parameter, part in found.items():
        start = max((start for start in EXPECTED[name] if parameter.startswith(start)), key=len)
        assert part == EXPECTED[name][start], parameter
        seen.add(start)
    assert seen >= EXPECTED[name].keys() - {"lm_head."}  # which may be tied to the input embeddings


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize(("vision_tower", "projector"), [(False, False), (False, True), (True, True)])
def test_what_is_trained_is_the_language_model_and_what_was_asked_for(name, vision_tower, projector):
    model = on_meta(name)
    found = parts(model)
    set_trainable(model, vision_tower=vision_tower, projector=projector)
    wanted = {"language_model"} | ({"vision_tower"} if vision_tower else set()) | ({"projector"} if projector else set())
    assert {
        part: {p.requires_grad for n, p in model.named_parameters() if found[n] == part} for part in set(found.values())
    } == {part: {part in wanted} for part in ("language_model", "vision_tower", "projector")}


@pytest.mark.parametrize("name", EXPECTED)
def test_adapters_sit_on_the_linear_layers_of_the_language_model_alone(name):
    model = on_meta(name)
    found = parts(model)
    targets = adapter_targets(model)
    assert targets
    assert {found[f"{target}.weight"] for target in targets} == {"language_model"}
    assert not [target for target in targets if target.endswith("lm_head")]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_what_is_counted_on_the_meta_device_is_what_training_changes(name, tmp_path):
    model, _ = ARCHITECTURES[name]()
    model.save_pretrained(tmp_path)
    for options in ({}, {"train_projector": True}, {"train_projector": True, "train_vision_tower": True}):
        train = TrainConfig(**options)
        set_trainable(model, vision_tower=train.train_vision_tower, projector=train.train_projector)
        count = training_memory.count_parameters(outline(str(tmp_path)), train)
        assert count.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad), options
        assert count.total == sum(p.numel() for p in model.parameters())
    train = TrainConfig(lora={"rank": 4, "alpha": 8})
    count = training_memory.count_parameters(outline(str(tmp_path)), train)
    adapted = add_adapter(model, train)
    assert count.trainable == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert count.total == sum(p.numel() for p in adapted.parameters())


def test_a_model_without_a_vision_tower_cannot_be_frozen_in_part():
    config = transformers.Qwen2Config(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    model = transformers.Qwen2ForCausalLM(config)
    with pytest.raises(ModelError, match="Qwen2ForCausalLM has no vision tower that can be told apart"):
        set_trainable(model, vision_tower=False, projector=True)
    with pytest.raises(ModelError, match=r"without train\.lora"):
        add_adapter(model, TrainConfig(lora={"rank": 4, "alpha": 8}))
    model.requires_grad_(False)
    set_trainable(model, vision_tower=True, projector=True)  # the way out that the message names
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- a new family ---


class ToyConfig(transformers.LlavaOnevisionConfig):
    model_type = "toy_video"


class Toy(transformers.LlavaOnevisionForConditionalGeneration):
    """An architecture that the table does not know."""

    config_class = ToyConfig


def toy():
    torch.manual_seed(0)
    known, prompts = llava_onevision()
    made = Toy(ToyConfig(**{key: value for key, value in known.config.to_dict().items() if key != "model_type"}))
    made.load_state_dict(known.state_dict())
    return made.eval(), prompts


ROW = Family(packs=True, takes_features=families.one_batch, projectors=("post_layernorm",))


def test_a_family_without_a_row_works_by_the_general_rule():
    model, _ = toy()
    assert family_of(model) is GENERAL
    assert set(parts(model).values()) == {"language_model", "vision_tower", "projector"}
    with pytest.warns(UserWarning, match="Toy is not known to compute a pair in one sequence"):
        assert not shared_prefix.wanted(model, True)
    with pytest.raises(ConfigError, match="this model is toy_video"):
        vision_features.check(model)


def test_a_family_is_added_by_a_row(monkeypatch, tmp_path):
    model, prompts = toy()
    before = parts(model)
    monkeypatch.setitem(FAMILIES, "toy_video", ROW)

    # freezing
    moved = {name for name, part in parts(model).items() if part != before[name]}
    assert moved == {f"model.vision_tower.post_layernorm.{each}" for each in ("weight", "bias")}
    set_trainable(model, vision_tower=False, projector=True)
    assert {name for name, p in model.named_parameters() if name in moved and p.requires_grad} == moved

    # packing
    assert shared_prefix.wanted(model, True)
    number = shared_prefix.numbering(model)
    shown = [dataclasses.replace(prompt, positions=number(prompt)) for prompt in prompts]
    responses = [([20, 21, 22, 1], [23, 1]), ([24, 1], [25, 26, 27, 28, 1])]
    rows = [(prompt, made[side]) for side in (0, 1) for prompt, made in zip(prompts, responses, strict=True)]
    twin = copy.deepcopy(model)
    packed = ResponseScorer(twin, packed=True).eval()
    batch = collate_packed(list(zip(shown, responses, strict=True)))
    assert_equal((ResponseScorer(model).eval(), collate(rows, pad_id=0)), (packed, batch))

    # vision features
    vision_features.check(model)
    files = [tmp_path / f"{index}.safetensors" for index in range(2)]
    made = vision_features.compute(twin, zip(prompts, files, strict=True), torch.device("cpu"), torch.float32)
    assert made == 2
    kept = [dataclasses.replace(prompt, vision=read_tensors(file)) for prompt, file in zip(shown, files, strict=True)]
    with_features = collate_packed(list(zip(kept, responses, strict=True)))
    assert "pixel_values_videos" not in with_features.inputs
    torch.testing.assert_close(flat_logps(packed, with_features), flat_logps(packed, batch), atol=1e-5, rtol=0)


def test_positions_follow_the_row(monkeypatch):
    monkeypatch.setitem(FAMILIES, "qwen2_5_vl", dataclasses.replace(FAMILIES["qwen2_5_vl"], mrope=False))
    model, _ = ARCHITECTURES["qwen2_5_vl"]()
    correct_positions(model)
    assert model.model.get_rope_index.__module__.startswith("transformers.")
    monkeypatch.undo()
    correct_positions(model)
    assert model.model.get_rope_index.__module__ == "vidalign.model.positions"


def test_a_processor_is_counted_by_its_row(monkeypatch, model_path):
    assert estimate.read_vision_cost(model_path) is not None
    monkeypatch.setitem(FAMILIES, "qwen2_vl", dataclasses.replace(FAMILIES["qwen2_vl"], counted_processors=()))
    assert estimate.read_vision_cost(model_path) is None


def test_an_output_layer_inside_the_decoder_gets_no_adapter():
    class Wrapped(Toy):
        def get_decoder(self):
            return torch.nn.ModuleList([self.model.language_model, self.lm_head])

    targets = adapter_targets(Wrapped(toy()[0].config))
    assert targets
    assert "lm_head" not in targets


def one_step(make, **train):
    """Forwards and backwards of the vision tower in a step on two videos, and all gradients."""
    torch.manual_seed(0)
    model, prompts = make()
    model = prepare_training(model, TrainConfig(**train)).train()
    if "lora" in train:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.01)
    counts = [0, 0]
    (tower,) = families.vision_towers(unwrapped(model))
    layer = next(module for module in tower.modules() if isinstance(module, torch.nn.LayerNorm | torch.nn.Linear))

    def count(place):
        counts[place] += 1

    layer.register_forward_hook(lambda *_: count(0))
    layer.register_full_backward_hook(lambda *_: count(1))
    scorer = ResponseScorer(model)
    for prompt in prompts:
        logps, *_ = scorer(*(lambda batch: (batch.inputs, batch.labels))(collate([(prompt, [20, 21, 1])], pad_id=0)))
        logps.sum().backward()
    return counts, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("lora", [{}, {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}])
def test_a_frozen_tower_runs_once_a_forward_and_never_backwards(name, lora):
    make = ARCHITECTURES[name]
    for checkpointing in (False, True):
        counts, gradients = one_step(make, gradient_checkpointing=checkpointing, **lora)
        assert counts == [2, 0]
        assert gradients
        if not checkpointing:
            expected = gradients
    assert gradients.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, msg=parameter)


def test_a_tower_that_is_trained_is_checkpointed_too():
    counts, gradients = one_step(
        ARCHITECTURES["qwen2_5_vl"], gradient_checkpointing=True, train_vision_tower=True, train_projector=True
    )
    assert counts == [4, 2]
    assert [name for name in gradients if "visual.blocks" in name]


def test_a_projector_inside_a_frozen_tower_is_trained():
    _, gradients = one_step(ARCHITECTURES["qwen2_5_vl"], gradient_checkpointing=True, train_projector=True)
    assert {name.split(".")[2] for name in gradients if "visual" in name} == {"merger"}
