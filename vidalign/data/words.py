"""Texts as words: one normalisation, and where the words of a text are, in scripts with and without spaces between them.

Normalisation, everywhere in this folder: Unicode NFKC, lower case, runs of white space become one space, and quotes, white
space and sentence punctuation (. , ; : ! ?) are stripped from both ends. Nothing else is removed: "not red" is not "red".

Scripts that put no space between words (Chinese characters, kana, Thai, Lao, Khmer, Myanmar) are divided by ICU's dictionaries, the
same as in browsers, through icu4py: one library for all of them, with wheels for every platform and no compiler. `content_words`
takes such texts character by character, each with its combining marks, because the words of a reply that says less than the answer
may be divided in another way than the answer's.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable

from icu4py.breakers import WordBreaker

_STRIPPED = " .,;:!?\"'`“”‘’«»。，、；：！？「」『』।،؛؟"
SPACELESS_RANGES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_COMBINING = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b6-\u17d3\u3099\u309a"
_CHARACTER = rf"[{SPACELESS_RANGES}][{_COMBINING}]*"
_RUN = rf"(?:(?![{SPACELESS_RANGES}])\w)+"
_UNDIVIDED = rf"[{SPACELESS_RANGES}][{SPACELESS_RANGES}{_COMBINING}]*"
_PIECE = re.compile(rf"{_UNDIVIDED}|{_RUN}|[^\w\s]")  # words without a space between them, a word, or a mark of punctuation
_SIGNED = r"(?:[+#]+(?!\w)|(?<=(?<!\w)[a-z])-(?![\w-]))?"  # C++, C#, a B- are not C and B
_WORD = re.compile(rf"{_CHARACTER}|{_RUN}{_SIGNED}")
_EACH = re.compile(rf"{_CHARACTER}|{_RUN}|[^\w\s]")
_MIXED = re.compile(rf"{_UNDIVIDED}|[^\s{SPACELESS_RANGES}]+")
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0e\ufe0f\ufeff]")
SPACELESS = re.compile(rf"[{SPACELESS_RANGES}]")


def vocabulary(text: str) -> list[str]:
    """The words of a list that is written in this code, separated by spaces."""
    return text.split()


_FUNCTION = frozenset(
    vocabulary(
        "a an the it its he she they them his her their this that these those there here is are was were be been being am s "
        "to of toward towards do does did has have had will would can could i we you "
        "的 了 是 着 它 他 她 这 那 は が を の に"
    )
)
_PREAMBLE = re.compile(
    r"\b(?:(?:based on|according to|judging by|from|in|throughout|during) (?:the|this) (?:whole |entire )?"
    r"(?:video|clip|footage|scene)\b|(?:the|this) (?:video|clip|scene) (?:shows|depicts)\b(?: that\b)?|"
    r"(?:i|we|you) (?:can |could |do )?(?:think|believe|see|hear|notice|observe)\b(?: that\b)?|"
    r"(?:so |therefore |thus )?(?:the |my )?(?:final |correct |right )?answer(?: is\b|\s*:))[,:]?"
)
_POLITE = re.compile(r"(?:です|でした|ます|ました)(?=\W|$)")  # ends of Japanese sentences that say nothing
NEGATIONS = frozenset(vocabulary("not no never none nothing nobody neither nor without cannot 不 没 沒 非 未"))


def apart(text: str) -> str:
    """A text without invisible characters (zero-width spaces, soft hyphens, marks of direction), in which signs that NFKC joins to a
    number, 2½ and №7, have a space between them, and a power its sign."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", _INVISIBLE.sub("", text))
    text = re.sub(r"(?<=\d)(?=[⁰¹²³⁴-⁹])", "^", text)
    return text.replace("№", "no. ").replace("℃", " °c")


def normalise(text: str) -> str:
    """Apply the normalisation of this module."""
    return " ".join(unicodedata.normalize("NFKC", apart(text)).lower().split()).strip(_STRIPPED)


def words(text: str) -> list[str]:
    """The words of a text, normalised; punctuation at the ends of a word goes, inside of it stays."""
    text = unicodedata.normalize("NFKC", apart(text))
    found = (normalise(text[start:end]) for start, end in _divided(_MIXED, text))
    return [word for word in found if word]


def written_words(text: str) -> list[str]:
    """The words of a text as they are written, punctuation on them: what white space divides, and dictionaries where there is none."""
    return [word for part in text.split() for word in undivided_words(part)]


def undivided_words(part: str) -> list[str]:
    """A part without inner white space, cut before each of its words that is written without a space before it."""
    starts = [start for start, _ in word_spans(part)[1:] if SPACELESS.match(part, start)]
    return [part[start:end] for start, end in itertools.pairwise([0, *starts, len(part)])]


def word_spans(text: str, *, by_character: bool = False) -> list[tuple[int, int]]:
    """Where the words and the marks of punctuation of a text are: (start, end) in characters, end excluded, in order.

    `by_character`: in scripts without spaces every character is a word.
    """
    if by_character:
        return [match.span() for match in _EACH.finditer(text)]
    return _divided(_PIECE, text)


def _divided(pieces: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """The spans of the pieces of a text, those without spaces between their words divided into words."""
    spans: list[tuple[int, int]] = []
    for match in pieces.finditer(text):
        end = match.start()
        if SPACELESS.match(match[0]):
            for length in _word_lengths(match[0]):
                spans.append((end, end + length))
                end += length
        else:
            spans.append(match.span())
    return spans


@functools.lru_cache(maxsize=4096)
def _word_lengths(text: str) -> tuple[int, ...]:
    """Characters of each word of a text without spaces. ICU's own positions count UTF-16 units, so they are not used."""
    return tuple(len(word) for word in WordBreaker(text, "en_US"))


def content_words(text: str) -> list[str]:
    """The words that say something, as stems: no articles, pronouns or forms of "be", no preamble; negations stay."""
    text = unicodedata.normalize("NFKC", apart(text)).lower().replace("’", "'")
    text = _PREAMBLE.sub(" ", re.sub(r"n't\b", " not", re.sub(r"\bcan't\b|\bcannot\b", "can not", text)))
    text = _POLITE.sub(" ", text).replace("color", "colour").replace("gray", "grey")
    return [stem(word) for word in _WORD.findall(text) if word not in _FUNCTION]


def stem(word: str) -> str:
    """An English word without its inflection, roughly: moves, moving, moved and move are one; left and leftwards too."""
    if word in NEGATIONS:
        return word
    for ending in ("wards", "ward"):
        if word.endswith(ending) and len(word) - len(ending) >= 2:
            return word.removesuffix(ending)
    for ending in ("ing", "ed", "es", "s"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 3 and not word.endswith("ss"):
            doubled = ending in ("ing", "ed") and len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "aeiouls"
            return rest[:-1] if doubled else rest.removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 and word.isascii() else word


def is_in_order(part: Iterable[str], whole: Iterable[str]) -> bool:
    """Whether all words of one are in the other, in order."""
    rest = iter(whole)
    return all(word in rest for word in part)


def is_single_clause(text: str) -> bool:
    """Whether a text is one statement: no comma, no second sentence, no "and" or "then"."""
    inside = normalise(text)
    return not re.search(r"[;:!?。，、；：！？]|[,.](?!\d)|\b(?:and|then|but|while|after|before)\b", inside)
