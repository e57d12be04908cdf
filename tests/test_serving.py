"""The endpoint: which urls it reads, that it sees the frames of training, and what a real OpenAI client gets from it."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import logging.config
import logging.handlers
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import types

import numpy as np
import psutil
import pytest
from conftest import add_bos, free_port, write_video
from contract_table import ANSWERED, CHAT, MISTAKES, READS, UNUSUAL, Case, chat, check_reply, sent

from cluster.resources import ServePlan
from pipelines.asking import evaluate
from pipelines.serve import describe, find_target
from pipelines.suites import models
from pipelines.suites.run import evaluate_suite
from pipelines.suites.task import read_task
from serving import serve_log
from serving.app import Endpoint, bounded, check_can_start, endpoint
from serving.frames import FrameSpecLoader, model_variable, taken_by_the_model
from serving.proxy import haproxy_folder, proxy_environment
from serving.readiness import failure_of, failure_reason, unfinished
from serving.refusals import unusable_message, unusable_video
from serving.root_cause import root_cause
from serving.spec import EndpointSpec
from serving.video_loader import media_io_kwargs
from vidalign.config.cluster import ClusterConfig
from vidalign.config.run import EvaluateConfig, ModelConfig, ServeConfig
from vidalign.data.suites.base import Request
from vidalign.errors import ClusterError, ConfigError, ModelError, VideoError
from vidalign.model.checkpoint import CARD, policy_version
from vidalign.types import Example, FrameSpec, PolicyVersion
from vidalign.video import decoding

SHIPPED = pathlib.Path(__file__).parents[1] / "examples" / "shapes" / "model"
SPEC = FrameSpec(num_frames=8, height=56, width=56)
MODEL = ModelConfig(path="-", dtype="float32", max_model_len=512)
QUESTION = "Which way does it move?"
PLAN = ServePlan(
    num_models=2,
    min_replicas=1,
    max_replicas=1,
    num_devices=1,
    server_cpus=0.4,
    bundle_cpus=0.4,
    bundle_gpus=0,
    ingress_cpus=0.2,
    gpu_memory_utilization=None,
    one_node=True,
)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> pathlib.Path:
    """A media root with a moving square, a broken video, and a link that leads out of it."""
    outside = tmp_path_factory.mktemp("outside")
    root = tmp_path_factory.mktemp("media")
    _write_square(root / "clip one.mp4", num_frames=21, step=3)
    _write_square(root / "two.mp4", num_frames=21, step=-3)
    _write_square(outside / "secret.mp4", num_frames=21, step=1)
    (root / "cut.mp4").write_bytes((root / "two.mp4").read_bytes()[:900])
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    return root


def _write_square(path: pathlib.Path, *, num_frames: int, step: int) -> None:
    frames = np.full((num_frames, 64, 96, 3), 30, np.uint8)
    for index, frame in enumerate(frames):
        left = (40 + step * index) % 80
        frame[24:40, left : left + 16] = (220, 30, 30)
    write_video(path, frames, fps=7, options={"b": "1M"})


def _data_url(path: pathlib.Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


# What needs neither Ray nor vLLM


@pytest.mark.parametrize(
    ("host", "one_node", "reached"),
    [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("0.0.0.0", False, True), ("10.0.0.5", True, False)],
)
def test_haproxy_is_used_where_it_reaches_every_replica(host, one_node, reached):
    environment = proxy_environment(ServeConfig(host=host), dataclasses.replace(PLAN, one_node=one_node))
    assert environment.get("RAY_SERVE_ENABLE_HA_PROXY") == ("1" if reached else None)


def test_haproxys_sockets_have_short_paths():
    environment = proxy_environment(ServeConfig(), dataclasses.replace(PLAN, one_node=True))
    folder, name = os.path.split(environment["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"])
    node_id, while_binding = "0" * 56, ".4194304.tmp"
    assert len(os.path.join(folder, node_id, name + while_binding)) <= 107


def test_an_endpoint_of_a_process_that_an_endpoint_started_has_files_of_its_own(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "/tmp/vidalign-another/haproxy.cfg")
    environment = proxy_environment(ServeConfig(), dataclasses.replace(PLAN, one_node=True))
    assert environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"] == f"{haproxy_folder()}/haproxy.cfg"


@pytest.mark.parametrize(
    "spec", [SPEC, FrameSpec(num_frames=None, fps=2.0, max_pixels=2000), FrameSpec(num_frames=30, min_frames=1)]
)
def test_the_loader_gives_the_frames_of_vidalign_video(media, spec):
    options = media_io_kwargs(spec)["video"]
    assert options.pop("video_backend") == "vidalign"
    frames, metadata = FrameSpecLoader().load_bytes((media / "clip one.mp4").read_bytes(), **options)
    expected = decoding.decode(media / "clip one.mp4", spec)
    np.testing.assert_array_equal(frames, expected.frames)
    assert metadata == expected.metadata()
    assert metadata["do_sample_frames"] is False


def test_an_endpoint_refuses_videos_that_its_processor_does_not_take(model_path, tmp_path, monkeypatch):
    model = ModelConfig(path=model_path, dtype="float32", max_model_len=512)
    [(name, value)] = model_variable(model_path, model).items()
    monkeypatch.setenv(name, value)
    taken_by_the_model.cache_clear()
    options = media_io_kwargs(FrameSpec(num_frames=4))["video"]
    options.pop("video_backend")
    try:
        for size, refused in (((56, 56), False), ((2, 2024), True)):
            data = write_video(tmp_path / "v.mp4", [np.full((*size, 3), shade, np.uint8) for shade in range(8)]).read_bytes()
            if not refused:
                assert FrameSpecLoader().load_bytes(data, **options)[0].shape == (4, *size, 3)
                continue
            with pytest.raises(ValueError, match=r"cannot be used \(unfit\)") as caught:
                FrameSpecLoader().load_bytes(data, **options)
            assert unusable_video(str(caught.value)).reason == "unfit"
    finally:
        taken_by_the_model.cache_clear()


def test_an_endpoint_refuses_videos_that_are_too_long_for_the_models_positions():
    """4 x 4,096 rows of the engine's table, less the context of 512, at 2 positions a second."""
    assert bounded(SPEC, str(SHIPPED), MODEL) == dataclasses.replace(SPEC, max_duration_s=7936.0)
    assert bounded(SPEC, str(SHIPPED), MODEL, num_videos=2).max_duration_s == 3968.0, "the videos of a prompt count together"
    assert bounded(dataclasses.replace(SPEC, max_duration_s=10.0), str(SHIPPED), MODEL).max_duration_s == 10.0


