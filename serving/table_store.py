"""Where the table of an endpoint is kept: in the cluster itself (the key-value store of Ray's head node), beside its ingress.

    endpoint:NAME   the table                       written by who promotes, and by the ingress at its start
    seen:NAME       what the ingress made of it     written by the ingress
    lock:NAME       the job that changes the table

NAME is the endpoint's application in Ray Serve. The values are pickles, as everything that Ray passes between its own processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from serving.versions import Table, taken_back
from vidalign.errors import ClusterError

NAMESPACE = "vidalign-endpoints"
KINDS = ("endpoint", "seen", "lock")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What an ingress says: the table that it goes by, and of each target whether it works, how many replies are being given or
    waited for, how its latest requests ended, and why it was taken back (`Row.trial` → why).
    """

    id: str = ""
    serial: int = 0
    up: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    busy: Mapping[str, int] = dataclasses.field(default_factory=dict)
    outcomes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    verdicts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(name: str) -> Table | None:
    """The table of an endpoint, if it has one. Ray must be connected."""
    value = _get("endpoint", name)
    return None if value is None else pickle.loads(value)


def write(name: str, table: Table) -> None:
    """Put the table of an endpoint in the place of the one that is there."""
    _put("endpoint", name, pickle.dumps(table))


def read_seen(name: str) -> Seen:
    """What the ingress said last."""
    value = _get("seen", name)
    return Seen() if value is None else pickle.loads(value)


def write_seen(name: str, seen: Seen) -> None:
    """Say what the ingress has taken up."""
    _put("seen", name, pickle.dumps(seen))


def current(name: str) -> Table | None:
    """The table, with what its ingress has taken back since."""
    table, seen = read(name), read_seen(name)
    if table is None or seen.id != table.id:
        return table
    return dataclasses.replace(table, rows=taken_back(table.rows, seen.verdicts))


def forget(name: str) -> None:
    """Leave nothing of an endpoint."""
    from ray.experimental import internal_kv

    for kind in KINDS:
        internal_kv._internal_kv_del(f"{kind}:{name}", namespace=NAMESPACE)


def names() -> list[str]:
    """The endpoints that have a table on the connected cluster."""
    from ray.experimental import internal_kv

    return sorted(
        key.decode().removeprefix("endpoint:") for key in internal_kv._internal_kv_list("endpoint:", namespace=NAMESPACE)
    )


def tables_at(address: str) -> dict[str, Table]:
    """The tables of a cluster at host:port, without joining it; {} where none answers."""
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    logging.getLogger(tokens.__name__).setLevel(logging.ERROR)  # that it is on is no news
    tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray.init` does
    try:
        client = GcsClient(address=address)
        keys = client.internal_kv_keys(b"endpoint:", NAMESPACE.encode(), timeout=5)
        found = {key.decode().removeprefix("endpoint:"): client.internal_kv_get(key, NAMESPACE.encode()) for key in keys}
    except Exception:  # Ray's errors of many kinds, and of a cluster that asks for another token
        return {}
    return {name: pickle.loads(value) for name, value in found.items() if value is not None}


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Change the table of an endpoint alone. Raises `ClusterError` while another job does."""
    import ray
    import ray._private.state
    from ray.experimental import internal_kv

    job = ray.get_runtime_context().get_job_id()
    alive = {row["JobID"] for row in ray._private.state.state.job_table() if not row["IsDead"]}
    holder = (_get("lock", name) or b"").decode()
    if holder and holder not in alive:
        internal_kv._internal_kv_del(f"lock:{name}", namespace=NAMESPACE)
    _put("lock", name, job.encode(), overwrite=False)
    holder = (_get("lock", name) or b"").decode()
    if holder != job:
        raise ClusterError("another command is changing the versions of this endpoint; wait until it has ended")
    try:
        yield
    finally:
        internal_kv._internal_kv_del(f"lock:{name}", namespace=NAMESPACE)


def _get(kind: str, name: str) -> bytes | None:
    from ray.experimental import internal_kv

    return internal_kv._internal_kv_get(f"{kind}:{name}", namespace=NAMESPACE)


def _put(kind: str, name: str, value: bytes, *, overwrite: bool = True) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(f"{kind}:{name}", value, overwrite, namespace=NAMESPACE)
