"""The endpoint of a driver that was killed is taken down by the next one, and nobody else's is."""

import socket

import pytest

from pipelines.checks import places as check_places
from pipelines.checks.places import check_port
from serving.leftovers import left_behind
from vidalign.config.run import RunConfig
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
