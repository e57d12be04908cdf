"""Nothing waits for nodes without end, and the console says what for."""

import json
import os
import re
import subprocess
import sys
import threading
import types

import pytest
import ray.exceptions
import ray.train
from conftest import ROOT
from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo
from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

from actors.engine_starts import MAX_STARTS, EngineStarts
from cluster import waiting
from cluster.placement import (
    Unplaced,
    kind_of,
    left_groups,
    ranks_not_asked_for,
    unplaced_actors,
    unplaced_groups,
    unplaced_replicas,
)
from cluster.waiting import PlacementWatch, answer_of_report, answer_of_status
from pipelines.stages.train import fit_again
from vidalign.errors import ClusterError, ModelError

ENGINES = Unplaced(what="engines", num=2, resources={"CPU": 4, "GPU": 1})
NODE = b"\x01" * 28
NOWHERE = b"\xff" * 28
WORKER = b"\x02" * 28


@pytest.fixture
def watch():
    said, ended = [], []
    made = PlacementWatch(100, answer=lambda: "the autoscaler is starting 1 gpu", say=said.append, stop=ended.append)
    return types.SimpleNamespace(look=made.look, said=said, ended=ended)


def test_a_wait_is_said_and_then_ends_the_run(watch):
    for now in range(0, 130, 5):
        watch.look([ENGINES], float(now))
        if now < 100:
            assert not watch.ended
    assert "waiting for 2 x (4 CPU, 1 GPU) for engines for 20 s; the autoscaler is starting 1 gpu" in watch.said[0]
    assert len(watch.said) == 1, "said again only when the answer changes"
    assert str(watch.ended[0]).startswith(
        "waited 100 s for 2 x (4 CPU, 1 GPU) for engines; the autoscaler is starting 1 gpu. "
    )
    assert "cluster.wait_for_nodes_s=100" in str(watch.ended[0])


def test_what_is_placed_waits_no_longer(watch):
    for now in range(0, 400, 5):
        watch.look([ENGINES] if now % 100 < 70 else [], float(now))
    assert watch.ended == []
    assert len(watch.said) == 3, "the same is said every two minutes at most"


def test_a_request_that_is_made_again_is_the_same_wait(watch):
    """Ray Train gives a placement group up and asks for another one."""
    for now in range(0, 130, 5):
        watch.look([ENGINES] if now % 60 else [], float(now))
    assert watch.ended


def actor(name: str, state: int, worker: bytes = b"", **resources: float) -> ActorTableData:
    """As Ray has them: an actor that waits has the node that was asked for it in its address, and no worker."""
    made = ActorTableData(class_name=name, state=state, required_resources=resources)
    made.address.node_id, made.address.worker_id = NODE, worker
    return made


def test_a_pool_waits_if_none_of_it_is_placed():
    decoder, engine = "MapWorker(Map(ChunkDecoder))", "MapWorker(Map(Generator))"
    pending, alive, restarting, dead = (
        getattr(ActorTableData, s) for s in ("PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD")
    )
    found = unplaced_actors(
        [
            actor(decoder, alive, WORKER, CPU=1),
            actor(decoder, pending, CPU=1),
            actor(engine, pending, CPU=4, GPU=1),
            actor(engine, restarting, CPU=4, GPU=1),
            actor(engine, dead, CPU=4, GPU=1),
            actor("MapWorker(MapBatches(Reference))", pending, WORKER, GPU=1),  # placed, and its constructor runs
        ]
    )
    assert found == [ENGINES]


def test_placement_groups_of_this_job_wait():
    def group(state: int, job: bytes) -> PlacementGroupTableData:
        made = PlacementGroupTableData(state=state, creator_job_id=job)
        for node in (NODE, NOWHERE):
            bundle = made.bundles.add(node_id=node)
            bundle.unit_resources.update({"GPU": 1.0, "CPU": 4.0})
        return made

    pending, created = PlacementGroupTableData.PENDING, PlacementGroupTableData.CREATED
    found = unplaced_groups([group(pending, b"ours"), group(created, b"ours"), group(pending, b"another")], b"ours")
    assert [str(each) for each in found] == ["1 x (4 CPU, 1 GPU) for training ranks"]


