"""The pair rules, by hand-made responses."""

import dataclasses
import json
import math
import re
import types

import pytest
from test_files import RESPONSE

from pipelines.stages.pairs import Pairs
from vidalign import files, recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import parse_config
from vidalign.config.recipes import HoundRecipe, LeanpoRecipe, RrpoRecipe
from vidalign.data.answers import overlap_is_unclear
from vidalign.data.answers import trust as trust_of
from vidalign.data.reading import DataRow
from vidalign.data.rows import ExampleRow
from vidalign.data.scorers import trust_by
from vidalign.errors import ConfigError
from vidalign.files import RunFolder
from vidalign.recipes.base import Evidence, Recipe
from vidalign.recipes.pairing import make_pairs
from vidalign.types import Example, Judgement, PolicyVersion

JUDGE = JudgeConfig(kind="openai", model="judge", base_url="http://127.0.0.1:1/v1")


def data_row(example):
    fields = {"id": example.id, "video": example.video, "question": example.question, "answer": example.answer}
    return DataRow(example, ExampleRow(**fields), "here")


def pair(config, example, responses, judgements=None):
    """What the recipe of this config makes of one example's responses."""
    return recipes.build(config).pair(data_row(example), responses, Evidence(judgements=judgements or {}))


def pair_leanpo(example, responses, config):
    return pair(config, example, responses)


pair_rrpo = pair_leanpo


def pair_hound(example, responses, config, judgements):
    return pair(config, example, responses, judgements)


EXAMPLE = Example(id="e", video="v.mp4", question="Q?", answer="right")


def response(kind, text, *, candidate=0, turn=0, reward=-1.0, trust=0.0, finish="stop"):
    return dataclasses.replace(
        RESPONSE, kind=kind, text=text, candidate=candidate, turn=turn, reward=reward, trust=trust, finish_reason=finish
    )


def test_best_vs_worst_takes_trust_times_likelihood_and_the_likeliest_error():
    pair = pair_leanpo(
        EXAMPLE,
        [
            response("hinted", "right, rambling", reward=-3.0, trust=1.0),
            response("reflected", "right", candidate=1, turn=1, reward=-0.5, trust=1.0),
            response("reflected", "close", candidate=2, turn=1, reward=-0.1, trust=0.4),
            response("augmented", "absurd", reward=-9.0, trust=0.0),
            response("augmented", "plausible", candidate=1, reward=-0.3, trust=0.0),
            response("augmented", "right", candidate=2, reward=-0.1, trust=1.0),
        ],
        LeanpoRecipe(),
    )
    assert (pair.chosen, pair.rejected) == ("right", "plausible")
    assert (pair.chosen_trust, pair.rejected_reward) == (1.0, -0.3)
    assert json.loads(pair.provenance)["chosen"]["turn"] == 1


def test_hinted_vs_augmented_takes_the_first_candidate_and_its_last_turn():
    pair = pair_leanpo(
        EXAMPLE,
        [
            response("hinted", "turn 1", trust=1.0),
            response("reflected", "turn 2", turn=1, trust=0.9),
            response("reflected", "other", candidate=1, turn=1, trust=1.0),
            response("augmented", "loser", trust=0.5),
            response("augmented", "worse", candidate=1, trust=0.0),
        ],
        LeanpoRecipe(pair_rule="hinted_vs_augmented", trust="f1"),
    )
    assert (pair.chosen, pair.rejected) == ("turn 2", "loser")


