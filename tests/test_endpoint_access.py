"""Who may ask an endpoint, what its log and its numbers say, and what listens on its machine."""

import asyncio
import contextlib
import json
import re
import stat
import subprocess
import sys
import time

import psutil
import pytest
from contract_table import CHAT, Case, chat, check_reply
from endpoint_stub import MODES, StubEngine, application, client, haproxy_config

from pipelines import cli
from serving.access import add_key, hash_of, read_keys
from serving.haproxy import closed, write_script
from serving.replies import DIED, RESTARTING
from vidalign.config.loading import parse_section
from vidalign.config.run import ServeConfig
from vidalign.errors import ConfigError

both = pytest.mark.parametrize("mode", MODES)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.txt"
    made = {name: add_key(path, name) for name in ("alice", "bob")}
    return path, made


def test_a_file_of_keys_holds_no_keys(keys):
    path, made = keys
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(key not in text and hash_of(key) in text for key in made.values())
    assert [key.name for key in read_keys(path).values()] == ["alice", "bob"]
    with pytest.raises(ConfigError, match="has a key alice already"):
        add_key(path, "alice")
    with pytest.raises(ConfigError, match="a key's name is letters"):
        add_key(path, "../x")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice", "line 1 must be a name and a SHA-256"),
        (f"alice {'g' * 64}", "line 1 must be a name and a SHA-256"),
        (f"alice {'a' * 64} max=3", r"max=3 is not one of requests_per_minute=NUMBER, max_running=NUMBER"),
        (f"alice {'a' * 64} max_running=0", "max_running=0 is not one of"),
        (f"alice {'a' * 64}\nalice {'b' * 64}", "line 2: alice is there already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, says):
    (tmp_path / "keys").write_text(line)
    with pytest.raises(ConfigError, match=says):
        read_keys(tmp_path / "keys")
    with pytest.raises(ConfigError, match="`vidalign keys add NAME` makes one"):
        read_keys(tmp_path / "none")


@both
def test_without_a_key_nothing_is_answered_but_what_is_open(mode, keys):
    path, made = keys

    async def ask():
        engine = StubEngine()
        app = application(mode, engine, {"access": {"keys_file": str(path)}}, own_hash=hash_of("own"))
        async with client(app) as asking:
            for open_path in ("/health", "/ready"):
                assert (await asking.get(open_path)).status_code == 200
            for header in (None, "Bearer wrong", f"Basic {made['alice']}", "Bearer "):
                headers = {"authorization": header} if header else {}
                for method, url in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json")):
                    reply = await asking.request(method, url, headers=headers)
                    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), url
            assert not engine.asked
            for key in (*made.values(), "own"):
                headers = {"authorization": f"Bearer {key}"}
                assert (await asking.post(CHAT, json=chat(), headers=headers)).status_code == 200
                assert (await asking.get("/v1/models", headers=headers)).status_code == 200
            assert all(b"authorization" not in dict(scope["headers"]) for scope in engine.scopes)

    run(ask())


def test_a_key_that_was_taken_out_or_put_in_counts_at_once(keys, monkeypatch):
    path, made = keys
    monkeypatch.setattr("serving.access.LOOK_AGAIN_S", 0.0)

    async def ask():
        app = application(MODES[0], StubEngine(), {"access": {"keys_file": str(path)}})
        async with client(app) as asking:

            async def status(key):
                return (await asking.post(CHAT, json=chat(), headers={"authorization": f"Bearer {key}"})).status_code

            path.write_text(f"bob {hash_of(made['bob'])}\n")
            assert (await status(made["alice"]), await status(made["bob"])) == (401, 200)
            carol = add_key(path, "carol")
            assert await status(carol) == 200
            path.write_text("this is wrong")
            assert await status(carol) == 200, "a file that has become wrong changes nothing"

    run(ask())


