"""What waits for a node: the actors and placement groups in Ray's own tables that no node has taken.

A pool of actors waits if none of it is placed: one that has some goes on with those.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "ChunkDecoder": "decoders",
    "Decoder": "decoders",
    "Generator": "engines",
    "Judge": "judges",
    "Reference": "reference models",
    "RayTrainWorker": "training ranks",
}
RANKS = "training ranks"
CONTROLLER = "TrainController"
REPLICA = "SERVE_REPLICA::"  # what Ray Serve's names of replicas begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unplaced:
    """Actors of one kind that wait for a node: `resources` is what each needs."""

    what: str
    num: int
    resources: Mapping[str, float]

    def __str__(self) -> str:
        each = ", ".join(f"{value:g} {name}" for name, value in sorted(self.resources.items()) if value)
        return f"{self.num} x ({each or 'no resources'}) for {self.what}"


def unplaced() -> list[Unplaced]:
    """What of this job no node has taken."""
    import ray

    actors, groups = _tables()
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    asked = unplaced_groups(groups, job.binary())
    return [*unplaced_actors(actors), *(asked or ranks_not_asked_for(actors))]


def unplaced_in(application: str) -> list[Unplaced]:
    """What of an application of Ray Serve no node has taken."""
    return unplaced_replicas(*_tables(), application)


def _tables() -> tuple[list[Any], list[Any]]:
    """This job's actors and all placement groups, from the tables of the cluster's own store."""
    import ray
    import ray._private.state
    from ray.core.generated import gcs_pb2

    accessor = ray._private.state.state._connect_and_get_accessor()
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return (
        [gcs_pb2.ActorTableData.FromString(row) for row in accessor.get_actor_table(job, None)],
        [gcs_pb2.PlacementGroupTableData.FromString(row) for row in accessor.get_placement_group_table()],
    )


def unplaced_actors(actors: Sequence[Any]) -> list[Unplaced]:
    """Of rows of Ray's table of actors: the kinds of which some wait and none is placed."""
    from ray.core.generated.gcs_pb2 import ActorTableData

    waiting: collections.Counter[tuple[str, tuple[tuple[str, float], ...]]] = collections.Counter()
    placed = set()
    for actor in actors:
        if actor.state == ActorTableData.DEAD or actor.is_detached or actor.placement_group_id:
            continue
        # The node in the address of an actor that waits is the one that was asked; a worker is there once that one agreed.
        if actor.state == ActorTableData.ALIVE or _is_set(actor.address.worker_id):
            placed.add(kind_of(actor.class_name))
        elif actor.state in (ActorTableData.PENDING_CREATION, ActorTableData.RESTARTING):
            waiting[kind_of(actor.class_name), tuple(sorted(actor.required_resources.items()))] += 1
    return [
        Unplaced(what=what, num=num, resources=dict(resources))
        for (what, resources), num in waiting.items()
        if what not in placed
    ]


def unplaced_groups(groups: Sequence[Any], job: bytes) -> list[Unplaced]:
    """Of rows of Ray's table of placement groups: those that this job asked for and that wait, as Ray Train's do."""
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    found = []
    for group in groups:
        if group.creator_job_id != job or group.is_detached:
            continue
        if group.state in (PlacementGroupTableData.PENDING, PlacementGroupTableData.RESCHEDULING):
            left = [bundle.unit_resources for bundle in group.bundles if not _is_set(bundle.node_id)]
            each = max((dict(resources) for resources in left), key=len, default={})
            found.append(Unplaced(what=RANKS, num=len(left), resources=each))
    return found


def ranks_not_asked_for(actors: Sequence[Any]) -> list[Unplaced]:
    """Of rows of Ray's table of actors: the ranks of a training that may have fewer, where there is no room for the fewest.

    Ray Train then asks for no placement group: a controller that lives without ranks is all that there is to see.
    """
    from ray.core.generated.gcs_pb2 import ActorTableData

    ranks = [actor for actor in actors if kind_of(actor.class_name) == RANKS]
    controls = any(kind_of(actor.class_name) == CONTROLLER and actor.state == ActorTableData.ALIVE for actor in actors)
    if not controls or any(rank.state != ActorTableData.DEAD for rank in ranks):  # one that starts has been asked for
        return []
    needs = ranks[-1].required_resources if ranks else {}
    return [Unplaced(what=RANKS, num=1, resources={name: value for name, value in needs.items() if "_group_" not in name})]


def release_left() -> None:
    """Give back the room of this job's placement groups whose actors have ended, if Ray is connected.

    Ray keeps a group for as long as its job lives. Where a training's controller is killed, Ray Train's own cleaner asks the
    dashboard whether it lives, which a Ray of one command does not have; and the training that is to go on finds no room.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if not ray.is_initialized():
        return
    actors, groups = _tables()
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    for group in left_groups(actors, groups, job.binary()):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group)))


def left_groups(actors: Sequence[Any], groups: Sequence[Any], job: bytes) -> list[bytes]:
    """Of rows of both tables: the ids of this job's placement groups whose actor has ended."""
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    ended = {actor.actor_id for actor in actors if actor.state == ActorTableData.DEAD}
    return [
        group.placement_group_id
        for group in groups
        if group.creator_job_id == job
        and group.state != PlacementGroupTableData.REMOVED
        and not group.is_detached
        and (group.creator_actor_dead or group.creator_actor_id in ended)
    ]


def unplaced_replicas(actors: Sequence[Any], groups: Sequence[Any], application: str) -> list[Unplaced]:
    """Of rows of both tables: the deployments of a Serve application of which some replica waits and none is placed.

    A replica has a placement group of its own name, or waits by itself.
    """
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    prefix = f"{REPLICA}{application}#"
    waiting: dict[str, list[Mapping[str, float]]] = collections.defaultdict(list)
    placed = set()
    for group in (row for row in groups if row.name.startswith(prefix)):
        deployment = group.name.removeprefix(prefix).rpartition("#")[0]
        if group.state == PlacementGroupTableData.CREATED:
            placed.add(deployment)
        elif group.state in (PlacementGroupTableData.PENDING, PlacementGroupTableData.RESCHEDULING):
            waiting[deployment] += [bundle.unit_resources for bundle in group.bundles if not _is_set(bundle.node_id)]
    for actor in (row for row in actors if row.name.startswith(prefix) and not row.placement_group_id):
        deployment = actor.name.removeprefix(prefix).rpartition("#")[0]
        if actor.state == ActorTableData.ALIVE or _is_set(actor.address.worker_id):
            placed.add(deployment)
        elif actor.state in (ActorTableData.PENDING_CREATION, ActorTableData.RESTARTING):
            waiting[deployment].append(actor.required_resources)
    return [
        Unplaced(what=f"replicas of {name}", num=len(each), resources=max(map(dict, each), key=len))
        for name, each in waiting.items()
        if each and name not in placed
    ]


def kind_of(class_name: str) -> str:
    """What the actors of a class are called in messages: of "MapWorker(Map(ChunkDecoder))", "decoders"."""
    inner = re.split(r"[()]+", class_name.strip(")"))[-1]
    return NAMES.get(inner, inner)


def _is_set(binary_id: bytes) -> bool:
    return bool(binary_id.strip(b"\xff\x00"))
