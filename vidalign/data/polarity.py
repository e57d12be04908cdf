"""Does a text say yes or no? By the word itself, or as a statement that repeats or denies what was asked."""

from __future__ import annotations

import re

from vidalign.data.numbers import prepared
from vidalign.data.words import NEGATIONS, content_words, normalise

_YES = "yes|yeah|yep|yup|oui|sí|sim|ja|да"
_NO = "no|nope|nah|non|não|nein|nee|нет"
_YES_ALONE = "true|correct|affirmative|indeed|right|si|certainly|absolutely|definitely|of course|sure"
_NO_ALONE = "false|incorrect|negative|wrong"
_YES_BEGINS = re.compile(r"(?:是的|是|对的|对|對|会|會|可以|はい|ええ|예|네|有(?!没有))")
_NO_BEGINS = re.compile(r"(?:不是|不会|不|没有|没|沒有|沒|否|非|いいえ|いや|아니)")
_AUXILIARY = re.compile(
    r"(?:\W*(?:in|on|at|during|according to|based on|from) [^,?]{1,60},\s*)?"
    r"\W*(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|should|isn't|aren't|doesn't|don't|didn't|hasn't)\b"
    r"|.*(?:吗|嗎|是否|か)[？?。]?\s*$",
    re.DOTALL,
)
_PREAMBLE = re.compile(
    r"(?:(?:so|well|hmm+|okay|ok|i think|i believe|i would say|i'd say|therefore|thus|(?:based on|according to) the video)\b[,:]?\s*)+"
)
_CUE = re.compile(
    r"(?:\banswer\b(?:\s+(?:is|would be|should be|must be))?|答案(?:是|为)?|答え(?:は)?|정답은?)\s*[:=]?\s*"
    r"(?:simply |clearly |therefore )?[\"'“(]*"
    rf"({_YES}|{_NO}|{_YES_ALONE}|{_NO_ALONE}|是|否|不是|没有|有|对|不)(?![^\W_])"
)
_CORRECTED = re.compile(
    rf"\b(?:wait|actually|correction|sorry)\b[,:.]?\s*(?:no, )?(?:it is |it's |the answer is )?({_YES}|{_NO})\b"
)
_WORD = re.compile(rf"(?<!\w)({_YES}|{_NO}|{_YES_ALONE}|{_NO_ALONE})(?!\w)")
_UNSURE = re.compile(
    r"\b(?:can't|cannot|can not|could not|couldn't|unable to|impossible to) (?:be |\w+ )?"
    r"(?:tell|say|determine|see|know|answer|determined)\b|"
    r"(?:\bnot|n't) (?:sure|know|clear|certain|enough)\b|\b(?:unclear|uncertain|unknown|maybe|perhaps|possibly)\b|"
    r"\b(?:yes or no|yes and no|no and yes|no or yes|yes/no)\b|不确定|无法|不知道|不清楚"
)
_SHORT_YES = re.compile(
    r"(?:it|they|he|she|there|this|that)\s+(?:(?:surely|certainly|definitely|really|clearly|indeed|probably) )?"
    r"(?:is|are|does|do|did|was|were|has|have|can|will)(?:\s+indeed)?"
)


def asks_yes_or_no(question: str) -> bool:
    """Whether a question begins as those do that want yes or no."""
    return _AUXILIARY.match(prepared(question)) is not None


def leading_polarity(answer: str, *, asked: bool) -> bool | None:
    """Yes or no as the first word of a ground truth: alone, before punctuation, or where yes or no was `asked`."""
    text = normalise(prepared(answer))
    match = re.match(rf"({_YES}|{_NO}|true|false)(?![^\W_])", text)
    if match:
        rest = text[match.end() :]
        alone = not rest or rest[0] in ",.;:!-—。，、"
        if alone or (asked and not re.match(r"\s+(?:one|body|longer)\b", rest)):
            return re.fullmatch(f"{_YES}|true", match[1]) is not None
        return None
    if text in ("是", "是的", "对", "有", "会", "はい", "예", "네") or (asked and _YES_BEGINS.match(text)):
        return True
    if text in ("否", "不", "不是", "没有", "不会", "いいえ", "아니요", "아니오") or (asked and _NO_BEGINS.match(text)):
        return False
    return None


def polarity(text: str, question: str = "") -> bool | None:
    """What a text says: True for yes, False for no, None for neither.

    In this order: the last "the answer is yes", a correction ("wait, no"), the first word, the only such word, a denial ("it does
    not", "there is no"), a statement that repeats the question.
    """
    text = prepared(text).strip()
    cues = [*_CUE.finditer(text), *_CORRECTED.finditer(text)]
    if cues:
        return _means(max(cues, key=lambda match: match.start())[1])
    if _UNSURE.search(text):
        return None
    text = _PREAMBLE.sub("", text, count=1).strip(" \n\t\"'“”(*[")
    first = re.match(rf"({_YES}|{_NO}|{_YES_ALONE}|{_NO_ALONE})(?![^\W_])(?!\s+(?:doubt|one|not)\b)", text)
    if first and first[1] not in ("right", "wrong", "si", "sure"):
        return _means(first[1])
    if normalise(text) in ("y", "right", "sure", "si", "n", "wrong"):
        return normalise(text) not in ("n", "wrong")
    if re.fullmatch(r"(?:that|this|it)(?:'s| is) (?:right|true|correct)", normalise(text)):
        return True
    if not re.search(r"\b(?:left|right)\b", prepared(question)):
        text = re.sub(r"^right,\s*", "", text)
    if _NO_BEGINS.match(text) or re.match(r"(?:absolutely|certainly|definitely|of course|surely) not\b", text):
        return False
    if _YES_BEGINS.match(text):
        return True
    said = {
        _in_context(text, match)
        for match in _WORD.finditer(text)
        if match[1] not in ("right", "wrong", "si", "sure", "ja", "non")
    }
    if len(said) == 1:
        return said.pop()
    if said:
        return None
    return _as_statement(text, question)


def _means(word: str) -> bool:
    return re.fullmatch(f"{_YES}|{_YES_ALONE}|是|有|对", word) is not None


def _in_context(text: str, match: re.Match[str]) -> bool:
    denied = re.search(r"(?:\bnot|n't|\bnever)\s+(?:really |quite |a |the )?$", text[: match.start()]) is not None
    return _means(match[1]) != denied


def _as_statement(text: str, question: str) -> bool | None:
    said, asked = set(content_words(text)), set(content_words(question))
    if (said & NEGATIONS) - asked:
        return False
    if _SHORT_YES.fullmatch(normalise(text)):
        return True
    return True if said and said <= asked and len(said) * 2 >= len(asked) else None
