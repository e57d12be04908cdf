"""Which option a reply names: by its letter in any of the forms that models use, by its text, or by neither.

A reply's last explicit statement counts ("the answer is (B)", "Option B", a line that is the letter), as evaluation harnesses do it
(MMMU's and VLMEvalKit's rules are of this kind). Ruled-out options ("not B", "B is wrong") are not named, a letter beside another
option's text names none, and neither do several options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vidalign.data.denials import FOREIGN, RULED_OUT, RULED_OUT_AFTER, without_denied
from vidalign.data.final_answer import answering_part
from vidalign.data.labels import CLOSE, CONFLICT, ENDS, LETTER, MENTION, OPEN, OR, WORD_AFTER, Options, by_place
from vidalign.data.numbers import find_numbers, prepared
from vidalign.data.own_words import (
    has_numbers,
    is_weighed,
    of_clause,
    says_another,
    with_units,
    with_whole_names,
    without_asides,
    without_explained,
)
from vidalign.data.verdict_lists import by_verdicts
from vidalign.data.words import NEGATIONS, SPACELESS, content_words, is_in_order, normalise

_CUE = re.compile(
    r"\b(?:answer|choice|option|selection|response|solution|respuesta|réponse|antwort|risposta|resposta|ответ)"
    r"(?:\s+(?:to (?:the|this) question|here))?\s*"
    r"(?:\b(?:is|(?:would|should|must|will|could only) be|(?:has|seems|appears) to be|es|est|ist|è|é)\b|[:=]|->|→|-)+\s*"
    r"(?:(?:therefore|thus|clearly|probably|likely|most likely|definitely|actually|simply|that|option|choice|letter)\b\s*)*:?\s*"
    r"|(?:[:?]|\b(?:on|upon|after|in) [^.,;:\n]{1,40},)\s*(?=[(\[]?[a-z][)\]]?[\s.!]*$)"
    r"|(?:正确)?(?:答案|选项|答え|正解|回答|답|정답)\s*(?:应该|应当|应)?(?:是|为|選|选|は|은|는|:)*\s*|选择?\s*(?=[a-z(\[])"
)
_WEAK_CUE = re.compile(
    r"\b(?:option|choice|letter|choose|chose|pick|select|go with|going with|went with|it's|that's|must be|should be|would be|so|"
    r"therefore|thus|hence|but|(?:it|this|that|which) (?:is|must be|should be|would be))\b[,:]?\s*(?:(?:option|choice|letter) )?"
    r"|\b(?:hm+|wait|actually|sorry|correction|oops|i mean|i meant|scratch that|strike that|on second thoughts?|rather|"
    r"no(?=\s*[,:.–—-]))\b"
    r"[\s,.:;–—-]*(?:no\b[\s,.]*)?(?:(?:it|that)(?:'s| is)\s+)?"
    r"|(?:应该|应|而|就)?是(?=\s*[(\[【]?[a-z](?![a-z]))"
)
_HEDGE = re.compile(
    rf"\s*(?:{OR}|and|und|et|y|и|as well as|(?:together|along) with|/|[,;<>]|&|\||\+|或|和|还是)\s*(?:(?:else|maybe|perhaps|"
    rf"possibly|probably|also|even|or|and)\s+)*(?:option\s+)?{OPEN}[a-z]{CLOSE}(?:\s*$|\s*[.,;:!?)\n]|\s+(?:or|and|are|were|"
    rf"both|seem|look|could|can|might|may)\b)"
)
_SEPARATOR = re.compile(r"\s*[.:,;!、。．=)\]-]+|\s*\n|\s+[-–—]\s")
_RULED_OUT, _RULED_OUT_AFTER = re.compile(RULED_OUT), re.compile(RULED_OUT_AFTER)
_RULED_OUT_LISTED = re.compile(RULED_OUT.removesuffix("$") + r"(?:\0+\s*,\s*)+$")
_GOES_ON = re.compile(r"\s*(?:,\s*\0|,?\s*(?:or|nor)\b)")  # of a list
_NO_ARTICLE = re.compile(r"(?:left|right|up|down|yes|no|true|false|red|blue|green|yellow|black|white|\d+)\b(?!\s)")
# What a letter in a sentence has before it where it is meant as a label: nothing, a mark, another script, or one of these words.
_MEANT = re.compile(
    r"(?:^|[^\w\s]|\n|[^\x00-\x7f]|\b(?:is|are|was|be|option|choice|letter|answer|alternative|response|selection|solution|"
    r"(?:pick|select|vote|mark|say|guess|suggest|prefer|see|leav|remain|mean|lik|tak|giv|rat|choos)(?:e|es|s|ing|ed)?|chose|down|"
    r"glaube|on|shows?|supports?|indicates?|go|going|gonna|leans?|leaning|gets?|got|matches|fits|"
    r"said|meant|with|for|as|by|think|"
    r"believe|take|so|thus|hence|therefore|then|only|just|to|towards?|but|rather|or|and|either|do|does|did|us|i'd|final|here|"
    r"not|correct|"
    r"right|best|ok|okay|well|hmm|umm?|uh|[a-z]+ly|maybe|perhaps|yes|no|es|est|ist|lautet|la|letra|réponse|opción|opcion|"
    r"respuesta|antwort|risposta|"
    r"wähle|choisis|elijo|escolho|denke|nehme|bukan|jawaban|odpowied[źz]|cevap|ans)\s*)[(\[{<\"'“‘«\s]*$"
)
_LATIN = str.maketrans("АВСЕНІавсеіΑΒΕΗΙ", "ABCEHIabceiABEHI")  # Cyrillic and Greek letters that look as Latin ones do
_LOOKALIKE = re.compile(r"(?<!\w)[АВСЕНІавсеіΑΒΕΗΙ](?=\s*(?:[)\].:\]】»\"'*}]|$))")
_NUMBER_ALONE = re.compile(r"\W*\d[\d.,\s]*")
_NONE = re.compile(
    r"(?:none|neither|no)(?: of (?:the|these|those|them))?(?: (?:other|given|listed))?(?: (?:above|options?|answers?|choices?|"
    r"others?))?"
    r"(?: (?:is|are) (?:right|correct|true))?"
)
_HANGUL = re.compile(r"[가-힣]")  # endings follow a word without a space


def chosen_option(reply: str, options: Sequence[str]) -> int | None:
    """Index of the one option that a reply names; None where it names none, or no single one."""
    index = read_choice(reply, options)
    return index if index >= 0 else None


def read_choice(reply: str, options: Sequence[str]) -> int:
    """Index of the one option that a reply names; CONFLICT where it names none or several, MENTION where it may mean another thing."""
    listed = Options.read(options)
    part, _ = answering_part(reply)
    if not any(_LOOKALIKE.match(text) for text in listed.texts):
        part = _LOOKALIKE.sub(lambda match: match[0].translate(_LATIN), part)
    exact = _by_text_alone(part, listed)
    if exact is not None:
        return exact
    text, listed = with_whole_names(prepared(part), listed)
    verdicts = by_verdicts(text, listed)
    if verdicts is not None:
        return verdicts
    text = without_denied(without_asides(text, listed), listed)
    several = re.fullmatch(r"[a-z](?:[\s,;/&+→>-]+[a-z])+[.!]?", text.strip()) if "\n" not in text.strip() else None
    if is_weighed(text, listed) or (several and len(set(re.findall("[a-z]", text))) > 1):
        return CONFLICT
    for rule in (_last_statement, _by_lines, by_place, _by_mention):
        if (stated := rule(text, listed)) is not None:
            return stated
    return CONFLICT


def _by_text_alone(part: str, listed: Options) -> int | None:
    text = normalise(part)
    if text != "no" and _NONE.fullmatch(text) and text not in listed.texts:
        none = [index for index, option in enumerate(listed.texts) if option != "no" and _NONE.fullmatch(option)]
        return none[0] if len(none) == 1 else None
    if text in listed.texts:
        return listed.texts.index(text) if listed.texts.count(text) == 1 else None
    labelled = re.fullmatch(rf"{OPEN}([a-z]|\d{{1,2}}){CLOSE}[.:、]?\s+(.+)", part.strip().casefold(), re.DOTALL)
    if labelled and labelled[1] in listed.labels:
        index = listed.labels.index(labelled[1])
        return index if normalise(labelled[2]) == listed.texts[index] else None
    return of_clause(text, listed)


def _last_statement(text: str, listed: Options) -> int | None:
    """What the last "the answer is …" or "B is correct" says."""
    found: list[tuple[int, int]] = []
    for cue in _CUE.finditer(text):
        rest = text[cue.end() :]
        index = _at_start(rest, listed, stated=True)
        if index is None:
            named = named_options(re.split(r"\n|[.!?。](?:\s|$)", rest, maxsplit=1)[0], listed)
            index = named.pop() if len(named) == 1 else None
        if index is not None:
            found.append((cue.start(), index))
    for cue in _WEAK_CUE.finditer(text):
        index = _at_start(text[cue.end() :], listed)
        if index is not None:
            found.append((cue.start(), index))
    praised = (
        r"(?:is|seems|looks)\s+(?:the\s+)?(?:only\s+|most\s+)?(?:likely\s+)?(?:correct|right|best|accurate|true|answer)\b"
    )
    other = r"(?<![\w'])(?:[b-hj-z]|[ai](?=\s+(?:is|seems|looks)\b))(?![\w'])"
    between = rf"(?:(?!{other})[^.,;\n]){{0,60}}"  # the option's text, and no other letter
    reverse = rf"(?<![\w'])(?<!\bor )(?<!\band ){OPEN}({listed.label}){ENDS}{CLOSE}[.:]?\s+(?:{between}\s)?{praised}"
    found += [(match.start(), listed.index(match[1])) for match in re.finditer(reverse, text)]
    return max(found, key=lambda item: item[0])[1] if found else None


def _by_lines(text: str, listed: Options) -> int | None:
    """A last line that is a label and no more, or a first line that begins with one."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    alone = re.fullmatch(rf"\s*{OPEN}({listed.label}){CLOSE}[\s.:,;!。]*", lines[-1])
    if alone and len(lines) > 1:
        return listed.index(alone[1])
    return _at_start("\n".join(lines), listed)


