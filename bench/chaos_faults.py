"""The faults of bench/chaos.py: whom they hit, in which command, and when."""

from __future__ import annotations

import dataclasses
import math
import signal
from typing import Any

COMMANDS = ("rollout", "train", "evaluate")
DRIVER = "driver"
NODE = "node"
GCS = "/gcs/gcs_server"
RAYLET = "/raylet/raylet"
CHILD = "vidalign.video.decode_child"
DECODER = r"ray::MapWorker\(Map\(ChunkDecoder"
GENERATOR = r"ray::MapWorker\(Map\(Generator"
REPLICA = r"ray::ServeReplica(?!.*PolicyIngress)"
INGRESS = r"ray::ServeReplica.*PolicyIngress"
RANK = "ray::RayTrainWorker"
ELASTIC: dict[str, Any] = {
    "command": "train",
    "two_nodes": True,
    "overrides": ("train.num_workers=[1, 2]", "train.micro_batch_size=1"),
    "num_ranks_change": True,
}
TWO_RANKS: dict[str, Any] = {
    "command": "train",
    "overrides": ("train.num_workers=2", "train.micro_batch_size=1"),
    "then_overrides": (),
    "num_ranks_change": True,
}
APART: dict[str, Any] = {"victim": NODE, "two_nodes": True}
DISKS = ("full", "read-only")
STARTED_TWICE = "the same command a second time"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A signal to a process, a disk that fails, videos that are gone, or a command that is started twice.

    Attributes:
        name: what it is called in the table.
        command: the command that runs meanwhile.
        victim: a pattern of the command line of the process; `DRIVER` is the command itself, `NODE` the raylet of the
            second of two nodes; "" for a fault of no process.
        within_s: it is hit at a random moment of so many seconds after it first appeared.
        once_begun: and after the first results of this command.
        signal: what it gets.
        notice_s: the second node is told that it will be taken away in so many seconds, in the place of `signal`.
        cut_s: the network between the two nodes is cut for so many seconds, or for good, in the place of `signal`.
        stopped_s: it gets SIGSTOP, and SIGCONT after so many seconds, in the place of `signal`.
        place: what fails before the command starts: one of `DISKS` for the run's folder, "videos" or "model" for a folder that is
            not there.
        room_bytes: of a full disk.
        then: what is broken after the command and before the next: "newest checkpoint", "newest part", "lease".
        two_nodes: the command runs on a cluster of two nodes, which outlives it.
        overrides: of the configuration, for the command that is hit and the one after it.
        then_overrides: in their place for the command after it; None: the same.
        num_ranks_change: weights may then differ by `chaos_compare.OTHER_RANKS_TOLERANCE`.
        twice: the same command is started a second time at that moment, in the place of a signal.
    """

    name: str
    command: str
    victim: str = ""
    within_s: float = 5.0
    once_begun: bool = False
    signal: signal.Signals = signal.SIGKILL
    notice_s: float = 0.0
    cut_s: float = 0.0
    stopped_s: float = 0.0
    place: str = ""
    room_bytes: int = 500_000  # some decoded videos of these, and less than a checkpoint
    then: str = ""
    two_nodes: bool = False
    overrides: tuple[str, ...] = ()
    then_overrides: tuple[str, ...] | None = None
    num_ranks_change: bool = False
    twice: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.command}"

    @property
    def is_apart(self) -> bool:
        """Whether it needs a run of its own, for it has other options or nodes than the rest."""
        return self.two_nodes or bool(self.overrides) or self.then_overrides is not None


def of_driver(command: str, within_s: float) -> list[Fault]:
    """Faults that every command may meet."""
    driver: dict[str, Any] = {"command": command, "victim": DRIVER, "within_s": within_s}
    ray: dict[str, Any] = {"command": command, "within_s": within_s * 2 / 3}
    room: dict[str, Any] = {"room_bytes": 30_000} if command == "evaluate" else {}
    return [
        Fault(name="model's folder gone", command=command, place="model"),
        *(Fault(name=f"run_dir {kind}", command=command, place=kind, **room) for kind in DISKS),
        Fault(name="driver", **driver),
        Fault(name="driver gets SIGTERM", signal=signal.SIGTERM, **driver),
        Fault(name="driver gets SIGINT", signal=signal.SIGINT, **driver),
        Fault(name="driver, and its lease is torn", then="lease", **driver),
        Fault(name="raylet of the only node", victim=RAYLET, **ray),
        Fault(name="Ray's GCS server", victim=GCS, **ray),
        Fault(name=STARTED_TWICE, twice=True, **driver),
        Fault(name="driver stopped for 20 s", stopped_s=20, **driver),
    ]


# Of each command, first what ends it, then what it survives: the next fault meets the run that is left of the one before.
FAULTS = (
    Fault(name="videos gone", command="rollout", place="videos"),
    Fault(
        name="driver, and its newest part is torn",
        command="rollout",
        victim=DRIVER,
        within_s=4,
        once_begun=True,
        then="newest part",
    ),
    *of_driver("rollout", 35),
    Fault(name="generator", command="rollout", victim=GENERATOR, within_s=14),
    Fault(name="decoder's child", command="rollout", victim=CHILD, within_s=3),
    Fault(name="decoder", command="rollout", victim=DECODER, within_s=8),
    Fault(name="decoder's child stopped for 10 s", command="rollout", victim=CHILD, within_s=3, stopped_s=10),
    Fault(name="generator stopped for 10 s", command="rollout", victim=GENERATOR, within_s=14, stopped_s=10),
    Fault(
        name="driver, and its newest checkpoint is torn",
        command="train",
        victim=DRIVER,
        within_s=6,
        once_begun=True,
        then="newest checkpoint",
    ),
    Fault(name="raylet of one of two nodes, train.num_workers=[1, 2]", victim=NODE, within_s=6, **ELASTIC),
    Fault(name="notice that a node will go, train.num_workers=[1, 2]", victim=NODE, within_s=3, notice_s=10, **ELASTIC),
    Fault(
        name="network of one of two nodes cut for 10 s, train.num_workers=[1, 2]",
        victim=NODE,
        within_s=6,
        cut_s=10,
        **ELASTIC,
    ),
    Fault(
        name="network of one of two nodes cut for good, train.num_workers=[1, 2]",
        victim=NODE,
        within_s=6,
        cut_s=math.inf,
        **ELASTIC,
    ),
    Fault(name="training rank of two, train.num_workers=[1, 2]", victim=RANK, within_s=20, **ELASTIC),
    *of_driver("train", 40),
    Fault(name="training's controller", command="train", victim="ray::TrainController", within_s=20),
    Fault(name="training rank", command="train", victim=RANK, within_s=20),
    Fault(name="training rank stopped for 10 s", command="train", victim=RANK, within_s=20, stopped_s=10),
    Fault(name="driver, and then one rank in the place of two", victim=DRIVER, within_s=28, **TWO_RANKS),
    Fault(name="videos gone", command="evaluate", place="videos"),
    *of_driver("evaluate", 50),
    Fault(name="replica", command="evaluate", victim=REPLICA, within_s=25),
    Fault(name="ingress", command="evaluate", victim=INGRESS, within_s=25),
    Fault(name="HAProxy", command="evaluate", victim=r"/haproxy\S* -", within_s=25),
    Fault(name="HAProxy's manager", command="evaluate", victim="ray::HAProxyManager", within_s=25),
    Fault(name="Serve's controller", command="evaluate", victim="ray::ServeController", within_s=25),
    Fault(name="replica stopped for 10 s", command="evaluate", victim=REPLICA, within_s=25, stopped_s=10),
    Fault(name="network of one of two nodes cut for 10 s", command="rollout", within_s=2, cut_s=10, **APART),
    Fault(name="network of one of two nodes cut for good", command="rollout", within_s=2, cut_s=math.inf, **APART),
    Fault(name="raylet of one of two nodes", command="rollout", victim=NODE, within_s=10, two_nodes=True),
    Fault(name="raylet of one of two nodes", command="evaluate", victim=NODE, within_s=20, two_nodes=True),
)
