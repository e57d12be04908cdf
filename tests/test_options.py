"""Options reach the policy: with the question wherever it is asked, once, and as the recipe shows them."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import write_video

from pipelines import cli
from pipelines.checks.context import prompts_asked
from pipelines.inputs import read_inputs
from vidalign import prompts, recipes
from vidalign.config.recipes import GivenRecipe, LeanpoRecipe
from vidalign.config.run import DataConfig, EvaluateConfig
from vidalign.data.answers import is_correct
from vidalign.learning.sequences import pair_group, truth_group
from vidalign.types import Example

QUESTION = "Which way does the square move?"
OPTIONS = ("A. left", "B. right")
ROW = {"id": "m1", "video": "v.mp4", "question": QUESTION, "options": list(OPTIONS), "answer": "A"}
ASKED = f"{QUESTION}\nA. left\nB. right"


def asked(question=QUESTION, options=OPTIONS, answer="A", **style):
    return prompts.asked_question(Example(id="a", video="v", question=question, answer=answer, options=options), **style)


def test_options_follow_the_question_with_letters_or_as_texts():
    assert asked() == asked(options=("left", "right")) == ASKED
    assert asked(answer="left", options_style="texts") == f"{QUESTION}\nleft\nright"
    assert asked(answer="B", options_style="texts") == ASKED  # its answer is a letter, so letters are shown
    assert asked(options_prompt="Choose.\n{options}\n{question}") == f"Choose.\nA. left\nB. right\n{QUESTION}"
    assert asked(options=("1. left", "2. right"), answer="2") == f"{QUESTION}\n1. left\n2. right"
    assert asked(options=("A", "B")) == f"{QUESTION}\nA\nB"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("1:30", "2:30"), "A. 1:30\nB. 2:30"),  # times, decimals, scores and abbreviations begin with no label
        (("1.5", "2.5"), "A. 1.5\nB. 2.5"),
        (("1 - 0", "2 - 0"), "A. 1 - 0\nB. 2 - 0"),
        (("0 - 5 s", "5 - 10 s"), "A. 0 - 5 s\nB. 5 - 10 s"),
        (("A.M.", "P.M."), "A. A.M.\nB. P.M."),
        (("1) 1.5", "2) 2.5"), "1. 1.5\n2. 2.5"),
        (("2½ cups", "x² cups"), "A. 2½ cups\nB. x² cups"),  # as they were written
        (("Ａ．½", "（B）x²"), "A. ½\nB. x²"),
        (("B. right", "A. left"), "B. right\nA. left"),  # labels of their own, in any order
        (("C. right", "D. left"), "C. right\nD. left"),
        (("0. left", "1. right"), "0. left\n1. right"),
        (("A. left", "C. right"), "A. left\nC. right"),
        (("Option A: left", "Option B: right"), "A. left\nB. right"),
        (("**A.** left", "**B.** right"), "A. left\nB. right"),
    ],
)
def test_a_label_is_an_option_s_own_and_its_text_stays_whole(options, shown):
    assert asked(options=options, answer=options[0]) == f"{QUESTION}\n{shown}"
    example = Example(id="a", video="v", question=QUESTION, answer=options[0], options=options)
    assert [is_correct(option, example) for option in options] == [True, False]


def test_a_letter_as_the_answer_is_the_label_that_an_option_carries():
    shuffled = Example(id="a", video="v", question=QUESTION, answer="B", options=("B. right", "A. left"))
    assert [is_correct(text, shuffled) for text in ("right", "B", "left", "A")] == [True, True, False, False]
    counted = Example(id="a", video="v", question=QUESTION, answer="1", options=("0. left", "1. right", "2. up"))
    assert [is_correct(text, counted) for text in ("1", "right", "2", "0", "left", "up")] == [True, True, *[False] * 4]


def test_more_options_than_letters_have_numbers():
    assert prompts.labelled([f"text {index}" for index in range(30)])[26] == ("27", "text 26")


def test_a_question_without_options_stays_as_it_is():
    assert asked(options=()) == QUESTION


@pytest.mark.parametrize(
    ("question", "options", "answer"),
    [
        (ASKED, OPTIONS, "A"),
        (f"{QUESTION}\n(A) left\n(B) right", OPTIONS, "A"),
        (f"{QUESTION} A) Left B) Right", ("left", "right"), "B"),
        (f"{QUESTION}\nChoose: right, left.", ("right", "left"), "left"),
        ("Does it move LEFT or\nright?", ("left", "right"), "left"),
        ("方块向哪边移动？A. 左 B. 右", ("A. 左", "B. 右"), "B"),
        ("Is it red or dark red?", ("red", "dark red"), "red"),
    ],
)
def test_a_question_that_lists_its_options_stays_as_it_is(question, options, answer):
    assert asked(question, options, answer) == question


@pytest.mark.parametrize(
    ("question", "options", "answer"),
    [
        (QUESTION, OPTIONS, "A"),
        ("Does it move left?", OPTIONS, "left"),  # one of two
        ("Does it move left or right?", ("left", "right"), "B"),  # no letters to answer with
        ("Is it dark red?", ("red", "dark red"), "red"),  # one text inside of another
        ("Is the rightmost one leftover?", OPTIONS, "left"),  # parts of words
    ],
)
def test_a_question_that_lists_only_some_gets_them_all(question, options, answer):
    shown = asked(question, options, answer)
    assert shown.startswith(question + "\nA. ")
    assert asked(shown, options, answer) == shown


def test_the_template_must_hold_question_and_options():
    with pytest.raises(ValueError, match=r"options_prompt must contain \{options\}"):
        LeanpoRecipe(options_prompt="{question}")


def video(path, shade=0):
    return write_video(path, [np.full((32, 32, 3), 40 * shade + frame, np.uint8) for frame in range(4)])


def read(folder, recipe, **fields):
    files = {}
    for split in ("train", "eval", "probe"):
        row = {**ROW, "id": split, "video": video(folder / f"{split}.mp4", shade=len(files)).name, **fields}
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text(json.dumps(row) + "\n")
    data = DataConfig(**{split: str(path) for split, path in files.items()})
    return read_inputs(data, recipe)


def test_every_prompt_of_a_run_shows_them(tmp_path):
    inputs = read(tmp_path, LeanpoRecipe())
    assert [example.question for example in inputs.examples] == [ASKED] * 3
    recipe = recipes.build(LeanpoRecipe())
    for kind in prompts_asked(inputs, recipe, EvaluateConfig()):
        for example in kind.examples:
            assert ASKED in prompts.fill(kind.template, question=example.question, answer=example.answer)
    assert truth_group(inputs.probe[0]).question == ASKED
    given = recipes.build(GivenRecipe()).given(inputs.train)
    assert [pair_group(pair).question for pair in given] == [ASKED]
    assert dataclasses.asdict(given[0])["question"] == ASKED


def test_the_recipe_says_how(tmp_path):
    inputs = read(tmp_path, LeanpoRecipe(options_style="texts", options_prompt="{question} ({options})"), answer="left")
    assert inputs.train[0].example.question == f"{QUESTION} (left\nright)"


def test_options_that_were_always_shown_change_no_hash_of_a_recipe():
    assert LeanpoRecipe().deciding() == LeanpoRecipe(options_style="texts").deciding()
    assert not {"options_prompt", "options_style"} & LeanpoRecipe().deciding().keys()


def test_validate_says_which_way_each_file_goes(tmp_path, capsys):
    video(tmp_path / "v.mp4")
    rows = [ROW, {**ROW, "id": "m2", "question": ASKED}, {**ROW, "id": "m3", "question": "What moves?", "options": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["data", "validate", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rows", "with", "options", "2"] in lines
    assert ["listed", "in", "the", "question", "1"] in lines
    assert ["added", "by", "options_prompt", "1"] in lines