@pytest.mark.parametrize(("rejected", "outcome"), [("right", "no_trust_gap"), ("close ", "identical_responses")])
def test_the_authors_rule_can_be_had_without_our_filter(rejected, outcome):
    trust = {"right": 1.0, "loser": 0.0, "close ": 0.3}[rejected]
    replies = [response("hinted", "close", trust=0.3), response("augmented", rejected, trust=trust)]
    assert pair_leanpo(EXAMPLE, replies, LeanpoRecipe(pair_rule="hinted_vs_augmented")) == outcome
    unfiltered = pair_leanpo(EXAMPLE, replies, LeanpoRecipe(pair_rule="hinted_vs_augmented_unfiltered"))
    if outcome == "identical_responses":
        assert unfiltered == outcome
    else:
        assert (unfiltered.chosen, unfiltered.rejected) == ("close", rejected)
        assert json.loads(unfiltered.provenance)["rule"] == "hinted_vs_augmented_unfiltered"
        unknown = [dataclasses.replace(reply, trust=math.nan) for reply in replies]
        assert pair_leanpo(EXAMPLE, unknown, LeanpoRecipe(pair_rule="hinted_vs_augmented_unfiltered")).chosen == "close"


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        ([response("hinted", "a", trust=1.0), response("augmented", " ")], "empty_response"),
        ([response("hinted", "a", trust=1.0), response("augmented", "a ")], "identical_responses"),
        ([response("hinted", "a", trust=0.5), response("augmented", "b", trust=0.45)], "no_trust_gap"),
    ],
)
def test_what_gives_no_pair_is_counted_by_reason(responses, reason):
    pairs, dropped = make_pairs([data_row(EXAMPLE)], responses, recipes.build(LeanpoRecipe()), decoded={"v.mp4"})
    assert (pairs, dropped) == ([], {reason: 1})


def test_an_example_whose_video_was_not_decoded_is_counted_as_quarantined():
    recipe = recipes.build(LeanpoRecipe())
    assert make_pairs([data_row(EXAMPLE)], [], recipe, decoded={"other.mp4"})[1] == {"video_quarantined": 1}
    assert make_pairs([data_row(EXAMPLE)], [], recipe, decoded={"v.mp4"})[1] == {"empty_response": 1}


RRPO = RrpoRecipe()
TRUTH = Example(id="e", video="v.mp4", question="Q?", answer="A red circle moves left.")


def test_rrpo_prefers_the_truth_to_the_likeliest_error_and_marks_the_difference():
    pair = pair_rrpo(
        TRUTH,
        [
            response("truth", TRUTH.answer, reward=-0.4, trust=1.0),
            response("perturbed", TRUTH.answer, reward=-0.1, trust=1.0),
            response("perturbed", "A blue circle moves left.", candidate=1, reward=-2.0, trust=0.8),
            response("perturbed", "A red circle moves up.", candidate=2, reward=-0.7, trust=0.8),
        ],
        RRPO,
    )
    assert (pair.chosen, pair.rejected) == (TRUTH.answer, "A red circle moves up.")
    assert [pair.chosen[a:b] for a, b in pair.chosen_marks] == ["left"]
    assert [pair.rejected[a:b] for a, b in pair.rejected_marks] == ["up"]
    assert (pair.chosen_reward, pair.rejected_reward) == (-0.4, -0.7)
    assert json.loads(pair.provenance)["recipe"] == "rrpo"


@pytest.mark.parametrize(
    ("listed", "rewritten", "outcome"),
    [
        ("- red => blue", "A blue circle moves left.", "A blue circle moves left."),
        ("1. red circle => blue cross", "A blue cross moves left.", "A blue cross moves left."),
        ("red => blue\ncircle => cross", "A blue cross moves left.", "A blue cross moves left."),
        ("red => blue", "A blue circle moves up.", "rewrite_differs_elsewhere"),
        ("red => green", "A blue circle moves left.", "rewrite_differs_elsewhere"),
        ("red => blue", "A red circle moves left.", "rewrite_differs_elsewhere"),
        ("it is all wrong", "A blue circle moves left.", "rewrite_differs_elsewhere"),
        ("red => blue", " ", "no_rewrite"),
    ],
)
def test_a_rewrite_must_differ_from_the_truth_in_the_listed_phrases_only(listed, rewritten, outcome):
    responses = [
        response("perturbed", "Blue thing.", candidate=1, trust=0.1),
        response("differences", listed, candidate=1),
        response("rewritten", rewritten, candidate=1, reward=-0.9),
    ]
    pair = pair_rrpo(TRUTH, responses, RrpoRecipe(rewrite="policy"))
    assert (pair if isinstance(pair, str) else pair.rejected) == outcome
    if not isinstance(pair, str):
        assert json.loads(pair.provenance)["rejected"]["wrong_reply"] == "Blue thing."


