"""Versions of a policy behind a running endpoint with real engines: nothing fails while one takes the place of another."""

import concurrent.futures
import json
import pathlib
import shutil
import signal
import threading
import time

import httpx
import psutil
import pytest
from conftest import free_port, vidalign
from contract_table import CHAT, asked, chat

from cluster.plan import plan_serve
from pipelines import candidates, versions
from serving.app import endpoint
from serving.spec import EndpointSpec
from serving.versions import place_of
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.model.checkpoint import CARD, policy_version
from vidalign.types import FrameSpec

SPEC = FrameSpec(num_frames=8, height=56, width=56)
RETRIES = 2  # of OpenAI's client, by default


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_path) -> pathlib.Path:
    """The folder of a run with two rounds, each of which has exported a policy."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("run")
    config = {"run_dir": str(folder), "model": {"path": model_path}, "data": {"train": "t"}, "rounds": 2}
    (folder / "config.yaml").write_text(json.dumps(config))
    for index in range(2):
        model = folder / "rounds" / str(index) / "model"
        shutil.copytree(model_path, model)
        torch.manual_seed(index)
        weights = load_file(model / "model.safetensors")
        save_file({k: v + 0.01 * torch.randn(v.shape).to(v.dtype) for k, v in weights.items()}, model / "model.safetensors")
        card = {
            "version": policy_version(model).version,
            "parent": "p",
            "frame_spec": SPEC.to_row(),
            "plain_prompt": "{question}",
        }
        (model / CARD).write_text(json.dumps(card))
    return folder


class Load:
    """Short requests, one after the other from each of a few users, until it is told to stop. What is to come back does."""

    def __init__(self, url: str, clients: int) -> None:
        self.url, self.stop, self.seen, self.retried = url, threading.Event(), [], []
        self.pool = concurrent.futures.ThreadPoolExecutor(clients)
        self.running = [self.pool.submit(self._ask, number) for number in range(clients)]

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.stop.is_set():
                body = chat("Hello", max_tokens=4, user=f"user {number}") | {"model": "aligned"}
                reply = asked(client, self.url, body)
                for _ in range(RETRIES):
                    if reply.status_code != 503:
                        break
                    self.retried.append(reply.json()["error"]["code"])
                    time.sleep(float(reply.headers["retry-after"]))
                    reply = asked(client, self.url, body)
                found = reply.json().get("system_fingerprint", reply.text)
                self.seen.append((reply.status_code, reply.headers.get("x-policy-version"), found, f"user {number}"))
                self.stop.wait(0.05)

    def end(self) -> list:
        self.stop.set()
        for each in self.running:
            each.result(60)
        return self.seen


def spec_of(run, model_path, resources) -> EndpointSpec:
    """An endpoint of the base and the run's first round."""
    serve = ServeConfig(port=free_port())
    return EndpointSpec(
        models={"base": policy_version(model_path), "aligned": candidates.find_candidate(f"{run}:0").policy},
        model=ModelConfig(path=model_path, dtype="float32", max_model_len=512),
        serve=serve,
        plan=plan_serve(serve, resources, 2, further=1),
        frame_spec=SPEC,
    )


@pytest.mark.heavy
@pytest.mark.long
def test_a_promotion_and_a_rollback_under_load_fail_nothing(local_ray, run, model_path):
    import ray

    first, second = (candidates.find_candidate(f"{run}:{index}").policy.version for index in range(2))
    with endpoint(spec_of(run, model_path, local_ray)) as running:
        url = running.base_url.removesuffix("/v1")
        to = ray.get_runtime_context().gcs_address
        load = Load(url, 2)
        try:
            done = vidalign("promote", f"{run}:1", "--to", url, timeout_s=300)
            assert done.returncode == 0, done.stderr[-3000:]
            promoted = len(load.seen)
            cards = {card["id"]: card["metadata"] for card in httpx.get(f"{url}/v1/models").json()["data"]}
            exact = [
                httpx.post(url + CHAT, json=chat(max_tokens=4) | {"model": f"aligned@{v}"}, timeout=60)
                for v in (first, second)
            ]
            held = len(load.seen)
            versions.rollback(url)
            rolled_back = len(load.seen)
            table = versions.versions(to)
        finally:
            seen = load.end()
    failed = [row for row in seen if row[0] != 200]
    assert not failed
    assert not load.retried
    assert len(seen) > 30
    answered = [version for _, version, _, _ in seen]
    assert all(version == fingerprint for _, version, fingerprint, _ in seen)
    assert answered[0] == first
    on_their_way = 2
    assert set(answered[promoted + on_their_way : held]) == {second}
    assert set(answered[rolled_back + on_their_way :]) == {first}
    assert [reply.headers["x-policy-version"] for reply in exact] == [first, second]
    assert cards["aligned"]["policy_version"] == second
    assert {name: card.get("state") for name, card in cards.items() if "@" in name} == {
        f"aligned@{first}": "kept",
        f"aligned@{second}": "promoted",
    }
    assert "taken back" in table
    log = [json.loads(line) for line in (run / "serving" / "promotions.jsonl").read_text().splitlines()]
    assert [(row["step"], row["from"], row["to"], row["outcome"]) for row in log] == [
        ("start", first, first, "done"),
        ("promote", first, second, "done"),
        ("rollback", second, first, "done"),
    ]


