"""What denies a word, in lower case: before it ("not B", "kein Hund") or after it ("B is wrong", "犬ではない")."""

from __future__ import annotations

import re

from vidalign.data.labels import CLOSE, ENDS, OPEN, OR, Options

_IT_IS = r"(?:\s+(?:that\s+)?(?:it is|it's|this is|that's|it would be|the (?:correct |right )?answer (?:is|would be)))?"
_ELIMINATES = r"(?:rules?|ruled|ruling) out|eliminat(?:e|es|ed|ing)|exclud(?:e|es|ed|ing)|reject(?:s|ed|ing)?"
FOREIGN = (
    r"(?:\b(?:no (?:es|son|era|está)|n[ãa]o (?:é|são|era)|non (?:è|sono)|pas|nicht|kein(?:e[mnrs]?)?|niet|geen|не|nie jest|"
    r"inte|ikke|"
    r"bukan|không phải(?: là)?|ليست?|weder|noch|ni|außer|sauf|menos|excepto|кроме|tranne|behalve)\b|ไม่ใช่|除了)"
)

# Before the label of an option.
NOT = (
    r"(?:(?:\b(?:not|never|neither|nor|except(?: for)?|instead of|rather than|other than|"
    r"(?:anything|everything|all|(?:any|every)(?: (?:option|answer|choice|one))?) but|no longer|without|"
    rf"(?:cannot|can not|can't|could not|couldn't) (?:possibly )?be|{_ELIMINATES}|"
    r"cross(?:ed)? out|str(?:ike|uck)(?: out)?|discard(?:ed)?|remove[ds]?|skip(?:ped)?|ignored?|disregard|hardly|scarcely|"
    rf"(?:do not|would not|don't|wouldn't) (?:think|believe|say|choose|pick|select|go with|see){_IT_IS}|doubt{_IT_IS}|"
    r"no(?= [a-z]\b)|not even|unlikely to be|least likely(?: answer| option| choice)?(?: is)?)|n't)\b:?|"
    rf"{FOREIGN}|不是|不选|并非|非|排除|不)"
)
ELIMINATES = rf"\b(?:{_ELIMINATES})\b"
NOUN = (
    r"(?:(?:necessarily|the|answer|option|choice|letter|选项|la|le|el|die|der|opción|réponse|respuesta|antwort|вариант)\s*)*"
)

# After the label of an option: what ends a clause, and what another option may follow at once.
WRONG = (
    r"(?:(?:is|was|are|(?:would|can|could|must|should) be|seems|looks)\s+(?:(?:clearly|definitely|also|all|both|the|an?) )*"
    r"(?:wrong|incorrect|false|impossible|unlikely|out|ruled out|eliminated|excluded|discarded|dismissed|not)\b|"
    r"(?:isn't|can't|cannot|couldn't|wouldn't|doesn't|does not|don't|do not|never)\b|"
    r"(?:makes no sense|has no\b|contradicts|would (?:require|need)|lacks|conflicts|(?:is|was) (?:the |an? )?(?:distractor|"
    r"trap|decoy))|"
    r"[:=(-]*\s*(?:(?:wrong|incorrect|false)\b|[✗✘✖❌])|=\s*no\b|"
    r"(?:[:?,]|\s[-–—])\s*(?:no\b(?! doubt| question|,)|nope\b|not really|no way|i doubt)|是?(?:错误?|不对|不正确)|"
    r"(?:ist|est|es|è|é|это|—|-)\s+(?:falsch|faux|fausse|incorrect[aeo]?|falso|falsa|errad[ao]|errat[ao]|nicht|pas|неверно|"
    r"неправильно)\b|"
    r"n'est pas\b|stimmt nicht|no es\b|non è\b|não é\b|गलत|(?:는|은|가|이)\s*틀|は(?:間違|違|誤)|(?:неверн|неправильн)\w+|خطأ|خاطئ)"
)
AFTER = (
    r"\s*(?:では(?:なく(?:て)?|ない|ありません)|じゃ(?:なく(?:て)?|ない|ありません)|(?:가|이|은|는)?\s*아(?:니(?:라|고|야|다)?|닙니다|님)|"
    r"नहीं|değil)、?"
)