def test_the_loader_says_why_a_video_cannot_be_used(media):
    options = media_io_kwargs(SPEC)["video"]
    options.pop("video_backend")
    with pytest.raises(ValueError, match=r"video cannot be used \(zero_byte\)"):
        FrameSpecLoader().load_bytes(b"", **options)


def test_a_reason_survives_the_way_through_an_error_message():
    error = VideoError("truncated", "it's cut: (at 3)")
    found = unusable_video(f"BadRequest: {unusable_message(error)}")
    assert (found.reason, found.message) == ("truncated", "it's cut: (at 3)")
    assert unusable_video("the prompt is too long") is None
    assert unusable_video("video cannot be used (because): no such reason") is None


def test_what_stops_an_endpoint_is_found_before_anything_starts(tmp_path):
    def check(path: pathlib.Path, **serve: object) -> None:
        check_can_start({"base": PolicyVersion(version="v", path=str(path))}, ServeConfig(**{"port": free_port(), **serve}))

    with pytest.raises(ModelError, match=r"'base' is to be served from .*nowhere, which is not a folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"is not a Hugging Face checkpoint: config.json and \*.safetensors"):
        check(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    check(tmp_path)
    with pytest.raises(ClusterError, match=r"serve.media_root=.*films is not a folder"):
        check(tmp_path, media_root=str(tmp_path / "films"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"port {port} of 127.0.0.1 .*choose another port with serve.port"):
            check(tmp_path, port=port)


def test_the_reason_of_a_failed_start_is_the_exception_and_not_its_traceback():
    message = """The deployment failed to start 1 times in a row. Error:
ray.exceptions.RayTaskError(RuntimeError): ServeReplica:vidalign:PolicyServer:odd (pid=26961)
  File "serve/_private/replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "vllm_engine.py", line 222, in _get_vllm_engine_config
    raise RuntimeError(f"Failed to create vLLM engine config: {e}") from None
RuntimeError: Failed to create vLLM engine config: 1 validation error for ModelConfig
  Value error, Model architectures ['OddModel'] are not supported for now.
    For further information visit https://errors.pydantic.dev/2.14/v/value_error"""
    assert failure_reason(message) == (
        "RuntimeError: Failed to create vLLM engine config: 1 validation error for ModelConfig "
        "Value error, Model architectures ['OddModel'] are not supported for now."
    )
    assert failure_reason("replicas wait for 2 GPUs") == "replicas wait for 2 GPUs"
    assert failure_reason("") == ""
    assert failure_reason("ValueError: " + "x" * 900).endswith("x …")


def application_of(message: str, status: str = "DEPLOYING", deployment: str = "UPDATING"):
    found = {"PolicyServer:base": types.SimpleNamespace(status=deployment, message=message)}
    return types.SimpleNamespace(status=status, message="", deployments=found)


def test_a_replica_that_was_killed_is_waited_for_and_one_that_failed_in_words_is_not():
    once = "A replica failed to start with exception. Retrying 2 more time(s). Error:\n"
    assert failure_of(application_of("")) is None
    assert failure_of(application_of(f"{once}ray.exceptions.ActorDiedError: The actor died unexpectedly")) is None
    assert "base cannot be served: ValueError: no such dtype" in str(
        failure_of(application_of(f"{once}ValueError: no such dtype"))
    )
    killed = unfinished(
        [application_of(f"{once}ray.exceptions.ActorDiedError: it died"), application_of("", deployment="HEALTHY")]
    )
    assert killed == "PolicyServer:base, which failed and is started again: ray.exceptions.ActorDiedError: it died"
    assert unfinished([application_of("")]) == "PolicyServer:base"
    at_last = "The deployment failed to start 3 times in a row. Error:\nray.exceptions.ActorDiedError: it died"
    assert "base cannot be served: ray.exceptions.ActorDiedError: it died" in str(
        failure_of(application_of(at_last, "DEPLOY_FAILED", "DEPLOY_FAILED"))
    )


IN_SERVE = """ray.exceptions.RayTaskError(AttributeError): ray::ServeReplica:vidalign:PolicyServer:base.is_allocated() (pid=24006)
  File "/venv/site-packages/ray/serve/_private/replica.py", line 3479, in is_allocated
    get_component_logger_file_path(),
  File "/venv/site-packages/ray/serve/_private/logging_utils.py", line 252, in get_component_logger_file_path
    absolute_path = handler.target.baseFilename  # type: ignore[union-attr]
AttributeError: 'NoneType' object has no attribute 'baseFilename'"""


def test_what_fails_inside_of_serve_is_tried_again_and_is_one_sentence_at_last():
    once = "A replica failed to start with exception. Retrying 2 more time(s). Error:\n"
    assert failure_of(application_of(once + IN_SERVE)) is None
    at_last = str(failure_of(application_of(IN_SERVE, "DEPLOY_FAILED", "DEPLOY_FAILED")))
    assert at_last.startswith(
        "Ray Serve itself failed three times while it started base, as where its controller is killed; run the"
    )
    assert "AttributeError" not in at_last
    engine = IN_SERVE + '\nTraceback\n  File "/venv/vllm/config.py", line 1, in check\nValueError: no such dtype'
    assert "base cannot be served: ValueError: no such dtype" in str(failure_of(application_of(once + engine)))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_replica_says_where_its_log_is_also_after_vllm_has_set_up_its_own(tmp_path, monkeypatch, when):
    """vLLM's `dictConfig` closes all handlers of a process."""
    from ray.serve._private.logging_utils import get_component_logger_file_path

    monkeypatch.setattr("ray._private.worker._global_node", types.SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path)))
    logger = logging.getLogger(serve_log.NAME)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logging, "_handlerList", [])  # of other tests' handlers, none is closed
    file = logging.FileHandler(tmp_path / "replica.log")
    logger.addHandler(logging.handlers.MemoryHandler(1, target=file))
    if when == "before":
        serve_log.keep()
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    if when == "after":
        with pytest.raises(AttributeError):
            get_component_logger_file_path()
        serve_log.keep()
    assert get_component_logger_file_path() == ("/replica.log" if when == "before" else None)
    logger.error("a line")
    assert (tmp_path / "replica.log").read_text() == ("a line\n" if when == "before" else "")
    file.close()


