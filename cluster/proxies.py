"""Proxies of HTTP that the environment names (`http_proxy`): they are for hosts outside, and never between parts of one run."""

from __future__ import annotations

import os

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def reach_directly(*hosts: str) -> None:
    """Have this process, and those that it starts, reach this machine and these hosts without a proxy, as `no_proxy` says it."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return
    known = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    listed = [name for each in known if (name := each.strip())]
    os.environ["no_proxy"] = ",".join(dict.fromkeys([*listed, *THIS_MACHINE, *hosts]))
