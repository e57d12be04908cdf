"""A training on two nodes loses one, goes on with one rank, and gets the second back: its losses are those of an undisturbed one."""

import math
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from conftest import ROOT, vidalign

from bench.chaos_nodes import two_nodes
from bench.chaos_strikes import Descendants
from vidalign import files
from vidalign.types import PreferencePair

NUM_STEPS = 500  # enough for a node to go, and another to come
OVERRIDES = (
    "train.batch_size=4",
    "train.log_every=20",
    "train.checkpoint_every=20",
    "train.micro_batch_size=2",
)
COMMAND = """
import sys
from pipelines import cli
from pipelines.stages import train
train.RESIZE_EVERY_S = 5.0
sys.exit(cli.main(sys.argv[1:]))
"""
RANK = "ray::RayTrainWorker"


def copy_up_to_training(run: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    without = (
        "train",
        "model",
        "reference",
        "eval",
        "scores",
        "report",
        "lease",
        "summary.json",
        "finished.json",
        "wall_s.json",
    )
    return pathlib.Path(shutil.copytree(run, target, ignore=shutil.ignore_patterns(*without)))


def losses(run: pathlib.Path) -> dict[int, float | None]:
    return {row["step"]: row["loss"] for row in files.read_jsonl(run / "rounds/0/train/metrics.jsonl")}


def step_of(run: pathlib.Path) -> int:
    path = run / "rounds/0/train/progress.json"
    made = files.read_json(path) if path.is_file() else {}
    return made["step"] if made.get("phase") == "train" else 0


@pytest.mark.heavy
@pytest.mark.long
def test_a_training_goes_on_with_fewer_ranks_and_takes_more_back(finished_run, small_config, tmp_path):
    calm = copy_up_to_training(finished_run, tmp_path / "calm")
    num_pairs = len(files.read_table(calm / "rounds/0/pairs/pairs.parquet", PreferencePair))
    overrides = (*OVERRIDES, f"train.num_epochs={math.ceil(4 * NUM_STEPS / num_pairs)}")
    done = vidalign("train", str(small_config), f"run_dir={calm}", "cluster.address=local", *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    run = copy_up_to_training(finished_run, tmp_path / "run")
    with two_nodes() as nodes, (tmp_path / "said.txt").open("w") as said:
        elastic = (f"cluster.address={nodes.address}", "train.num_workers=[1, 2]")
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "train", str(small_config), f"run_dir={run}", *overrides, *elastic],
            cwd=ROOT, stdout=said, stderr=said, env={**os.environ, "RAY_worker_niceness": "0"},
        )  # fmt: skip

        def wait_for(holds: Callable[[], bool], what: str) -> None:
            until = time.monotonic() + 120
            while not holds():
                assert process.poll() is None, f"ended before {what}: {(tmp_path / 'said.txt').read_text()[-3000:]}"
                assert time.monotonic() < until, f"no {what}: {(tmp_path / 'said.txt').read_text()[-3000:]}"
                time.sleep(0.2)

        def ranks() -> int:
            return len(ranks_of(nodes.started))

        try:
            wait_for(lambda: ranks() == 2 and step_of(run) >= 25, "two ranks")
            nodes.raylet.kill()
            lost_at = time.monotonic()
            wait_for(lambda: ranks() == 1 and step_of(run) >= 41, "one rank")
            assert time.monotonic() - lost_at < 60
            nodes.add()
            wait_for(lambda: ranks() == 2, "second rank after the first")
            assert process.wait(200) == 0, (tmp_path / "said.txt").read_text()[-3000:]
        finally:
            process.kill()
    expected, found = losses(calm), losses(run)
    assert found.keys() == expected.keys()
    assert {step: loss for step, loss in found.items() if loss is not None} == pytest.approx(
        {step: loss for step, loss in expected.items() if loss is not None}, abs=1e-4
    )


def ranks_of(started: Descendants) -> list[int]:
    return [process.pid for process in started.named(RANK)]
