"""Recipe group before a fake engine, its rewards, its groups, and what training makes of them."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from test_pairing import data_row
from test_recipe_units import CLIPS, EXAMPLES, JUDGE, kinds, respond
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)

from actors.reference import kept_paths, outputs_of_groups
from actors.training_data import TrainingData
from pipelines.checks.learning import check_given, check_prompts, check_recipe, forward_tokens
from pipelines.stages.groups import group_facts, no_contrast, sampled_tokens, without_spelled
from vidalign import files, recipes
from vidalign.config.loading import parse_config
from vidalign.config.recipes import RECIPES as SECTIONS
from vidalign.config.recipes import GroupRecipe
from vidalign.data.source import files_of
from vidalign.errors import ConfigError, DataError
from vidalign.learning import objectives
from vidalign.learning.advantages import group_advantages
from vidalign.learning.group_data import extremes, training_group, usable_groups
from vidalign.learning.views import GroupView, view_of
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.logps import RowLogps
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.tensor_cache import TensorCache
from vidalign.recipes import rewards
from vidalign.recipes.engine import SPECIAL_TOKEN
from vidalign.recipes.group import make_groups
from vidalign.types import Example, Judgement, Response, ResponseGroup

LEFT = Example(id="a", video="a.mp4", question="Which way?", answer="left", options=("left", "right"))


def reply(text, candidate, kind="plain", *, finish="stop", example="a"):
    return Response(
        example_id=example,
        kind=kind,
        candidate=candidate,
        turn=0,
        text=text,
        token_ids=(7, 8, 2),
        log_probs=(-0.5, -0.25, -0.1),
        policy_version="p1",
        seed=candidate,
        temperature=1.0,
        top_p=1.0,
        finish_reason=finish,
    )


def grouped(config, replies, example=LEFT, judgements=()):
    made, dropped = make_groups(
        [data_row(example)],
        replies,
        recipes.build(config),
        judgements,
        decoded={"a.mp4"},
        tokens={("a", number): str(number) for number in range(8)},
    )
    return (made[0] if made else None), dropped


def test_it_asks_for_its_replies_and_keeps_what_they_were_sampled_with():
    engine, made = respond(GroupRecipe(num_candidates=3), lambda request: "It is blue.")
    assert kinds(made) == [(example, "plain", candidate, 0) for example in "ab" for candidate in range(3)]
    assert {(r.temperature, r.top_p) for r in engine.requests} == {(1.0, 1.0)}
    assert len({request.seed for request in engine.requests}) == 6
    assert not engine.scored, "a reply's own log-probs are its reward; scoring it again costs the engine a pass"
    assert all(r.reward == -0.5 and len(r.token_ids) == len(r.log_probs) == 3 for r in made)


def test_the_order_of_frames_is_rewarded_only_where_there_is_a_video():
    config = GroupRecipe(num_candidates=2, num_shuffled=2, rewards={"accuracy": 1, "temporal": 0.3})
    still = dataclasses.replace(LEFT, video="", images=("a.png",))
    said = [rewards.Said(text="left"), None, rewards.Said(text="right")]
    assert rewards.parts_of(said, [], still, config, {}) == {"accuracy": [1.0, None, 0.0], "temporal": [0.0, 0.0, 0.0]}
    assert rewards.parts_of(said, [], LEFT, config, {})["temporal"] == [None, None, None], (
        "nothing was said of shuffled frames"
    )
    assert rewards.parts_of(said, [rewards.Said(text="right")], LEFT, config, {})["temporal"] == [1.0, None, 0.0]
    assert rewards.parts_of(said, [rewards.Said(text="left")], LEFT, config, {})["temporal"] == [0.0, None, 0.0]
    long = [dataclasses.replace(each, num_tokens=count) for each, count in zip([said[0]] * 4, (1, 2, 3, 4), strict=True)]
    config = GroupRecipe(num_candidates=2, rewards={"length": 0.2}, length_range=(2, 3))
    assert rewards.parts_of(long, [], LEFT, config, {})["length"] == [0.0, 1.0, 1.0, 0.0]
    assert rewards.in_range([0.5, 0.4], [2, 2], 2, 3) == [1.0, 0.0]
    assert rewards.temporal([0.5, 0.4], [0.1], 0.8) == [1.0, 0.0]


def test_a_judge_says_right_from_its_threshold_on_of_a_text_without_its_white_space():
    free = Example(id="f", video="v", question="What happens?", answer="A red circle moves left across the screen.")
    config = GroupRecipe(trust="judge", judge=JUDGE, threshold=3.0)
    for score, right in ((3.0, 1.0), (2.9, 0.0)):
        found = {"It drifts.": Judgement(example_id="f", response="It drifts.", score=score, explanation="", judge="j")}
        assert rewards.accuracy(" It drifts.\n", free, config, found) == right
    assert rewards.accuracy("It drifts.", free, config, {}) is None


def test_temporal_replies_see_the_frames_in_another_order():
    frames = np.arange(16, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    clip = dataclasses.replace(CLIPS[0], frames=frames, total_num_frames=16, indices=tuple(range(16)))
    config = GroupRecipe(num_candidates=2, num_shuffled=3, rewards={"accuracy": 1, "temporal": 0.3})
    engine, made = respond(config, lambda request: "left", EXAMPLES[:1], [clip])
    assert [r.kind for r in made] == ["plain"] * 2 + ["shuffled"] * 3
    shown = [request.clip.frames[:, 0, 0, 0].tolist() for request in engine.requests]
    assert shown[0] == shown[1] == list(range(16))
    assert all(order != shown[0] and sorted(order) == shown[0] for order in shown[2:])
    assert len({tuple(order) for order in shown[2:]}) == 3


@pytest.mark.parametrize(
    ("right", "shuffled", "expected"),
    [
        ([1.0, 0.0, 1.0, 1.0], [1.0, 0.0], [1, 0, 1, 1]),  # 0.75 >= 0.8 x 0.5
        ([1.0, 0.0, 0.0, 0.0], [1.0, 0.0], [0, 0, 0, 0]),  # 0.25 < 0.8 x 0.5
        ([1.0, 0.0], [1.0, 0.0, 1.0, 0.5], [1, 0]),  # 0.5 = 0.8 x 0.625, and equal is enough
        ([1.0, None], [0.0, None], [1, None]),
        ([1.0, 0.0], [None], [None, None]),
    ],
)
def test_the_temporal_reward_is_for_right_replies_that_the_order_helps(right, shuffled, expected):
    assert rewards.temporal(right, shuffled, 0.8) == expected


def test_rewards_add_up_by_their_weights():
    config = GroupRecipe(num_candidates=3, rewards={"accuracy": 1.0, "format": 0.5})
    texts = ["<think>It\nmoves.</think> left", "left", "<think>x</think> right"]
    group, _ = grouped(config, [reply(text, number) for number, text in enumerate(texts)])
    assert group.rewards == (1.5, 1.0, 0.5)
    assert json.loads(group.parts) == {"accuracy": [1.0, 1.0, 0.0], "format": [1.0, 0.0, 1.0]}
    assert group.left_out == ("", "", "")


OWN = """
def brevity(reply, example):
    return None if not reply else -len(reply.split()) / 10

