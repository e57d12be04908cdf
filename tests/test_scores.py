"""Which answers are right, by whom, and which nobody can judge; with a real judge endpoint in the heavy test at the end."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import types

import numpy as np
import pytest
from conftest import free_port, plan_of
from test_dry_run import connected, refusals  # noqa: F401  (a fixture)
from test_judge import endpoint  # noqa: F401  (a fixture)

from actors.judge import Judge
from cluster.resources import Workers
from pipelines.inputs import read_inputs
from pipelines.reports import tables as report_tables
from pipelines.rounds import Rounds
from pipelines.stages.base import MANIFEST, check, once
from pipelines.stages.judge import Judging
from pipelines.stages.scores import Scores, by_judge, judge_task, scored, unscored_warning
from pipelines.summary import accuracy, scored_answers
from vidalign import files
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import load_config, parse_config
from vidalign.config.run import EvaluateConfig, ModelConfig, VideoConfig
from vidalign.data import scorers
from vidalign.errors import ConfigError
from vidalign.files import RunFolder
from vidalign.model.checkpoint import policy_version
from vidalign.recipes.judging import prompt_version
from vidalign.statistics import accuracy_table
from vidalign.types import EvalAnswer, Example, PolicyVersion

JUDGE = {"kind": "openai", "model": "rules", "base_url": "http://127.0.0.1:1/v1"}
ROWS = {
    "choice": ("Which way?", "B", ("left", "right")),
    "yes_no": ("Does it move?", "Yes", ()),
    "number": ("How many?", "3", ()),
    "short": ("What is it?", "a sofa", ()),
    "free": ("What happens?", "A man opens the door, then he leaves the room.", ()),
}
EXAMPLES = {
    kind: Example(id=kind, video=f"{kind}.mp4", question=question, answer=answer, options=options, category=f"about {kind}")
    for kind, (question, answer, options) in ROWS.items()
}


def answer(kind, text, **more):
    example = EXAMPLES[kind]
    fields = {
        "example_id": kind, "category": example.category, "video": example.video, "question": example.question,
        "answer": example.answer, "text": text, "correct": None, "model_id": "base", "policy_version": "p", "latency_s": 0.1,
    }  # fmt: skip
    return EvalAnswer(**{**fields, **more})


@pytest.mark.parametrize(
    ("kind", "text", "by_rules", "exact", "f1"),
    [
        ("choice", "The answer is (B).", True, True, True),
        ("choice", "left", False, False, False),
        ("yes_no", "It does not.", False, False, False),
        ("number", "There are three.", True, True, True),
        ("short", "It is a sofa.", True, True, True),
        ("short", "couch", None, False, False),
        ("short", "a grey sofa", None, False, True),
        ("free", "He opens a door and walks out.", None, False, False),
        ("free", "A man opens the door and then leaves the room.", True, True, True),
        ("free", "A tall man opens the door, then he leaves the room.", None, False, True),
        ("free", "A man opens the door, then he leaves the room!", True, True, True),
        ("free", "", False, False, False),
    ],
)
def test_every_scorer_says_right_wrong_or_that_it_cannot_tell(kind, text, by_rules, exact, f1):
    expected = {None: by_rules, "exact": exact, "f1": f1, "judge": False if not text else None}
    for name, right in expected.items():
        config = EvaluateConfig(scorer=name, judge=JUDGE if name == "judge" else None)
        found = scored(answer(kind, text), EXAMPLES[kind], config)
        assert (found.correct, found.kind) == (right, kind), name
        decided = text and name == "f1" and kind not in scorers.WORDED
        by = "" if right is None else "rules" if name is None or not text or decided else name
        assert found.scorer == by
        assert (found.f1 is None) is (kind not in scorers.WORDED)


def ends_well(reply, example):
    return {"good": 1, "half": 0.5, "bad": False, "odd": 7, "word": "right"}.get(reply)


def test_a_scorer_of_your_own_is_found_by_its_place_and_held_to_its_word():
    name = f"{__name__}:ends_well"
    config = EvaluateConfig(scorer=name, min_score=0.6)
    found = {text: scored(answer("free", text), EXAMPLES["free"], config) for text in ("good", "half", "bad", "else")}
    assert [found[text].correct for text in found] == [True, False, False, None]
    assert {found[text].scorer for text in ("good", "half", "bad")} == {name}
    for text in ("odd", "word"):
        with pytest.raises(ConfigError, match=r"returned (7|'right').*a scorer returns a number in \[0, 1\]"):
            scored(answer("free", text), EXAMPLES["free"], config)


class Measured:
    """A scorer that also says how long the replies are; `extra` is what it says beside."""

    def __init__(self, **extra):
        self.extra = extra

    def __call__(self, reply, example):
        return bool(reply)

    def measure(self, replies, examples):
        return {"letters": np.mean([len(reply) for reply in replies]), "rows": len(examples), **self.extra}


measured, measured_badly = Measured(), Measured(share=float("nan"))


def test_a_scorer_that_measures_has_its_figures_beside_the_accuracy(tmp_path):
    run, name = RunFolder.open(str(tmp_path)), f"{__name__}:measured"
    given = {model: [answer("short", text), answer("free", text)] for model, text in {"base": "ab", "blind": "abcd"}.items()}
    for model, answers in given.items():
        files.write_table(run.stage("eval", 0) / f"{model}.parquet", answers)
    stage = types.SimpleNamespace(
        answers=run.stage("eval", 0),
        folder=run.stage("scores", 0),
        evaluate=EvaluateConfig(scorer=name),
        examples=EXAMPLES.values(),
    )
    facts = Scores.run(stage)
    assert facts["figures"] == {"base": {"letters": 2.0, "rows": 2.0}, "blind": {"letters": 4.0, "rows": 2.0}}
    files.write_json(run.stage("scores", 0) / MANIFEST, facts)
    found = accuracy(run, 0)
    assert found["figures"] == facts["figures"]
    lines = report_tables.summary_table({"accuracy": found}).splitlines()
    assert [line.split() for line in lines[-3:]] == [
        ["figure", "base", "blind"], ["letters", "2.000", "4.000"], ["rows", "2.000", "2.000"],
    ]  # fmt: skip
    assert scorers.figures("exact", ["a"], [EXAMPLES["free"]]) == {}
    with pytest.raises(ConfigError, match="returned nan for share"):
        scorers.figures(f"{__name__}:measured_badly", ["a"], [EXAMPLES["free"]])


def test_a_judges_score_counts_from_the_threshold_on_and_only_what_is_open_is_judged():
    config = EvaluateConfig(judge=JUDGE, threshold=4)
    open_one, done = answer("short", " couch "), answer("short", "a sofa", correct=True, scorer="rules")
    row = {
        "example_id": "short",
        "response": "couch",
        "score": 4.0,
        "judge": "openai:rules:12345678",
        "explanation": "It is.",
    }
    found = by_judge(open_one, {("short", "couch"): row}, config)
    assert (found.correct, found.scorer, found.score, found.judge, found.explanation) == (
        True, "judge", 4.0, "openai:rules:12345678", "It is.",
    )  # fmt: skip
    assert by_judge(open_one, {("short", "couch"): {**row, "score": 3.9}}, config).correct is False
    assert by_judge(open_one, {}, config) == open_one  # its reply was unreadable: nothing is made up
    assert by_judge(done, {("short", "a sofa"): row}, config) == done


def test_equal_answers_are_judged_once_by_the_caption_or_the_ground_truth():
    captioned = {**EXAMPLES, "short": dataclasses.replace(EXAMPLES["short"], caption="A sofa stands there.")}
    asked = [answer("short", "couch"), answer("short", " couch"), answer("free", "He goes.")]
    rows = [json.loads(row) for row in judge_task(asked, captioned, JudgeConfig(**JUDGE), {}).rows]
    assert [(row["response"], row["caption"]) for row in rows] == [
        ("couch", "A sofa stands there."),
        ("He goes.", EXAMPLES["free"].answer),
    ]
    seeing = JudgeConfig(**JUDGE, sees="frames")
    assert len(judge_task(asked, captioned, seeing, {"free.mp4": "clip"}).rows) == 1  # a video without frames is not judged


def made(*items):
    return [scored(answer(kind, text), EXAMPLES[kind], EvaluateConfig()) for kind, text in items]


def test_accuracy_is_of_what_was_scored_and_says_who_scored_and_what_nobody_could():
    answers = made(("choice", "B"), ("choice", "A"), ("short", "sofa"), ("short", "couch"), ("free", "He left."))
    table = accuracy_table(answers)
    assert (table["correct"], table["total"], table["asked"]) == (2, 3, 5)
    assert table["accuracy"] == pytest.approx(2 / 3)
    assert table["scored_by"] == {"choice": {"rules": 2}, "free": {"": 1}, "short": {"rules": 1, "": 1}}
    assert table["by_category"]["about free"]["accuracy"] is None
    assert table["f1"]["total"] == 3
    assert unscored_warning({"base": answers}, EvaluateConfig()).startswith("2 of 5 answers of base could not be scored")
    assert unscored_warning({"base": answers[:3]}, EvaluateConfig()) is None


def test_the_table_and_the_summary_state_their_denominators(tmp_path):
    run = RunFolder.open(str(tmp_path))
    texts = {"base": ("couch", "A"), "aligned": ("sofa", "B")}
    for name, (short, choice) in texts.items():
        files.write_table(run.stage("scores", 0) / f"{name}.parquet", made(("short", short), ("choice", choice)))
    files.write_json(run.stage("scores", 0) / MANIFEST, {"judge": None})
    found = accuracy(run, 0)
    assert (found["base"], found["aligned"], found["num_examples"]) == (0.0, 1.0, 2)
    assert found["scored"] == {"base": 1, "aligned": 2}
    assert found["by_category"]["about short"] == {
        "base": None, "aligned": 1.0, "blind": None, "num_examples": 1, "scored": {"base": 0, "aligned": 1},
    }  # fmt: skip
    lines = report_tables.summary_table({"accuracy": found}).splitlines()
    assert "choice answers scored by rules: base 1, aligned 1" in lines
    assert "short answers scored by rules: aligned 1" in lines
    assert "in no accuracy, because nothing could tell whether they are right: base 1 of 2, aligned 0 of 2" in lines
    assert lines[-1].startswith("overlap with short and free ground truths (token F1, no judge): base 0.00, aligned 0.67")


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"scorer": "bleu"}, "unknown evaluate.scorer 'bleu'"),
        ({"scorer": "no.such:thing"}, "there is no module no"),
        ({"scorer": "judge"}, "scorer=judge needs evaluate.judge"),
        ({"scorer": "f1", "judge": JUDGE}, "scorer=f1 leaves it nothing to judge"),
        ({"threshold": 4}, "there is no evaluate.judge"),
        ({"min_score": 0.9}, "which scorer=null does not give"),
        ({"judge": {**JUDGE, "jugde": 1}}, "unknown key evaluate.judge.jugde"),
    ],
)
def test_scoring_that_cannot_work_is_refused_when_the_config_is_loaded(evaluate, message):
    raw = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t.jsonl"}, "evaluate": evaluate}
    with pytest.raises(ConfigError, match=message):
        parse_config(raw)


def test_a_judge_whose_folder_is_not_there_is_refused_by_dry_runs_and_runs_alike(tmp_path, model_path, connected):  # noqa: F811
    judge = {"kind": "vllm", "model": str(tmp_path)}
    for name in "te":
        (tmp_path / f"{name}.mp4").write_text(name)
        row = {"id": name, "video": f"{name}.mp4", "question": "What?", "answer": "A circle."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    raw = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": model_path, "dtype": "float32"},
        "data": {"train": str(tmp_path / "t.jsonl"), "eval": str(tmp_path / "e.jsonl")},
        "recipe": {"max_new_tokens": 16},
        "evaluate": {"judge": judge},
        "serve": {"port": free_port()},
    }
    dry, real = refusals(raw)
    assert dry == real
    assert re.search(r"evaluate\.judge\.model=.* has no config\.json.*evaluate\.judge\.kind to openai", dry)


def test_the_table_of_scorers_is_the_one_that_configs_know():
    from vidalign.config import judging

    assert set(judging.SCORERS) == set(scorers.SCORERS) - {scorers.RULES}


CIRCLE = Example(
    id="c",
    video="c.mp4",
    question="What colour is the circle?",
    answer="red",
    caption="A red circle moves left.",
    category="colour",
)


@pytest.fixture
def stage_of(monkeypatch, tmp_path, endpoint):  # noqa: F811
    """Makes the scoring stage over two models' answers to one question; its judge is a real endpoint, asked from this process."""

    def stream(self, todo, parts):
        judge = Judge(self.served().model_dump(), str(parts), self.task.work, dict(self.frames), self.key)
        batches = ({"part": number, "rows": f"[{','.join(batch)}]"} for number, batch in todo)
        return types.SimpleNamespace(iter_rows=lambda: map(judge, batches))

    monkeypatch.setattr(Judging, "_stream", stream)
    folder = tmp_path / "eval"
    for name, text in (("base", "crimson, I would say"), ("aligned", "The circle is red.")):
        fields = {"category": "colour", "video": "c.mp4", "question": CIRCLE.question, "answer": "red", "text": text}
        more = {"correct": False, "model_id": name, "policy_version": "p", "latency_s": 0.1}
        files.write_table(folder / f"{name}.parquet", [EvalAnswer(example_id="c", **fields, **more)])
    files.write_json(folder / MANIFEST, {"format": 2, "inputs": {"policy.base": "p"}})

    def make(**options):
        judge = {"judge": {**JUDGE, "base_url": endpoint}} if options.pop("judged", False) else {}
        return Scores(
            folder=tmp_path / "scores",
            answers=folder,
            evaluate=EvaluateConfig(**options, **judge),
            examples=[CIRCLE],
            policy=PolicyVersion(version="p", path="m"),
            model=ModelConfig(path="m"),
            video=VideoConfig(),
            cache=tmp_path / "frames",
            decoders=Workers(num=1, cpus=1),
            engines=Workers(num=1, cpus=1),
        )

    return make