# Before and after the text of an option.
RULED_OUT = (
    r"(?:\bnot|n't|\bnever|\bno|\bneither|\bnor|\b(?:anything|everything|all) but|\bexcept(?: for)?|\bother than|rather than|"
    rf"instead of|\bdoubt{_IT_IS}|\bwithout|\bfrom|不|没|沒|非|不是|没有|并非|{FOREIGN})\s*"
    r"(?:(?:really|actually|moving|move|moves|going|go|goes|to|towards|the|an?|be|being|any|in|on|at|向|往|朝|在|"
    r"une?|una|eine?[nmrs]?|la|le|el|der|die|das|uma?|à|zu|nach|a|naar|к|на|(?:\0+\s*,\s*)*\0+\s*,?\s*(?:or|nor|或|"
    r"和))\s*)*$"  # \0: another option's text
)
RULED_OUT_AFTER = (
    rf"{AFTER}|[\"'”]?\s+(?:is|was|seems|looks|would be|can be)\s+(?:(?:clearly|definitely|also) )?"
    r"(?:wrong|incorrect|false|ruled out|eliminated|impossible|unlikely|"
    r"not (?:correct|the (?:(?:right|correct|best) )?(?:answer|option|choice)|the [a-z]+est))\b|\s+(?:nicht|niet|не)\b"
)

# What is beyond doubt is said without its assurance, and a denied denial as what it leaves.
CERTAIN = re.compile(
    r"\b(?:(?:there(?:'s| is)|(?:i|we) have|with) )?(?:no|without(?: an?| any)?|beyond(?: an?| any)?) (?:doubt|question)\b(?!s)"
    r"(?: (?:about it|that)\b)?[,:]?|\b(?:i|we) (?:do not|don't) doubt(?: that)?|\bundoubtedly\b|\bnot only\b"
)
_BUT = r"(?:but|except(?: for)?|besides|apart from|aside from|other than|save|excluding)"
_ONLY = re.compile(
    rf"(?:\b(?:nothing|none|no (?:one|option|answer|choice))|(?:n't|\bnot|\bcannot|\bnever)(?: (?:possibly|"
    rf"really))? (?:be )?any(?:thing| option| answer)) {_BUT}\b"
)
ALL_BUT = (
    r"\b(?:everything|anything|all|each|every|any)(?: (?:of|the|these|them|one|(?:other )?(?:option|answer|choice|one|letter|"
    r"statement)s?))*"
    rf" {_BUT}\b"
)
_ALL_WRONG = re.compile(
    rf"{ALL_BUT}\s*(?P<kept>[^.;,\n]{{1,60}}?)\s+(?:is|are|can be|could be|must be|seems?|looks?)\s+"
    r"(?:wrong|incorrect|false|impossible|ruled out|eliminated|excluded|discarded|out)\b"
)


def settled(text: str) -> str:
    """A text without assurances, with "nothing but B" as "only B" and "everything except B is wrong" as "B"."""
    return _ALL_WRONG.sub(r" \g<kept> ", _ONLY.sub(" only", CERTAIN.sub(" ", text)))


def without_denied(text: str, listed: Options) -> str:
    """The text without the labels that it rules out: "not B", "B is wrong" and the like."""
    text = settled(text)
    named = rf"{OPEN}{listed.label}{ENDS}{CLOSE}"
    joined = rf"(?:\s*(?:,?\s*(?:{OR})\b|/)\s*{NOUN}{named})*"
    own = "|".join(rf"{name}{ENDS}{CLOSE}[.:]?\s+{re.escape(text)}(?!\w)" for name, text in listed.pairs)
    text = re.sub(rf"{named}\s*\?\s*no\b[,.:;]?", " ", text)
    text = re.sub(rf"{NOT}\s*{NOUN}{OPEN}(?:{own})", " ", text) if own else text
    for name, words in listed.pairs:
        text = re.sub(rf"{NOT}\s*{NOUN}{re.escape(words)}\s*[(\[]{name}[)\]]", " ", text)
    text = re.sub(
        rf"{ELIMINATES}\s*{NOUN}{named}(?:\s*,\s*{named})*(?:\s*,?\s*and\s+{named}|(?=\s*(?:→|->|[.;:\n])))", " ", text
    )
    text = re.sub(rf"[✗✘✖❌]\s*{named}", " ", text)
    text = re.sub(rf"{NOT}\s*{NOUN}{named}(?:(?:\s*,\s*{named})+\s*,?\s*(?:{OR})\s+{named}|{joined})", " ", text)
    several = rf"(?:{named}\s*(?:,|and|or|,\s*and|和)\s*)*"
    text = re.sub(rf"(?<![\w'])(?:options?\s+)?{several}{named}{AFTER}", " ", text)
    return re.sub(rf"(?<![\w'])(?:options?\s+)?{several}{named}\s*{WRONG}[^.;,\n]*", " ", text)