def broken(reply, example):
    return "much"

NUMBER = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "somebodys_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "somebodys_rewards"
    sys.modules.pop("somebodys_rewards", None)


def test_a_reward_of_ones_own_is_found_by_its_place_and_held_to_its_word(own):
    config = GroupRecipe(num_candidates=3, rewards={"accuracy": 1, f"{own}:brevity": 0.5})
    group, _ = grouped(config, [reply(text, number) for number, text in enumerate(["left", "to the right", ""])])
    assert group.rewards[:2] == pytest.approx((1 - 0.05, -0.15))
    assert group.left_out == ("", "", "not_scored")
    assert math.isnan(group.rewards[2])
    with pytest.raises(
        ConfigError, match=r"broken returned 'much' for the reply 'left' to example a; a reward is a finite number"
    ):
        grouped(GroupRecipe(num_candidates=2, rewards={f"{own}:broken": 1}), [reply("left", 0), reply("right", 1)])
    with pytest.raises(ConfigError, match="which cannot be called"):
        parse({"rewards": {f"{own}:NUMBER": 1}})


def test_what_no_rule_can_tell_is_left_out_or_judged():
    free = dataclasses.replace(LEFT, options=(), answer="A man walks his old dog along the river at dusk.")
    texts = ["A person strolls with a pet by the water.", "He cooks in a kitchen for all his many friends."]
    replies = [reply(text, number) for number, text in enumerate([*texts, free.answer])]
    group, dropped = grouped(GroupRecipe(num_candidates=3), replies, free)
    assert (group, dropped) == (None, {"not_scored": 1})
    scores = [
        Judgement(example_id="a", response=text, score=score, explanation="", judge="j")
        for text, score in zip(texts, (4, 1), strict=True)
    ]
    config = GroupRecipe(num_candidates=3, trust="judge", judge=JUDGE)
    group, _ = grouped(config, replies, free, scores)
    assert group.rewards == (1.0, 0.0, 1.0)
    task = recipes.build(config).judge_rows([free], [dataclasses.replace(r, trust=math.nan) for r in replies[:2]])
    assert task is not None


