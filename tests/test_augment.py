"""The degraded video: shape and bookkeeping kept, one draw for all frames, repeatable, each step doing what it says."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidalign.config.degrading import AugmentConfig
from vidalign.video.augment import Augmentation, apply, augment, draw
from vidalign.video.clip import Clip

NOTHING = Augmentation(
    crop=(0, 0, 32, 40), jitter=None, grayscale=False, blur_sigma=None, flip=False, frames=tuple(range(8))
)


def make_clip(num_frames: int = 8, height: int = 32, width: int = 40, seed: int = 0) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    indices = tuple(range(1, 3 * num_frames, 3))
    return Clip(frames=frames, fps=10.0, total_num_frames=3 * num_frames, duration_s=0.3 * num_frames, indices=indices)


@given(
    num_frames=st.integers(1, 20),
    height=st.integers(4, 70),
    width=st.integers(4, 70),
    seed=st.integers(0, 9),
    kept=st.integers(2, 9),
)
@settings(max_examples=40, deadline=None)
def test_size_and_indices_stay_consistent(num_frames, height, width, seed, kept):
    clip = make_clip(num_frames, height, width)
    result = augment(clip, AugmentConfig(num_frames=kept), np.random.default_rng(seed))
    assert result.frames.shape == (min(kept, num_frames), height, width, 3)
    assert result.frames.flags.c_contiguous
    assert result.frames.dtype == np.uint8
    assert set(result.indices) <= set(clip.indices)
    assert list(result.indices) == sorted(set(result.indices))
    assert (result.fps, result.duration_s, result.total_num_frames) == (clip.fps, clip.duration_s, clip.total_num_frames)


def test_frames_are_kept_evenly():
    clip = make_clip()
    assert augment(clip, AugmentConfig(), np.random.default_rng(0)).indices == (clip.indices[2], clip.indices[6])


def test_equal_seeds_give_equal_clips_and_others_do_not():
    clip, config = make_clip(), AugmentConfig()
    first, again, other = (augment(clip, config, np.random.default_rng(seed)).frames for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(8))
def test_one_draw_serves_all_frames_of_a_video(seed):
    clip = make_clip()
    still = dataclasses.replace(clip, frames=np.repeat(clip.frames[:1], 8, axis=0))
    frames = augment(still, AugmentConfig(num_frames=8), np.random.default_rng(seed)).frames
    assert len({frame.tobytes() for frame in frames}) == 1


def test_the_input_is_not_changed():
    clip = make_clip()
    before = clip.frames.copy()
    augment(clip, AugmentConfig(), np.random.default_rng(0))
    np.testing.assert_array_equal(clip.frames, before)


@given(height=st.integers(4, 500), width=st.integers(4, 500), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_the_crop_lies_inside_and_has_the_asked_area(height, width, seed):
    scale = (0.3, 0.6)
    top, left, h, w = draw((8, height, width, 3), AugmentConfig(crop_scale=scale), np.random.default_rng(seed)).crop
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    # Sides are rounded to pixels: the area is right within half a pixel a side.
    assert (h - 0.5) * (w - 0.5) <= scale[1] * height * width
    assert (h + 0.5) * (w + 0.5) >= scale[0] * height * width


def test_probabilities_rule_what_is_applied():
    never = AugmentConfig(jitter_probability=0, grayscale_probability=0, blur_probability=0, flip_probability=0)
    always = AugmentConfig(jitter_probability=1, grayscale_probability=1, blur_probability=1, flip_probability=1)
    for seed in range(20):
        none = draw((8, 32, 40, 3), never, np.random.default_rng(seed))
        assert (none.jitter, none.grayscale, none.blur_sigma, none.flip) == (None, False, None, False)
        every = draw((8, 32, 40, 3), always, np.random.default_rng(seed))
        assert every.jitter is not None
        assert every.blur_sigma is not None
        assert 0.1 <= every.blur_sigma <= 2.0
        assert (every.grayscale, every.flip) == (True, True)
        factors = dict(every.jitter)
        assert 0.6 <= factors["brightness"] <= 1.4
        assert 0.6 <= factors["contrast"] <= 1.4
        assert 0.8 <= factors["saturation"] <= 1.2
        assert -0.1 <= factors["hue"] <= 0.1


def test_each_step_by_hand():
    clip = make_clip()
    np.testing.assert_array_equal(apply(clip, NOTHING).frames, clip.frames)
    flipped = apply(clip, dataclasses.replace(NOTHING, flip=True))
    np.testing.assert_array_equal(flipped.frames, clip.frames[:, :, ::-1])
    grey = apply(clip, dataclasses.replace(NOTHING, grayscale=True)).frames.astype(int)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_allclose(grey[..., 0], clip.frames @ [0.299, 0.587, 0.114], rtol=0, atol=1.1)
    dark = apply(clip, dataclasses.replace(NOTHING, jitter=(("brightness", 0.5),))).frames
    np.testing.assert_allclose(dark, clip.frames / 2, atol=1)
    blurred = apply(clip, dataclasses.replace(NOTHING, blur_sigma=2.0)).frames
    assert blurred.std() < clip.frames.std() / 3
    assert abs(blurred.mean() - clip.frames.mean()) < 2


def test_a_crop_shows_that_part_of_the_frame():
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, :16, 16:] = 200  # the upper right quarter
    clip = Clip(frames=frames, fps=10.0, total_num_frames=2, duration_s=0.2, indices=(0, 1))
    step = dataclasses.replace(NOTHING, crop=(0, 16, 16, 16), frames=(0, 1))
    np.testing.assert_array_equal(apply(clip, step).frames, np.full((2, 32, 32, 3), 200, np.uint8))
