"""A vision tower's windows in a few attention calls: the numbers and gradients of one call a window."""

import copy
import itertools
import types

import pytest
import torch
from test_shared_prefix import qwen
from tiny_families import WRITERS, clips

from vidalign.config.run import ModelConfig
from vidalign.errors import ConfigError
from vidalign.model import families, vision_attention
from vidalign.model.batch import collate
from vidalign.model.families import FAMILIES
from vidalign.model.loading import load
from vidalign.model.policy import load_policy
from vidalign.model.rendering import load_processor, render_prompt
from vidalign.model.weights import plan_files, tensors_of

WINDOWED = sorted(name for name, family in FAMILIES.items() if family.windows)
TESTED = sorted({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"} | (set(WINDOWED) & set(WRITERS)))


@pytest.fixture
def calls(monkeypatch):
    """The batch sizes and lengths of the attention calls that were made."""
    made, inner = [], torch.nn.functional.scaled_dot_product_attention

    def counted(query, *given, **options):
        made.append((query.shape[0], query.shape[2]))
        return inner(query, *given, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return made


def features_of(model, vision):
    """The tower's output [T, D] and the gradients of its parameters."""
    model.zero_grad()
    made = model.base_model.get_video_features(**vision, return_dict=True).pooler_output
    joined = torch.cat([video.flatten(0, -2) for video in made])
    joined.square().sum().backward()
    (tower,) = families.vision_towers(model)
    return joined.detach(), {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}


def assert_same(stock, ours):
    torch.testing.assert_close(ours[0], stock[0], atol=1e-6, rtol=1e-6)
    assert ours[1].keys() == stock[1].keys()
    for name, gradient in stock[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=1e-5 * float(gradient.abs().max() + 1e-3), rtol=1e-5)


def qwen2_5_vl(grids, **vision):
    """Windows of 2 x 2 merged patches in its first layer, frames in its second."""
    torch.manual_seed(0)
    model, _ = qwen(
        "Qwen2_5_VL",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            **vision,
        },
    )
    sizes = [frames * rows * columns for frames, rows, columns in grids]
    return model, {"pixel_values_videos": torch.randn(sum(sizes), 96), "video_grid_thw": torch.tensor(grids)}


@pytest.mark.parametrize(
    ("grids", "stock_calls", "expected"),
    [
        ([(3, 8, 8)], 12 + 3, [(12, 16), (3, 64)]),  # equal windows
        # 2 x 3 windows a frame, of which those of the last row and column are smaller; frames of two sizes
        (
            [(2, 8, 10), (1, 6, 8)],
            (2 * 6 + 4) + 3,
            [(8 + 2, 16), (4 + 2, 8), (2, 80), (1, 48)],
        ),
    ],
)
def test_windows_of_one_size_are_one_call(calls, grids, stock_calls, expected):
    model, vision = qwen2_5_vl(grids)
    stock = features_of(copy.deepcopy(model), vision)
    assert len(calls) == stock_calls
    calls.clear()
    vision_attention.attend_by_windows(model, "auto")
    assert_same(stock, features_of(model, vision))
    assert calls == expected


def test_a_video_of_16_frames_in_the_real_towers_layers_and_windows(calls):
    """448 x 448 pixels in patches of 14, and windows of 4 x 4 merged ones: 3,616 calls without this."""
    full = [7, 15, 23, 31]
    model, vision = qwen2_5_vl(
        [(8, 32, 32)], depth=32, hidden_size=8, num_heads=1, window_size=32, fullatt_block_indexes=full
    )
    vision_attention.attend_by_windows(model, "auto")
    with torch.no_grad():
        model.base_model.get_video_features(**vision)
    assert calls == [(8, 1024) if layer in full else (128, 64) for layer in range(32)]
    assert sum(count for count, _ in calls) == 3616


@pytest.mark.parametrize("name", TESTED)
def test_every_family_with_windows_computes_what_transformers_does(name, calls, checkpoints):
    folder = checkpoints(name)
    processor = load_processor(folder)
    stock = load(folder, torch.float32)
    ours = load_policy(ModelConfig(path=folder, dtype="float32"))
    prompts = [render_prompt(processor, "What moves?", clip) for clip in clips()]
    joined = collate([(prompt, [1]) for prompt in prompts], pad_id=0).inputs
    vision = {name: joined[name] for name in prompts[0].vision if name != "second_per_grid_ts"}
    expected = features_of(stock, vision)
    separate = len(calls)
    calls.clear()
    assert_same(expected, features_of(ours, vision))
    assert 0 < len(calls) < separate


def test_a_family_whose_tower_has_no_windows_is_left_alone(checkpoints):
    model = load(checkpoints("llava_onevision"), torch.float32)
    before = copy.deepcopy(model.config)
    vision_attention.attend_by_windows(model, "auto")
    assert model.config.vision_config._attn_implementation == before.vision_config._attn_implementation == "sdpa"


def test_what_is_written_and_hashed_of_a_model_does_not_change():
    model, _ = qwen2_5_vl([(1, 4, 4)])
    before = model.config.to_dict()
    vision_attention.attend_by_windows(model, "auto")
    assert model.config.to_dict() == before
    assert plan_files(model, tensors_of(model), 10**9).groups  # builds a model of this config


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, ""),
        ({"here": False, "installed": False}, ""),  # the cluster's machines may have it
        ({"installed": False}, "needs the package flash-attn, which is not installed; install it on every node, or set"),
        ({"dtype": "float32"}, "computes in float16 or bfloat16, got model.dtype=float32; set one of them, or set"),
        ({"use_gpu": False}, "needs a GPU, but training computes on CPUs; set it to auto"),
        ({"model_type": "internvl"}, "is for vision towers that attend in windows, which internvl does not; set"),
    ],
)
def test_flash_attention_that_cannot_be_is_refused(changed, says, monkeypatch):
    given = {"dtype": "bfloat16", "use_gpu": True, "installed": True, "model_type": "qwen2_5_vl", **changed}
    installed, model_type = given.pop("installed"), given.pop("model_type")
    model = types.SimpleNamespace(config=types.SimpleNamespace(model_type=model_type))
    monkeypatch.setattr(vision_attention, "is_installed", lambda: installed)
    vision_attention.check("auto", model, **given)
    vision_attention.check("sdpa", model, **given)
    if not says:
        vision_attention.check("flash_attn", model, **given)
        return
    with pytest.raises(ConfigError, match=f"model.vision_attention=flash_attn {says}") as caught:
        vision_attention.check("flash_attn", model, **given)
    assert "\n" not in str(caught.value)


