"""WUPS: how close two short texts are, by the Wu-Palmer similarity of their words in WordNet (arXiv 1410.0210, section 3.1).

Source of the rule as NExT-QA has it: doc-doc/NExT-OE, metrics.py and eval_oe.py. Words are lemmas without stop words, a word's first
sense counts, a similarity below alpha counts a tenth, words that match nothing are left out of the product, and the smaller of both
directions counts. Lemmas are found as its package pywsd does: NLTK's tokenizer, part-of-speech tagger and WordNet, and where WordNet
does not know the lemma, the Porter stem if it knows that.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from vidalign.data.words import vocabulary
from vidalign.errors import ConfigError

DATA = ("wordnet", "punkt_tab", "averaged_perceptron_tagger_eng")
_COLOURED = re.compile(r"\x1b\[[\d;]*m")
_PARTS = {"N": "n", "V": "v", "J": "a", "R": "r"}
STOP_WORDS = frozenset(
    vocabulary(
        "i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his "
        "himself she she's her hers herself it it's its itself they them their theirs themselves what which who whom this "
        "that that'll these those am is are was were be been being have has had having do does did doing a an the and but if "
        "or because as until while to from of at for with about into through during again further then here there when where "
        "why how all any each most other some such only own so than too very s t can will just don don't should should've "
        "now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven "
        "haven't isn isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren "
        "weren't won won't wouldn wouldn't"
    )
)


def wups(
    first: Sequence[str], second: Sequence[str], alpha: float, similarity: Callable[[str, str], float] | None = None
) -> float:
    """The score in [0, 1] of two lists of lemmas. `similarity` of two words: WordNet's if not given."""
    return min(_covered(first, second, alpha, similarity), _covered(second, first, alpha, similarity))


def _covered(
    these: Sequence[str], those: Sequence[str], alpha: float, similarity: Callable[[str, str], float] | None
) -> float:
    """The product over `these` of the best similarity to one of `those`; 0 where no word matches at all."""
    compare = similarity or wu_palmer
    product, matched = 1.0, False
    for word in these:
        best = max((_discounted(1.0 if word == other else compare(word, other), alpha) for other in those), default=0.0)
        if best:
            product *= best
            matched = True
    return product if matched else 0.0


def _discounted(value: float, alpha: float) -> float:
    return value if value >= alpha else 0.1 * value


@functools.lru_cache(maxsize=100_000)
def wu_palmer(first: str, second: str) -> float:
    """The Wu-Palmer similarity of the first senses of two words; 0 where WordNet does not know one of them."""
    wordnet = _nltk().wordnet
    one, other = wordnet.synsets(first), wordnet.synsets(second)
    return (one[0].wup_similarity(other[0]) or 0.0) if one and other else 0.0


def words_of(text: str) -> list[str]:
    """The lemmas of a text, without stop words."""
    tools = _nltk()
    tagged = tools.pos_tag(tools.word_tokenize(text.replace("</s>", "")))
    lemmas = [_lemma(word.lower(), _PARTS.get(tag[:1], "n"), tools) for word, tag in tagged]
    return [lemma for lemma in lemmas if lemma not in STOP_WORDS]


def _lemma(word: str, part: str, tools: Any) -> str:
    lemma = tools.lemmatize(word, part)
    if tools.wordnet.synsets(lemma):
        return lemma
    stem = tools.stem(word)
    return stem if tools.wordnet.synsets(stem) else word


def check_installed() -> None:
    """Raises `ConfigError` where NLTK or its data are not installed."""
    _nltk()


class _Tools:
    """NLTK's parts. Raises `ConfigError` where NLTK or its data are not installed."""

    def __init__(self) -> None:
        way_out = (
            f"install it with `pip install nltk` and `python -m nltk.downloader {' '.join(DATA)}`, or leave the open-ended "
            "questions out with --task mc"
        )
        try:
            import nltk
            from nltk.corpus import wordnet
            from nltk.stem import PorterStemmer, WordNetLemmatizer
        except ImportError as error:
            raise ConfigError(f"WUPS of NExT-QA's open-ended questions needs NLTK ({error}); {way_out}") from error
        try:
            wordnet.synsets("dog")
            nltk.pos_tag(nltk.word_tokenize("a dog"))
        except LookupError as error:
            missing = re.findall(r"Resource '?(\S+?)'? not found", _COLOURED.sub("", str(error)))
            which = f" {missing[0]}" if missing else ""
            raise ConfigError(f"WUPS of NExT-QA's open-ended questions needs NLTK's data{which}; {way_out}") from error
        self.wordnet, self.pos_tag, self.word_tokenize = wordnet, nltk.pos_tag, nltk.word_tokenize
        self.lemmatize, self.stem = WordNetLemmatizer().lemmatize, PorterStemmer().stem


@functools.cache
def _nltk() -> Any:
    return _Tools()
