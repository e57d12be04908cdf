"""The pair rules, by hand-made responses."""

import dataclasses
import json

import pytest
from test_files import RESPONSE

from vidalign.config import RecipeConfig
from vidalign.pairing import make_pairs, pair_example
from vidalign.types import Example

EXAMPLE = Example(id="e", video="v.mp4", question="Q?", answer="right")


def response(kind, text, *, candidate=0, turn=0, reward=-1.0, trust=0.0):
    return dataclasses.replace(RESPONSE, kind=kind, text=text, candidate=candidate, turn=turn, reward=reward, trust=trust)


def test_best_vs_worst_takes_trust_times_likelihood_and_the_likeliest_error():
    pair = pair_example(
        EXAMPLE,
        [
            response("hinted", "right, rambling", reward=-3.0, trust=1.0),
            response("reflected", "right", candidate=1, turn=1, reward=-0.5, trust=1.0),
            response("reflected", "close", candidate=2, turn=1, reward=-0.1, trust=0.4),
            response("augmented", "absurd", reward=-9.0, trust=0.0),
            response("augmented", "plausible", candidate=1, reward=-0.3, trust=0.0),
            response("augmented", "right", candidate=2, reward=-0.1, trust=1.0),
        ],
        RecipeConfig(),
    )
    assert (pair.chosen, pair.rejected) == ("right", "plausible")
    assert (pair.chosen_trust, pair.rejected_reward) == (1.0, -0.3)
    assert json.loads(pair.provenance)["chosen"]["turn"] == 1


def test_hinted_vs_augmented_takes_the_first_candidate_and_its_last_turn():
    pair = pair_example(
        EXAMPLE,
        [
            response("hinted", "turn 1", trust=1.0),
            response("reflected", "turn 2", turn=1, trust=0.9),
            response("reflected", "other", candidate=1, turn=1, trust=1.0),
            response("augmented", "loser", trust=0.5),
            response("augmented", "worse", candidate=1, trust=0.0),
        ],
        RecipeConfig(pair_rule="hinted_vs_augmented"),
    )
    assert (pair.chosen, pair.rejected) == ("turn 2", "loser")


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        ([response("hinted", "a", trust=1.0), response("augmented", " ")], "empty_response"),
        ([response("hinted", "a", trust=1.0), response("augmented", "a ")], "identical_responses"),
        ([response("hinted", "a", trust=0.5), response("augmented", "b", trust=0.45)], "no_trust_gap"),
    ],
)
def test_what_gives_no_pair_is_counted_by_reason(responses, reason):
    pairs, dropped = make_pairs([EXAMPLE], responses, RecipeConfig())
    assert (pairs, dropped) == ([], {reason: 1})


def test_an_example_without_responses_had_its_video_quarantined():
    assert make_pairs([EXAMPLE], [], RecipeConfig())[1] == {"video_quarantined": 1}