def stream(url: str, lines: list[str]) -> None:
    """The lines of a long reply."""
    body = chat("Hello", n=8, max_tokens=480, ignore_eos=True, stream=True, temperature=1.0) | {"model": "aligned"}
    with httpx.stream("POST", url + CHAT, json=body, timeout=60) as reply:
        for line in reply.iter_lines():
            if line:
                lines.append(line)


def process_of(*words: str) -> psutil.Process:
    """The one process of this machine's endpoints whose command, or a command above it, has all of these words."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join(" ".join(each.cmdline()) for each in (process, *process.parents()))
            if all(word in text for word in words) and words[0] in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    [process] = found
    return process


def eventually(seconds: float, holds) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.heavy
@pytest.mark.long
def test_a_canary_a_shadow_an_automatic_rollback_and_a_killed_ingress_fail_nothing(local_ray, run, model_path):
    import ray

    first, second = (candidates.find_candidate(f"{run}:{index}").policy.version for index in range(2))
    users = [f"user {number}" for number in range(4)]
    places = sorted(place_of(user, second) for user in users)
    share = (places[1] + places[2]) / 2  # two of the four
    with endpoint(spec_of(run, model_path, local_ray)) as running:
        url = running.base_url.removesuffix("/v1")
        to = ray.get_runtime_context().gcs_address

        def version_of(**headers: str) -> str:
            reply = httpx.post(url + CHAT, json=chat(max_tokens=4) | {"model": "aligned"}, headers=headers, timeout=60)
            assert reply.status_code == 200
            return reply.headers["x-policy-version"]

        load = Load(url, len(users))
        try:
            bounds = ["--max-slowdown", "5", "--min-requests", "10"]
            done = vidalign("promote", f"{run}:1", "--to", to, "--canary", str(share), *bounds, timeout_s=300)
            assert done.returncode == 0, done.stderr[-3000:]
            begun = len(load.seen) + len(users)
            assert version_of(**{"x-canary": "true"}) == version_of(**{"x-policy-version": second}) == second
            assert version_of(**{"x-canary": "false"}) == version_of(**{"x-policy-version": first}) == first
            eventually(60, lambda: len(load.seen) > begun + 80)
            held = len(load.seen)

            engine = process_of("EngineCore", "PolicyServer:aligned", f"@{second}")

            def is_taken_back() -> bool:  # once its engine has been slow often enough
                engine.send_signal(signal.SIGSTOP)
                time.sleep(1.5)
                engine.send_signal(signal.SIGCONT)
                time.sleep(0.3)
                return "taken back" in versions.versions(to)

            eventually(60, is_taken_back)
            taken_back = len(load.seen) + len(users)
            assert version_of(**{"x-canary": "true"}) == first, "there is no canary any more"
            eventually(60, lambda: len(load.seen) > taken_back + 20)

            done = vidalign("promote", f"{run}:1", "--to", to, "--shadow", "--max-slowdown", "1000", timeout_s=300)
            assert done.returncode == 0, done.stderr[-3000:]
            copied = f'vidalign_requests_total{{model="aligned@{second}",path="shadow",status="200"}}'
            eventually(60, lambda: copied in httpx.get(f"{url}/metrics").text)
            assert not load.retried, "nothing had to be asked twice until here"

            process_of("ServeReplica", "PolicyIngress").kill()
            killed = len(load.seen)
            eventually(90, lambda: len(load.seen) > killed + 30)
            table = versions.versions(to)
        finally:
            seen = load.end()
        streaming = concurrent.futures.ThreadPoolExecutor(1).submit(stream, url, lines := [])
        eventually(20, lambda: bool(lines))
    streaming.result(60)
    assert lines[-1] == "data: [DONE]", "an endpoint of several policies lets a running stream end too"
    assert [row for row in seen if row[0] != 200] == []
    assert 0 < len(load.retried) <= RETRIES * len(users), "only those that were in the ingress, or came until it was back"
    assert set(load.retried) <= {"engine_died", "engine_restarting", "closed"}
    assert all(version == fingerprint for _, version, fingerprint, _ in seen)
    for user in users:
        expected = second if place_of(user, second) < share else first
        assert {version for _, version, _, who in seen[begun:held] if who == user} == {expected}, "always the same"
    assert {version for _, version, _, _ in seen[taken_back:]} == {first}
    assert "shadow" in table, "the table outlives the ingress"
    log = [json.loads(line) for line in (run / "serving" / "promotions.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if row["outcome"] == "automatic"] == ["rollback"]
    assert "its requests take" in next(row["why"] for row in log if row["outcome"] == "automatic")
