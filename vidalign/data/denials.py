"""Patterns, in lower case, of what denies a word: before it ("not B", "kein Hund") or after it ("B is wrong", "犬ではない")."""

from __future__ import annotations

_IT_IS = r"(?:\s+(?:that\s+)?(?:it is|it's|this is|that's|it would be|the (?:correct |right )?answer (?:is|would be)))?"
_ELIMINATES = r"(?:rules?|ruled|ruling) out|eliminat(?:e|es|ed|ing)|exclud(?:e|es|ed|ing)|reject(?:s|ed|ing)?"
_FOREIGN = (
    r"(?:\b(?:no (?:es|son|era|está)|n[ãa]o (?:é|são|era)|non (?:è|sono)|pas|nicht|kein(?:e[mnrs]?)?|niet|geen|не|nie jest|inte|ikke|"
    r"bukan|không phải(?: là)?|ليست?)\b|ไม่ใช่)"
)

# Before the label of an option.
NOT = (
    r"(?:(?:\b(?:not|never|neither|nor|except(?: for)?|instead of|rather than|other than|"
    r"(?:anything|everything|all|(?:any|every)(?: (?:option|answer|choice|one))?) but|no longer|without|"
    rf"(?:cannot|can not|can't|could not|couldn't) (?:possibly )?be|{_ELIMINATES}|"
    rf"(?:do not|would not|don't|wouldn't) (?:think|believe|say|choose|pick|select|go with|see){_IT_IS}|doubt{_IT_IS}|"
    r"no(?= [a-z]\b)|not even|unlikely to be|least likely(?: answer| option| choice)?(?: is)?)|n't)\b:?|"
    rf"{_FOREIGN}|不是|不选|并非|非|排除|不)"
)
ELIMINATES = rf"\b(?:{_ELIMINATES})\b"
NOUN = (
    r"(?:(?:necessarily|the|answer|option|choice|letter|选项|la|le|el|die|der|opción|réponse|respuesta|antwort|вариант)\s*)*"
)

# After the label of an option: what ends a clause, and what another option may follow at once.
WRONG = (
    r"(?:(?:is|was|are|(?:would|can|could|must|should) be|seems|looks)\s+(?:(?:clearly|definitely|also|all|both|the|an?) )*"
    r"(?:wrong|incorrect|false|impossible|unlikely|out|ruled out|eliminated|excluded|discarded|dismissed|not)\b|"
    r"(?:isn't|can't|cannot|doesn't|does not|don't|do not)\b|是?(?:错误?|不对|不正确))"
)
AFTER = (
    r"\s*(?:では(?:なく(?:て)?|ない|ありません)|じゃ(?:なく(?:て)?|ない|ありません)|(?:가|이|은|는)?\s*아(?:니(?:라|고|야|다)?|닙니다|님)|"
    r"नहीं|değil)、?"
)

# Before and after the text of an option.
RULED_OUT = (
    r"(?:\bnot|n't|\bnever|\bno|\bneither|\bnor|\b(?:anything|everything|all) but|\bexcept(?: for)?|\bother than|rather than|"
    rf"instead of|\bdoubt{_IT_IS}|\bwithout|\bfrom|不|没|沒|非|不是|没有|并非|{_FOREIGN})\s*"
    r"(?:(?:really|actually|moving|move|moves|going|go|goes|to|towards|the|an?|be|being|any|in|on|at|向|往|朝|在|"
    r"une?|una|eine?[nmrs]?|la|le|el|der|die|das|uma?|(?:\0+\s*,\s*)*\0+\s*,?\s*(?:or|nor|或|和))\s*)*$"  # \0: another option's text
)
RULED_OUT_AFTER = (
    rf"{AFTER}|[\"'”]?\s+(?:is|was|seems|looks|would be|can be)\s+(?:(?:clearly|definitely|also) )?"
    r"(?:wrong|incorrect|false|ruled out|eliminated|impossible|unlikely|"
    r"not (?:correct|the (?:(?:right|correct|best) )?(?:answer|option|choice)))\b"
)
