"""M-RoPE positions, by hand."""

import torch

from vidalign.model.positions import mrope_positions


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
