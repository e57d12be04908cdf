"""Other projects' data as vidalign rows: one module per format, two tables that name them, and `importer` and `exporter`.

An importer takes one row of a source as a dict, removes from it what it uses, and returns one vidalign row
(`vidalign.data.rows`), perhaps without an id. What is left in the dict was not used and is counted. An exporter does the reverse.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from vidalign.data.formats import hound, llamafactory, ms_swift, nemo_rl, rrpo, trl
from vidalign.data.formats.fields import Fields, Notes
from vidalign.plugins import resolve

Converter: TypeAlias = Callable[[Fields, Notes], Fields]

IMPORTERS: Mapping[str, Converter] = {
    "trl": trl.to_row,
    "llamafactory": llamafactory.to_row,
    "ms-swift": ms_swift.to_row,
    "nemo-rl": nemo_rl.to_row,
    "hound": hound.to_row,
    "rrpo": rrpo.to_row,
}
EXPORTERS: Mapping[str, Converter] = {
    "trl": trl.from_row,
    "llamafactory": llamafactory.from_row,
    "ms-swift": ms_swift.from_row,
    "nemo-rl": nemo_rl.from_row,
    "rrpo": rrpo.from_row,
}


def importer(name: str) -> Converter:
    """The importer called `name`, or the one at "package.module:attribute". Raises `ConfigError`."""
    return resolve(_known(name), IMPORTERS, what="import format")


def exporter(name: str) -> Converter:
    """The exporter called `name`, or the one at "package.module:attribute". Raises `ConfigError`."""
    return resolve(_known(name), EXPORTERS, what="export format")


def _known(name: str) -> str:
    """The name as the tables write it: ms_swift is ms-swift."""
    return name.replace("_", "-") if ":" not in name else name
