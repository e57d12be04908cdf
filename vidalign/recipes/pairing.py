"""From scored responses to one preference pair an example, by a named rule. Every example without a pair is counted.

leanpo, best_vs_worst         chosen = highest trust x exp(reward) among hinted and reflected responses; rejected = lowest
                              trust among augmented ones, ties to the response that the policy finds likelier (the error
                              it would really make). Ours.
leanpo, hinted_vs_augmented   chosen = last turn of candidate 0; rejected = augmented candidate 0. The rule of LeanPO's
                              authors (arXiv 2506.05260), who sample one response a side.
rrpo                          chosen = the ground truth; rejected = the wrong reply to the perturbed video that the policy
                              finds likeliest, or its rewrite of the ground truth with just those errors (arXiv 2504.12083).
hound                         chosen = best, rejected = worst score of a judge, on both sides of a threshold and a gap apart;
                              ties to the likelier response (arXiv 2404.01258).

Every pair carries marks: the characters in which its two sides differ (`vidalign.recipes.phrases`).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidalign.config.recipes import HoundRecipe, LeanpoRecipe, RecipeConfig, RrpoRecipe
from vidalign.recipes import phrases, replay
from vidalign.types import Example, Judgement, PreferencePair, Response, stable_hash

CHOSEN_KINDS = ("hinted", "unhinted", "reflected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a pair and where it came from."""

    text: str
    reward: float
    trust: float
    source: dict[str, Any]


