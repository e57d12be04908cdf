"""Rounds that train a value model, and rounds that take one: what they start from, what they record, and what is refused at load."""

import dataclasses
import json

import pytest
from test_rounds import make  # noqa: F401 (fixture)

from pipelines.stages.base import check, once
from pipelines.stages.value import ValueStage, divided
from pipelines.value_rounds import check_values, is_trained, trains, value_round
from vidalign import files
from vidalign.config.loading import parse_config
from vidalign.errors import ConfigError, DataError
from vidalign.model.value_head import ValueHead, write_head
from vidalign.types import PreferencePair, stable_hash

VALUE = {"recipe": {"name": "leanpo"}, "objective": {"name": "value"}}
DVPO = {"repeat": 2, "recipe": {"name": "group", "num_candidates": 1, "rewards": {}}, "objective": {"name": "dvpo"}}
GRPO = {"recipe": {"name": "group"}, "objective": {"name": "grpo"}}
DPO = {"recipe": {"name": "leanpo"}, "objective": {"name": "dpo"}}


def of(*steps):
    return parse_config({"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}, "rounds": list(steps)})


def test_the_newest_value_model_before_a_round_is_taken():
    config = of(VALUE, DVPO, VALUE, DPO, DVPO)
    check_values(config)
    assert [trains(config, index) for index in range(7)] == [
        *("value", "train", "train", "value", "train", "train", "train"),
    ]
    assert [value_round(config, index) for index in range(7)] == [None, 0, 0, None, None, 3, 3]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([DVPO], "dvpo takes a value model, and none is trained before round 0; write rounds as a list of steps"),
        ([GRPO, DVPO, VALUE, DVPO], "none is trained before round 1"),
        ([VALUE, GRPO], "round 0 trains a value model, which changes no policy, and no later round takes it"),
        ([VALUE, VALUE, DVPO], "round 0 trains a value model"),
        ([VALUE, DVPO, VALUE], "round 3 trains a value model"),
    ],
)
def test_a_value_model_is_there_before_it_is_taken_and_taken_once_it_is_there(steps, says):
    with pytest.raises(ConfigError, match=says):
        check_values(of(*steps))


@pytest.fixture
def rounds(make):  # noqa: F811
    made = make()
    steps = json.dumps([VALUE, DVPO])
    return dataclasses.replace(
        made, config=parse_config(made.config.model_dump(mode="json") | {"steps": []}, [f"rounds={steps}"])
    )


def pair(number, video):
    return PreferencePair(
        id=f"p{number}",
        example_id=f"e{number}",
        video=video,
        question="Q?",
        answer="a",
        chosen="yes",
        rejected=f"no {number}",
    )


def finish(folder, **facts):
    files.write_json(folder / "manifest.json", {"format": 2, "stage": folder.name, "inputs": {"from": str(facts)}, **facts})


def with_pairs(rounds, count=20):
    folder = rounds.run.stage("pairs", 0)
    for each in (folder, rounds.run.stage("responses", 0)):
        finish(each)
    files.write_table(folder / "pairs.parquet", [pair(number, f"/v/{number // 2}.mp4") for number in range(count)])


def trained_by(monkeypatch, values):
    """In place of Ray Train: a training that ends with these values of the held-out pairs. Returns the jobs that it was given."""
    jobs = []

    def fit(stage, job):
        jobs.append(job)
        held = files.read_table(stage.folder / "heldout.parquet", PreferencePair)
        kept = {each.id: values(place) for place, each in enumerate(held)}
        files.write_json(stage.folder / "heldout.json", kept)
        write_head(ValueHead(3), stage.folder)
        files.write_json(stage.export / "vidalign.json", {"version": "v1", "parent": "pol"})

    monkeypatch.setattr(ValueStage, "_fit", fit)
    return jobs


def test_a_round_of_a_value_model_leaves_the_policy_as_it_is(rounds, monkeypatch):
    with_pairs(rounds)
    assert rounds.train(0).folder == rounds.run.stage("value", 0)
    trained_by(monkeypatch, lambda place: [0.5, -0.5])
    facts = once(rounds.train(0))
    assert facts["accuracy"] == 1
    assert facts["num_heldout"] == 2
    assert facts["num_pairs"] == 18
    assert is_trained(rounds.run, 0)
    assert rounds.policy(1) == rounds.base
    assert [stage.name for stage in rounds.accept(["train"])] == ["value", "train", "train"]
    assert rounds.accept(["train"])[0].is_finished
    for folder in ("pairs", "responses"):
        finish(rounds.run.stage(folder, 1))
    stage = rounds.train(1)
    assert stage.value == rounds.run.stage("value", 0)
    assert stage.value in stage.needs
    before = stage.inputs()["value"]
    finish(rounds.run.stage("value", 0), value="another")
    assert rounds.train(1).inputs()["value"] != before, "another value model is another training"
    with pytest.raises(DataError, match="no trained policy of round 1"):
        rounds.policy(2)
    finish(rounds.run.stage("train", 1))
    files.write_json(rounds.run.stage("model", 1) / "vidalign.json", {"version": "v2", "parent": "pol"})
    for folder in ("pairs", "responses"):
        finish(rounds.run.stage(folder, 2))
    (rounds.run.stage("value", 0) / "manifest.json").unlink()  # as where it is to be trained again
    assert not any(stage.is_finished for stage in rounds.accept(["train"]))