def test_the_cause_of_an_engine_that_did_not_start_is_in_its_log_and_not_see_above(tmp_path):
    log = tmp_path / "worker.err"
    log.write_text("""(EngineCore pid=91) Traceback (most recent call last):
(EngineCore pid=91)   File "vllm/v1/engine/core.py", line 144, in __init__
(EngineCore pid=91)     raise ValueError(
(EngineCore pid=91) ValueError: Free memory on device cuda:0 (7.9/79.2 GiB) on startup is less than desired (15.8 GiB).
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
""")
    assert (
        root_cause(log)
        == "ValueError: Free memory on device cuda:0 (7.9/79.2 GiB) on startup is less than desired (15.8 GiB)."
    )
    log.write_text(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\nINFO: an Error: is no exception here\n"
    )
    assert root_cause(log).startswith("torch.OutOfMemoryError: CUDA out of memory.")
    log.write_text("INFO: loading\n")
    assert root_cause(log) == ""
    assert root_cause(None) == ""


def _checkpoint_stub(folder: pathlib.Path, weights: bytes = b"w", **card: object) -> pathlib.Path:
    folder.mkdir(parents=True)
    text = {"max_position_embeddings": 700}
    (folder / "config.json").write_text(json.dumps({"text_config": text, "dtype": "float32"}))
    (folder / "model.safetensors").write_bytes(weights)
    if card:
        (folder / CARD).write_text(json.dumps(card))
    return folder


def test_serve_takes_a_checkpoint_folder(tmp_path):
    plain = find_target(str(_checkpoint_stub(tmp_path / "plain")), ["serve.port=9001", "video.num_frames=4"])
    assert list(plain.models) == ["plain"]
    assert plain.models["plain"].version == policy_version(tmp_path / "plain").version
    assert (plain.config.model.dtype, plain.config.model.max_model_len, plain.config.serve.port) == ("float32", 700, 9001)
    assert plain.frame_spec.num_frames == 4
    assert "no vidalign.json, so frames are sampled by the defaults (4 frames, own size)" in plain.notes[0]
    exported = _checkpoint_stub(tmp_path / "new", version="abc", parent="def", frame_spec=SPEC.to_row())
    found = find_target(str(exported))
    assert found.models["new"] == PolicyVersion(version="abc", path=str(exported), parent="def")
    assert found.frame_spec == SPEC
    assert found.notes == ()


