"""M-RoPE positions, by hand."""

import itertools
import types

import pytest
import torch

from vidalign.errors import ModelError
from vidalign.model.positions import check_positions, largest_position, mrope_positions


def test_text_after_a_long_video_starts_past_its_last_time_step():
    # two text tokens, a video of 3 time steps and 1 x 2 merged patches, one text token
    made = mrope_positions([0, 0, *[2] * 6, 0], [(3, 2, 4)], [2.0], merge_size=2)
    assert made.tolist() == [
        [0, 1, 2, 2, 4, 4, 6, 6, 7],
        [0, 1, 2, 2, 2, 2, 2, 2, 7],
        [0, 1, 2, 3, 2, 3, 2, 3, 7],
    ]


def test_text_alone_counts_up():
    assert torch.equal(mrope_positions([0] * 4, [], [], merge_size=2), torch.arange(4).expand(3, -1))


def test_the_largest_position_without_making_them_all():
    for text, frames, (rows, columns), step in itertools.product(
        (1, 9), (1, 4, 30), ((2, 4), (16, 12)), (0.5, 1.0, 2.0, 900.1)
    ):
        size = frames * (rows // 2) * (columns // 2)
        made = mrope_positions([0, 0, *[2] * size, *[0] * text], [(frames, rows, columns)], [step], merge_size=2)
        assert largest_position(2 + size + text, [(frames, rows, columns)], [step], merge_size=2) == int(made.max())


def test_a_prompt_beyond_the_table_of_positions_is_a_sentence():
    """4 x 128,000 positions at 2 a second: the engine's table ends after 71 hours, and a smaller model's sooner."""
    vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    text = types.SimpleNamespace(max_position_embeddings=1000)
    config = types.SimpleNamespace(model_type="qwen2_5_vl", vision_config=vision, get_text_config=lambda: text)
    grid = [(4, 2, 2)]  # one token a step: 0, 2 s, 4 s, 6 s in positions of the first
    check_positions(config, 10, 0, grid, [660.0])  # 6 texts, then 3 steps of 1,320 positions: 3,966
    with pytest.raises(ModelError, match=r"about 2,672 s takes positions up to 4,014, and this model's engine has 4,000"):
        check_positions(config, 10, 0, grid, [668.0])
    with pytest.raises(ModelError, match=r"video\.max_duration_s"):
        check_positions(config, 10, 40, grid, [660.0])
    other = types.SimpleNamespace(**{**vars(config), "model_type": "qwen3_vl"})
    check_positions(other, 10, 0, grid, [668.0])
