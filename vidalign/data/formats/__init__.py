"""Data of other projects as rows of ours: a module a format, and the two tables that name them.

An importer takes one row of a source, from whose dict it removes what it uses, and returns one row of ours (`vidalign.data.rows`),
perhaps without an id; what is left of the dict was not used and is counted. An exporter does the reverse.
"""

from collections.abc import Callable, Mapping

from vidalign.data.formats import hound, llamafactory, ms_swift, nemo_rl, rrpo, trl
from vidalign.data.formats.chat import Fields, Notes

IMPORTERS: Mapping[str, Callable[[Fields, Notes], Fields]] = {
    "trl": trl.to_row,
    "llamafactory": llamafactory.to_row,
    "ms-swift": ms_swift.to_row,
    "nemo-rl": nemo_rl.to_row,
    "hound": hound.to_row,
    "rrpo": rrpo.to_row,
}
EXPORTERS: Mapping[str, Callable[[Fields, Notes], Fields]] = {"rrpo": rrpo.from_row}