def test_a_wrong_reply_that_is_parallel_to_the_truth_needs_no_rewrite():
    """The rewrite did not change anything, but the reply itself differs from the truth in what was listed of it, and only in that."""
    responses = [
        response("perturbed", "A blue circle moves left.", candidate=1, trust=0.8),
        response("differences", "red => blue", candidate=1),
        response("rewritten", TRUTH.answer, candidate=1),
    ]
    pair = pair_rrpo(TRUTH, responses, RrpoRecipe(rewrite="policy"))
    assert pair.rejected == "A blue circle moves left."
    assert json.loads(pair.provenance)["rejected"]["kind"] == "perturbed"


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        ([response("perturbed", "A red circle moves left.", trust=1.0)], "no_wrong_reply"),
        ([response("perturbed", " ", trust=0.0)], "no_wrong_reply"),
        ([response("perturbed", "A  red circle moves left.", trust=0.9)], "no_key_phrase"),
    ],
)
def test_rrpo_says_why_there_is_no_pair(responses, reason):
    assert pair_rrpo(TRUTH, responses, RrpoRecipe(trust="f1")) == reason


def test_the_same_words_in_another_order_do_not_show_who_did_what():
    example = Example(id="o", video="v", question="What happens?", answer="The dog runs before the cat.")
    turned = "The cat runs before the dog."
    assert overlap_is_unclear(turned, "The dog runs first", example)
    assert not overlap_is_unclear("The dog runs before the cat there.", "The bird sings in a tree.", example)


def test_rrpo_takes_no_reply_for_wrong_that_may_be_right():
    paraphrase = response("perturbed", "Leftwards goes the crimson disc.", trust=0.0)
    assert pair_rrpo(TRUTH, [paraphrase], RRPO) == "trust_unclear"
    wrong = response("perturbed", "A red circle moves up.", candidate=1, reward=-9.0, trust=0.8)
    assert pair_rrpo(TRUTH, [paraphrase, wrong], RRPO).rejected == wrong.text
    assert pair_rrpo(TRUTH, [paraphrase, wrong], RrpoRecipe(trust="f1")).rejected == paraphrase.text  # as it was told to


def judged(*scores):
    names = [f"reply {number}" for number in range(len(scores))]
    responses = [response("plain", name, candidate=number, reward=-1.0 - number) for number, name in enumerate(names)]
    judgements = {
        name: Judgement(example_id="e", response=name, score=score, explanation=f"worth {score}", judge="j/1")
        for name, score in zip(names, scores, strict=True)
        if score is not None
    }
    return responses, judgements


def test_hound_takes_the_best_against_the_worst_and_the_likelier_of_equals():
    responses, judgements = judged(3, 5, 5, 1, 2, 1)
    pair = pair_hound(TRUTH, responses, HoundRecipe(judge=JUDGE), judgements)
    assert (pair.chosen, pair.rejected) == ("reply 1", "reply 3")
    source = json.loads(pair.provenance)
    assert (source["chosen"]["score"], source["rejected"]["score"]) == (5, 1)
    assert source["rejected"]["explanation"] == "worth 1"
    assert source["chosen"]["judge"] == "j/1"


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((), "not_judged"),
        ((None, None), "not_judged"),
        ((5, 3), "all_good"),
        ((1, 2), "all_bad"),
        ((3, 2.5), "no_score_gap"),
    ],
)
def test_hound_says_why_there_is_no_pair(scores, reason):
    responses, judgements = judged(*scores)
    assert pair_hound(TRUTH, responses, HoundRecipe(judge=JUDGE), judgements) == reason


