"""Each suite reads rows of its published form, asks its prompt, and scores by its rule; the contents are made up."""

import csv
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidalign.data.suites import SUITES, find_suite, measures
from vidalign.data.suites.base import Request, Suite
from vidalign.data.suites.measures import Mark
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.replies import by_choice
from vidalign.data.suites.vidhalluc import squared_matthews
from vidalign.data.suites.wups import wups
from vidalign.errors import ConfigError, DataError, RowError
from vidalign.statistics import cluster_bootstrap, wilson_interval

Reply = Callable[[SuiteQuestion], str]


def write(path: pathlib.Path, value: Any) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(value), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            delimiter = "\t" if "frameqa" in path.name else ","
            writer = csv.DictWriter(file, list(value[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(value)
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def read(name: str, folder: pathlib.Path, *tasks: str, **options) -> list[SuiteQuestion]:
    return SUITES[name].read(Request(folder=folder, tasks=tasks, **options))


def scores(suite: Suite, questions: list[SuiteQuestion], reply: Reply) -> dict[str, float | None]:
    marks = [Mark(question=q, values=suite.mark(q, reply(q)) or {}) for q in questions]
    return {m.name: measures.score(m, marks).value for m in suite.measures(questions)}


# Video-MME


def mme_row(number: int, duration: str = "short", **changes) -> dict:
    return {
        "video_id": f"{number // 3 + 1:03d}",
        "duration": duration,
        "domain": "Knowledge",
        "sub_category": "Geography",
        "url": f"https://www.youtube.com/watch?v=video{number // 3:06d}",
        "videoID": f"video{number // 3:06d}",
        "question_id": f"{number // 3 + 1:03d}-{number % 3 + 1}",
        "task_type": "Counting Problem",
        "question": "How many circles cross the frame?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. None."],
        "answer": "B",
        **changes,
    }


def test_video_mme_by_duration(tmp_path):
    rows = [mme_row(0), mme_row(1, answer="C"), mme_row(2, answer="D"), mme_row(3, "long"), mme_row(4, "long")]
    write(tmp_path / "videomme" / "test-00000-of-00001.parquet", rows)
    write(tmp_path / "data" / "video000000.mp4", "")
    questions = read("video-mme", tmp_path)
    assert questions[0].video == str(tmp_path / "data" / "video000000.mp4")
    assert questions[0].prompt == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter (A, "
        "B, C, or D) of the correct option.\nHow many circles cross the frame?\nA. One.\nB. Two.\nC. Three.\nD. None.\nThe best "
        "answer is:"
    )
    found = scores(SUITES["video-mme"], questions, lambda q: "The best answer is (B)." if q.id != "001-3" else "Both.")
    assert found["overall"] == 3 / 5
    assert (found["duration: short"], found["duration: long"]) == (1 / 3, 1.0)
    assert found["domain: Knowledge"] == found["sub-category: Geography"] == found["task type: Counting Problem"] == 3 / 5
    assert list(found)[:3] == ["overall", "duration: short", "duration: long"]


def test_video_mme_in_the_form_of_its_page_and_with_subtitles(tmp_path):
    row = mme_row(0)
    nested = {name: row[name] for name in ("video_id", "duration", "domain", "sub_category", "url")}
    questions = [{name: row[name] for name in ("question_id", "task_type", "question", "options", "answer")}]
    write(tmp_path / "video_mme.json", [{**nested, "questions": questions}])
    said = '<font color="white" size=".72c">left we go</font>'
    srt = f"1\n00:00:00,000 --> 00:00:01,500\n{said}\n\n2\n00:00:02,000 --> 00:00:03,000\nbye\n"
    write(tmp_path / "subtitle" / "video000000.srt", srt)
    [plain], [titled] = read("video-mme", tmp_path), read("video-mme", tmp_path, subtitles=True)
    assert "\nA. One.\nB. Two.\n" in plain.prompt
    bare = [{**questions[0], "choices": ["One.", "Two.", "Three.", "None."], "options": None}]
    write(tmp_path / "video_mme.json", [{**nested, "questions": bare}])
    assert read("video-mme", tmp_path)[0].prompt == plain.prompt
    assert titled.prompt == f"This video's subtitles are listed below:\nleft we go\nbye\n{plain.prompt}"


def test_subtitles_of_the_sampled_frames_only(tmp_path):
    from conftest import write_video

    from vidalign.types import FrameSpec
    from vidalign.video.decoding import frame_times_s

    write(tmp_path / "videomme" / "test.parquet", [mme_row(0)])
    video = write_video(tmp_path / "data" / "video000000.mp4", [np.zeros((32, 32, 3), np.uint8)] * 32)  # 4 s
    assert frame_times_s(video, FrameSpec(num_frames=2)) == (1.0, 3.0)
    blocks = [f"{n}\n00:00:0{n},900 --> 00:00:0{n + 1},100\nline {n}\n" for n in range(4)]
    write(tmp_path / "subtitle" / "video000000.srt", "\n".join(blocks))
    [question] = read("video-mme", tmp_path, subtitles=True, frame_spec=FrameSpec(num_frames=2))
    assert question.prompt.startswith("This video's subtitles are listed below:\nline 0\nline 2\nSelect")


# MVBench and TVBench


def test_mvbench_has_parts_of_videos_and_folders_of_frames(tmp_path):
    row = {"video": "a.mp4", "question": "What moved?", "candidates": ["A dot.", "A cross."], "answer": "A cross."}
    write(tmp_path / "json" / "action_sequence.json", [{**row, "start": 1.5, "end": 4.0}])
    write(tmp_path / "json" / "state_change.json", [{**row, "start": 1.5, "end": 4.0}])  # asks about the whole, as published
    write(tmp_path / "json" / "episodic_reasoning.json", [{**row, "video": "s01_clip", "start": 0.0, "end": 2.0}])
    write(tmp_path / "video" / "star" / "Charades_v1_480" / "a.mp4", "")
    write(tmp_path / "video" / "perception" / "videos" / "a.mp4", "")
    write(tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "s01_clip" / "00001.jpg", "")
    questions = read("mvbench", tmp_path)
    assert [q.task for q in questions] == ["action_sequence", "state_change", "episodic_reasoning"]
    folder = tmp_path / "video"
    assert [q.shown for q in questions] == [
        f"{(folder / 'star/Charades_v1_480/a.mp4').as_uri()}#t=1.5,4",
        str(folder / "perception/videos/a.mp4"),
        f"{(folder / 'tvqa/frames_fps3_hq/s01_clip').as_uri()}#fps=3&t=0,2",
    ]
    assert questions[0].prompt.endswith(
        "accurately addresses the question.\nQuestion: What moved?\nOptions:\n(A) A dot.\n(B) A cross.\nOnly give the best option."
    )
    found = scores(SUITES["mvbench"], questions, lambda q: "A" if q.task == "episodic_reasoning" else "(B) A cross.")
    assert found == {
        "overall": 2 / 3,
        "task: action_sequence": 1.0,
        "task: state_change": 1.0,
        "task: episodic_reasoning": 0.0,
    }
    assert [q.task for q in read("mvbench", tmp_path, "episodic_reasoning")] == ["episodic_reasoning"]
    with pytest.raises(DataError, match=r"holds no json/action_count\.json"):
        read("mvbench", tmp_path, "action_count")


def test_tvbench_is_scored_over_all_questions(tmp_path):
    row = {"video": "b.mp4", "question": "Which way?", "candidates": ["Left.", "Right."], "answer": "Left."}
    write(tmp_path / "json" / "moving_direction.json", [row] * 3)
    write(tmp_path / "json" / "object_count.json", [{**row, "candidates": ["1", "2", "3"], "answer": "3"}])
    write(tmp_path / "video" / "moving_direction" / "b.mp4", "")
    questions = read("tvbench", tmp_path)
    assert questions[1].video.endswith("video/moving_direction/b.mp4")
    found = scores(SUITES["tvbench"], questions, lambda q: "Best option: (A)" if q.task == "moving_direction" else "2")
    assert found == {"overall": 3 / 4, "task: object_count": 0.0, "task: moving_direction": 1.0}


@pytest.mark.parametrize(("name", "file"), [("mvbench", "json/action_count.json"), ("mlvu", "json/4_count.json")])
def test_single_rows_that_were_published_without_a_right_option_count_as_wrong(tmp_path, name, file):
    row = {"video": "a.mp4", "question": "How many?", "candidates": ["1", "2", "2", ""], "answer": "2"}
    write(tmp_path / file, [row] * 98 + [{**row, "answer": "two"}, {**row, "answer": ""}])
    questions = read(name, tmp_path)
    assert [q.answer for q in questions[97:]] == ["BC", "", ""]
    assert SUITES[name].mark(questions[0], "(C)") == {"correct": 1.0}
    assert SUITES[name].mark(questions[-2], "(B) 2") == SUITES[name].mark(questions[-1], "(D)") == {"correct": 0.0}
    write(tmp_path / file, [row] * 97 + [{**row, "answer": "two"}] * 3)
    with pytest.raises(RowError, match=r"row 98: answer: must be one of the options, got 'two'"):
        read(name, tmp_path)


# TempCompass

CHOICE = {"question": "What is the man doing?\nA. dunking\nB. dribbling\nC. passing", "answer": "B. dribbling"}


def tempcompass(folder: pathlib.Path) -> None:
    write(folder / "questions" / "multi-choice.json", {"101": {"action": [CHOICE], "speed": [CHOICE]}})
    asked = [{"question": "Is the man dribbling?", "answer": "yes"}, {"question": "Is the man dunking?", "answer": "no"}]
    write(folder / "questions" / "yes_no.json", {"101": {"action": asked}})
    caption = "Which sentence better captures the essence of the video?\nSentence A: He dribbles.\nSentence B: He dunks."
    option = "Which description is a more suitable match for the video?\nOption 1: He dribbles.\nOption 2: He dunks."
    matched = [
        {"question": caption, "answer": "Sentence A: He dribbles."},
        {"question": option, "answer": "Option 2: He dunks."},
    ]
    write(folder / "questions" / "caption_matching.json", {"101": {"order": matched}})
    generated = {"question": "You will be presented with …\nGenerated Caption:", "answer": "B. dribbling"}
    write(folder / "questions" / "captioning.json", {"101": {"action": [generated]}})
    action = {"subject": "man", "action": "dribbling", "type": "fine-grained action"}
    write(folder / "meta_info.json", {"101": {"eval_dim": {"action": action, "speed": None}}})


def test_tempcompass_by_task_and_aspect(tmp_path):
    tempcompass(tmp_path)
    questions = read("tempcompass", tmp_path)
    assert [q.prompt.rpartition("\n")[2] for q in questions if q.task == "yes_no"] == ["Please answer yes or no:"] * 2
    replies = {
        "multi-choice-00000": "B. dribbling",
        "multi-choice-00001": "A",
        "yes_no-00000": "Yes, he is.",
        "yes_no-00001": "No.",
        "caption_matching-00000": "Sentence A",
        "caption_matching-00001": "Option 1: He dribbles.",
    }
    suite = SUITES["tempcompass"]
    own = [q for q in questions if not suite.is_judged(q)]
    assert scores(suite, own, lambda q: replies[q.id]) == {
        "multi-choice": 0.5,
        "multi-choice: action": 1.0,
        "multi-choice: speed": 0.0,
        "multi-choice, finer: fine-grained action": 1.0,
        "yes_no": 1.0,
        "yes_no: action": 1.0,
        "yes_no, finer: fine-grained action": 1.0,
        "caption_matching": 0.5,
        "caption_matching: order": 0.5,
    }


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("B", True),
        ("2", None),
        ("Caption B.", True),
        ("caption B: He dunks.", True),
        ("He dunks.", True),
        ("Sentence A", False),
    ],
)
def test_tempcompass_reads_every_form_of_a_matched_caption(reply, right):
    options = ("A. He dribbles.", "B. He dunks.")
    question = SuiteQuestion(id="", video="", prompt="", answer="B", task="caption_matching", options=options)
    assert SUITES["tempcompass"].mark(question, reply) == (None if right is None else {"correct": float(right)})


