"""What leaves open whether a reply states the answer that it names: a condition, a question, what others say, what is taken back.

The rules find the answer that such a reply names; only a judge can say whether it is meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vidalign.data.denials import ALL_BUT, settled
from vidalign.data.labels import Options
from vidalign.data.numbers import prepared

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n+")
_CONDITION = re.compile(
    r"\bif\b(?! (?:you (?:need|want|have|would|like|require)|i (?:had|have|must)|we (?:had|have|must)|needed|necessary|any|"
    r"so)\b)|\bunless\b|\bdepend(?:s|ing)? on\b|\bassuming\b|\bprovided\b|\bsuppos(?:e|ing)\b|"
    r"\bhad (?:it|he|she|they|the \w+)\b.*\bwould\b"
)
_ASKS = re.compile(
    r"[^\w]*(?:is|are|was|were|does|do|did|has|have|can|could|will|would|should|might|why|which|what|how|who|where|"
    r"when)\b"
    r"(?:(?!\byou\b|\banything else\b)[^,:;])*\?\s*"
)
_TAKEN_BACK = re.compile(
    r"(?:[^\w]*(?:wait|hmm+|but|actually|oops|sorry|no|nope|and)\b[\s,.:;–—-]*)*"
    r"(?:(?:that|this|it|which)(?:'s| is| was| would be| seems| looks)(?: (?:clearly|also|just|probably))? "
    r"(?:wrong|incorrect|false|mistaken|a mistake|not (?:right|correct|true|it))|i disagree|i was wrong)\b.*"
)
_NO = re.compile(r"[^\w]*(?:(?:wait|hmm+|but|actually|oops|sorry)\b[\s,.:;–—-]*)*(?:no|nope)\b[\s.!]*")
_WRONG_AFTER = re.compile(r"[,;]\s*(?:which|but (?:that|this|it)) (?:is|was|would be|seems) (?:wrong|false|incorrect|not)\b")
_OUTER = re.compile(
    r"\b(?:not (?:true|the case|right|convinced)|false|untrue|wrong|incorrect|claim|hardly)(?: to say)? (?:that|it is)\b|"
    r"\bnot convinced\b|\bclaim\b"
)
_OTHERS = re.compile(
    r"\b(?:some|many|most|people|they|others|friend|you|one|key|everybody|everyone)(?: (?:people|may|might|could|would|also))* "
    r"(?:say|said|says|think|thinks|argue|argues|claim|claims|believe)\b"
)
_OPEN = re.compile(
    r"\bor (?:something|anything|somewhere|some(?:one|body)) else\b|\bor (?:may )?not\b|\bmaybe not\b|"
    r"\b50\s*[/:-]\s*50\b|\byou (?:can|may|could) (?:skip|ignore|discard|remove)\b"
)
_UNABLE = re.compile(
    r"\b(?:i|we) (?:can ?not|can't|could not|couldn't|am unable to|am not able to|(?:do not|don't|would not|wouldn't) (?:know|"
    r"think|believe|say))\b|"
    r"\bunlikely that\b|\bnot able to\b|\bdoubt\b|"
    r"\b(?:not sure|no (?:idea|clue)|impossible to (?:say|tell))\b|无法|不知道|不清楚|不确定"
)
_ALL_THE_SAME = re.compile(r"\b(?:but|however|so|thus|hence|therefore)\b|[.;]")
_NEGATIVE = re.compile(
    rf"{ALL_BUT}|"
    r"\b(?:wrong|incorrect|false|worst|impossible|least [a-z]+)(?: (?:one|option|answer|choice|letter))? (?:is|would be|seems)\b|"
    r"\b(?:one|option|answer|choice|letter) (?:that|which)\b[^.;,\n]{0,30}(?:\bnot\b|n't|\b(?:wrong|false|excluded|eliminated|"
    r"ruled out)\b)"
    r"[^.;,\n]{0,30}\b(?:is|would be)\b|\b(?:is|as) the (?:odd one out|worst|wrong one|least)\b"
)
_ASKS_FOR_NONE = re.compile(r"\bnot\b|n't\b|\b(?:wrong|incorrect|false|except|least|never|odd|no)\b")
_MODAL = re.compile(r"\b(?:could|might|may)(?: (?:the )?\w+)? be\b")
_TELLS = re.compile(r"\banswer\b(?:\s+(?:is|would be|must be)|\s*[:=])|答案")


def is_doubtful(part: str, question: str, *, yes_no: bool = False, options: Sequence[str] = ()) -> bool:
    """Whether the part of a reply that answers leaves open if what it names is its answer.

    Only its last sentence counts if that says "the answer is …", else its last three. `yes_no`: of a question that is answered so,
    where "no" is an answer and what one cannot see is none. What `options` and a condition of the question say is not the reply's own.
    """
    text = prepared(part)
    for option in sorted(Options.read(options).texts, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)[.!?]*", "\0", text) if " " in option else text
    text = settled(text).strip()
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence and sentence.strip()]
    if not sentences:
        return False
    last = sentences[-1]
    if len(sentences) > 1 and (_TAKEN_BACK.fullmatch(last) or (_NO.fullmatch(last) and not yes_no)):
        return True
    if _ASKS.fullmatch(last):
        return True
    said, asked = last if _TELLS.search(last) else " ".join(sentences[-3:]), prepared(question)

    def own(pattern: re.Pattern[str]) -> re.Match[str] | None:
        return None if pattern.search(asked) else pattern.search(said)

    if any(own(pattern) for pattern in (_CONDITION, _WRONG_AFTER, _OTHERS, _OPEN)):
        return True
    if yes_no:
        return own(_MODAL) is not None
    unable = own(_UNABLE)
    if own(_OUTER) or (unable and not _ALL_THE_SAME.search(said[unable.end() :])):
        return True
    return own(_NEGATIVE) is not None and not asks_what_is_not(question)


def asks_what_is_not(question: str) -> bool:
    """Whether a question asks for what is wrong or does not happen."""
    return _ASKS_FOR_NONE.search(prepared(question)) is not None
