"""Artefacts in preference pairs: what tells the two sides apart without looking at the video.

A policy trained on pairs whose rejected side keeps saying "the image is black and white" learns that instead of the content
(seen in LeanPO's public data). Three signs are looked for; each is reported and, if the config says so, filtered:

words       far more frequent on one side than on the other *and* than in the ground truths, which the policy should learn to
            say: "yes" against "no" is content, "grayscale" is an artefact
length      one side is longer in most pairs, more often than by chance
duplicates  the same question with the same two responses, repeatedly
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vidalign.config.linting import LintConfig
from vidalign.data.words import word_spans
from vidalign.records import Context
from vidalign.types import PreferencePair

_WORD = re.compile(r"\w")
_SIGNIFICANT_WORD = 0.05  # two-sided, after Bonferroni correction over all words
_SIGNIFICANT_LENGTH = 0.01  # two-sided
_SMOOTHING = 0.5  # added to a share's count, so that a word that one side never says has a finite ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class TellTale:
    """A word, and the shares of chosen responses, rejected responses and ground truths with it; `side` uses it too often."""

    word: str
    side: str
    chosen: float
    rejected: float
    truth: float
    num_pairs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LintReport:
    """What was found in all pairs, before anything is filtered.

    `chosen_longer` is the share of pairs whose chosen response has more words, among those that differ in length; `length_biased`
    says whether it is beyond chance and beyond `max_longer_share`. `num_duplicates` counts every repetition of an earlier pair.
    """

    words: tuple[TellTale, ...]
    chosen_words: float
    rejected_words: float
    chosen_longer: float | None
    length_biased: bool
    num_duplicates: int
    num_pairs: int

    def to_row(self) -> dict[str, Any]:
        """The report as a plain dict."""
        return dataclasses.asdict(self)


def lint(pairs: Sequence[PreferencePair], config: LintConfig) -> LintReport:
    """Look for the three signs of artefacts in pairs."""
    longer, differing = 0, 0
    lengths: list[tuple[int, int]] = [(len(_words(p.chosen)), len(_words(p.rejected))) for p in pairs]
    for chosen, rejected in lengths:
        longer += chosen > rejected
        differing += chosen != rejected
    share = longer / differing if differing else None
    biased = (
        share is not None
        and max(share, 1 - share) > config.max_longer_share
        and _sign_test(longer, differing) < _SIGNIFICANT_LENGTH
    )
    return LintReport(
        words=tuple(tell_tales(pairs, config)),
        chosen_words=_mean(chosen for chosen, _ in lengths),
        rejected_words=_mean(rejected for _, rejected in lengths),
        chosen_longer=share,
        length_biased=biased,
        num_duplicates=len(pairs) - len({_key(pair) for pair in pairs}),
        num_pairs=len(pairs),
    )


def tell_tales(pairs: Sequence[PreferencePair], config: LintConfig) -> list[TellTale]:
    """Words that give a side away, the most frequent first. Each response counts a word at most once.

    A word gives its side away if its share of that side's responses is at least `word_ratio` times that of the other side and of
    the ground truths, it occurs in at least `min_count` responses, and the imbalance is beyond chance (sign test over the pairs in
    which only one side has it).
    """
    total = len(pairs)
    sides = {name: [set(_words(getattr(pair, name))) for pair in pairs] for name in ("chosen", "rejected", "answer")}
    counts = {name: collections.Counter(word for words in rows for word in words) for name, rows in sides.items()}
    vocabulary = set(counts["chosen"]) | set(counts["rejected"])
    found = []
    for word in vocabulary:
        only_chosen = sum(word in c and word not in r for c, r in zip(sides["chosen"], sides["rejected"], strict=True))
        only_rejected = sum(word in r and word not in c for c, r in zip(sides["chosen"], sides["rejected"], strict=True))
        side, other = ("chosen", "rejected") if only_chosen > only_rejected else ("rejected", "chosen")
        count = counts[side][word]
        usual = max(counts[other][word], counts["answer"][word]) + _SMOOTHING
        chance = _sign_test(max(only_chosen, only_rejected), only_chosen + only_rejected) * len(vocabulary)
        if count >= config.min_count and count >= config.word_ratio * usual and chance < _SIGNIFICANT_WORD:
            shares = {name: counts[name][word] / total for name in counts}
            found.append(
                TellTale(
                    word=word,
                    side=side,
                    chosen=shares["chosen"],
                    rejected=shares["rejected"],
                    truth=shares["answer"],
                    num_pairs=max(only_chosen, only_rejected),
                )
            )
    return sorted(found, key=lambda tale: (-tale.num_pairs, tale.word))


def filter_pairs(
    pairs: Sequence[PreferencePair], report: LintReport, config: LintConfig
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Drop the pairs that the config says to drop. Returns the pairs kept, in order, and the number dropped for each reason.

    tell_tale_word: one side has a reported word that the other side lacks. length_ratio: the longer response has more than
    `max_length_ratio` times as many words as the other. duplicate: more than `max_duplicates` pairs with the same question and the
    same two responses.
    """
    words = {"chosen": set(), "rejected": set()}  # type: dict[str, set[str]]
    for tale in report.words:
        words[tale.side].add(tale.word)
    kept: list[PreferencePair] = []
    dropped: collections.Counter[str] = collections.Counter()
    seen: collections.Counter[tuple[Context | str, ...]] = collections.Counter()
    for pair in pairs:
        chosen, rejected = set(_words(pair.chosen)), set(_words(pair.rejected))
        seen[_key(pair)] += 1
        lengths = sorted((len(_words(pair.chosen)), len(_words(pair.rejected))))
        if config.drop_tell_tales and ((chosen - rejected) & words["chosen"] or (rejected - chosen) & words["rejected"]):
            dropped["tell_tale_word"] += 1
        elif config.max_length_ratio is not None and lengths[1] > config.max_length_ratio * max(1, lengths[0]):
            dropped["length_ratio"] += 1
        elif config.max_duplicates is not None and seen[_key(pair)] > config.max_duplicates:
            dropped["duplicate"] += 1
        else:
            kept.append(pair)
    return kept, dict(dropped)


def _words(text: str) -> list[str]:
    """The words of a text, without its punctuation."""
    return [text[start:end].lower() for start, end in word_spans(text) if _WORD.match(text, start)]


def _key(pair: PreferencePair) -> tuple[Context | str, ...]:
    return pair.context, pair.question, pair.chosen, pair.rejected


def _mean(values: Iterable[int]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


def _sign_test(count: int, total: int) -> float:
    """Two-sided p-value of `count` successes in `total` trials with even odds; 1.0 without trials."""
    if not total:
        return 1.0
    from scipy import stats  # costs half a second to import

    return float(stats.binomtest(count, total).pvalue)