@pytest.mark.parametrize("options", [("2. dots", "1. dot"), ("0: none", "1: one"), ("B. dots", "A. dot")])
def test_a_letter_is_that_of_the_place_at_which_a_suite_shows_an_option(options):
    question = SuiteQuestion(id="", video="", prompt="", answer="B", task="x", options=options)
    assert by_choice(question, "B") == by_choice(question, options[1]) == {"correct": 1.0}
    assert by_choice(question, "A") == by_choice(question, options[0]) == {"correct": 0.0}


def test_tempcompass_captions_are_judged_by_the_choice_that_they_allow(tmp_path):
    tempcompass(tmp_path)
    suite = SUITES["tempcompass"]
    [question] = read("tempcompass", tmp_path, "captioning")
    assert suite.is_judged(question)
    assert suite.judge is not None
    asked = suite.judge.ask(question, "A man dribbles {question}.")
    assert CHOICE["question"] in asked
    assert "Description: A man dribbles {question}." in asked
    verdicts = {"Reason.\nAnswer: B. dribbling": 1.0, "Answer: (A)": 0.0, "**Answer:** None": 0.0, "It is B, I think.": None}
    for text, right in verdicts.items():
        assert suite.judge.read(question, text) == (None if right is None else {"correct": right}), text


def test_tempcompass_in_the_form_of_the_hub(tmp_path):
    row = {"video_id": "101", "question": "Caption it.", "answer": "B. dribbling", "dim": "action"}
    write(
        tmp_path / "captioning" / "test-00000-of-00001.parquet",
        [{**row, "mc_question": CHOICE["question"], "mc_answer": CHOICE["answer"]}],
    )
    [question] = read("tempcompass", tmp_path)
    assert (question.answer, question.options) == ("B", ("A. dunking", "B. dribbling", "C. passing"))


