"""What a training and the responses made beside it get of a cluster: arithmetic only."""

import dataclasses

import pytest
from conftest import plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import run_config

from cluster.plan import plan
from cluster.resources import ClusterResources, Workers
from vidalign.errors import ClusterError, ConfigError

TWO_CORES = ClusterResources(num_cpus=2)


def overlapping(**sections):
    cluster = {"overlap": True} | sections.pop("cluster", {})
    return run_config(**{"rounds": 3, "cluster": cluster} | sections)


def planned(config, resources):
    return plan_of(config, resources, overlap=config.cluster.overlap)


def test_two_cores_train_and_respond_at_once_and_leave_a_cpu_for_ray_data():
    made = planned(overlapping(), TWO_CORES)
    assert made.train == Workers(num=1, cpus=0.5)
    assert (made.engines, made.decoders) == (Workers(num=1, cpus=0.25), Workers(num=1, cpus=0.25))
    assert made.overlap
    assert made.num_cpus_needed == 2


def test_cpus_are_halved():
    made = planned(
        overlapping(train={"num_workers": 2, "batch_size": 8, "micro_batch_size": 1}), ClusterResources(num_cpus=16)
    )
    assert made.train == Workers(num=2, cpus=4)
    assert made.engines == Workers(num=1, cpus=4)
    assert made.decoders == Workers(num=3, cpus=1)


def test_engines_fill_the_gpus_that_training_leaves():
    made = planned(overlapping(train={"num_workers": 4}), ClusterResources(num_cpus=64, num_gpus=8))
    assert (made.train.num, made.train.gpus) == (4, 1)
    assert made.engines == Workers(num=4, cpus=4, gpus=1)
    assert made.serve.total_gpus(made.serve.max_replicas) == 8, "an evaluation has the whole cluster"


def test_training_takes_first_the_gpus_that_no_engine_fits_in():
    nodes = ClusterResources(num_cpus=96, num_gpus=13, num_nodes=2, gpus_per_node=8, gpus_of_nodes=(8, 5), cpus_per_node=48)
    config = overlapping(train={"num_workers": 2}, rollout={"gpus_per_engine": 4})
    assert planned(config, nodes).engines.num == 2, (
        "one of the ranks has the ninth GPU, and the other one breaks the smaller four"
    )


@pytest.mark.parametrize(
    ("sections", "resources", "said"),
    [
        (
            {"train": {"num_workers": 8}},
            ClusterResources(num_cpus=64, num_gpus=8),
            r"8 GPUs for train.num_workers=8 and, beside them, 1 GPU .* lower train.num_workers to 7, add GPU nodes, or set "
            r"cluster.overlap to false",
        ),
        ({}, ClusterResources(num_cpus=8, num_gpus=1), "set train.use_gpu to false or rollout.gpus_per_engine to 0"),
        (
            {"train": {"num_workers": 4}, "rollout": {"num_engines": 5}},
            ClusterResources(num_cpus=64, num_gpus=8),
            r"48 CPUs and 4 GPUs beside training \(cluster.overlap\), where 4 fit; lower rollout.num_engines to 4",
        ),
        (
            {"train": {"num_workers": 3, "batch_size": 3}, "rollout": {"gpus_per_engine": 2}},
            ClusterResources(num_cpus=64, num_gpus=4),
            "2 GPUs on one node for an engine, .* lower train.num_workers to 2",
        ),
        ({}, ClusterResources(num_cpus=1), "cluster.overlap=true needs 2 CPUs"),
        ({"video": {"num_decoders": 4}}, ClusterResources(num_cpus=8), r"cluster's 4 beside training .*num_decoders to 1"),
    ],
)
def test_what_does_not_fit_beside_training_is_refused(sections, resources, said):
    with pytest.raises(ClusterError, match=said):
        planned(overlapping(**sections), resources)


@settings(max_examples=60)
@given(
    cpus=st.integers(2, 200),
    gpus=st.integers(0, 16),
    workers=st.integers(1, 8),
    devices=st.sampled_from([0, 1, 2, 4]),
    nodes=st.integers(1, 2),
)
def test_both_stages_fit_together_or_are_refused(cpus, gpus, workers, devices, nodes):
    resources = ClusterResources(
        num_cpus=cpus * nodes, num_gpus=gpus * nodes, num_nodes=nodes, cpus_per_node=cpus, gpus_per_node=gpus or None
    )
    config = overlapping(
        train={"num_workers": workers, "batch_size": 840, "micro_batch_size": 1}, rollout={"gpus_per_engine": devices}
    )
    try:
        made = planned(config, resources)
    except ClusterError:
        assert gpus or devices > 1 or workers > cpus * nodes, "it would have fitted"
        return
    used = (made.train, made.engines, made.decoders)
    assert sum(each.total_cpus for each in used) <= resources.total_cpus
    assert sum(each.total_gpus for each in used) <= resources.total_gpus
    assert min(each.cpus for each in used) > 0


def test_without_overlap_the_plan_is_what_it_was():
    config, resources = run_config(rounds=3), ClusterResources(num_cpus=64, num_gpus=8)
    assert plan_of(config, resources) == plan_of(config, resources, overlap=False)
    sections = {"rollout": config.rollout, "train": config.train, "serve": config.serve, "num_decoders": None}
    assert dataclasses.asdict(plan(resources, **sections))["overlap"] is False


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"rounds": 1}, "rounds=1 has no next one; set rounds to 2 or more, or cluster.overlap to false"),
        (
            {"max_staleness": 0},
            "max_staleness=0 allows none but the newest; set max_staleness to 1, or cluster.overlap to false",
        ),
    ],
)
def test_an_overlap_with_nothing_to_do_is_refused(sections, said):
    with pytest.raises(ConfigError, match=said):
        overlapping(**sections)


def test_staleness_is_one_with_overlap_and_none_without_unless_it_is_set():
    assert run_config(rounds=3).staleness == 0
    assert overlapping().staleness == 1
    assert overlapping(max_staleness=2).staleness == 2
    assert run_config(rounds=3, max_staleness=1).staleness == 1
