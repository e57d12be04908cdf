"""Which option replies name, by cases that a person judged: [reply, the option's place from 0, or null where none is named]."""

import json
import pathlib

import pytest

from vidalign.data.choices import chosen_option

CASES = [
    json.loads(line)
    for line in (pathlib.Path(__file__).parent / "cases/choices.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case["options"]))
def test_which_option_a_reply_names(case):
    read = {reply: chosen_option(reply, case["options"]) for reply, _ in case["replies"]}
    assert {reply: read[reply] for reply, index in case["replies"] if read[reply] != index} == {}