def tables(stage):
    return {name: files.read_table(stage.folder / f"{name}.parquet", EvalAnswer)[0] for name in ("base", "aligned")}


def test_what_no_rule_can_tell_goes_to_the_judge_and_nothing_else(stage_of):
    stage = stage_of(judged=True)
    made = once(stage)
    found = tables(stage)
    assert (found["aligned"].correct, found["aligned"].scorer, found["aligned"].judge) == (True, "rules", "")
    assert (found["base"].correct, found["base"].scorer, found["base"].score) == (False, "judge", 1.0)
    assert found["base"].judge == made["judge"]["name"] == f"openai:rules:{prompt_version(stage.evaluate.judge.prompt)}"
    assert found["base"].explanation.startswith("By the caption the answer is")
    assert made["judge"] == {"name": found["base"].judge, "judged": 1, "quarantined": {}}
    assert once(stage_of(judged=True)) == made


def test_a_judge_may_score_everything_and_what_it_leaves_open_is_not_scored(stage_of):
    stage = stage_of(judged=True, scorer="judge")
    once(stage)
    assert {name: (a.correct, a.scorer, a.score) for name, a in tables(stage).items()} == {
        "base": (False, "judge", 1.0),
        "aligned": (True, "judge", 5.0),
    }
    with pytest.raises(ConfigError, match=r"evaluate\.scorer was 'judge' and is now None"):
        check(stage_of(judged=True))
    shutil.rmtree(stage.folder)
    blurred = dataclasses.replace(
        stage_of(judged=True, scorer="judge"), examples=[dataclasses.replace(CIRCLE, caption="It moves.")]
    )
    assert once(blurred)["judge"]["quarantined"] == {"unparsable_judgement": 2}  # asked again, and then left open
    assert {(a.correct, a.scorer, a.score) for a in tables(blurred).values()} == {(None, "", None)}


