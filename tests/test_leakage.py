"""A video of two splits is found however it is named: by path, link, file: uri or content."""

import hashlib
import pathlib

import pytest

from pipelines.inputs import read_inputs
from vidalign.config.run import DataConfig
from vidalign.data.leakage import content_hash, find_leaks, locate
from vidalign.errors import DataError
from vidalign.video.naming import Visual, name_of


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(f"video {name}".encode())
    (tmp_path / "copy.mp4").write_bytes(b"video a")
    (tmp_path / "long.mp4").write_bytes(b"a longer video")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "a b.mp4").write_bytes(b"a name with a space")
    return tmp_path


def split(folder: pathlib.Path, *videos: str) -> dict[str, str]:
    return {locate(video, folder): f"row {number}" for number, video in enumerate(videos, start=1)}


def test_every_name_of_a_local_video_is_one_location(folder):
    plain = str(folder / "a.mp4")
    for name in (
        "a.mp4",
        "./x/../a.mp4",
        "link.mp4",
        plain,
        f"file://{plain}",
        f"FILE://{plain}",
        f"file://{folder}/link.mp4",
    ):
        assert locate(name, folder) == plain
    assert locate(f"file://{folder}/a%20b.mp4", folder) == str(folder / "a b.mp4")
    assert locate("s3://bucket/../a.mp4", folder) == "s3://bucket/../a.mp4"


@pytest.mark.parametrize(
    ("name", "is_copy"),
    [
        ("a.mp4", False),
        ("link.mp4", False),
        ("file://{}/a.mp4", False),
        ("FILE://localhost{}/%61.mp4", False),
        ("file://{}/a.mp4#t=1,2", False),
        (".//sub/../a.mp4", False),
        ("copy.mp4", True),
        ("hard.mp4", True),
    ],
)
def test_a_shared_video(folder, name, is_copy):
    (folder / "hard.mp4").hardlink_to(folder / "a.mp4")
    (leak,) = find_leaks([split(folder, "b.mp4", "a.mp4"), split(folder, "c.mp4", name.format(folder))])
    assert (leak.split, leak.where, leak.other_split, leak.other_where) == (1, "row 2", 0, "row 2")
    assert leak.other == str(folder / "a.mp4")
    assert leak.is_copy is is_copy


def test_uris_and_missing_files_are_compared_by_name(folder):
    (leak,) = find_leaks([split(folder, "s3://b/a.mp4", "b.mp4"), split(folder, "s3://b/a.mp4", "c.mp4")])
    assert leak.video == "s3://b/a.mp4"
    for other in ("HTTPS://Host.org/a%20b.mp4#t=1,2", "https://host.org:443/a b.mp4", "https://host.org/./x/../a%20b.mp4"):
        (leak,) = find_leaks([split(folder, "https://host.org/a%20b.mp4"), split(folder, other)])
        assert leak.other == "https://host.org/a%20b.mp4"
    assert not find_leaks([split(folder, "https://host.org/a.mp4?v=1"), split(folder, "https://host.org/a.mp4?v=2")])
    (leak,) = find_leaks([split(folder, "gone.mp4"), split(folder, "gone.mp4", "gone too.mp4")])
    assert leak.video == str(folder / "gone.mp4")


def test_copies_within_a_split_are_no_leak_and_empty_files_are_no_copies(folder):
    for name in ("empty.mp4", "empty too.mp4"):
        (folder / name).touch()
    assert not find_leaks([split(folder, "a.mp4", "copy.mp4"), split(folder, "long.mp4")])
    assert not find_leaks([split(folder, "empty.mp4"), split(folder, "empty too.mp4")])


@pytest.fixture
def frames(folder) -> pathlib.Path:
    for name in ("f", "copied", "other"):
        (folder / name).mkdir()
        for number in range(4):
            (folder / name / f"{number}.jpg").write_bytes(f"frame {number} of {name if name == 'other' else 'f'}".encode())
        (folder / name / "notes.txt").write_text("not a frame")
    return folder


def named(video: str | tuple[str, ...], folder: pathlib.Path) -> str:
    """A file or folder by its path, or a list of frames by its name."""
    if isinstance(video, str):
        return video
    return name_of(Visual(kind="list", uris=tuple(f"file://{folder}/{name}" for name in video), fps=2.0))


WHOLE = ("f/0.jpg", "f/1.jpg", "f/2.jpg", "f/3.jpg")