# VideoHallucer


def halluc_pair(number: int) -> dict:
    video = f"{number}.mp4"
    return {
        "basic": {"video": video, "question": "Is there a baby?", "answer": "yes"},
        "hallucination": {"video": video, "question": "Is there a doll?", "answer": "no"},
        "type": "subject",
    }


def test_videohallucer_counts_pairs(tmp_path):
    write(tmp_path / "object_relation" / "object_relation.json", [halluc_pair(i) for i in range(4)])
    write(tmp_path / "temporal" / "temporal.json", [halluc_pair(i) for i in range(2)])
    suite, questions = SUITES["videohallucer"], read("videohallucer", tmp_path)
    assert questions[1].prompt == "Is there a doll?\nAnswer the question using 'yes' or 'no'."
    right = {"object_relation-0000", "object_relation-0001", "object_relation-0002", "temporal-0000"}
    # Three of four and one of two pairs are right in full; the other basic questions are answered rightly too.
    found = scores(
        suite, questions, lambda q: "Yes." if q.keys["side"] == "basic" or q.group not in right else "No, there is not."
    )
    assert found["object_relation: pairs"] == 0.75
    assert found["temporal: pairs"] == 0.5
    assert found["overall: pairs"] == (0.75 + 0.5) / 2
    assert (found["overall: basic"], found["overall: hallucination"]) == (1.0, 0.625)
    assert suite.mark(questions[0], "I cannot tell.") is None
    assert suite.mark(questions[1], "Yes and no.") == {"correct": 1.0}  # as the suite's own rule has it


