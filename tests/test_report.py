"""The report is made from a run folder that is written here with the functions that real stages use."""

import base64
import dataclasses
import html.parser
import io
import json
import math
import pathlib
import random
import re

import numpy as np
import PIL.Image
import pytest
from conftest import write_video
from test_files import RESPONSE

from pipelines import report
from pipelines.reports import examples, figures, plots, tables
from pipelines.stages.groups import group_facts
from pipelines.summary import write_summary
from vidalign.config.linting import LintConfig
from vidalign.config.loading import parse_config
from vidalign.config.run import RunConfig
from vidalign.errors import DataError
from vidalign.files import RunFolder, write_json, write_table, write_text_atomic
from vidalign.recipes.lint import lint
from vidalign.records import Context
from vidalign.types import EvalAnswer, FrameSpec, PolicyVersion, PreferencePair, QuarantineRow, Response, ResponseGroup
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import FrameCache

ATTACK = "<script>alert('x')</script>"
SECTIONS = ("accuracy", "answers", "training", "scores", "artefacts", "pairs", "data", "run")
CATEGORIES = ("colour", "motion", "order", "presence", "shape")


def make_config(root: pathlib.Path, **sections) -> RunConfig:
    raw = {"run_dir": str(root), "model": {"path": "models/tiny"}, "data": {"train": "train.jsonl", "eval": "eval.jsonl"}}
    return parse_config({**raw, **sections})


def draw_clip(rng: np.random.Generator, size: int = 56) -> np.ndarray:
    """A square that crosses the picture: uint8 [8, size, size, 3]."""
    frames = np.full((8, size, size, 3), rng.integers(150, 255, 3), np.uint8)
    colour, row, side = rng.integers(0, 120, 3), rng.integers(4, size - 20), size // 4
    for index in range(8):
        column = index * (size - side) // 7
        frames[index, row : row + side, column : column + side] = colour
    return frames


def make_run(
    root: pathlib.Path, *, num_pairs: int = 20, num_questions: int = 60, rounds: int = 1, seed: int = 0
) -> RunFolder:
    """A finished run of `rounds` rounds, written through the file functions of real stages."""
    run, rng = RunFolder.open(str(root)), np.random.default_rng(seed)
    frames = {}
    for number in range(12):
        clip = Clip(frames=draw_clip(rng), fps=8.0, total_num_frames=16, duration_s=2.0, indices=tuple(range(1, 16, 2)))
        path = FrameCache(run.frames).put(f"{number:02d}cafe", FrameSpec(), clip)
        frames[f"/videos/train/{number:04d}.mp4"] = str(path)
    for index in range(rounds):
        write_json(run.stage("responses", index) / "frames.json", frames)
        write_table(run.stage("responses", index) / "responses.parquet", make_responses(rng, num_pairs))
        write_table(run.stage("pairs", index) / "pairs.parquet", make_pairs(rng, num_pairs, list(frames)))
        lint_report = lint(list(make_pairs(rng, num_pairs, list(frames))), LintConfig())
        write_json(run.stage("pairs", index) / "lint.json", lint_report.to_row())
        rows = [QuarantineRow(uri="/videos/train/broken.mp4", reason="truncated", message="2 of 8 frames decode")]
        write_table(run.stage("quarantine", index) / "quarantine.parquet", rows)
        lines = "".join(json.dumps(row) + "\n" for row in make_metrics(rng))
        write_text_atomic(run.stage("train", index) / "metrics.jsonl", lines)
    answers = {name: make_answers(rng, name, share, num_questions, list(frames)) for name, share in SHARES.items()}
    for name, rows in answers.items():
        write_table(run.stage("eval", rounds - 1) / f"{name}.parquet", rows)
    write_json(run.summary, make_summary(answers, num_pairs))
    return run


SHARES = {"base": 0.6, "aligned": 0.7, "blind": 0.3}


