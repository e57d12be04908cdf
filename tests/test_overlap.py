"""Two stages at once, with stages that only say when they are at work: order, bounds, failures, signals, and what is resumed."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_rounds import make  # noqa: F401

from cluster import interrupts
from cluster.resources import ClusterResources
from pipelines.checks.overlap import check_judges_fit, check_staleness, overlap_lines
from pipelines.overlap import overlapped
from pipelines.rounds import resource_plan
from pipelines.stages.base import once
from pipelines.stages.staleness import fresh, read_fresh, responder
from pipelines.summary import ages
from vidalign import files
from vidalign.config.loading import parse_config
from vidalign.errors import ClusterError, ConfigError, DataError
from vidalign.types import PolicyVersion, Response


class Log:
    """When each stage of which round began and ended, in order."""

    def __init__(self, pause=lambda: 0.0):
        self.events, self.pause, self._lock = [], pause, threading.Lock()

    def stage(self, name):
        def run(index):
            self.note(name, index, "began")
            time.sleep(self.pause())
            self.note(name, index, "ended")

        return run

    def note(self, *event):
        with self._lock:
            self.events.append(event)

    def place(self, *event):
        return self.events.index(event)


@pytest.mark.parametrize("staleness", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_each_stage_waits_for_what_it_needs_and_for_nothing_else(staleness, seed):
    rng = random.Random(seed)
    log = Log(lambda: rng.choice((0.0, 0.01)))
    overlapped(5, staleness, log.stage("rollout"), log.stage("train"))
    assert len(log.events) == len(set(log.events)) == 20
    for index in range(5):
        assert log.place("rollout", index, "ended") < log.place("train", index, "began")
        if index:
            assert log.place("rollout", index - 1, "ended") < log.place("rollout", index, "began")
            assert log.place("train", index - 1, "ended") < log.place("train", index, "began")
        if index > staleness:
            assert log.place("train", index - 1 - staleness, "ended") < log.place("rollout", index, "began")


def test_the_next_rollout_and_a_training_are_at_work_at_the_same_time():
    both = [threading.Barrier(2, timeout=5) for _ in range(2)]

    def rollout(index):
        if index:
            both[index - 1].wait()  # which the training of the round before has to reach too

    def train(index):
        if index < 2:
            both[index].wait()

    overlapped(3, 1, rollout, train)


def test_signals_arrive_where_training_is():
    threads = {}
    overlapped(
        2,
        1,
        lambda index: threads.setdefault("rollout", threading.current_thread()),
        lambda index: threads.setdefault("train", threading.current_thread()),
    )
    assert threads["train"] is threading.main_thread() is not threads["rollout"]


# --- failures ---


def test_a_failed_training_ends_the_rollout_beside_it_and_is_what_the_run_says():
    began, left = threading.Event(), []

    def rollout(index):
        if index:
            began.set()
            try:
                while True:
                    time.sleep(0.01)
            finally:
                left.append(index)

    def train(index):
        assert began.wait(5)
        raise ClusterError("the loss is not finite")

    with pytest.raises(ClusterError, match="the loss is not finite"):
        overlapped(3, 1, rollout, train)
    assert left == [1]
    assert "rollouts" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("how", ["waiting", "beside"])
def test_a_failed_rollout_ends_the_training_beside_it_and_is_what_the_run_says(how):
    began, over, trained = threading.Event(), threading.Event(), []

    def rollout(index):
        if index:
            assert began.wait(5)
            raise RuntimeError("of Ray") from ClusterError("no node is left")

    def train(index):
        began.set()
        if how == "beside":
            interrupts.beside(lambda: over.wait(60))
        else:
            time.sleep(60)
        trained.append(index)

    since = time.monotonic()
    with pytest.raises(ClusterError, match="no node is left"):
        overlapped(3, 1, rollout, train)
    over.set()
    assert (trained, time.monotonic() - since < 30) == ([], True)


def test_a_rollout_that_fails_before_its_training_ends_the_wait_for_it():
    def rollout(index):
        raise DataError("none of the videos could be decoded")

    with pytest.raises(DataError, match="none of the videos"):
        overlapped(2, 1, rollout, lambda index: pytest.fail("there is nothing to train on"))


def test_a_failed_rollout_is_heard_by_a_training_that_goes_into_a_wait_as_the_signal_comes(monkeypatch):
    """Python has noted the signal and the call that the main thread waits in was not interrupted: as a thread's own signal does."""
    kill = signal.pthread_kill
    monkeypatch.setattr(
        interrupts.signal, "pthread_kill",
        lambda thread, number: signal.raise_signal(number) if number == signal.SIGINT else kill(thread, number),
    )  # fmt: skip
    began = threading.Event()

    def rollout(index):
        if index:
            assert began.wait(5)
            time.sleep(0.2)
            raise ClusterError("no node is left")

    def train(index):
        began.set()
        time.sleep(60)

    since = time.monotonic()
    with pytest.raises(ClusterError, match="no node is left"):
        overlapped(3, 1, rollout, train)
    assert time.monotonic() - since < 30


