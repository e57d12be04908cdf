"""A run's curves, evaluation, configuration and report in every tracker's own local store, and again after an interruption."""

import json
import pathlib
import struct
from typing import ClassVar

import pytest
from test_report import make_config, make_run

from pipelines import trackers, tracking
from pipelines.cli import main
from pipelines.report import write_report
from pipelines.tracking import Tracking, curves, results
from vidalign.config.loading import parse_config
from vidalign.errors import ConfigError
from vidalign.files import read_json, read_jsonl, write_json

SCORE = {"measure": "overall", "low": 0.4, "high": 0.6, "n": 9, "counts": "questions", "top": 1.0}
RAW = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}}


def made(root: pathlib.Path, *track: str):
    """A finished run with its report, and its configuration; its log ends in the middle of a row."""
    run, config = make_run(root / "run"), make_config(root / "run", track=list(track), seed=7)
    run.config.write_text("seed: 7\n")
    write_report(run, config)
    return run, config


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Every tracker keeps what it is told below this folder."""
    for name in (
        "WANDB_DIR",
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "MLFLOW_EXPERIMENT_NAME",
        "TRACKIO_PROJECT",
        "TRACKIO_SPACE_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def interrupted(run, config) -> float:
    """What a command that was stopped in training sent: the first half of the log. Returns the aligned model's accuracy."""
    log = run.stage("train", 0) / "metrics.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*whole[:6], whole[6][:20]]))
    first = Tracking(config, run)
    first._for_each(config.track, first._send_curves)
    first._for_each(list(first._open), lambda name: first._open.pop(name).close())
    log.write_text("".join(whole))
    return read_json(run.summary)["accuracy"]["aligned"]


# What is sent


def test_the_figures_of_a_step_and_of_a_run(tmp_path):
    run, _ = made(tmp_path)
    row = read_jsonl(run.stage("train", 0) / "metrics.jsonl")[2]
    sent = curves(row)
    assert sent["train/loss"] == row["loss"]
    assert sent["displacement/chosen_logp"] == row["chosen_logp"]
    assert "displacement/both_fell" in sent
    assert "displacement/step" not in sent
    figures = results(read_json(run.summary))
    assert {"eval/base", "eval/aligned", "eval/blind", "eval/colour/aligned", "pairs/kept"} <= figures.keys()
    assert results({}) == {}
    assert trackers.flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


class Kept:
    """A tracker that keeps what it is told."""

    takes_curves, package = True, "json"
    seen: ClassVar[list] = []
    figures: ClassVar[dict] = {}

    def __init__(self, folder, name, own_id, config):
        self.id = own_id
        self.seen.append(("open", own_id, config["seed"]))

    def log(self, values, step):
        self.seen.append(("log", step, values["round"]))

    def finish(self, values, paths):
        Kept.figures = dict(values)
        self.seen.append(("finish", sorted(path.name for path in paths)))

    def close(self):
        self.seen.append(("close",))


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(Kept, "seen", [])
    monkeypatch.setattr(tracking, "TRACKERS", {**trackers.TRACKERS, "wandb": Kept})
    return Kept.seen


def test_a_stopped_run_continues_the_same_curves_and_nothing_is_sent_twice(tmp_path, kept):
    run, config = made(tmp_path, "wandb")
    interrupted(run, config)
    steps = [row[1] for row in kept if row[0] == "log"]
    assert steps == [0, 5, 10, 15, 20, 25], "not the row that is being written"
    kept.clear()
    Tracking(config, run).finish(read_json(run.summary))
    assert [row[1] for row in kept if row[0] == "log"] == list(range(30, 60, 5))
    assert kept[-2:] == [("finish", ["config.yaml", "index.html", "summary.json"]), ("close",)]
    opened = [row for row in kept if row[0] == "open"]
    assert opened == [("open", read_json(run.root / "tracking.json")["wandb"]["id"], 7)]
    kept.clear()
    Tracking(config, run).finish(read_json(run.summary))
    assert kept == [], "it has all of it"


def test_a_suite_adds_its_scores_to_the_run_and_nothing_else_is_sent_again(tmp_path, kept):
    run, config = made(tmp_path, "wandb")
    Tracking(config, run).finish(read_json(run.summary))
    kept.clear()
    scores = {"models": {"base": {"scores": [SCORE | {"value": 0.5}]}, "aligned": {"scores": [SCORE | {"value": None}]}}}
    write_json(run.stage("suites", 0) / "tvbench" / "scores.json", scores)
    Tracking(config, run).finish(read_json(run.summary))
    opened = ("open", read_json(run.root / "tracking.json")["wandb"]["id"], 7)
    assert kept == [opened, ("finish", []), ("close",)]
    assert Kept.figures == {"suite/tvbench/overall/base": 0.5}
    kept.clear()
    Tracking(config, run).finish(read_json(run.summary))
    assert kept == []


