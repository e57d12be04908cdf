"""What examples/extend/ shows works as shown: each project by its name, and together under Ray outside of the checkout."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from test_objectives import make_pairs
from test_pairing import data_row
from test_recipe_units import CLIPS, EXAMPLES, FakeEngine

from actors.chats import open_chat
from pipelines.cli import main
from vidalign import recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import parse_config
from vidalign.data import scorers
from vidalign.errors import ConfigError
from vidalign.hidden import PACKAGES, refuse_hidden_packages
from vidalign.learning import objectives
from vidalign.prompts import JUDGE
from vidalign.recipes.judging import judge_prompt, judge_rows
from vidalign.recipes.rewards import by_function
from vidalign.types import Example

EXTEND = ROOT / "examples" / "extend"
PROJECTS = {path.stem: path for path in EXTEND.glob("*/*.py")}
RAW = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}}


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    for path in PROJECTS.values():
        monkeypatch.syspath_prepend(path.parent)
    yield
    for name in PROJECTS:
        sys.modules.pop(name, None)


def test_there_is_one_project_of_each_kind_and_it_is_small():
    assert {path.parent.name for path in PROJECTS.values()} == {
        *("objective", "recipe", "reward", "scorer", "judge", "row_format")
    }
    page = (EXTEND / "README.md").read_text(encoding="utf-8")
    for name, path in PROJECTS.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, name
        assert f"({path.relative_to(EXTEND)})" in page
        assert f"{name}:" in page


def test_the_objective():
    hinge = objectives.build("hinge:Hinge", {"width": 1.0})
    pairs = make_pairs([[-0.2, -0.4], [-1.0]], [[-0.5], [-3.0, -5.0]])
    loss = hinge(pairs)
    assert float(loss.value) == pytest.approx((0.8 + 0.0) / 2)  # gaps 0.2 and 3
    assert float(loss.metrics["wide_enough"]) == 0.5
    with pytest.raises(ConfigError, match=r"objective.params.width of hinge must be greater than 0, got -1"):
        objectives.build("hinge:Hinge", {"width": -1})
    assert torch.isfinite(loss.value)


def test_the_recipe():
    config = parse_config({**RAW, "recipe": {"name": "backwards:Backwards", "num_candidates": 2, "max_trust": 0.9}})
    recipe = recipes.build(config.recipe)
    shown = [np.arange(4).astype(np.uint8)[:, None, None, None] + CLIPS[0].frames * 0]
    clip = type(CLIPS[0])(**{**vars(CLIPS[0]), "frames": np.ascontiguousarray(shown[0])})
    replies = iter(["A red circle moves left.", "A red circle moves right.", "It is blue.", "It is blue."])
    engine = FakeEngine(lambda request: next(replies))
    made = recipe.respond(engine, EXAMPLES, [clip, clip], policy_version="p", seed=0)
    assert [request.clip.frames[0, 0, 0, 0] for request in engine.requests] == [3] * 4, "the last frame comes first"
    assert all(shown.frames[0, 0, 0, 0] == 0 for _, shown, _ in engine.scored), "scored on the video as it is"
    rows = [data_row(example) for example in EXAMPLES]
    pairs, dropped = recipes.pairing.make_pairs(rows, made, recipe, decoded={"a.mp4", "b.mp4"})
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("A red circle moves left.", "A red circle moves right.")]
    assert dropped == {"not_wrong": 1}


def test_the_reward():
    asked = Example(id="a", video="a.mp4", question="Q?", answer="one two")
    words = ["one two", "one two three", "one two three four five six", "x " * 20]
    assert [by_function("brevity:brevity", reply, asked) for reply in words] == [1.0, 0.75, 0.0, 0.0]
    config = parse_config(
        {
            **RAW,
            "recipe": {"name": "group", "rewards": {"accuracy": 1, "brevity:brevity": 0.2}},
            "objective": {"name": "grpo"},
        }
    )
    assert config.recipe.rewards["brevity:brevity"] == 0.2


def test_the_scorer():
    asked = Example(id="a", video="a.mp4", question="Q?", answer="The red circle moves left.")
    found = [scorers.score(reply, asked, "keywords:named").value for reply in ("a circle moves left", "nothing", "")]
    assert found == [0.75, 0.0, 0.0]
    assert scorers.figures("keywords:named", ["a b", "c"], [asked, asked]) == {"words": 1.5}
    assert scorers.trust_by("keywords:named", "A red circle.", asked) == 0.5


def test_the_judge():
    config = JudgeConfig(kind="word_judge:open_judge")
    chat, model = open_chat(config, {}, {}, "recipe.judge")
    asked = {
        "example_id": "a",
        "caption": "A circle moves left.",
        "question": "Which way?",
        "answer": "The circle moves left.",
    }
    rows = [{**asked, "response": text} for text in ("left moves the circle", "The square moves right.")]
    judged = judge_rows(rows, config, chat, f"{config.kind}:{model}")
    assert [(row["score"], row["explanation"]) for row in judged] == [
        (5.0, "3 of 3 words are there."),
        (2.0, "1 of 3 words are there."),
    ]
    texts = {**asked, "response": "left\nmoves\n\nthe circle"}
    del texts["example_id"]
    many_lines = judge_prompt(JUDGE, **texts, max_response_chars=99)
    assert chat([[{"role": "user", "content": many_lines}]])[0].endswith("Score: 5")


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ({"kind": "word_judge:open"}, "has no attribute open; did you mean word_judge:open_judge"),
        ({"kind": "opnai", "model": "m"}, "unknown judge.kind 'opnai'; did you mean openai"),
        ({"kind": "word_judge:_PART"}, "cannot be called; name a function"),
        ({"kind": "no_such_judge:open"}, "there is no module no_such_judge"),
        ({"kind": "word_judge:open_judge", "sees": "frames"}, "names of videos, not their frames; set sees to video"),
    ],
)
def test_a_mistake_in_the_judge_is_a_sentence(judge, says):
    with pytest.raises(ConfigError, match=says) as caught:
        parse_config({**RAW, "recipe": {"name": "hound", "judge": judge}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("made", [None, "one text", [1], ["a", "b"]])
def test_a_judge_that_answers_something_else_is_told_so(made, tmp_path, monkeypatch):
    (tmp_path / "odd_judge.py").write_text(f"def open_judge(config):\n    return lambda conversations: {made!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        chat, _ = open_chat(JudgeConfig(kind="odd_judge:open_judge"), {}, {}, "recipe.judge")
        with pytest.raises(ConfigError, match=r"recipe.judge.kind=odd_judge:open_judge answered 1 conversations with"):
            chat([[{"role": "user", "content": "x"}]])
    finally:
        sys.modules.pop("odd_judge", None)


def test_the_row_format(tmp_path, capsys):
    (tmp_path / "a.mp4").touch()
    head, rows = (
        "source,start,end,prompt,reply,alternative,tag",
        "a.mp4,2.0,6.5,What happens?,A door opens.,A door closes.,doors",
    )
    table = tmp_path / "clips.csv"
    table.write_text(f"{head}\n{rows}\na.mp4,,,What else?,Nothing.,,\n")
    command = ["data", "import", "--from", "clips_table:to_row", str(table), "--out", str(tmp_path / "train.jsonl")]
    assert main([*command, "--skip-errors"]) in (0, 2)
    made = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert made[0] == {
        "id": "clips-000001", "video": "a.mp4", "clip": {"start": 2.0, "end": 6.5}, "question": "What happens?",
        "answer": "A door opens.", "category": "doors", "chosen": "A door opens.", "rejected": "A door closes.",
    }  # fmt: skip
    assert made[1] == {"id": "clips-000002", "video": "a.mp4", "question": "What else?", "answer": "Nothing."}
    table.write_text(f"{head}\n{rows.replace('6.5', '1.5')}\n")
    assert main(command) == 2
    assert "clips.csv:2: end: is 1.5, and the clip starts at 2.0" in capsys.readouterr().err


# A folder that is called as one of the packages


@pytest.fixture
def elsewhere(tmp_path):
    """An environment in which vidalign is found as an editable install finds it, from a folder outside of the checkout."""
    finder = tmp_path / "site"
    finder.mkdir()
    (finder / "sitecustomize.py").write_text(
        f"""import importlib.util, pathlib, sys
