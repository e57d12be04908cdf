"""Negatives that are the ground truth with one segment resampled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pairing import TRUTH, pair_leanpo, response

from vidalign.config.recipes import LeanpoRecipe
from vidalign.recipes import replay


@given(text=st.text(min_size=1).filter(str.strip), seed=st.integers(0, 2**32 - 1))
def test_a_cut_loses_nothing_and_its_segment_is_never_empty(text, seed):
    parts = replay.cut(text, np.random.default_rng(seed))
    assert parts.before + parts.segment + parts.after == text.strip()
    assert parts.segment.strip()
    assert not parts.before.endswith((" ", "\n"))


def test_a_text_without_spaces_is_cut_between_its_words():
    found = {replay.cut("红色的方块向左移动。", np.random.default_rng(seed)).segment for seed in range(400)}
    assert len(found) == 21  # 6 words: 红色 的 方 块 向左 移动。
    assert {"红色", "向左", "移动。", "红色的方块向左移动。"} <= found
    assert not {"红", "左", "向"} & found


def test_a_segment_that_ends_the_reply_drops_what_followed():
    parts = replay.Cut("A red", " circle", " moves left.")
    assert parts.with_segment(" square", ended=False) == "A red square moves left."
    assert parts.with_segment(" cross.", ended=True) == "A red cross."


def test_what_was_drawn_before_is_drawn_less_often():
    pool = [response("replayed", "a"), response("replayed", "b")]
    times = {("e", "a"): 3}
    rng = np.random.default_rng(0)
    drawn = [replay.draw(pool, times, rng).text for _ in range(2000)]
    assert drawn.count("a") / 2000 == pytest.approx(1 / 5, abs=0.03)  # weights 1/4 and 1


def test_only_a_replay_that_is_worse_becomes_a_rejected_side():
    winner = response("hinted", "A red circle moves left.", trust=1.0)
    same = response("replayed", "A red circle moves left.", trust=1.0)
    worse = response("replayed", "A red circle moves up.", trust=0.8)
    recipe = LeanpoRecipe(negatives="replayed")
    assert pair_leanpo(TRUTH, [winner, same], recipe) == "empty_response"
    pair = pair_leanpo(TRUTH, [winner, same, worse], recipe)
    assert pair.rejected == worse.text
    worst = response("augmented", "Nothing.", trust=0.0)
    both = LeanpoRecipe(negatives="both")
    assert pair_leanpo(TRUTH, [winner, worse, worst], both).rejected == worst.text
