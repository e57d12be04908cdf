"""How old responses are: of which round's first policy they are, and which are too old to be learned from.

With `max_staleness` s, the responses of round k are of the policy that round max(0, k - s) starts from, which is min(k, s) rounds
old then.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from pipelines import progress
from pipelines.stages.base import BEGUN, MANIFEST
from pipelines.stages.responses import read_responses
from vidalign import files
from vidalign.errors import ConfigError, DataError
from vidalign.stored import shown
from vidalign.types import PolicyVersion, Response


def responder(index: int, staleness: int, folder: pathlib.Path, policy: Callable[[int], PolicyVersion | None]) -> int:
    """The round whose first policy makes the responses of round `index`: the oldest that may, or that of what `folder` holds.

    Responses that were begun by a younger policy, as without overlap, are as good. `policy`: the first one of a round, or None
    where it is not there yet.

    Raises:
        ConfigError: the folder holds responses of a policy that is too old.
    """
    oldest, begun = max(0, index - staleness), made_by(folder)
    if begun is None:
        return oldest
    for earlier in range(index, -1, -1):
        found = policy(earlier)
        if found is not None and found.version == begun:
            if earlier < oldest:
                raise ConfigError(
                    f"{shown(folder)} holds responses of the policy that round {earlier} started from, and max_staleness={staleness} "
                    f"allows round {index} none older than that of round {oldest}; set max_staleness to {index - earlier}, or delete "
                    f"the folders of round {index} to make them again"
                )
            return earlier
    return oldest


def made_by(folder: pathlib.Path) -> str | None:
    """The version of the policy that began the responses of a folder; None where there are none, or where that is not said."""
    for name in (MANIFEST, BEGUN):
        if (folder / name).is_file():
            try:
                inputs = files.read_object(folder / name).get("inputs")
            except DataError:  # of a format without names
                return None
            return inputs.get("policy") if isinstance(inputs, dict) else None
    return None


def fresh(index: int, staleness: int, policy: Callable[[int], PolicyVersion | None]) -> frozenset[str] | None:
    """The versions of the policies whose responses round `index` may learn from, of those that are there; None without staleness."""
    if not staleness:
        return None
    found = map(policy, range(max(0, index - staleness), index + 1))
    return frozenset(one.version for one in found if one is not None)


def read_fresh(
    folders: Sequence[pathlib.Path], versions: frozenset[str] | None, *, tokens: bool
) -> tuple[list[Response], dict[str, Any]]:
    """The responses of finished rollouts that are not too old, and for the manifest how many others there were.

    Args:
        versions: of the policies whose responses may be learned from; None: of any, and nothing is counted. tokens: as
            `read_responses` takes it.

    Raises:
        DataError: all are too old.
    """
    responses = [response for folder in folders for response in read_responses(folder, tokens=tokens)]
    if versions is None:
        return responses, {}
    kept = [response for response in responses if response.policy_version in versions]
    too_old = len(responses) - len(kept)
    if responses and not kept:
        raise DataError(
            f"all {len(responses):,} responses in {shown(folders[-1])} are of policies older than max_staleness allows; raise it, or "
            "delete that folder to make them again"
        )
    if too_old:
        progress.warn(
            f"{too_old:,} of {len(responses):,} responses are older than max_staleness allows and are not learned from"
        )
    return kept, {"too_old": too_old}
