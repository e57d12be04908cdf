"""Recipe reagent: what is asked, how a critic's report is read, and which pairs that gives."""

import dataclasses
import json

import pytest
from test_recipe_units import CLIPS, EXAMPLES, FakeEngine

from vidalign import prompts, recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import parse_config
from vidalign.config.reflecting import ReagentRecipe
from vidalign.data.reading import DataRow
from vidalign.data.rows import ExampleRow
from vidalign.errors import ConfigError
from vidalign.recipes import critic
from vidalign.recipes.pairing import make_pairs
from vidalign.types import Judgement

LABELS = [part.replace("_", " ").capitalize() for part in critic.PARTS]
ROW = DataRow(
    example=EXAMPLES[0], row=ExampleRow(id="a", video="a.mp4", question="Which way?", answer="left"), where="rows:1"
)


def report(*values):
    return "It is so.\n" + "\n".join(f"{label}: {value}" for label, value in zip(LABELS, values, strict=True))


FIVES = dict(zip(critic.PARTS, (5, 4, 3, 2.5, 0), strict=True))


@pytest.mark.parametrize(
    "reply",
    [
        report(5, 4, 3, 2.5, 0),
        report("5/5", "**4**", "3 out of 5", "[2.5]", "0."),
        report(1, 1, 1, 1, 1).replace("1", "5").join(["<think>", "</think>\n"]) + report(5, 4, 3, 2.5, 0),
        "\n".join(f"{n}. **{label}**: {v}" for n, (label, v) in enumerate(zip(LABELS, FIVES.values(), strict=True), 1)),
        "\n".join(f"- {label.upper()} = {v}/5" for label, v in zip(LABELS, FIVES.values(), strict=True)),
        "```json\n" + json.dumps(FIVES) + "\n```",
        json.dumps({label: str(value) for label, value in zip(LABELS, FIVES.values(), strict=True)}, indent=1),
        report("N", "N", "N", "N", "N") + "\n" + report(5, 4, 3, 2.5, 0),
        json.dumps(dict.fromkeys(critic.PARTS, "N")) + "\n" + json.dumps(FIVES),
    ],
)
def test_five_numbers_are_read(reply):
    found = critic.parse_report(reply)
    assert found == FIVES
    assert critic.reward(found) == pytest.approx(14.5 / 25)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "The answer is excellent.",
        report("N", "N", "N", "N", "N"),
        report(5, 4, 3, 2, "very good"),
        report(5, 4, 3, 2, 6),
        report(5, 4, 3, 2, 5.5),
        report(5, 4, 3, 2, -1),
        report(5, 4, 3, 2, "4 or 5"),
        "\n".join(report(5, 4, 3, 2, 1).splitlines()[:-1]),
        report(5, 4, 3, 2, 1) + "\nLinguistic precision: 2",
        "<think>" + report(5, 4, 3, 2, 1),
        "<think>" + report(5, 4, 3, 2, 1) + "</think> It is so.",
        "5 4 3 2 1",
    ],
)
def test_what_is_unclear_gives_no_number(reply):
    assert critic.parse_report(reply) is None
    assert critic.reward(None) is None


def responses_of(scripted, **options):
    """The responses of an engine that answers by the kind of its prompt: {kind: (answer, report on it)}."""
    by_answer = dict(scripted.values())
    heads = {
        "keep": "conservative",
        "Look again": "neutral",
        "Doubt": "aggressive",
    }

    def answer(request):
        if request.prompt.startswith("Question:"):
            return by_answer[request.prompt.split("Answer to judge: ")[1].split("\n")[0]]
        return scripted[next((kind for sign, kind in heads.items() if sign.lower() in request.prompt.lower()), "plain")][0]

    engine, recipe = FakeEngine(answer), recipes.build(ReagentRecipe(**options))
    made = recipe.respond(engine, EXAMPLES[:1], CLIPS[:1], policy_version="p", seed=3)
    return engine, recipe, made


SCRIPT = {
    "plain": ("To the right.", report(2, 2, 2, 2, 2)),
    "conservative": ("Right, it seems.", report(1, 1, 1, 1, 1)),
    "neutral": ("To the left.", report(5, 5, 5, 4, 4)),
    "aggressive": ("Upwards.", "I cannot say."),
}


