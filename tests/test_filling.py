"""Which prompts a round asks: the next ones, and further ones in place of those that give nothing to learn from."""

import dataclasses
import json
import math

import numpy as np
import pytest
from test_group_recipe import LEFT, reply

from cluster.resources import Workers
from pipelines.stages.filling import (
    ASKED,
    asked_ids,
    fill,
    giving,
    in_turn,
    left_to_ask,
    place_before,
    shortfall,
    solved_before,
)
from pipelines.stages.rollout import Rollout
from vidalign import files, recipes
from vidalign.config.recipes import GroupRecipe
from vidalign.config.run import ModelConfig, RolloutConfig, VideoConfig
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.recipes.engine import SPECIAL_TOKEN
from vidalign.types import PolicyVersion, Response, ResponseGroup


def test_rounds_go_through_the_rows_in_one_order_and_begin_anew_after_the_last():
    rows = list(range(7))
    order = in_turn(rows, 3, 0)
    assert sorted(order) == rows
    assert order != rows
    assert in_turn(rows, 3, 5) == order[5:] + order[:5]
    assert in_turn(rows, 3, 7) == order
    assert in_turn(rows, 4, 0) != order
    assert in_turn([], 3, 2) == []


def filled(gives, wanted, size):
    """(how many prompts count, how many were asked in each turn)."""
    turns = []
    took = fill(wanted, len(gives), size, ask=turns.append, found=lambda count: gives[:count])
    return took, turns


def test_a_round_ends_with_the_prompt_that_fills_it_however_many_are_asked_at_a_time():
    rng = np.random.default_rng(0)
    for _ in range(50):
        gives = list(rng.random(60) < rng.uniform(0.05, 1))
        wanted = int(rng.integers(1, 20))
        places = np.flatnonzero(gives)
        expected = int(places[wanted - 1]) + 1 if len(places) >= wanted else 60
        for size in (1, 4, 7, 64):
            took, turns = filled(gives, wanted, size)
            assert took == expected
            assert turns == sorted(set(turns)), "every turn asks more"
            assert all(count % size == 0 or count == 60 for count in turns)


def test_where_all_prompts_were_asked_and_too_few_differ_it_says_so():
    assert shortfall(4, 4, 9) is None
    assert "only 3 of 9 prompts have replies with different rewards" in shortfall(3, 4, 9)
    with pytest.raises(DataError, match="replies to each of the 9 prompts got equal rewards"):
        shortfall(0, 4, 9)


def test_a_part_says_which_of_its_examples_give_something(tmp_path):
    examples = [dataclasses.replace(LEFT, id=name) for name in "abcde"]
    replies = [
        *(reply("left", 0, example="a"), reply("right", 1, example="a")),
        *(reply("left", 0, example="b"), reply("left", 1, example="b")),
        *(reply("left", 0, example="c"), reply("right", 1, example="c", finish=SPECIAL_TOKEN)),
        *(reply("left", 0, example="d"), dataclasses.replace(reply("right", 1, example="d"), token_ids=(7, 2, 7))),
    ]  # of e there are none: its video could not be decoded
    files.write_table(tmp_path / "0.parquet", replies)
    recipe = recipes.build(GroupRecipe(num_candidates=2, num_prompts=1, refill=True))
    assert giving(tmp_path / "0.json", examples, recipe, frozenset({2})) == [True, False, False, False, False]
    assert giving(tmp_path / "0.json", examples, recipe, frozenset()) == [True, False, False, True, False]


def test_the_next_round_begins_where_the_last_one_stopped(tmp_path):
    run = RunFolder.at(str(tmp_path / "run"))
    assert place_before(run, 0) == place_before(run, 2) == 0
    files.write_json(run.stage("responses", 0) / ASKED, {"examples": ["b", "a"], "next": 2})
    assert place_before(run, 1) == place_before(run, 2) == 2
    assert asked_ids(run.stage("responses", 0)) == ["b", "a"]
    assert asked_ids(run.stage("responses", 1)) is None


def test_responses_of_prompts_past_the_one_that_filled_the_round_are_not_kept(tmp_path):
    for number, names in enumerate(("ab", "cd")):
        files.write_table(tmp_path / f"{number}.parquet", [reply("left", 0, example=name) for name in names])
    paths = [tmp_path / f"{number}.parquet" for number in range(2)]
    files.join_tables(paths, tmp_path / "all.parquet", only=("example_id", ["a", "b", "c"]))
    assert [r.example_id for r in files.read_table(tmp_path / "all.parquet", Response)] == ["a", "b", "c"]


EXAMPLES = [dataclasses.replace(LEFT, id=f"e{number:02d}") for number in range(20)]
SIZE = 4


class Asked(Rollout):
    """A rollout whose engine is a rule: every third example, in the order of ids, has replies that differ. It may be killed."""

    killed_after = 99

    def _generate(self, asked):
        for index, chunk in self._chunks(asked):
            part = files.part_path(self.folder / "parts", index)
            if part.is_file():
                continue
            if index >= self.killed_after:
                raise KeyboardInterrupt
            made = [
                reply("left" if candidate or int(example.id[1:]) % 3 else "right", candidate, example=example.id)
                for example in chunk
                for candidate in range(2)
            ]
            files.write_table(part.with_suffix(".parquet"), made)
            files.write_json(part, {"decoded": [{"video": e.video, "frames_path": "f", "reason": ""} for e in chunk]})


