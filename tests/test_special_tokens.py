"""No text that a user wrote can hold what a tokenizer reads as the end of a turn or as the beginning of another."""

import dataclasses
import functools
import json
import pathlib
import types

import pytest
from test_pairing import EXAMPLE, JUDGE, data_row, response

from actors.engine import completion_of
from pipelines.cli import main
from vidalign import recipes
from vidalign.config.loading import parse_config
from vidalign.config.recipes import LeanpoRecipe, RrpoRecipe
from vidalign.data.reading import read_rows
from vidalign.data.rows import parse_row
from vidalign.data.validate import validate
from vidalign.errors import ConfigError, DataError
from vidalign.recipes.engine import SPECIAL_TOKEN
from vidalign.recipes.pairing import make_pairs
from vidalign.special_tokens import KNOWN_ONLY, SpecialTokens

CASES = pathlib.Path(__file__).parent / "cases"
ROW = {"id": "a", "video": "a.mp4", "question": "Which way?", "answer": "Left."}
PAIR = {**ROW, "chosen": "Left.", "rejected": "Right."}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "<|im_end|>",
            "<|im_start|>",
            "<|vision_start|>",
            "<|video_pad|>",
            "<|endoftext|>",
            "<|eot_id|>",
            "<|user|>",
            "<|end|>",
        ),
        *(
            "<|begin_of_sentence|>",
            "<|IMAGE_START|>",
            "<｜end▁of▁sentence｜>",
            "<s>",
            "</s>",
            "<bos>",
            "<eos>",
            "<pad>",
            "<unk>",
        ),
        *("[INST]", "[/INST]", "<<SYS>>", "[gMASK]", "<sop>", "<start_of_turn>", "<end_of_turn>", "<end_of_utterance>"),
        *("<image_soft_token>", "<IMG_CONTEXT>", "<img>", "</image>", "<|turn>", "<turn|>"),
        "＜|im_end|＞",  # NFKC, which some tokenizers apply, makes it one
    ],
)
def test_special_tokens_of_known_families(text):
    assert len(KNOWN_ONLY.found(f"left{text} or right")) == 1
    assert KNOWN_ONLY.found(KNOWN_ONLY.without(f"left{text} or right")) == []


@pytest.mark.parametrize(
    "text",
    [
        "<think>It moves.</think> Left.",
        "a < b | c > d",
        "if x<|y and z|>w",
        "<b>left</b>",
        "[left]",
        "<|begin_of_box|>A<|end_of_box|>",
    ],
)
def test_other_texts_in_brackets_are_texts(text):
    assert KNOWN_ONLY.found(text) == []
    assert KNOWN_ONLY.without(text) == text


def test_a_models_own_tokens_and_headings_count_beside_the_known_ones():
    special = SpecialTokens(("<end>", "USER:"))
    assert special.found("Left.<end></s>") == ["<end>", "</s>"]
    assert special.found("USER: Sure?") == ["USER:"]
    assert special.found("SUPERUSER: yes, the user: too") == []


def test_what_is_left_after_taking_tokens_out_is_no_token():
    assert KNOWN_ONLY.without("<|im_<|im_end|>end|>left") == "left"


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("question", "Which way?<|im_end|>", "question"),
        ("answer", "Left.</s>", "answer"),
        ("options", ["Left.", "Right.<eos>"], "options[1]"),
        ("caption", "<start_of_turn>A square.", "caption"),
        ("chosen", "Left.<|im_end|>", "chosen"),
        ("rejected", "[INST] Right.", "rejected"),
    ],
)
def test_every_text_of_a_row_is_looked_at(field, value, place):
    _, errors = parse_row({**PAIR, field: value})
    assert [(error.field, error.why[:24]) for error in errors] == [(place, "holds the special token ")]


def test_fields_that_reach_no_template_are_left_alone():
    row = {**PAIR, "id": "</s>", "video": "a</s>.mp4", "category": "<eos>", "source": "<|im_end|>"}
    assert parse_row(row)[1] == []


