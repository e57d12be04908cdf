"""Which prompts a round asks: all of them, the next few, or as many as it takes until enough of them give something to learn from.

The last is DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): prompts whose replies all have the same reward are passed over,
and further ones are asked. A round ends with the prompt that filled it, so its responses depend on neither how many were asked at a
time nor on where a killed run went on.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np

from pipelines.stages.groups import sampled_tokens, without_spelled
from pipelines.stages.responses import read_response_table
from vidalign import files
from vidalign.data.source import GROUPS_FILE
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.recipes.base import Recipe, responses_by_example
from vidalign.types import Example, ResponseGroup, stable_hash

ASKED = "asked.json"  # of a round's responses, where the recipe takes the next prompts each round
MORE = 1.1  # of what the share so far needs, so that the next turn rarely misses by one
ItemT = TypeVar("ItemT")


def in_turn(items: Sequence[ItemT], seed: int, start: int) -> list[ItemT]:
    """All items, each once, in an order that the seed decides, from place `start` of it on and then from its beginning."""
    order = np.roll(np.random.default_rng(seed).permutation(len(items)), -(start % len(items)) if items else 0)
    return [items[place] for place in order]


def left_to_ask(
    examples: Sequence[Example], recipe: Recipe[Any], *, seed: int, start: int, solved: Collection[str]
) -> tuple[list[Example], list[int]]:
    """The examples that a round may ask, in its order, and the place of each in that of all; without a share of those that are solved.

    Which of the solved ones are passed over depends on the seed and the example alone. A recipe that takes all rows keeps their order.
    """
    ordered = list(examples) if recipe.num_prompts is None else in_turn(examples, seed, start)
    left = [
        (place, example)
        for place, example in enumerate(ordered, start)
        if not (example.id in solved and passed_over(seed, example.id, recipe.drop_solved))
    ]
    if not left:
        raise DataError(
            f"all {len(ordered):,} prompts were solved by earlier rounds, and recipe.drop_solved={recipe.drop_solved:g} passes over "
            "all of them; lower it, take harder questions, or end the run with fewer rounds"
        )
    if recipe.num_prompts is not None and not recipe.refills:
        left = left[: recipe.num_prompts]
    return [example for _, example in left], [place for place, _ in left]


def passed_over(seed: int, example_id: str, share: float) -> bool:
    """Whether a solved example is among the share that is not asked any more."""
    return int(stable_hash([seed, example_id, "solved"], 8), 16) < share * 16**8


def solved_before(run: RunFolder, index: int) -> frozenset[str]:
    """The examples all of whose replies were right in the last round before this one that asked them."""
    last: dict[str, bool] = {}
    for earlier in range(index):
        path = run.stage("pairs", earlier) / GROUPS_FILE
        for group in files.read_table(path, ResponseGroup) if path.is_file() else ():
            right = json.loads(group.parts).get("accuracy", [])
            told = [value for value, why in zip(right, group.left_out, strict=True) if not why] if right else [None]
            last[group.example_id] = all(value is not None and value >= 1 for value in told)
    return frozenset(name for name, is_solved in last.items() if is_solved)


def place_before(run: RunFolder, index: int) -> int:
    """The place in the order at which the prompts of a round begin: where the last round before it that took some stopped."""
    for earlier in range(index - 1, -1, -1):
        path = run.stage("responses", earlier) / ASKED
        if path.is_file():
            return int(files.read_object(path)["next"])
    return 0


def asked_ids(folder: pathlib.Path) -> list[str] | None:
    """The examples that a finished rollout asked about, in order; None where it took all rows as they are."""
    path = folder / ASKED
    return [str(name) for name in files.read_object(path)["examples"]] if path.is_file() else None


def fill(
    wanted: int,
    total: int,
    size: int,
    *,
    ask: Callable[[int], None],
    found: Callable[[int], Sequence[bool]],
) -> int:
    """Ask prompts, from the first of `total` on, until `wanted` give something to learn from. Returns how many it took, or all.

    Args:
        size: prompts of a chunk; whole chunks are asked. ask: asks the first so many. found: which of the first so many give
            something.
    """
    asked = min(total, _whole(wanted, size))
    while True:
        ask(asked)
        given = np.flatnonzero(found(asked))
        if len(given) >= wanted:
            return int(given[wanted - 1]) + 1
        if asked == total:
            return total
        share = max(len(given), 1) / asked
        missing = (wanted - len(given)) / share * MORE
        asked = min(total, _whole(asked + min(missing, asked * 2), size))


def _whole(count: float, size: int) -> int:
    return int(-(-count // size)) * size


def giving(part: pathlib.Path, examples: Sequence[Example], recipe: Recipe[Any], special: frozenset[int]) -> list[bool]:
    """Of each example of a part of a rollout, whether its responses give something to learn from."""
    table = part.with_suffix(".parquet")
    _, spelled = sampled_tokens(table, special)
    made = responses_by_example(without_spelled(read_response_table(table, tokens=recipe.needs_tokens), spelled))
    return [recipe.gives(example, made.get(example.id, [])) for example in examples]


def shortfall(num_given: int, wanted: int, total: int) -> str | None:
    """A sentence where all prompts were asked and fewer than wanted give something. Raises `DataError` where none does."""
    if num_given >= wanted:
        return None
    if not num_given:
        raise DataError(
            f"the replies to each of the {total:,} prompts got equal rewards, so there is nothing to compare; take harder or easier "
            "questions, raise recipe.num_candidates, or add a reward that tells replies apart"
        )
    return (
        f"only {num_given:,} of {total:,} prompts have replies with different rewards, and recipe.num_prompts={wanted} asks for more; "
        "the round is trained on those"
    )
