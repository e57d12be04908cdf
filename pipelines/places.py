"""Which cluster and which endpoint `--to` means: a Ray address, or the http address of an endpoint of this machine's clusters."""

from __future__ import annotations

import os
import urllib.parse

from vidalign.errors import ClusterError

ONLY_RUNS = (
    "versions are promoted behind the endpoint of a run (`vidalign serve RUN`: base and aligned), and one that serves a single "
    "checkpoint has none"
)


def find_cluster(to: str) -> str:
    """The address host:port of Ray, for an address of it or the url of an endpoint. Raises `ClusterError`."""
    if not to.startswith(("http://", "https://")):
        return to
    from ray._private.services import find_gcs_addresses

    from serving.table_store import tables_at

    port = _port(to)
    known = {
        address for address in (os.environ.get("RAY_ADDRESS"), *find_gcs_addresses()) if address and "://" not in address
    }
    found = []
    for address in sorted(known - {"auto", "local"}):
        for table in tables_at(address).values():
            if table.changes and table.spec is not None and table.spec.serve.port == port and address not in found:
                found.append(address)
    if len(found) == 1:
        return found[0]
    if found:
        raise ClusterError(
            f"several clusters have an endpoint at port {port} ({', '.join(found)}); give one of them as --to"
        )
    raise ClusterError(
        f"no cluster that this machine knows has an endpoint at {to} whose versions can change; give the Ray address (host:port) that "
        f"`vidalign serve` printed; {ONLY_RUNS}"
    )


def only_endpoint(to: str) -> str:
    """The application of the endpoint that `to` means, on the connected cluster. Raises `ClusterError`."""
    from ray import serve

    from serving.promotion import running_on

    applications = serve.status().applications
    running = running_on(applications)
    if to.startswith(("http://", "https://")):
        running = {name: table for name, table in running.items() if table.spec and table.spec.serve.port == _port(to)}
    if len(running) == 1:
        return next(iter(running))
    if running:
        raise ClusterError(f"{to} has the endpoints {', '.join(running)}; give the http address of one of them as --to")
    if applications:
        raise ClusterError(f"the endpoint at {to} serves no versions: {ONLY_RUNS}")
    raise ClusterError(f"no endpoint is running at {to}; start one with `vidalign serve RUN`")


def _port(url: str) -> int:
    parts = urllib.parse.urlsplit(url)
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ClusterError(f"--to={url} is no address; give host:port of Ray, or http://HOST:PORT of the endpoint") from None