def asked_rollout(folder, monkeypatch, wanted=3):
    monkeypatch.setattr("pipelines.stages.rollout.special_ids", lambda *a, **k: frozenset())
    return Asked(
        folder=folder,
        quarantine=folder / "q",
        cache=folder / "frames",
        round_index=0,
        model=ModelConfig(path="m"),
        video=VideoConfig(),
        rollout=RolloutConfig(batch_size=SIZE),
        recipe=recipes.build(GroupRecipe(num_candidates=2, num_prompts=wanted, refill=True)),
        policy=PolicyVersion(version="v", path="m"),
        train=in_turn(EXAMPLES, 1, 0),
        places=range(len(EXAMPLES)),
        probe=[],
        decoders=Workers(num=1, cpus=1),
        engines=Workers(num=1, cpus=1),
        engine_seed=1,
    )


def test_a_refilled_round_that_was_killed_ends_with_the_same_rows_in_the_same_order(tmp_path, monkeypatch):
    whole = asked_rollout(tmp_path / "whole", monkeypatch)
    asked = whole.generate()
    whole._collect(asked)
    names = [example.id for example in whole.train[:asked]]
    differing = [name for name in names if int(name[1:]) % 3 == 0]
    assert len(differing) == 3
    assert differing[-1] == names[-1], "the prompt that fills the round is its last"
    assert asked_ids(whole.folder) == names
    assert files.read_json(whole.folder / ASKED)["next"] == asked
    kept = files.read_table(whole.folder / "responses.parquet", Response)
    assert list(dict.fromkeys(r.example_id for r in kept)) == names

    killed = asked_rollout(tmp_path / "killed", monkeypatch)
    killed.killed_after = 1
    with pytest.raises(KeyboardInterrupt):
        killed.generate()
    resumed = asked_rollout(tmp_path / "killed", monkeypatch)
    resumed._collect(resumed.generate())
    again = files.read_table(resumed.folder / "responses.parquet", Response)
    assert [(r.example_id, r.candidate, r.text) for r in again] == [(r.example_id, r.candidate, r.text) for r in kept]
    assert files.read_json(resumed.folder / ASKED) == files.read_json(whole.folder / ASKED)


def test_what_decides_which_prompts_are_asked_is_recorded_with_them(tmp_path, monkeypatch):
    stage = asked_rollout(tmp_path, monkeypatch)
    assert "rewards" in stage.inputs()["recipe"]
    stage.recipe = recipes.build(GroupRecipe(num_candidates=2, num_prompts=3))
    assert "rewards" not in stage.inputs()["recipe"]


def solved_run(folder, rounds):
    """A run whose rounds have groups: {example id: accuracies}."""
    run = RunFolder.at(str(folder / "run"))
    for index, groups in enumerate(rounds):
        made = [
            ResponseGroup(
                id=name,
                example_id=name,
                video="v",
                question="q",
                answer="a",
                texts=("x",) * len(right),
                rewards=tuple(right),
                left_out=tuple("" if math.isfinite(value) else "cut_by_length" for value in right),
                policy_version="p",
                tokens="t",
                parts=json.dumps({"accuracy": [value if math.isfinite(value) else None for value in right]}),
            )
            for name, right in groups.items()
        ]
        files.write_table(run.stage("pairs", index) / "groups.parquet", made)
    return run


def test_what_was_right_the_last_time_is_solved(tmp_path):
    first = {"e00": [1.0, 1.0], "e01": [1.0, 0.0], "e02": [1.0, math.nan, 1.0], "e03": [1.0, 1.0]}
    run = solved_run(tmp_path, [first, {"e03": [0.0, 1.0], "e01": [1.0, 1.0]}])
    assert solved_before(run, 0) == frozenset()
    assert solved_before(run, 1) == {"e00", "e02", "e03"}
    assert solved_before(run, 2) == {"e00", "e02", "e01"}


def test_a_share_of_the_solved_is_passed_over_and_the_order_of_the_others_stays():
    many = [dataclasses.replace(LEFT, id=f"m{number}") for number in range(400)]
    solved = {example.id for example in many[:300]}
    recipe = recipes.build(GroupRecipe(num_prompts=50, drop_solved=0.8))
    asked, places = left_to_ask(many, recipe, seed=1, start=30, solved=solved)
    order = in_turn(many, 1, 30)
    assert len(asked) == 50
    assert [order[place - 30] for place in places] == asked
    assert places == sorted(places)
    everything = recipes.build(GroupRecipe(num_prompts=400, refill=True, drop_solved=0.8))
    left = {example.id for example in left_to_ask(many, everything, seed=1, start=30, solved=solved)[0]}
    assert left > {example.id for example in many[300:]}
    assert len(left) == pytest.approx(100 + 60, abs=25)
    again = {example.id for example in left_to_ask(many, everything, seed=1, start=77, solved=solved)[0]}
    assert again == left, "the share does not depend on the round"
    whole = recipes.build(GroupRecipe(drop_solved=1.0))
    assert left_to_ask(many, whole, seed=1, start=0, solved=solved)[0] == many[300:]
    with pytest.raises(DataError, match=r"all 400 prompts were solved .* lower it"):
        left_to_ask(many, whole, seed=1, start=0, solved={example.id for example in many})


def test_the_next_place_counts_what_was_passed_over(tmp_path, monkeypatch):
    stage = asked_rollout(tmp_path / "run", monkeypatch)
    stage.train, stage.places = stage.train[::2], range(5, 25, 2)
    asked = stage.generate()
    stage._collect(asked)
    assert files.read_json(stage.folder / ASKED)["next"] == 5 + 2 * (asked - 1) + 1
