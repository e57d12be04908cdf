"""May rounds learn from older responses, and do the two stages that are at work at once fit beside each other?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, TypeVar

from cluster.resources import ResourcePlan, Workers, count
from pipelines.value_rounds import trains
from vidalign import recipes
from vidalign.config.rounds import at
from vidalign.config.run import RunConfig
from vidalign.errors import ClusterError, ConfigError


class Holding(Protocol):
    """A phase of a run (`pipelines.checks.memory.Phase`)."""

    @property
    def name(self) -> str: ...
    @property
    def needed(self) -> int: ...
    @property
    def uses_gpu(self) -> bool: ...


PhaseT = TypeVar("PhaseT", bound=Holding)


def check_staleness(config: RunConfig) -> None:
    """Raises `ConfigError` where a recipe learns from older responses than max_staleness allows, or an overlap has no work
    or no room of its own.
    """
    allowed, kinds = config.staleness, [recipes.build(at(config, index).recipe) for index in range(config.rounds)]
    way_out = f"max_staleness={allowed} lets none be older; set max_staleness to 0 and cluster.overlap to false"
    for index, recipe in enumerate(kinds) if allowed else ():
        name = recipe.config.name
        if recipe.keeps_replays:
            raise ConfigError(
                f"recipe.name={name} with recipe.negatives={getattr(recipe.config, 'negatives', None)} learns from what all earlier "
                f"rounds replayed, and {way_out}, or recipe.negatives to augmented"
            )
        if trains(config, index) == "value":
            raise ConfigError(
                f"objective.name=value trains no policy in round {index}, and max_staleness={allowed} counts the age of responses in "
                "policies; set max_staleness to 0 and cluster.overlap to false"
            )
        if recipe.reuses_groups:
            raise ConfigError(f"recipe.name={name} learns in round {index} from what earlier rounds sampled, and {way_out}")
    if config.cluster.overlap and not any(recipe.asks_policy for recipe in kinds[1:]):
        raise ConfigError(
            "cluster.overlap=true makes the responses of the next round while this one trains, and recipe.name="
            f"{kinds[0].config.name} makes none; set cluster.overlap to false"
        )
    if config.cluster.overlap and config.train.is_elastic:
        fewest, most = config.train.fewest_workers, config.train.most_workers
        raise ConfigError(
            f"train.num_workers=[{fewest}, {most}] takes the room that it finds, and with cluster.overlap=true engines need theirs "
            f"beside it; set train.num_workers to {most}, or cluster.overlap to false"
        )


def check_judges_fit(steps: Sequence[RunConfig], made: ResourcePlan) -> None:
    """Raises `ClusterError` where a judge's model needs more GPUs than a training beside it leaves."""
    for step in steps if made.overlap and made.engines.gpus else ():
        judge = recipes.build(step.recipe).judge
        if judge is not None and judge.kind == "vllm" and judge.num_gpus > made.engines.total_gpus:
            raise ClusterError(
                f"recipe.judge.num_gpus={judge.num_gpus}, but beside training (cluster.overlap) engines have "
                f"{made.engines.total_gpus:g} GPUs; lower train.num_workers, add GPU nodes, or set cluster.overlap to false"
            )


def overlap_lines(config: RunConfig, made: ResourcePlan) -> list[str]:
    """What a dry run says of stages that are at work at once, and of how old what is learned from may be."""
    age = config.staleness
    if not age:
        return []
    said = f"responses are of a policy that is {count(age, 'round')} old (max_staleness={age})"
    if not made.overlap:
        return [f"staleness: {said}; nothing overlaps (cluster.overlap=false)"]
    share = f"{_share(made.decoders, made.engines)} for responses, {_share(made.train)} for training"
    return [f"overlap: responses of the next round are made beside training, {share}; {said}"]


def _share(*groups: Workers) -> str:
    cpus, gpus = (sum(getattr(each, name) for each in groups) for name in ("total_cpus", "total_gpus"))
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def at_once(phases: Sequence[PhaseT]) -> list[PhaseT]:
    """What responding and training hold together of the machine's memory, where both compute on its CPUs; GPUs are apart anyway."""
    training = [phase for phase in phases if phase.name in ("reference", "training") and not phase.uses_gpu]
    beside = [phase for phase in phases if phase.name in ("rollout", "judge") and not phase.uses_gpu]
    if not (training and beside):
        return []
    most, other = (max(group, key=lambda phase: phase.needed) for group in (training, beside))
    changed = {
        "name": f"{other.name} beside {most.name}",
        "needed": most.needed + other.needed,
        "what": "both at once",
        "ways_out": ("set cluster.overlap to false",),
    }
    return [dataclasses.replace(most, **changed)]  # type: ignore[type-var]
