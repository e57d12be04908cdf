"""Every family of the table trains: batches say what sequences say alone, what is frozen stays, what is exported is read back."""

import copy
import dataclasses
import functools
import pathlib

import pytest
import torch
from test_shared_prefix import flat_logps
from tiny_families import QUESTIONS, WRITERS, clips

from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError
from vidalign.model import shared_prefix, vision_features
from vidalign.model.batch import IGNORED, Prompt, collate, collate_packed
from vidalign.model.checkpoint import export_policy
from vidalign.model.families import family_of, parts, vision_towers
from vidalign.model.folder import stored_shapes
from vidalign.model.policy import ResponseScorer, load_policy, prepare_training
from vidalign.model.rendering import load_processor, render_prompt, response_ids
from vidalign.model.tensor_cache import read_tensors
from vidalign.model.weights import unwrapped
from vidalign.types import FrameSpec

# Those that differ most run with the unit tests: positions on one axis and on three, videos as lists and along another axis.
QUICK = ("qwen3_vl_moe", "llava_next_video", "internvl", "glm4v", "minicpmv4_6")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.heavy) for name in WRITERS]
TRAINING = {
    "full": {},
    "with projector": {"train_projector": True},
    "all of it": {"train_projector": True, "train_vision_tower": True},
    "LoRA": {"lora": {"rank": 2, "alpha": 4}},
}


@functools.cache
def processor_of(folder):
    return load_processor(folder)


@functools.cache
def loaded(folder):
    """(model, three prompts on videos of unequal length and shape, two responses); not to be changed."""
    processor = processor_of(folder)
    prompts = [render_prompt(processor, text, clip) for text, clip in zip(QUESTIONS, clips(), strict=True)]
    responses = [response_ids(processor, text) for text in ("A red circle moves left.", "No.")]
    return load_policy(ModelConfig(path=folder, dtype="float32")).eval(), prompts, responses


def logps_of(scorer, batch):
    with torch.no_grad():
        return flat_logps(scorer, batch)


@functools.cache
def alone(folder):
    """Log-probs of each response in a forward pass of its own: first all first ones, then all second ones."""
    model, prompts, responses = loaded(folder)
    scorer = ResponseScorer(model).eval()
    return torch.cat([logps_of(scorer, collate([(prompt, made)], pad_id=0)) for made in responses for prompt in prompts])


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_says_what_each_sequence_says_alone(name, checkpoints, cell):
    passed = cell(name, "train, padded")
    folder = checkpoints(name)
    model, prompts, responses = loaded(folder)
    batch = collate([(prompt, made) for made in responses for prompt in prompts], pad_id=0)
    torch.testing.assert_close(logps_of(ResponseScorer(model).eval(), batch), alone(folder), atol=1e-5, rtol=0)
    passed()