def test_rounds_follow_one_another_and_the_log_is_followed_while_it_grows(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(tracking, "EVERY_S", 0.02)
    run = make_run(tmp_path / "run", rounds=2)
    config = make_config(tmp_path / "run", track=["wandb"], rounds=2)
    follower = Tracking(config, run)
    with follower.following():
        while len(kept) < 25:
            pass
    assert [row[1:] for row in kept[1:]] == [(s, 0.0) for s in range(0, 60, 5)] + [(56 + s, 1.0) for s in range(0, 60, 5)]


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(tmp_path, kept, monkeypatch, capsys):
    class Broken(Kept):
        def log(self, values, step):
            raise OSError("no space\non the server")

    monkeypatch.setitem(tracking.TRACKERS, "trackio", Broken)
    run, config = made(tmp_path, "trackio", "wandb")
    Tracking(config, run).finish(read_json(run.summary))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == [
        "warning: trackio failed (no space on the server); the run goes on, and the next command sends what is missing"
    ]
    assert ("finish", ["config.yaml", "index.html", "summary.json"]) in kept


# What is refused


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_a_sentence_with_the_line_that_installs_it(name, monkeypatch):
    real = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda found: None if found == name else real(found))
    with pytest.raises(ConfigError, match=f"track has {name}, whose package is not installed; run `pip install {name}`"):
        trackers.check_trackers(["tensorboard", name])


def test_a_dry_run_refuses_it_too(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda found: None)
    data = f"data={{train: {shapes}/train.jsonl, eval: {shapes}/heldout.jsonl}}"
    command = ["align", "examples/shapes/align.yaml", f"run_dir={tmp_path / 'r'}", data, "track=[trackio]", "--dry-run"]
    assert main(command) == 2
    assert "track has trackio, whose package is not installed; run `pip install trackio`" in capsys.readouterr().err


def test_an_unknown_tracker_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"track.*tensorboard"):
        parse_config({**RAW, "track": ["comet"]})


def test_wandb_without_a_key_is_refused_before_it_asks_for_one(stores, monkeypatch):
    monkeypatch.setenv("HOME", str(stores))
    monkeypatch.delenv("NETRC", raising=False)
    trackers.Wandb.check()
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ConfigError, match=r"no key for api.wandb.ai is known; run `wandb login`, set WANDB_API_KEY, or"):
        trackers.Wandb.check()
    (stores / ".netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (stores / ".netrc").chmod(0o600)
    trackers.Wandb.check()


# Each in its own store


def test_tensorboard(stores):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, config = made(stores, "tensorboard")
    Tracking(config, run).finish(read_json(run.summary))
    found = EventAccumulator(str(run.root / "tensorboard"))
    found.Reload()
    assert found.Scalars("eval/aligned")[-1].value == pytest.approx(read_json(run.summary)["accuracy"]["aligned"])
    texts = [found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]]
    assert any('"seed": 7' in text for text in texts)
    assert any(f"{run.root}/report/index.html" in text for text in texts)


@pytest.mark.heavy
def test_mlflow(stores):
    import mlflow

    run, config = made(stores, "mlflow")
    trackers.check_trackers(["mlflow"])
    aligned = interrupted(run, config)
    scores = {"models": {"base": {"scores": [SCORE | {"measure": "who & where (2+)", "value": 0.25}]}}}
    write_json(run.stage("suites", 0) / "tvbench" / "scores.json", scores)
    Tracking(config, run).finish(read_json(run.summary))
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("vidalign").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "7"
    assert found.data.params["train.learning_rate"] == str(config.train.learning_rate)
    assert found.data.metrics["eval/aligned"] == pytest.approx(aligned)
    assert found.data.metrics["suite/tvbench/who _ where _2__/base"] == 0.25, "MLflow refuses other names"
    for name in ("train/loss", "displacement/rejected_logp"):
        assert [row.step for row in client.get_metric_history(found.info.run_id, name)] == list(range(0, 60, 5))
    assert {each.path for each in client.list_artifacts(found.info.run_id)} == {"config.yaml", "index.html", "summary.json"}


@pytest.mark.heavy
def test_trackio(stores):
    import trackio

    run, config = made(stores, "trackio")
    aligned = interrupted(run, config)
    Tracking(config, run).finish(read_json(run.summary))
    store = trackio.SQLiteStorage
    (name,) = store.get_runs("vidalign")
    rows = store.get_logs("vidalign", name)
    assert [row["step"] for row in rows if "displacement/rejected_logp" in row] == list(range(0, 60, 5))
    assert [row["eval/aligned"] for row in rows if "eval/aligned" in row] == [pytest.approx(aligned)]
    assert store.get_run_config("vidalign", name)["seed"] == 7
    assert list((stores / "trackio").rglob("*index.html*")) or list((stores / "trackio").rglob("*artifact*"))


def wandb_records(path: pathlib.Path) -> list:
    """The records of a run that W&B stored offline: protobufs in LevelDB's log format, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


@pytest.mark.heavy
def test_wandb_offline(stores):
    run, config = made(stores, "wandb")
    aligned = interrupted(run, config)
    Tracking(config, run).finish(read_json(run.summary))
    parts = sorted((run.root / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2, "one of each command"
    records = [record for path in parts for record in wandb_records(path)]
    assert len({record.run.run_id for record in records if record.HasField("run")}) == 1, (
        "which `wandb sync` joins by their run"
    )
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [row["_step"] for row in history if "displacement/rejected_logp" in row] == list(range(0, 60, 5))
    summaries = {
        item.key or "/".join(item.nested_key): item.value_json
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert json.loads(summaries["eval/aligned"]) == pytest.approx(aligned)
    settings = {
        item.key: item.value_json for record in records if record.HasField("run") for item in record.run.config.update
    }
    assert settings["seed"] == "7"
    files = {entry.path for record in records if record.HasField("artifact") for entry in record.artifact.manifest.contents}
    assert {"config.yaml", "index.html", "summary.json"} <= files