def test_serve_takes_a_run_folder(tmp_path):
    base = _checkpoint_stub(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    config = {"run_dir": str(run), "model": {"path": str(base)}, "data": {"train": "t"}, "rounds": 2}
    (run / "config.yaml").write_text(json.dumps({**config, "video": {"num_frames": 6}}))
    only_base = find_target(str(run))
    assert list(only_base.models) == ["base"]
    assert "no round of this run has exported a model yet" in only_base.notes[0]
    for index in range(2):
        _checkpoint_stub(run / "rounds" / str(index) / "model", version=f"v{index}", parent="b", frame_spec=SPEC.to_row())
    both = find_target(str(run), ["serve.media_root=/films"])
    assert {name: policy.version for name, policy in both.models.items()} == {
        "base": policy_version(base).version,
        "aligned": "v1",
    }
    assert both.frame_spec.num_frames == 6
    assert both.config.serve.media_root == "/films"
    shutil.rmtree(base)
    moved = find_target(str(run))
    assert list(moved.models) == ["aligned"]
    assert "is not there" in moved.notes[0]


def test_serve_refuses_what_is_neither(tmp_path):
    with pytest.raises(ModelError, match=r"takes a run folder .* but .*nothing is not a folder"):
        find_target(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="holds neither"):
        find_target(str(tmp_path))
    with pytest.raises(ConfigError, match=r"unknown key serve\.prot; did you mean serve\.port"):
        find_target(str(_checkpoint_stub(tmp_path / "m")), ["serve.prot=1"])


@pytest.mark.parametrize("override", ["train.num_epochs=2", "recipe.name=rrpo", "seed=3", "data.train=x", "objective={}"])
def test_an_override_that_serving_does_not_use_is_refused(tmp_path, override):
    """In a run folder as for a checkpoint; the value is not even looked at."""
    base = _checkpoint_stub(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    config = {"run_dir": str(run), "model": {"path": str(base)}, "data": {"train": "t"}}
    (run / "config.yaml").write_text(json.dumps(config))
    section = override.partition("=")[0].partition(".")[0]
    for target in (base, run):
        with pytest.raises(
            ConfigError, match=rf"'{re.escape(override)}': serving does not use {section}, only model, video"
        ):
            find_target(str(target), ["serve.port=9001", override])


@pytest.mark.parametrize("folder", ["base", "run"])
def test_overrides_of_every_section_that_serving_uses(tmp_path, folder):
    base = _checkpoint_stub(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    config = {"run_dir": str(run), "model": {"path": str(base)}, "data": {"train": "t"}}
    (run / "config.yaml").write_text(json.dumps(config))
    overrides = ["serve.port=8080", "model.dtype=float16", "video.num_frames=5", "cluster.address=head:6379"]
    found = find_target(str(tmp_path / folder), overrides).config
    assert (found.serve.port, found.model.dtype, found.video.num_frames) == (8080, "float16", 5)
    assert found.cluster.address == "head:6379"
    with pytest.raises(ConfigError, match="unknown key sreve; did you mean serve"):
        find_target(str(tmp_path / folder), ["sreve.port=1"])
    with pytest.raises(ConfigError, match=r"model\.dtype='float'"):
        find_target(str(tmp_path / folder), ["model.dtype=float"])


def test_the_round_that_a_run_serves_can_be_chosen(tmp_path):
    run = tmp_path / "run"
    config = {"run_dir": str(run), "model": {"path": "gone"}, "data": {"train": "t"}, "rounds": 2}
    for index in range(2):
        _checkpoint_stub(run / "rounds" / str(index) / "model", version=f"v{index}", parent="b", frame_spec=SPEC.to_row())
    (run / "config.yaml").write_text(json.dumps(config))
    assert find_target(str(run)).models["aligned"].version == "v1"
    assert find_target(str(run), ["rounds=1"]).models["aligned"].version == "v0"


def test_how_to_ask_is_said_for_the_endpoint_that_runs():
    text = describe(Endpoint(base_url="http://h:1/v1", versions={"base": "v0", "aligned": "v1"}, media_root="/films"))
    assert "curl http://h:1/v1/chat/completions" in text
    assert 'OpenAI(base_url="http://h:1/v1"' in text
    assert '"model": "aligned"' in text
    assert "file:///films/clip.mp4" in text
    body = text[text.index("-d '") + 4 : text.index("}'\n") + 1]
    assert json.loads(body)["messages"][0]["content"][1]["text"] == "What happens?"
    keyed = describe(Endpoint(base_url="http://h:1/v1", versions={"base": "v0"}, api_key="the endpoint's own"))
    assert "-H 'Authorization: Bearer KEY'" in keyed
    assert "the endpoint's own" not in keyed


# vLLM's media path, without an engine


@pytest.fixture(scope="module")
def connect_media(media):
    """Opens vLLM's media connector as an engine's process does: through the plugin, by the names in its configuration."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return lambda root=str(media), **options: MEDIA_CONNECTOR_REGISTRY.load(
        "vidalign", media_io_kwargs=media_io_kwargs(SPEC), allowed_local_media_path=root, **options
    )


@pytest.mark.heavy
@pytest.mark.parametrize("to_url", [pathlib.Path.as_uri, _data_url], ids=["file", "data"])
def test_vllm_gets_the_frames_of_vidalign_video(connect_media, media, to_url):
    clip = media / "clip one.mp4"
    frames, metadata = connect_media().fetch_video(to_url(clip)).media
    expected = decoding.decode(clip, SPEC)
    np.testing.assert_array_equal(frames, expected.frames)
    assert metadata == expected.metadata()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://{root}/../outside0/secret.mp4", "below the endpoint's media root"),
        ("file://{root}/%2e%2e/outside0/secret.mp4", "below the endpoint's media root"),
        ("file://{root}/link.mp4", "below the endpoint's media root"),
        ("file:///etc/passwd", "below the endpoint's media root"),
        ("file://etc/passwd", "below the endpoint's media root"),
        ("file://{root}/gone.mp4", r"video cannot be used \(missing\)"),
        ("file://{root}/cut.mp4", r"video cannot be used \(truncated\)"),
        ("http://127.0.0.1:1/clip.mp4", r"does not fetch over http\(s\)"),
        ("HTTPS://example.org/clip.mp4", r"does not fetch over http\(s\)"),
        ("ftp://example.org/clip.mp4", "media urls must begin with data:, file: or https:"),
        ("data:video/mp4,AAAA", "must be base64"),
        ("data:video/mp4;base64,AAAA", r"video cannot be used \(not_a_video\)"),
    ],
)
def test_urls_that_are_not_read(connect_media, media, url, message):
    with pytest.raises(ValueError, match=message):
        connect_media().fetch_video(url.format(root=media))


@pytest.mark.heavy
def test_no_media_root_means_no_files(connect_media, media):
    with pytest.raises(ValueError, match="has no media root"):
        connect_media(root="").fetch_video((media / "two.mp4").as_uri())


def _haproxy_configs() -> set[pathlib.Path]:
    return set(pathlib.Path("/tmp").glob("vidalign-*/*/haproxy.cfg"))


_streams: list[str] = []


def _long_stream(port: int) -> list[str]:
    import httpx

    body = chat("Hello", n=8, max_tokens=480, ignore_eos=True, stream=True, temperature=1.0) | {"model": "model"}
    with httpx.stream("POST", f"http://127.0.0.1:{port}{CHAT}", json=body, timeout=60) as reply:
        for line in reply.iter_lines():
            if line:
                _streams.append(line)
    return _streams


@pytest.mark.heavy
def test_the_command_serves_until_it_is_told_to_stop(media):
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(SHIPPED), f"serve.port={port}", "cluster.address=local"]
    folders = _haproxy_configs()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("serving at") for line in process.stdout)
            assert len(_haproxy_configs() - folders) == 1
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                words = pool.submit(_long_stream, port)
                assert _within(20, lambda: bool(_streams))
                process.terminate()
                assert words.result(60)[-1] == "data: [DONE]", "a running stream is not cut"
            assert process.wait(60) == 0
        finally:  # a second signal would end it by force
            process.kill()
    assert _haproxy_configs() == folders  # HAProxy's files are gone with it


# A real endpoint, with one policy (its replica answers HTTP) and with two (an ingress is between)

TWO = pytest.mark.parametrize("running", [("base", "aligned")], indirect=True, scope="module")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, PolicyVersion]:
    """The base, and a policy that differs from it in its weights, and whose tokenizer adds a bos that its template does not write."""
    folder = tmp_path_factory.mktemp("policies")
    shutil.copytree(SHIPPED, folder / "base")
    shutil.copytree(folder / "base", folder / "aligned")
    _perturb(folder / "aligned" / "model.safetensors")
    add_bos(folder / "aligned")
    return {name: policy_version(folder / name) for name in ("base", "aligned")}


def _perturb(weights: pathlib.Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    tensors = {
        name: tensor + 0.01 * torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def in_ray():
    from cluster.session import connect

    with connect(ClusterConfig(num_cpus=2)) as resources:
        yield resources


@contextlib.contextmanager
def _serving(models, media, **serve):
    options = ServeConfig(port=free_port(), media_root=str(media), **serve)
    with endpoint(EndpointSpec(models=models, model=MODEL, serve=options, plan=PLAN, frame_spec=SPEC)) as running:
        yield running


@pytest.mark.heavy
@pytest.mark.long
def test_a_folder_that_vllm_cannot_serve(in_ray, checkpoints, media, tmp_path):
    shutil.copytree(checkpoints["base"].path, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "architectures": ["OddModel"]}))
    with (
        pytest.raises(ModelError, match=r"^odd cannot be served: .*OddModel") as caught,
        _serving({"odd": policy_version(tmp_path / "odd")}, media),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.long
@pytest.mark.heavy
def test_an_engine_that_does_not_start_says_why(in_ray, checkpoints, media, tmp_path):
    """It fails in a process of its own, which its replica knows nothing more of."""
    shutil.copytree(checkpoints["base"].path, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with (
        pytest.raises(ModelError, match=r"^cut cannot be served: .*SafetensorError") as caught,
        _serving({"cut": policy_version(tmp_path / "cut")}, media),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=[("base",), ("base", "aligned")], ids=["one", "two"])
def running(request, in_ray, checkpoints, media):
    with _serving({name: checkpoints[name] for name in request.param}, media) as running:
        yield running


@pytest.fixture(scope="module")
def client(running):
    import openai

    with openai.OpenAI(base_url=running.base_url, api_key="none", max_retries=0) as client:
        yield client


def _ask(client, model_id: str, url: str | None = None, text: str = QUESTION, **options):
    content = [{"type": "video_url", "video_url": {"url": url}}] if url else []
    return client.chat.completions.create(
        model=model_id,
        messages=[{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
        temperature=0,
        max_tokens=12,
        **options,
    )


@pytest.mark.heavy
def test_models_are_listed_with_their_versions(running, client, checkpoints):
    cards = {card.id: card.model_dump()["metadata"] for card in client.models.list().data}
    assert {name: metadata["policy_version"] for name, metadata in cards.items()} == running.versions
    assert running.versions == {name: checkpoints[name].version for name in running.model_ids}
    assert len(set(running.versions.values())) == len(running.model_ids)
    assert {FrameSpec.from_row(metadata["frame_spec"]) for metadata in cards.values()} == {SPEC}
    assert client.models.retrieve("base").model_dump()["metadata"]["policy_version"] == running.versions["base"]


@pytest.mark.heavy
def test_every_answer_names_its_version(running, client, media):
    for model_id in running.model_ids:
        _answers_name_their_version(running, client, media, model_id)


def _answers_name_their_version(running, client, media, model_id):
    raw = client.chat.completions.with_raw_response.create(
        model=model_id, messages=[{"role": "user", "content": "Hello"}], max_tokens=4, temperature=0
    )
    assert raw.headers["x-policy-version"] == running.versions[model_id]
    completion = raw.parse()
    assert (completion.model, completion.system_fingerprint) == (model_id, running.versions[model_id])
    raw = client.completions.with_raw_response.create(model=model_id, prompt="Hello", max_tokens=4)
    assert raw.headers["x-policy-version"] == running.versions[model_id]
    chunks = list(_ask(client, model_id, (media / "two.mp4").as_uri(), stream=True))
    assert [chunk.system_fingerprint for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason] == [
        running.versions[model_id]
    ]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["clip one.mp4", "two.mp4"])
def test_the_endpoint_answers_like_hugging_face_from_the_frames_of_training(client, checkpoints, media, name):
    """Same prompt length, same greedy tokens, log-probs within 2e-3 (float32): the frames and the prompt are the same."""
    expected = _hugging_face_answer(checkpoints["base"].path, media / name)
    for url in ((media / name).as_uri(), _data_url(media / name)):
        completion = _ask(client, "base", url, logprobs=True)
        tokens = completion.choices[0].logprobs.content
        assert completion.usage.prompt_tokens == expected["prompt_length"]
        assert completion.choices[0].message.content == expected["text"]
        got = [token.logprob for token in tokens][: len(expected["log_probs"])]
        np.testing.assert_allclose(got, expected["log_probs"], atol=2e-3)
    streamed = _ask(client, "base", (media / name).as_uri(), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == expected["text"]


def _hugging_face_answer(path: str, clip: pathlib.Path) -> dict:
    from vidalign.model.batch import collate
    from vidalign.model.policy import load_policy
    from vidalign.model.rendering import load_processor, render_prompt

    processor = load_processor(path)
    prompt = render_prompt(processor, QUESTION, decoding.decode(clip, SPEC))
    output = load_policy(MODEL, path).generate(
        **collate([(prompt, [])], pad_id=0).inputs,
        do_sample=False,
        max_new_tokens=12,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = output.sequences[0, prompt.length :]
    log_probs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(output.logits, ids, strict=True)]
    text = processor.tokenizer.decode(ids, skip_special_tokens=True)
    return {"prompt_length": prompt.length, "text": text, "log_probs": log_probs}


@pytest.mark.heavy
@TWO
def test_a_tokenizers_bos_is_in_the_endpoints_prompts_as_in_those_of_training(client, checkpoints, media):
    expected = _hugging_face_answer(checkpoints["aligned"].path, media / "two.mp4")
    completion = _ask(client, "aligned", (media / "two.mp4").as_uri(), logprobs=True)
    assert completion.usage.prompt_tokens == expected["prompt_length"]
    got = [token.logprob for token in completion.choices[0].logprobs.content][: len(expected["log_probs"])]
    np.testing.assert_allclose(got, expected["log_probs"], atol=2e-3)


@pytest.mark.heavy
@TWO
def test_the_two_policies_are_two(running, client, media):
    url = (media / "two.mp4").as_uri()
    first, second = (_ask(client, name, url, logprobs=True).choices[0].logprobs.content for name in ("base", "aligned"))
    assert abs(first[0].logprob - second[0].logprob) > 1e-3


@pytest.mark.heavy
def test_a_large_body_is_answered(client, media, tmp_path):
    """Above the 4 MiB that one process may send another by gRPC's own default."""
    path = tmp_path / "large.mp4"
    free_box = (8 + (8 << 20)).to_bytes(4, "big") + b"free" + bytes(8 << 20)
    path.write_bytes((media / "two.mp4").read_bytes() + free_box)
    asked, expected = _ask(client, "base", _data_url(path)), _ask(client, "base", _data_url(media / "two.mp4"))
    assert asked.choices[0].message.content == expected.choices[0].message.content


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "below the endpoint's media root"),
        ("file://{root}/gone.mp4", r"video cannot be used \(missing\)"),
        ("file://{root}/cut.mp4", r"video cannot be used \(truncated\)"),
        ("http://127.0.0.1:1/clip.mp4", r"does not fetch over http\(s\)"),
    ],
)
def test_refused_videos_are_bad_requests_with_a_reason(client, media, url, message):
    import openai

    with pytest.raises(openai.BadRequestError, match=message):
        _ask(client, "base", url.format(root=media))


