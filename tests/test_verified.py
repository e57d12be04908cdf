"""Recipe verified: what is said of a reply, which pairs that gives, and what is asked of the judge."""

import dataclasses
import json
import math
import types

import pytest

from pipelines import check
from pipelines.stages.groups import with_accuracy
from pipelines.stages.pairs import Pairs
from pipelines.stages.responses import read_responses
from vidalign import files, recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import parse_config
from vidalign.config.verifying import VerifiedRecipe
from vidalign.data.reading import DataRow
from vidalign.data.rows import ExampleRow
from vidalign.data.scorers import trust_by
from vidalign.errors import ConfigError
from vidalign.files import RunFolder
from vidalign.recipes import verified
from vidalign.recipes.pairing import make_pairs
from vidalign.types import Example, Judgement, PreferencePair, Response, ResponseGroup

JUDGE = {"kind": "openai", "model": "m", "base_url": "http://x/v1"}
EXAMPLE = Example(id="e", video="v", question="Which colour comes last?", answer="Red.")
LONG = "first a red circle moves left and then a blue one moves right"


def recipe(**options):
    return recipes.build(VerifiedRecipe(judge=JUDGE, **options))


def reply(text, *, trust=1.0, candidate=0, reward=-1.0, **more):
    made = Response(
        example_id="e",
        kind="plain",
        candidate=candidate,
        turn=0,
        text=text,
        token_ids=tuple(range(len(text.split()))),
        log_probs=(),
        policy_version="p",
        seed=0,
        temperature=1.0,
        top_p=1.0,
        finish_reason="stop",
        reward=reward,
        trust=trust,
    )
    return dataclasses.replace(made, **more)


def thought(reasoning, answer):
    return f"<think> {reasoning} </think> {answer}"


def judged(text, score):
    return Judgement(example_id="e", response=text, score=score, explanation="", judge="m")


def paired(replies, judgements=(), **options):
    row = DataRow(example=EXAMPLE, row=ExampleRow(id="e", video="v", question=EXAMPLE.question, answer="Red."), where="t:1")
    return make_pairs([row], replies, recipe(**options), judgements, decoded={"v"})


GOOD, BETTER = thought("red is last", "Red."), thought(LONG + " so red is last", "Red.")
TORN, WRONG = thought("blue is last", "Red."), thought("blue is last", "Blue.")


def test_one_pair_of_each_kind_against_the_longest_verified_reply():
    replies = [reply(GOOD), reply(BETTER, candidate=1), reply(TORN, candidate=2), reply(WRONG, trust=0.0, candidate=3)]
    pairs, dropped = paired(replies, [judged(GOOD, 5.0), judged(BETTER, 5.0), judged(TORN, 1.0)])
    assert dropped == {}
    assert {pair.chosen for pair in pairs} == {BETTER}
    assert [(json.loads(pair.provenance)["rule"], pair.rejected) for pair in pairs] == [
        ("consistency", TORN),
        ("penalty", WRONG),
    ]
    assert [pair.rejected for pair in paired(replies, [judged(GOOD, 5.0)], kinds=["penalty"])[0]] == [WRONG]
    assert {pair.chosen for pair in paired(replies, [judged(GOOD, 5.0), judged(BETTER, 5.0)], max_tokens=9)[0]} == {GOOD}


def test_the_likelier_error_is_rejected():
    other = thought("green is last", "Green.")
    replies = [reply(GOOD), reply(WRONG, trust=0.0, candidate=1, reward=-2.0), reply(other, trust=0.0, candidate=2)]
    assert [pair.rejected for pair in paired(replies, [judged(GOOD, 5.0)])[0]] == [other]


def test_what_nobody_could_tell_is_on_no_side():
    unclear = reply(thought("who knows", "Perhaps."), trust=float("nan"), candidate=1)
    unjudged = reply(BETTER, candidate=2)  # the judge's reply was not understood
    assert paired([reply(GOOD), unclear, unjudged], [judged(GOOD, 5.0)]) == ([], {"all_verified": 1})
    assert paired([unclear, unjudged]) == ([], {"no_verified": 1})
    assert paired([]) == ([], {"missing": 1})
    assert paired([reply(GOOD, finish_reason="length")]) == ([], {"cut_by_length": 1})


