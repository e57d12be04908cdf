"""Does the objective learn from what the recipe makes, and how many tokens is one of these?"""

from __future__ import annotations

from collections.abc import Sequence

from vidalign import recipes
from vidalign.config.rounds import at
from vidalign.config.run import ObjectiveConfig, RunConfig
from vidalign.config.training import TrainConfig
from vidalign.data.reading import DataRow
from vidalign.errors import ConfigError, DataError
from vidalign.learning import objectives
from vidalign.learning.objectives.groups import GroupObjective
from vidalign.learning.pair_data import usable_pairs
from vidalign.learning.views import view_of


def check_objective(config: ObjectiveConfig, train: TrainConfig) -> None:
    """Raises `ConfigError` for an unknown objective or parameter, and for one that does not go with train.uncertainty."""
    objective = objectives.build(config.name, config.params)
    view_of(objective)
    if train.uncertainty is not None and not objective.takes_doubt:
        fitting = [name for name, kind in objectives.OBJECTIVES.items() if kind.takes_doubt]
        raise ConfigError(
            f"train.uncertainty smooths labels, which objective.name={config.name} does not have; choose one of "
            f"{', '.join(fitting)}, or set train.uncertainty to null"
        )


def check_recipe(config: RunConfig) -> None:
    """Raises `ConfigError` where the recipe makes something else than the objective learns from, or another length than it takes."""
    recipe, objective = recipes.build(config.recipe), objectives.build(config.objective.name, config.objective.params)
    if recipe.makes != objective.consumes:
        fitting = [name for name, kind in objectives.OBJECTIVES.items() if kind.consumes == recipe.makes]
        others = [name for name, kind in recipes.RECIPES.items() if kind.makes == objective.consumes]
        raise ConfigError(
            f"objective.name={config.objective.name} learns from {objective.consumes}, and recipe.name={config.recipe.name} makes "
            f"{recipe.makes}; set recipe.name to {' or '.join(others)}, or objective.name to one of {', '.join(fitting)}"
        )
    if objective.needs_values and recipe.compares:
        raise ConfigError(
            f"objective.name={config.objective.name} takes a value model in the place of rewards, and recipe.rewards has some; set "
            "recipe.rewards to {}, or choose an objective such as grpo"
        )
    if objective.consumes == "groups" and not (objective.needs_values or recipe.compares):
        raise ConfigError(
            f"objective.name={config.objective.name} compares the replies of a group by their rewards, and recipe.rewards has none; "
            "name some, such as {accuracy: 1.0}, or choose objective dvpo, which takes a value model in their place"
        )
    length = getattr(config.recipe, "max_new_tokens", None)
    if isinstance(objective, GroupObjective) and objective.normalise == "constant" and objective.max_tokens != length:
        raise ConfigError(
            f"objective.name={config.objective.name} divides by objective.params.max_tokens={objective.max_tokens:g}, which is to be "
            f"the length of the longest reply, recipe.max_new_tokens={length}; set one to the other"
        )


def check_clip_pairs(config: RunConfig) -> None:
    """Raises `ConfigError` where an objective does not learn from pairs over videos, whose two sides are one response."""
    if config.recipe.clip_pairs is None:
        return
    objective = objectives.build(config.objective.name, config.objective.params)
    why = "learns from the chosen side alone" if not objective.needs_rejected else ""
    if objective.needs_phrases:
        why = "learns from the words in which two responses differ"
    if why:
        raise ConfigError(
            f"recipe.clip_pairs makes pairs of one response with two clips, and objective.name={config.objective.name} {why}; choose "
            "an objective such as dpo, or set recipe.clip_pairs to null"
        )


