"""Faults in a run: the script that compares two runs, the one that lets them happen, and two of them for real."""

import json
import pathlib
import random
import subprocess
import sys
import time
import types

import numpy as np
import psutil
import pytest
from conftest import vidalign
from safetensors.numpy import save_file
from test_files import RESPONSE

from bench import chaos, chaos_page
from bench.chaos_compare import begun_of, differences, found_nobody, same
from bench.chaos_faults import DRIVER, FAULTS, NODE, Fault
from bench.chaos_network import can_cut, network
from bench.chaos_strikes import TORN, Descendants, can_mount, failing_disk, gone, hit_at_random, torn
from bench.pages import Output
from vidalign import files


def make_run(root: pathlib.Path, *, text: str = "a ball", copies: int = 2, loss: float = 0.5, weight: float = 1.0):
    stage = root / "rounds/0"
    files.write_table(
        stage / "responses/responses.parquet",
        [RESPONSE] * (copies - 1) + [RESPONSE.__class__(**{**vars(RESPONSE), "text": text})],
    )
    files.write_text_atomic(
        stage / "train/metrics.jsonl", json.dumps({"step": 0, "loss": loss, "seconds": random.random()}) + "\n"
    )
    files.write_json(root / "lease" / f"{random.randrange(10**6):06d}.json", {})
    (stage / "model").mkdir()
    save_file({"w": np.full(3, weight, np.float32)}, stage / "model/model.safetensors")
    return root


@pytest.mark.skipif(not can_cut(), reason="networks need root and iproute2")
def test_a_cut_network_carries_nothing_and_both_sides_keep_their_addresses():
    answer = (
        "import socket; s = socket.create_server((%r, 8911)); print('ready', flush=True)\nwhile True: s.accept()[0].close()"
    )
    ask = "import socket, sys; socket.create_connection((%r, 8911), timeout=1).close()"
    with network() as between:
        server = subprocess.Popen(
            between.within([sys.executable, "-c", answer % between.there]), stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def answers(wrap=list) -> bool:
            command = [sys.executable, "-c", ask % between.there]
            return subprocess.run(wrap(command), stderr=subprocess.DEVNULL, check=False).returncode == 0

        assert answers()
        between.pull()
        assert not answers()
        assert answers(between.within), "the other side reaches itself"
        between.plug()
        assert any(answers() for _ in range(5))
        server.kill()
        server.wait()
    assert between.name not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


def test_what_differs_between_two_runs_is_named(tmp_path):
    base = make_run(tmp_path / "base")
    assert differences(base, make_run(tmp_path / "same", loss=0.50000001)) == []
    cases = {
        "text": ({"text": "a cube"}, "responses.parquet: row 1, text: 'a cube' instead of 'a ball'"),
        "doubled": ({"copies": 3}, "responses.parquet: 3 rows instead of 2"),
        "loss": ({"loss": 0.51}, "metrics.jsonl: row 0, loss: 0.51 instead of 0.5"),
        "weights": ({"weight": 1.001}, "model.safetensors: weights differ by up to 1.0e-03"),
    }
    for name, (change, says) in cases.items():
        [found] = differences(base, make_run(tmp_path / name, **change))
        assert found.endswith(says)
    other = make_run(tmp_path / "files")
    (other / "rounds/0/responses/.responses.parquet.x1").touch()
    (other / "rounds/0/train/metrics.jsonl").unlink()
    assert differences(base, other) == [
        "rounds/0/train/metrics.jsonl: 0 rows instead of 1",
        "rounds/0/responses/.responses.parquet.x1 was left",
        "rounds/0/train/metrics.jsonl is missing",
    ]
    assert same([1.0, float("nan")], [1.00001, float("nan")])
    assert not same([1.0], [1.001])


def test_the_victim_is_killed_and_what_a_command_leaves_behind_is_found():
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); subprocess.Popen(['sleep', '61']).wait()"
    command = subprocess.Popen([sys.executable, "-c", code])
    started = Descendants(psutil.Process(command.pid))
    fault = Fault(name="sleep", command="train", victim="sleep 61")
    hit = hit_at_random(fault, command, started, random.Random(0), 0.0)
    assert hit is not None
    assert hit.line == "sleep 61"
    assert command.wait(10) == 0
    assert started.left(0.2) == ["sleep 60"]
    started.end()
    assert started.left(5) == []
    assert hit_at_random(fault, command, started, random.Random(0), 0.0) is None, "the command has ended"


def test_a_process_is_stopped_for_a_while_and_goes_on():
    command = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"])
    fault = Fault(name="driver", command="train", victim=DRIVER, stopped_s=0.5)
    began = time.monotonic()
    hit = hit_at_random(fault, command, Descendants(psutil.Process(command.pid)), random.Random(0), 0.0)
    assert hit is not None
    assert hit.seconds + 0.5 <= time.monotonic() - began, "the stop is not counted"
    assert command.wait(60) == 0


