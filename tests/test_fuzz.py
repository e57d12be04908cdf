"""Whatever a configuration, a command line or a data file holds: exit code 0 or 2, one sentence, and nothing written."""

import json
import pathlib
import random

import mutations
import pytest
import yaml

from pipelines.cli import main
from vidalign.config.explaining import all_keys
from vidalign.config.loading import dump_config, load_config, parse_config
from vidalign.config.run import RunConfig
from vidalign.errors import ConfigError

ROWS = [
    {
        "id": f"a{index}",
        "video": f"v{index}.mp4",
        "question": "Which way?",
        "answer": "Left.",
        "options": ["Left.", "Right."],
    }
    for index in range(3)
]
STORED = "# what a run keeps\n"


@pytest.fixture
def place(tmp_path):
    """A folder with data, a run that has a configuration, and a configuration that everything is changed of.

    There is no model, so that no command gets further than to what it checks before that: every one is refused.
    """
    for row in ROWS:
        (tmp_path / row["video"]).write_bytes(b"not decoded here")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(STORED)
    raw = {"run_dir": str(tmp_path / "run"), "model": {"path": "nowhere"}, "data": {"train": str(tmp_path / "train.jsonl")}}
    config = parse_config(
        {**raw, "cluster": {"address": "local"}, "train": {"lora": {"rank": 4}}, "evaluate": {"judge": None}}
    )
    (tmp_path / "whole.yaml").write_text(dump_config(config))
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path


def refused(arguments: list[str], place: pathlib.Path, capsys) -> str:
    """The one line with which a command is refused; "" where it was a command that ends well."""
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    out = capsys.readouterr()
    assert code in (0, 2), arguments
    assert (place / "run" / "config.yaml").read_text() == STORED, arguments
    if code == 0:
        return ""
    assert out.err.startswith("vidalign: error: "), (arguments, out.err)
    assert out.err.count("\n") == 1, (arguments, out.err)
    assert len(out.err) < 3000, (arguments, out.err)
    assert "Traceback" not in out.err
    return out.err


def test_broken_configurations(place, capsys):
    draw, whole = random.Random(1), yaml.safe_load((place / "whole.yaml").read_text())
    path = place / "c.yaml"
    for number in range(500):
        some = {"run_dir", "model", "data", draw.choice(list(whole))}
        path.write_bytes(mutations.config_text(draw, {name: whole[name] for name in whole if name in some}))
        if number % 4:  # the rest of a command, with what can be loaded, in a quarter
            message = ""
            try:
                load_config(path)
            except ConfigError as error:
                message = str(error)
            assert "\n" not in message
            assert len(message) < 3000
        else:
            assert refused([draw.choice(("align", "rollout", "train")), str(path)], place, capsys)


def test_broken_command_lines(place, capsys):
    draw, keys = random.Random(2), [*all_keys(RunConfig), "lr", "train.lr", "x"]
    for _ in range(250):
        refused(mutations.arguments(draw, str(place / "good.yaml"), keys), place, capsys)


def test_broken_rows(place, capsys):
    draw, path = random.Random(3), place / "train.jsonl"
    for _ in range(250):
        path.write_bytes(mutations.rows_text(draw, ROWS))
        assert refused(["align", str(place / "good.yaml")], place, capsys)