def test_a_pair_without_one_of_its_replies_does_not_count(tmp_path):
    write(tmp_path / "temporal" / "temporal.json", [halluc_pair(i) for i in range(3)])
    suite, questions = SUITES["videohallucer"], read("videohallucer", tmp_path)
    marks = [Mark(question=q, values={"correct": 1.0}) for q in questions[1:]]
    pairs, basic = (
        next(measures.score(m, marks) for m in suite.measures(questions) if m.name == name)
        for name in ("temporal: pairs", "temporal: basic")
    )
    assert (pairs.n, pairs.counts, basic.n) == (2, "pairs", 2)


# VidHalluc


def vidhalluc(folder: pathlib.Path) -> None:
    write(folder / "ach_binaryqa.json", {"0": [{"q": "Is he running?", "a": {"v_clip_1": "Yes", "v_clip_2": "No"}}]})
    entry = {"Question": "What happens?", "Choices": {"A": "run", "B": "sit", "C": "eat"}, "Correct Answer": "A"}
    write(folder / "ach_mcq.json", {"0": {"v_clip_1": entry, "v_clip_2": {**entry, "Correct Answer": "BC"}}})
    order = {"video": "w_1", "Question": "Action A: run. Action B: sit. ", "Correct Answer": "BA"}
    write(folder / "tsh.json", {"0": order, "1": {**order, "Correct Answer": "A"}})
    scene = {"Scene change": "Yes", "Locations": "from a park to a hall."}
    other = {"Scene change": "No", "Locations": "None"}
    write(folder / "sth.json", {"s1": scene, "s2": scene, "s3": other, "s4": other})
    write(folder / "TSH_videos" / "deep" / "w_1.mp4", "")


def test_vidhalluc_by_its_four_rules(tmp_path):
    vidhalluc(tmp_path)
    suite, questions = SUITES["vidhalluc"], read("vidhalluc", tmp_path)
    assert next(q for q in questions if q.task == "tsh").video.endswith("TSH_videos/deep/w_1.mp4")
    replies = {
        "ach_binaryqa-0-0-v_clip_1": "Yes, he is.",
        "ach_binaryqa-0-0-v_clip_2": "No.",
        "ach_mcq-0-v_clip_1": "A. run",
        "ach_mcq-0-v_clip_2": "B",  # C is missing
        "tsh-0": "Action B happens before action A.",
        "tsh-1": "AB",
        "sth-s1": "Scene change: Yes, Locations: from a park to a hall.",
        "sth-s2": "Scene change: No, Locations: None",
        "sth-s3": "Scene change: No, Locations: None",
        "sth-s4": "no",
    }
    # tp 1, fn 1, fp 0, tn 2: MCC = (1·2 − 0·1) / √(1·2·2·3) = 0.57735
    assert scores(suite, questions, lambda q: replies[q.id]) == {
        "ach_binaryqa": 1.0,
        "ach_mcq": 0.5,
        "tsh": 0.5,
        "sth: classification": pytest.approx(((0.5773502691896258 + 1) / 2) ** 2),
    }
    replies["ach_binaryqa-0-0-v_clip_2"] = "Yes"
    assert scores(suite, questions, lambda q: replies[q.id])["ach_binaryqa"] == 0.0


