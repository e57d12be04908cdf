"""The judge: prompts, scores read from replies, and a real OpenAI-compatible endpoint."""

import dataclasses
import json
import pathlib
import threading

import numpy as np
import pytest
from test_files import RESPONSE

from actors.chats import located
from actors.judge import Judge
from examples.shapes import rule_judge, world
from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipes import HoundRecipe
from vidalign.errors import ConfigError, ModelError
from vidalign.recipes import judging
from vidalign.types import Example, Judgement


@pytest.fixture(scope="module")
def endpoint():
    server = rule_judge.serve()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


CASES = pathlib.Path(__file__).parent / "cases"


def config(base_url="http://127.0.0.1:1/v1", **changes):
    return JudgeConfig(kind="openai", model=rule_judge.MODEL, base_url=base_url, **changes)


def row(response, question="What colour is the circle?", caption="A red circle moves left."):
    return {"example_id": "a", "question": question, "answer": "ignored", "response": response, "caption": caption}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("It is right.\nScore: 5", 5.0),
        ("**Score: 4**", 4.0),
        ("score = 3/5", 3.0),
        ("Fine.\n- Score: 2.5.", 2.5),
        ("Score: 4\nand again\nScore: 4", 4.0),
        ("Score: 4\nno, rather\nScore: 2", None),  # which one is meant is not known
        ("Score: 1-5", None),  # the form, quoted
        ("Score: 6", None),
        ("Score: 0", None),
        ("Score: 5.5", None),
        ("Score: N", None),
        ("5 5 5 3 5", None),  # no number is guessed
        ("The score is good.", None),
        ("", None),
    ],
)
def test_a_score_is_read_or_there_is_none(reply, score):
    assert judging.parse_score(reply) == score


@pytest.mark.parametrize("line", (CASES / "judge_replies.jsonl").read_text(encoding="utf-8").splitlines())
def test_replies_of_judges_are_read_as_a_person_reads_them(line):
    case = json.loads(line)
    assert judging.parse_score(case["reply"]) == case["score"]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('```json\n{\n  "explanation": "Right colour; 2 of 3 objects.",\n  "score": 4\n}\n```', 4.0),
        ('{"score": "3/5", "explanation": "fine"}', 3.0),
        ("{'pred': 'yes', 'score': 4}", 4.0),
        ('{"final_score": 2.5}', 2.5),
        ('{"score": 8}', None),
        ('{"score": null}', None),
        ('{"score": 4}\n{"score": 2}', None),
        ("### Final Score: **4/5**", 4.0),
        ("**Overall score**: 4 out of 5", 4.0),
        ("- *Score*: `3`", 3.0),
        ("Final Score: (4)", 4.0),
        ("The score is 4.", 4.0),
        ("Score：４", 4.0),
        ("<score>4</score>", 4.0),
        ("<think>Score: 2</think>\nScore: 4", 4.0),
        ("<think>Score: 2", None),  # the judge had not finished
        ("Score: N\nScore: 4", 4.0),  # the form, repeated
        ("Score: 4\nScore: 8/10", None),
        ("Score: 4 or 5", None),
        ("Score: -4", None),
        ("Score: 45", None),
        ("Score: 4/10", None),
        ("The answer deserves 4 of 5 points.", None),
        ("4", None),
        ("Rating: 4", None),
    ],
)
def test_a_score_in_other_forms(reply, score):
    assert judging.parse_score(reply) == score


def test_the_explanation_is_the_reply_without_its_score():
    assert judging.explanation("Wrong colour.\nScore: 1\n") == "Wrong colour."


def test_a_prompt_keeps_braces_of_texts_and_cuts_a_long_response():
    text = judging.judge_prompt(
        "{caption}|{question}|{answer}|{response}",
        caption="{response}",
        question="{x}",
        answer="{}",
        response="abcdef",
        max_response_chars=3,
    )
    assert text == "{response}|{x}|{}|abc […]"


def test_a_long_reasoning_is_cut_and_its_answer_is_not():
    """A judge that is shown the first characters of a reasoning alone would have to guess the answer."""
    text = f"<think>{'It moves, it seems. ' * 50}</think>\nIt moves left."
    shown = judging.shortened(text, 100)
    assert shown.startswith("<think>It moves, it seems.")
    assert shown.endswith("[…] </think>\nIt moves left.")
    assert len(shown) == 100 + len(" […] ")
    assert judging.shortened(text, len(text)) == text
    assert judging.shortened("<think>a</think>" + "b" * 50, 20) == "</think>" + "b" * 12 + " […]"


def test_another_wording_is_another_judge():
    assert judging.prompt_version("a {response}") != judging.prompt_version("b {response}")


def test_a_judge_config_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="kind=openai needs base_url"):
        JudgeConfig(kind="openai", model="m")
    with pytest.raises(ValueError, match=r"prompt must contain \{caption\}, \{response\}"):
        JudgeConfig(kind="vllm", model="m", prompt="{question} {answer}")
    with pytest.raises(ValueError, match="judge"):
        HoundRecipe()


def test_an_unclear_reply_is_asked_for_once_more_and_then_quarantined():
    conversations = []

    def chat(asked):
        conversations.append([list(messages) for messages in asked])
        if len(conversations) == 1:
            return ["Yes.\nScore: 5" if "judge: good" in messages[0]["content"] else "Hm." for messages in asked]
        return ["Score: 2" if "judge: late" in messages[0]["content"] else "Still thinking." for messages in asked]

    rows = judging.judge_rows([row(name) for name in ("good", "late", "never")], config(), chat, "me")
    assert [found.get("score") for found in rows] == [5.0, 2.0, None]
    assert rows[2]["reason"] == "unparsable_judgement"
    assert rows[2]["message"] == "Hm.\nStill thinking."
    assert {found["judge"] for found in rows} == {"me"}
    assert len(conversations) == 2
    assert [message["role"] for message in conversations[1][0]] == ["user", "assistant", "user"]
    assert conversations[1][0][-1]["content"] == judging.REMINDER