def test_a_fault_may_wait_for_the_first_results():
    command = subprocess.Popen(["sleep", "60"])
    seen = iter([False, False, True])
    fault = Fault(name="driver", command="train", victim=DRIVER, once_begun=True)
    hit = hit_at_random(
        fault, command, Descendants(psutil.Process(command.pid)), random.Random(0), 0.0, begun=lambda: next(seen)
    )
    assert hit is not None
    assert command.wait(5) == -9
    assert next(seen, None) is None


def test_a_second_command_that_finds_nothing_left_did_not_meet_the_first():
    for late in ("and nothing has changed since", "with this configuration"):
        said = f"note: nothing is left to do: every stage is finished {late}"
        assert found_nobody({"exit_code": 0, "said": said}, has_ended=False)
        assert found_nobody({"exit_code": 0, "said": said.removeprefix("note: ")}, has_ended=False)
    assert found_nobody({"exit_code": 0, "said": "worked"}, has_ended=True)
    assert not found_nobody({"exit_code": 0, "said": "worked"}, has_ended=False)
    assert not found_nobody({"exit_code": 2, "said": "is in use"}, has_ended=True)


def test_a_rollout_has_begun_for_a_node_once_a_video_is_decoded(tmp_path):
    node, driver = (Fault(name="x", command="rollout", victim=victim) for victim in (NODE, DRIVER))
    before = begun_of(tmp_path, node), begun_of(tmp_path, driver)
    (tmp_path / "frames/1e").mkdir(parents=True)
    (tmp_path / "frames/1e/clip.safetensors").touch()
    assert begun_of(tmp_path, node) != before[0]
    assert begun_of(tmp_path, driver) == before[1]


def test_the_newest_file_of_a_kind_is_torn_and_one_that_is_not_there_is_not(tmp_path):
    run = make_run(tmp_path / "run")
    [lease] = run.glob(TORN["lease"])
    size = lease.stat().st_size
    assert torn(run, "lease")
    assert lease.stat().st_size == size // 2
    assert not torn(run, "newest checkpoint")


def test_a_folder_is_gone_for_a_while(tmp_path):
    (tmp_path / "videos").mkdir()
    with gone(tmp_path / "videos") as mend:
        assert not (tmp_path / "videos").exists()
        mend()
        assert (tmp_path / "videos").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


