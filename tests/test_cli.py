"""Mistakes on the command line: one sentence, exit code 2, no stack trace."""

import errno
import json
import os
import resource
import subprocess
import sys
import types

import pytest
import yaml
from conftest import ROOT

from pipelines import cli
from pipelines.cli import fixable_cause, main
from vidalign.errors import ClusterError, DataError


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    raw = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": "examples/shapes/model", "dtype": "float32", "max_model_len": 512},
        "data": {"train": str(tmp_path / "train.jsonl")},
    }
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    ("rows", "overrides", "says"),
    [
        ([{"id": "a"}], [], "video: is missing or null"),
        ([], [], "holds no rows"),
        ([{"id": "a", "video": "v", "question": "q", "answer": "a"}] * 2, [], "id: 'a' is also the id of "),
        ([], ["data.train=none.jsonl"], "no data file at none.jsonl"),
        ([], ["train.learning_rat=1"], "did you mean train.learning_rate?"),
        ([], ["objective.name=leanp"], "did you mean leanpo?"),
        ([], ["objective.params={bta: 1}"], "did you mean beta?"),
        ([], ["objective.name=dpo", "train.uncertainty={}"], "choose one of leanpo, simpo, cdpo"),
        ([{"id": "a", "video": "v", "question": "q", "answer": "a"}], ["model.path=nowhere"], "no model folder at nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(config, rows, overrides, says, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.align.connect", lambda *a, **k: pytest.fail("the cluster was started"))
    (config.parent / "v").write_bytes(b"a video file, for all that is known before it is decoded")
    (config.parent / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert main(["align", str(config), *overrides]) == 2
    out = capsys.readouterr()
    assert says in out.err
    assert out.err.count("\n") == 1


def test_overrides_may_stand_before_and_after_options(config, capsys):
    arguments = ["align", str(config), "seed=1", "--dry-run", "train.learning_rat=1"]
    assert main(arguments) == 2
    assert "did you mean train.learning_rate?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["align", str(config), "--dry-run", "--no-such-flag"])


def test_the_cause_is_found_inside_what_ray_wraps_around_it():
    inner = DataError("the cause")
    outer = RuntimeError("task failed")
    outer.cause = inner
    again = ValueError("again")
    again.__cause__ = outer
    assert fixable_cause(again) is inner
    assert fixable_cause(RuntimeError("a bug")) is None


def test_ranks_that_die_again_and_again_are_a_sentence_unless_one_of_them_says_why():
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

    dead = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError(error_msg="its node died"))
    others = {0: RuntimeError("Connection closed by peer"), 1: dead}
    found = fixable_cause(WorkerGroupError("two ranks", others))
    assert isinstance(found, ClusterError)
    assert "more often than train.max_failures allows (its node died); look at the memory" in str(found)
    said = DataError("a pair is broken")
    assert fixable_cause(WorkerGroupError("two ranks", {**others, 0: said})) is said
    assert fixable_cause(WorkerGroupError("a bug", {0: RuntimeError("a bug")})) is None
    unread = WorkerHealthCheckFailedError("A worker health check failed.", TypeError("cannot be pickled"))
    assert fixable_cause(WorkerGroupError("a bug", {0: unread})) is None
    found = fixable_cause(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert "training ranks could not be started" in str(found)


def test_bench_outside_a_checkout_says_where_to_run_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "decode", "--rounds", "2"]) == 2
    assert "no bench/decode.py here" in capsys.readouterr().err


def test_bench_passes_its_arguments_to_the_script(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()  # a package, as in a checkout: a folder alone would yield to another one
    (tmp_path / "bench" / "decode.py").write_text("import sys\nsys.exit(7 if sys.argv[1:] == ['--rounds', '2'] else 1)\n")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "decode", "--rounds", "2"]) == 7


def test_a_disk_without_inodes_is_said_to_have_none(tmp_path, monkeypatch):
    no_inodes = types.SimpleNamespace(f_files=30, f_ffree=0, f_bavail=9)
    monkeypatch.setattr(os, "statvfs", lambda folder: no_inodes if folder == str(tmp_path) else os.error)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a.json"))
    said = f"{tmp_path}/a.json cannot be written: No space left on device; it has space, but no inodes for more files; remove some"
    assert str(fixable_cause(full)).startswith(said)


def test_a_full_disk_is_one_sentence_wherever_it_shows(tmp_path, capsys, monkeypatch):
    def write(_arguments: object) -> int:
        try:
            with open("/dev/full", "w") as file:
                file.write("x")
        except OSError as error:
            raise RuntimeError("a Ray task failed") from error
        return 0

    monkeypatch.setattr("pipelines.cli._run_doctor", write)
    assert main(["doctor"]) == 2
    error = capsys.readouterr().err
    assert "cannot be written: No space left on device; free some space" in error
    assert error.count("\n") == 1