@pytest.mark.parametrize(
    ("reply", "order"),
    [("BA", "BA"), ("ab.", "AB"), ("Action A", "A"), ("Action B occurs after action A.", "AB"), ("I see nothing.", None)],
)
def test_vidhalluc_reads_orders(reply, order):
    question = SuiteQuestion(id="", video="", prompt="", answer=order or "AB", task="tsh")
    assert SUITES["vidhalluc"].mark(question, reply) == (None if order is None else {"correct": 1.0})


def test_a_classifier_that_says_one_thing_has_a_matthews_coefficient_of_0():
    assert squared_matthews(np.array([3.0, 0, 2, 0])) == 0.25
    assert squared_matthews(np.array([[2.0, 0, 0, 2], [0.0, 2, 2, 0]])).tolist() == [1.0, 0.0]


# LongVideoBench


def lvb_row(**changes) -> dict:
    return {
        "video_id": "x1",
        "question": "What is said when the dot stops?",
        "question_wo_referring_query": "What is said?",
        "candidates": ["hello", "stop", "go on"],
        "correct_choice": 1,
        "position": [10],
        "topic_category": "KG",
        "question_category": "T2E",
        "level": "L2-Relation",
        "id": "x1_0",
        "video_path": "x1.mp4",
        "subtitle_path": "x1_en.json",
        "duration_group": 60,
        "starting_timestamp_for_subtitles": 100.0,
        "duration": 30.5,
        **changes,
    }


def test_longvideobench_with_subtitles_of_both_forms(tmp_path):
    write(
        tmp_path / "lvb_val.json",
        [lvb_row(), lvb_row(id="x1_1", duration_group=15, subtitle_path="y.json", level="L1-Perception")],
    )
    write(
        tmp_path / "subtitles" / "x1_en.json",
        [{"timestamp": [101.0, 102.5], "text": "stop"}, {"timestamp": [129.0, None], "text": "bye"}],
    )
    write(tmp_path / "subtitles" / "y.json", [{"start": "00:01:41.000", "end": "00:01:42.500", "line": "go on"}])
    plain = read("longvideobench", tmp_path)
    assert plain[0].prompt == (
        "Question: What is said when the dot stops?\nA. hello\nB. stop\nC. go on\nAnswer with the option's letter from the given "
        "choices directly."
    )
    titled = read("longvideobench", tmp_path, subtitles=True)
    assert [q.prompt.partition("\nQuestion")[0] for q in titled] == ["stop\nbye", "go on"]
    found = scores(SUITES["longvideobench"], plain, lambda q: "B" if q.id == "x1_0" else "maybe")
    assert found["overall"] == 0.5
    assert (found["seconds: 15"], found["seconds: 60"], found["level: L2-Relation"]) == (0.0, 1.0, 1.0)


def test_longvideobench_options_in_columns(tmp_path):
    row = lvb_row(option0="hello", option1="stop", option2="go on", option3="N/A", option4="N/A")
    del row["candidates"]
    write(tmp_path / "validation-00000-of-00001.parquet", [row])
    assert read("longvideobench", tmp_path)[0].options == ("hello", "stop", "go on")


# MLVU


def test_mlvu_means_of_tasks_and_of_judged_tasks(tmp_path):
    row = {"video": "a.mp4", "duration": 300, "question": "What colour?", "candidates": ["Red", "Blue"], "answer": "Blue"}
    write(tmp_path / "MLVU" / "json" / "1_plotQA.json", [{**row, "question_type": "plotQA"}] * 3)
    write(tmp_path / "MLVU" / "json" / "4_count.json", [{**row, "question_type": "count"}])
    free = {
        "video": "b.mp4",
        "duration": 300,
        "question": "Describe the scene.",
        "answer": "A dot stops.",
        "question_type": "subPlot",
    }
    write(tmp_path / "MLVU" / "json" / "8_sub_scene.json", [{**free, "scoring_points": ["a dot", "it stops"]}])
    write(tmp_path / "MLVU" / "json" / "9_summary.json", [free])
    write(tmp_path / "MLVU" / "video" / "1_plotQA" / "a.mp4", "")
    suite, questions = SUITES["mlvu"], read("mlvu", tmp_path)
    assert questions[0].video.endswith("MLVU/video/1_plotQA/a.mp4")
    values = {
        "plotQA": {"correct": 1.0},
        "count": {"correct": 0.0},
        "sub_scene": {"accuracy": 3.0, "relevance": 5.0, "total": 8.0},
        "summary": {"completeness": 2.0, "reliability": 4.0, "total": 6.0},
    }
    marks = [Mark(question=q, values=values[q.task]) for q in questions]
    found = {m.name: (measures.score(m, marks).value, m.top) for m in suite.measures(questions)}
    assert found["M-Avg"] == (0.5, 1.0)  # the mean of 100 % and 0 %, whatever the numbers of their questions
    assert found["G-Avg"] == (7.0, 10.0)
    assert found["sub_scene: accuracy"] == (3.0, 5.0)
    assert found["task: summary"] == (6.0, 10.0)


