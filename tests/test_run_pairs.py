"""The pairs of a run are a data file: one rollout trains many objectives, and nothing that a pair knows is lost on the way."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import yaml
from conftest import vidalign
from safetensors.numpy import load_file

from pipelines.cli import main
from pipelines.inputs import read_inputs
from vidalign import files
from vidalign.config.recipes import GivenRecipe
from vidalign.config.run import DataConfig
from vidalign.data.reading import read_rows
from vidalign.data.validate import validate
from vidalign.errors import DataError
from vidalign.learning.sequences import pair_group
from vidalign.recipes.given import Given
from vidalign.recipes.lint import filter_pairs, lint
from vidalign.recipes.pairing import build_pair, make_pairs, side
from vidalign.types import Example, PreferencePair, Response, Turn, stable_hash


def response(example: Example, kind: str, text: str, **more) -> Response:
    fields = {"candidate": 1, "turn": 2, "token_ids": (), "log_probs": (), "policy_version": "v0", "seed": 3}
    fields |= {"temperature": 1.0, "top_p": 0.9, "finish_reason": "stop", "reward": -1 / 3, "trust": 0.1}
    return Response(example_id=example.id, kind=kind, text=text, **fields | more)


def pairs_in(folder: pathlib.Path) -> list[PreferencePair]:
    """Pairs of every shape that a run makes: replayed, without a rejected side, several of one example, of conversations."""
    video, other = str(folder / "v.mp4"), str(folder / "w.mp4")
    for path in (video, other, str(folder / "i.jpg")):
        pathlib.Path(path).write_bytes(path.encode())
    plain = Example(id="a", video=video, question="Which way?\nA. left\nB. right", answer="left", category="way")
    clip = dataclasses.replace(plain, id="b", video=f"{pathlib.Path(other).as_uri()}#t=1,2.5")
    talk = dataclasses.replace(
        plain,
        id="c",
        videos=(video, other),
        images=(f"{folder.as_uri()}/i.jpg#image",),
        system="Be brief.",
        turns=(Turn(role="user", content="What moves?"), Turn(role="assistant", content="A circle.")),
    )
    made = [
        build_pair(
            example,
            side(response(example, "reflected", "It moves left.", trust=0.99)),
            side(response(example, "replayed", text, reward=float("nan")), round=0),
            recipe="leanpo",
            rule="best_of",
        )
        for example, text in ((plain, "It moves right."), (plain, "It moves up."), (clip, "Down."), (talk, "Nothing moves."))
    ]
    prompt = {"videos": talk.videos, "images": talk.images, "system": talk.system, "turns": talk.turns}
    made[-1] = dataclasses.replace(made[-1], **prompt, chosen_win_rate=2 / 3, rejected_win_rate=0.125)
    taught = dataclasses.replace(made[0], id="f00", example_id="d", question="Why?", rejected="", rejected_marks=())
    return [*made, taught]


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    files.write_table(tmp_path / "run/rounds/0/pairs/pairs.parquet", pairs_in(tmp_path))
    files.write_json(tmp_path / "run/rounds/0/pairs/lint.json", {})
    return tmp_path / "run"


def rows_of(pairs) -> list[str]:
    return [json.dumps(pair.to_row(), sort_keys=True) for pair in pairs]


@pytest.mark.parametrize(
    "name", ["run", "run/rounds/0/pairs", "run/rounds/0/pairs/pairs.parquet", "run/rounds/*", "d.jsonl", "d.csv"]
)
def test_recipe_given_trains_on_the_pairs_themselves(run, tmp_path, name):
    if name in ("d.jsonl", "d.csv"):
        assert main(["data", "convert", str(run), "--out", str(tmp_path / name)]) == 0
    elif name == "run/rounds/*":
        name = "run/rounds/0/pairs/*.parquet"
    inputs = read_inputs(DataConfig(train=str(tmp_path / name)), GivenRecipe(name="given"))
    stored = pairs_in(tmp_path)
    recipe = Given(GivenRecipe(name="given"))
    assert rows_of(recipe.given(inputs.train)) == rows_of(stored)
    decoded = {name for row in inputs.train for name in row.example.context.visuals}
    made, dropped = make_pairs(inputs.train, [], recipe, decoded=decoded)
    assert rows_of(made) == rows_of(stored)
    assert not dropped
    assert filter_pairs(made, lint(made, recipe.config.lint), recipe.config.lint)[0] == made
    assert [pair_group(pair) for pair in made] == [pair_group(pair) for pair in stored]
    assert stable_hash([pair.to_row() for pair in made]) == stable_hash([pair.to_row() for pair in stored])


def test_rows_go_by_their_examples_and_further_pairs_of_one_by_their_own_ids(run, tmp_path):
    stored, rows = pairs_in(tmp_path), read_rows(run)
    assert [row.example.id for row in rows] == ["a", stored[1].id, "b", "c", "d"]
    assert rows[2].example.video == stored[2].video
    assert rows[2].row.clip is not None
    assert (rows[3].example.context, rows[3].example.turns[0].content) == (stored[3].context, "What moves?")
    assert rows[0].row.chosen_score == -1 / 3
    assert rows[0].row.rejected_score is None
    assert (rows[3].row.chosen_win_rate, rows[3].row.rejected_win_rate) == (2 / 3, 0.125)
    assert rows[4].row.answer == "left"
    report = validate([run])
    assert not report.errors
    assert (report.splits[0].num_preferences, report.splits[0].num_examples) == (4, 1)


def test_convert_keeps_every_field(run, tmp_path, capsys):
    for name in ("d.jsonl", "d.json", "d.csv", "d.parquet"):
        assert main(["data", "convert", str(run), "--out", str(tmp_path / name)]) == 0
        assert f"{tmp_path / name}: 4 pairs and 1 example" in capsys.readouterr().out
        assert rows_of(row.pair for row in read_rows(tmp_path / name)) == rows_of(pairs_in(tmp_path))
    again = files.read_table(tmp_path / "d.parquet", PreferencePair)
    assert rows_of(again) == rows_of(pairs_in(tmp_path))


def test_exports_say_what_other_projects_rows_lack(run, tmp_path, capsys):
    out = tmp_path / "theirs.jsonl"
    command = ["data", "export", "--to", "ms-swift", str(run), "--out", str(out), "--only", "pairs"]
    assert main(command) == 2
    assert "row 3: clip: is a part of a video" in capsys.readouterr().err
    assert main([*command, "--skip-errors"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 3 pairs\n  1 row with errors left out" in said
    assert "3 x 'provenance' of a run's pair" in said
    assert "3 x trusts of a run's pair" in said
    assert main(["data", "import", "--from", "ms-swift", str(out), "--out", str(tmp_path / "back.jsonl")]) == 0
    back = read_rows(tmp_path / "back.jsonl")
    for row, pair in zip(back, [pairs_in(tmp_path)[number] for number in (0, 1, 3)], strict=True):
        assert (row.row.chosen, row.row.rejected, row.row.category) == (pair.chosen, pair.rejected, pair.category)
        assert (row.example.question, row.example.context) == (pair.question, pair.context)
        assert [tuple(span) for span in row.row.chosen_phrases] == list(pair.chosen_marks)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": None}, "row 1: answer: is missing or null in a pair that a run wrote"),
        ({"provenance": 3}, "row 1: provenance: is of type int in a pair that a run wrote"),
        ({"chosen_marks": [["a", 2]]}, "row 1: chosen_marks: is of type list"),
        ({"chosen_marks": [[0, 99]]}, "row 1: chosen_phrases: .* is not a span"),
        ({"turns": [{"role": "user"}]}, "row 1: turns: is of type list"),
    ],
)
def test_a_pair_that_no_run_wrote_is_refused(tmp_path, change, says):
    row = pairs_in(tmp_path)[0].to_row() | change
    (tmp_path / "d.json").write_text(json.dumps([row | {"rejected_reward": None}]))
    with pytest.raises(DataError, match=says):
        read_rows(tmp_path / "d.json")


def test_what_is_held_out_shares_no_video_with_a_runs_pairs(run, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"id": "x", "video": "w.mp4", "question": "Q?", "answer": "A."}))
    with pytest.raises(DataError, match=r"data\.eval must share no video with data\.train.*w\.mp4"):
        read_inputs(DataConfig(train=str(run), eval=str(held)), GivenRecipe(name="given"))


@pytest.mark.long
@pytest.mark.heavy
def test_training_on_a_runs_pairs_is_training_in_that_run(finished_run, small_config, tmp_path):
    config = yaml.safe_load(small_config.read_text())
    config["recipe"] = {"name": "given"}
    config["data"]["train"] = str(finished_run / "rounds/0/pairs")
    config["run_dir"] = str(tmp_path / "run")
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(config))
    dry = vidalign("align", str(path), "--dry-run")
    assert dry.returncode == 0, dry.stderr[-2000:]
    for command in ("rollout", "train"):
        done = vidalign(command, str(path))
        assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (
        files.read_table(folder / "rounds/0/pairs/pairs.parquet", PreferencePair)
        for folder in (tmp_path / "run", finished_run)
    )
    assert rows_of(ours) == rows_of(theirs)
    weights, expected = (
        load_file(folder / "rounds/0/model/model.safetensors") for folder in (tmp_path / "run", finished_run)
    )
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-6, err_msg=name)
