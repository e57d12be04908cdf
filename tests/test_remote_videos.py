"""Videos in stores: fetched once by their version, kept by content on a node, given up by last use, sent to endpoints as data."""

import base64
import concurrent.futures
import http.server
import multiprocessing
import os
import pathlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pyarrow.lib
import pytest
from json_server import Quiet
from test_decoder import PATIENT_S, SPEC
from test_video_times import VIDEOS

from pipelines.media_urls import video_url
from pipelines.stages.evaluate import common_folder, refuse_none
from vidalign import storage
from vidalign.data.rows import parse_row
from vidalign.errors import ConfigError, DataError, VideoError
from vidalign.types import Example
from vidalign.video import decode_child, kept, stores, visuals
from vidalign.video.decode_child import ChildDecoder
from vidalign.video.fetching import is_node_fault, local_file
from vidalign.video.into_cache import decode_into_cache
from vidalign.video.kept import KeptVideos
from vidalign.video.naming import mistyped

BASE = (VIDEOS / "base.mp4").read_bytes()


class Store:
    """A web server with one body for each path; `asked` are the status codes that it answered with, in order."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.tags, self.delay_s, self.asked = True, 0.0, []
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = store.bodies.get(self.path)
                tag = f'"{hash(body)}"'
                code = 404 if body is None else 304 if store.tags and self.headers.get("If-None-Match") == tag else 200
                store.asked.append(code)
                time.sleep(store.delay_s)
                self.send_response(code)
                if store.tags:
                    self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(body or b"") if code == 200 else 0))
                self.end_headers()
                if code == 200:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, name: str, body: bytes) -> str:
        self.bodies[f"/{name}"] = body
        return f"http://127.0.0.1:{self.server.server_port}/{name}"


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch) -> KeptVideos:
    monkeypatch.setenv("VIDALIGN_VIDEOS", str(tmp_path / "kept"))
    return KeptVideos.of_node()


def read(keeping: KeptVideos, uri: str) -> bytes:
    with keeping.opened(uri) as (path, _):
        return pathlib.Path(path).read_bytes()


def test_a_video_is_fetched_once_until_it_changes(store, node):
    uri = store.put("a.mp4", b"one")
    assert [read(node, uri) for _ in range(3)] == [b"one"] * 3
    assert store.asked == [200, 304, 304]
    store.put("a.mp4", b"two")
    assert read(node, uri) == read(node, uri) == b"two"
    assert store.asked == [200, 304, 304, 200, 304]
    other = store.put("b.mp4", b"two")
    assert read(node, other) == b"two"
    assert len(list((node.root / "bytes").glob("*/*"))) == 2, "equal bytes are kept once"
    assert not list((node.root / "in_use").glob("*/*"))


def test_what_names_no_version_is_fetched_every_time(store, node):
    store.tags = False
    uri = store.put("a.mp4", b"one")
    assert [read(node, uri), read(node, uri)] == [b"one"] * 2
    assert store.asked == [200, 200]
    assert node.digest(uri) == ""


def test_the_oldest_is_given_up_but_not_taken_from_its_reader(store, node):
    small = KeptVideos(node.root, max_bytes=250)
    uris = [store.put(f"{number}.mp4", bytes([number]) * 100) for number in range(4)]
    with small.opened(uris[0]) as (path, _):
        for uri in uris[1:3]:
            read(small, uri)
            time.sleep(0.01)
        assert len(list((node.root / "bytes").glob("*/*"))) == 2
        assert pathlib.Path(path).read_bytes() == bytes(100), "given up, and still there for its reader"
    assert not pathlib.Path(path).exists()
    read(small, uris[1])  # used again, so that 2 is the oldest
    read(small, uris[3])
    before = len(store.asked)
    assert [read(small, uris[at])[0] for at in (1, 3)] == [1, 3]
    assert store.asked[before:] == [304, 304]
    assert read(small, uris[2]) == bytes([2]) * 100
    assert store.asked[-1] == 200, "fetched again"
    large = store.put("large.mp4", bytes(1000))
    assert len(read(small, large)) == 1000, "one that is larger than all that may be kept is read all the same"


def test_bytes_given_up_between_question_and_answer_are_fetched_again(store, node, monkeypatch):
    uri = store.put("a.mp4", b"one")
    read(node, uri)
    monkeypatch.setattr(KeptVideos, "_linked", lambda *_: None)
    assert read(node, uri) == b"one"
    assert store.asked == [200, 304, 200]


def test_what_processes_left_behind_is_removed(store, node):
    gone = node.root / "in_use" / f"{os.uname().nodename}-999999999"
    gone.mkdir(parents=True)
    (gone / "half").write_bytes(b"x")
    other = node.root / "in_use" / "elsewhere-1"
    other.mkdir()
    read(node, store.put("a.mp4", b"one"))
    assert not gone.exists()
    assert other.exists(), "another machine's process may live"
    os.utime(other, (1, 1))
    read(node, store.put("b.mp4", b"two"))
    assert not other.exists()


def _hammer(root: pathlib.Path, uris: list[str], seed: int) -> int:
    rng, small = np.random.default_rng(seed), KeptVideos(root, max_bytes=30_000)
    for _ in range(40):
        at = int(rng.integers(len(uris)))
        assert read(small, uris[at]) == bytes([at]) * 10_000
    return os.getpid()


def test_many_processes_at_once_in_less_room_than_they_need(store, node):
    uris = [store.put(f"{number}.mp4", bytes([number]) * 10_000) for number in range(8)]
    with concurrent.futures.ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        list(pool.map(_hammer, [node.root] * 3, [uris] * 3, range(3)))
    assert sum(path.stat().st_size for path in (node.root / "bytes").glob("*/*")) <= 30_000


def test_processes_that_want_one_video_fetch_it_once(store, node):
    store.delay_s = 0.1
    uri = store.put("a.mp4", BASE)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: read(node, uri), range(4))) == [BASE] * 4
    assert sorted(store.asked) == [200, 304, 304, 304]


def test_without_links_there_are_copies(store, node, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    uri = store.put("a.mp4", b"one")
    assert [read(node, uri) for _ in range(2)] == [b"one"] * 2
    assert store.asked == [200, 304]


def test_a_folder_and_its_size_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("VIDALIGN_VIDEOS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("VIDALIGN_VIDEOS_GIB", "0.5")
    assert KeptVideos.of_node() == KeptVideos(tmp_path / "vidalign" / "videos", 2**29)
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("VIDALIGN_VIDEOS_GIB", wrong)
        with pytest.raises(ConfigError, match="VIDALIGN_VIDEOS_GIB must be a number of GiB"):
            KeptVideos.of_node()


def test_a_folder_that_cannot_be_written_is_no_fault_of_a_video(store, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDALIGN_VIDEOS", str(tmp_path / "file" / "kept"))
    reply = decode_into_cache(store.put("a.mp4", BASE), SPEC, str(tmp_path / "frames"))
    assert reply["reason"] == "cache"
    assert "set VIDALIGN_VIDEOS to a folder that can be written" in reply["message"]
    monkeypatch.setenv("VIDALIGN_VIDEOS_GIB", "much")
    assert decode_into_cache(store.put("a.mp4", BASE), SPEC, str(tmp_path / "frames"))["reason"] == "cache"


# Decoding


def test_frames_in_the_cache_are_neither_decoded_nor_fetched_again(store, node, tmp_path):
    uri = store.put("a.mp4", BASE)
    first = decode_into_cache(uri, SPEC, str(tmp_path / "frames"))
    assert (first["reason"], first["backend"]) == ("", "pyav")
    for path in (node.root / "bytes").glob("*/*"):
        path.unlink()
    assert decode_into_cache(uri, SPEC, str(tmp_path / "frames")) == first
    assert store.asked == [200, 304]
    assert decode_into_cache(str(VIDEOS / "base.mp4"), SPEC, str(tmp_path / "frames")) == first, "a clip is known by content"
    part = f"{uri}#t=0.5,1.5"
    cut = decode_into_cache(part, SPEC, str(tmp_path / "frames"))
    assert cut["frames_path"] != first["frames_path"]
    before = len(store.asked)
    assert decode_into_cache(part, SPEC, str(tmp_path / "frames")) == cut
    assert store.asked[before:] == [304]


def test_the_time_of_a_store_is_not_held_against_a_video(store, tmp_path, monkeypatch):
    store.delay_s = 1.5
    child = ChildDecoder(SPEC, str(tmp_path / "frames"), deadline_s=PATIENT_S)
    try:
        assert child.decode(store.put("a.mp4", BASE)).reason == ""
        child.deadline_s = 1.0
        (tmp_path / "frames").rename(tmp_path / "elsewhere")
        assert child.decode(store.put("b.mp4", BASE)).reason == "", "1.5 s of fetching are not a second of decoding"
        monkeypatch.setattr(decode_child, "FETCH_S", 0.3)
        monkeypatch.setattr(decode_child, "MAX_TRIES", 2)
        with pytest.raises(DataError, match=r"was not fetched within 0.3 s \(2 attempts\)"):
            child.decode(store.put("c.mp4", BASE + b"\0"))
    finally:
        child.close()


def test_what_stores_say(store, node):
    with pytest.raises(VideoError, match="no file at http") as caught:
        read(node, store.put("a.mp4", b"x") + "?none")
    assert caught.value.reason == "missing"
    assert not is_node_fault(caught.value)
    with pytest.raises(VideoError) as caught:
        read(node, "http://127.0.0.1:9/a.mp4")
    assert is_node_fault(caught.value)
    with pytest.raises(VideoError, match="Protocol not known") as caught:
        read(node, "htps://host/a.mp4")
    assert not is_node_fault(caught.value)


def test_spaces_and_letters_of_a_uri(store, node):
    store.bodies["/a%20b%C3%A9.mp4?x=1"] = b"one"
    assert read(node, store.put("none", b"")[:-4] + "a bé.mp4?x=1") == b"one"
    assert read(node, store.put("none", b"")[:-4] + "a%20b%C3%A9.mp4?x=1") == b"one"


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7", True),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", True),
        ("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.", True),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", False),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of 503)", True),
        ("google::cloud::Status(UNKNOWN: Permanent error, with a last message of 400)", False),
        ("Azure Error: [] Fail to get a new connection for: http://h. Could not connect to server", True),
        ("Azure Error: [ServerBusy] 503 The server is busy.", True),
        ("Azure Error: [] 400 Bad Request", False),
        ("Azure Error: [AuthenticationFailed] 403 Server failed to authenticate the request.", False),
    ],
)
def test_what_arrow_says_of_a_store(text, passing, monkeypatch):
    said = f"When reading information for key 'x' in bucket 'b': {text}"
    assert is_node_fault(OSError(said)) is passing

    class Failing:
        def open_input_file(self, key):
            raise pyarrow.lib.ArrowException(f"Unknown error: {said}")  # which is no `OSError`

    monkeypatch.setattr(stores, "store_of", lambda uri: (Failing(), uri))
    with pytest.raises(VideoError, match="cannot be fetched") as caught, stores.asked("gs://b/a.mp4"):
        pass
    assert is_node_fault(caught.value) is passing


def test_a_real_s3(tmp_path, monkeypatch, node):
    """moto's server: the protocol of S3, without its hardware."""
    server = pytest.importorskip("moto.server", reason="moto is in requirements/dev.lock")
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    storage.bucket_store.cache_clear()
    try:
        from pyarrow import fs

        bucket = fs.S3FileSystem(endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True)
        bucket.create_dir("videos")

        def put(body: bytes) -> None:
            with bucket.open_output_stream("videos/a b.mp4") as file:
                file.write(body)

        put(BASE)
        uri = "s3://videos/a b.mp4"
        reply = decode_into_cache(uri, SPEC, str(tmp_path / "frames"))
        assert (reply["reason"], reply["message"]) == ("", "")
        assert len(node.digest(uri)) == 64
        assert read(node, uri) == BASE
        put(b"other")
        assert node.digest(uri) == ""
        assert read(node, uri) == b"other"
        for missing in ("s3://videos/none.mp4", "s3://none/a.mp4"):
            with pytest.raises(VideoError, match="no file at") as caught:
                read(node, missing)
            assert caught.value.reason == "missing"
        assert video_url(uri, None) == f"data:video/mp4;base64,{base64.b64encode(b'other').decode()}"
    finally:
        moto.stop()
        storage.bucket_store.cache_clear()