def test_replicas_of_which_none_is_placed_wait():
    def group(name: str, state: str) -> PlacementGroupTableData:
        made = PlacementGroupTableData(name=name, state=getattr(PlacementGroupTableData, state), is_detached=True)
        made.bundles.add(node_id=NODE if state == "CREATED" else NOWHERE).unit_resources.update({"GPU": 1.0})
        return made

    named = "SERVE_REPLICA::ours#PolicyServer:{}#{}"
    groups = [
        group(named.format("base", "a1"), "CREATED"),
        group(named.format("base", "a2"), "PENDING"),  # one more, asked for by autoscaling
        group(named.format("aligned", "b1"), "PENDING"),
        group("SERVE_REPLICA::theirs#PolicyServer:aligned#c1", "PENDING"),
    ]
    ingress = actor("ServeReplica:ours:Ingress", ActorTableData.PENDING_CREATION, CPU=2)
    ingress.name = "SERVE_REPLICA::ours#Ingress#d1"
    inside = actor("ServeReplica:ours:PolicyServer", ActorTableData.PENDING_CREATION, CPU=1)
    inside.name, inside.placement_group_id = named.format("base", "a1"), NODE
    assert [str(each) for each in unplaced_replicas([ingress, inside], groups, "ours")] == [
        "1 x (1 GPU) for replicas of PolicyServer:aligned",
        "1 x (2 CPU) for replicas of Ingress",
    ]
    ingress.address.worker_id = WORKER
    assert unplaced_replicas([ingress], groups[:2], "ours") == []


def test_a_store_that_does_not_answer_ends_the_run_too(monkeypatch):
    def silent() -> list[Unplaced]:
        raise ConnectionError("no route to  the head node")

    monkeypatch.setattr(waiting, "unplaced", silent)
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.01)
    ended, told = threading.Event(), []
    with waiting.placement_watched(0.05, say=told.append, stop=lambda error: (told.append(error), ended.set())):
        assert ended.wait(5)
    assert "has not answered for 0 s (no route to the head node)" in str(told[0])


def test_a_console_that_is_gone_stops_no_watch():
    def say(_: str) -> None:
        raise BrokenPipeError

    ended = []
    watch = PlacementWatch(30, answer=str, say=say, stop=ended.append)
    for now in (0.0, 25.0, 31.0):
        watch.look([ENGINES], now)
    assert ended


def test_what_the_autoscaler_answers():
    launch = {"instance_type_name": "g5", "ray_node_type_name": "gpu", "count": 2, "request_ts_s": 0}
    pending = LaunchRequest(**launch, state=LaunchRequest.Status.PENDING)
    failed = LaunchRequest(**launch, state=LaunchRequest.Status.FAILED, details="no  capacity in us-west-2a")
    node = NodeInfo(
        instance_type_name="g5", node_status="x", node_id="1", instance_id="1", ip_address="1", ray_node_type_name="gpu"
    )
    assert "starts nothing for it" in answer_of_status(ClusterStatus())
    assert (
        answer_of_status(ClusterStatus(pending_launches=[pending], pending_nodes=[node]))
        == "the autoscaler is starting 3 gpu"
    )
    assert answer_of_status(ClusterStatus(failed_launches=[failed])) == (
        "the autoscaler failed to start 2 gpu: no capacity in us-west-2a"
    )
    report = {"autoscaler_report": {"pending_launches": {"gpu": 1}, "pending_nodes": [["1.2.3.4", "cpu", "waiting"]]}}
    assert answer_of_report(report) == "the autoscaler is starting 1 gpu and 1 cpu"
    gone = NodeInfo(
        instance_type_name="",
        node_status="DEAD",
        node_id="1",
        instance_id="",
        ip_address="1",
        ray_node_type_name="node_fd01",
    )
    assert answer_of_status(ClusterStatus(failed_nodes=[gone])) == "1 node ended"
    assert "1 gpu ended" in answer_of_report({"autoscaler_report": {"failed_nodes": [["1.2.3.4", "gpu"]]}})
    assert "starts nothing" in answer_of_report({})


def test_kinds_of_actors():
    assert kind_of("RayTrainWorker") == "training ranks"
    assert kind_of("MapWorker(MapBatches(Decoder))") == "decoders"
    assert kind_of("MapWorker(Map(Other))") == "Other"


@pytest.fixture(params=["controller", "node"])
def lost(request):
    """Of the controller itself, or as it says that it could not go on when a node of its ranks was gone."""
    died = ray.exceptions.RayActorError(error_msg="its process was killed")
    return died if request.param == "controller" else ray.train.ControllerError(died)


def test_a_training_whose_controller_dies_goes_on_a_bounded_number_of_times(lost):
    """Ray Train's controller is an actor; with the same name, the next one finds the checkpoints of the last."""
    tries = []

    def fit(times: int) -> str:
        tries.append(1)
        if len(tries) <= times:
            raise lost
        return "trained"

    told = []
    assert fit_again(lambda: fit(2), told.append) == "trained"
    assert len(tries) == 3
    assert len(told) == 2
    tries.clear()
    with pytest.raises(ClusterError, match=r"controller died 4 times \(.*killed.*\).*continues from its newest checkpoint"):
        fit_again(lambda: fit(9), told.append)
    assert len(tries) == 4