def test_one_that_cannot_rank_is_refused_and_not_trained_again(rounds, monkeypatch):
    with_pairs(rounds)
    jobs = trained_by(monkeypatch, lambda place: [0.5, -0.5] if place else [-0.5, 0.5])
    for _ in range(2):
        with pytest.raises(DataError, match=r"ranks 50% of 2 held-out pairs .* objective.params.min_accuracy=0.6") as caught:
            once(rounds.train(0))
        assert "more train.num_epochs" in str(caught.value)
    assert len(jobs) == 1
    assert not check(rounds.train(0))
    raw = rounds.config.model_dump(mode="json")
    raw["steps"][0]["objective"]["params"] = {"min_accuracy": 0.5}
    lower = dataclasses.replace(rounds, config=parse_config(raw))
    assert once(lower.train(0))["accuracy"] == 0.5
    assert len(jobs) == 1, "the value model that is there is taken by the lower bound"
    raw["steps"][0]["objective"]["params"] = {"lam": 0.5}
    with pytest.raises(ConfigError, match=r"objective.params.lam was not there and is now 0.5"):
        check(dataclasses.replace(rounds, config=parse_config(raw)).train(0))


def test_too_few_videos_to_hold_some_out(rounds, monkeypatch):
    with_pairs(rounds, count=2)  # of one video
    trained_by(monkeypatch, lambda place: [1.0, 0.0])
    with pytest.raises(DataError, match=r"the 2 pairs .* are of too few videos for that: .*; add rows"):
        once(rounds.train(0))


def test_no_video_is_on_both_sides():
    pairs = [pair(number, f"/v/{number % 10}.mp4") for number in range(40)]
    trained, held = divided(pairs, share=0.2, seed=1)
    assert len(held) == 8
    assert not {each.video for each in trained} & {each.video for each in held}
    assert sorted([*trained, *held], key=lambda each: each.id) == sorted(pairs, key=lambda each: each.id)
    assert divided(pairs, share=0.2, seed=1)[1] == held
    assert {each.video for each in divided(pairs, share=0.2, seed=2)[1]} != {each.video for each in held}
    assert len(divided(pairs, share=0.99, seed=1)[0]) == 4, "one video is left to train on"


@pytest.mark.parametrize(
    "name",
    [
        lambda number: f"file:///v/{number % 10}.mp4#t={number},{number + 1}",
        lambda number: f"file:///v/{number % 10}.mp4#ask=Which%20way%3F%20{number}",
        lambda number: f"/v/{number % 10}.mp4" if number // 10 % 2 else f"/v/./{number % 10}.mp4",
    ],
    ids=["parts", "frames chosen by a question", "spelled in two ways"],
)
def test_a_video_is_held_out_as_a_whole_whatever_is_shown_of_it(name):
    pairs = [pair(number, name(number)) for number in range(40)]
    trained, held = divided(pairs, share=0.2, seed=1)
    assert len(held) == 8
    files_of = [{each.video.partition("#")[0].replace("/./", "/") for each in side} for side in (trained, held)]
    assert not files_of[0] & files_of[1]


def test_videos_that_are_shown_together_are_held_out_together():
    chain = [
        dataclasses.replace(pair(number, f"/v/{number}.mp4"), videos=(f"/v/{number}.mp4", f"/v/{number + 1}.mp4"))
        for number in range(5)
    ]
    apart = [pair(number, f"/w/{number}.mp4") for number in range(10, 14)]
    for seed in range(20):
        trained, held = divided([*chain, *apart], share=0.4, seed=seed)
        seen = [{name for each in side for name in each.context.videos} for side in (trained, held)]
        assert held
        assert trained
        assert not seen[0] & seen[1]


def over(number: int, video: str, other: str) -> PreferencePair:
    return dataclasses.replace(pair(number, video), rejected_videos=(other,))


@pytest.mark.parametrize("seed", range(20))
def test_the_other_clip_of_a_pair_over_videos_is_held_out_with_it(seed):
    pairs = [over(number, f"/v/{number}.mp4", f"/v/{number + 4}.mp4") for number in range(4)]  # 0 and 4, 1 and 5 …
    pairs += [pair(number, f"/v/{number}.mp4") for number in range(4, 8)]
    pairs += [over(8, "/v/8.mp4", "file:///v/../v/9.mp4#t=1,2"), pair(9, "/v/9.mp4")]
    pairs += [over(10, "/v/10.mp4", "/v/10.mp4 (1f.altered-2e)"), pair(11, "/v/11.mp4")]
    trained, held = divided(pairs, share=0.3, seed=seed)
    numbers = [{int(each.video.removeprefix("/v/").removesuffix(".mp4")) for each in side} for side in (trained, held)]
    assert all(numbers)
    for one, other in ((0, 4), (1, 5), (2, 6), (3, 7), (8, 9)):
        assert {one, other} <= numbers[0] or {one, other} <= numbers[1]


def test_one_clip_that_all_pairs_are_set_against_is_said(rounds, monkeypatch):
    with_pairs(rounds)
    table = rounds.run.stage("pairs", 0) / "pairs.parquet"
    pairs = files.read_table(table, PreferencePair)
    files.write_table(table, [dataclasses.replace(each, rejected_videos=("/v/dark.mp4",)) for each in pairs])
    trained_by(monkeypatch, lambda place: [1.0, 0.0])
    with pytest.raises(DataError, match=r"too few videos .* shown together, or in place of one another, count as one"):
        once(rounds.train(0))


def test_whole_videos_are_held_out_as_before():
    """Runs that were begun go on with the same pairs."""
    pairs = [pair(number, f"/v/{number % 10}.mp4") for number in range(40)]
    names = sorted({each.context.visuals for each in pairs}, key=lambda names: stable_hash([1, *names]))
    assert {each.context.visuals for each in divided(pairs, share=0.2, seed=1)[1]} == set(names[:2])
