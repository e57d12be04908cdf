"""The resource plan and the search for a cluster: arithmetic only, no Ray is started."""

import dataclasses
import socket

import pytest
from conftest import plan_of
from hypothesis import given
from hypothesis import strategies as st

from actors.pools import pool
from cluster.launcher import with_growth
from cluster.plan import plan_evaluation, plan_serve
from cluster.resources import ClusterResources, Workers
from cluster.session import find_address, local_num_cpus
from vidalign.config.cluster import ClusterConfig
from vidalign.config.loading import parse_config
from vidalign.config.run import ServeConfig
from vidalign.errors import ClusterError


def run_config(**sections):
    return parse_config({"run_dir": "run", "model": {"path": "m"}, "data": {"train": "t.jsonl"}} | sections)


def test_two_cores_run_every_stage():
    made = plan_of(run_config(), ClusterResources(num_cpus=2))
    assert made.engines == Workers(num=1, cpus=0.5)
    assert made.decoders == Workers(num=1, cpus=0.5)
    assert made.train == Workers(num=1, cpus=2)
    assert not made.use_gpu
    assert made.serve.bundle() == {"CPU": 0.45}
    assert made.serve.total_cpus(1) == 2.0
    assert made.serve.gpu_memory_utilization is None
    assert made.num_cpus_needed == 2


def test_rollout_on_a_small_cluster_leaves_a_cpu_for_ray_data():
    made = plan_of(run_config(), ClusterResources(num_cpus=2))
    assert 2 - made.engines.total_cpus - made.decoders.total_cpus >= 1


def test_one_cpu_asks_for_a_second_logical_one():
    assert plan_of(run_config(), ClusterResources(num_cpus=1)).num_cpus_needed == 2


def test_sixteen_cores_without_gpu():
    made = plan_of(run_config(), ClusterResources(num_cpus=16))
    assert made.engines == Workers(num=1, cpus=8)
    assert made.decoders == Workers(num=7, cpus=1)
    assert made.train == Workers(num=1, cpus=16)
    assert made.serve.server_cpus == 1.0


def test_one_gpu_is_used_whole_by_every_stage():
    made = plan_of(run_config(), ClusterResources(num_cpus=8, num_gpus=1))
    assert made.engines == Workers(num=1, cpus=4, gpus=1)
    assert made.decoders == Workers(num=3, cpus=1)
    assert made.train == Workers(num=1, cpus=4, gpus=1)
    assert (made.serve.in_turn, made.serve.num_models) == (True, 1)
    assert made.serve.bundle() == {"CPU": 1.0, "GPU": 1.0}
    assert made.serve.gpu_memory_utilization == 0.9


def test_one_gpu_is_shared_by_base_and_aligned_of_an_endpoint_and_where_it_is_asked_for():
    one = ClusterResources(num_cpus=8, num_gpus=1)
    made = plan_serve(ServeConfig(), one, 2)
    assert plan_of(run_config(), one, in_turn=False).serve == made
    assert not made.in_turn
    assert made.bundle() == {"CPU": 1.0, "GPU": 0.5}
    assert made.gpu_memory_utilization == 0.45
    assert made.total_gpus(1) == 1.0


def test_one_gpu_alone_serves_one_model():
    made = plan_of(run_config(), ClusterResources(num_cpus=8, num_gpus=1), num_served=1)
    assert made.serve.bundle_gpus == 1.0
    assert made.serve.gpu_memory_utilization == 0.9
    assert not made.serve.in_turn


def test_eight_gpus_are_all_used():
    made = plan_of(run_config(train={"num_workers": 8}), ClusterResources(num_cpus=96, num_gpus=8))
    assert made.engines == Workers(num=8, cpus=4, gpus=1)
    assert made.decoders.num == 63
    assert made.train == Workers(num=8, cpus=4, gpus=1)
    assert (made.serve.min_replicas, made.serve.max_replicas) == (4, 4)
    assert made.serve.total_gpus(4) == 8.0