@pytest.mark.parametrize("name", [name for name in WRITERS if name in (*QUICK, "gemma4")])
def test_log_probs_are_those_of_the_models_own_logits(name, checkpoints):
    model, prompts, responses = loaded(checkpoints(name))
    batch = collate([(prompts[0], responses[0])], pad_id=0)
    with torch.no_grad():
        logits = model(**batch.inputs, use_cache=False).logits[batch.labels != IGNORED]
    if family_of(model).suppresses:
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(responses[0])[:, None])[:, 0]
    torch.testing.assert_close(logps_of(ResponseScorer(model).eval(), batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_row_says_what_each_sequence_says_alone(name, checkpoints, cell):
    passed = cell(name, "train, packed")
    folder = checkpoints(name)
    model, prompts, responses = loaded(folder)
    if why := shared_prefix.obstacle(model):
        passed(f"no: {why}")
        return
    number = shared_prefix.numbering(model)
    rows = [(dataclasses.replace(prompt, positions=number(prompt)), responses) for prompt in prompts]
    packed = ResponseScorer(copy.deepcopy(model), packed=True).eval()
    torch.testing.assert_close(logps_of(packed, collate_packed(rows)), alone(folder), atol=1e-5, rtol=0)
    passed()


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_to_be_trained_changes(name, checkpoints, cell):
    passed = cell(name, "full, LoRA, frozen parts")
    model, prompts, responses = loaded(checkpoints(name))
    part_of = parts(model)
    wanted = {
        "full": {"language_model"},
        "with projector": {"language_model", "projector"},
        "all of it": {"language_model", "projector", "vision_tower"},
        "LoRA": {"adapter"},
    }
    for how, options in TRAINING.items():
        changed = {
            "adapter" if ".lora_" in tensor else part_of.get(tensor, tensor)
            for tensor in changed_by_a_step(copy.deepcopy(model), prompts, responses, options)
        }
        assert changed == wanted[how], how
    passed()


def changed_by_a_step(model, prompts, responses, options):
    """Names, in the model without adapters, of the parameters and buffers that a step of training changes."""
    torch.manual_seed(0)
    model = prepare_training(model, TrainConfig(**options, gradient_checkpointing=False)).train()
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in held.items()}
    scorer = ResponseScorer(model)
    logps = flat_logps(scorer, collate([(prompt, responses[0]) for prompt in prompts[:1]], pad_id=0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    (-logps.sum()).backward()
    optimizer.step()
    changed = [name for name, tensor in held.items() if not torch.equal(tensor, before[name])]
    return [name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in changed]


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_model_is_read_back_and_named_as_it_was(name, checkpoints, cell, tmp_path):
    """The names are those of the checkpoint that training began with, so whatever read that one reads this one."""
    passed = cell(name, "export, read by transformers")
    folder = checkpoints(name)
    model, prompts, responses = loaded(folder)
    trained = prepare_training(copy.deepcopy(model), TrainConfig(**TRAINING["LoRA"], gradient_checkpointing=False))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    export_policy(
        trained, tmp_path / "model", base=folder, parent="", frame_spec=FrameSpec(), prompt="{question}", zero_stage=0
    )
    again = load_policy(ModelConfig(path=str(tmp_path / "model"), dtype="float32")).eval()
    batch = collate([(prompts[0], responses[0])], pad_id=0)
    expected = logps_of(ResponseScorer(trained).eval(), batch)
    torch.testing.assert_close(logps_of(ResponseScorer(again).eval(), batch), expected, atol=1e-5, rtol=0)
    assert float((expected - alone(folder)[: len(expected)]).abs().max()) > 1e-3  # it was trained at all
    assert stored_shapes(tmp_path / "model") == stored_shapes(pathlib.Path(folder))
    prompt = render_prompt(load_processor(str(tmp_path / "model")), QUESTIONS[0], clips()[0])
    assert torch.equal(prompt.tokens["input_ids"], prompts[0].tokens["input_ids"])
    passed()


@pytest.mark.parametrize("name", NAMES)
def test_kept_vision_features_stand_in_for_pixels(name, checkpoints, cell, tmp_path):
    passed = cell(name, "cache_vision_features")
    folder = checkpoints(name)
    model, _, responses = loaded(folder)
    if family_of(model).takes_features is None:
        with pytest.raises(ConfigError, match="works only for"):
            vision_features.check(model)
        passed("no: refused in a sentence; kept features were never tried for this family")
        return
    processor, clip = processor_of(folder), clips()[0]
    prompt = render_prompt(processor, QUESTIONS[0], clip)
    file = tmp_path / "features.safetensors"
    vision_features.compute(model, [(prompt, file)], torch.device("cpu"), torch.float32)
    kept = vision_features.render(processor, QUESTIONS[0], file)
    assert "pixel_values_videos" not in kept.vision
    assert read_tensors(file).keys() == kept.vision.keys()
    scorer = ResponseScorer(model).eval()
    found = [logps_of(scorer, collate([(each, responses[0])], pad_id=0)) for each in (prompt, kept)]
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    passed()


def test_a_list_of_videos_is_moved_like_one():
    prompts = [loaded_prompt(frames) for frames in (2, 3)]
    batch = collate([(prompt, [5, 6]) for prompt in prompts], pad_id=0).to(torch.device("cpu"), torch.bfloat16)
    assert [video.dtype for video in batch.inputs["pixel_values_videos"]] == [torch.bfloat16] * 2
    assert (batch.labels != IGNORED).sum() == 4


def loaded_prompt(num_frames):
    return Prompt(tokens={"input_ids": torch.arange(4)}, vision={"pixel_values_videos": torch.zeros(1, num_frames, 3, 4, 4)})


def test_the_model_inside_an_adapter_takes_a_list_of_videos_too(checkpoints):
    model, prompts, responses = loaded(checkpoints("llava_next_video"))
    adapted = prepare_training(copy.deepcopy(model), TrainConfig(**TRAINING["LoRA"], gradient_checkpointing=False)).eval()
    assert unwrapped(adapted) is not adapted
    batch = collate([(prompt, made) for made in responses for prompt in prompts], pad_id=0)
    torch.testing.assert_close(
        logps_of(ResponseScorer(adapted), batch), alone(checkpoints("llava_next_video")), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
def test_the_tower_is_called_once_for_videos_of_equal_and_unequal_length(name, checkpoints):
    """Under ZeRO stage 3 all ranks call it equally often, whatever videos they have."""
    model, prompts, responses = loaded(checkpoints(name))
    (tower,) = vision_towers(model)
    calls = []
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    for shown in (prompts, prompts[:1] * 2):
        batch = collate([(prompt, responses[0]) for prompt in shown], pad_id=0)
        assert isinstance(batch.inputs["pixel_values_videos"], list) == (shown is prompts)
        logps_of(ResponseScorer(model).eval(), batch)
    hook.remove()
    assert calls == [1, 1]


@pytest.mark.parametrize("name", ["qwen2_5_vl", *QUICK])
def test_transformers_own_generation_sees_the_video(name, checkpoints):
    """It asks the signature of `get_video_features` what to pass on; the first token is that of a plain forward."""
    model, prompts, _ = loaded(checkpoints(name))
    batch = collate([(prompts[0], [])], pad_id=0)
    with torch.no_grad():
        expected = model(**batch.inputs, use_cache=False).logits[0, -1]
        made = model.generate(
            **batch.inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    torch.testing.assert_close(made.logits[0][0], expected, atol=1e-4, rtol=0)