def test_replies_that_are_nothing_to_learn_from_keep_their_places_and_are_counted():
    replies = [
        reply("left", 0),
        reply("right", 1),
        reply("left because", 2, finish="length"),
        reply("left", 3, finish=SPECIAL_TOKEN),
    ]
    group, dropped = grouped(GroupRecipe(num_candidates=5), replies)
    assert dropped == {}
    assert group.left_out == ("", "", "cut_by_length", "special_token", "missing")
    assert group.rewards[:2] == (1.0, 0.0)
    assert all(map(math.isnan, group.rewards[2:]))
    facts = group_facts([group])
    assert facts == {
        "all_alike": 0,
        "replies": 2,
        "left_out": {"cut_by_length": 1, "special_token": 1, "missing": 1},
        "mean_reward": 0.5,
        "mean_parts": {"accuracy": 0.5},
    }
    few = [replies[0], *(reply("left because", number, finish="length") for number in (1, 2))]
    group, dropped = grouped(GroupRecipe(num_candidates=4), few)
    assert (group, dropped) == (None, {"cut_by_length": 1})


def test_an_example_whose_video_is_not_there_is_counted():
    recipe = recipes.build(GroupRecipe())
    assert make_groups([data_row(LEFT)], [], recipe, decoded=set(), tokens={}) == ([], {"video_quarantined": 1})
    assert make_groups([data_row(LEFT)], [], recipe, decoded={"a.mp4"}, tokens={}) == ([], {"missing": 1})


def test_a_group_is_named_by_what_its_replies_are():
    config = GroupRecipe(num_candidates=2)
    first, _ = grouped(config, [reply("left", 0), reply("right", 1)])
    again, _ = grouped(config, [reply("left", 0), reply("right", 1)])
    cut, _ = grouped(GroupRecipe(num_candidates=3), [reply("left", 0), reply("right", 1), reply("x", 2, finish="length")])
    assert first.id == again.id != cut.id
    assert first.tokens != ""


def test_special_tokens_within_a_reply_are_found_by_their_ids(tmp_path):
    replies = [reply("left", 0), dataclasses.replace(reply("left", 1), token_ids=(7, 2, 7)), reply("x", 0, "shuffled")]
    files.write_table(tmp_path / "responses.parquet", replies)
    hashes, spelled = sampled_tokens(tmp_path / "responses.parquet", frozenset({2}))
    assert hashes.keys() == {("a", 0), ("a", 1)}
    assert spelled == {("a", 1)}, "the last token is the end of turn"
    assert [r.finish_reason for r in without_spelled(replies, spelled)] == ["stop", SPECIAL_TOKEN, "stop"]


def parse(recipe, **more):
    base = {"run_dir": "x", "model": {"path": "m"}, "data": {"train": "t"}}
    return parse_config({**base, "recipe": {"name": "group", **recipe}, **more})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.9}, "got temperature=0.9 and top_p=1; set both to 1"),
        ({"top_p": 0.95}, "got temperature=1 and top_p=0.95; set both to 1"),
        ({"rewards": {"acuracy": 1}}, "unknown recipe.rewards 'acuracy'; did you mean accuracy?"),
        ({"rewards": {"temporal": 0.3}}, "set num_shuffled, such as to 4"),
        ({"num_shuffled": 4}, "for the reward temporal; add it, such as temporal: 0.3, or leave them out"),
        ({"format_pattern": "a+"}, "add it to rewards, or leave format_pattern out"),
        ({"format_pattern": "(", "rewards": {"format": 1}}, "is not a regular expression"),
        ({"lint": {"min_count": 3}}, "recipe.lint is for pairs"),
        (
            {"rewards": {"format": 1}, "trust": "f1"},
            "recipe.trust and recipe.judge are for the rewards accuracy, temporal and length",
        ),
        ({"trust": "judge"}, "trust=judge needs recipe.judge"),
        ({"threshold": 4}, "threshold is of a judge's scores"),
        ({"num_candidates": 1}, "raise it to 2 or more, or set rewards to {} and take objective dvpo"),
        ({"num_candidates": 0}, "greater than or equal to 1"),
        ({"rewards": {}, "refill": True, "num_prompts": 2}, "refill=true samples until rewards differ"),
        ({"rewards": {}, "drop_solved": 0.5}, "drop_solved goes by the reward accuracy"),
        ({"rewards": {}, "trust": "f1"}, "recipe.trust and recipe.judge are for the rewards"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, says):
    with pytest.raises(ConfigError) as caught:
        parse(options)
    assert says in str(caught.value)