@pytest.mark.parametrize(
    ("gpus", "devices", "wanted", "in_turn", "expected"),
    [
        (2, 1, 1, None, (False, 1)),
        (3, 1, 1, None, (False, 1)),
        (8, 4, 1, None, (False, 1)),
        (4, 4, 1, None, (True, 1)),  # with tensor parallelism over all GPUs, two models can never stand side by side
        (8, 3, 1, None, (False, 1)),
        (2, 1, 2, None, (True, 2)),
        (8, 1, 1, True, (True, 8)),
        (8, 1, 8, None, (True, 8)),
        (0, 1, 1, None, (False, 1)),
        (0, 1, 2, True, (True, 2)),
        (4, 0, 1, None, (False, 1)),
    ],
)
def test_models_are_evaluated_in_turn_where_each_needs_the_others_gpus(gpus, devices, wanted, in_turn, expected):
    serve = ServeConfig(gpus_per_replica=devices, max_replicas=wanted)
    made = plan_evaluation(serve, in_turn, ClusterResources(num_cpus=64, num_gpus=gpus), 2)
    assert (made.in_turn, made.max_replicas) == expected
    assert made.num_models == (1 if made.in_turn else 2)
    assert made.total_gpus(made.max_replicas) <= gpus
    assert made.bundle_gpus in (0, 1)


def test_replicas_of_an_evaluation_follow_a_cluster_that_grows():
    growing = ClusterResources(num_cpus=8, num_nodes=1, cpus_per_node=48, gpus_per_node=4, max_num_cpus=104, max_num_gpus=8)
    made = plan_evaluation(ServeConfig(), None, growing, 2)
    assert (made.min_replicas, made.max_replicas) == (1, 4)


def test_tensor_parallel_engines():
    made = plan_of(run_config(rollout={"gpus_per_engine": 2}), ClusterResources(num_cpus=32, num_gpus=8))
    assert made.engines == Workers(num=4, cpus=4, gpus=2)


def test_an_engine_leaves_half_of_few_cpus_to_the_decoders():
    made = plan_of(run_config(), ClusterResources(num_cpus=4, num_gpus=1))
    assert (made.engines.cpus, made.decoders.num) == (2, 1)
    made = plan_of(run_config(), ClusterResources(num_cpus=16, num_gpus=8))
    assert (made.engines.cpus, made.decoders.num) == (1, 7)


def test_a_tensor_parallel_engine_stays_on_one_node():
    nodes = ClusterResources(num_cpus=64, num_gpus=12, num_nodes=2, cpus_per_node=32, gpus_per_node=6)
    assert plan_of(run_config(rollout={"gpus_per_engine": 4}), nodes).engines.num == 2  # 12 // 4 would be 3
    with pytest.raises(ClusterError, match=r"gpus_per_engine=8 needs 8 GPUs on one node, but its largest node has 6 GPUs"):
        plan_of(run_config(rollout={"gpus_per_engine": 8}), nodes)


def test_cpu_nodes_get_an_engine_each_and_no_worker_spans_two():
    nodes = ClusterResources(num_cpus=16, num_nodes=2, cpus_per_node=8)
    made = plan_of(run_config(train={"num_workers": 3, "batch_size": 15}), nodes)
    assert made.engines == Workers(num=2, cpus=4)
    assert made.train == Workers(num=3, cpus=4)  # two on one node, one on the other
    assert plan_of(run_config(), nodes).train.cpus == 8


def test_gpu_nodes_that_autoscale_from_zero():
    growing = ClusterResources(num_cpus=8, num_nodes=1, cpus_per_node=48, gpus_per_node=4, max_num_cpus=104, max_num_gpus=8)
    made = plan_of(run_config(train={"num_workers": 8}), growing)
    assert made.engines.num == 8
    assert made.use_gpu
    with pytest.raises(ClusterError, match=r"needs 16 GPUs, but the cluster has 104 CPUs and 8 GPUs \(once scaled up\)"):
        plan_of(run_config(train={"num_workers": 16}), growing)


