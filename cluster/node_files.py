"""Files that a node does not see, although the driver does: a mount is missing there, and nothing is wrong with the file.

pass 1   work everywhere ─► some is handed back with `Missed`         its node is avoided from then on
pass 2   what was handed back, on other nodes ─► …                    until nothing is, or no node is left
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from cluster.resources import listed
from vidalign.data.shown import missing_file
from vidalign.errors import ClusterError
from vidalign.records import Record

NODE_ID = "ray.io/node-id"  # the label of a node that Ray sets itself
MAX_AVOIDED = 3  # nodes; where as many find nothing, a mount is missing for all that the cluster starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missed(Record):
    """A video, or an image, that is missing on a node. `message` names the file."""

    node: str
    address: str
    video: str
    message: str


class Passes:
    """Which nodes are avoided, and which files are missing for the driver as well.

    Args:
        gone: names of which the driver knows that they are missing.
        nodes: the ids of the nodes that could do the work now.
    """

    def __init__(self, gone: Collection[str] = (), nodes: Callable[[], Collection[str]] | None = None) -> None:
        self.gone = frozenset(gone)
        self._nodes = nodes or working_nodes
        self._avoided: dict[str, Missed] = {}

    def placement(self) -> dict[str, Any]:
        """The options of Ray that keep work away from the avoided nodes."""
        return {"label_selector": {NODE_ID: f"!in({','.join(sorted(self._avoided))})"}} if self._avoided else {}

    def again(self, missed: Sequence[Missed]) -> bool:
        """Whether another pass is needed, after one that handed this back.

        Raises:
            ClusterError: no node is left that may see the files.
        """
        gone = {miss.video for miss in missed if missing_file(miss.video) is not None}
        self.gone |= gone
        self._avoided |= {miss.node: miss for miss in missed if miss.video not in gone}
        at_fault = any(miss.video not in gone for miss in missed)
        if at_fault and (len(self._avoided) >= MAX_AVOIDED or not set(self._nodes()) - self._avoided.keys()):
            first = next(iter(self._avoided.values()))
            names = listed([miss.address for miss in self._avoided.values()])
            which = f"node {names} finds" if len(self._avoided) == 1 else f"nodes {names} find"
            raise ClusterError(
                f"{which} {first.message}, which the driver sees; mount what holds the videos at the same path on every node, or "
                "stop these nodes, and run the same command again: it continues"
            )
        return bool(missed)


def working_nodes() -> list[str]:
    """The ids of the nodes that are alive and have CPUs."""
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def this_node() -> tuple[str, str]:
    """The id and the address of the node that this process is on; "" and "here" outside of Ray."""
    import ray

    if not ray.is_initialized():
        return "", "here"
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()


def actor_id() -> str:
    """The id of the actor that this process is, which it keeps when it is started again; "none" outside of Ray."""
    import ray

    return (ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None) or "none"
