"""How far an autoscaling cluster may grow, and by which nodes.

cluster.node_types          as the configuration says it
KubeRay                     the RayCluster resource of this pod, as Ray's own autoscaler reads it
~/ray_bootstrap_config.yaml what Ray's cluster launcher leaves on the head node
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from cluster.resources import ClusterResources
from vidalign.config.cluster import ClusterConfig, NodeType
from vidalign.errors import ClusterError

BOOTSTRAP_FILE = (
    "~/ray_bootstrap_config.yaml"  # where `ray up` puts its resolved config; by default jobs run on the head node
)
KUBERAY_NAME = "RAY_CLUSTER_NAME"  # KubeRay sets it in every pod of a cluster
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


def with_growth(now: ClusterResources, config: ClusterConfig, bootstrap_file: str = BOOTSTRAP_FILE) -> ClusterResources:
    """Add how far the cluster may grow, and by which nodes; `cluster.max_num_cpus` and `max_num_gpus` replace what they name.

    Ray itself does not tell a driver what its autoscaler may still add, so where nothing says it, the cluster is taken as it is now.

    Raises:
        ClusterError: see `limits`.
    """
    grown = now
    raw = _of_types(now, config.node_types) if config.node_types else of_kuberay() or _of_file(bootstrap_file)
    if raw:
        grown = _at_least(now, limits(raw))
    max_num_gpus = grown.max_num_gpus if config.max_num_gpus is None else config.max_num_gpus
    known = max(now.num_gpus, max_num_gpus or 0) == sum(grown.gpus_of_nodes)
    return dataclasses.replace(
        grown,
        max_num_cpus=config.max_num_cpus or grown.max_num_cpus,
        max_num_gpus=max_num_gpus,
        gpus_of_nodes=grown.gpus_of_nodes if known else (),
    )


def limits(raw: Mapping[str, Any]) -> ClusterResources:
    """What a launcher config starts with (its head node) and may grow to, within its own `max_workers`.

    Raises:
        ClusterError: a node type has no `resources`, which `ray up` fills in for known instance types.
    """
    kinds = raw["available_node_types"]
    for name, kind in kinds.items():
        if "CPU" not in kind.get("resources", {}):
            raise ClusterError(
                f'node type {name} of the launcher config does not say how many CPUs it has; add resources: {{"CPU": ..., '
                '"GPU": ...} to it, or set cluster.max_num_cpus and cluster.max_num_gpus'
            )
    head = kinds[raw["head_node_type"]]["resources"]
    most = raw.get("max_workers", 2)
    shapes = [head] + [kind["resources"] for kind in kinds.values() if kind.get("max_workers", most)]
    workers = [kind["resources"] for kind in kinds.values() for _ in range(min(kind.get("max_workers", most), most))]

    def largest(resource: str) -> list[int]:
        """The amounts of one resource on the head node and on the `max_workers` nodes that have most of it."""
        amounts = sorted((int(shape.get(resource, 0)) for shape in workers), reverse=True)[:most]
        return [int(head.get(resource, 0)), *amounts]

    return ClusterResources(
        num_cpus=int(head["CPU"]),
        num_gpus=int(head.get("GPU", 0)),
        num_nodes=1,
        cpus_per_node=int(max(shape["CPU"] for shape in shapes)),
        gpus_per_node=int(max(shape.get("GPU", 0) for shape in shapes)) or None,
        max_num_cpus=sum(largest("CPU")),
        max_num_gpus=sum(largest("GPU")),
        max_num_nodes=1 + min(most, len(workers)),
        num_without_cpus=int(head["CPU"] == 0),
        gpus_of_nodes=tuple(filter(None, largest("GPU"))),
    )


def of_kuberay(environment: Mapping[str, str] = os.environ, namespace_file: str = NAMESPACE_FILE) -> dict[str, Any]:
    """The RayCluster resource of this pod as a launcher config; {} outside KubeRay, and where its account may not read it."""
    name, namespace = environment.get(KUBERAY_NAME), pathlib.Path(namespace_file)
    if not name or not namespace.is_file():
        return {}
    import requests
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    try:  # once: Ray's own way to both would try for half a minute, and show each failure
        client = node_provider.KubernetesHttpApiClient(namespace=namespace.read_text(encoding="utf-8").strip())
        return autoscaling_config._derive_autoscaling_config_from_ray_cr(client.get(f"rayclusters/{name}"))
    except (requests.RequestException, OSError):  # the pod is not of a cluster that scales, whose account may read it
        return {}


def _of_file(bootstrap_file: str) -> dict[str, Any]:
    path = pathlib.Path(bootstrap_file).expanduser()
    raw = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return raw if isinstance(raw, dict) and raw.get("available_node_types") else {}


def _of_types(now: ClusterResources, types: Mapping[str, NodeType]) -> dict[str, Any]:
    """A launcher config of these workers beside the head node that there is."""
    kinds = {
        name: {"resources": {"CPU": kind.num_cpus, "GPU": kind.num_gpus}, "max_workers": kind.max_nodes}
        for name, kind in types.items()
    }
    head = {"resources": {"CPU": now.head_cpus, "GPU": now.head_gpus}, "max_workers": 0}
    most = sum(kind.max_nodes for kind in types.values())
    return {"available_node_types": {**kinds, "": head}, "head_node_type": "", "max_workers": most}


def _at_least(now: ClusterResources, most: ClusterResources) -> ClusterResources:
    return dataclasses.replace(
        now,
        cpus_per_node=max(now.cpus_per_node or 0, most.cpus_per_node or 0) or None,
        gpus_per_node=max(now.gpus_per_node or 0, most.gpus_per_node or 0) or None,
        max_num_cpus=max(now.total_cpus, most.total_cpus),
        max_num_gpus=max(now.total_gpus, most.total_gpus),
        max_num_nodes=max(now.num_nodes, most.max_num_nodes or 1),
        gpus_of_nodes=most.gpus_of_nodes if sum(most.gpus_of_nodes) >= now.total_gpus else now.gpus_of_nodes,
    )
