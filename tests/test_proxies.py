"""What the environment says of proxies does not come between a command and its own endpoint, nor between the endpoint's parts."""

import os
import subprocess
import sys
import urllib.error
import urllib.request

import openai
import pytest
from json_server import serving

from cluster.engines import REPLICA_ENVIRONMENT
from cluster.proxies import THIS_MACHINE, reach_directly
from serving.readiness import listed_models

CARDS = {"data": [{"id": "base", "object": "model", "created": 0, "owned_by": "x"}], "object": "list"}
ALL = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def behind_a_proxy(monkeypatch):
    """One that does not answer."""
    for name in ALL:
        monkeypatch.setenv(name, "")  # and what it was afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # made once, with the proxies of that moment


def test_a_run_reaches_its_own_endpoint():
    with serving(lambda posted: (200, CARDS)) as url:
        with pytest.raises(openai.APIConnectionError):
            openai.OpenAI(base_url=url, api_key="x", max_retries=0).models.list()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(url)
        assert listed_models(url, "none") == {"base"}
        assert [model.id for model in openai.OpenAI(base_url=url, api_key="x", max_retries=0).models.list()] == ["base"]


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_what_was_said_before_stays(name, monkeypatch):
    monkeypatch.setenv(name, ".corp, 10.0.0.1")
    reach_directly("10.0.0.2")
    reach_directly("10.0.0.2")
    assert os.environ["no_proxy"].split(",") == [".corp", "10.0.0.1", *THIS_MACHINE, "10.0.0.2"]


def test_without_proxies_nothing_is_said(monkeypatch):
    monkeypatch.delenv("HTTP_PROXY")
    reach_directly()
    assert "no_proxy" not in os.environ


ASKED = """
import asyncio, grpc

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("0.0.0.0:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), 2)
            print("reached")
        except TimeoutError:
            print("not reached")
    await server.stop(0)

asyncio.run(main())
"""


@pytest.mark.parametrize(("added", "found"), [({}, "not reached"), (REPLICA_ENVIRONMENT, "reached")])
def test_a_gate_reaches_its_replicas(added, found):
    """As Serve does it, by gRPC, which takes http_proxy for every host that no_proxy does not name."""
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", **added}
    done = subprocess.run([sys.executable, "-c", ASKED], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