def make_responses(rng, num_pairs):
    for number in range(num_pairs):
        for kind in ("hinted", "reflected", "augmented", "augmented"):
            trust = float(
                rng.choice([0.0, 0.5, 0.8, 1.0], p=(0.1, 0.1, 0.2, 0.6) if kind != "augmented" else (0.5, 0.3, 0.1, 0.1))
            )
            yield Response(
                example_id=f"train-{number}", kind=kind, candidate=0, turn=0, text="The square moves left.", token_ids=(1, 2),
                log_probs=(-0.5, -0.1), policy_version="aaaa", seed=0, temperature=1.0, top_p=0.9, finish_reason="stop",
                reward=float(rng.normal(-1.4 + 0.7 * trust, 0.35)), trust=trust,
            )  # fmt: skip


def make_pairs(rng, num_pairs, videos):
    for number in range(num_pairs):
        yield PreferencePair(
            id=f"pair-{number}", example_id=f"train-{number}", video=videos[number % len(videos)],
            question=f"{ATTACK} Which way does square {number} move?", answer="The square moves right.",
            chosen="The square moves right.", rejected="The circle <b>moves</b> left.", category=CATEGORIES[number % 5],
            rejected_marks=((4, 10), (24, 28)), chosen_reward=float(rng.normal(-0.7, 0.3)),
            rejected_reward=float(rng.normal(-1.2, 0.4)), chosen_trust=1.0, rejected_trust=float(rng.choice([0.2, 0.6])),
            provenance=json.dumps({
                "recipe": "leanpo", "rule": "best_vs_worst", "policy_version": "aaaa",
                "chosen": {"kind": "reflected", "candidate": 2, "turn": 1, "seed": 7},
                "rejected": {"kind": "augmented", "candidate": 0, "seed": 9},
            }),
        )  # fmt: skip


def make_metrics(rng, num_steps=60):
    for step in range(0, num_steps, 5):
        gain = step / num_steps
        yield {
            "step": step, "epoch": 0, "loss": 0.69 - 0.3 * gain + rng.normal(0, 0.02), "learning_rate": 1e-5,
            "grad_norm": abs(rng.normal(1, 0.1)), "chosen_logp": -0.9 + 0.2 * gain + rng.normal(0, 0.02),
            "rejected_logp": -1.1 - 0.5 * gain + rng.normal(0, 0.02),
            "truth_logp": -0.8 + 0.1 * gain if step % 10 == 0 else None, "margin": 0.7 * gain,
            "accuracy": 0.5 + 0.4 * gain, "both_fell": 0.2 * gain,
            "chosen_fell": 0.3 * gain, "seconds": 1.5,
        }  # fmt: skip


def make_answers(rng, name, share, num_questions, videos):
    return [
        EvalAnswer(
            example_id=f"eval-{number}", category=CATEGORIES[number % 5], video=videos[number % len(videos)],
            question="What colour is the square?", answer="red", text="red" if right else "blue", correct=bool(right),
            model_id=name, policy_version="aaaa", latency_s=0.2,
        )
        for number, right in enumerate(rng.random(num_questions) < share)
    ]  # fmt: skip


