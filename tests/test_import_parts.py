"""Parts of videos in other projects' rows: imported as `clip`, or refused, and never shown whole."""

import copy

import pytest

from vidalign.data.formats import IMPORTERS
from vidalign.data.formats.fields import Notes
from vidalign.data.rows import parse_row
from vidalign.errors import RowError

ASKED = {"role": "user", "content": "<video>Which way?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("left", "right"))
ROWS = {
    "trl": {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]},
    "llamafactory": {
        "conversations": [{"from": "human", "value": "<video>Which way?"}],
        "chosen": {"from": "gpt", "value": "left"},
        "rejected": {"from": "gpt", "value": "right"},
    },
    "ms-swift": {"messages": [ASKED, YES], "rejected_response": "right"},
    "nemo-rl": {"context": [ASKED], "completions": [{"rank": 0, "completion": [YES]}, {"rank": 1, "completion": [NO]}]},
    "hound": {"prompt": "<video>\nWhich way?", "chosen": "left", "rejected": "right"},
    "rrpo": {"question": "Which way?", "answer": "left", "pred": "right"},
}
TWO = {"videos": ["a.mp4", "b.mp4"]}


def read(name, columns):
    row = {**copy.deepcopy(ROWS[name]), **copy.deepcopy(columns)}
    notes = Notes()
    made = IMPORTERS[name](row, notes)
    assert not [each for each in notes if "of a video" in each], "nothing of a video is lost"
    assert not row, "every column is used"
    assert not parse_row({"id": "1", **made})[1]
    return {field: made[field] for field in ("video", "videos", "clip") if field in made}


@pytest.mark.parametrize("name", IMPORTERS)
@pytest.mark.parametrize(
    ("columns", "clip"),
    [
        ({"clip": {"start": 2, "end": 5}}, {"start": 2, "end": 5}),
        ({"clip": {"start": 2, "end": None}}, {"start": 2}),
        ({"clip": [2, 5]}, {"start": 2, "end": 5}),
        ({"clips": [[2, 5]]}, {"start": 2, "end": 5}),
        ({"video_start": 2, "video_end": 5.5}, {"start": 2, "end": 5.5}),
        ({"video_end": "5.5"}, {"end": 5.5}),
        ({"video_start": [2], "video_end": [5]}, {"start": 2, "end": 5}),
        ({"clip": [2, 5], "video_start": 2, "video_end": 5}, {"start": 2, "end": 5}),
    ],
)
def test_bounds_in_columns_are_a_clip_in_every_format(name, columns, clip):
    assert read(name, {"video": "a.mp4", **columns}) == {"video": "a.mp4", "clip": clip}


@pytest.mark.parametrize("name", ["trl", "llamafactory", "ms-swift", "nemo-rl", "hound"])
@pytest.mark.parametrize(
    "item",
    [
        {"type": "video", "video": "a.mp4", "video_start": 2, "video_end": 5},
        {"video": "a.mp4", "video_start": "2", "video_end": "5"},
        {"path": "a.mp4", "clip": [2, 5]},
        {"type": "video_url", "video_url": {"url": "a.mp4", "video_start": 2, "video_end": 5}},
        {"type": "video_url", "video_url": {"url": "a.mp4"}, "video_start": 2, "video_end": 5},
    ],
)
def test_bounds_beside_a_video_are_its_clip(name, item):
    assert read(name, {"videos": [item]}) == {"video": "a.mp4", "clip": {"start": 2, "end": 5}}


def test_a_column_bounds_a_video_that_a_message_names():
    part = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Which way?"}]
    columns = {"context": [{"role": "user", "content": part}], "clip": [2, 5]}
    assert read("nemo-rl", columns) == {"video": "a.mp4", "clip": {"start": 2, "end": 5}}


@pytest.mark.parametrize("columns", [{"clips": [[2, 5], None]}, {"video_start": [2, None], "video_end": [5, None]}])
def test_each_of_several_videos_has_its_own_bounds(columns):
    made = read("trl", {**TWO, "prompt": [{**ASKED, "content": "<video><video>Which way?"}], **columns})
    assert made == {"videos": [{"video": "a.mp4", "clip": {"start": 2, "end": 5}}, "b.mp4"]}


def test_a_clip_that_is_no_bounds_is_counted_as_any_column():
    row = {**ROWS["hound"], "video": "a.mp4", "clip": "a_0003"}
    IMPORTERS["hound"](row, Notes())
    assert row == {"clip": "a_0003"}


@pytest.mark.parametrize("name", IMPORTERS)
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"start": 2, "end": 5}, "end: is 5, which may bound the part .* write it as video_start and video_end or as clip"),
        ({"start_time": "2.0"}, "start_time: is '2.0', which may bound"),
        ({"segment": [2, 5]}, r"segment: is \[2, 5\], which may bound"),
        ({"clip": [2, 5, 8]}, r"clip: is \[2, 5, 8\], which may bound"),
        ({"clip_start": 60, "clip_end": 90}, "clip_end: is 90, which may bound"),
        ({"start_frame": 60}, "start_frame: is 60, which may bound"),
        ({"video_start": "0:02"}, "video_start: must be seconds of the video, got '0:02'"),
        ({"video_start": float("nan")}, "a video has no such time"),
        ({"clips": [[2, 5], [1, 2]]}, "clips: has the bounds of 2 videos, and the row shows 1"),
        ({"clip": [2, 5], "video_start": 3}, "clip: is .* and video_start and video_end say .*leave one of the two out"),
    ],
)
def test_bounds_that_cannot_be_read_are_refused_and_the_video_is_not_shown_whole(name, columns, says):
    with pytest.raises(RowError, match=says):
        IMPORTERS[name]({**copy.deepcopy(ROWS[name]), "video": "a.mp4", **columns}, Notes())


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"videos": [{"path": "a.mp4", "start": 2, "end": 5}]}, "videos.end: is 5, which may bound"),
        (
            {"videos": [{"path": "a.mp4", "clip": [2, 5]}], "clip": [2, 6]},
            "clip: has the bounds .* leave one of the two out",
        ),
        ({**TWO, "clip": [2, 5]}, "clip: has the bounds of 1 video, and the row shows 2; give a list, clips"),
    ],
)
def test_bounds_that_fit_no_video_are_refused(columns, says):
    with pytest.raises(RowError, match=says):
        IMPORTERS["trl"]({**copy.deepcopy(ROWS["trl"]), **columns}, Notes())
