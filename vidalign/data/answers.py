"""Is a reply right? The one place that judges it; and how far it agrees with the ground truth (the *trust* of LeanPO).

    row ─► kind ─► verdict   choice   the option that it names                    vidalign.data.offered
                             yes_no   yes or no, in words or as a statement       vidalign.data.polarity
                             number   the number that it states                   vidalign.data.stated
                             short    the answer's own words, or another word of the same kind (red, blue)
                             free     the answer's own words

The kind is found from the row, or given as its `answer_type`. A verdict is True, False, or None where no rule can tell and a judge is
to say: a paraphrase of a short or free answer may be right, and a reply may name the right option, number or yes and leave open
whether it means it (`vidalign.data.doubt`).
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, get_args

from vidalign.data.doubt import asks_what_is_not, is_doubtful
from vidalign.data.final_answer import answering_part
from vidalign.data.labels import MENTION
from vidalign.data.numbers import find_numbers, prepared
from vidalign.data.offered import options_of, taken
from vidalign.data.opposites import CLASSES
from vidalign.data.polarity import asks_yes_or_no, leading_polarity, polarity, speaks_of_it
from vidalign.data.stated import stated_number, states_number
from vidalign.data.words import NEGATIONS, content_words, is_in_order, is_single_clause, normalise, stem, words
from vidalign.prompts import labelled
from vidalign.types import Example

AnswerType: TypeAlias = Literal["choice", "yes_no", "number", "short", "free"]
ANSWER_TYPES = get_args(AnswerType)
AGREES = 0.95  # the trust of a reply that says less than the ground truth and nothing else is at least this

_BELOW_ONE = math.nextafter(1.0, 0.0)
_BELOW_AGREES = math.nextafter(AGREES, 0.0)
_SHORT = 5  # words
_COUNTING = re.compile(
    r"\bhow (?:many|much|long|often|old|tall|far|fast|big|deep|high|wide|heavy)\b|\bnumber of\b|^count\b|"
    r"\b(?:what|which)(?:'s| is| was)?(?: the)? (?:total |exact |average )?(?:number|count|percentage|amount|total|score)\b|"
    r"几|幾|多少|いくつ|何[個人回匹本枚]|몇|cuánt[oa]s?|\bcombien\b|\bwie (?:viele?|oft|lange)\b|\bquant[aeios]\b|\bhoeveel\b|сколько|"
    r"\bile\b|\bilu\b|\bkaç\b|\bberapa\b|كم"
)
_SWAPPABLE = tuple(group for group in CLASSES if not group & {"first", "before"})  # of these, another order may say the same
_SWAPPED = frozenset().union(*_SWAPPABLE)
_CUE = re.compile(r"\banswer(?: is\b|\s*:)[\s:]*|答案(?:是|为|:)\s*|答えは\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n+")
_TAKEN_BACK = re.compile(r"\b(?:no|not|wait|actually|sorry|correction|instead|rather|but|however|or)\b|n't\b|不|没|但|而是")
_IN_BRACKETS = re.compile(r"^\s*[(\[{【〔「『]([^()\[\]{}【】〔〕「」『』]*)[)\]}】〕」』]\W*$")
# Words that say no more than "is" where a place is asked for.
_PLACED = tuple(map(stem, ("located", "placed", "situated", "positioned", "sitting", "standing", "lying", "found")))
_SUBJECT = re.compile(r"\s*(?:the|this|that) (?:object|thing|item) (?:is|was)\b", re.IGNORECASE)  # says no more than "it is"
_OPENING = re.compile(  # says nothing of what was not asked with yes or no
    r"^\W*(?:sure|certainly|of course|absolutely|well|okay|ok|alright|hmm+|oh|yes|yeah)\s*[,.:;!–—]+\s*(?=\w)", re.IGNORECASE
)
_CONNECTIVES = ("and", "then", "but", "while", "also")


def kind_of(example: Example) -> AnswerType:
    """The kind of answer that a question wants: the row's `answer_type`, or what its options, question and answer show."""
    if example.answer_type:
        return example.answer_type  # type: ignore[return-value]
    if options_of(example):
        return "choice"
    question = prepared(example.question)
    if _COUNTING.search(question) and stated_number(example.answer, example.question) is not None:
        return "number"
    if leading_polarity(example.answer, asked=asks_yes_or_no(question)) is not None:
        return "yes_no"
    if _is_number_alone(example.answer):
        return "number"
    size = len(words(example.answer))
    return "short" if size <= _SHORT and is_single_clause(example.answer) else "free"


def fits(example: Example) -> bool:
    """Whether the answer can be read as what the row's `answer_type` says it is."""
    match example.answer_type:
        case "choice":
            return bool(options_of(example))
        case "yes_no":
            return polarity(example.answer, example.question) is not None
        case "number":
            return stated_number(example.answer, example.question) is not None
    return True