def _at_start(text: str, listed: Options, *, stated: bool = False) -> int | None:
    """The label that a text begins with; CONFLICT where it goes on with another label or with another option's text.

    `stated`: after "the answer is", so that another label on a later line takes nothing back, unless all options are listed.
    """
    match = re.match(rf"\s*{OPEN}(?:option\s+|choice\s+|选项\s*)?{OPEN}([a-z]|\d{{1,2}}){ENDS}{CLOSE}", text)
    if match is None or (match[1].isdigit() and match[1] not in listed.labels):
        return None
    label, after = match[1], text[match.end() :]
    index = listed.index(label)
    bracketed = match[0].rstrip()[-1] in ")]}>" or bool(_SEPARATOR.match(after)) or not after.strip()
    if not bracketed and not re.match(r"\s", after) and not SPACELESS.match(after):
        return None
    own = listed.texts[index] if index >= 0 else None
    if re.match(r"-[^\W\d_]", after) and not (own and normalise(after[1:]).startswith(own)):
        return None  # "B-side"
    if label in ("a", "i") and not bracketed and re.match(WORD_AFTER, after) and normalise(after) != own:
        # An article or a pronoun, unless another option's text follows that takes no article.
        return CONFLICT if normalise(after) in listed.texts and _NO_ARTICLE.match(normalise(after)) else None
    if label.isdigit() and not bracketed:
        return None  # "2 dots"
    if index == CONFLICT:
        return CONFLICT if bracketed else None
    if _HEDGE.match(after):
        return CONFLICT
    others = {listed.index(match[1]) for match in re.finditer(r"\n\s*[(\[]?([a-z]|\d{1,2})[)\].:]+\s", f"{after} ")}
    others -= {index, CONFLICT}
    if others and (not stated or len(others) == len(listed.labels) - 1):
        return CONFLICT  # a list of options
    named = named_options(without_explained(after, listed), listed)
    return index if len(named) != 1 or index in named else CONFLICT