def test_a_run_folder_that_cannot_be_made_is_one_sentence(config, capsys):
    (config.parent / "file").touch()
    (config.parent / "train.jsonl").write_text(json.dumps({"id": "a", "video": "v", "question": "q", "answer": "a"}))
    (config.parent / "v").write_bytes(b"x")
    for place in ("/proc/none/run", str(config.parent / "file" / "run")):
        assert main(["align", str(config), f"run_dir={place}"]) == 2
        error = capsys.readouterr().err
        assert place in error
        assert "choose another folder" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["completion", "bash"], ["options"], ["--help"]], ids=lambda command: command[0])
def test_a_reader_that_has_read_enough_is_no_error(command, unbuffered):
    """As in `vidalign options | head -1`."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.Popen(
        [sys.executable, "-m", "vidalign", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()  # before anything is written
    assert done.stderr.read() == b""
    assert done.wait(60) in ((0, 141) if command == ["--help"] else (141,))  # argparse itself swallows some


def test_a_broken_pipe_of_something_else_is_one(monkeypatch):
    from vidalign import __main__

    def broken():
        raise BrokenPipeError

    monkeypatch.setattr(cli, "main", broken)
    with pytest.raises(BrokenPipeError):
        __main__.main()


def test_help_is_there_at_once():
    code = "import sys; from pipelines.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert {"align", "serve", "data", "bench", "doctor"} <= set(done.stdout.split())
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "pipelines.cli" in loaded
    assert not loaded & {"pydantic", "yaml", "numpy", "pyarrow", "tqdm", "jinja2", "torch", "ray", "pipelines.data"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--learning_rate", "1e-5"], "written without dashes: train.learning_rate=1e-5; see"),
        (["--learning-rate=1e-5"], "--learning-rate is no option; what the configuration holds"),
        (["--lr", "-1"], "train.learning_rate=-1"),
        (["--train.learning_rat", "1"], "train.learning_rate=1"),
        (["--batch_size"], "rollout.batch_size=VALUE or train.batch_size=VALUE"),
        (["--no-such"], "unrecognized arguments: --no-such"),
        (["1e-5"], "must have the form section.key=value, got '1e-5'"),
        (["seed=[", "--dry-run"], "override 'seed=[': the value is not valid YAML: line 1"),
    ],
)
def test_options_in_the_form_of_others_are_answered_with_ours(config, arguments, says, capsys):
    try:
        code = main(["align", str(config), *arguments])
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "override", "refused"),
    [
        ("rollout", "train.learning_rate=1e-5", True),
        ("rollout", "train.float32_head=true", False),
        ("rollout", "train.num_workers=2", False),
        ("train", "recipe.num_candidates=2", True),
        ("train", "train.learning_rate=1e-5", False),
        ("evaluate", "objective.name=dpo", True),
        ("evaluate", "evaluate.blind=false", False),
        ("report", "model.path=x", True),
        ("report", "seed=2", False),
        ("align", "serve.port=9000", False),
    ],
)
def test_an_override_of_what_a_command_does_not_read_is_refused(config, command, override, refused, capsys):
    elsewhere = ["model.path=nowhere"] if command != "report" else []
    assert main([command, str(config), *elsewhere, override]) == 2
    error = capsys.readouterr().err
    assert (f"vidalign {command} does not use {override.partition('.')[0]}" in error) == refused, error


def test_a_dry_run_is_an_option_of_what_starts_something(config, capsys):
    for option in ("--dry-run", "--verbose", "--on=8x80"):
        with pytest.raises(SystemExit):
            main(["report", str(config), option])
        assert f"unrecognized arguments: {option}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "rounds"])
def test_a_run_folder_that_holds_something_else_is_refused(config, name, capsys):
    (config.parent / "train.jsonl").write_text(json.dumps({"id": "a", "video": "v", "question": "q", "answer": "a"}))
    (config.parent / "v").write_bytes(b"x")
    there = config.parent / "run" / name
    there.parent.mkdir()
    there.touch() if name == "rounds" else there.mkdir()
    assert main(["align", str(config)]) == 2
    assert f"{there} is not the" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "validate", "x.jsonl", "--deadline-s", "5"], "--deadline-s is about opening videos; add --decode"),
        (["data", "validate", "x.jsonl", "--num-decoders", "2"], "--num-decoders is about opening videos"),
        (["data", "validate", "x.jsonl", "--deadline-s", "soon"], "must be a number, got soon"),
        (
            ["evaluate", "runs/x", "--suite", "mvbench", "--data", "d", "--on", "8x80"],
            "--on=8x80 plans a run's own evaluation",
        ),
        (["evaluate", "runs/x", "--task", "a"], "--task is an option of suites"),
        (["algin"], "invalid choice: 'algin'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_an_option_without_what_it_belongs_to_is_refused(arguments, says, capsys):
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2
    assert says in error
    assert error.count("\n") == 1


def test_help_takes_less_than_a_third_of_a_second_of_a_core():
    """Of the processor, not of the clock, so that a busy machine does not matter; the best of three."""
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "vidalign", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "vidalign align" in done.stdout
    assert min(took) < 0.3
