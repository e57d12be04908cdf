"""Object stores (s3://, gs:// and az://, by pyarrow.fs): what is in one, staged on a node's own disk.

    uri ─► listing {name: size, time of change} ─► <root>/<hash of uri and listing>/<last part of the uri>     a file or a folder

An object that changed has another hash, so nothing stale is read, and two nodes that staged the same have it at the same path. Stores
tell times in seconds, in which a small object may be replaced by as many bytes: of those the hash also has what the store calls their
content (ETag), where it says so.
`VIDALIGN_STAGED` names the root, by default ~/.cache/vidalign/staged, and `VIDALIGN_STAGED_GIB` how much it may hold, by default 200
(vidalign/room.py).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import fcntl
import fnmatch
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from vidalign import azure, room
from vidalign.errors import ConfigError, DataError

SCHEMES = ("s3", "gs", "gcs", *azure.SCHEMES)
OTHERS = ("adl", "http", "https", "hdfs", "file")  # what people write, and what is not read here
FOLDER, GIB = "VIDALIGN_STAGED", "VIDALIGN_STAGED_GIB"
DEFAULT_GIB = 200.0
TIMEOUT_S = 30.0  # for a store to connect, and for each read
MAX_ATTEMPTS = 3  # of pyarrow, for each request
TRIES, PAUSE_S = 5, 0.5  # of one file as a whole
AT_ONCE = 8  # files that are fetched at the same time
CHUNK_BYTES = 2**22
SMALL_BYTES = 2**20  # an object that may be written twice within a second

_held: dict[pathlib.Path, int] = {}  # locks of what this process has staged, which keep others from giving it up


def is_uri(text: str) -> bool:
    """Whether a text names something in a store, rightly or not: a path has no scheme."""
    scheme, colon, _ = text.partition(":")
    return bool(colon) and (scheme.lower() in SCHEMES + OTHERS or "://" in text)


def check_uri(key: str, uri: str) -> None:
    """Raises `ConfigError` for a uri that cannot be read here or is mistyped; `key`: the option that has it."""
    scheme, _, rest = uri.partition(":")
    if scheme.lower() not in SCHEMES:
        raise ConfigError(
            f"{key}={uri} begins with {scheme}:, which is not read here; give s3://bucket/…, gs://bucket/… or az://container/…, or a "
            "path, such as where that store is mounted"
        )
    if not rest.startswith("//"):
        raise ConfigError(f"{key}={uri} is no uri without two slashes; write {scheme}://bucket/…")
    if not rest.strip("/"):
        raise ConfigError(f"{key}={uri} names no bucket; write {scheme}://bucket/…")


def store_of(uri: str) -> tuple[Any, str]:
    """The store of a uri, and the place in it. Raises `ConfigError` where the environment does not say which store it is."""
    scheme, _, place = uri.partition("://")
    account = ""
    if scheme.lower() in azure.SCHEMES:
        account, place = azure.parts_of(place)
    return bucket_store(scheme.lower(), account), place


@functools.cache
def bucket_store(scheme: str, account: str = "") -> Any:
    """Credentials, region and address (AWS_ENDPOINT_URL) are those of the environment, as for every client of these stores."""
    from pyarrow import fs

    if scheme in azure.SCHEMES:
        return fs.AzureFileSystem(**azure.options(account))
    if scheme != "s3":
        return fs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=TIMEOUT_S))
    return fs.S3FileSystem(
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=TIMEOUT_S,
        request_timeout=TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
        allow_delayed_open=True,  # one request for a small object
    )


def staged(key: str, uri: str, patterns: Sequence[str] = ("*",)) -> pathlib.Path:
    """The local file or folder of what is at a uri, fetched unless it is on this node. It stays while this process runs.

    Args:
        key: the option that has the uri, for messages.
        patterns: of the names of files in a folder that are wanted.

    Raises:
        ConfigError: the uri is mistyped or of another store, or there is no room for it.
        DataError: there is nothing, or the store does not answer.
    """
    check_uri(key, uri)
    store, place = store_of(uri)
    place = place.rstrip("/")
    try:
        found = _listing(store, place, patterns)
        tags = _tags(store, place, found)
    except Exception as error:  # a store's errors are of many kinds; all mean that it cannot be read
        raise _unread(key, uri, error) from error
    if not found:
        raise DataError(f"{key}={uri}: there is nothing at this uri; correct it, or put the files there")
    root, most = node_folder()
    digest = hashlib.sha256(json.dumps([uri.rstrip("/"), found, tags]).encode()).hexdigest()[:24]
    folder = root / digest
    try:
        with contextlib.ExitStack() as stack:
            lock = _opened(root, digest)
            stack.callback(os.close, lock)
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)  # waits for who is giving it up
                if folder.is_dir():
                    break
                with _fetching(root, digest):
                    if not folder.is_dir():
                        _make_room(key, uri, root, most, sum(size for size, _ in found.values()), keep=digest)
                        _fetch(store, place, found, folder, root)
            stack.pop_all()
        if folder in _held:
            os.close(_held[folder])
        _held[folder] = lock
        os.utime(folder)
        return folder / place.rpartition("/")[2]
    except (ConfigError, DataError):
        raise
    except OSError as error:
        if error.errno is not None and error.filename:
            raise ConfigError(
                f"{uri} cannot be kept in {root}: {error.strerror}; set {FOLDER} to a folder with room"
            ) from error
        raise _unread(key, uri, error) from error


def is_staged(path: str | os.PathLike[str]) -> bool:
    """Whether a path is below the folder in which this node stages."""
    return node_folder()[0] in pathlib.Path(path).parents


def _unread(key: str, uri: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300]
    return DataError(f"{key}={uri} cannot be read: {reason}; check the uri, the credentials and that its store answers")


def _listing(store: Any, place: str, patterns: Sequence[str]) -> dict[str, tuple[int, int]]:
    """{name inside the folder, or "" of a single file: (bytes, time of its last change in ns)}; empty where there is nothing."""
    from pyarrow import fs

    [at] = store.get_file_info([place])
    if at.type == fs.FileType.NotFound:
        return {}
    if at.type == fs.FileType.File:
        return {"": (at.size, at.mtime_ns or 0)}
    inside = store.get_file_info(fs.FileSelector(place, recursive=True))
    found = {
        each.path[len(place) + 1 :]: (each.size, each.mtime_ns or 0) for each in inside if each.type == fs.FileType.File
    }
    wanted = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    return {name: found[name] for name in sorted(found) if wanted.match(name)}


def _tags(store: Any, place: str, found: dict[str, tuple[int, int]]) -> dict[str, str]:
    """{name: what the store calls its content} of small objects, where it says so."""

    def tag(name: str) -> str:
        with os_errors(), store.open_input_stream(f"{place}/{name}" if name else place) as stream:
            said = {key.lower(): value for key, value in (stream.metadata() or {}).items()}
        etag = said.get("etag", b"")
        return etag.decode() if isinstance(etag, bytes) else str(etag)

    small = [name for name, (size, _) in found.items() if size <= SMALL_BYTES]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return {name: said for name, said in zip(small, pool.map(tag, small), strict=True) if said}


def _fetch(store: Any, place: str, found: dict[str, tuple[int, int]], folder: pathlib.Path, root: pathlib.Path) -> None:
    """Fetch everything into a draft, which becomes the folder when all of it is there."""
    draft = pathlib.Path(tempfile.mkdtemp(dir=root, prefix=".draft-"))
    try:
        target = draft / place.rpartition("/")[2]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = [
                pool.submit(fetch_file, store, f"{place}/{name}" if name else place, target / name if name else target, size)
                for name, (size, _) in found.items()
            ]
            for job in jobs:
                job.result()
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """A block in which a store's failures are all `OSError`: pyarrow has another kind for what gs:// and az:// say of credentials, and
    for a 503 of gs://.
    """
    from pyarrow import ArrowException

    try:
        yield
    except ArrowException as error:
        raise OSError(str(error)) from error


def fetch_file(store: Any, place: str, path: pathlib.Path, size: int) -> None:
    """Fetch one object as a file, again after a pause where that fails. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, TRIES + 1):
        try:
            with os_errors(), store.open_input_stream(place) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
            if path.stat().st_size != size:
                raise ConnectionError(f"{path.stat().st_size:,} of {size:,} bytes of {place} came")
            return
        except OSError as error:
            if number == TRIES or isinstance(error, FileNotFoundError | PermissionError) or error.filename:
                raise
            time.sleep(PAUSE_S * 2 ** (number - 1))


