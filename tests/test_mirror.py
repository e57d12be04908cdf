"""A run that is kept in an object store: what is put, what other nodes get of it, and what is never mixed or lost silently."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.lib
import pytest
from conftest import write_video
from store_server import behind, environment, store_server

from actors.checkpoints import SNAPSHOT, leave_out_torn
from actors.train_job import TrainJob
from cluster import lease_records
from cluster.lease import Lease, Owner, check_free
from cluster.preflight import faults, wanted
from vidalign import files, line_log, mirror, storage, stored
from vidalign.config.loading import load_config
from vidalign.config.run import ModelConfig, ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ConfigError, DataError
from vidalign.files import RunFolder
from vidalign.line_log import LineLog
from vidalign.model.tensor_cache import TensorCache, missing, read_tensors, write_tensors
from vidalign.types import Example, FrameSpec, Response
from vidalign.video.clip import Clip
from vidalign.video.decode_child import ChildDecoder
from vidalign.video.frame_cache import FrameCache, load_clip, load_signature, read_shape

FAST = {"renew_s": 0.1, "stale_s": 1.0}
SAMPLED = {
    "token_ids": (),
    "log_probs": (),
    "policy_version": "v",
    "seed": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "finish_reason": "stop",
}
ELSEWHERE = Owner(id="x", command="vidalign align a.yaml", user="ann", host="other", machine="other", pid=7, started="1")


@pytest.fixture(scope="module")
def server():
    with store_server(refuses=False) as found:
        yield found


@pytest.fixture
def node(server, tmp_path, monkeypatch):
    """A function that makes this process one of the node of that name, with a disk of its own."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    storage.bucket_store.cache_clear()
    monkeypatch.setattr(storage, "PAUSE_S", 0.01)

    def become(name: str) -> None:
        monkeypatch.setenv("VIDALIGN_STAGED", str(tmp_path / name))

    become("a")
    yield become
    server[1].slow.clear()
    server[1].refuses = False
    storage.bucket_store.cache_clear()


@pytest.fixture
def store(server):
    return behind(server)


@pytest.fixture
def run(node, store, request) -> RunFolder:
    return RunFolder.open(f"s3://bkt/{request.node.name.partition('[')[0]}")


def content(store, run: RunFolder, name: str) -> bytes:
    with store.open_input_stream(f"bkt/{run.root.name.partition('bkt+')[2]}/{name}") as file:
        return file.read()


@pytest.mark.parametrize(
    "uri", ["s3://bkt/run", "gs://bkt/a b/ü+%2F/run", "az://c/x", "abfss://c@acc.dfs.core.windows.net/x/y"]
)
def test_a_path_says_by_itself_what_it_stands_for(node, uri):
    path = stored.folder_of(uri + "/") / "rounds" / "0"
    assert stored.of(path) == stored.Place(uri, "rounds/0")
    assert stored.shown(path) == f"{uri}/rounds/0"
    node("b")
    assert stored.here(str(path)) == str(stored.folder_of(uri) / "rounds" / "0") != str(path)
    assert stored.of("/data/runs/mirrored-runs/x") is None
    assert stored.here("/data/runs/x") == "/data/runs/x"


