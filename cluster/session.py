"""One way into Ray: inside a submitted job, on a running cluster, or on a Ray started only for this process."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from cluster import console, interrupts, launcher, own_ray, scratch
from cluster.engines import SCRATCH
from cluster.resources import MIN_CPUS, ClusterResources
from vidalign.config.cluster import ClusterConfig
from vidalign.errors import ClusterError

PROBE_TIMEOUT_S = 5.0
OWN = "vidalign-ray-"  # what the names of the scratch folders of this program's own Rays begin with
HEAD = "node:__internal_head__"  # the resource by which Ray marks the head node
# Read by Ray when it is imported or started; values that the user has set take precedence.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that is late, once Ray was left, would start another one
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the stages draw their own bars
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA_VISIBLE_DEVICES for actors without GPUs; silences a warning
    "VLLM_LOGGING_LEVEL": "ERROR",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine misses the default of 5 s, and then serving fails
}


@contextlib.contextmanager
def connect(
    config: ClusterConfig, *, num_cpus_needed: int | Callable[[], int] = MIN_CPUS, verbose: bool = False
) -> Iterator[ClusterResources]:
    """Connect to Ray and yield what the cluster offers; disconnect afterwards, unless the process was already connected.

    The cluster is the one at `cluster.address` if that is host:port; else at RAY_ADDRESS (set inside `ray job submit`); else the
    one that `ray start` runs on this machine; else, unless the address is "auto", a Ray of this process that ends with it.

    Args:
        num_cpus_needed: the fewest logical CPUs that a Ray started here offers, however few cores there are
            (`ResourcePlan.num_cpus_needed`). A function is called only if a Ray is started, because what does not fit this
            machine may fit a cluster. `cluster.num_cpus` overrides it. A running cluster is taken as it is.
        verbose: forward what Ray and its workers print.

    Raises:
        ClusterError: an address does not answer, the address is "auto" but no cluster is running, or `cluster.num_cpus` is set
            for a running cluster.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        # Ray's C++ part prints its own ERROR lines (such as "arguments in the object store") between the progress bars.
        # Failures that matter also arrive as exceptions.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield launcher.with_growth(cluster_resources(), config)
        return
    address = find_address(config.address)
    with own_scratch() if address is None else contextlib.nullcontext():
        yield from _connected(address, config, num_cpus_needed, verbose)


def _connected(
    address: str | None, config: ClusterConfig, num_cpus_needed: int | Callable[[], int], verbose: bool
) -> Iterator[ClusterResources]:
    import ray

    logs = {"logging_level": logging.INFO if verbose else logging.ERROR, "log_to_driver": verbose}
    with (
        interrupts.kept(),
        own_ray.without_its_handler(),
        contextlib.nullcontext() if verbose else console.without_native_lines(),
    ):
        enter(logs | _where(address, config, num_cpus_needed))
    if not verbose:
        _quiet()
    session = _session_folder() if address is None else None
    with contextlib.nullcontext() if verbose else console.without_raylet_lines():
        try:
            # A Ray that was started here cannot grow, whatever a launcher's file on this machine says.
            found = cluster_resources() if address is None else launcher.with_growth(cluster_resources(), config)
            with own_ray.watched(own_ray.processes_of_node()) if session else contextlib.nullcontext():
                yield found
        except BaseException:
            session = None  # its logs may say why
            raise
        finally:
            ray.shutdown()
            if session is not None:
                forget_session(session)


def _session_folder() -> pathlib.Path | None:
    """Where the Ray that this process started keeps its logs and sockets."""
    import ray._private.worker

    node = ray._private.worker._global_node
    return pathlib.Path(node.get_session_dir_path()) if node is not None else None


def forget_session(session: pathlib.Path) -> None:
    """Remove what a Ray that ended well left in the system's folder for temporary files: logs and sockets, some megabytes a run."""
    latest = session.with_name("session_latest")
    shutil.rmtree(session, ignore_errors=True)
    with contextlib.suppress(OSError):
        if latest.is_symlink() and not latest.exists():
            latest.unlink()


@contextlib.contextmanager
def own_scratch() -> Iterator[pathlib.Path]:
    """A folder in which the engines of a Ray of this process keep their sockets and files, and which goes with it.

    They are killed in the end, and would leave them in the system's folder for such files. So would this process, if it is killed: the
    next one removes what it left.
    """
    scratch.remove_left(place := scratch.folder_for_sockets(), f"{OWN}*")
    with tempfile.TemporaryDirectory(prefix=OWN, dir=place, ignore_cleanup_errors=True) as folder:
        scratch.own(pathlib.Path(folder))
        before = os.environ.get(SCRATCH)
        os.environ[SCRATCH] = folder
        try:
            yield pathlib.Path(folder)
        finally:
            if before is None:
                os.environ.pop(SCRATCH, None)
            else:
                os.environ[SCRATCH] = before


def _where(address: str | None, config: ClusterConfig, num_cpus_needed: int | Callable[[], int]) -> dict[str, Any]:
    """The options of `ray.init` that say which Ray to connect to. Raises `ClusterError`, see `connect`."""
    if address is None:
        needed = num_cpus_needed() if callable(num_cpus_needed) else num_cpus_needed
        return {"address": "local", "include_dashboard": False, "num_cpus": local_num_cpus(config, needed)}
    if config.num_cpus is not None:
        raise ClusterError(
            f"cluster.num_cpus={config.num_cpus} applies to a Ray started on this machine, but a cluster is running at {address}; "
            "set cluster.num_cpus to null, or stop that cluster"
        )
    return {"address": address}