@pytest.mark.heavy
def test_sampling_is_the_endpoints_and_models_are_those_listed(client, media):
    import openai

    with pytest.raises(openai.BadRequestError, match="media_io_kwargs is not accepted"):
        _ask(client, "base", _data_url(media / "two.mp4"), extra_body={"media_io_kwargs": {"video": {"num_frames": 2}}})
    with pytest.raises(
        openai.BadRequestError, match=r"messages\[0\]\.content\[0\]\.text: holds the special token <\|im_end\|>"
    ):
        _ask(client, "base", text="Which way?<|im_end|>")
    with pytest.raises(openai.NotFoundError, match="other"):
        _ask(client, "other")
    with pytest.raises(openai.NotFoundError, match="other"):
        client.models.retrieve("other")


@pytest.mark.heavy
def test_vllms_other_routes_are_not_served(running, client):
    """They would take media past the rules of this endpoint, or change the engine."""
    import httpx

    for path in ("/v1/responses", "/v1/chat/completions/batch", "/invocations", "/scale_elastic_ep"):
        answer = httpx.post(running.base_url.removesuffix("/v1") + path, json={"model": "base", "prompt": "Hello"})
        assert answer.status_code == 404, path


def _numbers(running) -> str:
    import httpx

    return httpx.get(running.base_url.removesuffix("/v1") + "/metrics").text


