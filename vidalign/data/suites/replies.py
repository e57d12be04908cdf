"""How replies are read that suites read alike: by the rules of `vidalign.data.answers` wherever a suite's own are compatible.

Suites' own scripts look for the first letter, or ask ChatGPT where they find none; here a reply's last explicit statement counts, in
any form (`vidalign.data.choices`). A reply that names no single option counts as wrong: nothing is drawn at random.
"""

from __future__ import annotations

from vidalign.data.choices import chosen_option
from vidalign.data.final_answer import answering_part
from vidalign.data.polarity import polarity
from vidalign.data.suites.base import Values
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import LETTERS
from vidalign.prompts import labelled


def lettered(options: tuple[str, ...], style: str = "{letter}. {option}") -> str:
    """Options one a line: "A. left"."""
    return "\n".join(style.format(letter=letter, option=option) for letter, option in zip(LETTERS, options, strict=False))


def by_position(options: tuple[str, ...]) -> tuple[str, ...]:
    """Options that carry the letters of their places: those that carry others, or numbers, are shown with these before them."""
    if [label for label, _ in labelled(options)] == list(LETTERS[: len(options)]):
        return options
    return tuple(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def by_choice(question: SuiteQuestion, reply: str) -> Values | None:
    """Right where the reply names an option whose letter is among the answer's; None where it names no single option."""
    chosen = chosen_option(reply, by_position(question.options))
    return None if chosen is None else {"correct": float(LETTERS[chosen] in question.answer)}


def by_polarity(question: SuiteQuestion, reply: str) -> Values | None:
    """Right where the reply says yes or no as the answer does; None where it says neither."""
    said = polarity(answering_part(reply)[0], question.facts["question"])
    return None if said is None else {"correct": float(said == (question.answer.casefold() == "yes"))}
