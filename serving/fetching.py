"""A video or image over http(s): only from listed hosts, by no way out of them, and never from the endpoint's own network.

Every address that a host's name stands for is looked at before it is connected to, also those of a redirect. A message names the host
that the client gave, and never a port or an address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import pathlib
import socket
import urllib.parse
from collections.abc import Collection
from typing import Any

import aiohttp
import aiohttp.abc

from vidalign.config.serving import MediaConfig

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK_BYTES = 2**20
INTERNET_V6, NAT64 = ipaddress.ip_network("2000::/3"), ipaddress.ip_network("64:ff9b::/96")  # RFC 4291, RFC 6052
# What Python calls global and is none: RFC 6890, 6to4's gateways, and the service of its host that each of Azure's machines reaches.
NOT_PUBLIC = tuple(ipaddress.ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))


async def fetch(url: str, config: MediaConfig, path: pathlib.Path) -> None:
    """Write what is at a url to a file. Raises `ValueError`, which a client may read."""
    host = _host(url, config.domains)
    connector = aiohttp.TCPConnector(resolver=CheckedResolver(private=config.private_addresses), use_dns_cache=False)
    try:
        async with (
            asyncio.timeout(config.fetch_s),
            aiohttp.ClientSession(connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                _check_literal(url, private=config.private_addresses)
                async with session.get(url, allow_redirects=False, headers={"User-Agent": "vidalign"}) as response:
                    if response.status in REDIRECTS:
                        url = urllib.parse.urljoin(url, response.headers.get("Location", ""))
                        _check_redirect(url, config.domains, host)
                        continue
                    if response.status != 200:
                        raise ValueError(f"{host} answers {response.status} for this url")
                    await _write(response, path, int(config.max_mb * 2**20), host)
                    return
            raise ValueError(f"{host} redirects more than {MAX_REDIRECTS} times")
    except TimeoutError:
        raise ValueError(f"{host} did not send the file within {config.fetch_s:g} s (serve.media.fetch_s)") from None
    except (aiohttp.ClientError, OSError):
        raise ValueError(f"the file cannot be fetched from {host}") from None


async def _write(response: aiohttp.ClientResponse, path: pathlib.Path, most: int, host: str) -> None:
    too_large = ValueError(f"the file at {host} is larger than {most:,} bytes (serve.media.max_mb)")
    if (response.content_length or 0) > most:
        raise too_large
    size = 0
    with path.open("wb") as file:
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise too_large
            file.write(chunk)


def _host(url: str, domains: Collection[str]) -> str:
    """The host of a url, if it is one that is fetched from. Raises `ValueError`."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").lower().rstrip(".")
        _ = parts.port
    except ValueError:
        raise ValueError(f"{url[:60]!r} is not a url") from None
    if not domains:
        raise ValueError(
            "this endpoint does not fetch over http(s) (serve.media.domains); send the video as data:video/mp4;base64,… or as a "
            "file: url below its media root"
        )
    if parts.scheme not in ("http", "https") or parts.username is not None or host not in domains:
        raise ValueError(
            f"this is not one of the hosts that are fetched from (serve.media.domains), got {host[:80] or url[:40]!r}"
        )
    return host


def _check_redirect(url: str, domains: Collection[str], host: str) -> None:
    """Where a host redirects to may be a name or address of its own network, so it is not said. Raises `ValueError`."""
    try:
        _host(url, domains)
    except ValueError:
        raise ValueError(f"{host} redirects to a place that is not fetched from (serve.media.domains)") from None


def _check_literal(url: str, *, private: bool) -> None:
    """An address in a url is not resolved, so it is looked at here. Raises `OSError`."""
    try:
        address = ipaddress.ip_address(urllib.parse.urlsplit(url).hostname or "")
    except ValueError:
        return
    if not private and not is_public(str(address)):
        raise OSError("a private address")


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, also where IPv6 carries one of IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) % 2**32)
        if inner is None:
            return found.is_global and found in INTERNET_V6
        found = inner
    return found.is_global and not found.is_multicast and not any(found in network for network in NOT_PUBLIC)


class CheckedResolver(aiohttp.abc.AbstractResolver):
    """Resolves a name to those of its addresses that may be connected to: what is checked is what is used."""

    def __init__(self, *, private: bool) -> None:
        self._private, self._resolver = private, aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        found = await self._resolver.resolve(host, port, family)
        if not self._private and not all(is_public(each["host"]) for each in found):
            raise OSError("a private address")
        return found

    async def close(self) -> None:
        await self._resolver.close()