def make_pairs(
    examples: Sequence[Example],
    responses: Sequence[Response],
    recipe: RecipeConfig,
    judgements: Sequence[Judgement] = (),
    *,
    times_drawn: Mapping[tuple[str, str], int] | None = None,
    seed: int = 0,
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Pair the responses of each example. Returns the pairs, in the examples' order, and dropped examples by reason.

    Args:
        times_drawn: how often a replayed response, by (example id, text), was the rejected side of earlier rounds.
        seed: for the draw among replayed responses.
    """
    by_example = responses_by_example(responses)
    scores = scores_by_example(judgements)
    pairs: list[PreferencePair] = []
    dropped: collections.Counter[str] = collections.Counter()
    for example in examples:
        own = by_example.get(example.id)
        if own is None:
            dropped["video_quarantined"] += 1
            continue
        match recipe:
            case LeanpoRecipe():
                outcome = pair_leanpo(example, own, recipe, times_drawn or {}, seed)
            case RrpoRecipe():
                outcome = pair_rrpo(example, own, recipe, scores.get(example.id, {}))
            case HoundRecipe():
                outcome = pair_hound(example, own, recipe, scores.get(example.id, {}))
            case _:
                raise AssertionError(f"{recipe.name} makes no pairs from responses")
        if isinstance(outcome, str):
            dropped[outcome] += 1
        else:
            pairs.append(outcome)
    return pairs, dict(dropped)


def pair_leanpo(
    example: Example,
    responses: Sequence[Response],
    recipe: LeanpoRecipe,
    times_drawn: Mapping[tuple[str, str], int] | None = None,
    seed: int = 0,
) -> PreferencePair | str:
    """One pair, or the reason why there is none: empty_response, identical_responses, no_trust_gap."""
    winners = [r for r in responses if r.kind in CHOSEN_KINDS and r.text.strip()]
    losers = [r for r in responses if r.kind == "augmented" and r.text.strip()]
    replayed = [r for r in responses if r.kind == "replayed" and r.text.strip() and r.trust < 1]
    if replayed:
        rng = np.random.default_rng(int(stable_hash([seed, example.id, "replay"], 8), 16))
        losers.append(replay.draw(replayed, times_drawn or {}, rng))
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
    return build_pair(example, _side(chosen), _side(rejected), recipe=recipe.name, rule=recipe.pair_rule)


def responses_by_example(responses: Sequence[Response]) -> dict[str, list[Response]]:
    """{example id: its responses, in order}"""
    by_example: dict[str, list[Response]] = collections.defaultdict(list)
    for response in responses:
        by_example[response.example_id].append(response)
    return by_example


def scores_by_example(judgements: Sequence[Judgement]) -> dict[str, dict[str, Judgement]]:
    """{example id: {response text: its judgement}}"""
    scores: dict[str, dict[str, Judgement]] = collections.defaultdict(dict)
    for judgement in judgements:
        scores[judgement.example_id][judgement.response] = judgement
    return scores


def pair_rrpo(
    example: Example,
    responses: Sequence[Response],
    recipe: RrpoRecipe,
    judgements: Mapping[str, Judgement] | None = None,
) -> PreferencePair | str:
    """One pair, or why there is none: no_wrong_reply, no_rewrite, rewrite_differs_elsewhere, no_key_phrase."""
    wrong = likeliest_wrong(responses, recipe, judgements)
    if wrong is None:
        return "no_wrong_reply"
    rejected = _side(wrong)
    if recipe.rewrite != "none":
        rewritten = next((r for r in responses if r.kind == "rewritten" and r.candidate == wrong.candidate), None)
        listed = next((r for r in responses if r.kind == "differences" and r.candidate == wrong.candidate), None)
        if rewritten is None or listed is None or not rewritten.text.strip():
            return "no_rewrite"
        if not phrases.differs_only_in(example.answer, rewritten.text, phrases.parse_differences(listed.text)):
            return "rewrite_differs_elsewhere"
        rejected = dataclasses.replace(
            _side(rewritten), source={**_side(rewritten).source, "wrong_reply": wrong.text.strip()}
        )
    if not any(phrases.differing_marks(example.answer.strip(), rejected.text)):
        return "no_key_phrase"
    truth = next((r for r in responses if r.kind == "truth"), None)
    chosen = Side(
        text=example.answer.strip(), reward=truth.reward if truth else math.nan, trust=1.0, source={"kind": "truth"}
    )
    return build_pair(
        example, chosen, rejected, recipe=recipe.name, rule=f"rewrite={recipe.rewrite}", policy_version=wrong.policy_version
    )


def likeliest_wrong(
    responses: Sequence[Response], recipe: RrpoRecipe, judgements: Mapping[str, Judgement] | None = None
) -> Response | None:
    """The wrong reply to the perturbed video that the policy finds likeliest given the clean one; None if all are right.

    With `wrong_by: judge` a reply without a judgement is not wrong: it is not known to be.
    """

    def is_wrong(response: Response) -> bool:
        if recipe.wrong_by == "trust":
            return response.trust <= recipe.max_trust
        judgement = (judgements or {}).get(response.text.strip())
        return judgement is not None and judgement.score < recipe.threshold

    wrong = [r for r in responses if r.kind == "perturbed" and r.text.strip() and is_wrong(r)]
    return max(wrong, key=lambda r: (r.reward, -r.candidate), default=None)


def pair_hound(
    example: Example, responses: Sequence[Response], recipe: HoundRecipe, judgements: dict[str, Judgement]
) -> PreferencePair | str:
    """One pair, or why there is none: not_judged, all_good, all_bad, no_score_gap."""
    scored = [(r, judgements[r.text.strip()]) for r in responses if r.kind == "plain" and r.text.strip() in judgements]
    good = [(r, j) for r, j in scored if j.score >= recipe.threshold]
    bad = [(r, j) for r, j in scored if j.score < recipe.threshold]
    if not scored:
        return "not_judged"
    if not good or not bad:
        return "all_bad" if bad else "all_good"
    chosen, praised = max(good, key=lambda item: (item[1].score, item[0].reward, -item[0].candidate))
    rejected, blamed = min(bad, key=lambda item: (item[1].score, -item[0].reward, item[0].candidate))
    if praised.score - blamed.score < recipe.min_score_gap:
        return "no_score_gap"
    sides = [
        dataclasses.replace(
            _side(response),
            source={
                **_side(response).source,
                "score": judgement.score,
                "explanation": judgement.explanation,
                "judge": judgement.judge,
            },
        )
        for response, judgement in ((chosen, praised), (rejected, blamed))
    ]
    return build_pair(example, *sides, recipe=recipe.name, rule=f"threshold={recipe.threshold:g}")


def build_pair(
    example: Example, chosen: Side, rejected: Side, *, recipe: str, rule: str, policy_version: str = ""
) -> PreferencePair:
    """The pair with its marks, its content hash as id, and its provenance."""
    marks = phrases.differing_marks(chosen.text, rejected.text)
    return PreferencePair(
        id=stable_hash([example.id, chosen.text, rejected.text]),
        example_id=example.id,
        video=example.video,
        question=example.question,
        answer=example.answer,
        category=example.category,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_marks=marks[0],
        rejected_marks=marks[1],
        chosen_reward=chosen.reward,
        rejected_reward=rejected.reward,
        chosen_trust=chosen.trust,
        rejected_trust=rejected.trust,
        provenance=json.dumps(
            {
                "recipe": recipe,
                "rule": rule,
                "policy_version": policy_version or chosen.source.get("policy_version", ""),
                "chosen": chosen.source,
                "rejected": rejected.source,
            },
            ensure_ascii=False,
        ),
    )


def _side(response: Response) -> Side:
    return Side(
        text=response.text.strip(),
        reward=response.reward,
        trust=response.trust,
        source={
            "kind": response.kind,
            "candidate": response.candidate,
            "turn": response.turn,
            "seed": response.seed,
            "policy_version": response.policy_version,
        },
    )
