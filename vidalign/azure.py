"""Azure's object store by pyarrow.fs: az://CONTAINER/PATH, or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH.

The account and its credentials are those of the environment, in the words of Azure's own tools: AZURE_STORAGE_CONNECTION_STRING, or
AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or else what the machine itself is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from vidalign.errors import ConfigError

SCHEMES = ("az", "abfs", "abfss")
CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")  # Azure's own tools, and adlfs
KEY = ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY")
SAS = ("AZURE_STORAGE_SAS_TOKEN",)


def parts_of(place: str) -> tuple[str, str]:
    """(account, CONTAINER/PATH) of what follows the two slashes; the account is "" where the uri names none."""
    container, _, path = place.partition("/")
    container, _, host = container.partition("@")
    return host.partition(".")[0], f"{container}/{path}" if path else container


def options(account: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Keyword arguments of `pyarrow.fs.AzureFileSystem`. Raises `ConfigError` where nothing names an account."""
    given = dict(part.partition("=")[::2] for part in environment.get(CONNECTION, "").split(";") if part)
    name = account or given.get("AccountName") or _first(environment, ACCOUNT)
    if not name:
        raise ConfigError(
            f"a uri of Azure needs an account; set {ACCOUNT[0]} or {CONNECTION} on every node, or write "
            "abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/…"
        )
    found: dict[str, Any] = {"account_name": name}
    if account in ("", given.get("AccountName")) and given:
        key, token, endpoint = given.get("AccountKey"), given.get("SharedAccessSignature"), given.get("BlobEndpoint", "")
        endpoint = endpoint or f"https://{name}.blob.{given.get('EndpointSuffix', 'core.windows.net')}"
        if address := re.fullmatch(r"(https?)://([^/]+)(?:/.*)?", endpoint):
            scheme, authority = address.groups()
            authority = authority.removeprefix(name)  # of a host that begins with the account, only the rest is wanted
            found |= {"blob_storage_authority": authority, "blob_storage_scheme": scheme}
            found |= {"dfs_storage_authority": authority.replace(".blob.", ".dfs."), "dfs_storage_scheme": scheme}
    else:
        key, token = _first(environment, KEY), _first(environment, SAS)
    if key:
        found["account_key"] = key
    elif token:
        found["sas_token"] = f"?{token.removeprefix('?')}"
    return found


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")
