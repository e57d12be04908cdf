"""How often a source of batches renders a prompt, and for how long it holds what it rendered."""

import dataclasses
import weakref

import pytest
import torch
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)


class Renderings:
    """Counts what is rendered, as the function that numbers each prompt once, and sees what of it is still held."""

    def __init__(self):
        self.pixels = []

    def __call__(self, prompt):
        self.pixels.append(weakref.ref(prompt.vision["pixel_values_videos"]))
        return torch.arange(prompt.length)[None]

    @property
    def held(self):
        return sum(ref() is not None for ref in self.pixels)


@pytest.fixture
def renderings():
    return Renderings()


@pytest.fixture
def counted(source, renderings):  # noqa: F811
    return dataclasses.replace(source, number=renderings, _kept={})


def test_training_holds_no_prompt_that_it_has_seen(counted, groups, renderings):  # noqa: F811
    for _ in range(2):
        for index in range(3):
            counted.batch([groups[index]])
            assert renderings.held == 0
    assert len(renderings.pixels) == 6


def test_what_is_asked_for_again_is_rendered_once_and_given_away_at_last(counted, groups, renderings):  # noqa: F811
    first = counted.batch(groups[:2], keep=True)
    assert renderings.held == 2
    again, last = counted.batch(groups[:2], keep=True), counted.batch(groups[:2])
    assert len(renderings.pixels) == 2
    assert renderings.held == 0
    for batch in (again, last):
        assert all(torch.equal(batch.inputs[name], first.inputs[name]) for name in ("input_ids", "pixel_values_videos"))


def test_a_pair_that_was_counted_is_not_rendered_again_for_its_batch(counted, groups, renderings):  # noqa: F811
    tokens = sum(counted.num_tokens(group) for group in groups[:2])
    assert counted.batch(groups[:2]).inputs["input_ids"].shape == (1, tokens)
    assert len(renderings.pixels) == 2
    assert renderings.held == 0


@pytest.mark.parametrize(("clips", "held"), [(0, 0), (1, 1), (2, 2)])
def test_prompts_are_kept_up_to_a_bound(counted, groups, renderings, clips, held):  # noqa: F811
    """Pair 0 is on a video of eight frames, as many as make one clip here, and pair 1 on one of four; with tokens they are more."""
    clip = counted.batch(groups[:1]).inputs["pixel_values_videos"].nbytes
    bounded = dataclasses.replace(counted, cache_bytes=clips * clip, _kept={})
    for _ in range(2):
        bounded.batch(groups[:2], keep=True)
        assert renderings.held == held