def test_a_failed_rollout_is_heard_where_its_signal_was_dropped(monkeypatch):
    monkeypatch.setattr(interrupts.signal, "pthread_kill", lambda thread, number: None)

    def rollout(index):
        raise DataError("no video")

    with pytest.raises(DataError, match="no video"):
        overlapped(2, 1, rollout, lambda index: None)


@pytest.mark.parametrize("seed", range(8))
def test_of_two_failures_at_once_one_is_raised_and_no_signal_is_left_over(seed):
    both, rng = threading.Barrier(2, timeout=5), random.Random(seed)
    pauses = {"rollout": rng.choice((0.0, 0.001)), "train": rng.choice((0.0, 0.001))}

    def fails(name):
        def run(index):
            if name == "train" or index:
                both.wait()
                time.sleep(pauses[name])
                raise ClusterError(name)

        return run

    with pytest.raises(ClusterError, match=r"rollout|train"):
        overlapped(2, 1, fails("rollout"), fails("train"))
    for _ in range(20):
        time.sleep(0.001)  # a signal that came too late would be raised here


# --- signals, in a command of its own ---

SCRIPT = """
import sys, threading, time
from cluster import interrupts
from pipelines import cli, overlap
from pipelines.overlap import overlapped
from vidalign.errors import ClusterError

both = threading.Barrier(2)

def rollout(index):
    if index:
        both.wait()
        {rollout}

def train(index):
    both.wait()
    print("both", flush=True)
    {train}

overlap.END_S = 0.5
cli._run_doctor = lambda arguments: overlapped(3, 1, rollout, train)
sys.argv = ["vidalign", "doctor"]
sys.exit(cli.main())
"""
FOR_EVER = "while True: time.sleep(0.01)"


@pytest.mark.parametrize(
    ("number", "code", "rollout", "train"),
    [
        (signal.SIGINT, 130, FOR_EVER, "time.sleep(60)"),
        (signal.SIGTERM, 143, FOR_EVER, "interrupts.beside(threading.Event().wait)"),
        (signal.SIGTERM, 143, "threading.Event().wait()", "time.sleep(60)"),  # in one call, which nothing ends
    ],
    ids=["Ctrl-C", "SIGTERM", "a rollout that hangs"],
)
def test_a_signal_ends_both(number, code, rollout, train):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(rollout=rollout, train=train)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "both\n"
    since = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.strip()) == (code, interrupts.STOPPED.strip())
    assert time.monotonic() - since < 8


def test_a_thread_that_waits_is_ended_and_its_blocks_are_left():
    left, began = [], threading.Event()

    def work():
        with contextlib.ExitStack() as stack:
            stack.callback(left.append, "block")
            began.set()
            while True:
                time.sleep(0.005)

    def run():
        with contextlib.suppress(interrupts.Cancelled):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert began.wait(5)
    assert interrupts.end_thread(thread, 5.0)
    assert left == ["block"]
    over = threading.Event()

    def hold():
        with contextlib.suppress(interrupts.Cancelled):
            over.wait(20)

    held = threading.Thread(target=hold, daemon=True)
    held.start()
    assert not interrupts.end_thread(held, 0.05), "a thread in one call goes on"
    over.set()


# --- whose responses ---


def policies(count):
    return lambda index: PolicyVersion(version=f"v{index}", path="m") if index < count else None


@pytest.mark.parametrize(("staleness", "expected"), [(0, [0, 1, 2, 3]), (1, [0, 0, 1, 2]), (2, [0, 0, 0, 1])])
def test_the_policy_of_a_round_is_the_oldest_that_may_be(staleness, expected, tmp_path):
    assert [responder(index, staleness, tmp_path, policies(9)) for index in range(4)] == expected


@pytest.mark.parametrize("name", ["begun.json", "manifest.json"])
def test_responses_that_a_younger_policy_began_are_kept_and_those_of_an_older_one_refused(name, tmp_path):
    files.write_json(tmp_path / name, {"inputs": {"policy": "v2"}})
    assert responder(2, 1, tmp_path, policies(3)) == 2
    assert responder(3, 1, tmp_path, policies(4)) == 2
    with pytest.raises(
        ConfigError, match="max_staleness=1 allows round 4 none older than that of round 3; set max_staleness to 2"
    ):
        responder(4, 1, tmp_path, policies(4))
    files.write_json(tmp_path / name, {"inputs": {"policy": "another base"}})
    assert responder(3, 1, tmp_path, policies(4)) == 2, "which the stage then refuses, naming both"
    files.write_json(tmp_path / name, {"inputs": "0123"})  # of format 1
    assert responder(3, 1, tmp_path, policies(4)) == 2