@pytest.mark.parametrize(
    ("sections", "resources", "message"),
    [
        ({"train": {"num_workers": 4}}, {"num_cpus": 2}, r"num_workers=4 needs 4 CPUs, .* lower train.num_workers to 2"),
        ({"train": {"num_workers": 2}}, {"num_cpus": 8, "num_gpus": 1}, r"needs 2 GPUs, .* add GPU nodes"),
        ({"train": {"use_gpu": True}}, {"num_cpus": 2}, r"use_gpu=true, but the cluster has 2 CPUs and 0 GPUs"),
        ({"rollout": {"num_engines": 3}}, {"num_cpus": 8, "num_gpus": 2}, r"num_engines=3 .* lower .* to 2"),
        ({"rollout": {"num_engines": 9}}, {"num_cpus": 4}, r"num_engines=9 needs 9 CPUs"),
        ({"rollout": {"gpus_per_engine": 2}}, {"num_cpus": 4}, r"cluster has no GPU; set .* to 0 to generate on CPUs"),
        ({"video": {"num_decoders": 5}}, {"num_cpus": 8}, r"num_decoders=5 .* 3 CPUs of the cluster's 8 remain"),
        ({"video": {"num_decoders": 3}}, {"num_cpus": 2}, r"num_decoders=3 needs 3 CPUs"),
        ({"serve": {"min_replicas": 2}}, {"num_cpus": 8}, r"min_replicas=2 is above serve.max_replicas=1"),
        ({"serve": {"max_replicas": 3}}, {"num_cpus": 8, "num_gpus": 2}, r"needs 3 GPUs, .* lower serve.max_replicas to 2"),
        (
            {"serve": {"gpus_per_replica": 4}},
            {"num_cpus": 8, "num_gpus": 2},
            r"4 GPUs on one node, but its largest node has 2",
        ),
        ({"serve": {"max_replicas": 40}}, {"num_cpus": 2}, r"160 actors, but the cluster has 2 CPUs"),
        ({}, {"num_cpus": 0}, r"no CPUs"),
    ],
)
def test_what_does_not_fit_is_refused(sections, resources, message):
    with pytest.raises(ClusterError, match=message) as caught:
        plan_of(run_config(**sections), ClusterResources(**resources))
    assert "\n" not in str(caught.value)


def test_gpus_can_be_declined():
    made = plan_of(
        run_config(rollout={"gpus_per_engine": 0}, train={"use_gpu": False}, serve={"gpus_per_replica": 0}),
        ClusterResources(num_cpus=8, num_gpus=4),
    )
    assert made.engines.gpus == 0
    assert not made.use_gpu
    assert made.serve.total_gpus(1) == 0