def test_an_answer_is_reported_on_reflected_on_three_times_and_each_reported_on():
    engine, _, made = responses_of(SCRIPT)
    told = [(r.kind, r.candidate, r.turn) for r in made]
    assert told[:4] == [("plain", 0, 0), ("conservative", 0, 1), ("neutral", 0, 2), ("aggressive", 0, 3)]
    assert told[4:] == [("report", 0, turn) for turn in range(4)]
    assert len({request.seed for request in engine.requests}) == len(engine.requests) == 8
    asked_of = [request.prompt for request in engine.requests]
    assert all("Which way?" in prompt for prompt in asked_of), "the critic sees the question"
    first, reflections = engine.requests[1], engine.requests[2:5]
    assert (first.temperature, first.max_new_tokens) == (0.0, 192)
    assert all("To the right." in r.prompt and "visual alignment 2 of 5" in r.prompt for r in reflections)
    assert [r.reward == r.reward for r in made] == [True] * 4 + [False] * 4, "reports are not scored"


def test_the_best_report_wins_and_one_that_cannot_be_read_is_counted_and_in_no_pair():
    _, recipe, made = responses_of(SCRIPT)
    pairs, dropped = make_pairs([ROW], made, recipe, (), decoded={"a.mp4"})
    assert not dropped
    [pair] = pairs
    assert (pair.chosen, pair.rejected) == ("To the left.", "Right, it seems.")
    source = json.loads(pair.provenance)
    assert source["chosen"]["critic_reward"] == pytest.approx(23 / 25)
    assert source["rejected"]["critic_reward"] == pytest.approx(5 / 25)
    assert recipe.counted(recipe.verdicts(made, {})) == {"answers": 4, "unparsable_report": 1}


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({kind: (text, "I cannot say.") for kind, (text, _) in SCRIPT.items()}, {}, "unparsable_report"),
        ({"neutral": ("To the left.", report(3, 3, 3, 2, 2))}, {"min_reward_gap": 0.4}, "no_reward_gap"),
        ({kind: (f"{kind} left.", report(4, 4, 4, 4, 4)) for kind in SCRIPT}, {}, "no_reward_gap"),
    ],
)
def test_why_there_is_no_pair(changes, options, reason):
    _, recipe, made = responses_of({**SCRIPT, **changes}, **options)
    pairs, dropped = make_pairs([ROW], made, recipe, (), decoded={"a.mp4"})
    assert (pairs, dropped) == ([], {reason: 1})


def test_a_gap_that_is_just_large_enough_is_one():
    changes = {"neutral": ("To the left.", report(2, 2, 2, 2, 2)), "conservative": ("So.", report(1, 1, 1, 1, 1))}
    _, recipe, made = responses_of({**SCRIPT, **changes})
    assert len(make_pairs([ROW], made, recipe, (), decoded={"a.mp4"})[0]) == 1, "0.4 - 0.2 is 0.2"


def test_equal_rewards_go_by_what_the_policy_finds_likelier():
    same = {kind: (text, report(4, 4, 4, 4, 4)) for kind, text in zip(SCRIPT, ("aaaa", "aa", "aaa", "a"), strict=True)}
    _, recipe, made = responses_of({**same, "plain": ("aaaa", report(1, 1, 1, 1, 1))})
    [pair] = make_pairs([ROW], made, recipe, (), decoded={"a.mp4"})[0]
    assert pair.chosen == "a", "the shorter one is likelier here"


def test_what_is_equal_in_all_goes_by_its_turn():
    """Rewards and likelihoods alike: the first is chosen, and of the worst the first is rejected."""
    good, bad = report(4, 4, 4, 4, 4), report(1, 1, 1, 1, 1)
    same = {
        kind: (text, said) for kind, text, said in zip(SCRIPT, ("aa", "bb", "cc", "dd"), (good, bad, good, bad), strict=True)
    }
    _, recipe, made = responses_of(same)
    [pair] = make_pairs([ROW], made, recipe, (), decoded={"a.mp4"})[0]
    assert (pair.chosen, pair.rejected) == ("aa", "bb")
    [again] = make_pairs([ROW], made[::-1], recipe, (), decoded={"a.mp4"})[0]
    assert again == pair, "in whatever order they are stored"


def test_one_report_that_can_be_read_makes_no_pair():
    one = {kind: (text, said if kind == "plain" else "?") for kind, (text, said) in SCRIPT.items()}
    _, recipe, made = responses_of(one)
    assert recipe.pair(ROW, made, recipes.base.Evidence()) == "unparsable_report"
    two = {**one, "neutral": SCRIPT["neutral"]}
    _, recipe, made = responses_of(two)
    assert recipe.pair(ROW, made, recipes.base.Evidence()).chosen == "To the left."
    assert [each.report for each in recipe.verdicts(made, {})][1] == "?"
    assert next(each.report for each in recipe.verdicts(made, {})).startswith("visual alignment 2 of 5")


