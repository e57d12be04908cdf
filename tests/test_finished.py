"""A command that has nothing left to do says so at once, and only then."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

from pipelines import finished
from vidalign.config.loading import dump_config, parse_config
from vidalign.files import RunFolder

ALL = ("rollout", "train", "evaluate", "report")


@pytest.fixture
def config(tmp_path):
    """Of a run that has ended, as far as its record tells."""
    (tmp_path / "t.jsonl").write_text("{}")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"weights")
    raw = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(tmp_path / "m")},
        "data": {"train": str(tmp_path / "t.jsonl")},
    }
    config = parse_config(raw)
    run = RunFolder.open(config.run_dir)
    for place, text in {
        "summary.json": '{"seed": 0}',
        "report/index.html": "",
        "rounds/0/train/manifest.json": "{}",
    }.items():
        (run.root / place).parent.mkdir(parents=True, exist_ok=True)
        (run.root / place).write_text(text)
    run.config.write_text(dump_config(config))
    finished.record(run, config, ALL)
    return config


def test_a_run_that_nothing_has_changed_of_is_finished(config):
    assert finished.summary_if_finished(config, ALL) == {"seed": 0}
    assert finished.summary_if_finished(config, ("train",)) == {"seed": 0}
    assert finished.summary_if_finished(config, ("report",)) is None, "a report is written whenever it is asked for"
    assert finished.summary_if_finished(parse_config({**config.model_dump(mode="json"), "seed": 1}), ALL) is None


@pytest.mark.parametrize(
    "place",
    [
        "t.jsonl",
        "m/model.safetensors",
        "m/new.json",
        "run/summary.json",
        "run/rounds/0/train/manifest.json",
        "run/config.yaml",
    ],
)
@pytest.mark.parametrize("change", ["write", "touch", "remove"])
def test_whatever_changed_it_is_looked_at(config, tmp_path, place, change):
    path = tmp_path / place
    if change == "touch" and path.is_file():
        os.utime(path, ns=(1, 1))
    elif change == "remove":
        path.unlink(missing_ok=True)
        if place == "m/new.json":
            (tmp_path / "m" / "model.safetensors").unlink()
    else:
        path.write_text("something else")
    assert finished.summary_if_finished(config, ALL) is None


@pytest.mark.parametrize("noted", ["", "[]", "{}", "null", '{"stages": null}'])
def test_a_record_that_is_none_is_no_reason_to_stop(config, noted):
    (pathlib.Path(config.run_dir) / finished.RECORD).write_text(noted)
    assert finished.summary_if_finished(config, ALL) is None


def test_the_command_says_so_without_loading_ray_or_torch(config, tmp_path):
    (tmp_path / "c.yaml").write_text(dump_config(config))
    code = "import sys; from pipelines.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    asked = [sys.executable, "-c", code, "align", str(tmp_path / "c.yaml")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert done.stderr.startswith("nothing is left to do")
    assert not set(done.stdout.splitlines()[-1].split()) & {"ray", "torch", "numpy", "pyarrow", "transformers"}
    assert f"vidalign serve {config.run_dir}" in done.stdout


def test_data_of_a_hub_or_a_store_is_never_compared_in_a_moment(config):
    for change in ({"data": {"train": "s3://b/t.jsonl"}}, {"model": {"path": "owner/name"}}):
        other = parse_config({**json.loads(config.model_dump_json()), **change})
        finished.record(RunFolder.at(config.run_dir), other, ALL)
        assert finished.summary_if_finished(other, ALL) is None
