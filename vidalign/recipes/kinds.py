"""The kinds of responses: on which side of a pair each may be, what the report calls it, and whether its scores count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from vidalign.recipes.engine import SPECIAL_TOKEN
from vidalign.types import Response


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of response.

    `side`: "chosen" or "rejected" where it is made for that side, "plain" for an ordinary reply of the policy, "truth" for the
    ground truth and what is made from it, None for what is no answer. `label`: its name on the report. `scored`: its reward and
    trust count in the correlation of the two. `limited`: its length is limited on purpose, so that one that reached its limit of
    tokens is whole.
    """

    side: Literal["chosen", "rejected", "plain", "truth"] | None
    label: str
    scored: bool = True
    limited: bool = False


KINDS: Mapping[str, Kind] = {
    "hinted": Kind(side="chosen", label="with hints"),
    "unhinted": Kind(side="chosen", label="first turn without hints"),
    "reflected": Kind(side="chosen", label="reflected"),
    "augmented": Kind(side="rejected", label="augmented video"),
    "perturbed": Kind(side="rejected", label="perturbed video"),
    "replayed": Kind(side="rejected", label="ground truth with a resampled segment", limited=True),
    "plain": Kind(side="plain", label="no hint, clean video"),
    "shuffled": Kind(side=None, label="shuffled frames", scored=False),
    "truth": Kind(side="truth", label="ground truth", scored=False),
    "rewritten": Kind(side="truth", label="rewritten ground truth"),
    "bridged": Kind(side="truth", label="wrong response, corrected"),
    "conservative": Kind(side="plain", label="reflected, conservative"),
    "neutral": Kind(side="plain", label="reflected, neutral"),
    "aggressive": Kind(side="plain", label="reflected, aggressive"),
    "report": Kind(side=None, label="critic's report", scored=False),
    "differences": Kind(side=None, label="list of differences", scored=False),
    "caption": Kind(side=None, label="caption", scored=False),
}


def kinds_on(side: str, kinds: Mapping[str, Kind] = KINDS) -> frozenset[str]:
    """The names of the kinds on one side."""
    return frozenset(name for name, kind in kinds.items() if kind.side == side)


def kind_of(name: str, kinds: Mapping[str, Kind] = KINDS) -> Kind:
    """The kind of that name; an unknown kind is on no side and is not scored."""
    return kinds.get(name) or Kind(side=None, label=name, scored=False)


def is_cut(response: Response, kinds: Mapping[str, Kind] = KINDS) -> bool:
    """Whether a response was cut off at its limit of tokens: nothing to learn from, and no end of turn belongs after it."""
    return response.finish_reason == "length" and not kind_of(response.kind, kinds).limited


def spells_special_token(response: Response) -> bool:
    """Whether the policy spelled out a special token: the text is stored without it, and is nothing to learn from."""
    return response.finish_reason == SPECIAL_TOKEN