def response(candidate, version):
    return Response(
        example_id="e", kind="plain", candidate=candidate, turn=0, text="a", token_ids=(1,), log_probs=(-0.1,), policy_version=version,
        seed=0, temperature=1.0, top_p=1.0, finish_reason="stop",
    )  # fmt: skip


def test_responses_that_are_too_old_are_dropped_counted_and_said(tmp_path, capsys):
    made = [response(n, version) for n, version in enumerate(("v0", "v1", "v1", "v2"))]
    files.write_table(tmp_path / "responses.parquet", made)
    assert fresh(2, 1, policies(3)) == {"v1", "v2"}
    kept, facts = read_fresh([tmp_path], fresh(2, 1, policies(3)), tokens=False)
    assert [one.candidate for one in kept] == [1, 2, 3]
    assert facts == {"too_old": 1}
    assert "1 of 4 responses are older than max_staleness allows and are not learned from" in capsys.readouterr().err
    kept, facts = read_fresh([tmp_path], fresh(2, 0, policies(3)), tokens=False)
    assert (len(kept), facts) == (4, {}), (
        "without staleness a round's responses are its own policy's, and manifests as they were"
    )
    with pytest.raises(DataError, match=r"all 4 responses in .* are of policies older than max_staleness allows"):
        read_fresh([tmp_path], frozenset({"v9"}), tokens=False)


# --- stages of a run ---


def finish_round(rounds, index, version):
    files.write_json(rounds.run.stage("train", index) / "manifest.json", {"inputs": {}})
    files.write_json(rounds.run.stage("model", index) / "vidalign.json", {"version": version, "parent": "p"})


def finish_pairs(rounds, index):
    files.write_json(rounds.run.stage("pairs", index) / "manifest.json", {"inputs": {}})


def test_a_round_is_asked_before_the_policy_that_it_trains_is_there(make):  # noqa: F811
    rounds = make("rounds=3", "cluster.overlap=true")
    assert rounds.rollout(1).policy.version == "pol"
    finish_pairs(rounds, 0)
    finish_round(rounds, 0, "one")
    finish_pairs(rounds, 1)
    assert rounds.policy(1).version == "one"
    rollout = rounds.rollout(2)
    assert (rollout.policy.version, rollout.policy_round, rollout.round_index) == ("one", 1, 2)
    assert rounds.pairs(2).fresh == {"one"}
    with pytest.raises(DataError, match="no trained policy of round 1"):
        rounds.train(2)
    synchronous = dataclasses.replace(rounds, config=make("rounds=3").config)
    assert synchronous.pairs(1).fresh is None
    with pytest.raises(DataError, match="no trained policy of round 1"):
        synchronous.rollout(2)


def test_what_is_finished_ahead_is_known_before_the_training_beside_it_is(make, monkeypatch):  # noqa: F811
    rounds = make("rounds=3", "cluster.overlap=true")
    for index in (0, 1):
        rollout = rounds.rollout(index)
        monkeypatch.setattr(type(rollout), "run", lambda self: {})
        once(rollout)
        monkeypatch.setattr("pipelines.stages.pairs.Pairs.run", lambda self: {})
        once(rounds.pairs(index))
    ahead = {(each.name, each.round_index): each.is_finished for each in rounds.accept(("rollout", "train"))}
    assert [key for key, is_finished in ahead.items() if is_finished] == [
        ("rollout", 0), ("pairs", 0), ("rollout", 1), ("pairs", 1),
    ]  # fmt: skip
    manifest = files.read_json(rounds.run.stage("responses", 1) / "manifest.json")
    assert manifest["inputs"]["policy"] == "pol"
    assert manifest["started_at"] <= manifest["finished_at"]


def test_a_run_that_overlapped_goes_on_without_and_is_refused_with_less_staleness(make, monkeypatch):  # noqa: F811
    rounds = make("rounds=3", "cluster.overlap=true")
    monkeypatch.setattr("pipelines.stages.rollout.Rollout.run", lambda self: {})
    once(rounds.rollout(0))
    finish_pairs(rounds, 0)
    once(rounds.rollout(1))
    finish_round(rounds, 0, "one")
    alone = dataclasses.replace(rounds, config=make("rounds=3", "max_staleness=1").config)
    assert alone.rollout(1).inputs() == rounds.rollout(1).inputs()
    fewer = dataclasses.replace(rounds, config=make("rounds=3").config)
    with pytest.raises(
        ConfigError, match="max_staleness=0 allows round 1 none older than that of round 1; set max_staleness to 1"
    ):
        fewer.rollout(1)


