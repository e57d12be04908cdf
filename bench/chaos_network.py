"""A second machine without a machine: a network namespace behind a cable that may be pulled. Root and iproute2 alone can make one.

this machine ── bridge (10.213.N.1) ══ cable ══ the namespace's one interface (10.213.N.2)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The name of the namespace and of the interface on both sides, of this side's end of the cable, and the two addresses."""

    name: str
    cable: str
    here: str
    there: str

    def pull(self) -> None:
        """Nothing that one side sends reaches the other from now on, and neither is told."""
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        """Undo `pull`."""
        _ip("link", "set", self.cable, "up")

    def within(self, command: list[str]) -> list[str]:
        """A command as it runs on the other side."""
        return ["ip", "netns", "exec", self.name, *command]


def can_cut() -> bool:
    """Whether a network can be made here."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network that is gone after the block, with what still uses it cut off."""
    number = os.getpid() % 250
    name, cable = f"vchaos{number}", f"vcable{number}"
    made = Network(name=name, cable=cable, here=f"10.213.{number}.1", there=f"10.213.{number}.2")
    try:
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "bridge")
        _ip("addr", "add", f"{made.here}/24", "dev", name)
        _ip("link", "add", cable, "type", "veth", "peer", "name", name, "netns", name)
        _ip("link", "set", cable, "master", name)
        for side in (name, cable):
            _ip("link", "set", side, "up")
        _ip("-n", name, "addr", "add", f"{made.there}/24", "dev", name)
        for side in (name, "lo"):
            _ip("-n", name, "link", "set", side, "up")
        yield made
    finally:
        for rest in (("link", "del", cable), ("link", "del", name), ("netns", "del", name)):
            subprocess.run(["ip", *rest], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
