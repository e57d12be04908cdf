"""What `vidalign promote` is asked for: which round of which run, and how it comes in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from serving.trial import WINDOW
from serving.versions import CANARY, ON_TRIAL, PROMOTED, SHADOW, Bounds
from vidalign import mirror
from vidalign.config.loading import load_config
from vidalign.errors import ConfigError, ModelError
from vidalign.files import RunFolder
from vidalign.model.checkpoint import read_card
from vidalign.model.folder import model_folder
from vidalign.types import FrameSpec, PolicyVersion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A round of a run: the policy that it exported, and what it was trained with."""

    run: str
    source: str
    policy: PolicyVersion
    frame_spec: FrameSpec
    plain_prompt: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """How a version comes in: at once (state promoted), or on trial for a `share` of the askers or as a shadow."""

    state: str
    share: float = 0.0
    bounds: Bounds = dataclasses.field(default_factory=Bounds)

    @property
    def step(self) -> str:
        """What the log calls it."""
        return self.state if self.state in ON_TRIAL else "promote"


def find_candidate(named: str) -> Candidate:
    """The policy of `RUN:round`, or of a run's last finished round. Raises `ConfigError` or `ModelError`."""
    name, colon, number = named.rpartition(":")
    if not colon or not number.isdigit():
        name, number = named, ""
    run = RunFolder.at(mirror.opened(name))
    if not run.config.is_file():
        raise ModelError(f"{name} is not a run folder (it has no config.yaml); give RUN, or RUN:ROUND as in runs/shapes:0")
    config = load_config(run.config)
    finished = [index for index in range(config.rounds) if read_card(run.stage("model", index)) is not None]
    if not finished:
        raise ModelError(f"no round of {name} has exported a model yet; run `vidalign align` or `vidalign train` first")
    index = int(number) if number else finished[-1]
    if index not in finished:
        have = ", ".join(map(str, finished))
        raise ModelError(f"round {index} of {name} has no exported model; the rounds that have one are {have}")
    folder = run.stage("model", index)
    mirror.refresh(folder, everything=True)
    model_folder(str(folder))
    card = read_card(folder)
    assert card is not None, folder
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors; export the round again with `vidalign train`")
    return Candidate(
        run=str(run.root),
        source=f"{name.rstrip('/')}:{index}",
        policy=PolicyVersion(version=card["version"], path=str(folder.absolute()), parent=card.get("parent", "")),
        frame_spec=FrameSpec.from_row(card["frame_spec"]),
        plain_prompt=card.get("plain_prompt") or config.recipe.plain_prompt,
    )


def parse_share(text: str) -> float:
    """A share as it is written: 10% or 0.1. Raises `ConfigError`."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise ConfigError(f"a share lies between 0 and 1, as in 10% or 0.1, got {text!r}")
    return share


def how_of(canary: str | None, shadow: bool, bounds: Mapping[str, Any]) -> How:
    """What the options of `vidalign promote` ask for; `bounds` are those that were given. Raises `ConfigError`."""
    if canary is not None and shadow:
        raise ConfigError("--canary answers some and --shadow nobody; leave one of them out")
    if canary is None and not shadow:
        if bounds:
            name = next(iter(bounds)).replace("_", "-")
            raise ConfigError(f"--{name} is for a version on trial; add --canary or --shadow, or leave it out")
        return How(state=PROMOTED)
    for name, value in bounds.items():
        if value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
    made = Bounds(**bounds)
    if made.min_requests > WINDOW:
        raise ConfigError(
            f"--min-requests={made.min_requests} is above {WINDOW}, the latest requests that are judged; lower it"
        )
    return How(state=SHADOW, bounds=made) if canary is None else How(state=CANARY, share=parse_share(canary), bounds=made)