# Evaluation


def test_the_endpoint_is_sent_what_it_cannot_read(store, tmp_path):
    uri = store.put("a.mp4?key=1", BASE)
    assert video_url(uri, str(tmp_path)) == f"data:video/mp4;base64,{base64.b64encode(BASE).decode()}"


def example(video: str) -> Example:
    return Example(id=video, video=video, question="q", answer="a")


def test_no_folder_is_opened_to_an_endpoint_by_accident(tmp_path):
    inside = [example(f"{tmp_path}/videos/{name}.mp4") for name in ("a", "deeper/b")]
    assert common_folder(inside) == f"{tmp_path}/videos"
    assert common_folder([example(f"file://{tmp_path}/videos/a.mp4"), inside[0]]) == f"{tmp_path}/videos"
    assert common_folder([]) is None
    assert common_folder([example("s3://bucket/a.mp4"), example("https://host/a.mp4")]) is None
    assert common_folder([example("/data/a.mp4"), example("/other/b.mp4")]) is None, "the root of the file system"


def test_an_evaluation_of_which_no_video_is_there_asks_nothing(tmp_path):
    """As where a mount is missing: answers are kept, and a video that is missing would stay so."""
    (tmp_path / "a.mp4").touch()
    there, gone = example(str(tmp_path / "a.mp4")), example(str(tmp_path / "b.mp4"))
    refuse_none([])
    refuse_none([there, gone])
    refuse_none([example("s3://bucket/a.mp4"), gone])
    with pytest.raises(DataError, match=r"none of the 1 videos of data\.eval exists, first .*b\.mp4; mount what holds them"):
        refuse_none([gone, gone])


