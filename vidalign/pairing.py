"""From scored responses to one preference pair an example, by a named rule.

Rules:
    best_vs_worst         chosen = highest trust x exp(reward) among hinted and reflected responses; rejected = lowest trust
                          among augmented ones, ties to the response that the policy finds likelier (the error it would
                          really make). Ours.
    hinted_vs_augmented   chosen = last turn of candidate 0; rejected = augmented candidate 0. The rule of LeanPO's authors
                          (arXiv 2506.05260), who sample one response a side.

Both drop an example, with a counted reason, when the two sides are equal, when trust does not prefer the chosen side by
`min_trust_gap`, or when a side is empty.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Sequence

from vidalign.config import RecipeConfig
from vidalign.types import Example, PreferencePair, Response, stable_hash

CHOSEN_KINDS = ("hinted", "reflected")
REJECTED_KINDS = ("augmented", "plain")


def make_pairs(
    examples: Sequence[Example], responses: Sequence[Response], recipe: RecipeConfig
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Pair the responses of each example. Returns the pairs, in the examples' order, and dropped examples by reason."""
    by_example: dict[str, list[Response]] = collections.defaultdict(list)
    for response in responses:
        by_example[response.example_id].append(response)
    pairs: list[PreferencePair] = []
    dropped: collections.Counter[str] = collections.Counter()
    for example in examples:
        if example.id not in by_example:
            dropped["video_quarantined"] += 1
            continue
        outcome = pair_example(example, by_example[example.id], recipe)
        if isinstance(outcome, str):
            dropped[outcome] += 1
        else:
            pairs.append(outcome)
    return pairs, dict(dropped)


def pair_example(example: Example, responses: Sequence[Response], recipe: RecipeConfig) -> PreferencePair | str:
    """One pair, or the reason why there is none: empty_response, identical_responses, no_trust_gap."""
    winners = [r for r in responses if r.kind in CHOSEN_KINDS and r.text.strip()]
    losers = [r for r in responses if r.kind in REJECTED_KINDS and r.text.strip()]
    if not winners or not losers:
        return "empty_response"
    if recipe.pair_rule == "hinted_vs_augmented":
        last_turn = max(r.turn for r in winners)
        chosen = min((r for r in winners if r.turn == last_turn), key=lambda r: r.candidate)
        rejected = min(losers, key=lambda r: r.candidate)
    else:
        chosen = max(winners, key=lambda r: (r.trust * math.exp(r.reward), r.turn, -r.candidate))
        rejected = min(losers, key=lambda r: (r.trust, -r.reward, r.candidate))
    if chosen.text.strip() == rejected.text.strip():
        return "identical_responses"
    if chosen.trust - rejected.trust < recipe.min_trust_gap:
        return "no_trust_gap"
    return PreferencePair(
        id=stable_hash([example.id, chosen.text, rejected.text]),
        example_id=example.id,
        video=example.video,
        question=example.question,
        answer=example.answer,
        category=example.category,
        chosen=chosen.text.strip(),
        rejected=rejected.text.strip(),
        chosen_reward=chosen.reward,
        rejected_reward=rejected.reward,
        chosen_trust=chosen.trust,
        rejected_trust=rejected.trust,
        provenance=json.dumps(
            {
                "recipe": recipe.name,
                "rule": recipe.pair_rule,
                "policy_version": chosen.policy_version,
                "chosen": {"kind": chosen.kind, "candidate": chosen.candidate, "turn": chosen.turn, "seed": chosen.seed},
                "rejected": {"kind": rejected.kind, "candidate": rejected.candidate, "seed": rejected.seed},
            }
        ),
    )
