"""The configuration of each round of a run: what the rounds change in turn, such as groups, then pairs of them, then groups again.

    rounds: 3                                   three rounds of one configuration
    rounds:                                     the same sections, changed by each step for as many rounds as it repeats
      - {repeat: 2, objective: {name: grpo}}
      - {recipe: {name: leanpo}, objective: {name: dpo}, train: {learning_rate: 1e-5}}

A step's section is merged into the run's, option by option; a recipe or an objective of another name takes its place, with the run's
prompts.
"""

from __future__ import annotations

from typing import Any

from vidalign.config.loading import parse_config
from vidalign.config.run import RunConfig
from vidalign.config.steps import StepConfig
from vidalign.errors import ConfigError

OF_THE_RUN = {"recipe": ("plain_prompt", "options_prompt", "options_style"), "train": ("num_workers", "use_gpu")}


def at(config: RunConfig, index: int) -> RunConfig:
    """The configuration of one round, without steps. Raises `ConfigError` where its step does not fit the run."""
    if not config.steps:
        return config
    numbers = [number for number, step in enumerate(config.steps) for _ in range(step.repeat)]
    number = numbers[min(index, len(numbers) - 1)]  # a folder may hold more rounds than its configuration has now
    return _changed(config, config.steps[number], f"rounds[{number}]")


def variants(config: RunConfig) -> list[RunConfig]:
    """The configuration of each step, in order; of a run without steps, its own. Raises as `at` does."""
    if not config.steps:
        return [config]
    return [_changed(config, step, f"rounds[{number}]") for number, step in enumerate(config.steps)]


def _changed(config: RunConfig, step: StepConfig, where: str) -> RunConfig:
    raw: dict[str, Any] = config.model_dump(mode="json") | {"steps": []}
    for section in ("recipe", "objective", "train"):
        change, before = getattr(step, section), raw[section]
        if change is None:
            continue
        for option in OF_THE_RUN.get(section, ()):
            if option in change and change[option] != before.get(option):
                raise ConfigError(
                    f"{where}.{section}.{option}={change[option]!r}: all rounds of a run have one {section}.{option}, here "
                    f"{before.get(option)!r}; set {section}.{option} of the run, or leave it out of the step"
                )
        shared = {option: before[option] for option in OF_THE_RUN.get(section, ()) if option in before}
        same = change.get("name", before.get("name")) == before.get("name")
        raw[section] = {**(before if same else shared), **change}
    return parse_config(raw, source=where)