def _is_number_alone(answer: str) -> bool:
    """Whether an answer is a number and at most a unit, such as "3", "about 3 km" or "40 %"."""
    text = normalise(prepared(answer))
    numbers = [number for number in find_numbers(text) if not number.weak or text == "one"]
    if len(numbers) != 1:
        return False
    [number] = numbers
    before = re.sub(
        r"\b(?:about|around|approximately|roughly|nearly|almost|exactly|only|just|some|~|≈)\s*$", "", text[: number.start]
    )
    rest = normalise(text[number.end :])
    return not before.strip(" $€£¥~≈") and (not rest or (rest == number.unit and number.has_unit))


def verdict(text: str, example: Example) -> bool | None:
    """Whether `text` answers `example`: True, False, or None where no rule can tell.

    On kinds choice, yes_no and number it is None where a reply names the answer in a condition, a question or the like, or speaks of
    what was asked in other words, and where the row does not say what is right (options none of which is the answer). An empty
    reply is wrong, and so is reasoning that was cut off before its answer.
    """
    kind = kind_of(example)
    part, unfinished = answering_part(text)
    if not normalise(part):
        return False
    if kind == "choice":
        options = options_of(example)
        wanted = taken(example.answer, example)
        if wanted < 0:
            return True if normalise(part) == normalise(example.answer) else None
        if normalise(part) == normalise(example.answer):
            return True
        chosen = taken(text, example)
        if chosen < 0 and asks_what_is_not(example.question) and re.search(rf"\b{labelled(options)[wanted][0]}\b", part):
            return None  # "B is not true"
        if chosen != wanted:
            return None if chosen == MENTION else False
        return _unless_open(part, example, lambda said: taken(said, example) == wanted)
    if normalise(part) == normalise(example.answer):
        return not unfinished
    if kind == "yes_no":
        is_yes = polarity(example.answer, example.question)
        said = polarity(part, example.question)
        if said is None and speaks_of_it(part, example.question):
            return None
        if said == is_yes and any(_excludes(group, content_words(part), content_words(example.answer)) for group in CLASSES):
            return None  # "No, it is green" where the answer is "No, it is blue"
        if is_yes is None or said != is_yes:
            return False
        return _unless_open(part, example, lambda said: polarity(said, example.question) == is_yes, yes_no=True)
    if kind == "number":
        right = states_number(part, example.answer, example.question)
        if not right:
            return right
        return _unless_open(part, example, lambda said: states_number(said, example.answer, example.question) is True)
    part = _IN_BRACKETS.sub(r"\1", part)
    part = part if _OPENING.match(example.answer) else _OPENING.sub("", part)
    found = _by_words(part, example)
    return _by_sentences(part, example) if found is None and is_single_clause(example.answer) else found


def _unless_open(part: str, example: Example, states: Callable[[str], bool], *, yes_no: bool = False) -> bool | None:
    """True for a reply that states the answer; None where it leaves open whether it means it."""
    return None if is_doubtful(part, example.question, states, yes_no=yes_no, options=options_of(example)) else True


def is_correct(text: str, example: Example) -> bool:
    """Whether `text` is known to be right: only where `verdict` is True."""
    return verdict(text, example) is True


def _by_words(part: str, example: Example) -> bool | None:
    """A reply is right that says the answer and beyond it only what the question says, and wrong that says its opposite."""
    said, answer, question = map(content_words, (_SUBJECT.sub("", part, count=1), example.answer, example.question))
    if not said or not answer:
        return None
    if not is_single_clause(example.answer) or not is_single_clause(part):
        if _unjoined(said) == _unjoined(answer) and ("then" not in said or "then" in answer):
            return True
        return False if _swaps(said, answer, question) else None
    if set(said) & NEGATIONS != set(answer) & NEGATIONS:
        rest = [word for word in said if word not in NEGATIONS]
        return False if rest == [word for word in answer if word not in NEGATIONS] else None
    alternatives = _alternatives(example.question)
    wanted, named = set(answer) & alternatives, set(said) & alternatives
    if len(wanted) == 1 and named:
        return wanted == named if _restates(said, [*answer, *question]) else None
    if any(_excludes(group, said, answer) for group in CLASSES):
        return False
    if said == answer:
        return True
    known = [*answer, *question, *(_PLACED if stem("where") in question else ())]
    core = [word for word in answer if word not in question]
    return True if core and _restates(core, said) and _restates(said, known) and is_in_order(core, said) else None


