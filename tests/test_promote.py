"""`vidalign promote`, `rollback` and `versions`: what they take, what they refuse, in one sentence and before anything is started."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray.serve
from conftest import ROOT

from cluster.plan import further_versions, plan_serve
from cluster.resources import ClusterResources
from pipelines import candidates, cli, places, versions
from pipelines.serve import how_to_promote
from serving import promotion, promotion_log, table_store
from serving.app import Endpoint
from serving.request_rules import Served
from serving.spec import EndpointSpec
from serving.table_store import Seen
from serving.versions import CANARY, KEPT, PROMOTED, SHADOW, Bounds, Row, Table, taken_back
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.errors import ClusterError, ConfigError, ModelError
from vidalign.model.checkpoint import CARD
from vidalign.types import FrameSpec, PolicyVersion

SPEC = FrameSpec(num_frames=8, height=56, width=56)


@pytest.fixture
def run(tmp_path):
    """A run of three rounds, of which the second exported nothing."""
    config = {"run_dir": str(tmp_path), "model": {"path": "gone"}, "data": {"train": "t"}, "rounds": 3}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    for index in (0, 2):
        model = tmp_path / "rounds" / str(index) / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"w")
        card = {"version": f"v{index}", "parent": "b", "frame_spec": SPEC.to_row(), "plain_prompt": "Q: {question}"}
        (model / CARD).write_text(json.dumps(card))
    return tmp_path


def test_any_round_of_a_run_can_be_named_and_the_last_one_is_the_default(run):
    last, first = candidates.find_candidate(str(run)), candidates.find_candidate(f"{run}:0")
    assert (last.policy.version, last.source, last.frame_spec, last.plain_prompt) == (
        "v2",
        f"{run}:2",
        SPEC,
        "Q: {question}",
    )
    assert (first.policy.version, first.policy.path, first.run) == ("v0", f"{run}/rounds/0/model", str(run))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("{run}:1", r"round 1 of .* has no exported model; the rounds that have one are 0, 2"),
        ("{run}:7", r"round 7 of .* has no exported model"),
        ("{run}/rounds", r"is not a run folder \(it has no config.yaml\); give RUN, or RUN:ROUND"),
    ],
)
def test_what_is_no_exported_round_is_refused(run, named, message):
    with pytest.raises(ModelError, match=message):
        candidates.find_candidate(named.format(run=run))


def test_a_round_without_weights_is_refused(run):
    (run / "rounds" / "2" / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        candidates.find_candidate(str(run))


def test_how_a_version_comes_in():
    assert candidates.how_of(None, False, {}).state == PROMOTED
    canary = candidates.how_of("10%", False, {"max_errors": 0.2})
    assert (canary.state, canary.share, canary.bounds) == (CANARY, 0.1, Bounds(max_errors=0.2))
    assert candidates.how_of("0.25", False, {}).share == 0.25
    assert candidates.how_of(None, True, {}).state == SHADOW


@pytest.mark.parametrize("share", ["0", "100%", "1.5", "ten", "-5%", "%"])
def test_a_share_is_between_none_and_all(share):
    with pytest.raises(ConfigError, match=r"a share lies between 0 and 1, as in 10% or 0\.1"):
        candidates.how_of(share, False, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--canary", "10%", "--shadow"], "--canary answers some and --shadow nobody"),
        (["--max-slowdown", "3"], "--max-slowdown is for a version on trial; add --canary or --shadow"),
        (["--canary", "10%", "--min-requests", "0"], "--min-requests must be above 0, got 0"),
        (
            ["--canary", "10%", "--min-requests", "201"],
            "--min-requests=201 is above 200, the latest requests that are judged",
        ),
        (["--shadow", "--max-errors", "5"], "a share lies between 0 and 1"),
        ([], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_the_command_says_in_one_sentence_what_is_wrong(run, options, message, capsys):
    assert cli.main(["promote", str(run), "--to", "127.0.0.1:1", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.startswith("vidalign: error: ")
    assert len(said.splitlines()) == 1


def test_a_promotion_that_cannot_be_is_in_the_log_too(run, capsys):
    assert cli.main(["promote", f"{run}:0", "--to", "127.0.0.1:1"]) == 2
    [line] = map(json.loads, (run / promotion_log.FILE).read_text().splitlines())
    assert {name: line[name] for name in ("step", "version", "source", "outcome")} == {
        "step": "promote",
        "version": "v0",
        "source": f"{run}:0",
        "outcome": "refused",
    }
    assert "@" in line["who"]
    assert line["why"] in capsys.readouterr().err


def table(*rows):
    served = Served(version="v0", frame_spec=SPEC, media={"video": 1}, max_model_len=512)
    first = Row(target="aligned", model_id="aligned", served=served, source="run:0")
    base = Row(target="base", model_id="base", served=served)
    others = [
        Row(
            target=f"aligned@{version}", model_id="aligned", served=dataclasses.replace(served, version=version), state=state
        )
        for version, state in rows
    ]
    spec = EndpointSpec(
        models={},
        model=ModelConfig(path="-"),
        serve=ServeConfig(port=8123),
        plan=plan_serve(ServeConfig(), ClusterResources(num_cpus=4), 2),
        frame_spec=SPEC,
    )
    return Table(id="i", rows=(first, *others, base), spec=spec)


@pytest.mark.parametrize(
    ("version", "rows", "spec", "message"),
    [
        ("v0", [], SPEC, r"v0 .* is what aligned is already"),
        ("v2", [("v1", CANARY)], SPEC, r"v1 .* is on trial \(canary\); promote it, or take it back"),
        ("v2", [], FrameSpec(num_frames=4), r"was trained with frames as .*'num_frames': 4.* start an endpoint of its own"),
    ],
)
def test_what_does_not_fit_the_endpoint_is_refused(run, version, rows, spec, message):
    found = candidates.find_candidate(str(run))
    candidate = dataclasses.replace(found, frame_spec=spec, policy=dataclasses.replace(found.policy, version=version))
    with pytest.raises((ModelError, ClusterError), match=message):
        versions.check(table(*rows), candidate)


def test_what_runs_already_may_change_how_it_is_on_trial(run):
    versions.check(table(("v2", CANARY), ("v1", KEPT)), candidates.find_candidate(str(run)))


def test_an_endpoint_is_found_by_its_url_among_the_clusters_of_this_machine(monkeypatch):
    import ray._private.services

    found = {"10.0.0.1:6379": {}, "10.0.0.2:6379": {"vidalign-1": table()}}
    monkeypatch.setattr(ray._private.services, "find_gcs_addresses", lambda: set(found))
    monkeypatch.setattr(table_store, "tables_at", lambda address: found[address])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert places.find_cluster("http://127.0.0.1:8123/v1") == "10.0.0.2:6379"
    assert places.find_cluster("10.0.0.7:6379") == "10.0.0.7:6379"
    with pytest.raises(
        ClusterError, match=r"no cluster .* has an endpoint at http://h:9 .* serves a single checkpoint has none"
    ):
        places.find_cluster("http://h:9")
    found["10.0.0.1:6379"] = {"vidalign-2": table()}
    with pytest.raises(
        ClusterError, match=r"several clusters have an endpoint at port 8123 \(10.0.0.1:6379, 10.0.0.2:6379\)"
    ):
        places.find_cluster("http://localhost:8123")


@pytest.mark.parametrize(
    ("serve", "resources", "num_models", "room", "gpus"),
    [
        ({}, ClusterResources(num_cpus=2), 2, 1, 0),
        ({}, ClusterResources(num_cpus=2), 1, 0, 0),
        ({}, ClusterResources(num_cpus=8, num_gpus=2), 2, 0, 1.0),
        ({"further_versions": 1}, ClusterResources(num_cpus=8, num_gpus=2), 2, 1, 0.5),
        ({"further_versions": 1}, ClusterResources(num_cpus=8, num_gpus=3), 2, 1, 1.0),
        ({"further_versions": 2}, ClusterResources(num_cpus=8, num_gpus=1), 2, 2, 0.25),
        ({"further_versions": 0}, ClusterResources(num_cpus=2), 2, 0, 0),
    ],
)
def test_a_plan_leaves_room_for_further_versions(serve, resources, num_models, room, gpus):
    config = ServeConfig(**serve)
    further = further_versions(config, resources, num_models)
    assert further == room
    plan = plan_serve(config, resources, num_models, further=further)
    each = plan.server_cpus + plan.bundle_cpus
    assert plan.ingress_cpus + (num_models + room) * each <= resources.num_cpus + 1e-9
    assert plan.bundle_gpus == gpus
    assert resources.num_gpus == 0 or plan.gpu_memory_utilization == pytest.approx(0.9 * gpus, abs=0.01)


def test_only_an_endpoint_of_several_says_how_to_promote():
    assert how_to_promote("runs/a", Endpoint(base_url="http://h:1/v1", versions={"model": "v"})) == ""


# The order of events, without Ray: what a promotion would do to a cluster is written down


@pytest.fixture
def events(monkeypatch):
    """What is started and taken down. `room`: how many versions fit beside those that run; `breaks`: the ingress takes nothing up."""
    found = SimpleNamespace(started=[], removed=[], tables=[], room=1, breaks=False, down=())

    def start(name, spec, policy, plain_prompt):
        found.started.append(policy.version)
        served = Served(version=policy.version, frame_spec=SPEC, media={}, max_model_len=512, plain_prompt=plain_prompt)
        target = f"aligned@{policy.version}"
        return Row(target=target, model_id="aligned", served=served, application=f"{name}@{policy.version}", since="s")

    def take_down(name, table, row):
        assert row.state not in (PROMOTED, CANARY)
        found.removed.append(row.version)
        found.tables.append(table.without(row.target))
        return found.tables[-1]

    def make_room(plan, idle, grows):
        free = found.room - len(found.started) + len(found.removed)
        if free + len(idle) < 1:
            raise ClusterError("no room")
        return [] if free >= 1 else idle[:1]

    def switch(name, table):
        if found.breaks:
            raise ClusterError("the endpoint has not taken up the change")
        found.tables.append(table)

    monkeypatch.setattr(promotion, "start", start)
    monkeypatch.setattr(promotion, "take_down", take_down)
    monkeypatch.setattr(promotion, "make_room", make_room)
    monkeypatch.setattr(promotion, "switch", switch)
    monkeypatch.setattr(ray.serve, "status", lambda: SimpleNamespace(applications={}))
    monkeypatch.setattr(table_store, "write", lambda name, table: found.tables.append(table))
    monkeypatch.setattr(table_store, "read_seen", lambda name: Seen(up=dict.fromkeys(found.down, False)))
    monkeypatch.setattr(table_store, "current", lambda name: found.tables[-1])
    found.tables.append(dataclasses.replace(table(), rows=(dataclasses.replace(table().rows[0], application="app@v0"),)))

    @contextlib.contextmanager
    def at(to, *, verbose, changes=True):
        yield "app", found.tables[-1], ClusterResources(num_cpus=4)

    monkeypatch.setattr(versions, "endpoint_at", at)
    return found


def rounds(run, number):
    for index in range(number):
        model = run / "rounds" / str(index) / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"w")
        card = {"version": f"v{index}", "parent": "b", "frame_spec": SPEC.to_row(), "plain_prompt": "Q: {question}"}
        (model / CARD).write_text(json.dumps(card))
    config = json.loads((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(json.dumps({**config, "rounds": number}))


def states(found):
    return {row.version: row.state for row in found.tables[-1].of("aligned")}


AT_ONCE = candidates.how_of(None, False, {})


@pytest.mark.parametrize("config", ["{", '{"model_type": "qwen2_5_vl"}'])
def test_a_broken_folder_is_one_sentence_and_starts_nothing(tmp_path, model_path, config, monkeypatch):
    shutil.copytree(model_path, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config)
    monkeypatch.setattr(ray.serve, "run_many", lambda *_, **__: pytest.fail("something was started"))
    spec = table().spec
    policy = PolicyVersion(version="v", path=str(tmp_path / "model"))
    if config.endswith('"}'):
        (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelError) as caught:
        promotion.start("app", spec, policy, "{question}")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_promotions_one_after_the_other_keep_the_last_and_find_room(run, events):
    rounds(run, 5)
    versions.promote(f"{run}:1", "to", AT_ONCE)
    assert (states(events), events.removed) == ({"v0": "kept", "v1": "promoted"}, [])
    versions.promote(f"{run}:2", "to", AT_ONCE)
    assert (states(events), events.removed) == ({"v1": "kept", "v2": "promoted"}, ["v0"]), "there was room for one"
    versions.promote(f"{run}:1", "to", AT_ONCE)
    assert (events.started, states(events)) == (["v1", "v2"], {"v1": "promoted", "v2": "kept"}), "it still ran"
    events.room = 5
    versions.promote(f"{run}:3", "to", AT_ONCE)
    assert (states(events), events.removed) == ({"v1": "kept", "v3": "promoted"}, ["v0", "v2"]), "only the last is kept"
    assert events.tables[-1].promoted().served.plain_prompt == "Q: {question}"


def test_a_canary_grows_and_is_promoted_without_another_start(run, events):
    rounds(run, 2)
    versions.promote(f"{run}:1", "to", candidates.how_of("10%", False, {"max_slowdown": 3.0}))
    first = events.tables[-1].on_trial()
    assert (first.state, first.share, first.bounds.max_slowdown) == ("canary", 0.1, 3.0)
    versions.promote(f"{run}:1", "to", candidates.how_of("50%", False, {}))
    second = events.tables[-1].on_trial()
    assert (second.share, second.bounds.max_slowdown) == (0.5, 2.0)
    assert second.trial != first.trial, "a trial of its own"
    versions.promote(f"{run}:1", "to", AT_ONCE)
    assert (states(events), events.started) == ({"v0": "kept", "v1": "promoted"}, ["v1"])
    steps = [json.loads(line)["step"] for line in (run / promotion_log.FILE).read_text().splitlines()]
    assert steps == ["start", "canary", "canary", "promote"]


def test_a_rollback_ends_a_trial_or_goes_back_once(run, events):
    rounds(run, 3)
    versions.promote(f"{run}:1", "to", AT_ONCE)
    events.room = 2
    versions.promote(f"{run}:2", "to", candidates.how_of(None, True, {}))
    versions.rollback("to")
    assert (states(events), events.removed) == ({"v0": "kept", "v1": "promoted"}, ["v2"])
    versions.rollback("to")
    assert states(events)["v0"] == "promoted"
    assert states(events)["v1"] == "taken back"
    with pytest.raises(ClusterError, match="no version before it is kept; name one"):
        versions.rollback("to")


def test_a_rollback_after_the_endpoint_has_taken_a_canary_back_only_removes_it(run, events):
    rounds(run, 3)
    versions.promote(f"{run}:1", "to", AT_ONCE)
    events.room = 2
    versions.promote(f"{run}:2", "to", candidates.how_of("10%", False, {}))
    now = events.tables[-1]
    events.tables.append(dataclasses.replace(now, rows=taken_back(now.rows, {now.on_trial().trial: "it is slow"})))
    versions.rollback("to")
    assert (states(events), events.removed) == ({"v0": "kept", "v1": "promoted"}, ["v2"])


def test_what_does_not_work_does_not_come_back(run, events):
    rounds(run, 2)
    versions.promote(f"{run}:1", "to", AT_ONCE)
    events.down = ("aligned",)
    for change in (lambda: versions.rollback("to"), lambda: versions.promote(f"{run}:0", "to", AT_ONCE)):
        with pytest.raises(ClusterError, match="the engine of aligned@v0 does not work now"):
            change()
    assert states(events) == {"v0": "kept", "v1": "promoted"}


@pytest.mark.parametrize("why", ["no room", "the endpoint has not taken up the change"])
def test_a_promotion_that_fails_leaves_everything_as_it_was(run, events, why):
    rounds(run, 2)
    before = events.tables[-1]
    events.room, events.breaks = (0, False) if why == "no room" else (1, True)
    with pytest.raises(ClusterError, match=why):
        versions.promote(f"{run}:1", "to", AT_ONCE)
    after = events.tables[-1]
    assert after.rows == before.rows
    assert events.removed == []
    if events.breaks:
        assert after.serial > before.serial + 1, "newer than what the ingress may yet take up"
    last = json.loads((run / promotion_log.FILE).read_text().splitlines()[-1])
    assert (last["step"], last["outcome"]) == ("promote", "refused")


def test_adapters_come_in_and_go_without_an_engine_or_room_for_one(run, events, monkeypatch):
    rounds(run, 4)
    events.room = 0
    attached = []

    def attach(name, spec, policy, plain_prompt, adapter):
        attached.append(policy.version)
        served = Served(version=policy.version, frame_spec=SPEC, media={}, max_model_len=512, plain_prompt=plain_prompt)
        return Row(target=f"aligned@{policy.version}", model_id="aligned", served=served, adapter=adapter, since="s")

    monkeypatch.setattr(promotion, "attach", attach)
    monkeypatch.setattr(versions, "adapter_for", lambda table, candidate: f"/{candidate.policy.version}/adapter")
    for index in (1, 2):
        versions.promote(f"{run}:{index}", "to", AT_ONCE)
    assert (attached, events.started, events.removed) == (["v1", "v2"], [], ["v0"])
    assert states(events) == {"v1": "kept", "v2": "promoted"}
    versions.promote(f"{run}:3", "to", candidates.how_of(None, True, {}))
    assert states(events) == {"v1": "kept", "v2": "promoted", "v3": "shadow"}
    versions.rollback("to")
    assert (events.removed[-1], states(events)) == ("v3", {"v1": "kept", "v2": "promoted"})
    versions.rollback("to")
    assert states(events) == {"v1": "promoted", "v2": "taken back"}


HEAD = """
import pickle, sys, ray
ray.init(address="local", include_dashboard=False, num_cpus=1, logging_level="ERROR", log_to_driver=False)
from ray.experimental import internal_kv
internal_kv._internal_kv_put(b"endpoint:one", pickle.dumps("its table"), True, namespace=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
ASK = """
import sys
from serving.table_store import tables_at
print(tables_at(sys.argv[1]))
"""


@pytest.mark.heavy
def test_the_table_of_a_ray_with_a_token_is_read_without_joining_it(tmp_path):
    """A Ray that starts for one machine has a token, which only `ray.init` turns on in a process."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, table_store.NAMESPACE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as head:
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        asked = subprocess.run(
            [sys.executable, "-c", ASK, address], capture_output=True, text=True, env=environment, timeout=120, check=True
        )
        head.communicate("")
    assert asked.stdout.strip() == "{'one': 'its table'}"
    assert "Token authentication" not in asked.stderr
