"""A run whose data is elsewhere now goes on with what it has; other videos in the same place are not taken for those of before."""

import json
import shutil

import pytest

from cluster.resources import ClusterResources
from pipelines.answer_log import AnswerLog, rename_questions
from pipelines.inputs import read_inputs
from pipelines.moved import ROOTS, record, relocated
from pipelines.rounds import Rounds, resource_plan
from pipelines.stages.base import BEGUN, MANIFEST, check, flat
from vidalign import files
from vidalign.config.loading import dump_config, parse_config
from vidalign.errors import ConfigError
from vidalign.files import RunFolder
from vidalign.types import EvalAnswer, PolicyVersion, stable_hash


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/a/v/x.mp4", "/b/c/v/x.mp4"),
        ("/ab/v/x.mp4", "/ab/v/x.mp4"),
        ("/a/a/x.mp4", "/b/c/a/x.mp4"),
        ("file:///a/x%20y.mp4#t=1,2", "file:///b/c/x%20y.mp4#t=1,2"),
        ('frames:["file:///a/1.png", "file:///z/2.png"]#fps=2', 'frames:["file:///b/c/1.png", "file:///z/2.png"]#fps=2'),
        ("file:///a/1.png#image", "file:///b/c/1.png#image"),
        ("https://h/a/x.mp4", "https://h/a/x.mp4"),
    ],
)
def test_a_name_below_another_folder(name, expected):
    assert relocated(name, "/a", "/b/c") == expected
    assert relocated(expected, "/b/c", "/a") == name


def test_a_name_in_another_store_and_from_a_store_to_a_folder():
    assert relocated("s3://one/a/x.mp4", "s3://one/a", "gs://two") == "gs://two/x.mp4"
    assert relocated("/mnt/x.mp4#t", "/mnt", "s3://one/a") == "s3://one/a/x.mp4#t"
    assert relocated("s3://one/a/x.mp4", "s3://one/a", "/mnt") == "/mnt/x.mp4"


@pytest.fixture
def data(tmp_path):
    """A folder with the rows and videos of a run."""
    folder = tmp_path / "first"
    (folder / "videos").mkdir(parents=True)
    for split in ("train", "probe", "eval"):
        rows = []
        for number in range(3):
            video = f"videos/{split}{number}.mp4"
            (folder / video).write_text(f"{split} {number}")
            rows.append({"id": f"{split}{number}", "video": video, "question": "Q?", "answer": "A."})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rounds_on(data, run, *overrides):
    names = {split: str(data / f"{split}.jsonl") for split in ("train", "probe", "eval")}
    raw = {"run_dir": str(run), "model": {"path": "m"}, "data": names, "objective": {"name": "dpo"}}
    config = parse_config(raw, overrides)
    return Rounds(
        config=config,
        run=RunFolder.open(config.run_dir),
        plan=resource_plan(config, ClusterResources(num_cpus=2)),
        inputs=read_inputs(config.data, config.recipe),
        base=PolicyVersion(version="pol", path="m"),
    )


def accepted(rounds):
    """As `align` accepts a configuration and goes on."""
    rounds.accept(["rollout", "train", "evaluate"])
    record(rounds.run, rounds.data, rounds.inputs)
    files.write_text_atomic(rounds.run.config, dump_config(rounds.config))


def made(stage, run=True):
    """A stage's folder as its run leaves it, or where it was stopped."""
    name = MANIFEST if run else BEGUN
    files.write_json(stage.folder / name, {"format": 2, "stage": stage.name, "inputs": flat(stage.inputs())})


def a_run(data, run, *overrides):
    rounds = rounds_on(data, run, *overrides)
    accepted(rounds)
    made(rounds.rollout(0))
    made(rounds.pairs(0))
    clips = {name: str(rounds.run.frames / f"{n}.safetensors") for n, name in enumerate(rounds.inputs.present)}
    files.write_places(rounds.run.stage("responses") / "frames.json", clips)
    return rounds


def test_a_run_goes_on_where_its_data_was_moved_and_again_after_a_second_move(data, tmp_path):
    first = a_run(data, tmp_path / "run")
    clips = files.read_places(first.run.stage("responses") / "frames.json")
    for place in ("second", "third", "first"):
        data = data.rename(tmp_path / place)
        rounds = rounds_on(data, tmp_path / "run")
        assert check(rounds.rollout(0)), place
        assert check(rounds.pairs(0)), place
        accepted(rounds)
        found = files.read_places(rounds.run.stage("responses") / "frames.json")
        for example in [*(row.example for row in rounds.inputs.train), *rounds.inputs.probe]:
            assert found[example.video] == clips[relocated(example.video, str(data), str(tmp_path / "first"))]
    assert [roots["train"] for roots in files.read_json(tmp_path / "run" / ROOTS)] == [
        str(tmp_path / name) for name in ("first", "second", "third")
    ]


def test_a_copy_of_the_run_and_its_data_goes_on_while_the_first_is_there(data, tmp_path):
    a_run(data, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copied")
    shutil.copytree(data, tmp_path / "data")
    rounds = rounds_on(tmp_path / "data", tmp_path / "copied")
    assert check(rounds.rollout(0))
    assert check(rounds.pairs(0))


def test_a_run_whose_own_config_was_edited_goes_on_by_the_names_of_its_clips(data, tmp_path):
    a_run(data, tmp_path / "run")
    second = data.rename(tmp_path / "second")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace(str(tmp_path / "first"), str(second)))
    rounds = rounds_on(second, tmp_path / "run")
    assert check(rounds.rollout(0))
    accepted(rounds)
    assert [roots["train"] for roots in files.read_json(tmp_path / "run" / ROOTS)] == [str(tmp_path / "first"), str(second)]


