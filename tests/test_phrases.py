"""Key phrases: what differs, and which tokens that is."""

import pytest
from transformers import AutoProcessor

from vidalign.errors import DataError
from vidalign.learning.phrase_tokens import phrase_ids
from vidalign.model.rendering import response_ids
from vidalign.recipes.phrases import check_marks, differing_marks, differs_only_in


@pytest.fixture(scope="module")
def processor(request):
    return AutoProcessor.from_pretrained(request.config.rootpath / "examples/shapes/model")


def words(text, marks):
    return [text[start:end] for start, end in marks]


@pytest.mark.parametrize(
    ("chosen", "rejected", "in_chosen", "in_rejected"),
    [
        ("A red circle moves left.", "A blue circle moves up.", ["red", "left"], ["blue", "up"]),
        ("A red circle.", "A big red circle.", [], ["big"]),  # insert-only
        ("A red circle, then a cross.", "A red circle.", [", then a cross"], []),
        ("Yes, there is one.", "No, there is none.", ["Yes", "one"], ["No", "none"]),
        ("Ein rötes Dreieck 漢字 🙂", "Ein grünes Dreieck 漢 🙂", ["rötes", "漢字"], ["grünes", "漢"]),
        ("红色的方块向左移动", "红色的方块向右移动", ["向左"], ["向右"]),
        ("🙂红色的方块", "🙂蓝色的方块", ["红色"], ["蓝色"]),
        ("赤い円が左に動く。", "青い円が左に動く。", ["赤い"], ["青い"]),
        ("สี่เหลี่ยมสีแดงเคลื่อนไปทางซ้าย", "สี่เหลี่ยมสีเขียวเคลื่อนไปทางซ้าย", ["แดง"], ["เขียว"]),
        ("left", "right", ["left"], ["right"]),
        ("same words", "same  words", [], []),
    ],
)
def test_the_words_that_differ_are_marked_on_both_sides(chosen, rejected, in_chosen, in_rejected):
    marks = differing_marks(chosen, rejected)
    assert words(chosen, marks[0]) == in_chosen
    assert words(rejected, marks[1]) == in_rejected
    assert differing_marks(rejected, chosen) == marks[::-1]
    assert check_marks(chosen, marks[0]) == marks[0]


@pytest.mark.parametrize(
    ("answer", "rewritten", "listed", "fits"),
    [
        ("红色的方块向左移动", "红色的方块向右移动", [("向左", "向右")], True),
        ("红色的方块向左移动", "红色的方块向右移动", [("左", "右")], True),  # within a word
        ("红色的方块向左移动", "蓝色的方块向右移动", [("左", "右")], False),
        ("红色的方块向左移动", "红色的方块向左移动", [("左", "右")], False),
        ("A cat sleeps.", "A caterpillar sleeps.", [("cat", "caterpillar")], True),
        ("A concatenation.", "A condogenation.", [("cat", "dog")], False),
    ],
)
def test_a_rewrite_may_differ_in_listed_phrases_only_also_without_spaces(answer, rewritten, listed, fits):
    assert differs_only_in(answer, rewritten, listed) is fits


def test_a_frequent_word_in_a_long_text_is_no_junk():
    chosen, rejected = "the cat sat " * 100 + "on a mat", "the cat sat " * 100 + "on a rug"
    marks = differing_marks(chosen, rejected)
    assert words(chosen, marks[0]) == ["mat"]
    assert words(rejected, marks[1]) == ["rug"]


@pytest.mark.parametrize("text", ["A red circle moves left.", "naïve 漢字 🙂 red", "The red object is a circle."])
def test_marked_tokens_cover_exactly_the_phrases_and_no_end_of_turn(processor, text):
    start = text.index("red")
    ids = phrase_ids(processor, text, [(0, 1), (start, start + 3)])
    tokens = response_ids(processor, text)
    assert len(ids) == len(tokens)
    assert ids[-1] == 0
    marked = [token for token, phrase in zip(tokens, ids, strict=True) if phrase == 2]
    assert "red" in processor.tokenizer.decode(marked)
    assert {1, 2} <= set(ids) <= {0, 1, 2}
    unmarked = [token for token, phrase in zip(tokens, ids, strict=True) if phrase == 0]
    assert "red" not in processor.tokenizer.decode(unmarked)


def test_a_token_that_two_phrases_share_goes_to_the_first(processor):
    text = "a circle"
    assert len(response_ids(processor, text)) == 3  # two tokens and the end of turn
    assert phrase_ids(processor, text, [(2, 4), (4, 8)]) == (0, 1, 0)
    assert phrase_ids(processor, text, [(5, 6)]) == (0, 1, 0)
    assert phrase_ids(processor, text, []) == (0, 0, 0)


@pytest.mark.parametrize("marks", [[(0, 0)], [(-1, 2)], [(0, 9)], [(2, 4), (0, 1)], [(0, 3), (2, 5)], [(1,)]])
def test_bad_marks_are_refused_with_their_numbers(marks):
    with pytest.raises(DataError, match=r"span \[start, end\)|overlaps"):
        check_marks("a circle", marks, "row 3")