def test_pairs_of_a_data_set_are_counted_by_reason_whatever_the_recipe():
    other = dataclasses.replace(TRUTH, id="f")
    responses, judgements = judged(5, 1)
    other = dataclasses.replace(other, video="gone.mp4")
    pairs, dropped = make_pairs(
        [data_row(TRUTH), data_row(other)],
        responses_of(TRUTH, responses),
        recipes.build(HoundRecipe(judge=JUDGE)),
        list(judgements.values()),
        decoded={"v.mp4"},
    )
    assert [pair.example_id for pair in pairs] == ["e"]
    assert dropped == {"video_quarantined": 1}


def responses_of(example, responses):
    return [dataclasses.replace(r, example_id=example.id) for r in responses]


# Trust that cannot tell


MOVES = Example(id="e", video="v.mp4", question="What happens?", answer="The circle moves to the left side, then it stops.")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The circle moves to the right side, then it halts.", "Leftwards."),  # long and wrong, short and right
        ("He turns to the left side, then stays.", "It goes right and on."),
        ("The circle moves left, then stops.", "The circle moves left"),  # one holds the other
        ("The circle moves left and stops.", "the circle MOVES left, and it stops"),  # one form and another
    ],
)
def test_a_pair_that_overlap_alone_cannot_order_is_dropped_and_counted(chosen, rejected):
    made = [response("hinted", chosen, trust=0.8), response("augmented", rejected, trust=0.2)]
    pairs, dropped = make_pairs([data_row(MOVES)], made, recipes.build(LeanpoRecipe()), decoded={"v.mp4"})
    assert (pairs, dropped) == ([], {"trust_unclear": 1})


def test_a_long_wrong_reply_never_wins_over_a_short_right_one_in_several_clauses():
    right, wrong = "He goes left and stops.", "The circle moves to the right side, then it stops."
    for chosen, rejected in ((right, wrong), (wrong, right)):
        made = [
            response("hinted", chosen, trust=trust_of(chosen, MOVES)),
            response("augmented", rejected, trust=trust_of(rejected, MOVES)),
        ]
        assert pair_leanpo(MOVES, made, LeanpoRecipe(min_trust_gap=0)) in ("all_wrong", "no_trust_gap")
    sure = response("hinted", right, trust=0.97)  # known of the two is only that the other one is wrong
    assert pair_leanpo(MOVES, [sure, made[0]], LeanpoRecipe()) == "empty_response"
    loser = dataclasses.replace(made[0], kind="augmented")
    assert pair_leanpo(MOVES, [sure, loser], LeanpoRecipe(min_trust_gap=0)).rejected == wrong


def test_replies_of_like_length_are_ordered_by_overlap_where_the_config_says_so():
    made = [
        response("hinted", "The circle moves to the left side, then it vanishes.", trust=0.9),
        response("augmented", "The square moves to the right side, then it grows.", trust=0.5),
    ]
    assert pair_leanpo(MOVES, made, LeanpoRecipe()) == "trust_unclear"
    assert pair_leanpo(MOVES, made, LeanpoRecipe(trust="f1")).rejected == made[1].text


@pytest.mark.parametrize("recipe", [LeanpoRecipe, RrpoRecipe])
def test_what_no_rule_can_tell_goes_to_the_judge_where_it_is_told_to(recipe):
    kind = "perturbed" if recipe is RrpoRecipe else "augmented"
    made = recipes.build(recipe(trust="judge", judge=JUDGE))
    texts = {"It is the crimson disc that heads left.": 5.0, "A crimson disc falls.": 2.0, "A disc.": None}
    responses = [
        response("hinted", TRUTH.answer, trust=1.0),
        response(kind, "A red circle moves up.", trust=0.0, reward=-9.0),
    ]
    responses += [response(kind, text, candidate=n + 1, trust=math.nan) for n, text in enumerate(texts)]
    task = made.judge_rows([TRUTH], responses)
    assert [json.loads(row)["response"] for row in task.rows] == list(texts)
    judgements = [
        Judgement(example_id="e", response=text, score=score, explanation="", judge="j")
        for text, score in texts.items()
        if score
    ]
    [pair], _ = make_pairs([data_row(TRUTH)], responses, made, judgements, decoded={"v.mp4"})
    assert pair.rejected == ("A crimson disc falls." if recipe is RrpoRecipe else "A red circle moves up.")
    assert pair.rejected_trust == (0.25 if recipe is RrpoRecipe else 0.0)
    pairs, dropped = make_pairs([data_row(TRUTH)], [responses[0], *responses[2:]], made, [], decoded={"v.mp4"})
    assert (pairs, dropped) == ([], {"trust_unclear": 1})  # nothing was judged


