"""Kept features stand in for pixels, and are found again exactly where the same tower would make the same of the same clip."""

import copy
import dataclasses

import pytest
import torch
from test_shared_prefix import ARCHITECTURES, flat_logps

from vidalign import shared_prefix, vision_features
from vidalign.config import ModelConfig
from vidalign.errors import ConfigError
from vidalign.policy import ResponseScorer, load_policy
from vidalign.positions import correct_positions
from vidalign.rendering import collate_packed, load_processor
from vidalign.tensor_cache import TensorCache


@pytest.mark.parametrize("name", vision_features.MODEL_TYPES)
def test_kept_vision_features_stand_in_for_pixels(name, tmp_path):
    torch.manual_seed(0)
    model, prompts = ARCHITECTURES[name]()
    correct_positions(model)
    model.eval()
    number = shared_prefix.numbering(model)
    files = [tmp_path / f"{index}.safetensors" for index in range(2)]
    device = torch.device("cpu")
    assert vision_features.compute(model, zip(prompts, files, strict=True), device, torch.float32) == 2
    assert vision_features.compute(model, zip(prompts, files, strict=True), device, torch.float32) == 0  # kept
    made = []
    for file in (None, *files[:1]):
        rows = []
        for index, prompt in enumerate(prompts):
            shown = dataclasses.replace(prompt, positions=number(prompt))
            rows.append(
                (shown if file is None else vision_features.in_place_of_pixels(shown, files[index]), ([20, 1], [21, 1]))
            )
        batch = collate_packed(rows)
        assert ("pixel_values_videos" in batch.inputs) == (file is None)
        made.append(flat_logps(ResponseScorer(model, packed=True).eval(), batch))
    torch.testing.assert_close(made[1], made[0], atol=1e-5, rtol=0)
    with torch.no_grad():
        changed = dataclasses.replace(prompts[0], vision={**prompts[0].vision})
        changed.vision["pixel_values_videos"] = torch.randn_like(changed.vision["pixel_values_videos"])
        changed = dataclasses.replace(changed, positions=number(changed))
        rows[0] = (changed, rows[0][1])
        rows[1] = (dataclasses.replace(prompts[1], positions=number(prompts[1])), rows[1][1])
        other = flat_logps(ResponseScorer(model, packed=True).eval(), collate_packed(rows))
    assert not torch.allclose(other, made[0], atol=1e-4)  # the video matters


def test_features_of_an_architecture_with_more_than_one_tensor_are_refused():
    model, _ = ARCHITECTURES["qwen3_vl"]()
    with pytest.raises(ConfigError, match="this model is qwen3_vl"):
        vision_features.check(model)


def test_a_policy_whose_language_model_was_trained_has_the_tower_of_its_parent(model_path, tmp_path):
    """As between two rounds: trained in the configured dtype, exported, loaded again."""
    config = ModelConfig(path=model_path, dtype="bfloat16")
    model, processor = load_policy(config), load_processor(model_path)
    parent = vision_features.tower_hash(model, processor)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name:
                parameter += 1
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert vision_features.tower_hash(load_policy(config, str(tmp_path)), load_processor(str(tmp_path))) == parent
    in_float32 = load_policy(ModelConfig(path=model_path, dtype="float32"))
    assert vision_features.tower_hash(in_float32, processor) != parent


@pytest.mark.parametrize("name", vision_features.MODEL_TYPES)
def test_every_weight_of_the_tower_counts_and_none_of_the_language_model(name, model_path):
    model, _ = ARCHITECTURES[name]()
    processor = load_processor(model_path)
    start = vision_features.tower_hash(model, processor)
    counted = 0
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter.view(-1)[-1] += 1
            same = vision_features.tower_hash(model, processor) == start
            assert same == part.startswith(("model.language_model.", "lm_head.")), part
            counted += not same
            parameter.copy_(kept)
    assert counted
    assert vision_features.tower_hash(model, processor) == start


def test_settings_of_tower_and_video_processor_count(model_path):
    model, _ = ARCHITECTURES["llava_onevision"]()
    processor = load_processor(model_path)
    start = vision_features.tower_hash(model, processor)
    model.config.text_config.rms_norm_eps = 1e-3
    assert vision_features.tower_hash(model, processor) == start
    model.config.vision_feature_layer = -2
    other_layer = vision_features.tower_hash(model, processor)
    changed = copy.deepcopy(processor)
    changed.video_processor.image_mean = (0.5, 0.5, 0.5)
    assert len({start, other_layer, vision_features.tower_hash(model, changed)}) == 3


def test_features_are_kept_by_tower_and_clip(tmp_path):
    cache = TensorCache(tmp_path)
    paths = {vision_features.path(cache, tower, clip) for tower in "ab" for clip in ("/one/x", "/two/x", "/one/y")}
    assert len(paths) == 4  # the cache of clips may be anywhere