NEEDED = {name: {"judge": JUDGE.model_dump()} for name in ("hound", "verified")}


@pytest.mark.parametrize("recipe", SECTIONS)
@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_every_recipe_takes_an_objective_that_learns_from_what_it_makes_and_refuses_the_others(recipe, objective):
    raw = {"name": recipe, **NEEDED.get(recipe, {})}
    if (recipe, objective) == ("group", "dvpo"):
        raw |= {"rewards": {}, "num_candidates": 1}
    params = {"max_tokens": 256} if objective == "dr_grpo" else {}
    config = parse(raw, objective={"name": objective, "params": params})
    on_groups = objectives.OBJECTIVES[objective].consumes == "groups"
    if on_groups == (recipe == "group"):
        check_recipe(config)
        return
    with pytest.raises(ConfigError) as caught:
        check_recipe(config)
    learns, makes = ("groups", "pairs") if on_groups else ("pairs", "groups")
    assert f"objective.name={objective} learns from {learns}, and recipe.name={recipe} makes {makes}; " in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "rewards", "says"),
    [
        ("dvpo", {"accuracy": 1.0}, "set recipe.rewards to {}, or choose an objective such as grpo"),
        ("grpo", {}, "recipe.rewards has none; name some, such as {accuracy: 1.0}, or choose objective dvpo"),
        ("dapo", {}, "recipe.rewards has none"),
    ],
)
def test_rewards_and_a_value_model_take_each_others_place(objective, rewards, says):
    with pytest.raises(ConfigError) as caught:
        check_recipe(parse({"rewards": rewards}, objective={"name": objective}))
    assert says in str(caught.value)


def test_without_rewards_one_reply_is_a_group_and_what_is_left_out_is_not():
    config = GroupRecipe(rewards={}, num_candidates=1)
    assert not recipes.build(config).compares
    made, dropped = grouped(config, [reply("left", 0)])
    assert (made.rewards, made.left_out, dropped) == ((0.0,), ("",), {})
    assert grouped(config, [reply("left", 0, finish="length")]) == (None, {"cut_by_length": 1})
    assert group_facts([made], compares=False) | {"left_out": {}} == {
        "all_alike": None,
        "replies": 1,
        "left_out": {},
        "mean_reward": None,
        "mean_parts": {},
    }


def test_the_constant_of_dr_grpo_is_the_length_of_the_longest_reply():
    with pytest.raises(ConfigError, match=r"params.max_tokens=256, which is to be .* recipe.max_new_tokens=24; set one to"):
        check_recipe(parse({"max_new_tokens": 24}, objective={"name": "dr_grpo"}))
    check_recipe(parse({"max_new_tokens": 24}, objective={"name": "dr_grpo", "params": {"max_tokens": 24}}))


def test_a_group_takes_its_prompt_once_in_a_packed_row_and_may_be_longer_than_the_budget():
    sizes = {"batch_size": 4, "micro_batch_size": 2}
    config = parse({"num_candidates": 8, "max_new_tokens": 24}, train=sizes)
    assert forward_tokens(config, 100, packed=True) == 2 * (100 + 7 * 24)
    assert forward_tokens(config, 100, packed=False) == 2 * 800
    for budget, tokens in ((200, 268), (400, 400)):
        limited = parse({"max_new_tokens": 24}, train={**sizes, "tokens_per_micro_batch": budget})
        assert forward_tokens(limited, 100, packed=True) == tokens
    leanpo = parse({"name": "leanpo"}, train=sizes)
    assert [forward_tokens(leanpo, 100, packed=packed) for packed in (True, False)] == [200, 400]


