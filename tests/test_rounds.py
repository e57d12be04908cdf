"""The stages that a configuration makes, and what they are recognised by, in runs of today and of format 1."""

import dataclasses
import json

import pytest

from cluster.resources import ClusterResources
from pipelines.align import outlook
from pipelines.inputs import Inputs
from pipelines.rounds import Rounds, check_order, resource_plan
from pipelines.stages.base import flat, once
from pipelines.stages.judge import Judging
from vidalign import files
from vidalign.config.loading import dump_config, parse_config
from vidalign.data.reading import DataRow
from vidalign.data.rows import ExampleRow
from vidalign.errors import ConfigError, DataError
from vidalign.files import RunFolder
from vidalign.recipes.judging import JudgeTask, judge_rows
from vidalign.types import Example, PolicyVersion, stable_hash

TRAIN = Example(id="a", video="/v/a.mp4", question="Q?", answer="A.", options=("A.", "B."), category="c", caption="cap")
PROBE = Example(id="p", video="/v/p.mp4", question="Q?", answer="A.")
ROW = DataRow(TRAIN, ExampleRow(id="a", video="/v/a.mp4", question="Q?", answer="A."), "t:1")


@pytest.fixture
def make(tmp_path):
    """Rounds of a small configuration with overrides, in one run folder."""

    def made(*overrides):
        raw = {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": "m", "dtype": "float32", "max_model_len": 512},
            "data": {"train": "t", "eval": "e", "probe": "p"},
            "video": {"num_frames": 8, "height": 56, "width": 56},
            "recipe": {
                "name": "hound",
                "judge": {"kind": "openai", "model": "j", "base_url": "http://h/v1"},
                "captions": "policy",
            },
            "objective": {"name": "dpo", "params": {"beta": 0.2}},
            "train": {"lora": {"rank": 4, "alpha": 8}, "log_every": 3},
            "seed": 5,
        }
        config = parse_config(raw, overrides)
        return Rounds(
            config=config,
            run=RunFolder.open(config.run_dir),
            plan=resource_plan(config, ClusterResources(num_cpus=2)),
            inputs=Inputs(train=[ROW], eval=[PROBE], probe=[PROBE], present=[], missing=[]),
            base=PolicyVersion(version="pol", path="m"),
        )

    return made


def finish_pairs(rounds):
    files.write_json(rounds.run.stage("pairs", 0) / "manifest.json", {"inputs": "0123456789abcdef"})


def finish_model(rounds):
    files.write_json(rounds.run.stage("train", 0) / "manifest.json", {"inputs": "x"})
    files.write_json(rounds.run.stage("model", 0) / "vidalign.json", {"version": "new", "parent": "pol"})


def test_runs_of_format_1_are_recognised_by_the_hashes_that_they_hold(make):
    """The hashes were computed by the code that wrote such runs; their config.yaml holds the defaults of then."""
    rounds = make("train.checkpoint_every=50", "train.num_checkpoints_kept=2")
    finish_pairs(rounds)
    assert stable_hash(rounds.rollout(0).inputs_v1()) == "09daa686ea796eb1"
    assert stable_hash(rounds.pairs(0).inputs_v1()) == "5a6eeb5e4c85fd98"
    assert stable_hash(rounds.train(0).inputs_v1()) == "801d95e1f29558e0"
    finish_model(rounds)
    evaluate = rounds.evaluate()
    assert stable_hash(evaluate.inputs_v1()) == "10cbb816a8ce4486"
    assert [policy.version for policy in evaluate.policies.values()] == ["pol", "new"]
    judging = Judging(
        folder=rounds.run.root,
        judge=rounds.config.recipe.judge,
        task=JudgeTask(rows=["{}"], work=judge_rows),
        engines=rounds.plan.engines,
        label="judge",
    )
    assert stable_hash(judging.inputs_v1()) == "a063777c26cee3c1"