def test_without_a_judge_it_is_counted_apart(stage_of):
    stage = stage_of()
    assert "judge" not in once(stage)
    assert {name: a.correct for name, a in tables(stage).items()} == {"base": None, "aligned": True}


# With the answers of a real run, a real judge endpoint, and the policy itself as the judge


@pytest.fixture
def scores_of(finished_run, small_config, local_ray, tmp_path):
    """Makes the scoring stage of a copy of the finished run, with other options of `evaluate`."""
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy, ignore=shutil.ignore_patterns("scores", "train", "report"))

    def make(*options: str):
        config = load_config(small_config, [f"run_dir={copy}", *options])
        plan, inputs = plan_of(config, local_ray), read_inputs(config.data, config.recipe)
        base = policy_version(config.model.path)
        return Rounds(config=config, run=RunFolder.open(str(copy)), plan=plan, inputs=inputs, base=base).scores()

    return make


@pytest.mark.heavy
def test_a_judge_endpoint_scores_every_held_out_answer_and_continues_where_it_stopped(scores_of, endpoint):  # noqa: F811
    judge = f"evaluate.judge={{kind: openai, model: rules, base_url: '{endpoint}'}}"
    stage = scores_of("evaluate.scorer=judge", judge)
    facts = once(stage)
    by_judge_alone = scored_answers(RunFolder(stage.folder.parents[2]), 0)
    answers = [answer for made in by_judge_alone.values() for answer in made if answer.text.strip()]
    assert len(answers) > 60
    assert {answer.scorer for answer in answers} == {"judge"}
    assert {answer.judge for answer in answers} == {facts["judge"]["name"]} != {""}
    assert all(answer.correct is (answer.score >= 3) and "By the caption" in answer.explanation for answer in answers)
    examples = {example.id: example for example in stage.examples}
    accepted = [answer for answer in answers if answer.correct]
    assert False not in [scored(answer, examples[answer.example_id], EvaluateConfig()).correct for answer in accepted]
    parts = sorted((stage.folder / "judgements" / "parts").iterdir())
    assert len(parts) > 1
    times = {part: part.stat().st_mtime_ns for part in parts}
    for path in (stage.folder / MANIFEST, stage.folder / "judgements" / MANIFEST, stage.folder / "base.parquet", parts[0]):
        path.unlink()
    once(scores_of("evaluate.scorer=judge", judge))
    assert {part for part in parts if part.stat().st_mtime_ns != times[part]} == {parts[0]}
    assert scored_answers(RunFolder(stage.folder.parents[2]), 0) == by_judge_alone
    with pytest.raises(ConfigError, match=r"evaluate\.threshold was 3\.0 and is now 5\.0"):
        check(scores_of("evaluate.scorer=judge", judge, "evaluate.threshold=5"))


@pytest.mark.heavy
def test_the_policy_itself_judges_by_the_video_and_what_it_leaves_open_is_not_scored(scores_of):
    asked = "prompt: '{question} {answer} {response}', max_new_tokens: 4"
    stage = scores_of("evaluate.scorer=judge", f"evaluate.judge={{kind: policy, sees: video, num_gpus: 0, {asked}}}")
    facts = once(stage)
    made = scored_answers(RunFolder(stage.folder.parents[2]), 0)
    said = [answer for answers in made.values() for answer in answers if answer.text.strip()]
    assert {answer.correct for answer in said} == {None}  # this policy has not learned to write scores
    distinct = {(answer.example_id, answer.text.strip()) for answer in said}
    assert facts["judge"]["quarantined"] == {"unparsable_judgement": len(distinct)}
    assert facts["judge"]["name"].startswith(f"vllm:{stage.policy.version}:")
