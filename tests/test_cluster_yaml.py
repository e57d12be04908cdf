"""ray_cluster.yaml against Ray's own validation, and what the plan makes of it."""

import pathlib

import pytest
import yaml
from conftest import plan_of
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.launcher import limits, with_growth
from cluster.resources import ClusterResources
from vidalign.config.cluster import ClusterConfig
from vidalign.config.loading import parse_config
from vidalign.errors import ClusterError

FILE = pathlib.Path(__file__).parent.parent / "ray_cluster.yaml"


@pytest.fixture
def raw():
    return yaml.safe_load(FILE.read_text())


def test_rays_own_validation_accepts_it(raw):
    prepared = prepare_config(raw)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "decode", "gpu"}


def test_rays_own_validation_would_notice(raw):
    raw["max_wrokers"] = 3
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(raw))


def test_workers_scale_from_zero(raw):
    for name in ("decode", "gpu"):
        assert raw["available_node_types"][name]["min_workers"] == 0
        assert raw["available_node_types"][name]["max_workers"] > 0
    assert raw["available_node_types"][raw["head_node_type"]]["max_workers"] == 0


def starts_of_ray(raw):
    """Every `ray start` of head and workers, and whether it demands the token."""
    commands = [*raw["head_start_ray_commands"], *raw["worker_start_ray_commands"]]
    parts = [part.strip() for command in commands for part in command.split(";")]
    return {part: part.startswith("RAY_AUTH_MODE=token ray start ") for part in parts if "ray start" in part}


def test_every_ray_starts_with_tokens(raw):
    starts = starts_of_ray(raw)
    assert ["--head" in part for part in starts] == [True, False]
    assert all(starts.values()), starts


@pytest.mark.parametrize("where", ["head", "worker"])
def test_a_ray_that_starts_without_a_token_would_be_noticed(raw, where):
    commands = raw[f"{where}_start_ray_commands"]
    raw[f"{where}_start_ray_commands"] = [command.replace("RAY_AUTH_MODE=token ", "") for command in commands]
    assert list(starts_of_ray(raw).values()).count(False) == 1
    raw[f"{where}_start_ray_commands"] = ["ray stop"]
    assert len(starts_of_ray(raw)) == 1


def test_it_can_grow_to(raw):
    most = limits(raw)
    assert (most.num_cpus, most.num_gpus) == (2, 0)
    assert (most.max_num_cpus, most.max_num_gpus) == (2 + 4 * 48 + 8 * 16, 16)
    assert (most.cpus_per_node, most.gpus_per_node) == (48, 4)


def test_its_own_max_workers_bounds_the_growth(raw):
    raw["max_workers"] = 5
    most = limits(raw)
    assert (most.max_num_cpus, most.max_num_gpus) == (2 + 4 * 48 + 1 * 16, 16)
    raw["max_workers"] = 1
    assert limits(raw).max_num_gpus == 4


def test_a_plan_for_nodes_that_are_not_up_yet(raw, tmp_path):
    left_on_head = tmp_path / "ray_bootstrap_config.yaml"
    left_on_head.write_text(yaml.safe_dump(prepare_config(raw)))
    head = ClusterResources(num_cpus=2, cpus_per_node=2)
    config = parse_config(
        {
            "run_dir": "run",
            "model": {"path": "m"},
            "data": {"train": "t.jsonl"},
            "rollout": {"gpus_per_engine": 4},
            "train": {"num_workers": 16},
        }
    )
    with pytest.raises(ClusterError, match="the cluster has no GPU"):
        plan_of(config, with_growth(head, ClusterConfig(), str(tmp_path / "none.yaml")))  # type: ignore[call-arg]
    made = plan_of(config, with_growth(head, ClusterConfig(), str(left_on_head)))  # type: ignore[call-arg]
    assert (made.engines.num, made.engines.gpus, made.train.num) == (4, 4, 16)
    by_hand = ClusterConfig(max_num_cpus=64, max_num_gpus=16)  # type: ignore[call-arg]
    assert plan_of(config, with_growth(head, by_hand, str(tmp_path / "none.yaml"))).engines.num == 4


def test_a_node_type_without_resources(raw):
    del raw["available_node_types"]["gpu"]["resources"]
    with pytest.raises(ClusterError, match=r"node type gpu .* does not say how many CPUs it has"):
        limits(raw)