def make_summary(answers, num_pairs):
    tables = {name: report_table(rows) for name, rows in answers.items()}
    categories = {
        category: {**{name: table[category] for name, table in tables.items()}, "num_examples": len(answers["base"]) // 5}
        for category in CATEGORIES
    }
    return {
        "videos": {"total": 13, "decoded": 12, "quarantined": {"truncated": 1}},
        "pairs": {"kept": num_pairs, "dropped": {"trust gap below 0.1": 7}},
        "reward_trust_correlation": 0.61,
        "accuracy": {
            **{name: table["all"] for name, table in tables.items()},
            "num_examples": len(answers["base"]),
            "by_category": categories,
            "intervals": {"base": [0.47, 0.72], "aligned": [0.57, 0.8], "blind": [0.2, 0.43]},
            "scored_by": {name: {"short": {"rules": 7, "judge": 2, "": 1}} for name in answers},
            "f1": {name: {"mean": 0.625, "total": 10} for name in answers},
            "judge": {"name": "openai:rules:12345678", "judged": 6, "quarantined": {"unparsable_judgement": 1}},
        },
        "log_likelihood": {
            "chosen": {"start": -0.9, "end": -0.7},
            "rejected": {"start": -1.1, "end": -1.6},
            "truth": {"start": -0.8, "end": -0.7},
            "both_fell": 0.18,
        },
        "policy": {"base": "aaaa", "aligned": "bbbb"},
        "endpoint": {"model_ids": ["base", "aligned"]},
        "wall_s": {"decode": 8.2, "rollout": 95.0, "train": 180.4, "serve": 86.0, "evaluate": 41.0, "report": 2.0},
        "versions": {"torch": "2.13.0", "vllm": "0.32.0", "ray": "2.60.0"},
        "seed": 0,
    }


def report_table(rows):
    shares = {"all": sum(row.correct for row in rows) / len(rows)}
    for category in CATEGORIES:
        part = [row.correct for row in rows if row.category == category]
        shares[category] = sum(part) / len(part)
    return shares


class Page(html.parser.HTMLParser):
    """Everything a browser would fetch or run, the ids, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.resources, self.tags, self.ids, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.resources.append(value)
            self.resources += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    path = report.write_report(make_run(root, rounds=2), make_config(root, rounds=2))
    return path, path.read_text(encoding="utf-8")


def test_the_page_fetches_nothing(full):
    path, text = full
    page = Page(text)
    assert path.name == "index.html"
    assert page.resources
    assert all(item.startswith(("#", "data:image/")) or item == "browse.html" for item in page.resources)
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in text


def test_references_inside_the_page_resolve(full):
    page = Page(full[1])
    assert len(page.ids) == len(set(page.ids))
    assert {item[1:] for item in page.resources if item.startswith("#")} <= set(page.ids)


def test_markup_in_a_question_or_answer_is_shown_as_text(full):
    assert "<script" not in full[1]
    assert "<b>moves</b>" not in full[1]
    assert f"{ATTACK} Which way does square" in "".join(Page(full[1]).words)


def test_every_section_is_present_with_its_figures(full):
    page = Page(full[1])
    words = " ".join("".join(page.words).split())
    assert {*SECTIONS, "round-0", "round-1"} <= set(page.ids)
    assert page.tags.count("article") == examples.NUM_PAIRS + 2 * examples.NUM_CHANGED
    for expected in ("trust gap below 0.1", "/videos/train/broken.mp4", "2 of 8 frames decode", "3 min 00 s", "2.13.0",
                     "learning_rate: 5.0e-07", "Rank correlation of the two over all candidates: 0.61", "18.0 %",
                     "kind reflected, candidate 2, turn 1, seed 7", "rejected −1.10 → −1.60", "20 training pairs",
                     "circlerejected0.0 %100.0 %0.0 %", "differ in length",
                     "shortrules777", "shortjudge222", "anynobody: in no accuracy111", "Judge: openai:rules:12345678, right from",
                     "1 unparsable_judgement", "base 0.62, aligned 0.62, blind 0.62"):  # fmt: skip
        assert expected in words, expected
    for title in ("Average log-likelihood", "Change of log-likelihood", "Margin", "Share of pairs", "Reward of candidates"):
        assert title in words
    assert len(full[1].encode()) < 1_000_000


def test_the_page_of_a_large_photographic_run_stays_below_3_mb(tmp_path):
    run = make_run(tmp_path, num_pairs=200, num_questions=500)
    rng = np.random.default_rng(1)
    for path in run.frames.rglob("*.safetensors"):  # noise is the worst case of a photograph
        small = rng.integers(0, 256, (16, 27, 48, 3), np.uint8)
        frames = np.ascontiguousarray(small.repeat(8, axis=1).repeat(8, axis=2))
        clip = Clip(frames=frames, fps=30.0, total_num_frames=160, duration_s=160 / 30, indices=tuple(range(0, 160, 10)))
        path.write_bytes(FrameCache(tmp_path / "other").put("cafe", FrameSpec(), clip).read_bytes())
    text = report.write_report(run, make_config(tmp_path)).read_text(encoding="utf-8")
    assert len(text.encode()) < 3_000_000
    assert "data:image/jpeg" in text


@pytest.mark.parametrize("summary", [{}, None, {"accuracy": None, "log_likelihood": {"chosen": None}, "pairs": {"kept": 3}}])
def test_missing_parts_are_said_to_be_missing(tmp_path, summary):
    run = RunFolder.open(str(tmp_path))
    run.stage("responses").mkdir(parents=True)
    if summary is not None:
        write_json(run.summary, summary)
    config = make_config(tmp_path, data={"train": "train.jsonl"})
    words = " ".join("".join(Page(report.write_report(run, config).read_text(encoding="utf-8")).words).split())
    for expected in ("was not evaluated", "it is not set", "No answers of both models", "No training metrics",
                     "No scored responses", "No preference pairs", "no figures of the videos", "Not recorded.",
                     "not started"):  # fmt: skip
        assert expected in words, expected
    assert ("no summary.json yet" in words) == (not summary)


def test_a_run_with_training_and_no_evaluation(tmp_path):
    run = make_run(tmp_path)
    for name in SHARES:
        (run.stage("eval") / f"{name}.parquet").unlink()
    summary = json.loads(run.summary.read_text())
    write_json(run.summary, {**summary, "accuracy": None, "endpoint": None})
    text = report.write_report(run, make_config(tmp_path)).read_text(encoding="utf-8")
    assert "was not evaluated" in text
    assert "Average log-likelihood" in text


def test_a_run_on_groups_shows_groups_in_place_of_pairs(tmp_path):
    run = make_run(tmp_path, rounds=2)
    group = ResponseGroup(
        id="g", example_id="train-0", video="/videos/train/0000.mp4", question=f"{ATTACK} Which way?", answer="left",
        texts=("left", "right", "up and"), rewards=(1.3, 0.0, math.nan), left_out=("", "", "cut_by_length"), policy_version="aaaa",
        tokens="t", category="motion", parts=json.dumps({"accuracy": [1.0, 0.0, None], "temporal": [1.0, 0.0, None]}),
    )  # fmt: skip
    for index, alike in enumerate((3, 5)):
        for name in ("pairs.parquet", "lint.json"):
            (run.stage("pairs", index) / name).unlink()
        groups = [dataclasses.replace(group, id=f"g{number}") for number in range(9)]
        write_table(run.stage("pairs", index) / "groups.parquet", groups)
        found = {**group_facts(groups), "all_alike": alike, "mean_reward": 0.4 + index / 10}
        made = {"kept": 9, "dropped": {"cut_by_length": 2}, "groups": found, "reward_trust_correlation": None}
        write_json(run.stage("pairs", index) / "manifest.json", made)
        trained = {"num_groups": 4, "dropped": {"all_alike": alike}, "behaviour_gap": 2e-6}
        write_json(run.stage("train", index) / "manifest.json", trained)
    config = make_config(tmp_path, recipe={"name": "group"}, objective={"name": "dapo"}, rounds=2)
    base = PolicyVersion(version="aaaa", path="models/tiny")
    summary = write_summary(config, run, base=base, aligned=base, wall_s={"train": 3.0})
    assert summary["pairs"] is None
    assert summary["groups"]["kept"] == 4
    assert summary["groups"]["dropped"] == {"cut_by_length": 2, "all_alike": 5}
    assert summary["groups"]["left_out"] == {"cut_by_length": 9}
    assert summary["groups"]["mean_reward_by_round"] == [0.4, 0.5]
    text = report.write_report(run, config).read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join("".join(page.words).split())
    assert {"groups", "round-1"} <= set(page.ids)
    assert not {"pairs", "artefacts"} & set(page.ids)
    assert {item[1:] for item in page.resources if item.startswith("#")} <= set(page.ids)
    assert "<script" not in text
    for expected in ("4kept; 7 dropped; 5 made with equal rewards", "reward 1.30", "temporal 1.00", "left out: cut_by_length",
                     "all_alike5", "differ by 2.0e-06 nats", "Left out of their groups as cut_by_length: 9",
                     "6 of 9 groups of round 1", "best and worst reply of at most 64 groups", "Dropped groups"):  # fmt: skip
        assert expected in words, expected
    assert "Preference pairs" not in words


def test_a_video_that_the_rollout_did_not_keep_is_decoded_like_the_others(tmp_path):
    run, video = make_run(tmp_path / "run"), tmp_path / "held-out.mp4"
    write_video(video, [np.full((48, 64, 3), 15 * level, np.uint8) for level in range(16)])
    with examples.Thumbnails(run, 0, make_config(tmp_path).video) as strip:
        shown, missing = strip(str(video)), strip(str(tmp_path / "gone.mp4"))
    assert [time for _, time in shown["thumbnails"]] == ["0.1 s", "0.4 s", "0.9 s", "1.1 s", "1.6 s", "1.9 s"]
    grey = [shown_image(uri).getpixel((30, 20))[0] for uri, _ in shown["thumbnails"]]
    assert grey == pytest.approx([15, 45, 105, 135, 195, 225], abs=6)
    assert missing == {"thumbnails": [], "note": f"no file at {tmp_path / 'gone.mp4'}"}


def test_everything_that_a_prompt_shows_has_its_share_of_thumbnails():
    strips = {
        "a": {"thumbnails": [(f"a{n}", f"{n} s") for n in range(6)], "note": None, "wide": False},
        "b": {"thumbnails": [], "note": "b is broken"},
        "i": {"thumbnails": [("i0", "0.0 s")], "note": None, "wide": True},
    }
    shown = examples.thumbnails(Context(videos=("a", "b"), images=("i",)), strips.__getitem__)
    assert shown["thumbnails"] == [("a0", "video 1, 0 s"), ("a5", "video 1, 5 s"), ("i0", "image 1")]
    assert (shown["note"], shown["wide"]) == ("b is broken", True)
    assert examples.thumbnails(Context(videos=("a",)), strips.__getitem__) is strips["a"]


def shown_image(uri: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def test_a_damaged_clip_is_named_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path)
    for path in run.frames.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-5])
    text = report.write_report(run, make_config(tmp_path)).read_text(encoding="utf-8")
    assert "decode the video again" in text
    assert "data:image" not in text


def test_an_empty_folder_and_a_torn_metrics_file_are_errors(tmp_path):
    with pytest.raises(DataError, match="nothing to report"):
        report.write_report(RunFolder.open(str(tmp_path / "empty")), make_config(tmp_path))
    run = make_run(tmp_path / "torn")
    with (run.stage("train") / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
    with pytest.raises(DataError, match=r"metrics\.jsonl has a line that is not JSON"):
        report.write_report(run, make_config(tmp_path))


def test_a_step_logged_twice_counts_once_with_its_last_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1}\n{"step": 5, "loss": 2}\n{"step": 5, "loss": 3}\n')
    assert report.read_metrics(path) == [{"step": 0, "loss": 1}, {"step": 5, "loss": 3}]


def test_a_summary_of_an_earlier_version_is_still_shown(tmp_path):
    """It also said that the endpoint was "checked"."""
    run = RunFolder.open(str(tmp_path))
    page = {}
    for name, more in (("new", {}), ("old", {"checked": True})):
        write_json(run.summary, {"endpoint": {"model_ids": ["base", "aligned"], **more}})
        page[name] = report.write_report(run, make_config(tmp_path)).read_text(encoding="utf-8")
    assert "<dt>endpoint</dt><dd>base, aligned</dd>" in page["new"]
    assert page["old"] == page["new"]


def test_the_page_is_the_same_when_written_again(full):
    path, text = full
    run = RunFolder(path.parents[1])
    assert report.write_report(run, make_config(run.root, rounds=2)).read_text(encoding="utf-8") == text


def test_changes_count_each_question_once_and_give_the_paired_interval():
    def answers(marks):
        return [
            EvalAnswer(
                example_id=str(i), category="", video="v", question="q", answer="a", text="t", correct=mark == "1",
                model_id="m", policy_version="p", latency_s=0.1,
            )
            for i, mark in enumerate(marks)
        ]  # fmt: skip

    both = {"base": answers("1100000000"), "aligned": answers("1011110000"), "blind": []}
    changes = examples.answer_changes(both, lambda uri: {"thumbnails": [], "note": ""}, random.Random(0))
    assert changes is not None
    counts = {name: changes[name] for name in ("n", "kept_right", "kept_wrong", "gained", "lost")}
    assert counts == {"n": 10, "kept_right": 1, "kept_wrong": 4, "gained": 4, "lost": 1}
    assert changes["difference"] == pytest.approx(0.3)
    assert changes["high"] - changes["difference"] == pytest.approx(1.959964 * (5 - 0.9) ** 0.5 / 10)  # Wald, by hand


def test_summary_table_lists_overall_and_categories():
    accuracy = {
        "base": 0.5, "aligned": 0.625, "blind": None, "num_examples": 8,
        "by_category": {"motion": {"base": 0.5, "aligned": 0.25, "blind": None, "num_examples": 4}},
        "intervals": {"base": [0.2, 0.8], "aligned": [0.3, 0.9], "blind": None},
    }  # fmt: skip
    lines = tables.summary_table({"accuracy": accuracy}).splitlines()
    assert lines[0].split() == ["accuracy", "n", "base", "aligned", "change", "blind"]
    assert lines[2].split() == ["all", "8", "50.0", "%", "62.5", "%", "+12.5", "pt", "–"]
    assert lines[3].split() == ["motion", "4", "50.0", "%", "25.0", "%", "−25.0", "pt", "–"]
    assert lines[4] == "95 % intervals: base 20.0 to 80.0 %, aligned 30.0 to 90.0 %"
    assert len({len(line) for line in lines[:4]}) == 1
    assert tables.summary_table({"accuracy": None}).startswith("No accuracy")


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ((), [("abcdef", False)]),
        (((1, 3),), [("a", False), ("bc", True), ("def", False)]),
        (((2, 4), (0, 3)), [("abc", True), ("d", True), ("ef", False)]),
        (((4, 99),), [("abcd", False), ("ef", True)]),
    ],
)
def test_marked_cuts_a_text_along_its_spans(marks, expected):
    assert examples.marked("abcdef", marks) == expected


def test_plots_hold_no_id_of_another_plot_and_use_the_page_colours():
    one = plots.curves("One", "n", {"chosen": [(0, -1.0), (1, -0.5)]})
    two = plots.curves("Two", "n", {"rejected": [(0, -1.0), (1, -0.5)]})
    assert one is not None
    assert two is not None
    assert "var(--chosen)" in one.svg
    assert "#0101" not in one.svg
    assert not set(re.findall(r'id="([^"]+)"', one.svg)) & set(re.findall(r'id="([^"]+)"', two.svg))
    assert one.legend == (("chosen", "chosen", "−1.00 → −0.50"),)
    assert plots.curves("None", "n", {"chosen": []}) is None
    assert plots.histogram("None", "n", {"chosen": np.array([np.nan])}, xlabel="x") is None


def test_a_thumbnail_is_small_and_shows_the_frame():
    frame = np.zeros((720, 1280, 3), np.uint8)
    frame[:, 640:] = (255, 0, 0)
    uri = plots.thumbnail(frame)
    image = shown_image(uri)
    assert image.size == (144, 81)
    assert image.getpixel((10, 40)) == (0, 0, 0)
    assert image.getpixel((130, 40)) == (255, 0, 0)
    assert len(uri) < 10_000


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"name": "leanpo"}, "leanpo: 4 candidates, 2 turns, augmented negatives, best_vs_worst"),
        ({"name": "rrpo", "rewrite": "policy"}, "rrpo: 4 candidates, wrong by trust, rewrite by policy"),
        ({"name": "hound", "judge": {"kind": "vllm", "model": "m"}}, "hound: 4 candidates, judge m, threshold 3"),
        ({"name": "given"}, "given: pairs from the data"),
    ],
)
def test_the_page_of_every_recipe_says_what_made_the_pairs(tmp_path, recipe, says):
    run = make_run(tmp_path)
    page = report.write_report(run, make_config(tmp_path, recipe=recipe)).read_text()
    assert says in page


def test_every_kind_of_response_is_in_the_histograms_of_its_side(tmp_path):
    kinds = ("unhinted", "reflected", "replayed", "perturbed", "plain", "truth", "caption", "differences")
    responses = [dataclasses.replace(RESPONSE, kind=kind, reward=-1.0 - i, trust=0.5) for i, kind in enumerate(kinds)]
    write_table(tmp_path / "responses.parquet", responses)
    rewards, *_ = figures.candidate_plots(tmp_path / "responses.parquet")
    assert rewards.legend == (
        ("chosen", "first turn without hints or reflected", "median −1.50, n = 2"),
        ("rejected", "ground truth with a resampled segment or perturbed video", "median −3.50, n = 2"),
        ("aligned", "no hint, clean video", "median −5.00, n = 1"),
        ("truth", "ground truth", "median −6.00, n = 1"),
    )


def test_suites_have_their_tables_and_say_what_they_left_out(tmp_path):
    run = make_run(tmp_path / "run", num_pairs=2, num_questions=10)
    config = make_config(run.root)
    assert "Published suites" not in report.write_report(run, config).read_text()
    score = {"measure": "overall", "value": 0.5, "low": 0.2, "high": 0.8, "n": 6, "counts": "pairs", "top": 1.0}
    model = {
        "policy_version": "v1",
        "num_answers": 6,
        "num_unread": 1,
        "num_unjudged": 0,
        "judge": None,
        "unusable_videos": [],
        "scores": [score],
    }
    scores = {
        "title": f"VideoHallucer {ATTACK}",
        "rule": "both right",
        "source": "its repository",
        "data": "/data",
        "tasks": ["temporal"],
        "subtitles": False,
        "max_new_tokens": 16,
        "num_questions": 14,
        "without_answer": ["temporal-0007"],
        "num_missing": 2,
        "missing_videos": ["/data/gone.mp4"],
        "models": {"base": model, "aligned": model},
        "difference": {"scores": [{**score, "value": -0.1, "low": None, "high": None}]},
    }
    write_json(run.stage("suites", 0) / "videohallucer" / "scores.json", scores)
    page = report.write_report(run, config).read_text()
    assert "Published suites" in page
    assert ATTACK not in page
    for text in (
        "6 pairs",
        "published without a right option, counted as wrong: 1 (temporal-0007)",
        "50.0 % (20.0 to 80.0)",
        "−10.0 pt",
        "videos that are not there: 1 (/data/gone.mp4); questions on them, not asked: 2",
    ):
        assert text in page, text
    assert "replies of aligned in which no answer is read, counted as wrong: 1" in page


def test_the_summary_says_what_a_run_takes_on_its_disk(tmp_path):
    run = make_run(tmp_path, rounds=2)
    base = PolicyVersion(version="aaaa", path="models/tiny")
    (run.stage("model", 1)).mkdir(parents=True)
    (run.stage("model", 1) / "model.safetensors").write_bytes(b"0" * 12345)
    run.summary.unlink()
    found = write_summary(make_config(tmp_path, rounds=2), run, base=base, aligned=base, wall_s={})["disk_bytes"]
    assert found["model"] == 12345
    assert found["pairs"] == sum(path.stat().st_size for path in run.root.glob("rounds/*/pairs/*"))
    assert found["total"] == sum(size for name, size in found.items() if name != "total")
    assert {"frames", "responses", "train", "eval", "quarantine"} <= found.keys()
