"""How far an autoscaling cluster may grow, read from the file that Ray's cluster launcher leaves on the head node."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import yaml

from cluster.resources import ClusterResources
from vidalign.config.run import ClusterConfig
from vidalign.errors import ClusterError

BOOTSTRAP_FILE = (
    "~/ray_bootstrap_config.yaml"  # where `ray up` puts its resolved config; by default jobs run on the head node
)


def with_growth(now: ClusterResources, config: ClusterConfig, bootstrap_file: str = BOOTSTRAP_FILE) -> ClusterResources:
    """Add how far the cluster may grow: from `cluster.max_num_cpus` and `max_num_gpus`, else from the launcher's file.

    Ray itself does not tell a driver what its autoscaler may still add, so without either the cluster is taken as it is now.
    """
    grown = now
    path = pathlib.Path(bootstrap_file).expanduser()
    if path.is_file():
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("available_node_types"):
            grown = _at_least(now, limits(raw))
    return dataclasses.replace(
        grown,
        max_num_cpus=config.max_num_cpus or grown.max_num_cpus,
        max_num_gpus=grown.max_num_gpus if config.max_num_gpus is None else config.max_num_gpus,
    )


def limits(raw: dict[str, Any]) -> ClusterResources:
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

    def grown(resource: str) -> int:
        """The amount of one resource on the head node and the `max_workers` nodes that have most of it."""
        nodes = [
            kind["resources"].get(resource, 0)
            for kind in kinds.values()
            for _ in range(min(kind.get("max_workers", most), most))
        ]
        return int(head.get(resource, 0) + sum(sorted(nodes, reverse=True)[:most]))

    return ClusterResources(
        num_cpus=int(head["CPU"]),
        num_gpus=int(head.get("GPU", 0)),
        num_nodes=1,
        cpus_per_node=int(max(shape["CPU"] for shape in shapes)),
        gpus_per_node=int(max(shape.get("GPU", 0) for shape in shapes)) or None,
        max_num_cpus=grown("CPU"),
        max_num_gpus=grown("GPU"),
    )


def _at_least(now: ClusterResources, most: ClusterResources) -> ClusterResources:
    return dataclasses.replace(
        now,
        cpus_per_node=max(now.cpus_per_node or 0, most.cpus_per_node or 0) or None,
        gpus_per_node=max(now.gpus_per_node or 0, most.gpus_per_node or 0) or None,
        max_num_cpus=max(now.total_cpus, most.total_cpus),
        max_num_gpus=max(now.total_gpus, most.total_gpus),
    )
