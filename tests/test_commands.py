"""The small commands: init, chat, export, clean, completion."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from pipelines import chatting, cleaning, ending, exporting, run_videos
from pipelines.cli import EVERY, main, whole_parser
from pipelines.completion import SHELLS, script, words
from vidalign import files
from vidalign.config.loading import load_config
from vidalign.config.run import ServeConfig
from vidalign.errors import ConfigError, DataError

MODEL = ROOT / "examples" / "shapes" / "model"
ROWS = [
    {"id": f"a{n}", "video": f"v{n}.mp4", "question": "Which way?", "answer": "Left.", "caption": "It moves."}
    for n in range(3)
]


# init


@pytest.fixture
def data(tmp_path):
    (tmp_path / "v0.mp4").touch()
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def init(data, *more):
    return ["init", "--model", str(MODEL), "--data", str(data), "--out", str(data.parent / "my.yaml"), *more]


def test_init_writes_a_configuration_that_loads_and_says_what_it_saw(data, capsys):
    assert main(init(data, "--eval", str(data.parent / "heldout: 1.jsonl"), "--run-dir", "runs/x y")) == 0
    path = data.parent / "my.yaml"
    config = load_config(path)
    assert (config.model.path, config.data.train, config.run_dir) == (str(MODEL), str(data), "runs/x y")
    assert config.data.eval == str(data.parent / "heldout: 1.jsonl")
    assert (config.recipe.name, config.train.num_workers, config.train.learning_rate) == ("leanpo", 1, 1e-4)
    commented = [line for line in path.read_text().splitlines() if "#" in line]
    assert len(commented) >= 12
    out = capsys.readouterr()
    assert "data: 3 rows on 3 videos, 3 with captions" in out.err
    assert "note: 2 videos are not there, first " in out.err
    assert f"vidalign align {path} --dry-run" in out.out


def test_init_makes_use_of_pairs_and_of_what_the_model_was_trained_on(data, tmp_path):
    pairs = [{**row, "chosen": "Left.", "rejected": "Right."} for row in ROWS]
    data.write_text("\n".join(map(json.dumps, pairs)))
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    card = {"version": "v", "parent": "", "frame_spec": {"num_frames": 4, "height": 56, "width": 84, "max_frames": 128}}
    files.write_json(model / "vidalign.json", card)
    assert main([*init(data)[:2], str(model), *init(data)[3:]]) == 0
    config = load_config(tmp_path / "my.yaml")
    assert (config.recipe.name, config.objective.name) == ("given", "dpo")
    assert (config.video.num_frames, config.video.height, config.video.width) == (4, 56, 84)
    text = (tmp_path / "my.yaml").read_text()
    for line in text.splitlines():  # what is commented out is YAML too
        if line.strip().startswith("# ") and ": " in line and "#" in line.strip()[2:]:
            yaml.safe_load(line.strip()[2:])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--out", "{folder}/train.jsonl"], "is there already"),
        (["--out", "{folder}/my.txt"], "is to be YAML"),
        (["--model", "{folder}"], "holds no *.safetensors weights"),
        (["--data", "{folder}/none.jsonl"], "no data file at"),
        (["--run-dir", "a" * 300], "longer than a path"),
    ],
)
def test_init_refuses(data, change, says, capsys):
    folder = data.parent
    (folder / "config.json").write_text("{}")
    before = sorted(folder.iterdir())
    assert main([*init(data), *[part.format(folder=folder) for part in change]]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(folder.iterdir()) == before


# clean and export


@pytest.fixture
def run(tmp_path):
    """A run of which round 0 is finished and round 1 is in training."""
    run = tmp_path / "run"
    for place in (
        "0/train/ray/step-1/x",
        "0/responses/parts/0.json",
        "0/eval/noise/n.mp4",
        "1/train/ray/step-1/x",
        "1/responses/parts/0",
    ):
        (run / "rounds" / place).parent.mkdir(parents=True)
        (run / "rounds" / place).write_bytes(b"1234")
    for stage in ("0/train", "0/responses", "0/eval", "1/responses"):
        files.write_json(run / "rounds" / stage / "manifest.json", {})
    files.write_json(run / "rounds" / "1" / "train" / "begun.json", {})
    for place in ("frames/f", "cache/c"):
        (run / place).parent.mkdir()
        (run / place).write_bytes(b"123456")
    shutil.copytree(MODEL, run / "rounds" / "0" / "model")
    files.write_json(run / "rounds" / "0" / "model" / "vidalign.json", {"version": "v0", "parent": ""})
    return run


def test_clean_says_what_goes_and_takes_only_what_finished_stages_do_not_need(run, capsys):
    before = sorted(run.rglob("*"))
    assert main(["clean", str(run)]) == 0
    assert "16 bytes can be freed; run the same command with --yes" in capsys.readouterr().out
    assert sorted(run.rglob("*")) == before
    assert main(["clean", str(run), "--yes"]) == 0
    gone = {
        str(path.relative_to(run)) for path in set(before) - set(run.rglob("*")) if path.suffix or path.name in ("0", "x")
    }
    assert gone == {
        *("rounds/0/train/ray/step-1/x", "rounds/0/responses/parts/0.json", "rounds/0/eval/noise/n.mp4"),
        "rounds/1/responses/parts/0",
    }
    assert main(["clean", str(run), "--frames"]) == 2
    assert "rounds/1/train is not; finish it" in capsys.readouterr().err
    files.write_json(run / "rounds" / "1" / "train" / "manifest.json", {})
    found = {each.folder.name for each in cleaning.removable(run, frames=True)}
    assert found == {"ray", "cache", "frames"}
    assert main(["clean", str(run / "rounds")]) == 2
    assert "has no rounds; give its run_dir" in capsys.readouterr().err


def test_sizes_are_shown_in_the_unit_that_suits_them():
    assert [cleaning.shown(size) for size in (0, 1023, 1536, 5 * 2**30)] == ["0 bytes", "1,023 bytes", "1.5 KiB", "5.0 GiB"]


def test_export_copies_the_last_model_whole_and_the_adapter_alone(run, tmp_path, capsys):
    model = run / "rounds" / "0" / "model"
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in model.iterdir()}
    assert main(["export", str(run), "--out", str(tmp_path / "a"), "--what", "adapter"]) == 2
    assert "train.lora.export=both" in capsys.readouterr().err
    (model / "adapter").mkdir()
    (model / "adapter" / "adapter_config.json").write_text("{}")
    assert main(["export", str(run), "--out", str(tmp_path / "a"), "--what", "adapter"]) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["adapter_config.json"]
    exporting.copy(exporting.model_of(run), tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_export_to_a_full_disk_is_one_sentence(run, tmp_path, monkeypatch, capsys):

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copy2", full)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vidalign: error: {tmp_path}/.out.")
    assert "cannot be written: No space left on device; free some space" in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if "out" in path.name], "nothing is left of it"


@pytest.mark.parametrize(
    ("code", "said", "exit_code"),
    [
        (
            "from pipelines import cli; sys.exit(cli.main(['options']))",
            "vidalign: error: the current folder was removed; ",
            2,
        ),
        ("from cluster.engines import enter_actor_environment; enter_actor_environment(0); import torch", "", 0),
    ],
    ids=["a command", "an engine's actor"],
)
def test_a_process_whose_folder_was_removed(tmp_path, code, said, exit_code):
    """MKL ends one that imports torch: "Intel oneMKL FATAL ERROR: Cannot load …/libtorch_cpu.so"."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.rmdir({str(gone)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=gone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[: len(said) or None]) == (exit_code, said), done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of the two"),
        (["--out", "x", "--push", "a/b"], "give one of the two"),
        (["--out", "x", "--public"], "--public belongs to --push"),
        (["--out", "{run}"], "is there already"),
        (["--out", "x", "--round", "3"], "has no exported model of round 3; there are those of 0"),
        (["--push", "nameless"], "is no repository; write OWNER/NAME"),
    ],
)
def test_export_refuses(run, arguments, says, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert main(["export", str(run), *[part.format(run=run) for part in arguments]]) == 2
    assert says in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_a_sentence(run, monkeypatch):
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "create_repo", unreachable)
    with pytest.raises(DataError, match=r"the hub does not take a/b \(no route to host\); log in"):
        exporting.push(exporting.model_of(run), "a/b", private=True)