@pytest.mark.skipif(not can_mount(), reason="mounts need root")
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_fails_and_is_mended(tmp_path, kind):
    run = make_run(tmp_path / "run")
    with failing_disk(run, kind, 500_000) as mend:
        with pytest.raises(OSError, match=r"No space left|Read-only"):
            (run / "big").write_bytes(b"x" * 2**20)
        mend()
        (run / "big").write_bytes(b"x" * 2**20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert (run / "big").stat().st_size == 2**20
    assert (run / "rounds/0/model/model.safetensors").is_file()


def end(exit_code: int | None = 0, said: str = "", **more):
    return {"exit_code": exit_code, "seconds": 10.0, "said": said, "traceback": False, "notes": [], "left": [], **more}


def test_the_page_says_what_is_as_it_should_be_and_what_is_not():
    rows = [
        {
            "fault": "decoder",
            "command": "rollout",
            "hit_s": 1.5,
            "first": end(replaced=True),
            "again": None,
            "differences": [],
            "done": "2 files",
            "commit": "1f81d28 2026-11-26, with changes",
        },
        {
            "fault": "driver",
            "command": "train",
            "hit_s": 2.0,
            "first": end(-9),
            "again": end(),
            "differences": [],
            "further": 2,
        },
        {
            "fault": "run_dir full",
            "command": "train",
            "hit_s": 0.0,
            "first": end(2, "vidalign: error: x"),
            "again": end(2, "y"),
        },
        {"fault": "replica", "command": "evaluate", "hit_s": 0.3, "first": end(None, left=["ray::IDLE"]), "again": end()},
        {"fault": "HAProxy", "command": "evaluate", "hit_s": None},
        {"fault": "driver gets SIGTERM", "command": "train", "hit_s": 3.0, "first": end(15), "again": end()},
        {
            "fault": "driver gets SIGINT",
            "command": "train",
            "hit_s": 3.0,
            "first": end(130, left=["ray::DashboardAgent"]),
            "again": end(),
        },
        {"fault": "Ray's GCS server", "command": "train", "hit_s": 3.0, "first": end(1), "again": end()},
        {
            "fault": "driver gets SIGINT",
            "command": "rollout",
            "hit_s": 3.0,
            "first": {**end(130), "seconds": 19.4},
            "again": end(),
        },
    ]
    made = chaos_page.page({"undisturbed_s": {"rollout": 20.0}, "rows": [{"differences": [], **row} for row in rows]})
    assert "3 of 8 as they should be" in made
    assert "ended with code 15 and not 143" in made
    assert "ended with code 1 and not 2" in made
    assert "| ended 16 s after the signal |" in made
    assert "| decoder | rollout | 1.5 s, 2 files | went on with another | 10 | equal | 1f81d28 |" in made
    assert (
        "| driver | train | 2.0 s | killed; the same command finished it, after 2 more of these faults | 10 | equal |"
        in made
    )
    assert "| ended with 2: x; so did the next | 10 | not finished: y |" in made
    assert "| hung; the same command finished it | 10 | hung; left running: ray::IDLE |" in made
    assert "Did not strike, because the command was over before or needed nothing of it: HAProxy in evaluate." in made


def test_faults_follow_each_other_until_a_command_finishes_the_run(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    fresh, ends = [], iter([-9, 2, 0, None, -9])  # None: the command was over before
    monkeypatch.setattr(chaos, "copy_up_to", lambda command, base, run: fresh.append(command))
    monkeypatch.setattr(chaos, "files_of", lambda base, command: base)
    monkeypatch.setattr(chaos, "differences", lambda *_, **__: ["other"] if len(fresh) == 3 else [])
    monkeypatch.setattr(chaos, "Command", lambda *_: types.SimpleNamespace(wait=lambda: end(0, "given once more")))

    def once(fault, config, run, draw, within_s):
        code = next(ends)
        row = {"fault": fault.name, "command": "train", "hit_s": 1.0, "needs_failure": False, "first": end(code)}
        return (None, end(0)) if code is None else (row, row["first"])

    monkeypatch.setattr(chaos, "_suffer_once", once)
    chain = chaos.Chain("train", tmp_path / "align.json", tmp_path / "base", tmp_path / "run")
    faults = [Fault(name=name, command="train", victim="x") for name in "abcd"]
    made = [chain.suffer(fault, random.Random(0)) for fault in faults]
    assert [[row["fault"] for row in rows] for rows in made] == [[], [], ["a", "b", "c"], []]
    assert [row["further"] for row in made[2]] == [2, 1, 0]
    assert [row["again"] and row["again"]["exit_code"] for row in made[2]] == [0, 0, None]
    assert all(row["differences"] == [] for row in made[2])
    [last] = chain.finish()
    assert (last["fault"], last["again"]["said"], last["differences"]) == ("d", "given once more", ["other"])
    assert chain.finish() == []
    assert fresh == ["train", "train", "train"], "begun anew after each command that finished"


def test_rows_wait_for_a_later_call_of_the_bench(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "copy_up_to", lambda command, base, run: run.mkdir())
    monkeypatch.setattr(chaos, "files_of", lambda base, command: base)
    monkeypatch.setattr(chaos, "differences", lambda *_, **__: [])
    monkeypatch.setattr(chaos, "Command", lambda *_: types.SimpleNamespace(wait=lambda: end(0)))
    row = {"fault": "a", "command": "train", "hit_s": 1.0, "needs_failure": False, "first": end(-9)}
    monkeypatch.setattr(chaos, "_suffer_once", lambda *_: (dict(row), row["first"]))
    places = "train", tmp_path / "align.json", tmp_path / "base", tmp_path / "run-train"
    assert chaos.Chain(*places).suffer(Fault(name="a", command="train", victim="x"), random.Random(0)) == []
    later = chaos.Chain(*places)
    assert later.waiting == ["a, train"]
    [made] = later.finish()
    assert (made["fault"], made["again"]["exit_code"]) == ("a", 0)
    assert "commit" in made
    assert chaos.Chain(*places).waiting == []


def test_rows_of_earlier_calls_stay_in_the_table(tmp_path):
    out = Output.below(tmp_path)
    assert chaos.known_rows(out) == {}
    files.write_json(out.results / "measured.json", {"chaos.md": {"commit": "cabd2ca"}})
    out.keep(
        "chaos", {"rows": [{"fault": "a", "command": "train"}, {"fault": "b", "command": "train", "commit": "1f81d28"}]}
    )
    assert {name: row["commit"] for name, row in chaos.known_rows(out).items()} == {
        "a, train": "cabd2ca",
        "b, train": "1f81d28",
    }


def test_every_fault_is_of_a_command_and_listed_once():
    assert {fault.command for fault in FAULTS} == set(chaos.COMMANDS)
    assert len({(fault.name, fault.command) for fault in FAULTS}) == len(FAULTS)
    assert all(bool(fault.victim) + bool(fault.place) + (fault.twice and not fault.victim) == 1 for fault in FAULTS)
    assert len(FAULTS) >= 40


@pytest.mark.heavy
@pytest.mark.long
def test_a_rollout_survives_the_loss_of_its_actors(tmp_path):
    done = vidalign("bench", "chaos", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = files.read_json(tmp_path / "results/chaos.json")["rows"]
    assert sorted(row["fault"] for row in rows) == ["decoder", "generator"]
    for row in rows:
        assert row["hit_s"] is not None
        assert chaos_page.faults_of(row) == []


def test_the_table_names_no_folder_of_the_machine_that_it_was_made_on():
    row = {
        "said": "run_dir=/home/ann/chaos/run-train cannot be written: see /mnt/x.json, 3/4 of it",
        "hit": ["/opt/venv/bin/python -m a"],
    }
    assert chaos.without_folders(row) == {
        "said": "run_dir=…/run-train cannot be written: see …/x.json, 3/4 of it",
        "hit": ["…/python -m a"],
    }