@pytest.mark.parametrize(
    ("override", "stage", "option"),
    [
        ("recipe.temperature=0.5", "rollout", "recipe.temperature"),
        ("recipe.max_new_tokens=9", "rollout", "recipe.max_new_tokens"),
        ("recipe.captions=data", "rollout", "recipe.captions"),
        ("video.num_frames=4", "rollout", "video.num_frames"),
        ("seed=6", "rollout", "seed"),
        ("model.dtype=bfloat16", "rollout", "model.dtype"),
        ("recipe.threshold=4", "pairs", "pairing.threshold"),
        ("recipe.judge.prompt='{caption}{question}{answer}{response}'", "pairs", "pairing.judge.prompt"),
        ("recipe.lint.max_duplicates=1", "pairs", "pairing.lint.max_duplicates"),
        ("train.learning_rate=1e-3", "train", "train.learning_rate"),
        ("train.lora.rank=8", "train", "train.lora.rank"),
        ("objective.params.beta=0.3", "train", "objective.params.beta"),
        ("evaluate.max_new_tokens=9", "evaluate", "evaluate.max_new_tokens"),
    ],
)
def test_an_option_that_changes_the_result_is_an_input_of_its_stage(make, override, stage, option):
    before, after = inputs_of(make(), stage), inputs_of(make(override), stage)
    assert {name for name in before if before[name] != after[name]} == {option}


