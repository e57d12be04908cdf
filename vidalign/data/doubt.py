"""What leaves open whether a reply states the answer that it names: a condition, a question, what others say, what is taken back.

The rules find the answer that such a reply names; only a judge can say whether it is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vidalign.data.denials import ALL_BUT, settled
from vidalign.data.labels import Options
from vidalign.data.numbers import prepared

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n+")
_CONDITION = re.compile(
    r"\bif\b(?! (?:you (?:need|want|have|would|like|require|look|watch|see|consider|pay)|(?:i|we) (?:had|have|must|look|watch|"
    r"see|consider)|needed|necessary|any|"
    r"so)\b)|\bunless\b(?! (?:i am|i'm) (?:mistaken|wrong))|\bdepend(?:s|ing)? on\b|\bassuming\b|\bprovided\b|\bsuppos(?:e|ing)\b|"
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
_SAID_FIRST = re.compile(r"\W*(?:yes|no|yeah|yep|yup|nope|nah)\b\W*(?:(?:but|and|only|maybe|perhaps|it)\s+)*")
_MODAL = re.compile(r"\b(?:could|might|may)(?: (?:the )?\w+)? be\b")
_GIVES_UP = re.compile(
    r"\W*(?:(?:i'm |i am )?not (?:really |quite )?sure|(?:it(?:'s| is) )?(?:hard|impossible) to (?:say|tell)|no idea|"
    r"i (?:do not|don't) know|"
    r"i (?:can't|cannot|can not|could not|couldn't) (?:really )?(?:tell|say|count|know|see|be sure))(?: for sure)?\W*"
)
_CLAUSE_END = re.compile(
    r";|,\s*(?:but|although|though|however)\b,?|\s(?:but|although|though)\s(?=(?:the|it|i|he|she|they|there|we|this|that|in|at)\b)|"
    r"\s[—–]\s"
)


def is_doubtful(
    part: str, question: str, states: Callable[[str], bool], *, yes_no: bool = False, options: Sequence[str] = ()
) -> bool:
    """Whether the part of a reply that answers leaves open if what it names is its answer.

    It does not where one of its clauses `states` the answer and leaves nothing open. `yes_no`: of a question that is answered so,
    where "no" is an answer and what one cannot see is none. What `options` and the question say is not the reply's own.
    """
    sentences = [sentence for sentence in _SENTENCE_END.split(settled(prepared(part))) if sentence and sentence.strip()]
    if not sentences:
        return False
    asked, texts = prepared(question), sorted(Options.read(options).texts, key=len, reverse=True)

    def own(text: str) -> str:
        for option in texts:
            text = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)[.!?]*", "\0", text) if " " in option else text
        return text.strip()

    last = own(sentences[-1])
    if len(sentences) > 1 and (_TAKEN_BACK.fullmatch(last) or (_NO.fullmatch(last) and not yes_no)):
        return True
    if _ASKS.fullmatch(last) or any(_WRONG_AFTER.search(own(sentence)) for sentence in sentences[-3:]):
        return True
    if yes_no and (
        first := _SAID_FIRST.match(sentences[0])
    ):  # what follows explains, unless it is the condition on which it is so
        condition = None if _CONDITION.search(asked) else _CONDITION.match(sentences[0], first.end())
        return condition is not None or any(_OPEN.search(own(sentence)) for sentence in sentences)
    clauses = [clause for sentence in sentences for clause in _CLAUSE_END.split(sentence)]
    if not yes_no and _GIVES_UP.fullmatch(own(clauses[-1])):
        return True
    clear = [clause for clause in clauses if not _leaves_open(own(clause), asked, yes_no=yes_no)]
    return len(clear) < len(clauses) and not any(states(clause) for clause in clear)


def _leaves_open(clause: str, asked: str, *, yes_no: bool) -> bool:
    if _ASKS.fullmatch(clause):
        return True
    for pattern in (_CONDITION, _OTHERS, _OPEN, *([_MODAL] if yes_no else [_UNABLE, _OUTER, _NEGATIVE])):
        found = None if pattern.search(asked) else pattern.search(clause)
        if pattern is _UNABLE and found and _ALL_THE_SAME.search(clause, found.end()):
            continue
        if found and not (pattern is _NEGATIVE and _ASKS_FOR_NONE.search(asked)):
            return True
    return False


def asks_what_is_not(question: str) -> bool:
    """Whether a question asks for what is wrong or does not happen."""
    return _ASKS_FOR_NONE.search(prepared(question)) is not None
