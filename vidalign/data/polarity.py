"""Does a text say yes or no? By the word itself, or as a statement that repeats or denies what was asked."""

from __future__ import annotations

import re

from vidalign.data.denials import FOREIGN, settled
from vidalign.data.numbers import prepared
from vidalign.data.opposites import PROPERTIES, opposed
from vidalign.data.words import NEGATIONS, content_words, normalise, stem, vocabulary

_YES = "yes|yeah|yea|yep|yup|aye|oui|sí|sì|sim|ja|да"
_NO = "no|nope|nah|nay|non|não|nein|nee|нет"
_YES_ALONE = "true|correct|affirmative|right|si|sure|totally|positive|uh-huh|mhm|for sure"
_SURELY = re.compile(r"(?:(?:indeed|certainly|absolutely|definitely|of course|surely)\b(\s*[,.;:!]*\s*))+")
_NO_ALONE = "false|incorrect|untrue|negative|wrong|uh-uh|nuh-uh"
_YES_SIGNS, _NO_SIGNS = "✓✔✅👍", "✗✘✖❌👎"
_ABROAD = {  # as the first word of a reply, in languages of which another word would be an English one
    **dict.fromkeys(vocabulary("evet tak ano så igen kyllä так ναι נכון כן نعم हाँ हां có đúng ya jawohl vâng أجل"), True),
    **dict.fromkeys(vocabulary("hayır nie nej nei nem ні όχι לא لا नहीं không tidak bukan كلا"), False),
}
_YES_BEGINS = re.compile(
    r"(?:没错|不错|是的(?!吗)|是(?!不是|吗|否)|对的|对|對|会|會|可以|はい(?!か|と)|ええ|そうです|うん|예|네|그렇습니다|有(?!没有)|ใช่)"
)
_NO_BEGINS = re.compile(
    r"(?:不是|不会|不(?!错)|没有|没(?!错)|沒有|沒|否|非|いいえ|いや|違い|ううん|아뇨|그렇지 않|아니|아닙|ไม่)"
)
_AUXILIARY = re.compile(
    r"(?:\W*(?:in|on|at|during|according to|based on|from) [^,?]{1,60},\s*)?"
    r"\W*(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|should|isn't|aren't|doesn't|don't|didn't|hasn't)\b"
    r"|.*(?:吗|嗎|是否|か)[？?。]?\s*$",
    re.DOTALL,
)
_PREAMBLE = re.compile(
    r"(?<!\w)(?:(?:so|well|hmm+|okay|ok|i think|i believe|(?:i'm|i am) (?:sure|certain|confident)(?: that)?|"
    r"i would say|i'd say|therefore|thus|(?:based on|according to) the video)\b[,:]?\s*)+"
)
_CUE = re.compile(
    r"(?:\banswer\b(?:\s+(?:is|would be|should be|must be))?|答案(?:是|为)?|答え(?:は)?|정답은?)\s*[:=]?\s*"
    r"(?:simply |clearly |therefore )?[\"'“(]*"
    rf"({_YES}|{_NO}|{_YES_ALONE}|{_NO_ALONE}|是|否|不是|没有|有|对|不)(?![^\W_])(?!\s*(?:or|and|/)\s*(?:no|yes)\b)"
)
_CORRECTED = re.compile(
    rf"\b(?:wait|actually|correction|sorry|oops|i mean|i meant|but(?=\s+\w+\W*$))\b[,:.]?\s*(?:no, )?"
    rf"(?:it is |it's |the answer is )?({_YES}|{_NO})\b"
)
_WORD = re.compile(rf"(?<!\w)({_YES}|{_NO}|{_YES_ALONE}|{_NO_ALONE})(?!\w)")
_BOTH = re.compile(r"\b(?:yes or no|yes and no|no and yes|no or yes|yes/no|no/yes)\b")
_JOINED = r"[\s.,;!…]+(?:(?:y|e|et|und|и|a|and)\s+)?"
_YES_AND_NO = re.compile(
    rf"(?:(?:{_YES}|はい|네|예|是){_JOINED}(?:{_NO}|いいえ|아니요|不是)|(?:{_NO}|いいえ|아니요|不是){_JOINED}(?:{_YES}|はい|네|예|是))[\W]*"
)
_UNSURE = re.compile(
    r"\b(?:can't|cannot|can not|could not|couldn't|unable to|impossible to) (?:be |\w+ )?"
    r"(?:tell|say|determine|see|know|answer|determined)\b|"
    r"(?:\bnot|n't) (?:sure|know|clear|certain|enough)\b|\b(?:unclear|uncertain|unknown|maybe|perhaps|possibly)\b|"
    r"\b(?:sorry|apologi[sz]e|as an ai|no (?:idea|clue|information)|hard to (?:say|tell))\b|"
    r"\b(?:i|we)(?:'m| am| are|'re)? (?:cannot|can't|can not|could not|couldn't|unable to|not able to|(?:do not|don't) have)\b|"
    r"^neither\b|不确定|无法|不知道|不清楚|抱歉"
)
_IT_SEEMS = re.compile(
    r"\b(?:it|there|this|that|he|she|they) (?:appears?|seems?) to\b|"
    r"\b(?:it )?(?:appears|seems|looks) (?:that|like|as if)(?: it)?\b(?= \w+ )"
)
_AGREES = re.compile(
    r"(?:i|we) (?:think|believe|guess|suppose|would say) so|(?:it )?(?:appears|seems|looks) (?:so|that way|like it)|"
    r"so it (?:seems|appears)"
)
_CLAUSE = re.compile(r"[,.;:!?\n]|\b(?:but|because|since|although|though|and|while|whereas|so)\b")
_HERE = re.compile(rf"\b({_YES}|{_NO})(?=\s*$|\s+(?:at|in|by|after|before|initially|finally|later|now|first)\b)")
_DENIED_TWICE = re.compile(r"\b(?:without|deny|denie[sd]|denying)\b")
_IS_NOT_DONE = re.compile(r"\b(?:(?:is|was|are|were) (?:unable|not able) to|(?:fails?|failed|refuses?|refused) to)\b")
_EXISTS = re.compile(r"\b(?:is|are|was|were) there\b|\b(?:appears?|see|seen|shows?|shown|contains?|visible|present|any)\b")
_ASIDE = re.compile(
    r"\b(?:before|after|when|while|during|until|at the (?:end|start|beginning)|in the (?:video|clip|scene))\b"
)
_SUBJECT = re.compile(r"\W*\w+ (?:the|an?|this|that|any) (\w+)\b.*\w", re.DOTALL)
_PRONOUN = re.compile(r"(?:it|they|he|she|this|that|there)\b")
_FILLERS = frozenset(
    map(
        stem,
        vocabulary(
            "sure certain confident indeed definitely clearly surely apparently probably obviously really actually look seem appear m"
        ),
    )
)
_GENERIC = frozenset(  # of "I don't see any", "It doesn't show one"
    map(
        stem,
        vocabulary(
            "see seen show shown appear visible video clip any anyone anybody anything one such present contain find notice so all "
            "exactly think really quite believe case true correct right longer more way at in on yet look seem like least whatsoever"
        ),
    )
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
    if text in _ABROAD:
        return _ABROAD[text]
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
    if _BOTH.search(text) or _YES_AND_NO.fullmatch(text):
        return None
    if re.match(r"neither\b(?!\s+(?:yes|no)\b)", text) and re.search(r"\bor\b", prepared(question)):
        return False
    if _AGREES.fullmatch(normalise(text)):
        return True
    text = _IT_SEEMS.sub("it ", settled(_PREAMBLE.sub("", text, count=1))).strip(" \n\t,\"'“”(*[")
    if text and text[0] in _YES_SIGNS + _NO_SIGNS:
        return text[0] in _YES_SIGNS
    text = re.sub(r"^जी[\s,]+(?=\w)", "", text)
    if by_place := _where_asked(text, question):
        return by_place[0] if len(by_place) == 1 else None
    surely = _SURELY.match(text)
    if surely:
        rest = text[surely.end() :]
        meant = polarity(rest, question) if rest else True
        return True if meant is None and surely[1].strip() else meant
    first = re.match(
        rf"({_YES}|{_NO}|{_YES_ALONE}|{_NO_ALONE})(?![^\W_])(?!\s*\?|-\w|\s+(?:doubt|one|not|idea|clue|way to)\b|\s+(?:is|was|"
        rf"would be) (?:wrong|incorrect|false|not)\b)",
        text,
    )
    if first and first[1] not in ("right", "wrong", "si", "sure"):
        return _means(first[1])
    if _UNSURE.search(text):
        return None
    word = re.match(r"[^\s,.;:!?。，،।]+", text)
    if word and word[0] in _ABROAD:
        return _ABROAD[word[0]]
    by_side = re.search(r"\b(?:left|right)\b", prepared(question)) is not None
    if normalise(text) in ("y", "right", "sure", "si", "n", "wrong") and not (by_side and normalise(text) == "right"):
        return normalise(text) not in ("n", "wrong")
    short = re.fullmatch(r"(?:that|this|it)(?:'s| is) (right|true|correct|wrong|untrue)", normalise(text))
    if short:
        return short[1] not in ("wrong", "untrue")
    if not by_side:
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


def speaks_of_it(text: str, question: str) -> bool:
    """Whether a text is a statement with a word of what was asked, beside what it was asked about, and is sure of it."""
    text = prepared(text)
    if (
        not text.isascii()
        or "?" in text
        or _EXISTS.search(prepared(question))
        or _UNSURE.search(text)
        or _WORD.search(text)
        or re.search(FOREIGN, text)
    ):
        return False
    subject = _SUBJECT.match(prepared(question))
    asked = set(content_words(_ASIDE.split(prepared(question))[0])) - ({stem(subject[1])} if subject else set())
    said = set(content_words(text))
    return bool(said & asked) and bool(said - asked) and not _opposed(said, set(content_words(question)))


def _means(word: str) -> bool:
    return re.fullmatch(f"{_YES}|{_YES_ALONE}|是|有|对", word) is not None


def _in_context(text: str, match: re.Match[str]) -> bool:
    denied = (
        re.search(r"(?:\bnot|n't|\bnever)\s+(?:really |quite |a |the |say |think |believe )*$", text[: match.start()])
        is not None
    )
    denied |= re.match(r"\s+(?:is|was|would be) (?:wrong|incorrect|false|not)\b", text[match.end() :]) is not None
    return _means(match[1]) != denied


def _where_asked(text: str, question: str) -> list[bool]:
    """Of "no at first, but yes at the end", what is said of what is asked about: several where that cannot be told."""
    if re.match(rf"(?:{_YES}|{_NO})\s*[,.;:!]", text):
        return []
    asked = {word for word in content_words(question) if len(word) > 2}
    said = [
        (len(asked & set(content_words(clause))), _means(match[1]))
        for clause in _CLAUSE.split(text)
        for match in [_HERE.search(clause)]
        if match
    ]
    if len({means for _, means in said}) < 2:
        return []
    return [means for overlap, means in said if overlap == max(said)[0]]


def _as_statement(text: str, question: str) -> bool | None:
    """A statement that repeats what was asked, or denies it, or says the opposite."""
    text, asked = _IS_NOT_DONE.sub("does not", text), set(content_words(question))
    least = len(set(content_words(_ASIDE.split(prepared(question))[0]))) / 2
    if re.match(r"\W*(?:[a-z]+n't|cannot)\b", prepared(question)):
        asked -= NEGATIONS  # "Isn't it red?" asks whether it is red
    clauses = [(clause, set(content_words(clause)) - (_FILLERS - asked)) for clause in _CLAUSE.split(text)]
    if any(
        _DENIED_TWICE.search(clause) and len(words & NEGATIONS) + bool(re.search(r"\bden", clause)) > 1
        for clause, words in clauses
    ):
        return None  # "He is not without a hat"
    if _EXISTS.search(prepared(question)):  # that there is a blue one says nothing of a red one
        clauses = [(clause, said) for clause, said in clauses if "empty" in said or not _opposed(said, asked)]
    denied = [(clause, said) for clause, said in clauses if said & NEGATIONS - asked]
    about = [said for _, said in denied if (rest := said - NEGATIONS) == set() or rest & asked or _opposed(rest, asked)]
    plain = [(clause, said) for clause, said in clauses if said and not said & NEGATIONS - asked]
    core = content_words(_ASIDE.split(prepared(question))[0])[-1:]
    about = [said for said in about if not said - NEGATIONS - asked - _GENERIC or said & set(core) or _opposed(said, asked)]
    repeated = any(_repeats(clause, said, asked, least) for clause, said in plain)
    if (
        text.isascii()
        and denied
        and not about
        and not repeated
        and all(said - NEGATIONS - asked - _GENERIC for _, said in denied)
    ):
        return None  # "It is not made of stone"
    if denied and (about or not repeated):
        return any(_opposed(said, asked) for said in about)
    if _SHORT_YES.fullmatch(normalise(text)):
        return True
    said = set().union(*(said for _, said in plain)) if plain else set()
    opposites = _opposed(said, asked)
    if len(opposites) > 1:
        return None  # it speaks of something else
    said = {opposites.get(word, word) for word in said}
    subject = _SUBJECT.match(prepared(question))
    if subject and said <= {stem(subject[1])}:
        return None  # "The man"
    return not opposites if _repeats(text, said, asked, least) else None


def _opposed(said: set[str], asked: set[str]) -> dict[str, str]:
    """Words that rule out one that is asked about, each with that one."""
    return {word: other for word in said if (other := opposed(word, asked))}


def _repeats(clause: str, said: set[str], asked: set[str], least: float) -> bool:
    """Whether a clause says only what was asked: more than half of it, or of what "it" is, or the one property alone."""
    return (
        said <= asked
        and bool(said)
        and (len(said) > least or _PRONOUN.match(clause.strip()) is not None or said <= PROPERTIES)
    )