def _by_mention(text: str, listed: Options) -> int | None:
    """The one label, or the one option's text, that occurs anywhere."""
    label = listed.label
    inside = rf"(?<![\w'.-]){OPEN}({label}){ENDS}{CLOSE}(?!-\w)" if label == LETTER else rf"[(\[]({label})[)\]]"
    matches = [match for match in re.finditer(inside, text) if match[1] in listed.labels]
    labels = {listed.index(match[1]) for match in matches}
    named = named_options(text, listed)
    if len(labels) == 1 and (not named or labels <= named or len(named) > 1):
        return labels.pop() if named or any(_MEANT.search(text[: match.start(1)]) for match in matches) else MENTION
    if not labels and not named:
        named = _inflected(text, listed) or _in_part(text, listed)
    if len(named) != 1 or labels:
        return None
    index = named.pop()
    return CONFLICT if says_another(text, listed, index) else index


def _inflected(text: str, listed: Options) -> set[int]:
    """Indices of the options whose words a text says in order in any inflection ("closing" for "closes"), without denying anything."""
    said = content_words(text)
    found: dict[int, list[str]] = {}
    denied = named_options(text, listed, denied=True)
    for index, option in enumerate(listed.texts):
        words = content_words(option)
        if _NUMBER_ALONE.fullmatch(option) or not has_numbers(option, text):
            continue  # 4 is not in 4.5
        if re.search(FOREIGN, text) and not re.search(FOREIGN, option):
            continue
        if index not in denied and words and is_in_order(words, said) and set(said) & NEGATIONS <= set(words):
            found[index] = words
    return {index for index, words in found.items() if not any(set(words) < set(other) for other in found.values())}