def test_flash_attention_is_refused_on_a_cpu():
    model, vision = qwen2_5_vl([(1, 4, 4)])
    vision_attention.attend_by_windows(model, "flash_attn")
    with pytest.raises(ConfigError, match="flash_attn needs a GPU"):
        features_of(model, vision)


@pytest.mark.parametrize("kind", ["auto", "flash_attn"])
def test_a_kernel_for_many_lengths_gets_all_windows_at_once(kind, monkeypatch):
    """The kernel itself needs a GPU: in its place stands one that computes by the arguments' documented meaning."""
    seen = []

    def varlen(query, key, value, starts, max_length, scale):
        seen.append((tuple(query.shape), starts.tolist(), max_length))
        assert starts.dtype == torch.int32
        assert query.is_contiguous()
        pieces = []
        for start, end in itertools.pairwise(starts.tolist()):
            q, k, v = (each[start:end].transpose(0, 1) for each in (query, key, value))
            pieces.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1))
        return torch.cat(pieces)

    model, vision = qwen2_5_vl([(2, 8, 10)])
    stock = features_of(copy.deepcopy(model), vision)
    vision_attention.attend_by_windows(model, kind)
    monkeypatch.setattr(vision_attention, "kernel_for", lambda *_: varlen)
    assert_same(stock, features_of(model, vision))
    assert [(shape, max_length) for shape, _, max_length in seen] == [((160, 2, 16), 16), ((160, 2, 16), 80)]
    assert seen[1][1] == [0, 80, 160]
