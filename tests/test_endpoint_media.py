"""How an endpoint reads what its clients send: in children that can be killed, and only from where it may."""

import asyncio
import base64
import dataclasses
import http.server
import os
import re
import shutil
import threading
import time

import numpy as np
import PIL.Image
import pytest
from conftest import write_video
from json_server import Quiet

from serving import decoders as module
from serving import fetching
from serving.decoders import Decoders, MediaOptions, give_up
from serving.reading import Reader
from vidalign.config.serving import MediaConfig
from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video import decode_child, decoding

SPEC = FrameSpec(num_frames=4, height=28, width=28)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def make_pool(folder, **options):
    return Decoders(MediaOptions(media=MediaConfig(cache_dir=str(folder)), num_decoders=2, **options))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Shared, because a child takes a second to start."""
    made = make_pool(tmp_path_factory.mktemp("cache"))
    yield made
    for decoder in [each for idle in made._idle.values() for each in idle]:
        decoder.close()


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", [np.full((32, 48, 3), 20 * shade, np.uint8) for shade in range(10)])


def test_frames_are_those_of_training_and_decoded_once(pool, clip, monkeypatch):
    data = clip.read_bytes()

    async def ask():
        first, key = await pool.clip_of_bytes(data, lambda paths: str(paths[0]), SPEC)
        np.testing.assert_array_equal(first.frames, decoding.decode(clip, SPEC).frames)
        monkeypatch.setattr(decode_child.ChildDecoder, "decode", None)  # not called again
        again, same = await pool.clip_of_bytes(data, lambda paths: str(paths[0]), SPEC)
        np.testing.assert_array_equal(again.frames, first.frames)
        assert same == key
        monkeypatch.undo()
        _, other = await pool.clip_of(str(clip), FrameSpec(num_frames=3, height=28, width=28))
        assert other != key, "the same video in another sampling is known by another name"
        assert not list(pool._root.glob("incoming-*"))

    run(ask())


def test_a_cache_that_something_removed_is_made_anew(pool, clip):
    """As what cleans up temporary folders does where an endpoint runs for weeks."""
    shutil.rmtree(pool._root)
    found, _ = run(pool.clip_of_bytes(clip.read_bytes(), lambda paths: str(paths[0]), SPEC))
    np.testing.assert_array_equal(found.frames, decoding.decode(clip, SPEC).frames)
    assert pool._root.stat().st_mode & 0o777 == 0o700


def test_a_broken_video_says_why(pool, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4") as caught:
        run(pool.clip_of(str(tmp_path / "text.mp4"), SPEC))
    assert caught.value.reason == "not_a_video"


@pytest.fixture(scope="module")
def reader(pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    root = folder / "root"
    write_video(root / "odd #1 50%?+%41.mp4", [np.full((32, 48, 3), 20 * shade, np.uint8) for shade in range(10)], fps=5)
    (root / "frames").mkdir()
    for number in range(6):
        PIL.Image.fromarray(np.full((28, 28, 3), 40 * number, np.uint8)).save(root / "frames" / f"{number}.png")
    (folder / "secret.mp4").write_bytes(b"secret")
    (root / "link.mp4").symlink_to(folder / "secret.mp4")
    (root / "cut.mp4").write_bytes((root / "odd #1 50%?+%41.mp4").read_bytes()[:900])
    return Reader(decoders=pool, config=MediaConfig(), root=root.resolve())


def _shown(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_a_file_url_may_be_written_as_it_is_or_with_escapes(reader):
    odd = reader.root / "odd #1 50%?+%41.mp4"
    expected = decoding.decode(odd, SPEC).frames
    for url in (
        f"file://{odd}",
        odd.as_uri(),
        f"file://localhost{odd}",
        f"file://LocalHost{odd.as_uri()[7:]}",
        f"FILE:{odd}",
    ):
        np.testing.assert_array_equal(run(reader.clip_of(url, SPEC))[0].frames, expected, err_msg=url)
    part = run(reader.clip_of(f"file://{odd}#t=1,2", SPEC))[0].frames
    np.testing.assert_array_equal(part, decoding.decode(odd, SPEC, start_s=1.0, end_s=2.0).frames)


def test_videos_parts_frames_and_images_are_known_by_what_they_show(reader):
    odd, frames = (reader.root / "odd #1 50%?+%41.mp4").read_bytes(), sorted((reader.root / "frames").iterdir())
    listed = _shown(b"", "video/jpeg") + ",".join(base64.b64encode(path.read_bytes()).decode() for path in frames)
    keys = {}
    for name, url, image in (
        ("whole", _shown(odd), False),
        ("part", _shown(odd) + "#t=1,2", False),
        ("another part", _shown(odd) + "#t=0,1", False),
        ("folder", f"file://{reader.root}/frames#fps=2", False),
        ("list", f"{listed}#fps=2", False),
        ("faster", f"{listed}#fps=3", False),
        ("image", _shown(frames[3].read_bytes(), "image/png"), True),
    ):
        clip, keys[name] = run(reader.clip_of(url, SPEC, image=image))
        assert clip.frames.shape == (1 if image else 4, 28, 28, 3), name
    assert keys["folder"] == keys["list"]
    assert len(set(keys.values())) == len(keys) - 1
    rated = dataclasses.replace(reader, config=MediaConfig(frames_fps=2))
    assert run(rated.clip_of(listed, SPEC))[1] == keys["list"], "the rate that the endpoint gives frames without one"
    assert run(rated.clip_of(_shown(odd), SPEC))[1] == keys["whole"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file://{root}/../secret.mp4", "must be below the endpoint's media root"),
        ("file://{root}/%2e%2e/secret.mp4", "must be below the endpoint's media root"),
        ("file://{root}/link.mp4", "must be below the endpoint's media root"),
        ("file://{root}", "must be below the endpoint's media root"),
        ("file:///etc/passwd", "must be below the endpoint's media root"),
        ("file://etc/passwd", "must be below the endpoint's media root"),
        ("file://{root}/a%00b", "must be below the endpoint's media root"),
        ("file://{root}/" + "x" * 5000, "must be below the endpoint's media root"),
        ("file:relative.mp4", "must be below the endpoint's media root"),
        ("file://{root}/gone.mp4", "no file at file://{root}/gone.mp4"),
        ("file://{root}/frames", "file://{root}/frames is not a file"),
        ("file://{root}/cut.mp4#fps=2", "is not a folder"),
        ("ftp://example.org/a.mp4", "must begin with data:, file: or https:, got 'ftp://example.org/a.mp4'"),
        ("clip.mp4", "must begin with data:, file: or https:"),
        ("", "must begin with data:, file: or https:"),
        ("data:video/mp4,AAAA", "must be base64"),
        ("data:video/mp4;base64", "must be base64"),
        ("data:video/mp4;base64,!", "is not base64"),
        ("data:video/mp4;base64,AAAA#fps=2", "a list of frames (#fps=…) is data:video/jpeg"),
        ("data:video/jpeg;base64,AAAA,AAAA", "frames need their rate"),
        ("https://example.org/frames#fps=2", "frames (#fps=…) are a folder"),
        ("https://example.org/a.mp4", "does not fetch over http(s)"),
    ],
)
def test_urls_that_are_not_read(reader, url, says):
    url, says = url.replace("{root}", str(reader.root)), says.replace("{root}", str(reader.root))
    with pytest.raises(ValueError, match=re.escape(says)):
        run(reader.clip_of(url, SPEC))
    assert not list(reader.decoders._root.glob("incoming-*"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda root: f"file://{root}/cut.mp4", "truncated"),
        (lambda root: f"file://{root}/cut.mp4#t=0,1", "truncated"),
        (lambda root: f"file:{root}/cut.mp4", "truncated"),
        (lambda root: _shown((root / "cut.mp4").read_bytes()), "truncated"),
        (lambda root: _shown((root / "cut.mp4").read_bytes()) + "#t=0,1", "truncated"),
        (lambda root: _shown(b"text"), "not_a_video"),
        (lambda root: _shown(b""), "zero_byte"),
        (lambda root: _shown(b"x", "video/jpeg") + ",eA==#fps=2", "not_an_image"),
    ],
)
def test_what_is_wrong_with_a_video_is_said_without_this_machines_paths(reader, make, reason):
    url = make(reader.root)
    with pytest.raises(VideoError) as caught:
        run(reader.clip_of(url, SPEC))
    assert caught.value.reason == reason
    assert "incoming-" not in caught.value.message
    assert (str(reader.root) in caught.value.message) == url.startswith("file:"), caught.value.message
    assert caught.value.message.count(str(reader.root)) <= 1, "what the client sent, as it was sent"
    assert "file://file:" not in caught.value.message


def _slow(monkeypatch, tmp_path):
    """Make children that never answer, of the process that decodes."""
    script = tmp_path / "slow.py"
    script.write_text("import sys, time\nsys.stdout.write('ready\\n')\nsys.stdout.flush()\ntime.sleep(600)\n")
    monkeypatch.setattr(decode_child.sys, "executable", "/bin/sh")
    real = decode_child.subprocess.Popen
    started = []

    def popen(command, **options):
        process = real(["python3", str(script)], **options)
        started.append(process)
        return process

    monkeypatch.setattr(decode_child.subprocess, "Popen", popen)
    return started


def test_a_client_that_leaves_takes_its_child_with_it(clip, monkeypatch, tmp_path):
    pool, started = make_pool(tmp_path / "cache"), _slow(monkeypatch, tmp_path)

    async def ask():
        asking = asyncio.create_task(pool.clip_of(str(clip), SPEC))
        while not started:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while started[0].poll() is None:
            await asyncio.sleep(0.01)
        assert pool._places.running == 0

    run(ask())


def test_no_client_has_all_children(tmp_path):
    """Two places: one client's second video waits, and another's does not."""
    entered, pool = [], make_pool(tmp_path)

    async def hold(name, seconds):
        module.client.set(name)
        async with pool._places.place(name, 1):
            entered.append(name)
            await asyncio.sleep(seconds)

    async def ask():
        tasks = [asyncio.create_task(hold("greedy", 0.3)) for _ in range(3)]
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(hold("other", 0)))
        await asyncio.gather(*tasks)
        assert entered == ["greedy", "other", "greedy", "greedy"]

    run(ask())


def test_a_deadline_ends_a_video_that_takes_too_long(clip, monkeypatch, tmp_path):
    _slow(monkeypatch, tmp_path)
    pool = make_pool(tmp_path / "cache", deadline_s=0.2)
    started_at = time.monotonic()
    with pytest.raises(VideoError, match="not decoded within") as caught:
        run(pool.clip_of(str(clip), SPEC))
    assert caught.value.reason == "timeout"
    assert time.monotonic() - started_at < 300, "its child would sleep for 600 s"


def test_what_was_not_used_for_the_longest_time_is_given_up(tmp_path):
    (tmp_path / "ab").mkdir()
    for age, name in enumerate(["new", "old", "older"]):
        path = tmp_path / "ab" / f"{name}.safetensors"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    give_up(tmp_path, 250)
    assert sorted(path.stem for path in tmp_path.glob("*/*")) == ["new", "old"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::7f00:1", False),  # an IPv4 address in one of IPv6, for a gateway
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::808:808", False),  # a gateway of the own network
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("fec0::1", False),
        ("5f00::1", False),
        ("192.0.0.8", False),
        ("192.88.99.1", False),
        ("168.63.129.16", False),  # Azure's, of the machine itself
    ],
)
def test_addresses_of_the_internet(address, public):
    assert fetching.is_public(address) is public


@pytest.fixture
def site():
    """A web server: /clip, /large, /slow, /away (a redirect to another host) and /back (one to /clip)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            port = self.server.server_port
            away = {
                "/away": "http://other.example/x",
                "/back": "/clip",
                "/inside": f"http://127.0.0.1:{port}/clip",
                "/round": "/round",
            }
            if self.path in away:
                self.send_response(302)
                self.send_header("Location", away[self.path])
                self.end_headers()
                return
            if self.path == "/slow":
                time.sleep(2)
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()
            try:
                self.wfile.write(bytes(2 * 2**20 if self.path == "/large" else 100))
            except OSError:
                return

        def log_message(self, format, *args):
            """Keep the test's output clean."""

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("url", "private", "says"),
    [
        ("http://localhost:{port}/clip", True, None),
        ("http://localhost:{port}/back", True, None),
        ("http://localhost:{port}/clip", False, "the file cannot be fetched from localhost"),
        ("http://localhost:1/clip", True, "the file cannot be fetched from localhost"),
        ("http://localhost:{port}/away", True, "localhost redirects to a place that is not fetched from"),
        ("http://localhost:{port}/inside", True, "localhost redirects to a place that is not fetched from"),
        ("http://localhost:{port}/round", True, "redirects more than 3 times"),
        ("http://localhost:{port}/large", True, "larger than 1,048,576 bytes"),
        ("http://localhost:{port}/slow", True, "did not send the file within 0.5 s"),
        ("http://localhost:{port}/gone", True, "localhost answers 404"),
        (
            "http://127.0.0.1:{port}/clip",
            True,
            "not one of the hosts that are fetched from (serve.media.domains), got '127.0.0.1'",
        ),
        ("http://user:secret@localhost:{port}/clip", True, "not one of the hosts that are fetched from"),
        ("http://localhost.evil.example/clip", True, "got 'localhost.evil.example'"),
        ("ftp://localhost/clip", True, "not one of the hosts that are fetched from"),
        ("http://[::1/clip", True, "is not a url"),
    ],
)
def test_what_is_fetched(site, tmp_path, url, private, says):
    config = MediaConfig(domains=("localhost",), private_addresses=private, fetch_s=0.5 if "slow" in url else 20, max_mb=1)
    path = tmp_path / "got"
    if says is None:
        run(fetching.fetch(url.format(port=site), config, path))
        assert path.stat().st_size == 100
        return
    with pytest.raises(ValueError, match=r".") as caught:
        run(fetching.fetch(url.format(port=site), config, path))
    assert says in str(caught.value)
    assert str(site) not in str(caught.value), "nothing of ports"
    assert not re.search(r"other\.example|from localhost, ", str(caught.value)), "nor of where else it goes, or might"


def test_without_listed_domains_nothing_is_fetched(tmp_path):
    with pytest.raises(ValueError, match=r"does not fetch over http\(s\)"):
        run(fetching.fetch("http://example.org/x", MediaConfig(), tmp_path / "x"))