def _unjoined(said: Sequence[str]) -> list[str]:
    """What a list or a sequence says, however it is joined: "red, blue, green" is "red, blue and green"."""
    return [word for word in said if word not in ("and", "also", "then")]


def _by_sentences(part: str, example: Example) -> bool | None:
    """What the last "the answer is …" says, or the first sentence where no other one takes it back."""
    cues = list(_CUE.finditer(prepared(part)))
    if cues:
        return _by_words(_SENTENCE_END.split(prepared(part)[cues[-1].end() :], maxsplit=1)[0], example)
    first, *others = [sentence for sentence in _SENTENCE_END.split(part) if sentence.strip()] or [""]
    if not others or any(_TAKEN_BACK.search(prepared(sentence)) for sentence in others):
        return None
    found = _by_words(first, example)
    return found if all(_by_words(sentence, example) in (None, found) for sentence in others) else None


def _swaps(said: Sequence[str], answer: Sequence[str], question: Sequence[str]) -> bool:
    """Whether a reply is the answer with left for right or the like: all else that it says is the answer's or the question's."""
    if not _restates((word for word in said if word not in _SWAPPED), [*answer, *question, *_CONNECTIVES]):
        return False
    for group in _SWAPPABLE:
        mine = collections.Counter(word for word in said if word in group)
        theirs = collections.Counter(word for word in answer if word in group)
        if theirs - mine and set(mine - theirs) - set(question):
            return set(said) & NEGATIONS == set(answer) & NEGATIONS
    return False


def _alternatives(question: str) -> set[str]:
    """What a question offers to choose from: "the circle or the cross" are circle and cross."""
    pairs = re.findall(r"(\w+),? or (?:the |an? |to the )?(\w+)", prepared(question))
    return {stem(word) for pair in pairs for word in pair}


def _excludes(group: frozenset[str], said: Iterable[str], answer: Iterable[str]) -> bool:
    """Whether reply and answer hold different words of a group in which one rules the others out."""
    mine, theirs = group & set(said), group & set(answer)
    return bool(mine and theirs and not mine & theirs)


def _restates(part: Iterable[str], whole: Iterable[str]) -> bool:
    return set(part) <= set(whole)


def token_f1(text: str, answer: str) -> float:
    """Overlap in [0, 1]: 1.0 on an exact match after normalisation, otherwise token-level F1, strictly below 1.0.

    The F1 is that of SQuAD (arXiv 1606.05250, section 6.1) over the words of `vidalign.data.words`, articles kept. The same words in
    another order are not the same answer, hence strictly below 1.0.
    """
    given, reference = normalise(text), normalise(answer)
    if given == reference:
        return 1.0
    ours, theirs = words(given), words(reference)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if common == 0:
        return 0.0
    return min(2 * common / (len(ours) + len(theirs)), _BELOW_ONE)


def trust(text: str, example: Example) -> float:
    """How far a reply agrees with the ground truth, in [0, 1].

    1 for what `verdict` calls right. A reply to a one-clause answer that says less than the answer and nothing else is in
    [AGREES, 1); anything else has its `token_f1`, below AGREES: a short right reply is above a long wrong one.
    """
    right = verdict(text, example)
    if right:
        return 1.0
    part, _ = answering_part(text)
    overlap = token_f1(part, example.answer)
    if right is None and agrees_in_part(part, example):
        return min(AGREES + (1 - AGREES) * overlap, _BELOW_ONE)
    if right is False:
        overlap = math.nextafter(overlap, 0.0)  # of two with the same words, what is known to be wrong is the worse one
    return min(overlap, _BELOW_AGREES)


def agrees_in_part(text: str, example: Example) -> bool:
    """Whether a reply says some of a one-clause answer, not only what the question said, and nothing that is not in it."""
    if not is_single_clause(example.answer):
        return False
    said, answer = content_words(text), content_words(example.answer)
    new = set(answer) - set(content_words(example.question)) or set(answer)
    return bool(set(said) & new) and set(said) & NEGATIONS == set(answer) & NEGATIONS and is_in_order(said, answer)


def overlap_is_unclear(better: str, worse: str, example: Example) -> bool:
    """Whether overlap with the ground truth cannot tell which of two replies is the better one, neither of which is known to be right.

    So it is where one says the other and more, where they say the same in other forms, and where one is less than half as long: what
    a short reply or a paraphrase lacks in overlap says nothing about whether it is right.
    """
    first, second = (content_words(answering_part(text)[0]) for text in (better, worse))
    short, long = sorted((first, second), key=len)
    answer = content_words(example.answer)
    if any(said != answer and sorted(said) == sorted(answer) for said in (first, second)):
        return True  # the answer's words in another order: who does what to whom may be exchanged
    return is_in_order(short, long) or 2 * len(short) < len(long)
