"""Rounds that overlap through real Ray, vLLM and DeepSpeed: at work at once, stopped and killed, and the same in the end."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, vidalign, vidalign_killed
from safetensors.numpy import load_file

from vidalign import files
from vidalign.types import Response, ResponseGroup

pytestmark = [pytest.mark.heavy, pytest.mark.long]
NUM_ROUNDS = 3


@pytest.fixture(scope="module")
def config(small_config, tmp_path_factory):
    """Three rounds of GRPO on 24 questions; small steps, so that a training takes about as long as a rollout."""
    raw = yaml.safe_load(small_config.read_text())
    raw["data"].pop("eval")
    raw["data"]["limit"] = 24
    raw["train"] |= {"batch_size": 6, "micro_batch_size": 3, "log_every": 1, "checkpoint_every": 1}
    raw |= {
        "rounds": NUM_ROUNDS,
        "rollout": {"batch_size": 8},
        "recipe": {"name": "group", "num_candidates": 4, "max_new_tokens": 24, "trust": "exact"},
        "objective": {"name": "grpo", "params": {"decoupled": True}},
        "cluster": {"address": "local", "overlap": True},
    }
    path = tmp_path_factory.mktemp("overlap") / "align.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("overlapped") / "run"
    done = vidalign("align", str(config), f"run_dir={run}")
    assert done.returncode == 0, done.stderr[-4000:]
    return run


def manifest(run, stage, index):
    return files.read_json(run / f"rounds/{index}/{stage}/manifest.json")


def groups_of(run, index):
    return files.read_table(run / f"rounds/{index}/pairs/groups.parquet", ResponseGroup)


def test_the_next_rollout_and_a_training_are_at_work_at_once_and_no_response_is_older_than_a_round(undisturbed):
    for index in range(NUM_ROUNDS - 1):
        training, rollout = manifest(undisturbed, "train", index), manifest(undisturbed, "responses", index + 1)
        began, ended = (
            max(training["started_at"], rollout["started_at"]),
            min(training["finished_at"], rollout["finished_at"]),
        )
        assert began < ended, f"training {index} and rollout {index + 1} did not overlap"
    base = files.read_json(undisturbed / "summary.json")["policy"]["base"]
    started = [base, *(manifest(undisturbed, "train", index)["policy"] for index in range(NUM_ROUNDS))]
    assert len(set(started)) == NUM_ROUNDS + 1
    for index in range(NUM_ROUNDS):
        made = manifest(undisturbed, "responses", index)
        assert (made["policy_round"], made["policy"]) == (max(0, index - 1), started[max(0, index - 1)])
        responses = files.read_table(undisturbed / f"rounds/{index}/responses/responses.parquet", Response)
        assert {response.policy_version for response in responses} == {made["policy"]}
        assert manifest(undisturbed, "train", index)["inputs"]["policy"] == started[index]
        assert manifest(undisturbed, "pairs", index)["too_old"] == 0
        assert {group.policy_version for group in groups_of(undisturbed, index)} == {made["policy"]}
    plan = files.read_json(undisturbed / "plan.json")
    assert plan["overlap"]


def both_at_work(run):
    """Whether the first training and the second rollout have begun and are not finished."""
    begun = [run / f"rounds/{place}" for place in ("0/train", "1/responses")]
    return all((each / "begun.json").is_file() and not (each / "manifest.json").is_file() for each in begun)


def steps_made(run, index):
    path = run / f"rounds/{index}/train/progress.json"
    made = files.read_json(path) if path.is_file() else {}
    return made["step"] if made.get("phase") == "train" else 0


def test_a_run_that_is_stopped_and_killed_continues_to_the_same_policies(undisturbed, config, tmp_path):
    run = tmp_path / "run"
    for name in ("frames", "rounds/0/responses", "rounds/0/pairs", "rounds/0/quarantine"):
        shutil.copytree(undisturbed / name, run / name)
    arguments = ("align", str(config), f"run_dir={run}")
    stop_while(lambda: both_at_work(run), *arguments)
    vidalign_killed(*arguments, when=lambda: steps_made(run, 0) >= 1)
    done = vidalign(*arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    for index in range(NUM_ROUNDS):
        made, expected = groups_of(run, index), groups_of(undisturbed, index)
        assert [(group.id, group.texts) for group in made] == [(group.id, group.texts) for group in expected], index
    weights, expected = (load_file(each / f"rounds/{NUM_ROUNDS - 1}/model/model.safetensors") for each in (run, undisturbed))
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-5, err_msg=name)


def stop_while(when, *arguments):
    """SIGTERM to the command at that moment: it ends in 15 s with 143, in one sentence, and leaves no process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not when():
        assert process.poll() is None, "the command ended before it could be stopped"
        assert time.monotonic() < until
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert process.returncode == 143, error[-2000:]
    assert "vidalign: stopped; run the same command again to continue" in error
    assert "Traceback" not in error, error[-4000:]
    _, alive = psutil.wait_procs(below, timeout=5)
    assert alive == [], [each.cmdline() for each in alive if each.is_running()]


def test_without_overlap_equal_staleness_makes_the_same_responses(undisturbed, config, tmp_path):
    run = tmp_path / "run"
    overrides = ("cluster.overlap=false", "max_staleness=1", "rounds=2")
    done = vidalign("align", str(config), f"run_dir={run}", *overrides)
    assert done.returncode == 0, done.stderr[-4000:]
    for index in range(2):
        made, expected = groups_of(run, index), groups_of(undisturbed, index)
        assert [(group.id, group.texts) for group in made] == [(group.id, group.texts) for group in expected]