def test_a_synchronous_run_goes_on_with_overlap(make, monkeypatch):  # noqa: F811
    rounds = make("rounds=3")
    monkeypatch.setattr("pipelines.stages.rollout.Rollout.run", lambda self: {})
    finish_pairs(rounds, 0)
    finish_round(rounds, 0, "one")
    once(rounds.rollout(1))
    overlapping = dataclasses.replace(rounds, config=make("rounds=3", "cluster.overlap=true").config)
    assert overlapping.rollout(1).inputs()["policy"] == "one"
    finish_pairs(rounds, 1)
    assert overlapping.rollout(2).policy.version == "one"


def test_the_summary_says_how_old_what_was_learned_from_is(make):  # noqa: F811
    rounds = make("rounds=3", "cluster.overlap=true")
    for index, place in enumerate((0, 0)):
        files.write_json(rounds.run.stage("responses", index) / "manifest.json", {"policy_round": place})
        files.write_json(rounds.run.stage("pairs", index) / "manifest.json", {"too_old": index})
    assert ages(rounds.config, rounds.run) == {"staleness": {"max": 1, "ages": [0, 1, None], "too_old": [0, 1, None]}}
    assert ages(make("rounds=3").config, rounds.run) == {}


# --- what is refused, and what a dry run says ---


JUDGE = {"kind": "openai", "model": "j", "base_url": "http://h/v1"}


def config_of(recipe, **more):
    return parse_config(
        {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}, "recipe": recipe, "rounds": 3, **more}
    )


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [
        (
            {"name": "leanpo", "negatives": "both"},
            {"max_staleness": 1},
            "negatives=both learns from what all earlier rounds",
        ),
        ({"name": "given"}, {"cluster": {"overlap": True}}, "recipe.name=given makes none; set cluster.overlap to false"),
        (
            {"name": "group"},
            {
                "cluster": {"overlap": True},
                "objective": {"name": "grpo"},
                "rounds": [{"repeat": 2}, {"recipe": {"name": "verified", "judge": JUDGE}, "objective": {"name": "dpo"}}],
            },
            "recipe.name=verified learns in round 2 from what earlier rounds sampled, and max_staleness=1",
        ),
        (
            {"name": "leanpo"},
            {
                "max_staleness": 1,
                "objective": {"name": "value"},
                "rounds": [
                    {},
                    {"recipe": {"name": "group", "num_candidates": 1, "rewards": {}}, "objective": {"name": "dvpo"}},
                ],
            },
            "objective.name=value trains no policy in round 0",
        ),
    ],
)
def test_a_recipe_that_learns_from_older_responses_on_purpose_is_refused(recipe, more, said):
    with pytest.raises(ConfigError, match=said):
        check_staleness(config_of(recipe, **more))
    more.pop("max_staleness", None)
    check_staleness(config_of(recipe, **{**more, "cluster": {}}))


def test_a_judge_that_finds_no_room_beside_training_is_refused():
    judge = {"kind": "vllm", "model": "j", "num_gpus": 4}
    more = {"cluster": {"overlap": True}, "train": {"num_workers": 6, "batch_size": 6}}
    config = config_of({"name": "hound", "judge": judge}, objective={"name": "dpo"}, **more)
    crowded = resource_plan(config, ClusterResources(num_cpus=64, num_gpus=8))
    with pytest.raises(ClusterError, match=r"num_gpus=4, but beside training \(cluster.overlap\) engines have 2 GPUs"):
        check_judges_fit([config], crowded)
    check_judges_fit([config], resource_plan(config, ClusterResources(num_cpus=64, num_gpus=10)))


def test_a_dry_run_says_what_is_at_work_at_once(make):  # noqa: F811
    rounds = make("rounds=3", "cluster.overlap=true")
    [line] = overlap_lines(rounds.config, rounds.plan)
    assert line == (
        "overlap: responses of the next round are made beside training, 0.5 CPU for responses, 0.5 CPU for training; responses are "
        "of a policy that is 1 round old (max_staleness=1)"
    )
    [line] = overlap_lines(make("rounds=3", "max_staleness=2").config, make("rounds=3").plan)
    assert "2 rounds old" in line
    assert "nothing overlaps" in line
    assert overlap_lines(make("rounds=3").config, make("rounds=3").plan) == []


def test_ranks_that_come_and_go_are_refused_beside_engines():
    train = {"num_workers": [1, 2]}
    with pytest.raises(
        ConfigError, match=r"num_workers=\[1, 2\] takes the room .* set train\.num_workers to 2, or cluster\.overlap"
    ):
        check_staleness(config_of({"name": "leanpo"}, train=train, cluster={"overlap": True}))
    check_staleness(config_of({"name": "leanpo"}, train=train))