def test_mlvu_judges_by_points_or_by_the_summary(tmp_path):
    suite = SUITES["mlvu"]
    facts = {"question": "Describe it.", "points": ["a dot", "it stops"]}
    scene = SuiteQuestion(id="", video="", prompt="", answer="A dot stops.", task="sub_scene", facts=facts)
    assert suite.judge is not None
    assert "- a dot\n- it stops" in suite.judge.ask(scene, "A dot.")
    assert suite.judge.read(scene, "So.\nAccuracy: 3\nRelevance: 4.5/5") == {"accuracy": 3.0, "relevance": 4.5, "total": 7.5}
    assert suite.judge.read(scene, "Accuracy: 3") is None
    assert suite.judge.read(scene, "Accuracy: 9\nRelevance: 4") is None
    assert "Relevance" in suite.judge.reminder(scene)


# NExT-QA


def next_row(**changes) -> dict:
    options = {f"a{i}": text for i, text in enumerate(("clap", "sit", "lie", "stop", "crawl"))}
    row = {
        "video": 257,
        "frame_count": 719,
        "width": 320,
        "height": 240,
        "question": "what did the dot do",
        "answer": 3,
        "qid": 8,
    }
    return {**row, "type": "TN", **options, **changes}


def test_next_qa_by_type(tmp_path):
    write(tmp_path / "test.csv", [next_row(), next_row(qid=9, type="TP", answer=0), next_row(qid=1, type="CW", answer=0)])
    write(tmp_path / "map_vid_vidorID.json", {"257": "1164/323"})
    write(tmp_path / "NExTVideo" / "1164" / "323.mp4", "")
    questions = read("next-qa", tmp_path)
    assert questions[0].video.endswith("NExTVideo/1164/323.mp4")
    assert questions[0].prompt == "what did the dot do\nA. clap\nB. sit\nC. lie\nD. stop\nE. crawl"
    assert scores(SUITES["next-qa"], questions, lambda q: "D. stop") == {
        "mc: accuracy": 1 / 3,
        "mc, all of: temporal": 0.5,
        "mc, all of: causal": 0.0,
        "mc: temporal: before or after": 0.5,
        "mc: causal: why": 0.0,
    }


def test_next_qa_open_ended_rows(tmp_path):
    row = {name: value for name, value in next_row(answer="stop").items() if name not in ("a0", "a1", "a2", "a3", "a4")}
    write(tmp_path / "test.csv", [row])
    write(tmp_path / "add_reference_answer_test.json", {"257": {"8": "halt"}})
    [question] = read("next-qa", tmp_path)
    assert question.task == "oe"
    assert question.facts == {"answers": ["stop", "halt"], "type": "TN"}
    assert question.prompt == "what did the dot do\nAnswer a question using a short phrase or sentence."
    with pytest.raises(DataError, match="holds no rows of task mc"):
        read("next-qa", tmp_path, "mc")


def test_wups_by_hand():
    known = {frozenset({"dog", "cat"}): 0.86, frozenset({"sit", "lie"}): 0.5}

    def similar(first: str, second: str) -> float:
        return known.get(frozenset({first, second}), 0.0)

    assert wups(["dog", "sit"], ["dog", "sit"], 0.9, similar) == 1.0
    assert wups(["dog", "sit"], ["cat", "lie"], 0.0, similar) == pytest.approx(0.86 * 0.5)
    assert wups(["dog", "sit"], ["cat", "lie"], 0.9, similar) == pytest.approx(0.086 * 0.05)
    assert wups(["dog", "xyz"], ["dog"], 0.0, similar) == 1.0  # a word that matches nothing is left out of the product
    assert wups(["xyz"], ["dog"], 0.0, similar) == wups([], ["dog"], 0.0, similar) == 0.0


def test_open_ended_questions_are_refused_before_they_are_asked_where_nltk_is_not_installed(monkeypatch):
    asked = [SuiteQuestion(id="", video="", prompt="", answer="", task="oe")]
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(
        ConfigError, match=r"needs NLTK \(.*\); install it with `pip install nltk` and .*, or leave the open-ended"
    ):
        SUITES["next-qa"].needs(asked)
    SUITES["next-qa"].needs([])


# MSVD-QA, MSRVTT-QA, TGIF-QA


