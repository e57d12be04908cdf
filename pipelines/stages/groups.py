"""Groups: what the pairs stage writes for a recipe that makes groups, groups.parquet, and what there is to say of them."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign.data.scorers import by_rules
from vidalign.learning.advantages import is_uniform
from vidalign.model.rendering import cached_processor
from vidalign.recipes.engine import SPECIAL_TOKEN
from vidalign.types import Example, Response, ResponseGroup, stable_hash

NO_GROUPS = "raise recipe.max_new_tokens where replies were cut off, set recipe.trust where no rule can tell, or look at the responses"
Key = tuple[str, int]  # an example and a candidate


def sampled_tokens(responses: pathlib.Path, special: frozenset[int]) -> tuple[dict[Key, str], set[Key]]:
    """(a hash of the token ids of each plain response, those that hold a special token before their last), by example and candidate.

    The ids are read a part at a time and not kept: they are most of a rollout.
    """
    import pyarrow.parquet as pq

    hashes: dict[Key, str] = {}
    spelled: set[Key] = set()
    with pq.ParquetFile(responses) as file:
        for batch in file.iter_batches(batch_size=1024, columns=["example_id", "kind", "candidate", "token_ids"]):
            for row in batch.to_pylist():
                if row["kind"] == "plain":
                    key, ids = (row["example_id"], row["candidate"]), row["token_ids"] or []
                    hashes[key] = stable_hash(ids)
                    if not special.isdisjoint(ids[:-1]):
                        spelled.add(key)
    return hashes, spelled


def special_ids(path: str, *, trust_remote_code: bool) -> frozenset[int]:
    """The ids that no response may hold before its end: media and turns, as the model's tokenizer marks them."""
    tokenizer = cached_processor(path, trust_remote_code).tokenizer
    marked = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return frozenset(marked | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def without_spelled(responses: Sequence[Response], spelled: set[Key]) -> list[Response]:
    """The responses; those that hold a special token say so as their finish reason."""
    return [
        dataclasses.replace(r, finish_reason=SPECIAL_TOKEN)
        if r.kind == "plain" and (r.example_id, r.candidate) in spelled
        else r
        for r in responses
    ]


def with_accuracy(
    responses: Sequence[Response], groups: Sequence[ResponseGroup], examples: Sequence[Example]
) -> list[Response]:
    """The replies of rounds of groups with how right they are as their trust: what these rounds' reward "accuracy" says, in which a
    judge may have spoken, or else what rules say; NaN where neither can tell. An overlap with the ground truth is no accuracy.
    """
    told: dict[tuple[str, str], float] = {}
    for group in groups:
        said = json.loads(group.parts).get("accuracy", ())
        for text, value in zip(group.texts, said, strict=False):
            if value is not None:
                told[group.example_id, text.strip()] = value
    by_id = {example.id: example for example in examples}

    def trust(reply: Response) -> float:
        known = told.get((reply.example_id, reply.text.strip()))
        if known is not None:
            return known
        if math.isnan(reply.trust) or reply.trust == 1:
            return reply.trust
        found = by_rules(reply.text, by_id[reply.example_id])
        return math.nan if found is None else found

    return [dataclasses.replace(reply, trust=trust(reply)) for reply in responses]


def group_facts(groups: Sequence[ResponseGroup], *, compares: bool = True) -> dict[str, Any]:
    """Of the groups that were made: how many are all alike, what their rewards are in the mean, which replies are left out.

    `compares`: they have rewards. Without, there is nothing to say of these.
    """
    rewards = [value for group in groups for value in group.rewards if math.isfinite(value)]
    left_out = collections.Counter(why for group in groups for why in group.left_out if why)
    return {
        "all_alike": sum(is_uniform(group.rewards) for group in groups) if compares else None,
        "replies": len(rewards),
        "left_out": dict(left_out),
        "mean_reward": math.fsum(rewards) / len(rewards) if rewards and compares else None,
        "mean_parts": _mean_parts(groups),
    }


def _mean_parts(groups: Sequence[ResponseGroup]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for group in groups:
        for name, part in json.loads(group.parts).items():
            known = [value for value, why in zip(part, group.left_out, strict=True) if value is not None and not why]
            values.setdefault(name, []).extend(known)
    return {name: math.fsum(known) / len(known) for name, known in values.items() if known}


def no_contrast(facts: Mapping[str, Any], num_groups: int) -> str | None:
    """Why nothing can be learned from a round's groups, in a sentence with the ways out; None where some differ."""
    if facts["all_alike"] < num_groups:
        return None
    return (
        f"the replies to each of the {num_groups:,} prompts got equal rewards, so there is nothing to compare; take harder or easier "
        "questions, raise recipe.num_candidates, or add a reward that tells replies apart"
    )