def test_the_room_of_a_controller_that_died_is_given_back():
    """Ray keeps its group: for the training that goes on there would be no room."""
    alive, dead = actor("TrainController", ActorTableData.ALIVE, WORKER), actor("TrainController", ActorTableData.DEAD)
    alive.actor_id, dead.actor_id = b"alive", b"dead"
    created, removed = PlacementGroupTableData.CREATED, PlacementGroupTableData.REMOVED
    groups = [
        PlacementGroupTableData(placement_group_id=name.encode(), state=state, creator_job_id=job, creator_actor_id=by)
        for name, state, job, by in [
            ("left", created, b"ours", b"dead"),
            ("gone already", removed, b"ours", b"dead"),
            ("in use", created, b"ours", b"alive"),
            ("another's", created, b"another", b"dead"),
            ("the driver's", created, b"ours", b""),
        ]
    ]
    groups.append(
        PlacementGroupTableData(
            placement_group_id=b"of one forgotten",
            state=created,
            creator_job_id=b"ours",
            creator_actor_id=b"long ago",
            creator_actor_dead=True,
        )
    )
    groups.append(
        PlacementGroupTableData(placement_group_id=b"detached", state=created, creator_job_id=b"ours", is_detached=True)
    )
    groups[-1].creator_actor_id = b"dead"
    assert left_groups([alive, dead], groups, b"ours") == [b"left", b"of one forgotten"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_any_other_error_of_a_training_is_its_own(wrapped):
    error = ray.train.ControllerError(ZeroDivisionError()) if wrapped else ZeroDivisionError()

    def fit() -> None:
        raise error

    with pytest.raises(type(error)):
        fit_again(fit, print)


def test_an_engine_that_dies_while_it_loads_is_started_a_bounded_number_of_times(tmp_path):
    """A process that dies takes its count with it, so the count is kept in the folder of the parts."""
    for _ in range(MAX_STARTS):
        EngineStarts(tmp_path, "an actor").begin()
        EngineStarts(tmp_path, "another").begin()
        EngineStarts(tmp_path, "another").done()
    with pytest.raises(ModelError, match=rf"died {MAX_STARTS} times while it loaded"):
        EngineStarts(tmp_path, "an actor").begin()
    EngineStarts(tmp_path, "an actor").begin()  # the next command counts anew
    EngineStarts(tmp_path, "another").begin()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "waits", [("decode", "library", "serve"), pytest.param(("train",), marks=pytest.mark.long)], ids=" ".join
)
def test_no_wait_is_without_end(waits):
    """What is asked for is more than the cluster has, of a pool of Ray Data, of Ray Serve, and of Ray Train once a node is lost."""
    found = how_ended(*waits)
    says = {
        "decode": r"waited \d+ s for 1 x \(64 CPU\) for decoders; the cluster has 4 CPU on 2 nodes; .*run the same command again",
        "serve": r"waited \d+ s for 1 x \(64 CPU\) for replicas of Large; the cluster has 4 CPU on 2 nodes; .*Add nodes",
        "train": r"waited \d+ s for \d x \(.*2 CPU.*\) for training ranks; the cluster has 2 CPU on 1 node; .*Add nodes",
    }
    says["library"] = says["decode"]
    assert found.keys() == set(waits)
    for name in waits:
        pattern = says[name]
        assert re.match(pattern, found[name]["error"]), found[name]
        assert found[name]["seconds"] < 60, found


def test_ranks_that_find_no_node_are_asked_for_anew_until_the_deadline(monkeypatch):
    monkeypatch.setenv(waiting.TRAIN_START, "930")
    assert waiting.times_asked_anew() == 93
    with waiting.ranks_asked_for_anew(True):
        assert float(os.environ[waiting.TRAIN_START]) == waiting.ASK_ANEW_S
    with waiting.ranks_asked_for_anew(False):
        assert os.environ[waiting.TRAIN_START] == "930", "ranks that must come are waited for"
    assert os.environ[waiting.TRAIN_START] == "930"


@pytest.mark.heavy
@pytest.mark.long
def test_a_training_that_may_have_fewer_ranks_does_not_wait_for_one_whose_node_is_lost():
    """What Ray Train knows of the cluster is up to 20 s old, so it asks for the lost one again at first."""
    assert how_ended("elastic")["elastic"]["error"] == ""


def how_ended(*waits: str) -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/waits_for_nodes.py", *waits],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_training_that_finds_no_room_for_its_fewest_ranks_waits():
    """Ray Train asks for no placement group then."""
    controller = actor("TrainController", ActorTableData.ALIVE, WORKER)
    gone = actor("RayTrainWorker", ActorTableData.DEAD, CPU=2)
    gone.placement_group_id = NODE
    assert [str(each) for each in ranks_not_asked_for([controller, gone])] == ["1 x (2 CPU) for training ranks"]
    rank = actor("RayTrainWorker", ActorTableData.ALIVE, WORKER, CPU=2)
    assert ranks_not_asked_for([controller, gone, rank]) == []
    rank.state = ActorTableData.PENDING_CREATION
    assert ranks_not_asked_for([controller, gone, rank]) == [], "it starts, in the room that it has"
    assert ranks_not_asked_for([gone]) == []