@pytest.mark.parametrize("name", ["msvd-qa", "msrvtt-qa", "tgif-qa"])
def test_open_questions_in_two_files(tmp_path, name):
    asked = [{"video_name": "v1", "question": "what moves?", "question_id": "q7"}]
    write(tmp_path / "test_q.json", asked)
    write(tmp_path / "test_a.json", [{"answer": "dot", "question_id": "q8"}, {"answer": "cross", "question_id": "q7"}])
    write(tmp_path / "videos" / "v1.avi", "")
    [question] = read(name, tmp_path)
    assert (question.prompt, question.answer, question.video) == (
        "what moves?",
        "cross",
        str(tmp_path / "videos" / "v1.avi"),
    )
    write(tmp_path / "test_a.json", [{"answer": "dot", "question_id": "q8"}])
    with pytest.raises(RowError, match=r"test_q\.json: row 1: question_id: 'q7' has no answer in .*test_a\.json"):
        read(name, tmp_path)


def test_open_questions_in_the_data_sets_own_files(tmp_path):
    msvd, tgif = tmp_path / "msvd", tmp_path / "tgif"
    write(msvd / "test_qa.json", [{"answer": "dot", "id": 30933, "question": "what moves?", "video_id": 1301}])
    write(msvd / "youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1301\n")
    write(msvd / "YouTubeClips" / "-4wsuPCjDBc_5_15.avi", "")
    assert read("msvd-qa", msvd)[0].video.endswith("YouTubeClips/-4wsuPCjDBc_5_15.avi")
    (msvd / "youtube_mapping.txt").unlink()
    assert read("msrvtt-qa", msvd)[0].video.endswith("videos/video1301.mp4")
    write(
        tgif / "Test_frameqa_question.csv",
        [{"gif_name": "tumblr_x", "question": "what color ?", "answer": "red", "type": 2}],
    )
    write(tgif / "gifs" / "tumblr_x.gif", "")
    assert read("tgif-qa", tgif)[0].video.endswith("gifs/tumblr_x.gif")


def test_open_answers_are_judged_after_video_chatgpt():
    suite = SUITES["msvd-qa"]
    question = SuiteQuestion(id="", video="", prompt="what moves?", answer="dot", facts={"question": "what moves?"})
    assert suite.is_judged(question)
    assert suite.judge is not None
    assert suite.judge.read(question, "Correct: yes\nScore: 4") == {"correct": 1.0, "score": 4.0}
    assert suite.judge.read(question, "**Correct:** No\nScore: 0/5") == {"correct": 0.0, "score": 0.0}
    for unclear in ("yes", "Correct: yes", "Correct: yes\nScore: 7", "Correct: yes\nCorrect: no\nScore: 3"):
        assert suite.judge.read(question, unclear) is None, unclear


# Rows of another form, and names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "E"}, r"row 1: answer: must be one of A, B, C, D, got 'E'; the rows must have the form of Video-MME"),
        ({"answer": "AB"}, r"answer: must be one of A, B, C, D, got 'AB'"),
        ({"options": "A. One."}, r"options: must be a list of at least 2 texts, got 'A. One.'"),
        ({"duration": "hour"}, r"duration: must be one of short, medium, long, got 'hour'"),
        ({"question": None}, r"question: is missing or null"),
        ({"videoID": 3}, r"videoID: must be a text, got 3"),
    ],
)
def test_rows_of_another_form_are_refused_by_name(tmp_path, changes, message):
    write(tmp_path / "rows.jsonl", json.dumps(mme_row(0, **changes)))
    with pytest.raises(RowError, match=rf"rows\.jsonl:1.*{message.removeprefix('row 1: ')}"):
        read("video-mme", tmp_path)


def test_files_that_are_not_there_or_hold_nothing(tmp_path):
    with pytest.raises(DataError, match=r"holds no videomme/\*\.parquet and no .*; put Video-MME .* there"):
        read("video-mme", tmp_path)
    with pytest.raises(DataError, match=r"nowhere is not a folder; put MVBench"):
        read("mvbench", tmp_path / "nowhere")
    write(tmp_path / "json" / "action_count.json", "[]")
    with pytest.raises(DataError, match=r"action_count\.json holds no rows"):
        read("mvbench", tmp_path)
    write(tmp_path / "sth.json", "[1]")
    with pytest.raises(DataError, match=r"sth\.json must hold a JSON object with entries, got \[1\]"):
        read("vidhalluc", tmp_path)
    (tmp_path / "val.csv").write_text("video,question\n1,what,now\n")
    with pytest.raises(RowError, match=r"val\.csv: row 1: row: has more or fewer columns"):
        read("next-qa", tmp_path)
    (tmp_path / "val.csv").write_bytes(b"video,question\n1,\xff\n")
    with pytest.raises(DataError, match=r"val\.csv:0 cannot be read as CSV .*in UTF-8"):
        read("next-qa", tmp_path)


