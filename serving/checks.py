"""What would prevent an endpoint from starting on this machine, found before anything is started."""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Mapping

from serving.access import read_keys
from vidalign.config.run import ServeConfig
from vidalign.errors import ClusterError, ModelError
from vidalign.types import PolicyVersion


def check_files(models: Mapping[str, PolicyVersion], serve: ServeConfig) -> None:
    """Raises `ModelError` where a policy's folder is not a checkpoint, and `ClusterError` where the media root is no folder."""
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


def check_address(serve: ServeConfig) -> None:
    """Look for what is wrong with the endpoint's place on this machine.

    Raises:
        ClusterError: the port is taken, or the media root is no folder.
        ConfigError: the file of keys cannot be read.
    """
    check_keys(serve)
    check_media_root(serve)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serve.host, serve.port))
        except OSError as error:
            raise ClusterError(
                f"cannot listen on port {serve.port} of {serve.host} ({error.strerror}); choose another port with serve.port"
            ) from error
