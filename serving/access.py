"""Who may ask: bearer keys from a file that holds only their hashes, a name for each, and limits for each.

    # name  sha256 of the key  [requests_per_minute=60] [max_running=4]
    alice   9f86d081884c7d65…  requests_per_minute=120

`vidalign keys add NAME` makes a key of 256 random bits, so its plain hash tells nothing. The file is read again when it has changed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import secrets
import time
from collections.abc import Iterator, Mapping

from serving.replies import Refusal
from vidalign.config.serving import AccessConfig
from vidalign.errors import ConfigError

LIMITS = ("requests_per_minute", "max_running")
OWN = "vidalign"  # the name of the key that an endpoint makes for the process that started it
LOOK_AGAIN_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One line of the file; a limit that is None is that of `AccessConfig`."""

    name: str
    sha256: str
    requests_per_minute: int | None = None
    max_running: int | None = None


def new_key() -> str:
    """A key that nobody can guess."""
    return f"vk-{secrets.token_urlsafe(32)}"


def hash_of(key: str) -> str:
    """What a file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | os.PathLike[str]) -> dict[str, Key]:
    """The keys of a file, by their hashes. Raises `ConfigError` with the line that is wrong."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"serve.access.keys_file={os.fspath(path)} cannot be read ({error}); `vidalign keys add NAME` makes one"
        ) from error
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            key = _read_line(words, f"{os.fspath(path)} line {number}")
            if any(key.name == other.name for other in keys.values()):
                raise ConfigError(
                    f"{os.fspath(path)} line {number}: {key.name} is there already; give each key its own name"
                )
            keys[key.sha256] = key
    return keys


def _read_line(words: list[str], where: str) -> Key:
    if len(words) < 2 or not _NAME.fullmatch(words[0]) or not _HASH.fullmatch(words[1]):
        raise ConfigError(
            f"{where} must be a name and a SHA-256 in 64 hexadecimal digits, as `vidalign keys add NAME` writes them"
        )
    limits = {}
    for word in words[2:]:
        name, _, value = word.partition("=")
        if name not in LIMITS or not value.isdigit() or int(value) < 1:
            raise ConfigError(f"{where}: {word} is not one of {', '.join(f'{limit}=NUMBER' for limit in LIMITS)}")
        limits[name] = int(value)
    return Key(name=words[0], sha256=words[1], **limits)


def add_key(path: str | os.PathLike[str], name: str) -> str:
    """Make a key, write its hash to the file and return the key itself, which is kept nowhere. Raises `ConfigError`."""
    path = pathlib.Path(path)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a key's name is letters, digits, dots, dashes and underscores, at most 64, got {name!r}")
    if path.is_file() and any(key.name == name for key in read_keys(path).values()):
        raise ConfigError(f"{path} has a key {name} already; take another name, or remove its line first")
    key = new_key()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{name} {hash_of(key)}\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; give another file with --file") from error
    return key


class Access:
    """Who is asking, and whether they may now."""

    def __init__(self, config: AccessConfig, own_hash: str = "") -> None:
        self._config, self._own_hash = config, own_hash
        self._keys: Mapping[str, Key] = read_keys(config.keys_file) if config.keys_file else {}
        self._seen, self._looked_at = self._stamp(), time.monotonic()
        self._asked: dict[str, collections.deque[float]] = {}
        self._running: collections.Counter[str] = collections.Counter()

    def who(self, path: str, authorization: str, address: str) -> Key:
        """The key of a request, or one that stands for its address where none is needed. Raises `Refusal` (401)."""
        if self._config.keys_file is None or path in self._config.open_paths:
            return Key(name=address, sha256="")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unknown("this endpoint needs a key: Authorization: Bearer KEY")
        digest = hash_of(token.strip())
        if self._own_hash and digest == self._own_hash:
            return Key(name=OWN, sha256=digest)
        self._look_again()
        if digest not in self._keys:
            raise _unknown("this key is not known here")
        return self._keys[digest]

    @contextlib.contextmanager
    def counted(self, key: Key) -> Iterator[None]:
        """Count a request of a key while it is answered. Raises `Refusal` (429)."""
        if key.name == OWN and key.sha256:
            yield
            return
        self._count_minute(key)
        most = key.max_running or self._config.max_running
        if most is not None and self._running[key.name] >= most:
            raise Refusal(
                429, f"{key.name} has {most} requests running, which is its limit; wait for one of them", retry_after_s=1.0
            )
        self._running[key.name] += 1
        try:
            yield
        finally:
            self._running[key.name] -= 1
            if not self._running[key.name]:
                del self._running[key.name]

    def _count_minute(self, key: Key) -> None:
        most, now = key.requests_per_minute or self._config.requests_per_minute, time.monotonic()
        if most is None:
            return
        asked = self._asked.setdefault(key.name, collections.deque())
        while asked and asked[0] <= now - 60:
            asked.popleft()
        if len(asked) >= most:
            raise Refusal(
                429,
                f"{key.name} has asked {most} times within a minute, which is its limit",
                retry_after_s=asked[0] + 60 - now,
            )
        asked.append(now)
        if len(self._asked) > 10_000:  # addresses come and go
            self._asked = {name: times for name, times in self._asked.items() if times and times[-1] > now - 60}

    def _look_again(self) -> None:
        """Read the file again if it has changed. One that has become wrong changes nothing."""
        if time.monotonic() - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = time.monotonic()
        if self._stamp() != self._seen:
            self._seen = self._stamp()
            with contextlib.suppress(ConfigError):
                self._keys = read_keys(self._config.keys_file or "")

    def _stamp(self) -> tuple[int, int]:
        if not self._config.keys_file:
            return 0, 0
        try:
            found = os.stat(self._config.keys_file)
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_size


def _unknown(message: str) -> Refusal:
    return Refusal(401, message, www_authenticate="Bearer")
