"""A file that a node does not see, and the driver does, is a fault of the node: nothing is lost by it."""

import json

import pytest

from cluster.node_files import Missed, Passes
from vidalign.errors import ClusterError
from vidalign.video.decode_child import DecodedVideo


def missed(node: str, video: str) -> Missed:
    return Missed(node=node, address=f"10.0.0.{node}", video=video, message=f"no file at {video}")


@pytest.fixture
def video(tmp_path) -> str:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")
    return str(path)


def test_work_of_a_node_without_the_videos_is_done_elsewhere(video):
    passes = Passes(nodes=lambda: {"1", "2", "3"})
    assert passes.placement() == {}
    assert passes.again([missed("1", video)])
    assert passes.placement() == {"label_selector": {"ray.io/node-id": "!in(1)"}}
    assert passes.again([missed("3", video)])
    assert passes.placement() == {"label_selector": {"ray.io/node-id": "!in(1,3)"}}
    assert not passes.again([])


def test_when_no_node_is_left_the_run_ends_with_their_names(video):
    passes = Passes(nodes=lambda: {"1", "2"})
    assert passes.again([missed("1", video)])
    with pytest.raises(ClusterError, match=rf"nodes 10\.0\.0\.1 and 10\.0\.0\.2 find no file at {video}.* mount"):
        passes.again([missed("2", video)])


def test_nodes_that_come_and_are_no_better_end_it_too(video):
    passes = Passes(nodes=lambda: {"1", "2", "3", "4", "5", "6"})
    assert passes.again([missed("1", video), missed("2", video)])
    with pytest.raises(ClusterError, match=r"nodes 10\.0\.0\.1, 10\.0\.0\.2 and 10\.0\.0\.3 find"):
        passes.again([missed("3", video)])


def test_what_the_driver_does_not_see_either_is_the_videos_fault(video, tmp_path):
    gone = str(tmp_path / "gone.mp4")
    passes = Passes(gone=["known.mp4"], nodes=lambda: {"1"})
    assert passes.again([missed("1", gone)])
    assert passes.gone == {"known.mp4", gone}
    assert passes.placement() == {}


def test_one_driver_and_one_node_end_at_once(video):
    with pytest.raises(ClusterError, match=r"node 10\.0\.0\.1 finds no file"):
        Passes(nodes=lambda: {"1"}).again([missed("1", video)])


def test_a_chunk_with_a_missed_file_is_handed_back_unfinished(tmp_path, monkeypatch):
    from actors.generator import Generator

    found = Generator.__new__(Generator)  # no engine is asked
    row = {"chunk": 3, "examples": "[]", "decoded": "[]", "missed": json.dumps([missed("1", "a.mp4").to_row()])}
    assert found(row) == {"chunk": 3, "num_examples": 0, "missed": row["missed"]}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known", [True, False])
def test_decoders_tell_a_node_that_misses_a_file_from_a_video_that_is_missing(tmp_path, known):
    from actors.decoder import ChunkDecoder
    from vidalign.types import Example, FrameSpec

    names = [str(tmp_path / "gone.mp4"), "http://127.0.0.1:9/x.mp4"]
    made = ChunkDecoder(FrameSpec(), str(tmp_path / "frames"), gone=names[:1] if known else ())
    made.child.decode = lambda uri: DecodedVideo(video=uri, reason="missing", message=f"no file at {uri}")
    examples = [Example(id=name, video=name, question="q", answer="a").to_row() for name in names]
    row = made({"chunk": 0, "examples": json.dumps(examples)})
    assert [miss["video"] for miss in json.loads(row["missed"])] == ([] if known else names[:1])