def test_what_the_judge_said_in_earlier_rounds_is_the_trust_of_what_is_replayed(tmp_path):
    run, recipe = (
        RunFolder.open(str(tmp_path)),
        recipes.build(LeanpoRecipe(negatives="replayed", trust="judge", judge=JUDGE)),
    )
    made = [response("replayed", text, candidate=n, trust=math.nan) for n, text in enumerate(("A disc falls.", "A disc."))]
    judgement = Judgement(example_id="e", response="A disc falls.", score=2.0, explanation="", judge="j")
    files.write_table(run.stage("responses", 0) / "responses.parquet", made)
    files.write_table(run.stage("pairs", 0) / "pairs.parquet", [])
    files.write_table(run.stage("pairs", 0) / "judgements.parquet", [judgement])
    rollout = types.SimpleNamespace(round_index=1, recipe=recipe)
    replays = Pairs(run_folder=run, rollout=rollout, rows=[], engines=None)._replays().responses
    assert [(r.text, r.trust) for r in replays if not math.isnan(r.trust)] == [("A disc falls.", 0.25)]
    winner = response("hinted", TRUTH.answer, trust=1.0)
    assert pair_leanpo(TRUTH, [winner, *replays], recipe.config).rejected == "A disc falls."
    assert pair_leanpo(TRUTH, [winner, made[1]], recipe.config) == "trust_unclear"


def half_right(reply, example):
    return None if "unknown" in reply else 0.5 if example.answer.split()[-1] in reply else False


def test_a_scorer_of_your_own_says_what_is_trusted():
    config = LeanpoRecipe(trust=f"{__name__}:half_right", min_trust_gap=0.5)
    made = [response(kind, text) for kind, text in (("hinted", "left."), ("augmented", "up"), ("augmented", "unknown"))]
    made = [dataclasses.replace(r, trust=trust_by(config.trust, r.text, TRUTH)) for r in made]
    assert pair_leanpo(TRUTH, made, config).rejected == "up"
    assert pair_leanpo(TRUTH, [made[0], made[2]], config) == "trust_unclear"
    wrong = dataclasses.replace(made[0], trust=0.4)
    assert pair_leanpo(TRUTH, [wrong, made[1]], LeanpoRecipe(trust=config.trust)) == "all_wrong"


@pytest.mark.parametrize(
    ("recipe", "raw", "message"),
    [
        ("leanpo", {"trust": "bleu"}, "unknown recipe.trust 'bleu'"),
        ("leanpo", {"trust": "no.such.module:x"}, "there is no module"),
        ("leanpo", {"trust": "json:__name__"}, "cannot be called"),
        ("leanpo", {"trust": "judge"}, "trust=judge needs recipe.judge"),
        ("leanpo", {"judge": JUDGE.model_dump()}, "nothing uses it; set trust to judge"),
        ("rrpo", {"trust": "judge", "wrong_by": "judge", "judge": JUDGE.model_dump()}, "set one of the two"),
        ("rrpo", {"trust": "judge", "rewrite": "policy", "judge": JUDGE.model_dump()}, "trust=judge decides after"),
        ("hound", {"trust": "judge", "judge": JUDGE.model_dump()}, "pairs by its judge's scores already"),
        ("given", {"trust": "exact"}, "unknown key recipe.trust"),
    ],
)
def test_a_trust_that_cannot_work_is_refused_when_the_config_is_loaded(recipe, raw, message):
    config = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t.jsonl"}, "recipe": {"name": recipe, **raw}}
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(config)


