"""Run folders: atomic writes, manifests, tables."""

import dataclasses
import errno
import math
import pickle

import pytest

from vidalign import files
from vidalign.errors import ConfigError, DataError
from vidalign.records import FrameChoice
from vidalign.types import FrameSpec, PreferencePair, Response

RESPONSE = Response(
    example_id="e",
    kind="hinted",
    candidate=0,
    turn=0,
    text="ü \u2028 text",
    token_ids=(1, 2),
    log_probs=(-0.5, -1.0),
    policy_version="v",
    seed=3,
    temperature=1.0,
    top_p=0.9,
    finish_reason="stop",
)


def test_tables_give_back_the_records(tmp_path):
    pair = PreferencePair(
        id="p", example_id="e", video="v", question="q", answer="a", chosen="c", rejected="r", chosen_marks=((0, 3), (5, 7))
    )
    files.write_table(tmp_path / "p.parquet", [pair])
    [back] = files.read_table(tmp_path / "p.parquet", PreferencePair)
    assert back.chosen_marks == ((0, 3), (5, 7))
    assert math.isnan(back.chosen_reward)
    files.write_table(tmp_path / "r.parquet", [RESPONSE])
    [response] = files.read_table(tmp_path / "r.parquet", Response)
    assert response.token_ids == (1, 2)
    assert response.text == RESPONSE.text
    files.write_table(tmp_path / "none.parquet", [])
    assert files.read_table(tmp_path / "none.parquet", Response) == []


def test_tables_join_in_their_order_also_where_a_column_is_empty_in_one(tmp_path):
    truth = dataclasses.replace(RESPONSE, kind="truth", token_ids=(), log_probs=())
    parts = [[RESPONSE], [], [truth], [RESPONSE, truth]]
    for index, records in enumerate(parts):
        files.write_table(tmp_path / f"{index}.parquet", records)
    files.join_tables([tmp_path / f"{index}.parquet" for index in range(len(parts))], tmp_path / "all.parquet")
    names = ("kind", "text", "token_ids", "log_probs")
    found = [[getattr(r, name) for name in names] for r in files.read_table(tmp_path / "all.parquet", Response)]
    assert found == [[getattr(r, name) for name in names] for records in parts for r in records]
    files.join_tables([tmp_path / "1.parquet"], tmp_path / "none.parquet")
    assert files.read_table(tmp_path / "none.parquet", Response) == []


def test_columns_that_a_reader_does_without_are_empty(tmp_path):
    files.write_table(tmp_path / "r.parquet", [RESPONSE])
    [response] = files.read_table(tmp_path / "r.parquet", Response, without=("token_ids", "log_probs"))
    assert (response.token_ids, response.log_probs, response.text) == ((), (), RESPONSE.text)


def test_writes_leave_no_temporary_file_and_no_nan(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.5], "c": (1, 2)})
    assert files.read_json(tmp_path / "x.json") == {"a": None, "b": [None, 1.5], "c": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", {"a": object()})
    assert files.read_json(tmp_path / "x.json")["b"] == [None, 1.5]


def test_reading_what_is_not_there_or_not_json(tmp_path):
    with pytest.raises(DataError, match="no file"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        files.read_json(tmp_path / "bad.json")


def test_paths_inside_a_run_are_found_where_the_run_is_now(tmp_path):
    run, index = tmp_path / "run", "rounds/0/responses/frames.json"
    shared = tmp_path / "shared" / "frames" / "cd" / "cd.safetensors"
    for path in (run / "frames/ab/ab.safetensors", shared):
        path.parent.mkdir(parents=True)
        path.write_text("")
    places = {"a": str(run / "frames/ab/ab.safetensors"), "b": str(shared)}
    files.write_places(run / index, places)
    assert files.read_json(run / index) == {"a": "frames/ab/ab.safetensors", "b": str(shared)}
    files.write_json(run / "earlier.json", places)  # whole paths, as earlier versions kept them
    moved = run.rename(tmp_path / "moved")
    now = {"a": str(moved / "frames/ab/ab.safetensors"), "b": str(shared)}
    assert files.read_places(moved / index) == now
    assert files.read_places(moved / "earlier.json") == now
    assert files.found_places(moved, {"bad": ""}) == {"bad": ""}


def test_run_dir_is_a_path_or_a_uri(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDALIGN_STAGED", str(tmp_path))
    assert files.RunFolder.at("s3://bucket/run").root == tmp_path / "mirrored-runs" / "s3+bucket+run"
    with pytest.raises(ConfigError, match="begins with file:, which is not read here"):
        files.RunFolder.open("file:///data/run")


def test_frame_spec_keys_differ_by_every_field():
    others = {
        "num_frames": 9, "fps": 2.0, "max_frames": 9, "min_frames": 9, "height": 56, "width": 56, "max_pixels": 9,
        "snap_to_keyframes": True, "max_duration_s": 9.0, "max_pixels_decoded": 9, "square_pixels": False,
        "hdr_to_sdr": False, "total_pixels": 99, "choice": FrameChoice(),
    }  # fmt: skip
    assert others.keys() == {field.name for field in dataclasses.fields(FrameSpec)}
    keys = [FrameSpec(**{name: value}).key() for name, value in others.items()]
    choices = [FrameChoice(pool=64), FrameChoice(keep=8), FrameChoice(relevance="towers")]
    keys += [FrameSpec(choice=choice).key() for choice in choices]
    assert len({FrameSpec().key(), *keys}) == len(others) + len(choices) + 1


def test_frame_spec_keys_stay():
    """They are in the names of cached frames, which finished runs point to."""
    assert FrameSpec().key() == FrameSpec(num_frames=8).key() == "f9e6873dd831c397"
    assert FrameSpec(num_frames=None, fps=2.0, max_pixels=1000).key() == "4016b0e48b7f26ae"
    assert FrameSpec(snap_to_keyframes=True).key() == "e2f54b736cd918f8"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "it is not text in UTF-8"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "got list"),
    ],
)
def test_a_file_that_holds_no_object_is_a_sentence(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DataError, match=says):
        files.read_object(tmp_path / "config.json")


def test_a_part_that_is_cut_off_is_not_finished(tmp_path):
    made = files.part_path(tmp_path, 3)
    table = made.with_suffix(".parquet")
    assert not files.is_part_whole(tmp_path, 3)
    files.write_json(made, {"num_responses": 1})
    assert files.is_part_whole(tmp_path, 3)
    assert not files.is_part_whole(tmp_path, 3, has_table=True)
    files.write_table(table, [RESPONSE])
    assert files.is_part_whole(tmp_path, 3, has_table=True)
    for path in (table, made):
        whole = path.read_bytes()
        for size in (0, len(whole) // 2):
            path.write_bytes(whole[:size])
            assert not files.is_part_whole(tmp_path, 3, has_table=True)
        path.write_bytes(whole)


def test_a_disk_that_is_full_is_named_by_what_was_to_be_written_there(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        files.write_json(tmp_path / "a.json", {})
    assert pickle.loads(pickle.dumps(caught.value)).filename == str(tmp_path / "a.json"), "also from a worker"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_file_is_named_by_what_was_to_be_written_there(tmp_path, monkeypatch):
    def refused(dir, prefix):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}x8u")

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    with pytest.raises(OSError, match="Read-only") as caught:
        files.write_json(tmp_path / "a.json", {})
    assert caught.value.filename == str(tmp_path / "a.json")