def test_what_else_changed_is_named_alone(data, tmp_path):
    a_run(data, tmp_path / "run")
    rounds = rounds_on(data.rename(tmp_path / "second"), tmp_path / "run", "recipe.temperature=0.3")
    with pytest.raises(ConfigError, match=r"another configuration: recipe.temperature was \S+ and is now 0.3; set it back"):
        rounds.accept(["rollout"])


def test_rows_that_changed_are_refused(data, tmp_path):
    a_run(data, tmp_path / "run")
    second = data.rename(tmp_path / "second")
    path = second / "train.jsonl"
    path.write_text(path.read_text().replace("A.", "B."))
    with pytest.raises(ConfigError, match=r"data[.]train was '3 examples, "):
        rounds_on(second, tmp_path / "run").accept(["rollout"])


@pytest.mark.parametrize("other", ["TRAIN 1", "of another size"])
def test_other_videos_by_the_same_names_are_refused(data, tmp_path, other):
    """As where data.video_root names the same videos in another quality."""
    a_run(data, tmp_path / "run")
    shutil.copytree(data, tmp_path / "second")
    (tmp_path / "second/videos/train1.mp4").write_text(other)
    with pytest.raises(ConfigError, match=r"data[.]train was '3 examples, "):
        rounds_on(tmp_path / "second", tmp_path / "run").accept(["rollout"])


def test_a_run_of_format_1_goes_on_too(data, tmp_path):
    rounds = rounds_on(data, tmp_path / "run")
    accepted(rounds)
    stage = rounds.rollout(0)
    files.write_json(stage.folder / MANIFEST, {"inputs": stable_hash(stage.inputs_v1())})
    rounds = rounds_on(data.rename(tmp_path / "second"), tmp_path / "run")
    assert check(rounds.rollout(0))
    accepted(rounds)
    assert check(rounds_on(tmp_path / "second", tmp_path / "run").rollout(0))


def test_pairs_that_the_data_brings_are_recognised(data, tmp_path):
    path = data / "train.jsonl"
    rows = [json.loads(line) | {"chosen": "A.", "rejected": "B."} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("recipe.name=given",)
    first = a_run(data, tmp_path / "run", *given)
    second = rounds_on(data.rename(tmp_path / "second"), tmp_path / "run", *given)
    assert first.pairs(0).inputs()["data.pairs"] != second.pairs(0).inputs()["data.pairs"]
    assert check(second.pairs(0))


def test_the_parts_of_a_rollout_that_was_stopped_are_read_by_the_names_of_now(data, tmp_path):
    first = rounds_on(data, tmp_path / "run", "rollout.batch_size=2")
    accepted(first)
    made(first.rollout(0), run=False)
    parts = first.rollout(0).folder / "parts"
    for number, examples in first.rollout(0)._chunks(3):
        rows = [{"video": e.video, "frames_path": f"frames/{e.id}", "reason": "", "message": ""} for e in examples]
        files.write_json(files.part_path(parts, number), {"decoded": rows})
        files.write_table(
            files.part_path(parts, number).with_suffix(".parquet"), [PolicyVersion(version=str(number), path="p")]
        )
    rounds = rounds_on(data.rename(tmp_path / "second"), tmp_path / "run", "rollout.batch_size=2")
    assert not check(rounds.rollout(0))
    decoded, _ = rounds.rollout(0)._collect(3)
    assert list(decoded) == [row.example.video for row in rounds.inputs.train]
    assert {row["video"] for row in decoded.values()} == set(decoded)


def test_a_judge_that_sees_the_videos_has_judged_the_same_rows(data, tmp_path):
    from pipelines.stages.judge import Judging
    from vidalign.config.judging import JudgeConfig
    from vidalign.recipes.judging import JudgeTask, judge_rows, judged_row

    judge = JudgeConfig(kind="openai", model="j", base_url="http://h/v1", sees="video")

    def judging(rounds):
        rows = [judged_row(row.example, "R", "", judge) for row in rounds.inputs.train]
        made_of = {"judge": judge, "task": JudgeTask(rows=rows, work=judge_rows), "label": "judge", "data": rounds.data}
        return Judging(folder=tmp_path / "judgements", engines=rounds.plan.engines, **made_of)

    first = rounds_on(data, tmp_path / "run")
    accepted(first)
    made(judging(first))
    second = rounds_on(data.rename(tmp_path / "second"), tmp_path / "run")
    assert judging(first).inputs() != judging(second).inputs()
    assert check(judging(second))


def test_answers_so_far_are_kept(data, tmp_path):
    first = rounds_on(data, tmp_path / "run")
    accepted(first)
    path = tmp_path / "base.jsonl"
    log = AnswerLog.open(path, {"prompt": "p"})
    for example in first.inputs.eval[:2]:
        known = {name: getattr(example, name) for name in ("category", "question", "answer", *example.context_fields())}
        answer = {"text": "A.", "correct": True, "model_id": "base", "policy_version": "pol", "latency_s": 0.1}
        log.add(example, EvalAnswer(example_id=example.id, **known, **answer))
    second = rounds_on(data.rename(tmp_path / "second"), tmp_path / "run")
    examples = second.inputs.eval
    assert not any(AnswerLog.open(path, {"prompt": "p"}).holds(example) for example in examples)
    rename_questions(path, second.data.examples("eval", examples), examples)
    log = AnswerLog.open(path, {"prompt": "p"})
    assert [log.holds(example) for example in examples] == [True, True, False]
    assert [log.results[example.id].video for example in examples[:2]] == [example.video for example in examples[:2]]


def test_nothing_is_written_where_the_data_is_where_it_was(data, tmp_path):
    a_run(data, tmp_path / "run")
    accepted(rounds_on(data, tmp_path / "run"))
    assert not (tmp_path / "run" / ROOTS).exists()