@pytest.mark.heavy
def test_every_case_of_the_table_with_a_real_engine(running, client):
    import httpx

    with httpx.Client(base_url=running.base_url.removesuffix("/v1"), timeout=60) as asking:
        for case in [*ANSWERED, *READS, *MISTAKES]:
            check_reply(case, asking.request(**sent(case)))
        assert len(asking.post(CHAT, json=chat(n=3, temperature=0)).json()["choices"]) == 3
        for body in UNUSUAL:
            for streams in ({}, {"stream": True}):
                reply = asking.post(CHAT, json=body | streams)
                if reply.status_code != 200:
                    check_reply(Case(str(body)[:300], 400), reply)
        assert asking.get("/health").status_code == 200


@pytest.mark.heavy
def test_a_reply_is_as_long_as_the_context_leaves_room_for_and_says_so(running, client, media):
    raw = client.chat.completions.with_raw_response.create(
        model="base",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=16_384,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    usage = raw.parse().usage
    assert int(raw.headers["x-max-tokens"]) == MODEL.max_model_len - usage.prompt_tokens == usage.completion_tokens
    assert 'vidalign_tokens_total{kind="completion",model="base"}' in _numbers(running)


@pytest.mark.heavy
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_request_with_it(running, client, stream):
    import httpx

    left = 'vidalign_requests_total{model="base",path="/v1/chat/completions",status="499"}'
    before = _number(_numbers(running), left)
    body = chat("Hello", n=60, max_tokens=480, ignore_eos=True, stream=stream, temperature=1.0)
    if stream:
        with httpx.stream("POST", f"{running.base_url}/chat/completions", json=body, timeout=60) as reply:
            assert next(reply.iter_lines()).startswith("data: ")
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.base_url}/chat/completions", json=body, timeout=httpx.Timeout(60, read=0.5))
    assert _within(60, lambda: 'vidalign_running_sequences{model="base"} 0.0' in _numbers(running))
    assert _number(_numbers(running), left) == before + 1, "it was ended, not answered"
    assert _within(5, lambda: sum(process.cpu_percent(0.3) for process in _engines()) < 30), (
        "the engine does not go on with it"
    )
    assert _ask(client, "base").choices