def _in_part(text: str, listed: Options) -> set[int]:
    """Indices of the options of which a text says at least half the words and nothing else, and more than a "not"; or that begin with
    its yes or no.
    """
    if begun := re.match(r"[^\w]*(yes|no)\b(?=\W*$|,)", text):
        same = {"yes": "yes|true|correct", "no": "no|false|incorrect"}[begun[1]]
        first = {index for index, option in enumerate(listed.texts) if re.match(rf"(?:{same})\b", option)}
        rest = set(content_words(text[begun.end() :])) & {
            w for i, t in enumerate(listed.texts) if i not in first for w in content_words(t)
        }
        return first if not rest - {w for index in first for w in content_words(listed.texts[index])} else set()
    said, denied = content_words(text), named_options(text, listed, denied=True)
    found = set()
    for index, option in enumerate(listed.texts):
        words = content_words(option)
        if _NUMBER_ALONE.fullmatch(option):
            continue
        if (
            set(said) - NEGATIONS
            and index not in denied
            and is_in_order(said, words)
            and set(said) & NEGATIONS == set(words) & NEGATIONS
        ):
            found.add(index if 2 * len(said) >= len(words) else CONFLICT)
    return found if CONFLICT not in found else set()


def named_options(text: str, listed: Options, *, denied: bool = False) -> set[int]:
    """Indices of the options whose texts occur in a text as whole words and are not ruled out (`denied`: are); the longest first."""
    text = _digits(text)
    mentions: list[tuple[int, re.Match[str]]] = []
    for index, option in sorted(enumerate(listed.texts), key=lambda item: -len(item[1])):
        bare = re.sub(r"^(?:an?|the)\s+(?=\S)", "", _digits(option)) or option
        if not bare or (len(bare) == 1 and bare.isascii() and bare.isalpha()):
            continue
        starts = "" if SPACELESS.match(bare) else r"(?<![^\W_])(?<!\d[.,])" + r"(?<!(?<!\w)[-−])" * bare[0].isdigit()
        ends = "" if SPACELESS.match(bare[-1]) or _HANGUL.match(bare[-1]) else r"(?![^\W_])(?![.,]\d)"
        pattern = re.compile(starts + r"\s+(?:(?:an?|the)\s+)?".join(map(re.escape, bare.split())) + ends)
        mentions += [(index, match) for match in pattern.finditer(text)]
        text = pattern.sub(lambda match: "\0" * len(match[0]), text)
    said = {index for index, match in mentions if not _is_ruled_out(text, match)}
    return {index for index, _ in mentions} - said if denied else said


def _is_ruled_out(text: str, match: re.Match[str]) -> bool:
    before = _RULED_OUT.search(text[: match.start()])
    if before is None and _GOES_ON.match(text, match.end()):
        before = _RULED_OUT_LISTED.search(text[: match.start()])
    if before and before[0].startswith("from") and re.search(r"\bto\b", match[0]):
        before = None  # "from left to right" of the option "left to right"
    return bool(before or _RULED_OUT_AFTER.match(text, match.end()))


def _digits(text: str) -> str:
    """A text with its number words as digits, so that "three" is found as 3, and one spelling of percent and counter-clockwise."""
    text = re.sub(r"\b(counter|anti|non|semi)-(?=[a-z])", r"\1", prepared(text))
    text = re.sub(r"(?<=[\w])\s*(?:%|\bper ?cent\b)", " percent", text)
    for number in reversed(find_numbers(text)):
        spelled = text[number.start : number.end]
        if not number.weak and spelled.isascii() and spelled[:1].isalpha() and number.value == int(number.value):
            text = text[: number.start] + str(int(number.value)) + text[number.end :]
    return with_units(text)
