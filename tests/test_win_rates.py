"""Win rates from the scores of all candidates, through the pairs' file and the view on a batch, into SPPO's loss."""

import dataclasses
import math

import pytest
import torch
from test_pairing import EXAMPLE, JUDGE, data_row, response

from pipelines.stages.train import win_rate_facts
from vidalign import files, recipes
from vidalign.config.recipes import GivenRecipe, HoundRecipe, LeanpoRecipe, RrpoRecipe
from vidalign.data.reading import read_rows
from vidalign.data.rows import parse_row
from vidalign.learning import objectives
from vidalign.learning.sequences import pair_group
from vidalign.learning.views import PairView
from vidalign.model.logps import RowLogps
from vidalign.recipes.pairing import make_pairs
from vidalign.statistics import win_rates
from vidalign.types import Judgement, PreferencePair


def test_win_rates_by_hand():
    assert win_rates([0.0, math.log(3.0)]) == pytest.approx([(0.5 + 0.25) / 2, (0.5 + 0.75) / 2])
    assert win_rates([-math.inf, -math.inf, 0.0, 5000.0]) == pytest.approx([0.25, 0.25, 2.5 / 4, 3.5 / 4])
    assert win_rates([]) == []


def made(config, responses, judgements=()):
    pairs, dropped = make_pairs([data_row(EXAMPLE)], responses, recipes.build(config), judgements, decoded={"v.mp4"})
    assert not dropped
    return pairs[0]


REPLIES = [
    response("hinted", "right", reward=math.log(0.5), trust=1.0),  # strength 0.5
    response("hinted", "close", candidate=1, reward=math.log(0.25), trust=0.4),  # strength 0.1
    response("augmented", "absurd", reward=math.log(0.25), trust=0.4),  # strength 0.1, the rejected one
    response("augmented", "", candidate=1, reward=math.nan, trust=0.0),  # no response
    response("augmented", "right but cut", candidate=2, reward=-0.1, trust=0.9, finish="length"),
]


def test_leanpo_compares_by_trust_times_likelihood_among_all_scored_candidates():
    pair = made(LeanpoRecipe(), REPLIES)
    assert (pair.chosen, pair.rejected) == ("right", "absurd")
    won = 0.5 / 0.6
    assert pair.chosen_win_rate == pytest.approx((0.5 + 2 * won) / 3)
    assert pair.rejected_win_rate == pytest.approx((0.5 + 0.5 + 1 - won) / 3)


def test_hound_compares_by_the_judges_scores():
    replies = [response("plain", text, candidate=at) for at, text in enumerate(("good", "fair", "bad"))]
    scores = {"good": 5.0, "fair": 3.0, "bad": 1.0}
    judgements = [Judgement(example_id="e", response=t, score=s, explanation="", judge="j") for t, s in scores.items()]
    pair = made(HoundRecipe(judge=JUDGE), replies, judgements)
    expected = win_rates([5.0, 3.0, 1.0])
    assert (pair.chosen_win_rate, pair.rejected_win_rate) == pytest.approx((expected[0], expected[2]))


def test_rrpo_compares_the_truth_with_the_wrong_replies():
    replies = [response("perturbed", "wrong", trust=0.2), response("truth", "right", trust=1.0)]
    pair = made(RrpoRecipe(trust="f1"), replies)
    assert pair.chosen_win_rate == pytest.approx((0.5 + 1 / 1.2) / 2)
    assert pair.chosen_win_rate + pair.rejected_win_rate == pytest.approx(1)


def test_given_rows_have_win_rates_where_they_say_so(tmp_path):
    path = tmp_path / "pairs.jsonl"
    row = '{"id": "%s", "video": "v.mp4", "question": "%s", "answer": "a", "chosen": "a", "rejected": "b"%s}\n'
    path.write_text(row % ("x", "Q?", ', "chosen_win_rate": 0.9, "rejected_win_rate": 0.2') + row % ("y", "R?", ""))
    with_rates, without = recipes.build(GivenRecipe()).given(read_rows(path))
    assert (with_rates.chosen_win_rate, with_rates.rejected_win_rate) == (0.9, 0.2)
    assert math.isnan(without.chosen_win_rate)
    _, errors = parse_row(
        {"id": "x", "video": "v", "question": "q", "answer": "a", "chosen": "a", "rejected": "b", "chosen_win_rate": 2}
    )
    assert [error.field for error in errors] == ["chosen_win_rate"]


def test_unknown_win_rates_do_not_change_a_pairs_content():
    pair = made(LeanpoRecipe(), REPLIES)
    unknown = dataclasses.replace(pair, chosen_win_rate=math.nan, rejected_win_rate=math.nan)
    assert "chosen_win_rate" in pair.content()
    assert unknown.content().keys() == pair.content().keys() - {"chosen_win_rate", "rejected_win_rate"}


def loss_of(path, **params):
    """SPPO's loss on the pairs of a file, by the same log-probs each time."""
    groups = [pair_group(pair) for pair in files.read_table(path, PreferencePair)]
    objective = objectives.build("sppo", {"beta": 1.0, **params})
    logps = torch.tensor([[-1.0, -0.5], [-2.0, -0.5]])
    rows = RowLogps(logps=logps, mask=torch.ones_like(logps, dtype=torch.bool))
    kept = {"chosen": torch.tensor([-1.5, -0.5]), "rejected": torch.tensor([-1.5, -0.5])}
    view = PairView(objective=objective, source=None, kept=lambda group: kept)  # type: ignore[arg-type]
    return float(objective(view.policy(rows, groups), view.reference(rows, groups)).value)


def test_the_loss_changes_with_the_win_rates_of_the_file(tmp_path):
    pair = made(LeanpoRecipe(), REPLIES)
    unknown = dataclasses.replace(pair, chosen_win_rate=math.nan, rejected_win_rate=math.nan)
    for name, each in (("own", pair), ("unknown", unknown)):
        files.write_table(tmp_path / f"{name}.parquet", [each])
    # Log-ratios are +0.5 (chosen) and -0.5 (rejected): the hard case is met exactly.
    assert loss_of(tmp_path / "unknown.parquet") == pytest.approx(0.0, abs=1e-6)
    assert loss_of(tmp_path / "own.parquet", win_rates="hard") == pytest.approx(0.0, abs=1e-6)
    errors = 0.5 - (pair.chosen_win_rate - 0.5), -0.5 - (pair.rejected_win_rate - 0.5)
    assert loss_of(tmp_path / "own.parquet") == pytest.approx(0.5 * sum(error**2 for error in errors), rel=1e-5)
    assert win_rate_facts([pair, unknown], objectives.build("sppo", {})) == {"win_rates": {"estimated": 1, "hard": 1}}
    assert win_rate_facts([pair], objectives.build("dpo", {})) == {}