@given(
    num_cpus=st.integers(1, 256),
    num_gpus=st.integers(0, 16),
    devices=st.integers(0, 8),
    workers=st.integers(1, 16),
    replicas=st.integers(1, 6),
    decoders=st.none() | st.integers(1, 64),
)
def test_a_plan_never_exceeds_the_cluster_and_refuses_nothing_that_fits(
    num_cpus, num_gpus, devices, workers, replicas, decoders
):
    made_from = run_config(
        rollout={"gpus_per_engine": devices},
        train={"num_workers": workers, "batch_size": workers},
        serve={"max_replicas": replicas},
        video={"num_decoders": decoders},
    )
    plainly_fits = (
        (devices <= num_gpus or devices == 1)
        and workers <= (num_gpus or num_cpus)
        and (replicas <= num_gpus or (num_gpus == 0 and replicas <= 4 * num_cpus))
        and 2 * 2 * replicas <= 0.9 * num_cpus / 0.05
        and (decoders is None or decoders <= (num_cpus // 2 - 1 if num_gpus <= num_cpus // 2 else 1))
    )
    try:
        made = plan_of(made_from, ClusterResources(num_cpus=num_cpus, num_gpus=num_gpus))
    except ClusterError:
        if plainly_fits:
            raise
        return
    available = max(num_cpus, 2)
    assert made.num_cpus_needed <= available
    assert made.engines.total_gpus <= num_gpus
    assert made.train.total_gpus <= num_gpus
    assert made.serve.total_gpus(replicas) <= num_gpus
    assert made.serve.total_cpus(replicas) <= available
    assert min(made.engines.cpus, made.decoders.cpus, made.train.cpus, made.serve.bundle_cpus) > 0


def test_a_served_endpoint_is_planned_by_itself():
    config = ServeConfig()
    assert plan_serve(config, ClusterResources(num_cpus=8), 2) == plan_of(run_config(), ClusterResources(num_cpus=8)).serve
    with pytest.raises(ClusterError, match=r"needs 6 GPUs, .* lower serve.max_replicas to 2"):
        plan_serve(ServeConfig(max_replicas=3), ClusterResources(num_cpus=8, num_gpus=2), 2)
    with pytest.raises(ClusterError, match=r"needs 4 GPUs, .* lower serve.gpus_per_replica"):
        plan_serve(ServeConfig(gpus_per_replica=2), ClusterResources(num_cpus=8, num_gpus=2), 2)
    assert plan_serve(config, ClusterResources(num_cpus=1), 1).num_cpus_needed == 2
    assert plan_serve(ServeConfig(max_replicas=2, min_replicas=2), ClusterResources(num_cpus=16), 2).num_cpus_needed == 9
    with pytest.raises(ClusterError, match="no CPUs"):
        plan_serve(config, ClusterResources(num_cpus=0), 1)


def test_a_local_ray_offers_what_the_plan_needs():
    assert local_num_cpus(ClusterConfig(address=None, num_cpus=None), 500) == 500
    assert local_num_cpus(ClusterConfig(address=None, num_cpus=3), 500) == 3


def test_addresses(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert find_address("local") is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert find_address(address) == address
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert find_address(None) == address
        assert find_address("auto") == address
        assert find_address("local") is None
    with pytest.raises(ClusterError, match="no Ray cluster answers at"):
        find_address(None)
    with pytest.raises(ClusterError, match="ray job submit"):
        find_address("ray://head:10001")
    with pytest.raises(ClusterError, match="form host:port"):
        find_address("head")


def test_a_range_of_workers_is_as_many_as_fit_and_no_fewer_than_the_fewest():
    elastic = run_config(train={"num_workers": [2, 8]})
    assert plan_of(elastic, ClusterResources(num_cpus=96, num_gpus=8)).train.num == 8
    assert plan_of(elastic, ClusterResources(num_cpus=96, num_gpus=3)).train.num == 3
    assert plan_of(elastic, ClusterResources(num_cpus=4)).train.num == 4
    with pytest.raises(ClusterError, match=r"train.num_workers=2 needs 2 GPUs, but the cluster has 96 CPUs and 1 GPU"):
        plan_of(elastic, ClusterResources(num_cpus=96, num_gpus=1))


def test_ranges_of_decoders_and_engines_are_as_many_as_fit_and_begin_with_the_fewest():
    config = run_config(video={"num_decoders": [1, 20]}, rollout={"num_engines": [2, 8]})
    large = plan_of(config, ClusterResources(num_cpus=96, num_gpus=8))
    assert (large.engines.num, large.engines.fewest) == (8, 2)
    assert (large.decoders.num, large.decoders.fewest) == (20, 1)
    small = plan_of(config, ClusterResources(num_cpus=16, num_gpus=3))
    assert (small.engines.num, small.engines.fewest) == (3, 2)
    assert (small.decoders.num, small.decoders.fewest) == (9, 1)  # 16 CPUs less three engines of 2, less one for Ray Data
    laptop = plan_of(config, ClusterResources(num_cpus=2))
    assert (laptop.engines.num, laptop.decoders.num) == (2, 2)
    with pytest.raises(ClusterError, match=r"rollout\.num_engines=2 with gpus_per_engine=1 needs 2 GPUs"):
        plan_of(config, ClusterResources(num_cpus=16, num_gpus=1))
    fixed = plan_of(
        run_config(video={"num_decoders": 3}, rollout={"num_engines": 2}), ClusterResources(num_cpus=16, num_gpus=4)
    )
    assert (fixed.engines.fewest, fixed.decoders.fewest) == (None, None)


@pytest.mark.parametrize(
    ("given", "sizes"), [((8, 20, 2), (2, 8)), ((8, 20), (8, 8)), ((8, 3, 2), (2, 3)), ((8, 1, 2), (1, 1))]
)
def test_a_pool_has_no_more_actors_than_pieces_of_work(given, sizes):
    made = pool(*given)
    assert (made.min_size, made.max_size) == sizes


GPU_NODES = {"gpu": {"num_cpus": 48, "num_gpus": 4, "max_nodes": 2}, "decode": {"num_cpus": 16, "max_nodes": 3}}


@pytest.mark.parametrize("head_cpus", [0, 8])
@pytest.mark.parametrize(
    ("num_gpu", "num_cpu_nodes"), [(0, 0), (1, 0), (0, 3), (1, 2), (2, 3)], ids=lambda number: str(number)
)
def test_the_plan_is_the_same_whichever_nodes_are_up(head_cpus, num_gpu, num_cpu_nodes):
    def at(num_gpu, num_cpu_nodes):
        return ClusterResources(
            num_cpus=head_cpus + 48 * num_gpu + 16 * num_cpu_nodes,
            num_gpus=4 * num_gpu,
            num_nodes=1 + num_gpu + num_cpu_nodes,
            cpus_per_node=max(head_cpus, 48 * (num_gpu > 0), 16 * (num_cpu_nodes > 0)) or None,
            gpus_per_node=4 * (num_gpu > 0) or None,
            gpus_of_nodes=(4,) * num_gpu,
            num_without_cpus=int(head_cpus == 0),
            head_cpus=head_cpus,
        )

    def planned(types, *up, **sections):
        config = run_config(**sections, cluster={"node_types": types})
        return plan_of(config, with_growth(at(*up), config.cluster, "/nowhere.yaml"))

    for sections in ({}, {"rollout": {"gpus_per_engine": 2}}, {"train": {"num_workers": [2, 8]}}):
        made = planned(GPU_NODES, num_gpu, num_cpu_nodes, **sections)
        assert dataclasses.replace(made, serve=planned(GPU_NODES, 2, 3, **sections).serve) == planned(
            GPU_NODES, 2, 3, **sections
        )
        assert made.engines.num == (4 if sections.get("rollout") else 8)
        assert made.serve.max_replicas == planned(GPU_NODES, 2, 3, **sections).serve.max_replicas
    only_cpus = {"decode": GPU_NODES["decode"]}
    if not num_gpu:
        assert planned(only_cpus, 0, num_cpu_nodes).train == planned(only_cpus, 0, 3).train
        assert planned(only_cpus, 0, num_cpu_nodes).engines == planned(only_cpus, 0, 3).engines
        assert planned(only_cpus, 0, 0).engines.num == 3 + (head_cpus > 0)


def test_an_engine_of_eight_gpus_needs_a_node_that_has_them():
    types = {
        "large": {"num_cpus": 96, "num_gpus": 8, "max_nodes": 1},
        "small": {"num_cpus": 48, "num_gpus": 4, "max_nodes": 2},
    }
    config = run_config(rollout={"gpus_per_engine": 8}, cluster={"node_types": types})
    head = ClusterResources(num_cpus=0, num_without_cpus=1)
    assert plan_of(config, with_growth(head, config.cluster, "/nowhere.yaml")).engines.num == 1  # of 16 GPUs
    up = ClusterResources(num_cpus=192, num_gpus=16, num_nodes=3, cpus_per_node=96, gpus_per_node=8, gpus_of_nodes=(8, 4, 4))
    assert plan_of(run_config(rollout={"gpus_per_engine": 8}), up).engines.num == 1
    with pytest.raises(ClusterError, match=r"rollout\.num_engines=2 with gpus_per_engine=8 needs 16 GPUs"):
        plan_of(run_config(rollout={"gpus_per_engine": 8, "num_engines": 2}), up)


def test_there_are_no_more_decoders_than_videos():
    large = ClusterResources(num_cpus=96, num_gpus=8)
    assert plan_of(run_config(), large, num_videos=5).decoders.num == 5
    assert plan_of(run_config(), large, num_videos=0).decoders.num == 1
    assert plan_of(run_config(), large, num_videos=5000).decoders.num == 63
    assert plan_of(run_config(video={"num_decoders": 7}), large, num_videos=5).decoders.num == 7