def test_a_reply_without_reasoning_contradicts_nothing():
    pairs, _ = paired([reply("Red."), reply("Blue.", trust=0.0, candidate=1)])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("Red.", "Blue.")]


def test_repetition_is_a_share_of_runs_of_four_words():
    assert verified.repetition("a b c") == 0.0
    assert verified.repetition("a b c d e") == 0.0
    assert verified.repetition("a b c d " * 3) == 1 - 4 / 9
    again = thought("red is last " * 9, "Red.")
    pairs, _ = paired([reply(GOOD), reply(again, candidate=1)], [judged(GOOD, 5.0), judged(again, 5.0)])
    assert [pair.rejected for pair in pairs] == [again]


def test_the_judge_reads_the_reasoning_without_its_answer():
    replies = [reply(GOOD), reply(TORN, candidate=1), reply(WRONG, trust=0.0, candidate=2), reply("Red.", candidate=3)]
    task = recipe().judge_rows([EXAMPLE], replies)
    rows = [json.loads(row) for row in task.rows]
    assert [row["response"] for row in rows] == [GOOD, TORN]  # the others need no judge
    asked = []

    def chat(conversations):
        asked.extend(each[0]["content"] for each in conversations)
        return ["Red", "<think> it is said </think> Blue."]

    made = task.work(rows, JudgeConfig(**JUDGE), chat, "m")
    assert [row["score"] for row in made] == [5.0, 1.0]
    assert all("Red." not in text and EXAMPLE.question in text for text in asked)
    assert "red is last" in asked[0]
    [lost] = task.work(rows[:1], JudgeConfig(**JUDGE), lambda _: [""], "m")
    assert lost["reason"] == "unparsable_judgement"
    assert recipe().judge_rows([EXAMPLE], [reply("Red.")]) is None


def test_verdicts_are_counted():
    made = recipe().verdicts([reply(TORN), reply(WRONG, trust=0.0)], {"e": {TORN: judged(TORN, 1.0)}})
    assert [(each.accurate, each.consistent) for each in made] == [(True, False), (False, None)]
    counts = verified.counts(made, 0.2)
    assert counts == {"replies": 2, "accurate": 1, "wrong": 1, "inconsistent": 1, "repetitive": 0, "unusable": 0}


def test_it_needs_groups_before_it():
    groups = {"recipe": {"name": "group"}, "objective": {"name": "grpo"}}
    pairs = {"recipe": {"name": "verified", "judge": JUDGE}, "objective": {"name": "dpo"}}
    raw = {"run_dir": "r", "model": {"path": "examples/shapes/model"}, "data": {"train": "t.jsonl"}}
    for rounds in ([pairs], [groups, {**pairs, "repeat": 2}]):
        with pytest.raises(ConfigError, match="there are none; write rounds as a list of steps"):
            check.before(parse_config({**raw, "rounds": rounds}), ["rollout"])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"kinds": []}, "names no kind"), ({"judge": {**JUDGE, "sees": "video"}}, "about the reasoning alone")],
)
def test_what_it_cannot_be(options, says):
    with pytest.raises(ValueError, match=says):
        VerifiedRecipe(**{"judge": JUDGE, **options})


def test_the_stage_reads_how_long_its_replies_are(tmp_path):
    files.write_table(tmp_path / "responses.parquet", [reply(GOOD), reply(BETTER, candidate=1)])
    replies = read_responses(tmp_path, tokens=recipe().needs_tokens)
    assert [made.num_tokens for made in recipe().verdicts(replies, {})] == [len(text.split()) for text in (GOOD, BETTER)]
    assert read_responses(tmp_path)[0].token_ids == ()


def test_what_repeats_without_spaces_between_words_is_repetitive():
    said = "红色的圆向左移动，" * 12
    assert verified.repetition(said) > 0.8
    assert verified.repetition("首先一个红色的圆向左移动，然后一个蓝色的方块向右移动，所以最后是蓝色。") < 0.2
    again = thought(said, "Red.")
    pairs, _ = paired([reply(GOOD), reply(again, candidate=1)], [judged(GOOD, 5.0), judged(again, 5.0)])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(GOOD, again)]