def test_a_run_in_a_folder_pays_nothing(tmp_path):
    """No store's library is imported, and no file but the one that was asked for is written."""
    code = (
        "import sys, pathlib; from vidalign import files, mirror; path = pathlib.Path(sys.argv[1]);"
        "files.write_json(path / 'a.json', {}); mirror.refresh(path); mirror.fetched(path / 'a.json'); mirror.put_loose(path);"
        "mirror.remove(path / 'b.json'); print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_is_written_is_in_the_store_and_on_every_node_that_asks(run, store, node, server):
    """Also of a store that answers 503 to every tenth request."""
    server[1].refuses, server[1].numbers = True, itertools.count(7)
    for number in range(3):
        files.write_json(run.stage("pairs") / f"{number}.json", {"number": number})
    assert json.loads(content(store, run, "rounds/0/pairs/2.json")) == {"number": 2}
    node("b")
    there = RunFolder.at(stored.shown(run.root))
    assert there.root != run.root
    assert mirror.refresh(there.root)
    assert [files.read_json(there.stage("pairs") / f"{number}.json")["number"] for number in range(3)] == list(range(3))
    assert server[1].refused


def test_a_file_that_the_store_does_not_take_does_not_appear(run, monkeypatch):
    path = run.root / "summary.json"
    files.write_json(path, {"is": "old"})
    with monkeypatch.context() as patch:
        patch.setattr(storage, "TRIES", 1)
        patch.setattr(storage, "store_of", lambda uri: (Refusing(), uri))
        with pytest.raises(DataError, match=r"^s3://bkt/\S+/summary\.json cannot be written: no; .* it continues$"):
            files.write_json(path, {"is": "new"})
    assert files.read_json(path) == {"is": "old"}
    assert os.listdir(run.root) == ["summary.json"]


def test_half_of_a_file_takes_no_other_s_place(run, store, monkeypatch):
    """The node's disk fails while a file is being put."""
    path = run.root / "summary.json"
    files.write_text_atomic(path, "old")

    def half(source, sink, size):
        sink.write(source.read(1))
        raise OSError(5, "Input/output error", "/dev/sda")

    monkeypatch.setattr(shutil, "copyfileobj", half)
    with pytest.raises(OSError, match="Input/output"):
        files.write_text_atomic(path, "new")
    assert "summary.json" not in stored.listing(stored.place_of(run.root))


@pytest.mark.parametrize(
    ("says", "asked"),
    [
        ("Unknown error: google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of 503)", 2),
        ("Unknown error: google::cloud::Status(UNKNOWN: Permanent error, with a last message of no credentials)", 1),
        ("Unknown error: AuthenticationExceptionE: Failed to get token from DefaultAzureCredential.", 1),
    ],
)
def test_an_error_that_is_of_pyarrow_alone_is_tried_again_and_then_a_sentence(run, monkeypatch, says, asked):
    """A 503 of gs://, and what its client and Azure's say of credentials, are no `OSError`."""
    calls = []

    class Failing:
        def __getattr__(self, name):
            def fail(*arguments, **options):
                calls.append(name)
                raise pyarrow.lib.ArrowException(says)

            return fail

    for name, value in {"TRIES": 2, "PAUSE_S": 0.0, "store_of": lambda uri: (Failing(), uri)}.items():
        monkeypatch.setattr(storage, name, value)
    for act in (
        lambda: stored.listing(stored.place_of(run.root)),
        lambda: stored.write_object(run.root / "a", b"a"),
        lambda: mirror.put(run.root / "a", pathlib.Path(__file__)),
    ):
        calls.clear()
        with pytest.raises(DataError, match=r"cannot be (read|written): Unknown error: .*credentials and that its store"):
            act()
        assert len(calls) == asked
    with pytest.raises(OSError, match="Unknown error"):
        mirror.open_file(run.root / "a")
    with pytest.raises(OSError, match="Unknown error"):
        storage.fetch_file(Failing(), "a", run.root / "b", 1)


class Refusing:
    def open_output_stream(self, key):
        raise OSError("no")


def test_the_store_is_the_truth(run, store, node):
    """Another driver has removed one file and replaced another since this node was the run's; a third it never put."""
    for name in ("kept", "removed", "replaced"):
        files.write_json(run.root / f"{name}.json", {"by": "a"})
    kept = (run.root / "kept.json").stat().st_ino
    node("b")
    there = RunFolder.at(stored.shown(run.root)).root
    mirror.remove(there / "removed.json")
    files.write_json(there / "replaced.json", {"by": "another"})
    node("a")
    (run.root / "never-put.json").write_text("{}")
    (run.root / ".own").write_text("x")
    (run.root / "tensorboard").mkdir()
    (run.root / "tensorboard" / "events").write_text("x")
    os.utime(run.root / "kept.json", ns=(settled := time_in_store(store, run, "kept.json"), settled))
    mirror.refresh(run.root)
    assert files.read_json(run.root / "replaced.json") == {"by": "another"}
    assert sorted(os.listdir(run.root)) == [".own", "kept.json", "replaced.json", "tensorboard"]
    assert (run.root / "kept.json").stat().st_ino == kept, "what is as in the store is not fetched again"


def time_in_store(store, run, name) -> int:
    [found] = store.get_file_info([f"bkt/{run.root.name.partition('bkt+')[2]}/{name}"])
    return found.mtime_ns // 10**9 * 10**9


@pytest.mark.parametrize("ahead_s", [0, 3600, -3600])
def test_what_is_replaced_within_a_second_by_as_many_bytes_is_seen(run, node, monkeypatch, ahead_s):
    """Stores tell times in seconds, and a node's clock may be wrong."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
    monkeypatch.setattr(stored, "_newest", {})
    path = run.root / "wall_s.json"
    files.write_json(path, {"a": 1})
    node("b")
    there = RunFolder.at(stored.shown(run.root)).root / "wall_s.json"
    assert files.read_json(mirror.fetched(there)) == {"a": 1}
    node("a")
    files.write_json(path, {"a": 2})
    node("b")
    assert files.read_json(mirror.fetched(there)) == {"a": 2}


def test_what_can_change_no_more_in_its_second_is_fetched_once(run, node, server, monkeypatch):
    files.write_json(run.root / "old.json", {})
    monkeypatch.setattr(stored, "RACY_S", 1)
    time.sleep(2.1)  # the store's clock goes on
    files.write_json(run.root / "new.json", {})
    monkeypatch.setattr(stored, "_newest", {})
    node("b")
    there = RunFolder.at(stored.shown(run.root)).root
    mirror.refresh(there)
    asked = len(server[1].asked)
    for _ in range(2):
        mirror.fetched(there / "old.json")
    assert not [each for each in server[1].asked[asked:] if each.startswith("GET")]
    mirror.fetched(there / "new.json")
    assert [each for each in server[1].asked[asked:] if each.startswith("GET")]


def test_what_is_gone_from_the_store_is_gone_here(run, store):
    path = run.root / "plan.json"
    files.write_json(path, {})
    store.delete_file(f"bkt/{run.root.name.partition('bkt+')[2]}/plan.json")
    assert not mirror.fetched(path).exists()


def test_weights_frames_and_checkpoints_are_fetched_when_they_are_read(run, node):
    for name in ("model/model.safetensors", "model/config.json", "train/ray/step-1/state/x.pt", "train/metrics.jsonl"):
        files.write_bytes_atomic(run.stage("train").parent / name, b"x")
    files.write_bytes_atomic(run.frames / "ab" / "clip.safetensors", b"x")
    node("b")
    there = RunFolder.at(stored.shown(run.root))
    mirror.refresh(there.root)
    names = {path.relative_to(there.root).as_posix() for path in there.root.rglob("*") if path.is_file()}
    assert names == {"rounds/0/model/config.json", "rounds/0/train/metrics.jsonl"}
    mirror.refresh(there.stage("model"), everything=True)
    assert (there.stage("model") / "model.safetensors").read_bytes() == b"x"


def test_a_folder_is_whole_once_its_card_is_there(run, store, tmp_path, monkeypatch):
    made = tmp_path / "made"
    for name in ("card.json", "weights", "config.json"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text("new")
    folder = run.stage("model")
    for name in ("card.json", "of-an-older-one"):
        files.write_text_atomic(folder / name, "old")
    real = mirror.put

    def put(path, source=None):
        if path.name == "weights":
            raise DataError("the store went away")
        real(path, source)

    monkeypatch.setattr(mirror, "put", put)
    with pytest.raises(DataError, match="went away"):
        mirror.put_folder(folder, made, last="card.json")
    assert "card.json" not in stored.listing(stored.place_of(folder)), "an older card stands for half of a new folder"
    monkeypatch.setattr(mirror, "put", real)
    mirror.put_folder(folder, made, last="card.json")
    assert stored.listing(stored.place_of(folder)).keys() == {"card.json", "weights", "config.json"}


def test_a_clip_that_one_node_decoded_is_read_on_another(run, node, server):
    frames = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    clip = Clip(frames=frames, fps=2.0, total_num_frames=8, duration_s=4.0, indices=(0, 2, 4, 6), backend="pyav")
    spec = FrameSpec(num_frames=4)
    path = FrameCache(run.frames).put("ab" * 32, spec, clip)
    node("b")
    assert load_signature(stored.here(str(path))) is not None
    assert read_shape(str(path))[0] == (4, 8, 8, 3)
    assert not pathlib.Path(stored.here(str(path))).exists(), "a header is read without the frames"
    assert (load_clip(str(path)).frames == frames).all(), "by the path of the node that decoded it"
    there = FrameCache(RunFolder.at(stored.shown(run.root)).frames)
    assert there.backend("ab" * 32, spec) == "pyav"
    mirror.remove(run.frames)
    assert there.backend("ab" * 32, spec) == "", "a clip that only this node has left is decoded again, and so put again"


def test_a_slow_store_is_no_fault_of_the_video(run, server, tmp_path):
    """Putting the frames takes longer than the deadline for decoding."""
    video = write_video(tmp_path / "v.mp4", np.zeros((8, 32, 32, 3), np.uint8))
    decoder = ChildDecoder(FrameSpec(num_frames=2), str(run.frames), deadline_s=0.8)
    server[1].slow["PUT"] = 1.0
    try:
        done = decoder.decode(str(video))
    finally:
        decoder.close()
    assert done.reason == ""
    assert load_clip(done.frames_path).frames.shape[0] == 2


def test_a_chunk_is_decoded_answered_and_collected_on_three_nodes(run, node, tmp_path, monkeypatch, model_path):
    """Each is given the driver's paths, and has its own."""
    from actors import generator
    from actors.decoder import ChunkDecoder

    class Engine:
        def __init__(self, config, path, **options) -> None: ...

        def take_seconds(self) -> dict[str, float]:
            return {}

    def respond(engine, examples, shown):
        said = f"{shown[0].frames.mean():.0f}"
        return [Response(example_id=examples[0].id, kind="plain", candidate=0, turn=0, text=said, **SAMPLED)]

    monkeypatch.setattr(generator, "VllmEngine", Engine)
    monkeypatch.setattr(generator, "ClipCheck", lambda path, **options: None)
    monkeypatch.setattr(generator, "quarantined", lambda rows, takes: rows)
    video = write_video(tmp_path / "v.mp4", np.full((8, 32, 32, 3), 200, np.uint8))
    example = Example(id="e", video=str(video), question="q?", answer="a")
    parts, frames = str(run.stage("responses") / "parts"), str(run.frames)
    node("b")
    decoder = ChunkDecoder(FrameSpec(num_frames=2), frames)
    row = decoder({"chunk": 0, "examples": json.dumps([example.to_row()])})
    decoder.child.close()
    assert json.loads(row["decoded"])[0]["frames_path"].startswith(str(tmp_path / "b"))
    node("c")
    model = {"path": model_path, "dtype": "float32", "max_model_len": 512}
    kept = {"num_gpus": 0, "seed": 0, "engine_args": {}, "num_examples": 1, "limits": {}}
    generator.Generator(model, model_path, respond=respond, parts=parts, **kept)(row)
    node("a")
    mirror.refresh(pathlib.Path(parts))
    part = files.part_path(pathlib.Path(parts), 0)
    [response] = files.read_table(part.with_suffix(".parquet"), Response)
    assert abs(int(response.text) - 200) < 5
    [decoded] = files.read_json(part)["decoded"]
    assert decoded["frames_path"].startswith("frames/"), "relative to the run, wherever a node has it"
    [clip] = files.found_places(run.root, {"v": decoded["frames_path"]}).values()
    assert load_clip(clip).frames.shape[0] == 2


def test_a_rank_has_its_own_node_s_paths(run, node, model_path):
    for path in ("rounds/0/pairs/pairs.parquet", "rounds/0/responses/frames.json", "rounds/0/responses/probe.parquet"):
        files.write_json(run.root / path, {})
    for name in ("config.json", "model.safetensors"):
        files.write_json(run.stage("model") / name, {})
    stage = run.stage("train", 1)
    job = TrainJob(
        model=ModelConfig(path=model_path),
        policy_path=str(run.stage("model")),
        policy_version="v",
        train=TrainConfig(),
        objective=ObjectiveConfig(),
        plain_prompt="{question}",
        frame_spec=FrameSpec(),
        seed=0,
        pairs=str(run.stage("pairs") / "pairs.parquet"),
        frames=str(run.stage("responses") / "frames.json"),
        probe=str(run.stage("responses") / "probe.parquet"),
        reference="",
        stage=str(stage),
        export=str(run.stage("model", 1)),
        checkpoints=str(stage / "ray"),
    )
    node("b")
    there, root = TrainJob.from_dict(job.to_dict()).staged(), RunFolder.at(stored.shown(run.root)).root
    assert there.export == str(root / "rounds/1/model")
    assert all(pathlib.Path(path).is_file() for path in (there.pairs, there.frames, there.probe))
    assert sorted(os.listdir(there.policy_path)) == ["config.json", "model.safetensors"]
    assert all(pathlib.Path(path).is_relative_to(root) for path in (there.pairs, there.stage, there.policy_path))


def test_what_a_frozen_model_said_is_found_by_all_nodes(run, node):
    import torch

    cache = TensorCache(run.root / "cache" / "reference")
    paths = {str(number): cache.path(number) for number in range(3)}
    write_tensors(paths["1"], {"x": torch.ones(2)})
    node("b")
    here = {name: stored.here(str(path)) for name, path in paths.items()}
    assert missing(here) == {"0", "2"}
    assert read_tensors(here["1"])["x"].tolist() == [1, 1]
    mirror.remove(pathlib.Path(here["1"]).parents[1])
    node("a")
    assert missing(paths) == {"0", "1", "2"}, "what only this node has left counts as missing"


def test_each_node_puts_its_share_of_a_checkpoint(run, node, store, monkeypatch):
    import ray.train

    from actors.checkpoints import Checkpoints, leads_here

    class Rank:
        def __init__(self, name: str) -> None:
            self.name, self.is_first = name, name == "a"

        def save(self, folder, state) -> None:
            (folder / "state").mkdir(exist_ok=True)
            (folder / "state" / f"{self.name}.pt").write_text(self.name)

        largest = wait = lambda self, number=0: 7

    class Context:
        storage_filesystem, experiment_fs_path = stored.place_of(run.stage("train") / "ray").stored
        get_storage, get_local_rank = (lambda self: self), (lambda self: 0)

    monkeypatch.setattr(ray.train, "get_context", Context)
    reported = {}
    for name in ("b", "a"):
        node(name)
        folder = RunFolder.at(stored.shown(run.root)).stage("train") / "ray"
        (folder.parent / ".checkpoints" / "of-a-killed-rank").mkdir(parents=True)
        checkpoints = Checkpoints(Rank(name), None, folder)
        checkpoints.write(
            {"step_index": 3}, lambda metrics, name=name, **options: reported.update({name: options}), num_steps=9
        )
        assert os.listdir(folder.parent) == [], "a checkpoint takes no room once it is put"
    checkpoint = reported["a"]["checkpoint"]
    assert reported["b"]["checkpoint"] is None
    assert leads_here(checkpoint) is True
    assert leads_here(ray.train.Checkpoint(str(run.root))) is None
    with checkpoint.as_directory() as there:
        assert sorted(os.listdir(f"{there}/state")) == ["a.pt", "b.pt"]


def test_a_checkpoint_that_is_gone_from_the_store_is_left_out(run):
    folder, said = run.stage("train") / "ray", []
    rows = [{"checkpoint_dir_name": name, "metrics": {"step": step}} for step, name in ((2, "first"), (4, "second"))]
    listed = {"checkpoint_results": rows, "checkpoint_report_indices": [0, 1], "latest_checkpoint_result": rows[1]}
    for name in ("first", "second"):
        stored.write_object(folder / name / "state" / "mp.pt", b"x")
    stored.write_object(folder / SNAPSHOT, json.dumps(listed).encode())
    leave_out_torn(folder, said.append)
    assert said == []
    mirror.remove(folder / "second")
    leave_out_torn(folder, said.append)
    assert json.loads(stored.read_object(folder / SNAPSHOT))["latest_checkpoint_result"]["metrics"] == {"step": 2}
    assert said[0].startswith("the newest checkpoint in s3://bkt/")
    mirror.remove(folder / "first")
    leave_out_torn(folder, said.append)
    assert SNAPSHOT not in stored.listing(stored.place_of(folder))
    assert "begins anew" in said[1]


def test_lines_are_put_now_and_then_and_at_the_end(run, store, monkeypatch):
    monkeypatch.setattr(line_log, "PUT_EVERY_S", 0.05)
    path = run.stage("eval") / "base.jsonl"
    files.write_text_atomic(path, "settings\n")
    with LineLog(path) as log:
        log.add("1")
        assert content(store, run, "rounds/0/eval/base.jsonl") == b"settings\n"
        time.sleep(0.06)
        log.add("2")
        assert content(store, run, "rounds/0/eval/base.jsonl") == b"settings\n1\n2\n"
        log.add("3")
    assert content(store, run, "rounds/0/eval/base.jsonl") == b"settings\n1\n2\n3\n"


def test_a_run_is_named_by_its_uri(run, node):
    uri = stored.shown(run.root)
    files.write_text_atomic(run.config, "run_dir: /somewhere/else\nmodel: {path: m}\ndata: {train: t.jsonl}\n")
    files.write_json(run.stage("pairs") / "manifest.json", {})
    node("b")
    assert load_config(uri).run_dir == uri
    with pytest.raises(DataError, match=r"^RUN=s3://bkt/none: there is no run at this uri"):
        mirror.opened("s3://bkt/none")
    with pytest.raises(ConfigError, match="names no place inside a bucket"):
        RunFolder.at("s3://bkt")


def test_one_run_has_one_driver_wherever_they_are(run, node):
    with Lease(run.root, "first", **FAST):
        node("b")
        there = RunFolder.at(stored.shown(run.root)).root
        with pytest.raises(ConfigError, match=r"^s3://bkt/\S+ is in use by `first` "):
            Lease(there, "second", **FAST).__enter__()
        with pytest.raises(ConfigError, match="in use by"):
            check_free(there)
    with Lease(there, "third", **FAST) as held:
        assert held.path.name.startswith("000002-")
        assert len(stored.listing(stored.place_of(there / "lease"))) == 1
    check_free(there)


def test_a_holder_elsewhere_is_watched_and_one_that_was_followed_notices(run):
    lost, waited = [], []
    with Lease(run.root, "there", owner=ELSEWHERE, on_loss=lost.append, **FAST) as slow:
        with pytest.raises(ConfigError, match=r"`vidalign align a.yaml` \(ann, process 7 on other\)"):
            Lease(run.root, "here", **FAST).__enter__()
        slow._ended.set()  # it is suspended
        slow._renewing.join()
        with Lease(run.root, "here", on_wait=waited.append, **FAST):
            assert "other" in waited[0]
            slow._ended.clear()
            slow._ended.wait = lambda seconds: bool(lost)  # and goes on
            slow._renew()
        assert "took over s3://bkt/" in str(lost[0])


def test_of_several_that_begin_at_the_same_time_one_has_it_at_a_time(run, monkeypatch):
    """Each is on a machine of its own, and a listing shows what was put before it."""
    monkeypatch.setattr(lease_records, "PAUSE_S", 0.05)
    held: list[tuple[float, float]] = []
    barrier = threading.Barrier(4)

    def drive(number: int) -> None:
        owner = dataclasses.replace(ELSEWHERE, id=f"id{number}", machine=f"m{number}")
        barrier.wait()
        with contextlib.suppress(ConfigError), Lease(run.root, "racer", owner=owner, renew_s=0.1, stale_s=20):
            began = time.monotonic()
            time.sleep(0.2)
            held.append((began, time.monotonic()))

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    held.sort()
    assert held
    assert all(end <= began for (_, end), (began, _) in itertools.pairwise(held))


def test_a_node_is_asked_for_the_store_and_not_for_a_mount(run, node, monkeypatch):
    has = wanted({"run_dir": run.root})
    node("b")
    assert faults(has, 0) == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(storage, "TRIES", 1)
    storage.bucket_store.cache_clear()
    [fault] = faults(has, 0)
    assert fault.startswith(f"cannot use run_dir={stored.shown(run.root)}: ")


def clip_of(run: RunFolder, name: str, size: int = 1000) -> pathlib.Path:
    path = run.root / "frames" / f"{name}.safetensors"
    files.write_bytes_atomic(path, name.encode() * size)
    return path


def last_used(path: pathlib.Path, seconds_ago: float) -> None:
    os.utime(path, ns=(time.time_ns() - int(seconds_ago * 10**9), path.stat().st_mtime_ns))


def test_mirrors_keep_within_the_bound_what_was_used_last(run, node, monkeypatch, store):
    """Of the run that this process works on, clips go and come again; all else stays. Nothing that is not in the store goes."""
    for name in "abcd":
        last_used(clip_of(run, name), 3600 if name != "b" else 60)
    table = run.root / "rounds" / "0" / "responses" / "responses.jsonl"
    files.write_text_atomic(table, "x" * 3000)
    last_used(table, 7200)
    events = run.root / "rounds" / "0" / "train" / "tensorboard" / "events"
    events.parent.mkdir(parents=True)
    events.write_text("of this node")
    monkeypatch.setenv("VIDALIGN_STAGED_GIB", str(5500 / 2**30))
    clip_of(run, "e")
    left = sorted(path.stem for path in (run.root / "frames").glob("*.safetensors"))
    assert left == ["b", "e"], "b was read in the last minutes"
    assert table.is_file()
    assert events.is_file()
    again = mirror.fetched(run.root / "frames" / "a.safetensors", always=False)
    assert again.read_bytes() == b"a" * 1000
    assert content(store, run, "frames/c.safetensors") == b"c" * 1000


USE = """
import pathlib, sys
from vidalign import files, mirror
from vidalign.files import RunFolder
run = RunFolder.open(sys.argv[1])
files.write_text_atomic(run.root / "rounds" / "0" / "a.json", "1" * 1000)
(run.root / "tensorboard").mkdir()
(run.root / "tensorboard" / "events").write_text("of this node")
print(run.root, flush=True)
sys.stdin.read()
"""


def test_the_mirror_of_a_run_that_nobody_works_on_goes_first_and_one_in_use_never(run, node, monkeypatch):
    processes, roots = [], []
    for name in ("in-use", "ended"):
        command = [sys.executable, "-c", USE, f"s3://bkt/bound-{name}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        roots.append(pathlib.Path(process.stdout.readline().strip()))
        processes.append(process)
    processes[1].communicate()
    monkeypatch.setenv("VIDALIGN_STAGED_GIB", str(2500 / 2**30))
    clip_of(run, "a")
    clip_of(run, "b")
    processes[0].communicate()
    assert (roots[0] / "rounds/0/a.json").is_file()
    assert not (roots[1] / "rounds").exists()
    assert (roots[1] / "tensorboard/events").read_text() == "of this node", "it is nowhere else"
    assert (run.root / "frames" / "a.safetensors").is_file(), "it has just been made"
    again = RunFolder.open("s3://bkt/bound-ended").root
    assert mirror.refresh(again)
    assert files.read_json(again / "rounds" / "0" / "a.json") == int("1" * 1000)
