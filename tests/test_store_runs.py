"""Whole runs that are kept in an object store, beside the same run in a folder."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import free_port, vidalign, vidalign_killed
from store_server import behind, environment, store_server

from bench.chaos_compare import differences
from vidalign import files

pytestmark = [pytest.mark.heavy, pytest.mark.long]
# A node's own, or made anew by every command.
ASIDE = ("lease/", "frames/hashes/", "console.txt", "finished.json")
OF_EVALUATION = ("rounds/0/eval/", "rounds/0/scores/", "report/rows/answers-")


@pytest.fixture(scope="module")
def server():
    with store_server(refuses=False) as found:
        yield found


@pytest.fixture(scope="module")
def store(server):
    return behind(server)


def align(server, staged: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    return vidalign(*arguments, timeout_s=380, variables={**environment(server), "VIDALIGN_STAGED": str(staged)})


def downloaded(store, place: str, folder: pathlib.Path) -> pathlib.Path:
    from pyarrow import fs

    for found in store.get_file_info(fs.FileSelector(place, recursive=True)):
        if found.is_file:
            path = folder / found.path[len(place) + 1 :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.open_input_stream(found.path).read())
    return folder


def differing(undisturbed: pathlib.Path, other: pathlib.Path, *, but: tuple[str, ...] = ()) -> list[str]:
    return [text for text in differences(undisturbed, other) if not text.startswith((*ASIDE, *but))]


def of_evaluation(run: pathlib.Path) -> tuple[str, ...]:
    """What only the evaluation of a run made: its folders, and the clips of videos that only held-out questions show."""
    used = {pathlib.Path(path).name for path in files.read_places(run / "rounds/0/responses/frames.json").values()}
    clips = [path for path in (run / "frames").rglob("*.safetensors") if path.name not in used]
    assert clips
    return (*OF_EVALUATION, *(path.relative_to(run).as_posix() for path in clips))


def test_a_run_in_a_store_is_the_run_in_a_folder(finished_run, small_config, server, store, tmp_path):
    staged = tmp_path / "staged"
    command = ["align", str(small_config), "run_dir=s3://bkt/one", "cluster.address=local", f"serve.port={free_port()}"]
    done = align(server, staged, *command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert differing(finished_run, downloaded(store, "bkt/one", tmp_path / "one")) == []

    shutil.rmtree(staged)  # another node, or this one with another disk
    asked = len(server[1].asked)
    again = align(server, staged, *command)
    assert again.returncode == 0, again.stderr[-4000:]
    assert "nothing is left to do" in again.stderr
    assert not [each for each in server[1].asked[asked:] if each.startswith("PUT") and "/rounds/" in each]


def test_a_run_in_a_store_that_refuses_every_tenth_request(finished_run, small_config, tmp_path):
    """From its first request to its last, with 503; the model is fetched from there too."""
    with store_server() as server:
        store, (_, between) = behind(server), server
        model = pathlib.Path(yaml.safe_load(small_config.read_text())["model"]["path"])
        for path in (each for each in model.iterdir() if each.is_file()):
            with store.open_output_stream(f"bkt/model/{path.name}") as stream:
                stream.write(path.read_bytes())
        command = ["align", str(small_config), "run_dir=s3://bkt/refused", "model.path=s3://bkt/model"]
        done = align(server, tmp_path / "staged", *command, "cluster.address=local", f"serve.port={free_port()}")
        assert done.returncode == 0, done.stderr[-4000:]
        assert len(between.refused) >= len(between.asked) // 10 > 20
        found = downloaded(store, "bkt/refused", tmp_path / "refused")
    assert differing(finished_run, found) == []


def test_a_training_goes_on_on_another_node(finished_run, small_config, server, store, tmp_path):
    """The driver's node is lost, with its processes and its disk, while the run trains."""
    from pyarrow import fs

    config = yaml.safe_load(small_config.read_text())
    del config["data"]["eval"]
    config |= {"run_dir": "s3://bkt/lost", "cluster": {"address": "local"}}
    path = tmp_path / "lost.yaml"
    path.write_text(yaml.safe_dump(config))
    snapshot = "bkt/lost/rounds/0/train/ray/checkpoint_manager_snapshot.json"

    def has_checkpoint() -> bool:
        return store.get_file_info([snapshot])[0].type != fs.FileType.NotFound

    variables = {**environment(server), "VIDALIGN_STAGED": str(tmp_path / "first")}
    vidalign_killed("align", str(path), when=has_checkpoint, variables=variables)
    shutil.rmtree(tmp_path / "first")
    done = align(server, tmp_path / "second", "align", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "train of round 0 goes on from where it stopped" in done.stderr
    found = downloaded(store, "bkt/lost", tmp_path / "lost")
    assert differing(finished_run, found, but=of_evaluation(finished_run)) == []


@pytest.fixture
def two_nodes(server, tmp_path, monkeypatch):
    """The address of a cluster of two nodes, each with a folder of its own for what it stages."""
    from ray.cluster_utils import Cluster

    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VIDALIGN_STAGED", str(tmp_path / "head"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=4", "--block"],
        env={**os.environ, "VIDALIGN_STAGED": str(tmp_path / "other")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield cluster.address
    finally:
        os.killpg(other.pid, signal.SIGTERM)
        other.wait(60)
        cluster.shutdown()


def test_two_nodes_with_no_folder_in_common(finished_run, small_config, two_nodes, server, store, tmp_path):
    config = yaml.safe_load(small_config.read_text())
    del config["data"]["eval"]
    config |= {"run_dir": "s3://bkt/two", "cluster": {"address": two_nodes}}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(config))
    done = align(server, tmp_path / "head", "align", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    mirror = tmp_path / "other" / "mirrored-runs" / "s3+bkt+two"
    made = [*mirror.glob("rounds/0/responses/parts/*.parquet"), *mirror.glob("frames/*/*")]  # by an engine or by decoders
    assert made, "the other node had no part in it"
    found = downloaded(store, "bkt/two", tmp_path / "two")
    assert differing(finished_run, found, but=of_evaluation(finished_run)) == []