def test_an_empty_reply_is_on_no_side():
    """A pair without a rejected text is one that only objective sft can learn from."""
    empty = reply(" ", trust=0.0, candidate=1, reward=-0.01)
    wrong = reply(WRONG, trust=0.0, candidate=2)
    assert [pair.rejected for pair in paired([reply(GOOD), empty, wrong], [judged(GOOD, 5.0)])[0]] == [WRONG]
    assert paired([reply(GOOD), empty], [judged(GOOD, 5.0)]) == ([], {"all_verified": 1})
    assert paired([empty]) == ([], {"empty_response": 1})


def test_the_judge_reads_the_end_of_a_long_reasoning():
    """The reasoning ends with what it leads to: without that, a judge would have to guess."""
    text = thought("a red circle is seen. " * 200 + "So the last one is red", "Red.")
    [row] = [json.loads(row) for row in recipe().judge_rows([EXAMPLE], [reply(text)]).rows]
    asked = []

    def chat(conversations):
        asked.extend(each[0]["content"] for each in conversations)
        return ["Red"]

    verified.consistency([row], JudgeConfig(**JUDGE, max_response_chars=100), chat, "m")
    assert "So the last one is red" in asked[0]
    assert "[…]" in asked[0]
    assert len(asked[0]) < 600


def test_replies_to_shuffled_frames_and_texts_with_white_space():
    shuffled = reply(BETTER, candidate=0, kind="shuffled")
    spaced = reply(f" {BETTER}\n", candidate=1)
    wrong = reply(WRONG, trust=0.0, candidate=2)
    pairs, _ = paired([reply(GOOD), shuffled, wrong], [judged(GOOD, 5.0), judged(BETTER, 5.0)])
    assert {pair.chosen for pair in pairs} == {GOOD}
    pairs, _ = paired([spaced, wrong], [judged(BETTER, 5.0)])
    assert {pair.chosen for pair in pairs} == {BETTER}
    task = recipe().judge_rows([EXAMPLE], [spaced, dataclasses.replace(spaced, candidate=2), shuffled])
    assert [json.loads(row)["response"] for row in task.rows] == [BETTER]


def test_the_bounds_themselves_and_ties():
    half, below = reply(GOOD, trust=0.5), reply(WRONG, trust=0.49, candidate=1)
    assert [each.accurate for each in recipe().verdicts([half, below], {})] == [True, False]
    assert recipe().judge_rows([EXAMPLE], [half]) is not None
    share = verified.repetition(again := thought("red is last " * 3 + "and", "Red."))
    replies = [reply(GOOD), reply(again, candidate=1)]
    judgements = [judged(GOOD, 5.0), judged(again, 5.0)]
    assert [pair.rejected for pair in paired(replies, judgements, max_repetition=share)[0]] == [again]
    assert paired(replies, judgements, max_repetition=share + 1e-6)[0] == []
    [longest] = paired([*replies, below], judgements, max_tokens=len(again.split()), kinds=["penalty"], max_repetition=1)[0]
    assert longest.chosen == again
    same = thought("red comes last", "Red.")
    equal = [reply(GOOD), reply(same, candidate=1, reward=-0.5), reply(same + " ", candidate=2, reward=-0.5), below]
    [pair] = paired(equal, [judged(GOOD, 5.0), judged(same, 5.0)])[0]
    assert json.loads(pair.provenance)["chosen"]["candidate"] == 1
    others = [reply(f"Blue{mark}", trust=0.0, candidate=at) for at, mark in ((1, "."), (2, "!"))]
    assert [pair.rejected for pair in paired([reply(GOOD), *others[::-1]], [judged(GOOD, 5.0)])[0]] == ["Blue."]


