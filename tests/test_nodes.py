"""The bench of an autoscaling cluster's nodes, without its cluster: what it tells Ray, what it hears of a job, and its plot."""

import json
import time

from bench import nodes


def test_the_head_has_one_cpu_and_may_start_workers(tmp_path):
    ports = {"port": 1, "dashboard-port": 2}
    command, environment = nodes.head_options(tmp_path, ports, "10.0.0.1")
    assert "--num-cpus=1" in command
    assert f"--autoscaling-config={tmp_path / 'scaling.json'}" in command
    scaling = json.loads((tmp_path / "scaling.json").read_text())
    assert scaling["available_node_types"]["worker"]["max_workers"] == scaling["max_workers"] == nodes.WORKERS
    assert scaling["provider"]["gcs_address"] == "10.0.0.1:1"
    assert {"auth", "docker", "file_mounts", "head_node", "worker_nodes", "setup_commands"} <= scaling.keys()
    assert scaling["provider"]["use_node_id_as_ip"]
    assert environment["RAY_enable_autoscaler_v2"] == "0"
    assert (tmp_path / "token").read_text()
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")


def test_what_a_job_says_and_how_many_nodes_there_are_is_noted_with_its_time(tmp_path, monkeypatch):
    counts = iter([0, 2, 2, 0])
    watch = nodes.Watch(lambda: next(counts, 0))
    for line in (
        "rollout, round 0: 0/12 examples",
        "note: train",
        "train, round 0: 1/5 steps",
        "start endpoint: waiting",
        "evaluate base: 4/4 answers",
    ):
        watch.hear(line)
        time.sleep(0.15)
    monkeypatch.setattr(nodes.time, "sleep", lambda seconds, sleep=time.sleep: sleep(seconds / 10))
    watch.until_gone(10)
    assert list(watch.stages) == ["rollout", "train", "endpoint", "evaluate"]
    assert list(watch.stages.values()) == sorted(watch.stages.values())
    found = {"nodes": [(1.0, 0), (2.0, 2), (3.0, 0)], "stages": watch.stages, "ended_s": 2.5, "workers": 2}
    nodes.plot(found, tmp_path / "docs" / "nodes.png")
    assert (tmp_path / "docs" / "nodes.png").read_bytes().startswith(b"\x89PNG")


def test_names_that_would_lie_on_each_other_share_a_place():
    marks = [("rollout", 20.0), ("train", 79.0), ("reference", 78.0), ("job ends", 140.0)]
    assert nodes.apart(marks, 5.0) == [(20.0, "rollout"), (78.0, "reference, train"), (140.0, "job ends")]
