"""From scored responses to one preference pair per example. Every example without a pair is counted by its reason.

The rule is the recipe's (`Recipe.pair`). Here are the loop over the examples and what all pairs have: marks of the characters in
which their two sides differ (`vidalign.recipes.phrases`), win rates from the scores of all candidates, a content hash as id, and
provenance.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from vidalign.data.answers import overlap_is_unclear, verdict
from vidalign.data.reading import DataRow
from vidalign.recipes.base import Evidence, Recipe, Replays, responses_by_example, scores_by_example
from vidalign.recipes.kinds import is_cut, kind_of, spells_special_token
from vidalign.recipes.phrases import differing_marks
from vidalign.special_tokens import KNOWN_ONLY
from vidalign.statistics import win_rates
from vidalign.types import Example, Judgement, PreferencePair, Response, stable_hash


def make_pairs(
    rows: Sequence[DataRow],
    responses: Sequence[Response],
    recipe: Recipe[Any],
    judgements: Sequence[Judgement] = (),
    *,
    decoded: Collection[str],
    replays: Replays | None = None,
    seed: int = 0,
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Pair the responses to each example. Returns the pairs, in the rows' order, and the number of examples dropped by reason.

    A recipe that makes several pairs of an example may lose one of them and keep the others; each lost one is counted.

    A response in which the policy spelled out a special token is left out; an example that then has no pair counts as "special_token".

    Args:
        decoded: the videos and images that could be decoded; examples with others are counted as "video_quarantined".
        replays: responses of earlier rounds that compete with this round's.
        seed: for the draws among replayed responses.
    """
    replays = replays or Replays()
    by_example = responses_by_example([*responses, *replays.responses])
    scores = scores_by_example(judgements)
    pairs: list[PreferencePair] = []
    dropped: collections.Counter[str] = collections.Counter()
    for row in rows:
        example = row.example
        if not all(name in decoded for name in example.context.visuals):
            dropped["video_quarantined"] += 1
            continue
        evidence = Evidence(judgements=scores.get(example.id, {}), times_drawn=replays.times_drawn, seed=seed)
        made = by_example.get(example.id, [])
        plain = [r for r in made if not spells_special_token(r)]
        candidates = recipe.trusted(plain, evidence.judgements)
        outcome = recipe.pairs(row, candidates, evidence)
        if isinstance(outcome, str):
            dropped["special_token" if len(plain) < len(made) else outcome] += 1
            continue
        for pair in outcome:
            if KNOWN_ONLY.found(f"{pair.chosen}\n{pair.rejected}"):  # a judge may write some
                dropped["special_token"] += 1
            elif _holds_cut_text(pair, candidates, recipe):
                dropped["cut_by_length"] += 1
            else:
                pairs.append(_with_win_rates(pair, candidates, recipe, evidence))
    return pairs, dict(dropped)


def _with_win_rates(
    pair: PreferencePair, candidates: Sequence[Response], recipe: Recipe[Any], evidence: Evidence
) -> PreferencePair:
    """The pair with the win rates of its sides against all scored responses to its prompt; unchanged where a side has no score."""
    answers = [r for r in candidates if kind_of(r.kind, recipe.kinds).side and not is_cut(r, recipe.kinds)]
    scored = [(r.text.strip(), score) for r in answers if not math.isnan(score := recipe.score(r, evidence))]
    rates = dict(zip((text for text, _ in scored), win_rates([score for _, score in scored]), strict=True))
    if pair.chosen not in rates or pair.rejected not in rates:
        return pair
    return dataclasses.replace(pair, chosen_win_rate=rates[pair.chosen], rejected_win_rate=rates[pair.rejected])


def _holds_cut_text(pair: PreferencePair, candidates: Sequence[Response], recipe: Recipe[Any]) -> bool:
    """Whether a side of a pair is a response that was cut off, whatever the recipe's rule."""
    cut = {r.text.strip() for r in candidates if is_cut(r, recipe.kinds)}
    whole = {r.text.strip() for r in candidates if not is_cut(r, recipe.kinds)}
    return not {pair.chosen, pair.rejected}.isdisjoint(cut - whole)


def why_no_preference(
    chosen: Response, rejected: Response, example: Example, min_trust_gap: float, scorer: str | None = None
) -> str | None:
    """Why trust does not prefer one response to the other; None where it does.

    identical_responses. no_trust_gap: trusts closer than `min_trust_gap`. all_wrong: even the trusted one is known to be wrong.
    trust_unclear: it may be that the other response is the better one. By rules (`scorer` None) that is so unless the chosen one
    is known to be right or the rejected one to be wrong; overlap of words ("f1") does not tell two responses apart that differ in
    length or form more than in what they say. What a judge or a scorer of your own says is taken as it is.
    """
    if chosen.text.strip() == rejected.text.strip():
        return "identical_responses"
    if chosen.trust - rejected.trust < min_trust_gap:
        return "no_trust_gap"
    if chosen.trust == 1.0:
        return None
    if scorer not in (None, "f1"):
        return "all_wrong" if chosen.trust < 0.5 else None
    if verdict(chosen.text, example) is False:
        return "all_wrong"
    if scorer is None:
        return None if is_known_wrong(rejected, example) else "trust_unclear"
    return "trust_unclear" if overlap_is_unclear(chosen.text, rejected.text, example) else None


def is_known_wrong(response: Response, example: Example) -> bool:
    """Whether a rule says that a response is wrong; that none says it is right does not make it so."""
    return verdict(response.text, example) is False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a pair and where it came from."""

    text: str
    reward: float
    trust: float
    source: dict[str, Any]


def side(response: Response, **more: Any) -> Side:
    """A response as a side of a pair; `more` goes into its provenance."""
    source = {
        "kind": response.kind,
        "candidate": response.candidate,
        "turn": response.turn,
        "seed": response.seed,
        "policy_version": response.policy_version,
    }
    return Side(text=response.text.strip(), reward=response.reward, trust=response.trust, source={**source, **more})


def build_pair(
    example: Example, chosen: Side, rejected: Side, *, recipe: str, rule: str, policy_version: str = ""
) -> PreferencePair:
    """The pair of two sides, with its marks, its content hash as id, and its provenance."""
    marks = differing_marks(chosen.text, rejected.text)
    return PreferencePair(
        id=stable_hash([example.id, chosen.text, rejected.text]),
        example_id=example.id,
        **example.context_fields(),
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
