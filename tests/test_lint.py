"""Artefacts in pairs: found when they are there, not found when they are not."""

import dataclasses

import pytest

from vidalign.config.linting import LintConfig
from vidalign.recipes.lint import filter_pairs, lint
from vidalign.types import PreferencePair

CONFIG = LintConfig()


def pair(number, chosen, rejected, answer="A red circle moves left."):
    return PreferencePair(
        id=str(number),
        example_id=str(number),
        video=f"{number}.mp4",
        question="What moves?",
        answer=answer,
        chosen=chosen,
        rejected=rejected,
    )


@pytest.fixture
def pairs():
    """40 pairs; 12 losers speak of a grayscale image, and half of the truths say no where the losers say yes."""
    rows = []
    for number in range(40):
        if number < 12:
            rows.append(pair(number, "A red circle moves left.", "A circle in a grayscale image moves."))
        elif number < 30:
            rows.append(
                pair(number, "No, there is none.", "Yes, there is one.", answer=("No, none.", "Yes, one.")[number % 2])
            )
        else:
            ways = ("left", "up") if number % 2 else ("up", "left")
            right, wrong = (f"A red circle moves {way}." for way in ways)
            rows.append(pair(number, right, wrong, answer=right))
    return rows


def test_a_word_that_gives_a_side_away_is_found_and_content_is_not(pairs):
    found = {tale.word: tale for tale in lint(pairs, CONFIG).words}
    assert set(found) == {"in", "grayscale", "image"}
    assert found["grayscale"].side == "rejected"
    assert (found["grayscale"].rejected, found["grayscale"].chosen, found["grayscale"].num_pairs) == (0.3, 0.0, 12)


def test_a_word_that_is_rare_or_on_both_sides_is_none(pairs):
    assert not lint(pairs[:7] + pairs[30:], CONFIG).words  # seven times: below min_count
    both = [dataclasses.replace(p, chosen=p.rejected + " Indeed.") for p in pairs[:12]]
    assert {tale.word for tale in lint(both, CONFIG).words} == {"indeed"}


def test_nothing_is_dropped_unless_the_config_says_so(pairs):
    kept, dropped = filter_pairs(pairs, lint(pairs, CONFIG), CONFIG)
    assert kept == pairs
    assert dropped == {}


def test_tell_tale_pairs_are_dropped_and_counted(pairs):
    config = LintConfig(drop_tell_tales=True)
    kept, dropped = filter_pairs(pairs, lint(pairs, config), config)
    assert kept == pairs[12:]
    assert dropped == {"tell_tale_word": 12}


def test_length_bias_is_beyond_chance_or_none():
    longer = [pair(number, "one two three four", "one two") for number in range(30)]
    assert lint(longer, CONFIG).length_biased
    assert lint(longer, CONFIG).chosen_longer == 1.0
    assert not lint(longer[:6], CONFIG).length_biased  # six of six is no proof
    mixed = longer[:15] + [pair(number, "one two", "one two three") for number in range(15)]
    report = lint(mixed, CONFIG)
    assert not report.length_biased
    assert (report.chosen_words, report.rejected_words, report.chosen_longer) == (3.0, 2.5, 0.5)
    assert lint([pair(0, "a b", "a c")], CONFIG).chosen_longer is None


def test_lengths_and_duplicates_are_filtered_to_the_bounds():
    rows = [
        pair(0, "one", "two"),
        pair(0, "one", "two"),
        pair(0, "one", "two"),
        pair(1, "one", "two"),
        pair(2, "a b c d", "a"),
    ]
    config = LintConfig(max_duplicates=2, max_length_ratio=3.0)
    report = lint(rows, config)
    kept, dropped = filter_pairs(rows, report, config)
    assert report.num_duplicates == 2
    assert kept == [rows[0], rows[1], rows[3]]
    assert dropped == {"duplicate": 1, "length_ratio": 1}


def test_no_pairs_are_no_error():
    report = lint([], CONFIG)
    assert (report.num_pairs, report.words, report.num_duplicates) == (0, (), 0)


def test_a_word_of_a_text_without_spaces_gives_a_side_away_too():
    pairs = [
        pair(n, f"红色的方块向左移动{n}", f"黑白画面里的方块向左移动{n}", answer="红色的方块向左移动") for n in range(20)
    ]
    assert {tale.word for tale in lint(pairs, CONFIG).words if tale.side == "rejected"} == {"黑白", "画面", "里"}
