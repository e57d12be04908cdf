"""Scorers: how right is a reply, in [0, 1]? One interface, found by name in `SCORERS` or as `package.module:attribute`.

    rules   (the default) the rule of the answer's kind, see `vidalign.data.answers`; None where it cannot tell
    exact   the same, and what it cannot tell is wrong
    f1      overlap of words for what the rule cannot tell of short and free answers; else the rule
    judge   None for every reply: a judge scores it (`vidalign.recipes.judging`)

A scorer is a function of a reply and its example that returns a score in [0, 1] (True and False are 1 and 0), or None where it
cannot tell. What no scorer can tell goes to the judge, if there is one, and is otherwise counted apart: it is neither right nor wrong.
A scorer may also have `measure`, which gives figures of all replies of a model (`figures`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vidalign.data.answers import kind_of, token_f1, trust, verdict
from vidalign.data.final_answer import answering_part
from vidalign.errors import ConfigError
from vidalign.plugins import resolve
from vidalign.types import Example

RULES, JUDGE = "rules", "judge"
WORDED = frozenset({"short", "free"})  # kinds of answers that rules cannot always judge


class Scorer(Protocol):
    """How right `reply` is as an answer to `example`, in [0, 1]; None where that cannot be told."""

    def __call__(self, reply: str, example: Example, /) -> float | None: ...


def by_rules(reply: str, example: Example) -> float | None:
    """1 or 0 by the rule of the answer's kind; None where it cannot tell."""
    right = verdict(reply, example)
    return None if right is None else float(right)


def exact(reply: str, example: Example) -> float | None:
    """1 for what the rule of the answer's kind calls right, 0 for everything else."""
    return float(verdict(reply, example) is True)


def f1(reply: str, example: Example) -> float | None:
    """1 or 0 by the rule of the answer's kind; `overlap` where it cannot tell of a short or free answer."""
    right = verdict(reply, example)
    if right is None and kind_of(example) in WORDED:
        return overlap(reply, example)
    return None if right is None else float(right)


def overlap(reply: str, example: Example) -> float:
    """Token F1 of the part of a reply that answers, against the ground truth."""
    return token_f1(answering_part(reply)[0], example.answer)


def left_to_the_judge(reply: str, example: Example) -> float | None:
    """None, whatever the reply."""
    return None


SCORERS: Mapping[str, Scorer] = {RULES: by_rules, "exact": exact, "f1": f1, JUDGE: left_to_the_judge}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What a scorer says of a reply: the value in [0, 1], or None where it cannot tell; and which scorer it was."""

    value: float | None
    scorer: str


@functools.cache
def find(name: str | None) -> Scorer:
    """The scorer of that name. Raises `ConfigError` where there is none."""
    return resolve(name or RULES, SCORERS, what="scorer")


def score(reply: str, example: Example, name: str | None = None) -> Score:
    """Score a reply. `scorer` is "rules" where those of the answer's kind decided, whatever the name.

    Raises:
        ConfigError: a scorer of your own returned something else than a number in [0, 1], a truth value or None.
    """
    value: Any = find(name)(reply, example)
    if hasattr(value, "item"):  # a number of NumPy or torch
        value = value.item()
    if value is None:
        return Score(value=None, scorer="")
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ConfigError(
            f"scorer {name} returned {value!r} for the reply {reply[:80]!r} to example {example.id}; a scorer returns a number in "
            "[0, 1], True, False, or None where it cannot tell"
        )
    by = RULES if name is None or (name == "f1" and kind_of(example) not in WORDED) else name
    return Score(value=float(value), scorer=by)


def figures(name: str | None, replies: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """What a scorer's `measure(replies, examples)` says of all replies of a model, by name; empty for scorers without it.

    Raises:
        ConfigError: it returned something else than finite numbers by name.
    """
    measure = getattr(find(name), "measure", None)
    if measure is None:
        return {}
    found = measure(replies, examples)
    if not isinstance(found, Mapping):
        raise ConfigError(f"measure of scorer {name} returned {found!r}; return a dict of numbers by name")
    made = {str(key): value.item() if hasattr(value, "item") else value for key, value in found.items()}
    for key, value in made.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"measure of scorer {name} returned {value!r} for {key}; return finite numbers by name")
    return {key: float(value) for key, value in made.items()}


def trust_by(name: str | None, reply: str, example: Example) -> float:
    """How far a reply agrees with the ground truth by a scorer, in [0, 1]; NaN where it cannot tell.

    By rules (`name` None) and by "f1" it is `vidalign.data.answers.trust`; the two differ in what pairs are made of it. By "judge" it
    is 1 or 0 where a rule can tell, and NaN where the judge is to be asked.
    """
    if name in (None, "f1"):
        return trust(reply, example)
    value = by_rules(reply, example) if name == JUDGE else score(reply, example, name).value
    return math.nan if value is None else value