def stored(rewards, left_out=None, example="e0", **more):
    left_out = left_out or [""] * len(rewards)
    return ResponseGroup(
        id=f"g-{example}",
        example_id=example,
        video="a",
        question="Describe the video.",
        answer="A red circle moves left.",
        texts=tuple("x" for _ in rewards),
        rewards=tuple(rewards),
        left_out=tuple(left_out),
        policy_version="p1",
        tokens="t",
        **more,
    )


SAMPLED = {("e0", 0): ((5, 6, 2), (-0.1, -0.2, -0.3)), ("e0", 1): ((9, 2), (-1.0, -0.5)), ("e0", 3): ((8, 2), (-2.0, -0.4))}


def test_a_stored_group_comes_back_as_it_was(tmp_path):
    made = [
        stored([1.0, math.nan], ["", "cut_by_length"], parts='{"accuracy": [1.0, null]}'),
        stored([0.0, 1.0], example="e1"),
    ]
    files.write_table(tmp_path / "groups.parquet", made)
    back = files.read_table(tmp_path / "groups.parquet", ResponseGroup)
    assert [dataclasses.replace(group, rewards=()) for group in back] == [dataclasses.replace(g, rewards=()) for g in made]
    np.testing.assert_array_equal([group.rewards for group in back], [group.rewards for group in made])


def test_groups_are_no_data_file(tmp_path):
    folder = tmp_path / "run/rounds/0/pairs"
    files.write_table(folder / "groups.parquet", [stored([1.0, 0.0])])
    for name in (folder / "groups.parquet", folder, tmp_path / "run"):
        with pytest.raises(DataError, match=r"holds groups of a run's own replies, .* name the data that the run read"):
            files_of(name)


def test_training_gets_tokens_advantages_and_what_was_sampled_with():
    objective = objectives.build("grpo", {})
    group = training_group(stored([1.0, 0.0, math.nan, 0.0], ["", "", "cut_by_length", ""]), SAMPLED, objective)
    assert [each.token_ids for each in group.responses] == [(5, 6, 2), (9, 2), (5,), (8, 2)]
    assert [each.behaviour_logps for each in group.responses] == [(-0.1, -0.2, -0.3), (-1.0, -0.5), (0.0,), (-2.0, -0.4)]
    assert [each.weight for each in group.responses] == [1, 1, 0, 1]
    expected = group_advantages([1.0, 0.0, math.nan, 0.0], scale=True)
    assert [each.advantage for each in group.responses] == pytest.approx(expected)
    unscaled = training_group(
        stored([1.0, 0.0, 0.0, 0.0], ["", "", "missing", ""]), SAMPLED, objectives.build("dr_grpo", {})
    )
    assert unscaled.responses[0].advantage == pytest.approx(0.75)
    pair = extremes(group)
    assert [(each.role, each.token_ids) for each in pair.responses] == [("chosen", (5, 6, 2)), ("rejected", (9, 2))]
    assert extremes(training_group(stored([1.0, 1.0]), SAMPLED, objective)) is None
    with pytest.raises(DataError, match="no tokens of candidate 2 of example e0"):
        training_group(stored([1.0, 0.0, 1.0]), SAMPLED, objective)


def test_groups_that_are_all_alike_are_dropped_only_where_the_objective_says_so():
    made = [stored([1.0, 1.0]), stored([1.0, 0.0], example="e1")]
    kept, dropped = usable_groups(made, objectives.build("dapo", {}))
    assert ([group.example_id for group in kept], dropped) == (["e1"], {"all_alike": 1})
    assert usable_groups(made, objectives.build("grpo", {})) == (made, {})
    facts = group_facts(made)
    assert (facts["all_alike"], no_contrast(facts, 2)) == (1, None)
    assert "nothing to compare" in no_contrast(group_facts(made[:1]), 1)


