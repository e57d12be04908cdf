"""Remote videos on a node's own disk: each is fetched once, kept by its content, and given up by last use.

    <root>/names/ab/…    of a uri: the version that its store named, and the SHA-256 of its bytes
    <root>/bytes/ab/…    bytes, by their SHA-256; the file's time is that of its last use
    <root>/in_use/…      a folder of each process: links to the bytes that it reads, which giving up a name does not take away
    <root>/locks/abc     so that one process of a node fetches a uri, and the others wait for it

A uri is asked for its version at every use. Any number of processes of a node may use the folder at once. `VIDALIGN_VIDEOS` names the
folder, by default ~/.cache/vidalign/videos, and `VIDALIGN_VIDEOS_GIB` how much it may hold, by default 50: what is in use beyond that
stays until it is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator

from vidalign import files
from vidalign.errors import ConfigError, DataError
from vidalign.video import stores

FOLDER, GIB = "VIDALIGN_VIDEOS", "VIDALIGN_VIDEOS_GIB"
DEFAULT_GIB = 50.0
FORGOTTEN_S = 86_400.0  # what a process of another machine left unused for so long, it left behind


@dataclasses.dataclass(frozen=True)
class KeptVideos:
    """The folder of a node, and how many bytes it may hold."""

    root: pathlib.Path
    max_bytes: int

    @classmethod
    def of_node(cls) -> KeptVideos:
        """As the environment says. Raises `ConfigError` for a size that is none."""
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = os.environ.get(FOLDER) or cache / "vidalign" / "videos"
        text = os.environ.get(GIB) or str(DEFAULT_GIB)
        try:
            size = float(text)
        except ValueError:
            size = -1.0
        if not size >= 0:
            raise ConfigError(f"{GIB} must be a number of GiB, such as 50, got {text!r}")
        return cls(pathlib.Path(folder), int(size * 2**30))

    def digest(self, uri: str) -> str:
        """The SHA-256 of what is at a uri now, if its store says that it is what was fetched last; else "". Fetches nothing.

        Raises:
            VideoError: as `vidalign.video.stores.asked`.
        """
        version, digest = self._known(uri)
        if not version:
            return ""
        with stores.asked(uri, version) as answer:
            return digest if answer.chunks is None else ""

    @contextlib.contextmanager
    def opened(self, uri: str) -> Iterator[tuple[str, str]]:
        """A path of what is at a uri now, which lasts as long as the `with` block, and its SHA-256.

        Raises:
            VideoError: as `vidalign.video.stores.asked`.
            DataError: the folder cannot be written.
        """
        try:
            with self._locked(uri):
                path, digest = self._fetched(uri)
        except OSError as error:
            raise DataError(
                f"remote videos cannot be kept in {self.root}: {error.strerror}; set {FOLDER} to a folder that can be written"
            ) from error
        try:
            yield str(path), digest
        finally:
            path.unlink(missing_ok=True)

    def _fetched(self, uri: str) -> tuple[pathlib.Path, str]:
        version, digest = self._known(uri)
        if version and not self._bytes(digest).is_file():
            version = ""
        with stores.asked(uri, version) as answer:
            if answer.chunks is None and (linked := self._linked(digest)):
                return linked, digest
            if answer.chunks is not None:
                return self._written(uri, answer)
        with stores.asked(uri) as answer:  # given up by another process in the meantime
            return self._written(uri, answer)

    def _written(self, uri: str, answer: stores.Answer) -> tuple[pathlib.Path, str]:
        assert answer.chunks is not None
        path, size, sha = self._private(), 0, hashlib.sha256()
        try:
            with path.open("wb") as file:
                for chunk in answer.chunks:
                    file.write(chunk)
                    sha.update(chunk)
                    size += len(chunk)
            if answer.size is not None and size != answer.size:
                raise ConnectionError(f"{size:,} of {answer.size:,} bytes came")
            digest = sha.hexdigest()
            target = self._bytes(digest)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                _link(path, target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if answer.version:
            row = json.dumps({"uri": uri, "version": answer.version, "sha256": digest})
            files.write_bytes_atomic(self._name(uri), row.encode(), durable=False)
        self._give_up()
        return path, digest

    def _linked(self, digest: str) -> pathlib.Path | None:
        """A link of this process to kept bytes, whose time is now; None if they were given up."""
        kept, path = self._bytes(digest), self._private()
        try:
            os.utime(kept)
            _link(kept, path)
        except FileNotFoundError:
            return None
        return path

    def _private(self) -> pathlib.Path:
        folder = self.root / "in_use" / f"{socket.gethostname()}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        path = pathlib.Path(name)
        path.unlink()  # the name is free for a link, and no other process has this folder
        return path

    def _give_up(self) -> None:
        """Remove what was not used for the longest time until the rest fits, and what processes that are gone left behind."""
        for folder in (self.root / "in_use").iterdir():
            if _is_left_behind(folder):
                shutil.rmtree(folder, ignore_errors=True)
        found = []
        for path in (self.root / "bytes").glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    @contextlib.contextmanager
    def _locked(self, uri: str) -> Iterator[None]:
        path = self.root / "locks" / _hash(uri)[:3]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _known(self, uri: str) -> tuple[str, str]:
        """The version and SHA-256 of what was fetched last; "" and "" where nothing is known."""
        try:
            row = json.loads(self._name(uri).read_bytes())
            return (row["version"], row["sha256"]) if row["uri"] == uri else ("", "")
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def _name(self, uri: str) -> pathlib.Path:
        key = _hash(uri)
        return self.root / "names" / key[:2] / key

    def _bytes(self, digest: str) -> pathlib.Path:
        return self.root / "bytes" / digest[:2] / digest


def _hash(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A second name for the same bytes, or, where the file system has none, a copy. Raises `FileNotFoundError`, `FileExistsError`."""
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=".")
        os.close(handle)
        shutil.copyfile(source, draft)
        os.replace(draft, target)


def _is_left_behind(folder: pathlib.Path) -> bool:
    """Whether a process's folder is that of one that is gone."""
    host, _, pid = folder.name.rpartition("-")
    try:
        if host != socket.gethostname():
            return folder.stat().st_mtime < time.time() - FORGOTTEN_S
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False