@pytest.mark.parametrize(
    "override",
    [
        "train.log_every=9",
        "train.num_workers=2",
        "train.max_failures=0",
        "train.cache_dir=/elsewhere",
        "train.checkpoint_every=1",
        "train.num_checkpoints_kept=5",
        "train.tokens_per_micro_batch=99",
        "rollout.num_engines=1",
        "rollout.batch_size=3",
        "video.cache_dir=/elsewhere",
        "video.num_decoders=1",
        "recipe.judge.concurrency=1",
        "recipe.judge.timeout_s=1",
        "evaluate.concurrency=1",
        "serve.port=1234",
        "cluster.num_cpus=2",
        "run_dir=elsewhere",
    ],
)
def test_an_option_that_changes_no_result_is_in_no_manifest(make, override, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("rollout", "pairs", "train", "evaluate"):
        assert inputs_of(make(), stage) == inputs_of(make(override), stage)


def inputs_of(rounds, name):
    finish_pairs(rounds)
    finish_model(rounds)
    stage = rounds.evaluate() if name == "evaluate" else getattr(rounds, name)(0)
    return flat(stage.inputs())


def test_the_data_are_inputs_of_the_rollout(make):
    rounds = make()
    other = dataclasses.replace(ROW, example=dataclasses.replace(TRAIN, answer="B."))
    changed = dataclasses.replace(rounds, inputs=dataclasses.replace(rounds.inputs, train=[other]))
    before, after = flat(rounds.rollout(0).inputs()), flat(changed.rollout(0).inputs())
    assert before["data.train"].startswith("1 examples, ")
    assert {name for name in before if before[name] != after[name]} == {"data.train"}


def test_a_run_of_format_1_goes_on_with_options_that_change_no_result(make):
    """Also in the command after the next, when config.yaml does not say any more how the run was begun."""
    rounds = make()
    for stage in (rounds.rollout(0), rounds.pairs(0)):
        files.write_json(stage.folder / "manifest.json", {"inputs": stable_hash(stage.inputs_v1()), "kept": 3})
    finish_model(rounds)
    train = rounds.train(0)
    files.write_json(train.folder / "manifest.json", {"inputs": stable_hash(train.inputs_v1())})
    files.write_text_atomic(rounds.run.config, dump_config(rounds.config))
    for override in ("train.log_every=9", "train.max_failures=1", "rollout.batch_size=3"):
        later = make(override)
        later.accept(("rollout", "train"))
        files.write_text_atomic(later.run.config, dump_config(later.config))
        assert once(later.rollout(0))["format"] == once(later.train(0))["format"] == 2
        assert once(later.pairs(0))["kept"] == 3
    with pytest.raises(ConfigError, match=r"train\.learning_rate was 5e-07 and is now 0\.1"):
        make("train.learning_rate=0.1").accept(("train",))


def test_a_run_accepts_a_configuration_before_anything_of_it_is_changed(make):
    rounds = make()
    stage = rounds.rollout(0)
    files.write_json(stage.folder / "manifest.json", {"inputs": stable_hash(stage.inputs_v1())})  # of format 1
    files.write_text_atomic(rounds.run.config, dump_config(rounds.config))
    rounds.accept(("rollout", "train", "evaluate"))
    make("train.log_every=9").accept(("rollout",))
    make("rollout.batch_size=7").accept(("rollout",))  # in the hash of format 1, and of no meaning to a finished stage
    with pytest.raises(ConfigError, match=r"recipe\.temperature was 1\.0 and is now 0\.5"):
        make("recipe.temperature=0.5").accept(("rollout",))
    make("recipe.temperature=0.5").accept(("train",))  # asks nothing of the rollout


# What a command has ahead of it


def finished(rounds, *names):
    """Finish these stages as they would be, without what they make."""
    for name in names:
        stage = getattr(rounds, name)(0) if name in ("rollout", "pairs", "train") else getattr(rounds, name)()
        made = {"format": 2, "stage": stage.name, "inputs": as_stored(flat(stage.inputs()))}
        files.write_json(stage.folder / "manifest.json", made)
        if name == "train":
            files.write_json(rounds.run.stage("model", 0) / "vidalign.json", {"version": "new", "parent": "pol"})


def as_stored(values):
    return json.loads(json.dumps(values))


def test_a_command_says_what_it_makes_what_it_makes_again_and_what_it_keeps(make):
    rounds, every = make(), ("rollout", "train", "evaluate", "report")
    assert [str(stage) for stage in rounds.accept(every)] == [
        f"{name} of round 0 is to be made" for name in ("rollout", "pairs", "train", "evaluate", "scores")
    ]
    finished(rounds, "rollout", "pairs")
    files.write_json(
        rounds.run.stage("train") / "begun.json", {"format": 2, "stage": "train", "inputs": {}} | begun(rounds.train(0))
    )
    said = outlook(rounds.accept(every))
    assert said.startswith(
        "train of round 0 goes on from where it stopped; evaluate of round 0 is to be made; scores of round 0 is"
    )
    assert said.endswith("; finished and kept: rollout of round 0, pairs of round 0")
    finished(rounds, "train", "evaluate", "scores")
    assert outlook(rounds.accept(every)).startswith("nothing is left to do")
    (rounds.run.stage("pairs") / "manifest.json").unlink()
    (rounds.run.stage("pairs") / "pairs.parquet").touch()
    said = outlook(rounds.accept(every))
    assert (
        f"pairs of round 0 is made again, because {rounds.run.stage('pairs')} has no manifest.json; train of round 0 is looked"
        in said
    )
    with pytest.raises(ConfigError, match=r"recipe\.temperature was 1\.0 and is now 0\.5"):
        make("recipe.temperature=0.5").accept(every)


def begun(stage):
    return {"inputs": as_stored(flat(stage.inputs())), "layout": flat(stage.layout())}


def test_a_stage_that_has_nothing_to_work_on_is_refused_before_anything_starts(make):
    rounds = make()
    config = rounds.config
    with pytest.raises(DataError, match=r"no pairs of round 0 to train on; run `vidalign rollout`"):
        check_order(config, ("train",))
    with pytest.raises(DataError, match=r"no trained policy of round 0; run `vidalign train`"):
        check_order(config, ("evaluate",))
    with pytest.raises(DataError, match=r"has nothing to report"):
        check_order(config, ("report",))
    with pytest.raises(ConfigError, match=r"data\.eval, which is not set"):
        check_order(make("data.eval=null").config, ("evaluate",))
    check_order(config, ("rollout", "train", "evaluate", "report"))
    finished(rounds, "rollout", "pairs")
    check_order(config, ("train",))
    check_order(config, ("report",))
    finished(rounds, "train")
    check_order(config, ("evaluate",))
    check_order(config, ("train",))
    with pytest.raises(DataError, match=r"no pairs of round 1"):
        check_order(make("rounds=2").config, ("train",))
