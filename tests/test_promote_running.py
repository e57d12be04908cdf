"""Versions of a policy behind a running endpoint with real engines: nothing fails while one takes the place of another."""

import concurrent.futures
import json
import pathlib
import shutil
import threading

import httpx
import pytest
from conftest import free_port, vidalign
from contract_table import CHAT, chat

from cluster.plan import plan_serve
from pipelines import candidates, versions
from serving.app import endpoint
from serving.spec import EndpointSpec
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.model.checkpoint import CARD, policy_version
from vidalign.types import FrameSpec

SPEC = FrameSpec(num_frames=8, height=56, width=56)


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
    """Short requests, one after the other from each of a few clients, until it is told to stop."""

    def __init__(self, url: str, clients: int) -> None:
        self.url, self.stop, self.seen = url, threading.Event(), []
        self.pool = concurrent.futures.ThreadPoolExecutor(clients)
        self.running = [self.pool.submit(self._ask, number) for number in range(clients)]

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not self.stop.is_set():
                body = chat("Hello", max_tokens=4, user=f"user {number}") | {"model": "aligned"}
                reply = client.post(self.url + CHAT, json=body)
                found = reply.json().get("system_fingerprint", reply.text)
                self.seen.append((reply.status_code, reply.headers.get("x-policy-version"), found))
                self.stop.wait(0.05)

    def end(self) -> list:
        self.stop.set()
        for each in self.running:
            each.result(60)
        return self.seen


@pytest.mark.heavy
@pytest.mark.long
def test_a_promotion_and_a_rollback_under_load_fail_nothing(local_ray, run, model_path):
    import ray

    models = {
        "base": policy_version(model_path),
        "aligned": candidates.find_candidate(f"{run}:0").policy,
    }
    first, second = (candidates.find_candidate(f"{run}:{index}").policy.version for index in range(2))
    serve = ServeConfig(port=free_port())
    spec = EndpointSpec(
        models=models,
        model=ModelConfig(path=model_path, dtype="float32", max_model_len=512),
        serve=serve,
        plan=plan_serve(serve, local_ray, 2, further=1),
        frame_spec=SPEC,
    )
    with endpoint(spec) as running:
        url = running.base_url.removesuffix("/v1")
        to = ray.get_runtime_context().gcs_address
        load = Load(url, 2)
        try:
            done = vidalign("promote", f"{run}:1", "--to", to, timeout_s=300)
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
    assert len(seen) > 30
    answered = [version for _, version, _ in seen]
    assert all(version == fingerprint for _, version, fingerprint in seen)
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