def enter(options: dict[str, Any]) -> None:
    """Call `ray.init`, with its failures as `ClusterError`. A local Ray that missed its start-up deadline is tried once more.

    Ray gives its own processes a fixed time to start, which can be too short on a busy machine.
    """
    import ray

    for last_try in (options["address"] != "local", True):
        try:
            with own_ray.starting() if options["address"] == "local" else contextlib.nullcontext():
                ray.init(**options)
            return
        except Exception as error:  # a missed deadline is a bare Exception
            if not last_try and own_ray.may_try_again(error):
                ray.shutdown()
                continue
            if isinstance(error, ClusterError):
                raise
            reason = " ".join(str(error).split())
            if "uth" in type(error).__name__ or "token" in reason.lower():
                raise ClusterError(
                    f"the Ray cluster at {options['address']} refuses the connection ({reason[:200]}); run this command and the "
                    "cluster with RAY_AUTH_MODE=token and the same ~/.ray/auth_token (see `ray get-auth-token --generate`)"
                ) from error
            raise ClusterError(
                f"cannot connect to Ray at address {options['address']}: {reason[:400]}; on a busy machine try again, and see "
                "the logs in /tmp/ray/session_latest/logs"
            ) from error


def _quiet() -> None:
    """Keep the messages of libraries in their log files and off the console.

    Importing Ray Data sets up its loggers, so it is imported first.
    """
    import ray.data  # noqa: F401

    for name in ("httpx", "httpx2", "openai"):  # one line per request, once Ray Serve has set up the root logger
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)


def find_address(address: str | None) -> str | None:
    """The host:port of the running cluster to join, or None to start one here.

    Raises:
        ClusterError: the address is "auto" but no cluster is found, or it is malformed or does not answer.
    """
    if address == "local":
        return None
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address in (None, "auto"):
        started = _address_of_ray_start()
        if started is None and address == "auto":
            raise ClusterError(
                "cluster.address=auto, but no Ray cluster is running on this machine and RAY_ADDRESS is not set; run `ray start "
                "--head` first, submit with `ray job submit`, or set cluster.address to null to start a local Ray"
            )
        return started
    if "://" in str(address):
        raise ClusterError(
            f"the Ray address must be host:port of the cluster's head node, got {address!r}; from outside the cluster run "
            "`ray job submit --address http://HEAD:8265 --working-dir . -- vidalign …`"
        )
    if not _answers(str(address)):
        raise ClusterError(
            f"no Ray cluster answers at {address} (waited up to {PROBE_TIMEOUT_S:g} s); check `ray status` on its head node, "
            "correct cluster.address or RAY_ADDRESS, or set cluster.address to local to start a Ray here"
        )
    return address


def _address_of_ray_start() -> str | None:
    """What `ray start --head` left behind, if it still answers: the file outlives a killed cluster."""
    import ray._private.utils

    address = ray._private.utils.read_ray_address()
    return address if address and _answers(address) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"a Ray address must have the form host:port, got {address!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def cluster_resources() -> ClusterResources:
    """What the connected cluster has now."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    head: dict[str, float] = next((node for node in nodes if HEAD in node), {})
    return ClusterResources(
        num_cpus=int(sum(node.get("CPU", 0) for node in nodes)),
        num_gpus=int(sum(node.get("GPU", 0) for node in nodes)),
        num_nodes=len(nodes),
        cpus_per_node=int(max((node.get("CPU", 0) for node in nodes), default=0)) or None,
        gpus_per_node=int(max((node.get("GPU", 0) for node in nodes), default=0)) or None,
        gpus_of_nodes=tuple(int(node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1),
        num_without_cpus=sum(node.get("CPU", 0) < 1 for node in nodes),
        head_cpus=int(head.get("CPU", 0)),
        head_gpus=int(head.get("GPU", 0)),
    )


def local_resources(config: ClusterConfig | None = None) -> ClusterResources:
    """This machine's resources, found without Ray: what a dry run plans with if no cluster is given."""
    import torch

    num_cpus = (config.num_cpus if config else None) or max(MIN_CPUS, num_cores())
    return ClusterResources(num_cpus=num_cpus, num_gpus=torch.cuda.device_count())


def local_device_memory(use_gpu: bool) -> int:
    """Bytes of memory of this machine's first GPU, or of the machine or container itself."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if use_gpu else total_memory()


def total_memory() -> int:
    """Bytes of memory of this machine or container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def local_num_cpus(config: ClusterConfig, num_cpus_needed: int) -> int:
    """The number of logical CPUs of a Ray started here."""
    return config.num_cpus or max(MIN_CPUS, num_cores(), math.ceil(num_cpus_needed))


def num_cores() -> int:
    """The number of cores that this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota_file = pathlib.Path("/sys/fs/cgroup/cpu.max")
    if quota_file.is_file():
        quota, period = quota_file.read_text(encoding="ascii").split()
        cores = cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)
