"""The public API: light until it is used, typed, and doing what its words say."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from conftest import ROOT, write_video

import vidalign
from vidalign.config.loading import load_config
from vidalign.errors import ConfigError, VideoError
from vidalign.learning import objectives
from vidalign.types import FrameSpec
from vidalign.video import decoding

HEAVY = {"numpy", "torch", "pyarrow", "pydantic", "ray", "transformers", "vllm", "av"}


def run(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported_by(code: str) -> set[str]:
    return set(run(f"import sys\n{code}\nprint(*sys.modules)").split()) & HEAVY


# Light until it is used


def test_importing_the_package_and_listing_its_names_loads_nothing_heavy():
    assert imported_by("import vidalign; dir(vidalign); vidalign.__all__; vidalign.__version__") == set()


def test_importing_the_package_loads_itself_and_little_of_the_standard_library():
    code = "import sys; before = set(sys.modules); import vidalign; print(*set(sys.modules) - before)"
    loaded = set(run(code).split())
    assert {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names} == {"vidalign"}
    assert len(loaded) < 40, "some milliseconds"


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import vidalign.types, vidalign.errors, vidalign.prompts", set()),
        ("import vidalign; vidalign.load_config", {"pydantic"}),
        ("import vidalign.config.loading", {"pydantic"}),
        ("import vidalign.data.reading", {"pydantic", "numpy"}),
        ("import vidalign; vidalign.judge_reply('B', question='?', answer='b')", {"pydantic"}),
        ("import vidalign; vidalign.decode", {"pydantic", "numpy", "av"}),
    ],
)
def test_what_each_light_part_may_load(code, allowed):
    assert imported_by(code) <= allowed


# Names and types


def test_the_names_are_those_that_were_promised():
    promised = ["Engine", "align", "decode", "errors", "judge_reply", "load_config", "objectives"]
    assert vidalign.__all__ == promised
    assert set(promised) <= set(dir(vidalign))
    assert vidalign.objectives is objectives
    assert vidalign.load_config is load_config
    for name in ("decode", "judge_reply"):
        assert inspect.getdoc(getattr(vidalign, name))
        assert getattr(vidalign, name).__name__ == name


def test_align_is_that_of_the_pipelines_and_declared_with_its_signature():
    def signatures(module: str) -> list[str]:
        tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "align"]
        for node in found:  # a declaration says of a default only that there is one
            node.args.defaults = [ast.Constant(...) for _ in node.args.defaults]
            node.args.kw_defaults = [None if value is None else ast.Constant(...) for value in node.args.kw_defaults]
        return [f"{ast.unparse(node.args)} -> {ast.unparse(node.returns)}" for node in found if node.returns]

    declared, real = signatures("vidalign/__init__.py"), signatures("pipelines/align.py")
    assert declared == real
    assert len(declared) == 1
    assert vidalign.align is importlib.import_module("pipelines.align").align


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="module 'vidalign' has no attribute 'algin'"):
        vidalign.algin  # noqa: B018
    with pytest.raises(ImportError):
        from vidalign import algin  # noqa: F401


def test_a_type_checker_sees_the_types(tmp_path):
    client = tmp_path / "client.py"
    client.write_text(
        """import vidalign
