"""Models and data in an object store: moto's server, with a 503 on every tenth request."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import free_port
from store_server import behind, environment, store_server

from pipelines import cli
from pipelines.check import check
from vidalign import azure, storage
from vidalign.config.run import RunConfig
from vidalign.data.reading import read_rows
from vidalign.errors import ConfigError, DataError, ModelError
from vidalign.files import RunFolder, write_json
from vidalign.mirror import fetched
from vidalign.model.checkpoint import policy_version
from vidalign.model.folder import model_folder, stage_model
from vidalign.storage import is_uri, staged
from vidalign.video.stores import asked


@pytest.fixture(scope="module")
def server():
    with store_server() as found:
        yield found


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """A function that puts bytes or a folder into the bucket "bkt", and the node's own folder in the environment."""
    for name, value in {**environment(server), "VIDALIGN_STAGED": str(tmp_path / "staged")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "PAUSE_S", 0.01)
    storage.bucket_store.cache_clear()
    store = behind(server)

    def put(key: str, what: bytes | pathlib.Path) -> str:
        if isinstance(what, pathlib.Path) and what.is_dir():
            for path in what.iterdir():
                put(f"{key}/{path.name}", path)
        else:
            with store.open_output_stream(f"bkt/{key}") as file:
                file.write(what if isinstance(what, bytes) else what.read_bytes())
        return f"s3://bkt/{key}"

    yield put
    storage.bucket_store.cache_clear()


def test_a_model_in_a_store_is_the_model(bucket, server, model_path):
    uri = bucket("models/tiny", pathlib.Path(model_path))
    folder = model_folder(uri)
    assert folder.name == "tiny"
    assert policy_version(uri).version == policy_version(model_path).version
    assert policy_version(uri).path == str(folder), "every process and node has it at the same path"
    light = model_folder(uri, weights=False)
    assert not list(light.glob("*.safetensors"))
    assert (light / "config.json").is_file()
    assert server[1].refused, "no request was refused"


def test_a_dry_run_of_what_is_in_a_store(bucket, model_path, tmp_path):
    rows = [
        {"id": str(n), "video": f"videos/{n}.mp4", "question": "Which shape moves?", "answer": "a circle"} for n in range(3)
    ]
    config = RunConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": bucket("dry/tiny", pathlib.Path(model_path)), "dtype": "float32", "max_model_len": 512},
            "data": {"train": bucket("dry/train.jsonl", "\n".join(map(json.dumps, rows)).encode())},
            "video": {"num_frames": 8, "height": 56, "width": 56},
        }
    )
    report = check(config, ("rollout", "train"), ask_vllm=False)
    assert "3 examples on 3 videos (s3://bkt/dry/train.jsonl)" in report.data[0]
    assert "Qwen2_5_VL" in report.model[0]


def test_a_node_stages_what_the_driver_did(bucket, model_path, tmp_path, monkeypatch):
    uri = bucket("models/node", pathlib.Path(model_path))
    folder = str(model_folder(uri))
    shutil.rmtree(folder)
    shutil.rmtree(pathlib.Path(folder).parent)
    stage_model(uri, folder)
    assert policy_version(folder).version == policy_version(model_path).version
    stage_model(uri, str(tmp_path))  # a later round's policy, which is in the run's folder
    monkeypatch.setenv("VIDALIGN_STAGED", str(tmp_path / "elsewhere"))
    shutil.rmtree(pathlib.Path(folder).parent)
    with pytest.raises(ModelError, match="differ in VIDALIGN_STAGED"):
        stage_model(uri, folder)


def test_an_object_that_changed_is_fetched_anew_and_nothing_else_is(bucket, server):
    uri = bucket("data/x.bin", b"first")
    path = staged("data.train", uri)
    assert path.read_bytes() == b"first"
    path.write_bytes(b"touched")
    assert staged("data.train", uri).read_bytes() == b"touched", "it was fetched again"
    bucket("data/x.bin", b"second, longer")
    assert staged("data.train", uri).read_bytes() == b"second, longer"


def test_an_object_that_was_replaced_within_a_second_by_as_many_bytes_is_fetched_anew(bucket):
    """Stores tell times in seconds."""
    uri = bucket("same/x.bin", b"first")
    folder = uri.rpartition("/")[0]
    assert staged("data.train", uri).read_bytes() == (staged("data.train", folder) / "x.bin").read_bytes() == b"first"
    bucket("same/x.bin", b"after")
    assert staged("data.train", uri).read_bytes() == (staged("data.train", folder) / "x.bin").read_bytes() == b"after"


