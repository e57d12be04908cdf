"""Packed pairs give what separate sequences give: log-probs, gradients; and compute each prompt and video once, unpadded."""

import copy
import dataclasses
import warnings

import pytest
import torch
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)
from tiny_families import WRITERS

from vidalign.config.training import TrainConfig
from vidalign.learning.batches import pack, split_further
from vidalign.model import shared_prefix
from vidalign.model.adapters import add_adapter
from vidalign.model.batch import IGNORED, Prompt, collate, collate_packed, packed_positions
from vidalign.model.families import FAMILIES
from vidalign.model.policy import ResponseScorer, load_policy, set_trainable
from vidalign.model.positions import correct_positions


def scorer(model_config, *, packed, lora=False, checkpointing=False):
    model = load_policy(model_config)
    if lora:
        torch.manual_seed(0)
        model = add_adapter(model, TrainConfig(lora={"rank": 4, "alpha": 8}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    else:
        set_trainable(model, vision_tower=True, projector=True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return ResponseScorer(model, packed=packed).train()


def numbered(source, model_config):  # noqa: F811
    return dataclasses.replace(source, number=shared_prefix.numbering(load_policy(model_config)), _kept={})


def flat_logps(model, batch):
    logps, *_ = model(batch.inputs, batch.labels, None, batch.sources)
    return logps[batch.labels != IGNORED]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(separate, packed):
    """Each is a scorer and its batch: log-probs to 1e-5, gradients to 1e-4 of each parameter's largest."""
    found = []
    for model, batch in (separate, packed):
        logps = flat_logps(model, batch)
        weights = torch.linspace(-1, 1, len(logps))  # chosen and rejected pull in different directions
        (logps * weights).sum().backward()
        found.append((logps.detach(), gradients(model)))
    (apart, one), (together, other) = found
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert one.keys() == other.keys()
    assert one
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-4 * max(float(gradient.abs().max()), 1e-4))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_are_those_of_separate_sequences(prepared, source, groups, lora, checkpointing):  # noqa: F811
    assert_equal(
        (scorer(prepared[0], packed=False, lora=lora, checkpointing=checkpointing), source.batch(groups)),
        (
            scorer(prepared[0], packed=True, lora=lora, checkpointing=checkpointing),
            numbered(source, prepared[0]).batch(groups),
        ),
    )


def test_one_side_alone_is_packed_too(prepared, source, groups):  # noqa: F811
    chosen = [group.only("chosen") for group in groups]
    assert_equal(
        (scorer(prepared[0], packed=False), source.batch(chosen)),
        (scorer(prepared[0], packed=True), numbered(source, prepared[0]).batch(chosen)),
    )


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
VIDEO_TOKEN, VISION_START, VISION_END = 3, 4, 5
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
GRIDS = ((2, 4, 4), (3, 4, 2))  # patches of the two videos: time steps, rows, columns


def qwen(name, vision, **text):
    """A random model of the Qwen-VL family and two prompts with videos: (model, prompts)."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        text_config={**TEXT, "rope_parameters": ROPE, **text},
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            **vision,
        },
        image_token_id=2,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    frames_apart = name == "Qwen3VL"  # every frame between marks of its own, after the text of its time
    prompts = []
    for grid in GRIDS:
        per_frame = grid[1] * grid[2] // 4
        if frames_apart:
            video = [token for _ in range(grid[0]) for token in (9, VISION_START, *[VIDEO_TOKEN] * per_frame, VISION_END)]
        else:
            video = [VISION_START, *[VIDEO_TOKEN] * (grid[0] * per_frame), VISION_END]
        ids = torch.tensor([7, *video, 10, 11])
        vision_inputs = {
            "pixel_values_videos": torch.randn(grid[0] * grid[1] * grid[2], 3 * 2 * 4 * 4),
            "video_grid_thw": torch.tensor([grid]),
        }
        types = torch.where(ids == VIDEO_TOKEN, 2, 0)
        prompts.append(Prompt(tokens={"input_ids": ids, "mm_token_type_ids": types}, vision=vision_inputs))
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), prompts


def llava_onevision(**text):
    """The same for LLaVA-OneVision, which counts its positions along one axis."""
    import transformers

    config = transformers.LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", **text},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        image_token_index=2,
        video_token_index=VIDEO_TOKEN,
    )
    prompts = []
    for length in (2, 4):  # texts of different lengths
        ids = torch.tensor([7] * length + [VIDEO_TOKEN] * (2 * 4 + 1) + [10, 11])
        prompts.append(Prompt(tokens={"input_ids": ids}, vision={"pixel_values_videos": torch.randn(1, 2, 3, 16, 16)}))
    return transformers.LlavaOnevisionForConditionalGeneration(config), prompts


ARCHITECTURES = {
    "qwen2_vl": lambda **text: qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}, **text),
    "qwen2_5_vl": lambda **text: qwen(
        "Qwen2_5_VL", {"hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32}, **text
    ),
    "qwen3_vl": lambda: qwen(
        "Qwen3VL",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        head_dim=8,
    ),
    "llava_onevision": llava_onevision,
}


PACKING = {name for name, family in FAMILIES.items() if family.packs}


def test_every_family_that_packs_is_tested_here_or_with_a_whole_checkpoint():
    assert set(ARCHITECTURES) <= PACKING
    assert set(ARCHITECTURES) | set(WRITERS) >= PACKING  # tests/test_family_training.py


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_architectures_that_pack(name):
    torch.manual_seed(0)
    model, prompts = ARCHITECTURES[name]()
    assert model.config.model_type == name
    correct_positions(model)
    number = shared_prefix.numbering(model)
    responses = [([20, 21, 22, 1], [23, 1]), ([24, 1], [25, 26, 27, 28, 1])]
    rows = [(prompt, made[side]) for side in (0, 1) for prompt, made in zip(prompts, responses, strict=True)]
    packed = [
        (dataclasses.replace(prompt, positions=number(prompt)), made)
        for prompt, made in zip(prompts, responses, strict=True)
    ]
    twin = copy.deepcopy(model)
    correct_positions(twin)
    assert_equal(
        (ResponseScorer(model).eval(), collate(rows, pad_id=0)),
        (ResponseScorer(twin, packed=True).eval(), collate_packed(packed)),
    )


SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}  # the second layer sees four tokens


@pytest.mark.parametrize(
    ("name", "text", "obstacle"),
    [
        *((name, {}, "") for name in sorted(ARCHITECTURES)),
        ("qwen2_vl", SLIDING, "sliding_attention"),
        ("qwen2_5_vl", SLIDING, "sliding_attention"),
        ("llava_onevision", SLIDING, "sliding_attention"),
        ("qwen2_5_vl", {**SLIDING, "use_sliding_window": False}, ""),
    ],
)
def test_which_models_pack_and_which_fall_back(name, text, obstacle):
    model, _ = ARCHITECTURES[name](**text)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert shared_prefix.wanted(model, True) == (not obstacle)
        assert not shared_prefix.wanted(model, False)  # switched off: nothing to say
    assert len(shown) == (1 if obstacle else 0)
    for warning in shown:
        for part in (type(model).__name__, obstacle, "set train.shared_prefix to false"):
            assert part in str(warning.message)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava_onevision"])
def test_a_model_of_sliding_layers_trains_on_separate_sequences(name):
    """Its window hides the video from the response's last layer, so the log-probs are not those of the same full layers."""
    found = []
    for text in (SLIDING, {}):
        torch.manual_seed(0)
        model, prompts = ARCHITECTURES[name](**text)
        correct_positions(model)
        scorer = ResponseScorer(model).train()
        logps = flat_logps(scorer, collate([(prompt, [20, 21, 22, 1]) for prompt in prompts], pad_id=0))
        logps.sum().backward()
        found.append((logps.detach(), gradients(scorer)))
    (sliding, gradient), (full, all_of_them) = found
    assert gradient.keys() == all_of_them.keys()
    assert all(bool(value.isfinite().all()) for value in gradient.values())
    assert not torch.allclose(sliding, full, atol=1e-4)


def test_prompt_and_video_stand_in_a_row_once_and_nothing_is_padding(prepared, source, groups):  # noqa: F811
    separate, packed = source.batch(groups), numbered(source, prepared[0]).batch(groups)
    for name in ("pixel_values_videos", "video_grid_thw"):
        assert 2 * len(packed.inputs[name]) == len(separate.inputs[name])
    tokens = sum(group.prompt + sum(group.responses) for group in packed.inputs["groups"])
    assert packed.inputs["input_ids"].shape == (1, tokens)
    assert (packed.labels != IGNORED).sum(-1).tolist() == (separate.labels != IGNORED).sum(-1).tolist()


def test_responses_start_where_the_prompt_ends():
    prompt = torch.tensor([[0, 1, 1], [0, 1, 2], [0, 1, 5]])  # a video that spans more positions than tokens
    positions = packed_positions(prompt, (2, 3))
    assert positions[:, 3:].tolist() == [[6, 7, 6, 7, 8]] * 3


def test_an_untested_architecture_is_not_packed_and_says_so(prepared):  # noqa: F811
    model = load_policy(prepared[0])
    assert shared_prefix.wanted(model, True)
    assert not shared_prefix.wanted(model, False)
    model.config.model_type = "video_llava"
    with pytest.warns(UserWarning, match="is not known to compute a pair in one sequence"):
        assert not shared_prefix.wanted(model, True)


def test_bins_hold_the_budget_and_every_row_once():
    bins = pack([5, 9, 3, 4, 12, 1], budget=10)
    assert [4] in bins  # longer than the budget: alone
    assert sorted(row for rows in bins for row in rows) == list(range(6))
    assert all(sum([5, 9, 3, 4, 12, 1][row] for row in rows) <= 10 for rows in bins if rows != [4])
    assert len(bins) == 4


def test_bins_are_split_until_every_rank_has_as_many():
    assert split_further([[0, 1, 2], [3]], 4) == [[0], [1], [2], [3]]
    assert split_further([[0, 1], [2]], 2) == [[0, 1], [2]]