def test_what_is_cut_or_empty_is_not_reflected_on():
    _, recipe, made = responses_of(SCRIPT)
    cut = [dataclasses.replace(r, finish_reason="length") if r.kind != "report" else r for r in made]
    assert recipe.pair(ROW, cut, recipes.base.Evidence()) == "cut_by_length"
    assert recipe.pair(ROW, [], recipes.base.Evidence()) == "missing"

    engine = FakeEngine(lambda request: "")
    made = recipes.build(ReagentRecipe()).respond(engine, EXAMPLES, CLIPS, policy_version="p", seed=3)
    assert [r.kind for r in made] == ["plain", "plain"]


SEEING = {"kind": "openai", "model": "m", "base_url": "http://x/v1", "sees": "video"}


def test_another_critic_decides_by_what_it_sees():
    _, recipe, made = responses_of(SCRIPT, judge=SEEING)
    assert [r.kind for r in made].count("report") == 1, "the policy reports on the first answer alone, to reflect on it"
    task = recipe.judge_rows(EXAMPLES[:1], made)
    rows = [json.loads(row) for row in task.rows]
    assert [row["response"] for row in rows] == [text for text, _ in SCRIPT.values()]
    assert rows[0]["videos"] == ["a.mp4"]
    replies = iter([report(4, 4, 4, 4, 4), "?", report(1, 1, 1, 1, 1), report(2, 2, 2, 2, 2), "Again: ?"])
    conversations = []

    def chat(asked):
        conversations.extend(asked)
        return [next(replies) for _ in asked]

    said = task.work(rows, JudgeConfig(**SEEING), chat, "m")
    assert "Which way?" in conversations[0][0]["content"]
    assert conversations[-1][-1]["content"] == critic.REMINDER
    judged = [Judgement.from_row(row) for row in said if "score" in row]
    assert [row["reason"] for row in said if "score" not in row] == ["unparsable_report"]
    [pair] = make_pairs([ROW], made, recipe, judged, decoded={"a.mp4"})[0]
    assert (pair.chosen, pair.rejected) == ("To the right.", "To the left.")
    source = json.loads(pair.provenance)
    assert [source[side]["critic_reward"] for side in ("chosen", "rejected")] == [20 / 25, 5 / 25]
    spaced = [dataclasses.replace(r, text=f" {r.text}\n") for r in made]
    assert [pair.id] == [each.id for each in make_pairs([ROW], spaced, recipe, judged, decoded={"a.mp4"})[0]]
    assert recipe.judge_rows(EXAMPLES[:1], spaced).rows == task.rows
    by_text = {"a": {judgement.response: judgement for judgement in judged}}
    assert recipe.counted(recipe.verdicts(made, by_text)) == {"answers": 4, "unparsable_report": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"judge": {**SEEING, "sees": "caption"}}, "judges by the video"),
        ({"judge": {**SEEING, "prompt": "{question} {answer} {response} Rate!"}}, "judge.prompt changes nothing"),
        ({"judge": SEEING, "trust": "judge"}, "critic's reports already"),
        ({"min_reward_gap": 0}, "greater than 0"),
        ({"report_prompt": "Judge {previous}."}, "must contain {question}"),
        ({"neutral_prompt": "{question} {previous} {reprot}"}, "did you mean {report}"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    raw = {"run_dir": "x", "model": {"path": "m"}, "data": {"train": "t"}, "recipe": {"name": "reagent", **options}}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert says in str(caught.value)


def test_what_a_dry_run_measures():
    kinds = {asked.kind: asked for asked in recipes.build(ReagentRecipe(max_new_tokens=50)).asked([ROW])}
    assert list(kinds) == ["plain", "report", "conservative", "neutral", "aggressive"]
    assert (kinds["report"].quoted, kinds["report"].reply) == (50, 192)
    assert kinds["neutral"].quoted == 50 + critic.WORDS_TOKENS
    words = critic.in_words(dict.fromkeys(critic.PARTS, 2.25))
    assert len(words) < 4 * critic.WORDS_TOKENS
    assert all("{report}" in prompt for prompt in (prompts.CONSERVATIVE, prompts.NEUTRAL, prompts.AGGRESSIVE))


def test_a_critic_is_told_that_an_answer_was_cut():
    row = {"example_id": "e", "response": "left " * 40, "question": "Q?", "prompt": "{previous}", "videos": [], "images": []}
    asked = []

    def chat(conversations):
        asked.extend(each[0]["content"] for each in conversations)
        return [""] * len(conversations)

    critic.report_rows(
        [row], JudgeConfig(kind="openai", model="m", base_url="http://x/v1", max_response_chars=20), chat, "m"
    )
    assert asked[0] == "left left left left  […]"