def test_limits_of_each_key(keys):
    path, made = keys
    path.write_text(path.read_text() + f"dora {hash_of('d')} requests_per_minute=1\n")

    async def ask():
        engine = StubEngine()
        engine.delay_s = 0.05
        serve = {"access": {"keys_file": str(path), "max_running": 2, "requests_per_minute": 5}}
        async with client(application(MODES[0], engine, serve)) as asking:

            async def statuses(key, number):
                headers = {"authorization": f"Bearer {key}"}
                return sorted(
                    r.status_code
                    for r in await asyncio.gather(*(asking.post(CHAT, json=chat(), headers=headers) for _ in range(number)))
                )

            assert await statuses(made["alice"], 4) == [200, 200, 429, 429]
            assert await statuses(made["bob"], 2) == [200, 200], "another's limit is its own"
            assert await statuses("d", 1) == [200]
            reply = await asking.post(CHAT, json=chat(), headers={"authorization": "Bearer d"})
            assert "dora has asked 1 times within a minute" in reply.json()["error"]["message"]
            assert 50 <= int(reply.headers["retry-after"]) <= 60

    run(ask())


def test_web_pages_may_ask_only_where_they_are_listed():
    page = {"origin": "https://app.example", "access-control-request-method": "POST"}

    async def ask():
        async with client(application(MODES[0], StubEngine())) as asking:
            assert "access-control-allow-origin" not in (await asking.get("/health", headers=page)).headers
            assert (await asking.options(CHAT, headers=page)).status_code == 405
        serve = {"access": {"cors_origins": ["https://app.example"]}}
        async with client(application(MODES[0], StubEngine(), serve)) as asking:
            allowed = await asking.options(CHAT, headers=page)
            assert allowed.headers["access-control-allow-origin"] == "https://app.example"
            assert "access-control-allow-credentials" not in allowed.headers
            openais = {"access-control-request-headers": "authorization,content-type,x-stainless-os,x-stainless-retry-count"}
            assert (await asking.options(CHAT, headers=page | openais)).status_code == 200, "OpenAI's own script sends these"
            other = await asking.options(CHAT, headers={**page, "origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers
            check_reply(Case("another page", 400, "scripts of 'https://evil.example' may not ask this endpoint"), other)

    run(ask())


@both
def test_each_request_has_a_line_in_the_log_and_counts(mode, keys, tmp_path):
    path, made = keys

    async def ask():
        serve = {"access": {"keys_file": str(path), "open_paths": ["/metrics"]}, "access_log": str(tmp_path / "log")}
        async with client(application(mode, StubEngine(), serve)) as asking:
            headers = {"authorization": f"Bearer {made['alice']}"}
            good = await asking.post(CHAT, json=chat("a secret question"), headers=headers)
            bad = await asking.post(CHAT, json=chat(n=0), headers=headers)
            return good, bad, (await asking.get("/metrics")).text

    good, bad, metrics = run(ask())
    [file] = (tmp_path / "log").glob("access-*.jsonl")
    first, second, _ = [json.loads(line) for line in file.read_text().splitlines()]
    assert (first["id"], first["key"], first["model"], first["policy_version"], first["status"]) == (
        good.headers["x-request-id"],
        "alice",
        "base",
        "v-base",
        200,
    )
    assert (first["prompt_tokens"], first["completion_tokens"]) == (7, 3)
    assert 0 <= first["wait_s"] <= first["first_s"] <= first["total_s"]
    assert (second["id"], second["status"], second["why"]) == (
        bad.headers["x-request-id"],
        400,
        bad.json()["error"]["message"].partition(", got")[0],  # what the client sent may be a part of its prompt
    )
    assert "secret" not in file.read_text()
    assert made["alice"] not in file.read_text()
    for line in (
        'vidalign_requests_total{model="base",path="/v1/chat/completions",status="200"} 1.0',
        'vidalign_tokens_total{kind="completion",model="base"} 3.0',
        'vidalign_policy_info{model="base",policy_version="v-base"} 1.0',
        'vidalign_running_sequences{model="base"} 0.0',
    ):
        assert line in metrics, line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"limits": {"max_sequences": 4, "max_sequences_per_request": 8}},
            "max_sequences_per_request=8 is above max_sequences=4",
        ),
        ({"limits": {"max_body_mb": 9, "max_bodies_mb": 1}}, "max_body_mb=9 is above max_bodies_mb=1"),
        ({"limits": {"max_n": 4}}, "unknown key limits.max_n"),
        ({"media": {"domains": ["https://films.example"]}}, "domains are names of hosts"),
        ({"access": {"open_paths": ["/v1/chat/completions"]}}, "open_paths may hold /health, /ready"),
        ({"access": {"cors_origins": ["app.example"]}}, "cors_origins are scheme and host"),
        ({"client_sampling": "yes"}, "client_sampling='yes'"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        parse_section(ServeConfig, options)
    assert "\n" not in str(caught.value)


def test_keys_are_added_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "keys.txt"
    assert cli.main(["keys", "add", "alice", "--file", str(path)]) == 0
    [key] = read_keys(path).values()
    assert hash_of(capsys.readouterr().out.strip()) == key.sha256
    assert cli.main(["keys", "add", "alice", "--file", str(path)]) == 2
    assert "has a key alice already" in capsys.readouterr().err
    assert cli.main(["serve", "examples/shapes/model", f"serve.access.keys_file={tmp_path}/none"]) == 2
    assert f"serve.access.keys_file={tmp_path}/none cannot be read" in capsys.readouterr().err


SETTINGS = {"binary": "/bin/echo", "header_s": 10, "idle_s": 30, "max_connections": 99}


@pytest.fixture(scope="module")
def serves_config():
    return haproxy_config(8000, 30000)


def test_what_serve_leaves_open_of_haproxy_is_closed(serves_config):
    text = closed(serves_config, SETTINGS, "/tmp/x")
    binds = re.findall(r"bind (\S+)", text)
    assert binds
    assert all(bind.startswith("127.0.0.1:") for bind in binds)
    assert "mode 666" not in text
    assert "stats socket /tmp/x/admin.sock mode 600 level admin" in text
    assert "timeout http-request 10s" in text
    assert re.findall(r"timeout client .*", text) == ["timeout client 30s"]
    assert "maxconn 99" in text
    assert "option abortonclose" in text
    assert "splice-request" not in text
    assert text.count("http-request del-header x-request-id") == 1
    assert "backend default_backend\n    http-request deny deny_status 503\n" in text
    assert "errorfile 502 /tmp/x/died.http" in text
    assert "errorfile 503 /tmp/x/down.http" in text
    assert "errorfile 400 /tmp/x/part.http" in text
    assert "server f 127.0.0.1:1 check backup" in text
    routes = text.index("deny deny_status 404 if { path -i /-/routes }")
    assert routes < text.index("if routes"), "what Serve runs is nobody's business"
    with pytest.raises(ValueError, match="is this another Ray"):
        closed("global\n", SETTINGS, "x")


def test_the_command_that_serve_starts_becomes_haproxy(serves_config, tmp_path):
    (tmp_path / "haproxy.cfg").write_text(serves_config)
    script = write_script(str(tmp_path / "folder with 'quotes'"), SETTINGS)
    done = subprocess.run(
        [script, "-db", "-f", str(tmp_path / "haproxy.cfg"), "-dR"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"-db -f {tmp_path}/haproxy.cfg -dR\n"
    assert "mode 600" in (tmp_path / "haproxy.cfg").read_text()
    for name, code in (("down.http", RESTARTING), ("died.http", DIED), ("part.http", 400)):
        head, _, body = (tmp_path / name).read_bytes().decode().partition("\r\n\r\n")
        assert f"Content-Length: {len(body)}" in head
        assert head.startswith("HTTP/1.1 400 ") == (code == 400) != ("Retry-After" in head)
        assert json.loads(body)["error"]["code"] == code


def test_haproxy_ends_with_the_process_that_started_it(tmp_path):
    """A driver that is killed leaves nobody on the endpoint's port."""
    script = write_script(str(tmp_path / "f"), SETTINGS | {"binary": "/bin/sleep"})
    starts = f"import os, subprocess; print(subprocess.Popen([{script!r}, '60']).pid, flush=True); os.read(0, 1)"
    manager = subprocess.Popen([sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert manager.stdout is not None
    haproxy = psutil.Process(int(manager.stdout.readline()))
    while haproxy.name() != "sleep":
        assert manager.poll() is None
        time.sleep(0.02)
    manager.kill()
    manager.wait()
    for stream in (manager.stdin, manager.stdout):
        assert stream is not None
        stream.close()
    psutil.wait_procs([haproxy], timeout=10)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert haproxy.status() == psutil.STATUS_ZOMBIE