def test_what_cannot_be_told_is_counted_as_nothing():
    made = recipe().verdicts([reply("Perhaps.", trust=float("nan")), reply(GOOD), reply(WRONG, trust=0.0)], {})
    assert [(each.accurate, each.consistent) for each in made] == [(None, True), (True, None), (False, None)]
    counts = verified.counts(made, 0.2)
    assert counts == {"replies": 3, "accurate": 1, "wrong": 1, "inconsistent": 0, "repetitive": 0, "unusable": 0}
    assert verified.counts([dataclasses.replace(made[0], repetition=0.2)], 0.2)["repetitive"] == 1


@pytest.mark.parametrize(
    ("question", "options", "stated", "implied", "score"),
    [
        ("Which way?", ["left", "right"], "left", "It cannot be told from the reasoning.", None),
        ("Which way?", ["left", "right"], "A", "A. left", 5.0),
        ("Which way?", ["left", "right"], "left", "B", 1.0),
        ("Does it move?", [], "Yes.", "I cannot tell.", None),
        ("Does it move?", [], "Yes.", "No", 1.0),
        ("How many dots?", [], "3", "The reasoning does not say.", None),
        ("How many dots?", [], "3", "three", 5.0),
        ("What happens?", [], "A red circle moves left.", "unclear", None),
    ],
)
def test_what_a_reasoning_leads_to_is_never_guessed(question, options, stated, implied, score):
    example = Example(id="e", video="v", question=question, answer=stated, options=tuple(options))
    text = thought("it is so", stated)
    [row] = [json.loads(row) for row in recipe().judge_rows([example], [reply(text)]).rows]
    [made] = verified.consistency([row], JudgeConfig(**JUDGE), lambda _: [implied], "m")
    assert made.get("score") == score


def test_what_is_accurate_is_what_the_rounds_of_groups_held_to_be_right(tmp_path):
    """An overlap with the ground truth is not: "a red circle jumps" has four fifths of "a red circle moves"."""
    example = Example(id="e", video="v", question="What happens?", answer="A red circle moves left across the screen.")
    right, overlaps, unlike = (
        "A red circle moves left across the screen.",
        "A red circle jumps across the screen.",
        "It flies off.",
    )
    judged_right, judged_wrong = "The circle drifts to the left.", "A red circle stays where it is on the screen."
    texts = (right, overlaps, unlike, judged_right, judged_wrong)
    replies = [
        reply(text, trust=trust_by(None, text, example), candidate=at, reward=-float(at)) for at, text in enumerate(texts)
    ]
    assert replies[1].trust >= verified.RIGHT
    group = ResponseGroup(
        id="g",
        example_id="e",
        video="v",
        question=example.question,
        answer=example.answer,
        texts=texts,
        rewards=(1.0, float("nan"), float("nan"), 1.0, 0.0),
        left_out=("", "not_scored", "not_scored", "", ""),
        policy_version="p",
        tokens="",
        parts=json.dumps({"accuracy": [1.0, None, None, 1.0, 0.0], "format": [1.0] * 5}),
    )
    told = [each.trust for each in with_accuracy(replies, [group], [example])]
    assert [None if math.isnan(each) else each for each in told] == [1.0, None, None, 1.0, 0.0]
    told = [
        each.trust for each in with_accuracy(replies, [], [example])
    ]  # a round without that reward, or without this group
    assert [None if math.isnan(each) else each for each in told] == [1.0, None, None, None, None]

    run = RunFolder.open(str(tmp_path))
    rollout = types.SimpleNamespace(round_index=1, recipe=recipe(), folder=run.stage("responses", 1), seed=0)
    files.write_table(run.stage("responses", 0) / "responses.parquet", replies)
    files.write_table(run.stage("pairs", 0) / "groups.parquet", [group])
    files.write_table(rollout.folder / "responses.parquet", [])
    files.write_places(rollout.folder / "frames.json", {"v": "v.npy"})
    row = DataRow(example=example, row=ExampleRow(id="e", video="v", question="What happens?", answer=right), where="t:1")
    stage = Pairs(run_folder=run, rollout=rollout, rows=[row], engines=None)
    assert stage.run()["verdicts"]["accurate"] == 2
    [pair] = files.read_table(stage.folder / "pairs.parquet", PreferencePair)
    assert (pair.chosen, pair.rejected) == (right, judged_wrong)
