"""Replicas that come and go with the requests and may be gone altogether: the options, and real engines under load."""

import concurrent.futures
import contextlib
import threading
import time

import httpx
import psutil
import pytest
from conftest import free_port
from contract_table import CHAT, asked, chat
from endpoint_stub import MODES, models

from cluster.plan import plan_serve
from cluster.resources import ClusterResources
from serving.app import endpoint
from serving.deployments import deployment_config
from serving.gates import GateOptions
from serving.ingress import PolicyIngress
from serving.relay import ACCEPT_S
from serving.spec import EndpointSpec
from vidalign.config.loading import parse_section
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.errors import ConfigError
from vidalign.model.checkpoint import policy_version
from vidalign.types import FrameSpec

SPEC = FrameSpec(num_frames=8, height=56, width=56)
LOGICAL = ClusterResources(num_cpus=16, num_gpus=8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["autoscaling.upscale_delay_s=5"], "upscale_delay_s makes no difference with min_replicas=1 and max_replicas=1"),
        (
            ["autoscaling.downscale_delay_s=15", "min_replicas=2", "max_replicas=2"],
            "makes no difference with min_replicas=2",
        ),
        (
            ["autoscaling.cold_start_s=5", "max_replicas=2"],
            "cold_start_s is for min_replicas=0, got 1; set min_replicas to 0",
        ),
        (["autoscaling.downscale_to_zero_delay_s=15", "max_replicas=2"], "is for min_replicas=0"),
        (
            ["max_replicas=2", "autoscaling.target_ongoing_requests=200"],
            "is above limits.max_sequences=128, which a replica",
        ),
        (
            ["max_replicas=2", "limits.max_sequences=16", "limits.max_sequences_per_request=16"],
            "target_ongoing_requests=32 is",
        ),
        (["autoscaling.target_ongoing_requests=0", "max_replicas=2"], "target_ongoing_requests"),
        (["autoscaling.look_back_period_s=1", "max_replicas=2"], "look_back_period_s"),
        (["autoscaling.downscale_delay_s=5", "max_replicas=2"], "downscale_delay_s"),
        (["autoscaling.upscale=3"], "unknown key autoscaling.upscale"),
    ],
)
def test_options_that_could_make_no_difference_are_refused_in_one_sentence(options, says):
    with pytest.raises(ConfigError) as caught:
        parse_section(ServeConfig, {}, options, source="a test")
    assert says in str(caught.value)


def test_serve_gets_the_options_as_they_are_and_a_model_is_awake_at_first():
    scaling = {"target_ongoing_requests": 4, "upscale_delay_s": 1, "downscale_to_zero_delay_s": 20, "cold_start_s": 9}
    serve = ServeConfig(min_replicas=0, max_replicas=3, autoscaling=scaling)
    assert deployment_config(plan_serve(serve, LOGICAL, 1), serve)["autoscaling_config"] == {
        "min_replicas": 0,
        "max_replicas": 3,
        "initial_replicas": 1,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 1,
        "downscale_delay_s": 600,
        "downscale_to_zero_delay_s": 20,
        "look_back_period_s": 30,
    }


def test_gpus_are_counted_for_the_most_replicas():
    serve = ServeConfig(min_replicas=0, max_replicas=4)
    assert plan_serve(serve, LOGICAL, 1).total_gpus(4) == 4
    assert plan_serve(serve, LOGICAL, 2).bundle_gpus == 1
    assert plan_serve(ServeConfig(min_replicas=0, max_replicas=8), LOGICAL, 2).bundle_gpus == 0.5, "two models on each GPU"


class Handle:
    """What Ray Serve gives for a deployment."""

    class alive:
        remote = None

    def options(self, stream):
        return type("Streaming", (), {"answer": type("Method", (), {"remote": None})})


@pytest.mark.parametrize(("low", "accept_s", "watched"), [(0, 7.0, set()), (1, ACCEPT_S, {"base"})])
def test_a_request_waits_for_a_model_that_sleeps_as_long_as_is_set(low, accept_s, watched):
    scaling = {"cold_start_s": 7} if low == 0 else {}
    serve = ServeConfig(min_replicas=low, max_replicas=2, autoscaling=scaling)
    plan = plan_serve(serve, LOGICAL, 1)
    spec = EndpointSpec(models={}, model=ModelConfig(path="-"), serve=serve, plan=plan, frame_spec=SPEC)
    options = GateOptions(models=models(MODES[0]), serve=serve, spec=spec, capacity=plan.max_replicas)
    relay = PolicyIngress({"base": Handle()}, options=options)._relay
    assert (relay._accept_s, set(relay._alive), relay._num_replicas) == (accept_s, watched, 2)


# Real engines, on CPUs


