"""Kept features stand in for pixels, and are found again exactly where the same tower would make the same of the same clip."""

import copy
import dataclasses
import pathlib

import pytest
import torch
from test_augment import make_clip
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)
from test_shared_prefix import ARCHITECTURES, flat_logps

from vidalign.config.run import ModelConfig
from vidalign.errors import ConfigError
from vidalign.model import rendering, shared_prefix, vision_features
from vidalign.model.batch import collate_packed
from vidalign.model.families import FAMILIES
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.positions import correct_positions
from vidalign.model.rendering import load_processor
from vidalign.model.tensor_cache import TensorCache, read_tensors

TAKES_FEATURES = [name for name, family in FAMILIES.items() if family.takes_features is not None and name in ARCHITECTURES]


@pytest.mark.parametrize("name", TAKES_FEATURES)
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
            if file is not None:
                shown = dataclasses.replace(shown, vision=read_tensors(files[index]))
            rows.append((shown, ([20, 1], [21, 1])))
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


def processor_of(name, model_path):
    """This architecture's processor for the models of `ARCHITECTURES`, around the built-in tokenizer and chat template."""
    import transformers

    made = load_processor(model_path)
    around = {"tokenizer": made.tokenizer, "chat_template": made.chat_template, "image_processor": made.image_processor}
    if name == "llava_onevision":
        videos = transformers.LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16})
        return transformers.LlavaOnevisionProcessor(
            **around, video_processor=videos, num_image_tokens=16, video_token=made.video_token
        )
    videos = transformers.Qwen2VLVideoProcessor(patch_size=4, size={"shortest_edge": 256, "longest_edge": 1024})
    kind = {"qwen2_vl": transformers.Qwen2VLProcessor, "qwen2_5_vl": transformers.Qwen2_5_VLProcessor}[name]
    return kind(**around, video_processor=videos)


@pytest.mark.parametrize("name", TAKES_FEATURES)
@pytest.mark.parametrize("num_frames", [4, 9])
def test_a_prompt_with_features_has_the_tokens_of_one_with_pixels(name, num_frames, model_path, tmp_path, monkeypatch):
    processor = processor_of(name, model_path)
    clip = make_clip(num_frames, 56, 56, seed=0)
    first, second = "What moves?", "Where does the red circle go, and how often? Say it in one sentence."
    shown = rendering.render_prompt(processor, first, clip)
    expected = rendering.render_prompt(processor, second, clip)
    assert shown.length != expected.length  # so the tokens cannot be those of the prompt that the features were made with
    file = tmp_path / "features.safetensors"
    model, _ = ARCHITECTURES[name]()
    correct_positions(model)
    assert vision_features.compute(model, [(shown, file)], torch.device("cpu"), torch.float32) == 1
    monkeypatch.setattr(type(processor.video_processor), "__call__", None)  # no pixel is made
    prompt = vision_features.render(processor, second, file)
    assert prompt.tokens.keys() == expected.tokens.keys()
    assert prompt.vision.keys() ^ expected.vision.keys() == {vision_features.NAME, vision_features.PIXELS}
    for kind in ("tokens", "vision"):
        for part, value in getattr(prompt, kind).items():
            if part != vision_features.NAME:
                torch.testing.assert_close(value, getattr(expected, kind)[part], rtol=0, atol=0)
    number = shared_prefix.numbering(model)
    assert torch.equal(number(prompt), number(expected))


def test_training_on_kept_features_opens_no_clip(prepared, source, groups, tmp_path):  # noqa: F811
    model = load_policy(prepared[0])
    files = {clip: tmp_path / f"{pathlib.Path(clip).name}.safetensors" for clip in source.frames.values()}
    rendered = ((prompt, files[clip]) for prompt, clip in source.clips(groups))
    assert vision_features.compute(model, rendered, torch.device("cpu"), torch.float32) == 2
    gone = {video: f"gone/{pathlib.Path(clip).name}" for video, clip in source.frames.items()}
    features = {gone[video]: files[clip] for video, clip in source.frames.items()}
    without = dataclasses.replace(source, frames=gone, features=features, _kept={})
    scorer = ResponseScorer(model).eval()
    made = [flat_logps(scorer, each.batch(groups)) for each in (source, without)]
    torch.testing.assert_close(made[1], made[0], atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("name", TAKES_FEATURES)
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