def test_what_is_not_used_is_given_up_first_and_what_is_in_use_is_not(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDALIGN_STAGED_GIB", str(2500 / 2**30))
    uris = [bucket(f"files/{number}", bytes([number]) * 1000) for number in range(4)]
    code = "import sys; from vidalign.storage import staged; print(staged('k', sys.argv[1]), flush=True); sys.stdin.read()"
    using = subprocess.Popen(
        [sys.executable, "-c", code, uris[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert using.stdout is not None
    kept = pathlib.Path(using.stdout.readline().strip())
    for uri in uris[1:]:
        subprocess.run([sys.executable, "-c", code, uri], stdin=subprocess.DEVNULL, check=True, stdout=subprocess.DEVNULL)
    left = [path.read_bytes()[0] for path in (tmp_path / "staged").glob("*/*") if path.is_file() and path.stat().st_size]
    assert kept.is_file()
    assert sorted(left) == [0, 3]
    using.communicate()
    monkeypatch.setenv("VIDALIGN_STAGED_GIB", str(900 / 2**30))
    with pytest.raises(ConfigError, match=r"data\.train=s3://bkt/files/1 has .* GiB, and VIDALIGN_STAGED_GIB is"):
        staged("data.train", uris[1])


def test_processes_of_a_node_have_the_same_at_the_same_time(bucket, tmp_path):
    """The driver has the model for as long as it lives, and so have its engines and ranks."""
    uri = bucket("files/shared", b"1" * 1000)
    code = "import sys; from vidalign.storage import staged; print(staged('k', sys.argv[1]), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, uri]
    using = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    driver = staged("k", uri)
    try:
        for process in using:
            out, _ = process.communicate("", timeout=60)
            assert out.strip() == str(driver)
        shutil.rmtree(driver.parent)
        again = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60, check=True, text=True)
        assert again.stdout.strip() == str(driver), "it is fetched anew where somebody removed it, though it is in use"
        assert driver.is_file()
    finally:
        for process in using:
            process.kill()


def test_rows_in_a_store_and_their_videos(bucket):
    rows = [{"id": str(n), "video": f"videos/{n}.mp4", "question": "q?", "answer": "a"} for n in range(3)]
    uri = bucket("data/train.jsonl", "\n".join(map(json.dumps, rows)).encode())
    found = read_rows(uri)
    assert [row.example.video for row in found] == [f"s3://bkt/data/videos/{n}.mp4" for n in range(3)]
    assert found[1].where == "s3://bkt/data/train.jsonl:2"
    assert read_rows(uri, video_root="s3://other/root/")[0].example.video == "s3://other/root/videos/0.mp4"
    assert read_rows(uri, video_root="/mnt/videos")[0].example.video == "/mnt/videos/videos/0.mp4"
    broken = bucket("data/broken.jsonl", b'{"id": "a"}')
    with pytest.raises(DataError, match=r"^s3://bkt/data/broken\.jsonl:1: "):
        read_rows(broken)


def test_local_rows_of_videos_in_a_store(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"id": "a", "video": "a.mp4", "question": "q?", "answer": "a"}))
    assert read_rows(path, video_root="s3://bkt/videos")[0].example.video == "s3://bkt/videos/a.mp4"


MISTYPED = [
    ("s3:/bkt/x", "is no uri without two slashes; write s3://bucket/…"),
    ("s3://", "names no bucket"),
    ("adl://b/x", "begins with adl:, which is not read here"),
    ("az://b/x", "a uri of Azure needs an account; set AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING"),
    ("s4://b/x", "begins with s4:, which is not read here"),
]
ABSENT = [("s3://bkt/nothing/here", "there is nothing at this uri"), ("s3://nobucket/x", "s3://nobucket/x")]


@pytest.mark.parametrize(
    ("key", "uri", "says"),
    [
        *(("data.train", *case) for case in MISTYPED + ABSENT),
        ("model.path", *MISTYPED[0]),
        ("model.path", *ABSENT[0]),
        ("data.video_root", *MISTYPED[0]),
        ("data.video_root", *MISTYPED[2]),
        *(("run_dir", *case) for case in MISTYPED),
        ("run_dir", "s3://bkt", "names no place inside a bucket"),
        ("run_dir", "s3://nobucket/run", "s3://nobucket/run/.written-"),
        ("video.cache_dir", "s3://bkt/frames", "video.cache_dir=s3://bkt/frames must be a path"),
    ],
)
def test_a_mistyped_uri_is_one_sentence(bucket, key, uri, says, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "a", "video": "v.mp4", "question": "q?", "answer": "a"}))
    (tmp_path / "v.mp4").write_bytes(b"x")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"run_dir: {tmp_path}/run\nmodel: {{path: examples/shapes/model}}\ndata: {{train: {tmp_path}/train.jsonl}}\n"
    )
    assert cli.main(["align", str(config), f"{key}={uri}", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert says in error


AZURITE = (  # the account and key of every Azurite
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZF"
    "PTOtr/KBHBeksoGMGw==;BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
)


def test_the_environment_says_which_account_of_azure_it_is():
    key = {"AZURE_STORAGE_ACCOUNT": "mine", "AZURE_STORAGE_KEY": "k=="}
    assert azure.options("", key) == {"account_name": "mine", "account_key": "k=="}
    assert azure.options("theirs", key) == {"account_name": "theirs", "account_key": "k=="}
    token = {"AZURE_STORAGE_ACCOUNT_NAME": "mine", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"}
    assert azure.options("", token) == {"account_name": "mine", "sas_token": "?sv=1&sig=x"}
    assert azure.options("", {"AZURE_STORAGE_ACCOUNT": "mine"}) == {"account_name": "mine"}, "what the machine is allowed"
    local = azure.options("", {azure.CONNECTION: AZURITE.format(port=7)})
    assert (local["blob_storage_authority"], local["blob_storage_scheme"]) == ("127.0.0.1:7", "http")
    assert local["account_key"].endswith("GMGw==")
    china = azure.options("", {azure.CONNECTION: "AccountName=mine;AccountKey=k==;EndpointSuffix=core.chinacloudapi.cn"})
    assert china["blob_storage_authority"] == ".blob.core.chinacloudapi.cn"
    assert china["dfs_storage_authority"] == ".dfs.core.chinacloudapi.cn"
    assert azure.parts_of("data@mine.dfs.core.windows.net/a/b") == ("mine", "data/a/b")
    assert azure.parts_of("data/a@b") == ("", "data/a@b")


@pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="Azurite is a package of npm")
def test_rows_and_folders_in_azure(tmp_path, monkeypatch):
    port = free_port()
    server = subprocess.Popen(
        ["azurite-blob", "--silent", "--location", str(tmp_path), "--blobPort", str(port), "--skipApiVersionCheck"]
    )
    monkeypatch.setenv(azure.CONNECTION, AZURITE.format(port=port))
    monkeypatch.setenv("VIDALIGN_STAGED", str(tmp_path / "staged"))
    storage.bucket_store.cache_clear()
    try:
        wait_for_port(port)
        store = storage.bucket_store("az")
        store.create_dir("data")
        with store.open_output_stream("data/a/train.jsonl") as file:
            file.write(json.dumps({"id": "a", "video": "v.mp4", "question": "q?", "answer": "a"}).encode())
        assert read_rows("az://data/a/train.jsonl")[0].example.video == "az://data/a/v.mp4"
        folder = staged("model.path", "abfss://data@devstoreaccount1.dfs.core.windows.net/a")
        assert [path.name for path in folder.iterdir()] == ["train.jsonl"]
        with asked("az://data/a/train.jsonl") as answer:
            assert b"v.mp4" in b"".join(answer.chunks)
        with pytest.raises(DataError, match="there is nothing at this uri"):
            staged("data.train", "az://data/none")
        run = RunFolder.open("az://data/runs/one")
        write_json(run.plan, {"by": "this node"})
        monkeypatch.setenv("VIDALIGN_STAGED", str(tmp_path / "another"))
        assert fetched(RunFolder.at("az://data/runs/one").plan).read_bytes() == run.plan.read_bytes()
    finally:
        server.kill()
        server.wait()
        storage.bucket_store.cache_clear()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "nothing listens"
        time.sleep(0.1)


def test_what_is_a_uri():
    assert all(is_uri(text) for text in ("s3://bkt/x", "s3:/b", "gs://b", "file:///x", "az://x"))
    assert not any(is_uri(text) for text in ("/data/x", "hf:org/name", "org/name", "C:\\x", "a:b"))


def test_a_store_that_does_not_answer_is_one_sentence(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "MAX_ATTEMPTS", 1)
    storage.bucket_store.cache_clear()
    try:
        with pytest.raises(DataError, match=r"data\.train=s3://bkt/x cannot be read: .*check the uri, the credentials"):
            staged("data.train", "s3://bkt/x")
    finally:
        storage.bucket_store.cache_clear()