def test_without_trust_and_judge_a_recipe_is_recorded_as_before_they_existed():
    assert not {"trust", "judge"} & LeanpoRecipe().deciding().keys()
    assert LeanpoRecipe(trust="f1").deciding()["trust"] == "f1"
    assert "sees" not in JUDGE.deciding()


@pytest.mark.parametrize(
    ("answer", "options", "right", "wrong"),
    [
        ("B", ("A. left", "B. right"), "The answer is (B).", "A"),
        ("No", (), "No, it does not move.", "Yes"),
        ("3", (), "There are three of them.", "4"),
        ("The circle moves left.", (), "Left.", "The circle moves right."),
    ],
)
def test_a_right_reply_is_never_the_rejected_side_whatever_its_form(answer, options, right, wrong):
    example = Example(id="e", video="v.mp4", question="Which way does the circle move?", answer=answer, options=options)
    for chosen, rejected in ((right, wrong), (wrong, right), (wrong, wrong + "!"), (right, right + "!")):
        made = [
            response("hinted", chosen, trust=trust_of(chosen, example)),
            response("augmented", rejected, trust=trust_of(rejected, example)),
        ]
        outcome = pair_leanpo(example, made, LeanpoRecipe())
        assert (outcome if isinstance(outcome, str) else (outcome.chosen, outcome.rejected)) == (
            (right, wrong) if (chosen, rejected) == (right, wrong) else "no_trust_gap"
        )
    half = [response("hinted", "x", trust=0.5), response("augmented", "y", trust=0.0)]
    if options or answer in ("No", "3"):
        assert pair_leanpo(example, half, LeanpoRecipe()) == "all_wrong"


def test_a_reply_that_is_known_to_be_wrong_is_never_chosen_however_much_of_it_overlaps():
    example = Example(id="e", video="v.mp4", question="Which way does the circle move?", answer="The circle moves left.")
    made = [
        response("hinted", "The circle moves right.", trust=trust_of("The circle moves right.", example)),
        response("augmented", "It heads leftwards slowly.", trust=trust_of("It heads leftwards slowly.", example)),
    ]
    assert made[0].trust > made[1].trust
    assert pair_leanpo(example, made, LeanpoRecipe()) == "all_wrong"


def test_a_reply_that_only_says_less_is_not_a_wrong_one():
    short = response("perturbed", "Leftwards.", trust=0.97)
    assert [pair_rrpo(TRUTH, [short], RrpoRecipe(trust=name)) for name in (None, "f1")] == ["trust_unclear"] * 2


# Replies cut off at their limit of tokens


def test_a_reply_that_was_cut_off_is_on_neither_side():
    cut = [
        response("hinted", "right, and", trust=1.0, finish="length"),
        response("augmented", "wrong, and", finish="length"),
    ]
    whole = [response("hinted", "right", candidate=1, trust=1.0), response("augmented", "wrong", candidate=1)]
    made = pair_leanpo(EXAMPLE, [*cut, *whole], LeanpoRecipe())
    assert (made.chosen, made.rejected) == ("right", "wrong")
    assert pair_leanpo(EXAMPLE, [cut[0], whole[1]], LeanpoRecipe()) == "cut_by_length"
    assert pair_leanpo(EXAMPLE, [whole[0], cut[1]], LeanpoRecipe()) == "cut_by_length"
    replayed = response("replayed", "wrong", finish="length")  # its new segment is as long as the old one, on purpose
    assert pair_leanpo(EXAMPLE, [whole[0], replayed], LeanpoRecipe(negatives="replayed")).rejected == "wrong"


