"""The section of a configuration that says where Ray runs, and on which nodes."""

from __future__ import annotations

import pydantic

from vidalign.config.section import Section


class NodeType(pydantic.BaseModel):
    """Nodes of one kind that an autoscaler may start: CPUs and GPUs of each, as Ray counts them, and how many there may be."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    num_cpus: int = pydantic.Field(ge=0)
    num_gpus: int = pydantic.Field(0, ge=0)
    max_nodes: int = pydantic.Field(ge=1)


class ClusterConfig(Section):
    """Where Ray runs. `address` null starts or joins a local Ray, "local" starts one, "auto" demands a running cluster.

    `node_types` says which nodes an autoscaling cluster may start, the head aside. Without it, KubeRay or the launcher's config on the
    head node says that, or else the cluster is taken as it is; `max_num_cpus` and `max_num_gpus` replace its sums. `num_cpus` is the
    number of logical CPUs of a Ray started on this machine.
    Nothing waits longer than `wait_for_nodes_s` to be placed on a node. `overlap` gives the responses of the next round and the
    training of this one CPUs and GPUs of their own, so that both go on at once.
    """

    address: str | None = None
    """host:port of a Ray cluster, "local" for a Ray of this run alone, "auto" for one that must run here; null joins one or
    starts one.
    """
    num_cpus: int | None = pydantic.Field(None, ge=1)
    """Logical CPUs of a Ray that is started on this machine; null counts its cores."""
    max_num_cpus: int | None = pydantic.Field(None, ge=1)
    """How far an autoscaling cluster may grow, in CPUs."""
    max_num_gpus: int | None = pydantic.Field(None, ge=0)
    """How far an autoscaling cluster may grow, in GPUs."""
    node_types: dict[str, NodeType] | None = None
    """Which nodes an autoscaling cluster may start: {name: {num_cpus, num_gpus, max_nodes}}; null asks KubeRay, or the launcher's
    config.
    """
    wait_for_nodes_s: float = pydantic.Field(900.0, gt=0)
    """How long work may wait to be placed on a node."""
    overlap: bool = False
    """Make the responses of the next rounds beside the training of this one, with CPUs and GPUs of their own; needs `max_staleness`
    of at least 1, which is then its default.
    """
