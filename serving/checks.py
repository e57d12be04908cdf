"""What would prevent an endpoint from starting on this machine, found before anything is started."""

from __future__ import annotations

import pathlib
import resource
import socket
from collections.abc import Mapping

from cluster.engines import require_plugin
from serving.access import read_keys
from serving.proxy import may_use_haproxy
from vidalign.config.run import ServeConfig
from vidalign.errors import ClusterError, ModelError
from vidalign.types import PolicyVersion

OWN_FILES = 1060  # of HAProxy on a machine with 2 cores


def check_files(models: Mapping[str, PolicyVersion], serve: ServeConfig) -> None:
    """Raises `ModelError` where a policy's folder is not a checkpoint or vLLM would not load our plugin, and `ClusterError` where the
    media root is no folder.
    """
    require_plugin()
    for model_id, policy in models.items():
        folder = pathlib.Path(policy.path)
        if not folder.is_dir():
            raise ModelError(
                f"model {model_id!r} is to be served from {policy.path}, which is not a folder; give a checkpoint folder"
            )
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{policy.path} is not a Hugging Face checkpoint: config.json and *.safetensors are needed; `vidalign train` "
                "exports such folders to rounds/N/model"
            )
    check_keys(serve)
    check_media_root(serve)


def check_keys(serve: ServeConfig) -> None:
    """Raises `ConfigError` where the endpoint's file of keys cannot be read."""
    if serve.access.keys_file is not None:
        read_keys(serve.access.keys_file)


def check_media_root(serve: ServeConfig) -> None:
    """Raises `ClusterError` where the endpoint's media root is no folder."""
    if serve.media_root is not None and not pathlib.Path(serve.media_root).is_dir():
        raise ClusterError(f"serve.media_root={serve.media_root} is not a folder; file: urls are read from below it")


def check_open_files(serve: ServeConfig) -> None:
    """Raises `ClusterError` where HAProxy, which does not start then, may not open two files a connection and its own."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if not may_use_haproxy(serve) or most == resource.RLIM_INFINITY:
        return
    if most < 2 * serve.limits.max_connections + OWN_FILES:
        lower = f", or lower serve.limits.max_connections to {(most - OWN_FILES) // 2:,}" if most > OWN_FILES + 2 else ""
        raise ClusterError(
            f"serve.limits.max_connections={serve.limits.max_connections:,} needs {2 * serve.limits.max_connections + OWN_FILES:,} "
            f"open files, and this machine allows {most:,}; raise that (`ulimit -Hn`){lower}"
        )


def check_address(serve: ServeConfig) -> None:
    """Look for what is wrong with the endpoint's place on this machine.

    Raises:
        ClusterError: the port is taken, the media root is no folder, or HAProxy may not open enough files.
        ConfigError: the file of keys cannot be read.
    """
    check_keys(serve)
    check_media_root(serve)
    check_open_files(serve)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serve.host, serve.port))
        except OSError as error:
            raise ClusterError(
                f"cannot listen on port {serve.port} of {serve.host} ({error.strerror}); choose another port with serve.port"
            ) from error
