"""The live page: what it reads of a run while it grows, and that it only answers this machine, and only reads."""

import json
import pathlib
import re
import threading
import urllib.error
import urllib.request

import pytest
from test_report import ATTACK, make_run

from pipelines.cli import main
from pipelines.stages.base import BEGUN
from pipelines.watched import Watched
from pipelines.watching import folder_of, serve
from vidalign.errors import ClusterError
from vidalign.files import RunFolder, write_json, write_text_atomic


def tree(root: pathlib.Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}


@pytest.fixture
def run(tmp_path):
    made = make_run(tmp_path / "run", rounds=2)
    for index in (0, 1):
        for name in ("responses", "pairs", "train"):
            write_json(made.stage(name, index) / BEGUN, {})
            if index == 0:
                write_json(made.stage(name, index) / "manifest.json", {"dropped": {}})
    parts = made.stage("responses", 1) / "parts"
    rows = [
        {"video": "/v/b.mp4", "reason": "truncated", "message": "2 of 8", "frames_path": ""},
        {"video": "a", "reason": ""},
    ]
    write_json(parts / "000000.json", {"decoded": rows})
    write_text_atomic(parts / "000001.json", '{"decoded": [')  # in the middle of being written
    write_json(made.stage("train", 1) / "progress.json", {"phase": "train", "step": 3, "num_steps": 60})
    write_text_atomic(made.stage("eval", 1) / "base.jsonl", '{"settings": 1}\n{"row": 1}\n{"row')
    write_json(made.stage("eval", 1) / BEGUN, {})
    return made


def test_what_is_shown_of_a_run_that_goes_on(run):
    before = tree(run.root)
    state = Watched(run).state()
    assert tree(run.root) == before, "it only reads"
    assert [(row["round"], row["name"], row["state"]) for row in state["stages"]] == [
        *[(0, name, "finished") for name in ("rollout", "pairs", "train")],
        *[(1, name, "begun") for name in ("rollout", "pairs", "train", "evaluate")],
    ]
    done = {row["name"]: row["done"] for row in state["stages"] if row["round"] == 1}
    assert (done["rollout"], done["train"], done["evaluate"]) == ("2 chunks", "train 3 of 60", "base 1 answers")
    (run.stage("eval", 1) / "base.jsonl").unlink()
    assert Watched(run).state()["stages"][-1]["done"] == "the endpoint starts"
    assert [curve["round"] for curve in state["curves"]] == [0, 1]
    assert [row["step"] for row in state["curves"][0]["rows"]] == list(range(0, 60, 5))
    assert len(state["pairs"]) == 12
    assert state["pairs"][0]["question"].startswith(ATTACK)
    assert {(row["uri"], row["reason"]) for row in state["quarantine"]} >= {("/v/b.mp4", "truncated")}
    assert state["driver"] == {"command": "", "is_alive": False}
    json.dumps(state, allow_nan=False)


def test_it_follows_the_run(run):
    watched = Watched(run)
    assert len(watched.state()["curves"][1]["rows"]) == 12
    with (run.stage("train", 1) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": 0.5, "margin": NaN}\n{"step": 65, "lo')
    rows = watched.state()["curves"][1]["rows"]
    assert (len(rows), rows[-1]) == (13, {"step": 60, "loss": 0.5})
    write_json(
        run.stage("responses", 1) / "parts" / "000001.json",
        {"decoded": [{"video": "/v/c.mp4", "reason": "empty", "message": ""}]},
    )
    assert "/v/c.mp4" in {row["uri"] for row in watched.state()["quarantine"]}
    (run.stage("pairs", 1) / "pairs.parquet").write_bytes(b"torn")
    assert len(watched.state()["pairs"]) == 12, "what it held before"


def test_a_folder_in_which_nothing_has_begun(tmp_path):
    state = Watched(RunFolder.at(str(tmp_path))).state()
    assert (state["stages"], state["pairs"], state["quarantine"], state["curves"]) == ([], [], [], [])


@pytest.fixture
def page(run):
    with serve(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(server, path, *, host=None, method="GET"):
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", method=method)
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_the_page_is_of_this_machine_alone_and_only_reads(page, run):
    assert page.server_address[0] == "127.0.0.1"
    before = tree(run.root)
    status, headers, body = asked(page, "/")
    assert status == 200
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", headers["Content-Security-Policy"])[1]
    assert f'<script nonce="{nonce}">' in body.decode()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"https?://(?!www\.w3\.org)", body.decode()), "it fetches nothing from elsewhere"
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", body.decode())
    status, _, body = asked(page, "/state.json")
    assert json.loads(body)["name"] == "run"
    assert asked(page, "/", host="evil.example:80")[0] == 403
    assert asked(page, "/", host=f"localhost:{page.server_port}")[0] == 200
    for path in ("/../../etc/passwd", "/rounds", "//x", "/%2e%2e/summary.json"):
        assert asked(page, path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert asked(page, "/state.json", method=method)[0] == 501
    assert asked(page, "/", method="HEAD")[2] == b""
    assert tree(run.root) == before


def test_a_port_that_is_taken_and_a_run_that_is_not_there_are_sentences(page, run, tmp_path, capsys):
    with pytest.raises(ClusterError, match=rf"cannot listen on port {page.server_port} of 127.0.0.1"):
        serve(run, page.server_port)
    with pytest.raises(ClusterError, match="cannot listen on port 99999"):
        serve(run, 99999)
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert "there is no run folder" in capsys.readouterr().err
    config = tmp_path / "a.yaml"
    config.write_text(f"run_dir: {run.root}\nmodel: {{path: m}}\ndata: {{train: t}}\n")
    assert folder_of(str(config)) == run == folder_of(str(run.root))


def test_a_browser_that_leaves_is_no_traceback_on_the_console(page, capfd):
    for error, says in ((BrokenPipeError(), ""), (ConnectionResetError(), ""), (ValueError("of ours"), "of ours")):
        try:
            raise error
        except (OSError, ValueError):
            page.handle_error(None, ("127.0.0.1", 1))
        written = capfd.readouterr().err
        assert says in written
        assert bool(written) == bool(says)