@pytest.mark.parametrize("trained", ["f", WHOLE], ids=["folder", "list"])
@pytest.mark.parametrize(
    ("video", "is_shared"),
    [
        ("f", True),
        (WHOLE, True),
        (("f/3.jpg",), True),
        (("other/0.jpg", "./f/../f/2.jpg"), True),
        (("copied/0.jpg", "copied/1.jpg", "copied/2.jpg", "copied/3.jpg"), True),
        ("copied", True),
        (("copied/0.jpg",), False),  # a black frame is no video
        ("other", False),
        (("other/1.jpg", "other/2.jpg"), False),
    ],
)
def test_frames_are_shared_in_a_folder_or_a_list_and_as_copies_of_all(frames, trained, video, is_shared):
    splits = [split(frames, "b.mp4", named(trained, frames)), split(frames, "c.mp4", named(video, frames))]
    assert bool(find_leaks(splits)) is is_shared


def test_each_later_split_that_has_a_video_is_named(folder):
    leaks = find_leaks([split(folder, "a.mp4"), split(folder, "copy.mp4"), split(folder, "link.mp4", "copy.mp4")])
    assert [(leak.split, leak.other_split) for leak in leaks] == [(1, 0), (2, 0), (2, 0)]


def test_only_files_of_a_size_that_two_splits_have_are_read_and_each_once(folder):
    read = []

    def digest(path: str) -> str:
        read.append(pathlib.Path(path).name)
        return content_hash(path)

    assert not find_leaks([split(folder, "a.mp4", "copy.mp4"), split(folder, "long.mp4", "s3://x/y")], digest=digest)
    assert read == []
    find_leaks([split(folder, "a.mp4"), split(folder, "a.mp4", "b.mp4"), split(folder, "a.mp4", "long.mp4")], digest=digest)
    assert sorted(read) == ["a.mp4", "b.mp4"]


def test_the_hash_is_sha256(folder):
    assert content_hash(str(folder / "a.mp4")) == hashlib.sha256(b"video a").hexdigest()


# --- the inputs of a run ---


def rows(path: pathlib.Path, *videos: str) -> str:
    lines = [
        f'{{"id": "{path.stem}-{n}", "video": "{video}", "question": "q?", "answer": "a"}}' for n, video in enumerate(videos)
    ]
    path.write_text("\n".join(lines))
    return str(path)


def test_every_split_is_read(folder):
    data = DataConfig(
        train=rows(folder / "t.jsonl", "a.mp4", "gone.mp4", f"file://{folder}/gone too.mp4"),
        eval=rows(folder / "e.jsonl", "b.mp4", "s3://bucket/x.mp4", "long.mp4"),
        probe=rows(folder / "p.jsonl", "c.mp4", "b.mp4"),  # eval and probe may share a video
        limit=3,
        eval_limit=2,
    )
    inputs = read_inputs(data)
    assert [row.where for row in inputs.train] == [f"{folder / 't.jsonl'}:{number}" for number in (1, 2, 3)]
    assert [example.id for example in inputs.eval] == ["e-0", "e-1"]
    assert [example.id for example in inputs.examples] == ["t-0", "t-1", "t-2", "e-0", "e-1", "p-0", "p-1"]
    assert inputs.present == [*(str(folder / f"{name}.mp4") for name in "abc"), "s3://bucket/x.mp4"]
    assert inputs.missing == [str(folder / "gone.mp4"), f"file://{folder}/gone too.mp4"]


def test_only_the_splits_that_are_asked_for_are_read(folder):
    data = DataConfig(train=str(folder / "none.jsonl"), eval=rows(folder / "e.jsonl", "gone.mp4"))
    inputs = read_inputs(data, splits=["eval"])
    assert (inputs.train, inputs.probe, inputs.present) == ([], [], [])
    assert inputs.missing == [str(folder / "gone.mp4")]
    with pytest.raises(DataError, match=r"no data file at .*none\.jsonl"):
        read_inputs(data)


@pytest.mark.parametrize("held_out", ["eval", "probe"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.mp4", r"1 of its 2 videos are in both, first .*a.mp4 \(.*h.jsonl:2 and .*t.jsonl:2\); remove them from one of"),
        ("link.mp4", r"first .*a.mp4 \("),
        ("copy.mp4", r"first .*copy.mp4 and .*a.mp4 are copies of one file \(.*h.jsonl:2 and .*t.jsonl:2\)"),
        ("file://{}/copy.mp4", "are copies of one file"),
    ],
)
def test_training_shares_no_video_with_what_is_held_out(folder, held_out, name, says):
    train, held = rows(folder / "t.jsonl", "b.mp4", "a.mp4"), rows(folder / "h.jsonl", "c.mp4", name.format(folder))
    with pytest.raises(DataError, match=f"^data.{held_out} must share no video with data.train, but .*{says}"):
        read_inputs(DataConfig.model_validate({"train": train, held_out: held}))