config = vidalign.load_config("a.yaml", ["seed=1"])
clip = vidalign.decode("a.mp4", fps=2)
reveal_type(config)
reveal_type(vidalign.align(config))
reveal_type(clip)
reveal_type(clip.times_s)
reveal_type(vidalign.judge_reply("a", question="q", answer="b"))
reveal_type(vidalign.objectives.build("dpo", {}))
vidalign.algin
vidalign.decode("a.mp4", num_frames="8")
"""
    )
    done = subprocess.run([sys.executable, "-m", "mypy", str(client)], capture_output=True, text=True, check=False, cwd=ROOT)
    expected = (
        'vidalign.config.run.RunConfig"', '"dict[str, Any]"', 'vidalign.video.clip.Clip"', '"tuple[float, ...]"',
        '"bool | None"', 'vidalign.learning.objectives.base.AnyObjective"', 'no attribute "algin"', "incompatible type",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected) + 1, done.stdout + done.stderr
    for line, words in zip(lines, expected, strict=False):
        assert words in line, line


def test_every_package_tells_type_checkers_that_it_is_typed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert setuptools["package-data"]["*"] == ["py.typed"]
    for package in {name.split(".")[0] for name in setuptools["packages"]}:  # it holds for what is inside (PEP 561)
        assert (ROOT / package / "py.typed").is_file(), package


# decode


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> pathlib.Path:
    """Two seconds, 8 frames a second."""
    frames = np.random.default_rng(0).integers(0, 256, (16, 32, 64, 3), np.uint8)
    return write_video(tmp_path_factory.mktemp("api") / "video.mp4", frames, "libx264")


def test_decode_by_number_and_by_rate(video):
    clip = vidalign.decode(video, num_frames=4)
    assert (clip.indices, clip.times_s) == ((2, 6, 10, 14), (0.25, 0.75, 1.25, 1.75))
    assert (clip.fps, clip.duration_s, clip.frames.shape) == (8.0, 2.0, (4, 32, 64, 3))
    assert vidalign.decode(str(video), fps=1).indices == (4, 12)


def test_decode_takes_every_field_of_a_frame_spec_with_its_default(video):
    parameters = inspect.signature(vidalign.decode).parameters
    defaults = {name: value.default for name, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY}
    assert (defaults.pop("backend"), defaults.pop("question")) == ("pyav", "")
    assert defaults == {**{f.name: f.default for f in dataclasses.fields(FrameSpec)}, "num_frames": None}
    for options in (
        {"num_frames": 3, "height": 16, "width": 24, "snap_to_keyframes": True},
        {"fps": 4, "max_frames": 3, "max_pixels": 400},
    ):
        expected = decoding.decode(video, FrameSpec(**{"num_frames": None, **options}))
        for backend in ("pyav", "decord"):
            clip = vidalign.decode(video, **options, backend=backend)
            assert (clip.backend, clip.indices) == (backend, expected.indices)
            np.testing.assert_array_equal(clip.frames, expected.frames)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of num_frames and fps, got num_frames=None and fps=None"),
        ({"num_frames": 8, "fps": 2.0}, "exactly one of num_frames and fps, got num_frames=8 and fps=2.0"),
        ({"num_frames": 0}, "num_frames=0: input should be greater"),
        ({"num_frames": 8, "height": 28}, "height and width go together"),
        ({"num_frames": 8, "backend": "opencv"}, "backend='opencv'"),
    ],
)
def test_decode_refuses_what_breaks_a_rule(video, options, words):
    with pytest.raises(ConfigError) as caught:
        vidalign.decode(video, **options)
    assert words in str(caught.value)


def test_decode_names_what_is_wrong_with_a_video(video, tmp_path):
    with pytest.raises(VideoError) as caught:
        vidalign.decode(tmp_path / "none.mp4", num_frames=2)
    assert caught.value.reason == "missing"
    with pytest.raises(VideoError, match=r"has 16 frames, but video\.min_frames is 17"):
        vidalign.decode(video, num_frames=2, min_frames=17)


# judge_reply


@pytest.mark.parametrize(
    ("reply", "answer", "options", "right"),
    [
        ("The square.", "the square", (), True),
        ("The circle.", "the square", (), False),
        ("", "the square", (), False),
        ("B", "left", ("right", "left"), True),
        ("(A)", "left", ("right", "left"), False),
        ("perhaps", "left", ("right", "left"), False),
        ("It moves left.", "It moves left.", ("right", "left"), True),
        ("B", "It moves left.", ("right", "left"), True),
        ("A", "It moves left.", ("right", "left"), False),
        ("B", "It moves up.", ("right", "left"), None),
        ("", "It moves left.", ("right", "left"), False),
        ("B", " ?", ("right", "left"), None),
        ("anything", "", (), None),
    ],
)
def test_a_reply_is_right_or_wrong_or_no_rule_can_tell(reply, answer, options, right):
    assert vidalign.judge_reply(reply, question="Which way?", answer=answer, options=options) is right
