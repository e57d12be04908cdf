"""Both backends against FFmpeg's command: a few files of each kind. The whole corpus is `make test-videos` (`tests/all_videos.py`)."""

import collections
import pathlib

import numpy as np
import pytest
import video_table
from video_cases import Case, cases
from video_judge import BACKENDS, Truth, judge, make, measure

CASES = {case.name: case for case in cases()}
SHORT = [
    *(
        "mp4_H.264_B-frames",
        "mkv_H.264_open_GOP",
        "mp4_H.264_10_bit",
        "webm_VP9_alpha",
        "webm_AV1",
        "avi_MPEG-4_Xvid",
        "h264_H.264",
    ),
    *(
        "mp4_H.264_B-frames_variable_rate",
        "gif_GIF_variable_rate",
        "ts_H.264_starts_at_0.3_s",
        "flv_H.264_B-frames_10_a_second",
    ),
    *(
        "mkv_H.264_B-frames_8_s_without_a_frame",
        "webm_VP9_2_frames",
        "mov_HEVC_edit_list_cuts",
        "mp4_H.264_B-frames_fragmented",
    ),
    *("mp4_H.264_two_pictures", "mp4_H.264_48x96", "webm_VP8_161x97", "mp4_H.264_gets_smaller", "mkv_HEVC_gets_larger"),
    *("mp4_H.264_pixels_of_4_to_3_turned", "ts_MPEG-2_pixels_of_16_to_15_as_stored", "mkv_H.264_turned_by_90"),
    *("mp4_H.264_mirrored", "mp4_H.264_BT.709_full_range", "ts_MPEG-2_interlaced", "mp4_HEVC_10_bit_PQ_as_SDR"),
]


@pytest.mark.parametrize("name", SHORT)
def test_the_frames_and_times_that_ffmpeg_gives(name, tmp_path):
    case = CASES[name]
    path = make(case, tmp_path)
    truth = judge(path, case.judged, squared=case.squared)
    assert not truth.twins, "one frame could stand in for another"
    assert {backend: measure(case, path, truth, backend).wrong for backend in BACKENDS} == dict.fromkeys(BACKENDS, "")


def test_the_judge_finds_what_is_wrong(tmp_path):
    """Another frame, another time, another number of frames, another size: each is named."""
    case = CASES["mp4_H.264"]
    path = make(case, tmp_path)
    truth = judge(path)

    def wrong(frames: np.ndarray = truth.frames, times_s: np.ndarray = truth.times_s) -> str:
        return measure(case, path, Truth(frames=frames, times_s=times_s), "pyav").wrong

    assert wrong() == ""
    assert "pixels differ" in wrong(np.roll(truth.frames, 1, axis=0))
    assert "too far from its time" in wrong(times_s=truth.times_s * 1.1)
    assert "36 frames, judged 35" in wrong(truth.frames[:-1], truth.times_s[:-1])
    assert "judged (95, 160)" in wrong(truth.frames[:, :-1])


def test_the_page_shows_what_the_whole_corpus_gave():
    found = video_table.read()
    assert [(row["container"], row["codec"], row["oddity"]) for row in found["cases"]] == [
        (case.container, case.codec, case.oddity) for case in cases()
    ], "run make test-videos"
    assert len(cases()) >= 60
    page = video_table.PAGE.read_text(encoding="utf-8")
    assert video_table.in_page(page, video_table.table(found)) == page
    assert [row for row in found["cases"] for backend in BACKENDS if row[backend]["wrong"]] == []


def test_the_table_by_hand():
    exact = {"used": "pyav", "levels": 0, "mean_levels": 0.0, "reason": "", "wrong": ""}
    near = {**exact, "levels": 3, "mean_levels": 0.5, "used": "decord"}
    case: dict = {
        "container": "mp4",
        "codec": "A",
        "oddity": "",
        "why": "because",
        "frames": 2,
        "pyav": exact,
        "decord": exact,
    }
    rows = [
        case,
        {**case, "codec": "B"},
        {**case, "oddity": "odd", "decord": near},
        {**case, "pyav": {**exact, "wrong": "worse"}},
    ]
    text = video_table.table({"ffmpeg": "1", "av": "2", "decord": "3", "cases": rows})
    lines = text.splitlines()
    assert "4 files" in lines[0]
    assert "6 of 8 outcomes are exact" in lines[0]
    assert "decord decoded 1 files itself and PyAV the other 3" in lines[0]
    assert "| none | mp4 | A, B | exact, by PyAV | exact, by PyAV |" in lines
    assert "| odd | mp4 | A | exact, by PyAV | within 3 levels, 0.5 on average, by decord: because |" in lines
    assert any("**wrong**: worse" in line for line in lines)


def test_the_names_are_those_of_files():
    assert len(CASES) == len(cases())
    assert collections.Counter(SHORT).most_common(1)[0][1] == 1
    assert all(pathlib.Path(name).name == name for name in CASES)


def test_a_case_is_what_it_says():
    case = Case(container="mp4", codec="H.264", oddity="pixels of 4/3, turned", steps=())
    assert case.name == "mp4_H.264_pixels_of_4:3_turned"
