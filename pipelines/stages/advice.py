"""What a run says where few pairs are left, and the ways out that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidalign.config.recipe import RecipeSection
from vidalign.recipes.base import Recipe
from vidalign.recipes.critic import UNREADABLE
from vidalign.recipes.kinds import is_cut, kind_of
from vidalign.types import Response

MAX_CUT_SHARE = 0.05
MAX_UNCLEAR_SHARE = 0.2
NO_CLIP_PAIRS = (
    "set recipe.clip_pairs to a change that shows, such as a mask; of_rows takes what rows name as rejected_video"
)
NO_PAIRS = (
    "raise recipe.num_candidates or the temperature, loosen the recipe's pair rule, or look at the responses of this run"
)
UNCLEAR = {  # why an example gave no pair because nothing is known of its replies: what is said of it, and the ways out
    "trust_unclear": (
        "no rule can tell which of their replies are right",
        "set recipe.trust=judge with recipe.judge for a model that can, or recipe.trust=f1 to go by the overlap of words",
    ),
    UNREADABLE: (
        "the critic's reports on their answers cannot be read",
        "set recipe.judge to a model that writes the five numbers, recipe.report_prompt to words that the critic follows, or raise "
        "recipe.report_tokens where its reports were cut off",
    ),
    "not_judged": (
        "the judge gave none of their replies a score that can be read",
        "set recipe.judge to another model, or recipe.judge.prompt to words that it follows",
    ),
}


def unclear_warning(dropped: Mapping[str, int], num_examples: int) -> str | None:
    """A sentence with the ways out where more than `MAX_UNCLEAR_SHARE` of the examples gave no pair because nobody could tell.

    Of several reasons for that, the most frequent one.
    """
    reason = max(UNCLEAR, key=lambda name: dropped.get(name, 0))
    count = dropped.get(reason, 0)
    if count <= MAX_UNCLEAR_SHARE * num_examples:
        return None
    why, ways_out = UNCLEAR[reason]
    return f"{count:,} of {num_examples:,} examples gave no pair because {why}; {ways_out}"


def cut_facts(responses: Sequence[Response], recipe: Recipe[Any]) -> dict[str, Any]:
    """How many of the replies that the policy sampled were cut off, for the manifest; nothing where none was."""
    sampled = [r for r in responses if r.finish_reason and (kind := kind_of(r.kind, recipe.kinds)).side and not kind.limited]
    cut = sum(is_cut(r, recipe.kinds) for r in sampled)
    return {"cut_by_length": {"cut": cut, "sampled": len(sampled)}} if cut else {}


def cut_warning(facts: Mapping[str, Any], config: RecipeSection) -> str | None:
    """A sentence with the way out where more than `MAX_CUT_SHARE` of the replies were cut off."""
    counts = facts.get("cut_by_length")
    learned = "overlong" in getattr(config, "rewards", ())
    if learned or not counts or counts["cut"] <= MAX_CUT_SHARE * counts["sampled"]:
        return None
    share, limit = counts["cut"] / counts["sampled"], getattr(config, "max_new_tokens", None)
    return (
        f"{counts['cut']:,} of {counts['sampled']:,} replies ({share:.0%}) were cut off at recipe.max_new_tokens={limit} and are "
        "not learned from; raise recipe.max_new_tokens, or ask for shorter answers in the recipe's prompts"
    )