sys.path[:] = [place for place in sys.path if place != {str(ROOT)!r}]
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        place = pathlib.Path({str(ROOT)!r}, name, "__init__.py")
        known = name in {PACKAGES!r}
        return importlib.util.spec_from_file_location(name, place, submodule_search_locations=[str(place.parent)]) if known else None
sys.meta_path.insert(1 + [getattr(finder, "__name__", "") for finder in sys.meta_path].index("PathFinder"), Finder)
"""
    )
    folder = tmp_path / "work"
    folder.mkdir()
    return folder, {**os.environ, "PYTHONPATH": str(finder)}


def started(elsewhere, *arguments):
    folder, environment = elsewhere
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_starts_in_a_folder_of_the_users(elsewhere):
    assert started(elsewhere, "-m", "vidalign", "--version").stdout.startswith("vidalign ")


@pytest.mark.parametrize(
    ("name", "kind"), [("serving", "folder"), ("actors", "package"), ("cluster", "folder"), ("pipelines", "package")]
)
def test_a_folder_that_hides_a_package_gets_a_sentence(elsewhere, name, kind):
    (elsewhere[0] / name).mkdir()
    if kind == "package":
        (elsewhere[0] / name / "__init__.py").touch()
    done = started(elsewhere, "-m", "vidalign", "--version")
    sentence = f"{elsewhere[0] / name} hides vidalign's own package {name}, because Python looks there first; rename it"
    assert done.returncode == 2
    assert done.stderr.startswith(f"vidalign: error: {sentence}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    notebook = started(elsewhere, "-c", "import vidalign\nvidalign.align")
    assert notebook.stderr.splitlines()[-1].startswith(f"vidalign.errors.ConfigError: {sentence}"), notebook.stderr


def test_nothing_is_hidden_in_the_checkout_nor_by_other_folders(tmp_path, monkeypatch):
    refuse_hidden_packages()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    refuse_hidden_packages()


# Under Ray


@pytest.mark.heavy
@pytest.mark.long
def test_all_of_it_runs_under_ray_from_a_folder_outside_of_the_checkout(shapes, model_path, tmp_path):
    for path in PROJECTS.values():
        shutil.copy(path, tmp_path)
    short = {"num_candidates": 2, "max_new_tokens": 24}
    raw = {
        "model": {"path": model_path, "dtype": "float32", "max_model_len": 512},
        "data": {"train": str(shapes / "train.jsonl"), "limit": 16},
        "video": {"num_frames": 8, "height": 56, "width": 56},
        "train": {"learning_rate": 1e-4, "batch_size": 2, "micro_batch_size": 2, "num_monitored": 2},
        "cluster": {"address": "local"},
    }
    runs = {
        "own": {
            "recipe": {"name": "backwards:Backwards", "trust": "keywords:named", "max_trust": 0.9, **short},
            "objective": {"name": "hinge:Hinge", "params": {"width": 2.0}},
        },
        "judged": {
            "recipe": {
                "name": "hound",
                "judge": {"kind": "word_judge:open_judge"},
                "threshold": 4.5,
                **short,
                "num_candidates": 6,
            },
            "objective": {"name": "dpo"},
        },
        "rewarded": {
            "recipe": {"name": "group", "rewards": {"accuracy": 1, "brevity:brevity": 0.2}, **short},
            "objective": {"name": "grpo"},
        },
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def command(stage, name):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**raw, "run_dir": name, **runs[name]}))
        done = subprocess.run(
            [sys.executable, "-m", "vidalign", stage, f"{name}.yaml"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / name / "summary.json").read_text())

    facts = command("rollout", "own")
    assert facts["pairs"]["kept"] > 0
    facts = command("train", "own")
    assert facts["policy"]["aligned"] != facts["policy"]["base"]
    facts = command("rollout", "judged")
    assert facts["judge"]["name"].startswith("word_judge:open_judge:")
    assert facts["judge"]["judged"] > 0
    facts = command("rollout", "rewarded")
    assert set(facts["groups"]["mean_parts"]) == {"accuracy", "brevity:brevity"}