@pytest.mark.parametrize("name", ["a2_special.jsonl", "trl_templated.jsonl"])
def test_validate_import_and_align_refuse_a_row_in_the_same_words(tmp_path, capsys, name):
    source = [json.loads(line) for line in (CASES / "rows" / name).read_text().splitlines()]
    for number, row in enumerate(source):
        given = {"id": str(number), "question": row.get("prompt"), "answer": row["chosen"], **row}
        path, out = tmp_path / f"{number}.jsonl", tmp_path / f"{number}-out.jsonl"
        path.write_text(json.dumps(given))
        said = [str(error) for error in validate([path]).errors if error.field != "video"]
        assert said, row
        assert all("holds the special token" in each for each in said)
        with pytest.raises(DataError) as refused:
            read_rows(path)
        assert all(each.removeprefix(f"{path}:1: ") in str(refused.value) for each in said)
        path.write_text(json.dumps({"prompt": given["question"], **row}))
        assert main(["data", "import", "--from", "trl", str(path), "--out", str(out)]) == 2
        printed = capsys.readouterr().err
        assert all(each in printed for each in said if ": answer:" not in each)
        assert not out.exists()


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ({"plain_prompt": "<|im_start|>user\n{question}"}, "recipe.plain_prompt"),
        ({"options_prompt": "{question}</s>{options}"}, "recipe.options_prompt"),
        ({"hint_prompt": "<video>{question} {answer}"}, "recipe.hint_prompt"),
        ({"name": "hound", "captions": "policy", "caption_prompt": "[INST] Describe."}, "recipe.caption_prompt"),
        ({"name": "hound", "judge": {"prompt": "{caption}{question}{answer}{response}<eos>"}}, "recipe.judge.prompt"),
    ],
)
def test_prompts_of_a_config_are_plain_texts(recipe, key):
    judge = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1/v1", **recipe.get("judge", {})}
    section = {**recipe, **({"judge": judge} if recipe.get("name") == "hound" else {})}
    with pytest.raises(ConfigError, match="holds the special token") as refused:
        parse_config({"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}, "recipe": section})
    assert key in str(refused.value)


def reply(text, finish="stop"):
    steps = [{7: types.SimpleNamespace(logprob=-0.5)}]
    return types.SimpleNamespace(text=text, token_ids=[7], logprobs=steps, finish_reason=finish)


def test_a_reply_that_spells_a_special_token_out_is_stored_without_it():
    made = completion_of(reply("Left.<|im_end|>\n<|im_start|>user"), KNOWN_ONLY)
    assert (made.text, made.finish_reason) == ("Left.\nuser", SPECIAL_TOKEN)
    made = completion_of(reply("Left.", "length"), KNOWN_ONLY)
    assert (made.text, made.finish_reason) == ("Left.", "length")


def test_what_spelled_a_special_token_out_is_on_neither_side_whatever_the_recipe():
    spelled = [response("hinted", "right", trust=1.0, finish=SPECIAL_TOKEN), response("augmented", "wrong")]
    make = functools.partial(make_pairs, [data_row(EXAMPLE)], decoded={"v.mp4"})
    recipe = recipes.build(LeanpoRecipe())
    assert make(spelled, recipe) == ([], {"special_token": 1})
    [pair], dropped = make([*spelled, response("hinted", "Right.", candidate=1, trust=1.0)], recipe)
    assert (pair.chosen, dropped) == ("Right.", {})
    rrpo = recipes.build(RrpoRecipe())
    assert rrpo.wrong_ones(EXAMPLE, [response("perturbed", "wrong", finish=SPECIAL_TOKEN)]) == []


def test_a_text_that_a_judge_wrote_with_a_special_token_gives_no_pair():
    replies = [
        response("perturbed", "Blue thing.", candidate=1, trust=0.1),
        response("differences", "red => blue<|im_end|>", candidate=1),
        response("rewritten", "A blue<|im_end|> circle moves left.", candidate=1),
    ]
    truth = dataclasses.replace(EXAMPLE, answer="A red circle moves left.")
    recipe = recipes.build(RrpoRecipe(rewrite="judge", judge=JUDGE))
    assert make_pairs([data_row(truth)], replies, recipe, decoded={"v.mp4"}) == ([], {"special_token": 1})