def _make_room(key: str, uri: str, root: pathlib.Path, most: int, needed: int, *, keep: str) -> None:
    """Give up what was not used for the longest time until `needed` bytes fit. Raises `ConfigError` where they never do."""
    room.make(root, most, needed, keep=keep)
    free = shutil.disk_usage(root).free
    if needed > most or needed > free:
        bound = f"{FOLDER}={root} has {free / 2**30:.1f} GiB left" if needed > free else f"{GIB} is {most / 2**30:g}"
        raise ConfigError(
            f"{key}={uri} has {needed / 2**30:.1f} GiB, and {bound}; raise it, or choose another folder with {FOLDER}"
        )


def _opened(root: pathlib.Path, digest: str, suffix: str = "") -> int:
    """A handle of a lock of one folder on this node's own disk. The system lets go of it when the process ends."""
    path = room.lock_path(root, root / digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(f"{path}{suffix}", os.O_RDWR | os.O_CREAT, 0o666)


@contextlib.contextmanager
def _fetching(root: pathlib.Path, digest: str) -> Iterator[None]:
    """A block in which this process alone fetches a folder, which others may be waiting for, or have."""
    handle = _opened(root, digest, ".fetching")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def node_folder() -> tuple[pathlib.Path, int]:
    """The root and how many bytes it may hold, as the environment says. Raises `ConfigError` for a size that is none."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    text = os.environ.get(GIB) or str(DEFAULT_GIB)
    size = -1.0
    with contextlib.suppress(ValueError):
        size = float(text)
    if not size >= 0:
        raise ConfigError(f"{GIB} must be a number of GiB, such as 200, got {text!r}")
    return pathlib.Path(os.environ.get(FOLDER) or cache / "vidalign" / "staged").absolute(), int(size * 2**30)