@pytest.fixture(scope="module")
def scored(prepared, source):  # noqa: F811
    """(view, groups, rows of one packed batch of them) of two groups of three on the built-in model, one reply left out."""
    objective = objectives.build("grpo", {})
    model = load_policy(prepared[0])
    packed = dataclasses.replace(source, number=shared_prefix.numbering(model), _kept={})
    ids = [
        tuple(packed.tokens(dataclasses.replace(SAMPLE, text=text))) for text in ("Left.", "A red circle moves left.", "No.")
    ]
    sampled = {(f"e{e}", n): (ids[n], (-0.5,) * len(ids[n])) for e in range(2) for n in range(3)}
    made = [
        training_group(stored([1.0, 0.0, math.nan], ["", "", "cut_by_length"]), sampled, objective),
        training_group(stored([0.0, 0.0, 1.0], example="e1"), sampled, objective),
    ]
    scorer = ResponseScorer(model, packed=True).eval()
    batch = packed.batch(made)
    with torch.no_grad():
        logps, _, hidden = scorer(batch.inputs, batch.labels, None, batch.sources)
    return objective, packed, made, RowLogps(logps=logps, mask=batch.labels != IGNORED), hidden


SAMPLE = training_group(stored([1.0, 0.0]), SAMPLED, objectives.build("grpo", {})).responses[0]
SAMPLE = dataclasses.replace(SAMPLE, token_ids=(), behaviour_logps=())


def test_the_view_gives_rows_with_their_own_behaviour_advantages_and_mask(scored):
    objective, packed, made, rows, hidden = scored
    lengths = rows.mask.sum(-1).tolist()
    kept = outputs_of_groups(rows.logps[rows.mask], hidden, lengths, (), names=made[0].names)
    by_id = {group.id: tensors for group, tensors in zip(made, kept, strict=True)}
    assert set(kept[0]) == {"member_0", "member_1", "member_2"}
    view = view_of(objective)(objective=objective, source=packed, kept=by_id.__getitem__)
    assert isinstance(view, GroupView)
    policy = view.policy(rows, made)
    order = [(group, place) for place in range(3) for group in made]
    for row, (group, place) in enumerate(order):
        response = group.responses[place]
        assert float(policy.advantages[row]) == pytest.approx(response.advantage, rel=1e-6)
        assert int(policy.mask[row].sum()) == len(response.token_ids) * (response.weight > 0)
        assert policy.behaviour[row][rows.mask[row]].tolist() == pytest.approx(response.behaviour_logps)
    reference = view.reference(rows, made)
    torch.testing.assert_close(reference, rows.logps * rows.mask)
    learned = [r for group in made for r in group.responses if r.weight]
    assert view.denominators(made) == {"num_responses": 5, "num_tokens": sum(len(r.token_ids) for r in learned)}
    whole = float(objective(policy, reference, **view.denominators(made)).value)
    assert float(objective(policy, reference).value) == pytest.approx(whole, rel=1e-6)
    parts = 0.0
    for number, group in enumerate(made):  # one a forward pass, as a rank that has two
        own = RowLogps(logps=rows.logps[number::2], mask=rows.mask[number::2])
        totals = {name: value / 2 for name, value in view.denominators(made).items()}
        parts += float(objective(view.policy(own, [group]), view.reference(own, [group]), **totals).value) / 2
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_reference_of_a_group_is_kept_by_its_tokens(source, tmp_path):  # noqa: F811
    settings = {"policy_version": "abc", "dtype": "float32", "plain_prompt": "{question}", "parts": []}
    made = [stored([1.0, 0.0]), stored([0.0, 1.0]), dataclasses.replace(stored([1.0, 0.0]), tokens="u")]
    made.append(stored([1.0, math.nan], ["", "missing"]))
    paths = [kept_paths(TensorCache(tmp_path), [group], source.frames, **settings)[group.id] for group in made]
    assert paths[0] == paths[1], "rewards change no log-prob"
    assert len(set(paths)) == 3


def test_displacement_of_groups_is_that_of_their_best_and_worst(scored):
    _, _, made, _, _ = scored
    data = TrainingData(groups=made, probe=[], reference={}, doubt={})
    assert [[each.role for each in group.responses] for group in data.watched] == [["chosen", "rejected"]] * 2


def test_rows_without_a_rejected_side_are_refused_before_a_run_that_needs_one():
    rows = [data_row(LEFT)]
    config = parse({"name": "given"}, objective={"name": "dpo"})
    with pytest.raises(
        DataError, match=r"dpo can train on none of the 1 rows of t \(\{'no_rejected': 1\}\); it needs rows with"
    ):
        check_given(config, rows)
    check_given(parse({"name": "given"}, objective={"name": "sft"}), rows)
    check_given(parse({"name": "leanpo"}, objective={"name": "dpo"}), rows)


