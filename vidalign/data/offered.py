"""The options that a row offers, and which of them a reply takes: what it names, or where they are yes and no, what it says."""

from __future__ import annotations

import re
import string
import unicodedata

from vidalign.data.choices import chosen_option, read_choice
from vidalign.data.final_answer import answering_part
from vidalign.data.labels import CONFLICT, MENTION, Options
from vidalign.data.polarity import leading_polarity, polarity, speaks_of_it
from vidalign.types import Example

_LISTED = re.compile(r"^\s*[(\[]?([A-Z])[.):、\]]+\s*(\S.*?)\s*$", re.MULTILINE)
_LISTED_INLINE = re.compile(r"[(\[]([A-Z])[)\]]\s*([^()\[\]\n]*[^()\[\]\n\s,;.])")


def options_of(example: Example) -> tuple[str, ...]:
    """The options of a row: its own, or those that its question lists by letter from A on, where one of them is the answer."""
    if example.options or example.answer_type not in ("", "choice"):
        return example.options
    for listed in (_LISTED, _LISTED_INLINE):
        found = listed.findall(unicodedata.normalize("NFKC", example.question))
        if len(found) > 1 and "".join(letter for letter, _ in found) == string.ascii_uppercase[: len(found)]:
            options = tuple(f"{letter}. {text}" for letter, text in found)
            return options if chosen_option(example.answer, options) is not None else ()
    return ()


def taken(reply: str, example: Example) -> int:
    """Index of the one option that a reply takes, or what `read_choice` says of one that takes none or several.

    Of options with the same text, which one a reply names makes no difference: all are the first of them. Where one option is yes
    and one is no, a reply that names neither may say so in other words ("Nope", "It does", "The cat does not jump"), and what it
    says beside these of what was asked is a mention.
    """
    options = options_of(example)
    found, texts = read_choice(reply, options), Options.read(options).texts
    means = [leading_polarity(text, asked=False) for text in texts]
    if found == CONFLICT and True in means and False in means:
        part, _ = answering_part(reply)
        said = polarity(part, example.question)
        if said is None and speaks_of_it(part, example.question):
            return MENTION
        if said is not None and means.count(said) == 1:
            found = means.index(said)
    return texts.index(texts[found]) if found >= 0 else found