# chat


class Endpoint:
    """Answers with the texts of what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, messages):
        self.asked.append(messages)
        yield from ("reply ", str(len(messages)))


def test_a_conversation_shows_its_video_once_and_remembers_what_was_said(tmp_path, capsys):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    endpoint, out = Endpoint(), io.StringIO()
    chat = chatting.Chat(endpoint, tmp_path / "a.mp4")
    lines = [
        "What?",
        "And then?",
        f"/video {tmp_path / 'b.mp4'}",
        "What?",
        "/vide x",
        "/video none.mp4",
        "/new",
        "Again?",
        "",
        "Never.",
    ]
    chatting.talk(chat, lines, out)
    assert out.getvalue() == "reply 1\nreply 3\nreply 1\nreply 1\n"
    assert [len(messages) for messages in endpoint.asked] == [1, 3, 1, 1]
    urls = [messages[0]["content"][0]["video_url"]["url"] for messages in endpoint.asked]
    assert urls == [chatting.data_url(tmp_path / name) for name in ("a.mp4", "a.mp4", "b.mp4", "b.mp4")]
    assert endpoint.asked[1][1:] == [{"role": "assistant", "content": "reply 1"}, {"role": "user", "content": "And then?"}]
    error = capsys.readouterr().err
    assert "/vide is no command" in error
    assert "no video at none.mp4" in error


def test_a_question_in_vain_is_forgotten(tmp_path):
    def refuse(_messages):
        raise ConfigError("no")
        yield

    (tmp_path / "a.mp4").touch()
    chat = chatting.Chat(refuse, tmp_path / "a.mp4")
    chatting.talk(chat, ["What?"], io.StringIO())
    assert chat.messages == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs/x", "--video", "none.mp4"], "no video at none.mp4"),
        (["runs/x", "--video", "README.md", "--max-tokens", "0"], "must be at least 1"),
        (["runs/x", "--video", "README.md"], "runs/x is not a folder"),
        (
            ["aligned", "--video", "README.md", "--endpoint", "http://127.0.0.1:9/v1", "--ask", "x"],
            "does not answer as aligned",
        ),
        (["aligned", "seed=1", "--video", "README.md", "--endpoint", "http://h/v1"], "leave out overrides"),
    ],
)
def test_chat_refuses(arguments, says, capsys):
    assert main(["chat", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


# completion


def test_every_command_and_key_is_completed():
    found = words(whole_parser())
    assert {"align", "init", "chat", "export", "clean", "completion", "doctor"} <= set(found)
    assert {"--dry-run", "--on", "train.learning_rate=", "recipe.judge.model="} <= set(found["align"])
    assert {"validate", "--decode"} <= set(found["data"])
    assert EVERY not in found


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell(shell, tmp_path):
    text = script(shell, words(whole_parser()))
    if shutil.which(shell) is None:
        assert "vidalign" in text
        return
    path = tmp_path / "script"
    path.write_text(text)
    assert subprocess.run([shell, "-n", str(path)], check=False).returncode == 0
    if shell == "bash":
        path.write_text(
            f"{text}\nCOMP_WORDS=(vidalign align train.learning); COMP_CWORD=2; _vidalign; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run([shell, str(path)], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["train.learning_rate="]


# what a run ends with, and what it is served with


def test_the_commands_that_a_run_ends_with_work_as_printed(tmp_path, monkeypatch):
    own = tmp_path / ".venv" / "bin" / "vidalign"
    own.parent.mkdir(parents=True)
    own.touch(mode=0o755)
    monkeypatch.setattr(ending.sys, "executable", str(own.parent / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ending.own_name() == str(own)
    monkeypatch.chdir(tmp_path)
    assert ending.own_name() == ".venv/bin/vidalign"
    monkeypatch.setenv("PATH", str(own.parent))
    assert ending.own_name() == "vidalign"
    monkeypatch.setattr(ending.sys, "executable", str(tmp_path / "python"))
    assert ending.own_name() == "vidalign"


def test_an_endpoint_of_a_run_reads_its_videos_where_only_this_machine_reaches_it(data, tmp_path):
    run = tmp_path / "run"
    raw = {"run_dir": str(run), "model": {"path": str(MODEL)}, "data": {"train": str(data)}}
    files.write_text_atomic(run / "config.yaml", yaml.safe_dump(raw))

    def root(**options):
        return run_videos.with_media_root(str(run), ServeConfig(**options)).media_root

    assert root() == root(host="localhost") == str(tmp_path)
    assert root(host="0.0.0.0") is None
    assert root(media_root="/films") == "/films"
    assert run_videos.with_media_root(str(MODEL), ServeConfig()).media_root is None
    files.write_text_atomic(run / "config.yaml", yaml.safe_dump({**raw, "data": {"train": "s3://b/t.jsonl"}}))
    assert root() is None
    assert run_videos.example_url(str(tmp_path)) == (tmp_path / "v0.mp4").as_uri()
    assert run_videos.example_url(str(run)) == f"file://{run}/clip.mp4"
    assert run_videos.example_url(None).startswith("data:")