def test_a_right_reply_of_a_length_gets_the_reward_for_it():
    counts = (319, 320, 512, 513, 400)
    config = GroupRecipe(num_candidates=5, rewards={"accuracy": 1, "length": 0.2}, max_new_tokens=600)
    texts = ["left", "left", "left", "left", "right"]
    replies = [
        dataclasses.replace(reply(text, number), token_ids=(7,) * count)
        for number, (text, count) in enumerate(zip(texts, counts, strict=True))
    ]
    group, _ = grouped(config, replies)
    expected = [
        1 + 0.2 * (320 <= count <= 512) if text == "left" else 0.0 for text, count in zip(texts, counts, strict=True)
    ]
    assert group.rewards == pytest.approx(expected)
    assert rewards.in_range([None, 1.0], [400, 400], 320, 512) == [None, 1.0]


def soft_punishment(length, longest, cache):
    """DAPO, equation 13, as it is printed."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


def test_an_overlong_reply_is_punished_and_one_that_was_cut_off_is_learned_from():
    for length in range(1, 31):
        assert rewards.overlong(length, 24, 8) == pytest.approx(soft_punishment(length, 24, 8))
    config = GroupRecipe(
        num_candidates=3, rewards={"accuracy": 1, "format": 0.5, "overlong": 1}, overlong_tokens=8, max_new_tokens=24
    )
    texts = ["<think>It moves.</think> left", "left", "<think>so</think> left"]
    replies = [
        dataclasses.replace(reply(text, number), token_ids=(7,) * count)
        for number, (text, count) in enumerate(zip(texts, (20, 16, 24), strict=True))
    ]
    replies[2] = dataclasses.replace(replies[2], finish_reason="length")  # ends with the answer, but was not finished
    group, _ = grouped(config, replies)
    assert group.rewards == pytest.approx((1 + 0.5 - 0.5, 1.0, -1.0))
    assert group.left_out == ("", "", "")
    sampled = {("a", n): (r.token_ids, (-0.1,) * len(r.token_ids)) for n, r in enumerate(replies)}
    cut = training_group(group, sampled, objectives.build("dapo", {})).responses[2]
    assert (len(cut.token_ids), cut.weight) == (24, 1.0)
    assert cut.advantage < 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rewards": {"overlong": 1}}, "say over how many with overlong_tokens"),
        ({"overlong_tokens": 8}, "add it, such as overlong: 1.0"),
        (
            {"rewards": {"overlong": 1}, "overlong_tokens": 256},
            "are the last of max_new_tokens=256; set it lower, such as to 51",
        ),
        ({"length_range": [1, 2]}, "add it, such as length: 0.2"),
        ({"rewards": {"length": 0.2}, "length_range": [5, 2]}, "0 < low <= high"),
        ({"rewards": {"accuracy": 1, "length": 0.2}}, "has the 320 tokens of length_range"),
        ({"refill": True}, "num_prompts groups that differ, which is not set"),
        ({"drop_solved": 0.8, "rewards": {"format": 1}}, "drop_solved goes by the reward accuracy"),
        (
            {"refill": True, "num_prompts": 4, "trust": "judge", "judge": JUDGE.model_dump()},
            "which scores only once all are sampled",
        ),
    ],
)
def test_lengths_and_refills_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ConfigError) as caught:
        parse(options)
    assert says in str(caught.value)


def test_a_younger_option_leaves_the_record_of_a_group_as_it_was():
    assert {"length_range", "overlong_tokens", "num_prompts", "refill", "drop_solved"}.isdisjoint(GroupRecipe().deciding())
    assert GroupRecipe(num_prompts=4, refill=True).deciding()["refill"] is True


def test_a_refill_is_for_objectives_that_leave_out_what_is_alike():
    refilled = {"num_prompts": 4, "refill": True}
    check_prompts(parse(refilled, objective={"name": "dapo"}), 4)
    with pytest.raises(ConfigError, match=r"objective.name=grpo trains on those too; set objective.params.drop_uniform"):
        check_prompts(parse(refilled, objective={"name": "grpo"}), 4)
    with pytest.raises(ConfigError, match=r"num_prompts=4, but data.train has 3 rows"):
        check_prompts(parse({"num_prompts": 4}), 3)