# Names


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("htps://host/a.mp4", "begins with htps://, which is no store that is known"),
        ("s3:/bucket/a.mp4", "is no uri without two slashes (s3://…)"),
        ("file:/data/a.mp4", "is no uri without two slashes (file://…)"),
        ("https:///a.mp4", "names no host or bucket after https://"),
        ("s3:///a.mp4", "names no host or bucket after s3://"),
    ],
)
def test_a_mistyped_uri_is_a_sentence(uri, words):
    assert mistyped(uri).startswith(words)
    row, problems = parse_row({"id": "1", "video": uri, "question": "q", "answer": "a"})
    assert row is None
    assert [problem.field for problem in problems] == ["video"]
    assert words in str(problems[0])


def test_what_is_written_well_is_not_mistyped():
    for uri in (
        "a.mp4",
        "C:\\videos\\a.mp4",
        "a: b.mp4",
        "s3.mp4",
        "file:///a.mp4",
        "s3://b/a.mp4",
        "gs://b/a",
        "hf://datasets/x/a.mp4",
    ):
        assert mistyped(uri) == "", uri


def test_a_local_file_is_read_where_it_is(node):
    path = str(VIDEOS / "base.mp4")
    with local_file(path) as found, local_file(pathlib.Path(path).as_uri()) as same:
        assert found == same == (path, "")
    assert not node.root.exists()


def test_remote_and_local_names():
    assert visuals.has_remote("s3://b/a.mp4#t=1,2")
    assert not visuals.has_remote("/a.mp4")
    assert visuals.known_hash("/a.mp4") == ""
    assert kept.DEFAULT_GIB == 50