def test_suites_are_found_by_name():
    assert find_suite("mvbench") is SUITES["mvbench"]
    assert find_suite("vidalign.data.suites.mlvu:SUITE") is SUITES["mlvu"]
    with pytest.raises(ConfigError, match=r"unknown suite 'mvbnch'; did you mean mvbench\?"):
        find_suite("mvbnch")
    with pytest.raises(ConfigError, match="is a str; it must be a vidalign"):
        find_suite("vidalign.data.suites.mlvu:FORM")
    with pytest.raises(ConfigError, match=r"suite mvbench has no task 'x'; choose from action_sequence, "):
        SUITES["mvbench"].check(Request(folder=pathlib.Path(), tasks=("x",)))
    with pytest.raises(ConfigError, match="suite mvbench publishes no subtitles"):
        SUITES["mvbench"].check(Request(folder=pathlib.Path(), subtitles=True))


def test_a_suite_of_ones_own_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "own_suite.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "data" / "rows.jsonl", json.dumps({"clip": "a.mp4", "ask": "Which way?", "right": "left"}))
    suite = find_suite("own_suite:SUITE")
    [question] = suite.read(Request(folder=tmp_path / "data"))
    assert question.where.endswith("rows.jsonl:1")
    assert scores(suite, [question], lambda q: "To the left.") == {"overall": 1.0}


OWN = """
from vidalign.data.suites.base import Suite
from vidalign.data.suites.measures import mean
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import Videos, find, rows_of


def read(request):
    videos = Videos(request.folder, ("",))
    rows = [row for path in find(request.folder, ("rows.jsonl",), "my rows") for row in rows_of(path, "my rows")]
    return [
        SuiteQuestion(
            id=str(number), video=videos.find(row.text("clip")), prompt=row.text("ask"), answer=row.text("right"), where=row.where
        )
        for number, row in enumerate(rows)
    ]


SUITE = Suite(
    name="own",
    title="My own",
    source="me",
    rule="the answer's word is in the reply",
    read=read,
    mark=lambda question, reply: {"correct": float(question.answer in reply)},
    measures=lambda questions: [mean("overall")],
)
"""


# Intervals


def question(number: int, video: str) -> SuiteQuestion:
    return SuiteQuestion(id=str(number), video=video, prompt="", answer="")


def test_intervals_know_that_questions_on_one_video_are_not_independent():
    measure = measures.mean("overall")
    alone = [Mark(question=question(i, f"v{i}"), values={"correct": float(i % 2)}) for i in range(40)]
    found = measures.score(measure, alone)
    assert (found.low, found.high) == wilson_interval(20, 40)
    shared = [Mark(question=question(i, f"v{i // 10}"), values={"correct": float(i // 10 % 2)}) for i in range(40)]
    grouped = measures.score(measure, shared)
    assert grouped.value == found.value == 0.5
    assert found.low is not None and grouped.low is not None  # noqa: PT018
    assert grouped.low < found.low  # four videos, all of whose questions agree, are four observations and not forty
    same = [Mark(question=question(i, f"v{i // 2}"), values={"correct": 1.0}) for i in range(8)]
    assert measures.score(measure, same).low == wilson_interval(4, 4)[0]


def test_differences_are_paired():
    measure = measures.mean("overall")
    before = [Mark(question=question(i, f"v{i}"), values={"correct": float(i < 50)}) for i in range(100)]
    after = [Mark(question=question(i, f"v{i}"), values={"correct": float(i < 60)}) for i in range(110)]
    found = measures.difference(measure, before, after)
    assert (found.value, found.n) == (pytest.approx(0.1), 100)
    assert found.low is not None and found.high is not None  # noqa: PT018
    assert 0.03 < found.low < 0.1 < found.high < 0.17  # ten changes of a hundred; unpaired it would reach below zero


def test_the_cluster_bootstrap_of_a_mean_is_close_to_its_formula():
    draw = np.random.default_rng(1)
    sums = np.stack([draw.normal(3.0, 1.0, 400), np.ones(400)], axis=1)
    low, high = cluster_bootstrap(sums, lambda s: s[..., 0] / s[..., 1])
    half = 1.96 * sums[:, 0].std() / 20
    assert low == pytest.approx(sums[:, 0].mean() - half, abs=0.02)
    assert high == pytest.approx(sums[:, 0].mean() + half, abs=0.02)
    assert cluster_bootstrap(sums, lambda s: s[..., 0] / s[..., 1]) == (low, high)
    assert cluster_bootstrap(sums[:1], lambda s: s[..., 0]) is None