def test_judge_asks_a_real_endpoint_and_stores_who_judged(endpoint, tmp_path):
    judge = Judge(config(endpoint).model_dump(), str(tmp_path), judging.judge_rows)
    rows = [row("The circle is red."), row("The circle is blue."), row("red"), row("A song.")]
    assert judge({"part": 3, "rows": json.dumps(rows)}) == {"judged": 4}
    stored = [Judgement.from_row(r) for r in json.loads((tmp_path / "000003.json").read_text())]
    assert [judgement.score for judgement in stored] == [5.0, 1.0, 4.0, 1.0]
    assert all("The circle is red" in judgement.explanation for judgement in stored)
    assert {judgement.judge for judgement in stored} == {f"openai:rules:{judging.prompt_version(prompts.JUDGE)}"}


def test_an_endpoint_that_is_not_there_is_named():
    chat_config = config(max_retries=0, timeout_s=2.0)
    with pytest.raises(ConfigError, match=r"rules at http://127\.0\.0\.1:1/v1 did not answer.*recipe\.judge\.base_url"):
        Judge(chat_config.model_dump(), "unused", judging.judge_rows)({"part": 0, "rows": json.dumps([row("x")])})


def test_the_rule_judge_gives_every_true_answer_full_marks():
    rng = np.random.default_rng(0)
    for num_things in (1, 2):
        scene = next(world.balanced_scenes(num_things, rng))
        caption = world.solve(scene, "Describe the video.")
        for category in world.CATEGORIES:
            if (category == "order") != (num_things == 2) and category != "description":
                continue
            question = world.ask(scene, category, rng)
            prompt = judging.judge_prompt(
                prompts.JUDGE,
                caption=caption,
                question=question.question,
                answer=question.answer,
                response=question.answer,
                max_response_chars=500,
            )
            assert judging.parse_score(rule_judge.judge(prompt)) == 5.0


def test_agreement_compares_the_judges_verdicts_with_those_of_the_rules_where_they_can_tell():
    example = Example(id="a", video="v", question="Which way does it go?", answer="left")
    judged = [
        Judgement(example_id="a", response=text, score=score, explanation="", judge="j")
        for text, score in (("left", 5), ("right", 4), ("up", 1), ("down", 2), ("home", 5))
    ]
    shares = judging.agreement(judged, [example], lambda score: score >= 3)
    assert shares == {
        "agreement": 0.75,
        "accepted_right": 0.25,
        "accepted_wrong": 0.25,
        "rejected_right": 0.0,
        "rejected_wrong": 0.5,
        "compared": 4,
    }
    assert judging.agreement(judged[4:], [example], lambda score: score >= 3) is None


def test_the_rule_judge_gives_no_score_where_the_caption_does_not_answer():
    for caption in ("A blue cross moves left.", "Something moves."):
        prompt = judging.judge_prompt(
            prompts.JUDGE,
            caption=caption,
            question="What colour is the circle?",
            answer="",
            response="The circle is red.",
            max_response_chars=500,
        )
        assert judging.parse_score(rule_judge.judge(prompt)) is None


def inputs_of(example, captions, *texts, judge=None):
    responses = [spoken(example, "plain", text) for text in texts] + [spoken(example, "caption", text) for text in captions]
    task = judging.scoring_task([example], responses, {"plain"}, judge or config())
    return [json.loads(row) for row in task.rows], task.quarantined


def spoken(example, kind, text):
    return dataclasses.replace(RESPONSE, example_id=example.id, kind=kind, text=text, trust=float("nan"))


def test_each_distinct_response_is_judged_once_by_the_best_caption_there_is():
    example = Example(id="a", video="a.mp4", question="What?", answer="A cat.", caption="A cat sleeps.")
    rows, _ = inputs_of(example, [], "A dog.", " A dog. ", "", "A cow.")
    assert [(row["response"], row["caption"]) for row in rows] == [("A dog.", "A cat sleeps."), ("A cow.", "A cat sleeps.")]
    assert inputs_of(dataclasses.replace(example, caption=""), [], "A dog.")[0][0]["caption"] == "A cat."
    assert inputs_of(example, ["A grey cat."], "A dog.")[0][0]["caption"] == "A grey cat."


def test_an_empty_caption_of_the_policy_is_counted_and_nothing_else_takes_its_place():
    example = Example(id="a", video="a.mp4", question="What?", answer="A cat.", caption="A cat sleeps.")
    assert inputs_of(example, ["  "], "A dog.", "A dog.", "A cow.") == ([], {"empty_caption": 2})
    seeing = config(sees="video")
    rows, quarantined = inputs_of(example, ["  "], "A dog.", judge=seeing)
    assert (rows[0]["videos"], rows[0]["images"], quarantined) == (["a.mp4"], [], {})


def test_an_engine_is_given_the_folder_of_a_judge_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "judge").mkdir()
    assert located(JudgeConfig(kind="vllm", model="~/judge")).model == str(tmp_path / "judge")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / "hub" / name))
    assert located(JudgeConfig(kind="vllm", model="owner/judge")).model == str(tmp_path / "hub/owner/judge")
    with pytest.raises(ModelError, match=r"no model folder at \./none"):
        located(JudgeConfig(kind="vllm", model="./none"))