class Load:
    """Requests from each of some clients, one after the other; one that is told to come back does so once."""

    def __init__(self, url: str, clients: int) -> None:
        self.url, self.stop = url, threading.Event()
        self.seen: list[tuple[int, str, float]] = []  # status, code of its error, seconds
        self.lost = 0
        self.pool = concurrent.futures.ThreadPoolExecutor(clients)
        self.running = [self.pool.submit(self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with httpx.Client(timeout=180) as client:
            while not self.stop.is_set():
                reply = self._one(client)
                if reply.status_code == 503 and not self.stop.is_set():
                    time.sleep(float(reply.headers["retry-after"]))
                    if self._one(client).status_code != 200:
                        self.lost += 1

    def _one(self, client: httpx.Client) -> httpx.Response:
        began = time.monotonic()
        reply = asked(client, self.url, chat("Hello", max_tokens=300, ignore_eos=True) | {"model": "model"})
        assert reply.status_code in (200, 503), reply.text
        code = "" if reply.status_code == 200 else reply.json()["error"]["code"]
        self.seen.append((reply.status_code, code, time.monotonic() - began))
        return reply

    def end(self) -> None:
        self.stop.set()
        for each in self.running:
            each.result(180)
        self.pool.shutdown()


def replicas() -> int:
    """Replicas of the model that take requests."""
    from ray import serve

    [application] = serve.status().applications.values()
    return application.deployments["PolicyServer:model"].replica_states.get("RUNNING", 0)


def within(seconds: float, holds) -> float:
    """Seconds until something holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        time.sleep(0.25)
    return time.monotonic() - began


def processes(name: str) -> list[psutil.Process]:
    """The replicas (ServeReplica) or their engines (EngineCore) of this machine."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            above = " ".join(" ".join(each.cmdline()) for each in (process, *process.parents()))
            if name in " ".join(process.cmdline()) and "PolicyServer:model" in above:
                found.append(process)
    return found


def spec_of(serve, model_path, resources) -> EndpointSpec:
    return EndpointSpec(
        models={"model": policy_version(model_path)},
        model=ModelConfig(path=model_path, dtype="float32", max_model_len=512),
        serve=serve,
        plan=plan_serve(serve, resources, 1),
        frame_spec=SPEC,
    )


@pytest.mark.heavy
@pytest.mark.long
def test_of_two_replicas_one_may_lose_its_engine_or_die(local_ray, model_path):
    """HAProxy passes requests to both: those that run in it are lost, and answered when they come back once."""
    serve = ServeConfig(port=free_port(), min_replicas=2, max_replicas=2)
    with endpoint(spec_of(serve, model_path, local_ray)) as running:
        for victim in ("EngineCore", "ServeReplica"):
            within(150, lambda: replicas() == 2 and len(processes("EngineCore")) == 2)
            load = Load(running.base_url.removesuffix("/v1"), 8)
            try:
                within(30, lambda load=load: len(load.seen) > 8)
                before = len(load.seen)
                processes(victim)[0].kill()
                time.sleep(15)
            finally:
                load.end()
            assert {row[:2] for row in load.seen[:before]} == {(200, "")}
            refused = [row for row in load.seen[before:] if row[0] != 200]
            assert {row[:2] for row in refused} <= {(503, "engine_died"), (503, "engine_restarting"), (503, "closed")}
            assert 1 <= len(refused) <= 8, victim
            assert load.lost == 0, victim


@pytest.mark.heavy
@pytest.mark.long
def test_replicas_follow_the_load_and_come_back_from_none(local_ray, model_path):
    """1 → 2 under load, one of them is killed, → 0 without requests, and the next request wakes the model."""
    scaling = {"target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 12, "look_back_period_s": 11}
    serve = ServeConfig(port=free_port(), min_replicas=0, max_replicas=2, autoscaling=scaling)
    with endpoint(spec_of(serve, model_path, local_ray)) as running:
        url = running.base_url.removesuffix("/v1")
        assert replicas() == 1
        load = Load(url, 8)
        try:
            grown_s = within(150, lambda: replicas() == 2)
            time.sleep(2)  # for both to have requests
            assert {status for status, _, _ in load.seen} <= {200}
            before = len(load.seen)
            processes("ServeReplica")[0].kill()
            time.sleep(15)
        finally:
            load.end()
        refused = [row for row in load.seen[before:] if row[0] != 200]
        assert {row[:2] for row in refused} <= {(503, "engine_died"), (503, "engine_restarting")}
        assert 1 <= len(refused) <= 8, "those that were running in it, and no others"
        assert load.lost == 0, "each is answered when it comes back"
        slept_s = within(150, lambda: replicas() == 0)
        assert httpx.get(f"{url}/health").status_code == 200
        time.sleep(3)
        assert replicas() == 0, "who asks for the health of a model does not wake it"
        began = time.monotonic()
        reply = httpx.post(url + CHAT, json=chat() | {"model": "model"}, timeout=180)
        woken_s = time.monotonic() - began
        assert reply.status_code == 200
        assert woken_s < serve.autoscaling.cold_start_s
        print(f"1 to 2 in {grown_s:.0f} s, to 0 in {slept_s:.0f} s, the request that woke it took {woken_s:.1f} s")


@pytest.mark.heavy
@pytest.mark.long
def test_replicas_come_with_the_load_and_go_down_to_one_without_a_failed_request(local_ray, model_path):
    """1 → 3 → 1, while requests never stop."""
    scaling = {"target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 12, "look_back_period_s": 11}
    serve = ServeConfig(port=free_port(), min_replicas=1, max_replicas=3, autoscaling=scaling)
    with endpoint(spec_of(serve, model_path, local_ray)) as running:
        url = running.base_url.removesuffix("/v1")
        assert replicas() == 1
        few, many = Load(url, 1), Load(url, 11)
        try:
            grown_s = within(240, lambda: replicas() == 3)
            many.end()
            gone_s = within(150, lambda: replicas() == 1)
            time.sleep(15)
            assert replicas() == 1
        finally:
            many.stop.set()
            few.end()
        assert {row[:2] for row in [*few.seen, *many.seen]} == {(200, "")}
        print(f"1 to 3 in {grown_s:.0f} s, to 1 in {gone_s:.0f} s, {len(few.seen) + len(many.seen)} requests, none failed")
