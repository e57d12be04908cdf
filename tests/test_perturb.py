"""RRPO's perturbed video: what changes, what stays, and repeatability."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_augment import make_clip

from vidalign.config.degrading import PerturbConfig
from vidalign.errors import ConfigError
from vidalign.video.perturb import frame_order, mask_centre, perturb


@given(
    num_frames=st.integers(1, 20),
    height=st.integers(4, 60),
    width=st.integers(4, 60),
    shuffle=st.sampled_from(["none", "local", "global"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_only_the_order_and_the_square_change(num_frames, height, width, shuffle, seed):
    clip, config = make_clip(num_frames, height, width), PerturbConfig(shuffle=shuffle)
    result = perturb(clip, config, np.random.default_rng(seed))
    assert (result.indices, result.fps, result.duration_s) == (clip.indices, clip.fps, clip.duration_s)
    assert result.frames.flags.c_contiguous
    rng = np.random.default_rng(seed)
    area = rng.uniform(0.25, 0.5)
    order = frame_order(num_frames, config, rng)
    assert sorted(order) == list(range(num_frames))
    hidden = (mask_centre(np.full_like(clip.frames, 255), area) == 0).all(-1)
    np.testing.assert_array_equal(result.frames[~hidden], clip.frames[order][~hidden])
    assert not result.frames[hidden].any()


def test_the_mask_is_one_centred_square_of_the_given_area():
    masked = mask_centre(np.full((3, 40, 60, 3), 200, np.uint8), 0.375)
    hidden = (masked == 0).all(-1)
    assert (hidden == hidden[0]).all()
    rows, columns = np.flatnonzero(hidden[0].any(1)), np.flatnonzero(hidden[0].any(0))
    assert len(rows) == len(columns) == 30  # 900 of 2,400 pixels
    assert (rows[0], rows[-1]) == (5, 34)
    assert (columns[0], columns[-1]) == (15, 44)
    assert hidden[0].sum() == 900


def test_a_local_shuffle_stays_within_its_segment_and_a_global_one_does_not():
    orders = [frame_order(16, PerturbConfig(shuffle="local", num_segments=4), np.random.default_rng(s)) for s in range(20)]
    assert all((order // 4 == np.arange(16) // 4).all() for order in orders)
    assert any((order != np.arange(16)).any() for order in orders)
    anywhere = [frame_order(16, PerturbConfig(shuffle="global"), np.random.default_rng(s)) for s in range(20)]
    assert any((order // 4 != np.arange(16) // 4).any() for order in anywhere)


def test_equal_seeds_give_equal_clips():
    clip, config = make_clip(), PerturbConfig()
    first, again, other = (perturb(clip, config, np.random.default_rng(seed)).frames for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mask_area": None, "shuffle": "none"}, "leave the video unchanged"),
        ({"mask_area": [0.5, 0.2]}, "0 < low <= high < 1"),
        ({"mask_area": [0.5, 1.0]}, "0 < low <= high < 1"),
    ],
)
def test_a_perturbation_that_does_nothing_or_masks_no_valid_share_is_refused(fields, words):
    from vidalign.config.loading import parse_config

    raw = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}, "recipe": {"name": "rrpo", "perturb": fields}}
    with pytest.raises(ConfigError, match=f"recipe.perturb.*{words}"):
        parse_config(raw)


def test_reversed_frames_run_backwards():
    clip = make_clip(7)
    config = PerturbConfig(mask_area=None, shuffle="reverse")
    result = perturb(clip, config, np.random.default_rng(0))
    np.testing.assert_array_equal(result.frames, clip.frames[::-1])
    assert result.indices == clip.indices, "nothing tells the model that they do"


@pytest.mark.parametrize(
    ("keep", "share", "count"), [("drop", 0.5, 5), ("segment", 0.5, 5), ("drop", 0.01, 2), ("segment", 0.9, 9)]
)
def test_what_is_left_of_a_video_keeps_its_place_in_it(keep, share, count):
    clip = make_clip(10)
    config = PerturbConfig(mask_area=None, shuffle="none", keep=keep, kept_share=share)
    taken = set()
    for seed in range(20):
        result = perturb(clip, config, np.random.default_rng(seed))
        places = [clip.indices.index(index) for index in result.indices]
        assert places == sorted(set(places))
        assert len(places) == count
        np.testing.assert_array_equal(result.frames, clip.frames[places])
        if keep == "segment":
            assert places == list(range(places[0], places[0] + count))
        taken.add(tuple(places))
    assert len(taken) > 1
    short = perturb(make_clip(2), config, np.random.default_rng(0))
    assert len(short.frames) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kept_share": 0.3}, 'kept_share is set but nothing uses it: it is for keep "drop" and "segment"'),
        ({"shuffle": "global", "num_segments": 8}, 'num_segments is set but nothing uses it: it is for shuffle "local"'),
    ],
)
def test_an_option_without_a_use_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        PerturbConfig(**options)