def _number(numbers: str, name: str) -> float:
    return next((float(line.rpartition(" ")[2]) for line in numbers.splitlines() if line.startswith(name)), 0.0)


def _within(seconds: float, holds) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.heavy
def test_replicas_are_asked_by_haproxy(running, client):
    """Serve's own proxy names itself; a replica answers as uvicorn, and nothing else listens on the endpoint's port."""
    port = int(running.base_url.removesuffix("/v1").rpartition(":")[2])
    listening = [c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    [pid] = set(listening)
    haproxy = psutil.Process(pid)
    assert haproxy.name() == "haproxy"
    assert {c.laddr.ip for c in haproxy.net_connections("tcp") if c.status == "LISTEN"} == {"127.0.0.1"}
    bound = [re.sub(r"\.\d+\.tmp$", "", str(c.laddr)) for c in haproxy.net_connections("unix")]
    sockets = [pathlib.Path(path) for path in bound if path.endswith("admin.sock")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}
    assert stat.S_IMODE(sockets[0].parents[1].stat().st_mode) == 0o700


@pytest.mark.heavy
@TWO
def test_a_second_endpoint_on_the_same_cluster_is_refused(running, checkpoints, media):
    with (
        pytest.raises(ClusterError, match=r"Ray Serve is already running vidalign-\w+ on this cluster"),
        _serving(checkpoints, media),
    ):
        pass


@pytest.mark.heavy
@TWO
def test_evaluation_through_the_endpoint(running, client, media, tmp_path):
    right = _ask(client, "base", (media / "two.mp4").as_uri()).choices[0].message.content
    names = ["two.mp4", "clip one.mp4", "two.mp4", "cut.mp4"]
    answers = [right, "something else", "something else", right]
    examples = [
        Example(id=str(index), video=str(media / name), question=QUESTION, answer=answer, category="motion")
        for index, (name, answer) in enumerate(zip(names, answers, strict=True))
    ]
    options = {"config": EvaluateConfig(concurrency=4, max_new_tokens=12), "stage": tmp_path, "progress": False}
    result = evaluate(examples, running, model_id="base", **options)
    assert [answer.correct for answer in result.answers] == [True, False, False]
    assert {answer.policy_version for answer in result.answers} == {running.versions["base"]}
    assert [row.reason for row in result.quarantined] == ["truncated"]
    blind = evaluate(examples, running, model_id="base", blind=True, **options)
    assert len(blind.answers) == 4  # noise stands in for the broken video too
    assert {answer.model_id for answer in blind.answers} == {"blind"}


@pytest.mark.heavy
def test_two_suites_are_asked_of_a_running_endpoint(running, client, media, tmp_path):
    right = _ask(client, "base", (media / "two.mp4").as_uri()).choices[0].message.content
    row = {"question": QUESTION, "candidates": [right, "Nowhere at all."], "answer": right}
    _publish(tmp_path / "TVBench", "json/moving_direction.json", [{**row, "video": "two.mp4"}, {**row, "video": "cut.mp4"}])
    _publish(tmp_path / "TVBench", "json/action_sequence.json", [{**row, "video": "two.mp4", "start": 1.0, "end": 2.5}])
    pair = {side: {"video": "two.mp4", "question": QUESTION, "answer": "yes"} for side in ("basic", "hallucination")}
    _publish(tmp_path / "VideoHallucer", "temporal/temporal.json", [pair])
    for link in ("TVBench/video/moving_direction", "TVBench/video/action_sequence", "VideoHallucer/temporal/videos"):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(media)
    asked = models.of_endpoint(
        running.base_url, overrides=["evaluate.max_new_tokens=12"], media_root=str(media), out=str(tmp_path / "out")
    )
    assert (asked.versions, asked.frame_spec) == (running.versions, SPEC)
    tables = {}
    for name, folder in (("tvbench", "TVBench"), ("videohallucer", "VideoHallucer")):
        task = read_task(name, Request(folder=tmp_path / folder, frame_spec=asked.frame_spec), asked)
        tables[name] = evaluate_suite(task, asked)
        logs = {
            path: path.stat().st_mtime_ns for path in (tmp_path / "out" / name).glob("*.jsonl") if "marks" not in path.name
        }
        assert evaluate_suite(task, asked) == tables[name]
        assert {path: path.stat().st_mtime_ns for path in logs} == logs
    base = tables["tvbench"]["models"]["base"]
    assert (base["num_answers"], [row["reason"] for row in base["unusable_videos"]]) == (2, ["truncated"])
    assert {score["measure"]: score["n"] for score in base["scores"]} == {
        "overall": 2,
        "task: action_sequence": 1,
        "task: moving_direction": 1,
    }
    assert tables["videohallucer"]["models"]["base"]["scores"][0]["n"] == 1
    assert (tables["tvbench"]["difference"] is None) == (len(running.versions) == 1)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "running", [pytest.param(("base",), marks=pytest.mark.long), ("base", "aligned")], ids=["one", "two"], indirect=True
)
def test_an_engine_that_dies_is_said_at_once_and_comes_back(running, client):
    """The last test of this file: it kills the engine of "base"."""
    import httpx

    url = running.base_url.removesuffix("/v1")
    with httpx.Client(base_url=url, timeout=60) as asking, concurrent.futures.ThreadPoolExecutor(1) as pool:
        body = chat("Hello", n=60, max_tokens=480, ignore_eos=True, temperature=1.0)
        asked = pool.submit(asking.post, CHAT, json=body)
        assert _within(10, lambda: 'vidalign_running_sequences{model="base"} 60.0' in _numbers(running))
        [engine] = _engines("base")
        engine.kill()
        died = asked.result(30)
        assert (died.status_code, died.json()["error"]["code"]) == (503, "engine_died")
        started_at = time.monotonic()
        refused = asking.post(CHAT, json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_restarting")
        assert int(refused.headers["retry-after"]) >= 1
        assert asking.get("/health").status_code == 503
        assert time.monotonic() - started_at < 2
        assert _within(180, lambda: asking.get("/health").status_code == 200)
        assert asking.post(CHAT, json=chat()).status_code == 200


def _engines(model_id: str = "") -> list[psutil.Process]:
    """The engine cores of this machine's replicas."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            above = " ".join(" ".join(parent.cmdline()) for parent in process.parents())
            if "EngineCore" in " ".join(process.cmdline()) and f"PolicyServer:{model_id}" in above:
                found.append(process)
    return found


def _publish(folder: pathlib.Path, name: str, rows: list) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows))
