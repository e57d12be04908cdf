"""The whole corpus: `make test-videos`. Its results are kept beside the test videos, and docs/videos.md shows them."""

import dataclasses
import importlib.metadata
import pathlib

import pytest
import video_table
from video_cases import Case, cases
from video_judge import BACKENDS, judge, make, measure, version

from vidalign import files

FOUND: list[dict] = []


@pytest.fixture(scope="module", autouse=True)
def _kept():
    """Written at the end, and only if every case was run."""
    yield
    if len(FOUND) == len(cases()):
        versions = {name: importlib.metadata.version(name) for name in ("av", "decord")}
        found = {"ffmpeg": version(), **versions, "cases": FOUND}
        files.write_json(video_table.RESULTS, found)
        page = video_table.in_page(video_table.PAGE.read_text(encoding="utf-8"), video_table.table(found))
        files.write_text_atomic(video_table.PAGE, page)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_frames_and_times_that_ffmpeg_gives(case: Case, tmp_path: pathlib.Path):
    path = make(case, tmp_path)
    truth = judge(path, case.judged, squared=case.squared)
    outcomes = {backend: measure(case, path, truth, backend) for backend in BACKENDS}
    named = {name: getattr(case, name) for name in ("container", "codec", "oddity", "why")}
    FOUND.append(
        {**named, "frames": len(truth.frames), **{name: dataclasses.asdict(found) for name, found in outcomes.items()}}
    )
    assert not truth.twins
    assert {name: found.wrong for name, found in outcomes.items()} == dict.fromkeys(BACKENDS, "")