def test_rrpo_and_hound_leave_out_what_was_cut_off():
    cut, whole = response("perturbed", "wrong, and", finish="length"), response("perturbed", "off", candidate=1, reward=-9.0)
    config = RrpoRecipe(trust="exact")
    assert pair_rrpo(EXAMPLE, [cut], config) == "cut_by_length"
    assert pair_rrpo(EXAMPLE, [cut, whole], config).rejected == "off"
    config = HoundRecipe(judge=JUDGE)
    made = [response("plain", "good", finish="length"), response("plain", "bad", candidate=1)]
    scores = {
        text: Judgement(example_id="e", response=text, score=score, explanation="", judge="j")
        for text, score in (("good", 5.0), ("bad", 1.0))
    }
    assert pair_hound(EXAMPLE, made, config, scores) == "cut_by_length"
    assert pair_hound(EXAMPLE, made[:1], config, scores) == "cut_by_length"
    assert pair_hound(EXAMPLE, [response("plain", "good"), made[1]], config, scores).chosen == "good"


def test_no_recipe_of_your_own_can_learn_from_what_was_cut_off():
    class Careless(Recipe):
        def pair(self, row, responses, evidence):
            return pair_leanpo(
                row.example, [dataclasses.replace(r, finish_reason="stop") for r in responses], LeanpoRecipe()
            )

    made = [response("hinted", "right", trust=1.0), response("augmented", "wrong", finish="length")]
    pairs, dropped = make_pairs([data_row(EXAMPLE)], made, Careless(LeanpoRecipe()), decoded={"v.mp4"})
    assert (pairs, dropped) == ([], {"cut_by_length": 1})


def test_many_cut_replies_are_a_warning_with_the_way_out():
    from pipelines.stages.advice import cut_facts, cut_warning

    config = LeanpoRecipe(max_new_tokens=7)
    made = [response("hinted", "x", candidate=n, finish="length" if n < 2 else "stop") for n in range(20)]
    made += [response("replayed", "x", finish="length")] * 50 + [response("truth", "x", finish="")] * 50
    facts = cut_facts(made, recipes.build(config))
    assert facts == {"cut_by_length": {"cut": 2, "sampled": 20}}
    assert "2 of 20 replies (10%)" in cut_warning(facts, config)
    assert "raise recipe.max_new_tokens" in cut_warning(facts, config)
    assert cut_warning({"cut_by_length": {"cut": 1, "sampled": 20}}, config) is None
    assert cut_facts(made[2:20], recipes.build(config)) == {}


@pytest.mark.parametrize(
    ("reason", "ways_out"),
    [
        ("trust_unclear", ("recipe.trust=judge", "recipe.trust=f1")),
        ("unparsable_report", ("recipe.judge", "recipe.report_prompt", "recipe.report_tokens")),
        ("not_judged", ("recipe.judge", "recipe.judge.prompt")),
    ],
)
def test_where_nobody_could_tell_the_advice_names_what_helps(reason, ways_out):
    from pipelines.stages.advice import unclear_warning

    said = unclear_warning({reason: 6, "no_reward_gap": 2}, 8)
    assert said.startswith("6 of 8 examples gave no pair because ")
    assert all(way in said for way in ways_out)
    assert unclear_warning({reason: 1, "no_reward_gap": 7}, 8) is None


def test_the_summary_holds_the_warning(tmp_path):
    from pipelines.summary import write_summary

    raw = {"run_dir": str(tmp_path), "model": {"path": "m"}, "data": {"train": "t.jsonl"}, "recipe": {"max_new_tokens": 7}}
    run = RunFolder.open(str(tmp_path))
    found = {"kept": 1, "dropped": {"cut_by_length": 3}, "cut_by_length": {"cut": 9, "sampled": 20}}
    files.write_json(run.stage("pairs", 0) / "manifest.json", found)
    base = PolicyVersion(version="v", path="m")
    summary = write_summary(parse_config(raw), run, base=base, aligned=None, wall_s={})
    assert summary["cut_by_length"] == {"cut": 9, "sampled": 20}
    assert len(summary["warnings"]) == 1
    assert "9 of 20 replies (45%)" in summary["warnings"][0]
    files.write_json(run.stage("pairs", 0) / "manifest.json", {"kept": 1, "dropped": {}})
    assert write_summary(parse_config(raw), run, base=base, aligned=None, wall_s={})["warnings"] == []