def check_clips(config: RunConfig, rows: Sequence[DataRow]) -> None:
    """Raises `DataError` where other clips are needed and no row has one, or pairs over videos where no row has a video."""
    wanted, others = config.recipe.clip_pairs, any(row.example.rejected_video for row in rows)
    none = f"and none of the {len(rows):,} rows of {config.data.train} names one; add them, or set"
    if recipes.build(config.recipe).needs_other_clip and not others:
        raise DataError(
            f"recipe.shows=rejected_video shows the clips that rows name as rejected_video, {none} recipe.shows to perturbed"
        )
    if wanted is None:
        return
    if wanted.of_rows and not others:
        raise DataError(
            f"recipe.clip_pairs.of_rows=true takes the clips that rows name as rejected_video, {none} perturb or augment instead"
        )
    if not any(row.example.context.videos for row in rows):
        raise DataError(
            f"recipe.clip_pairs makes pairs over videos, and the {len(rows):,} rows of {config.data.train} show images alone; set it "
            "to null, or add rows with videos"
        )


def check_prompts(config: RunConfig, num_rows: int) -> None:
    """Raises `ConfigError` where a round is to ask more prompts than there are, or to refill groups that training takes anyway."""
    recipe, objective = recipes.build(config.recipe), objectives.build(config.objective.name, config.objective.params)
    if recipe.num_prompts is not None and recipe.num_prompts > num_rows:
        raise ConfigError(
            f"recipe.num_prompts={recipe.num_prompts}, but data.train has {num_rows:,} rows; set it to at most that, or to null"
        )
    if recipe.refills and isinstance(objective, GroupObjective) and not objective.drop_uniform:
        raise ConfigError(
            "recipe.refill=true asks further prompts in place of groups that are all alike, and "
            f"objective.name={config.objective.name} trains on those too; set objective.params.drop_uniform to true, or "
            "recipe.refill to false"
        )


def check_reuse(config: RunConfig) -> None:
    """Raises `ConfigError` for a round that takes the responses of groups where no round of groups is just before it."""
    kinds = [recipes.build(at(config, index).recipe) for index in range(config.rounds)]
    for index, recipe in enumerate(kinds):
        if recipe.reuses_groups and (index == 0 or kinds[index - 1].makes != "groups"):
            raise ConfigError(
                f"recipe.name={recipe.config.name} makes pairs of the round before's groups, and before round {index} there are none; "
                "write rounds as a list of steps, such as [{recipe: {name: group}, objective: {name: grpo}}, {recipe: {name: "
                f"{recipe.config.name}, …}}, objective: {{name: dpo}}}}]"
            )


def check_given(config: RunConfig, rows: Sequence[DataRow]) -> None:
    """Raises `DataError` where the data is to hold the pairs and the objective can be trained on none of them."""
    recipe = recipes.build(config.recipe)
    pairs = recipe.given(rows)
    if recipe.asks_policy or not pairs:
        return
    if config.recipe.clip_pairs is not None:
        return  # of any pair, and of an answer alone, it makes one
    usable, dropped = usable_pairs(pairs, objectives.build(config.objective.name, config.objective.params))
    if not usable:
        raise DataError(
            f"objective.name={config.objective.name} can train on none of the {len(pairs):,} rows of {config.data.train} ({dropped}); "
            "it needs rows with chosen and rejected that differ; add them, or set objective.name to sft"
        )


def forward_tokens(config: RunConfig, length: int, *, packed: bool) -> int:
    """Tokens of a forward pass of training. `length`: of the longest prompt with one reply.

    A group may be longer than `train.tokens_per_micro_batch`, and then goes alone.
    """
    train, budget = config.train, config.train.tokens_per_micro_batch
    if recipes.build(config.recipe).makes == "pairs":
        if config.recipe.clip_pairs is not None:  # each has two prompts
            return max(budget, 2 * length) if budget else train.micro_batch_size * 2 * length
        return budget or train.micro_batch_size * length * (1 if packed else 2)
    others = getattr(config.recipe, "num_candidates", 1) - 1
    group = length + others * (getattr(config.recipe, "max_new_tokens", 0) if packed else length)
    return max(budget, group) if budget else train.micro_batch_size * group
