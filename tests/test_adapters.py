"""Adapters over one engine: which are served so, and that replies are those of the merged weights."""

import asyncio
import base64
import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile

import httpx
import numpy as np
import psutil
import pytest
from conftest import free_port, vidalign, write_video
from contract_table import CHAT, chat

from cluster.plan import plan_serve
from cluster.resources import ClusterResources
from pipelines import candidates
from pipelines.serve import find_target, only, spec_of
from pipelines.versions import adapter_for
from serving.adapters import engine_options
from serving.app import endpoint
from serving.catalog import Catalog
from serving.request_rules import Served
from serving.spec import EndpointSpec
from serving.versions import Table, rows_of
from vidalign.config.run import LimitsConfig, ModelConfig, ServeConfig
from vidalign.config.training import LoraConfig, TrainConfig
from vidalign.errors import ConfigError, ModelError
from vidalign.model.checkpoint import CARD, policy_version
from vidalign.types import FrameSpec, PolicyVersion

SPEC = FrameSpec(num_frames=8, height=56, width=56)
ON = ["serve.adapters=true"]
LOGICAL = ClusterResources(num_cpus=8, num_gpus=1)


def make_run(folder: pathlib.Path, base: pathlib.Path, *, parents: list[str], adapters: bool = True) -> pathlib.Path:
    """A run whose rounds hold stubs of policies and of their adapters."""
    config = {"run_dir": str(folder), "model": {"path": str(base)}, "data": {"train": "t"}, "rounds": len(parents)}
    config["video"] = {"num_frames": 8, "height": 56, "width": 56}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    for index, parent in enumerate(parents):
        model = folder / "rounds" / str(index) / "model"
        (model / "adapter").mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"w")
        (model / "generation_config.json").write_text('{"eos_token_id": 2}')
        if adapters:
            (model / "adapter" / "adapter_config.json").write_text('{"r": 24}')
            (model / "adapter" / "adapter_model.safetensors").write_bytes(b"a")
        card = {"version": f"v{index}", "parent": parent, "frame_spec": SPEC.to_row(), "plain_prompt": "{question}"}
        (model / CARD).write_text(json.dumps(card))
    return folder


@pytest.fixture
def base(tmp_path) -> pathlib.Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": "float32"}))
    (folder / "model.safetensors").write_bytes(b"base")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2]}')
    return folder


def test_a_run_that_kept_its_adapter_needs_one_engine(tmp_path, base):
    run = make_run(tmp_path / "run", base, parents=[policy_version(base).version])
    found = find_target(str(run), ON)
    folder = str(run / "rounds/0/model/adapter")
    assert found.adapters == {"aligned": folder}
    assert find_target(str(run)).adapters == {}
    assert only(found, "aligned").adapters == {}, "alone it has an engine"
    spec = spec_of(found, LOGICAL)
    assert (spec.plan.num_models, spec.plan.further, spec.plan.bundle_gpus) == (1, 0, 1.0), "the GPU is not shared"
    assert engine_options(spec.adapters) == {
        "enable_lora": True,
        "max_lora_rank": 32,
        "max_loras": 2,
        "max_cpu_loras": 8,
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no adapter", "was exported without its adapter; train with train.lora.export=both, or leave serve.adapters out"),
        ("another parent", "was trained over another, and the base is"),
        ("other ends", "generation_config.json), so one engine cannot give both; leave serve.adapters out"),
        ("no round", "serve.adapters needs a base and a policy, and {run} has no exported policy; leave it out"),
        ("no base", "has no base model; leave it out"),
        ("no weights", "was exported without its adapter"),
    ],
)
def test_what_is_not_served_over_the_base_is_one_sentence(tmp_path, base, change, says):
    parents = [] if change == "no round" else ["another" if change == "another parent" else policy_version(base).version]
    run = make_run(tmp_path / "run", base, parents=parents, adapters=change != "no adapter")
    if change == "no round":
        config = json.loads((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(json.dumps({**config, "rounds": 1}))
    if change == "other ends":
        (run / "rounds/0/model/generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    if change == "no base":
        shutil.rmtree(base)
    if change == "no weights":
        (run / "rounds/0/model/adapter/adapter_model.safetensors").rename(run / "adapter_model.bin")
    with pytest.raises(ModelError) as caught:
        find_target(str(run), ON)
    assert says.format(run=run) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_alone_has_no_adapters(base):
    with pytest.raises(ConfigError, match=r"serve\.adapters is for a run with a base and a policy"):
        find_target(str(base), ON)


def test_a_rank_that_vllm_does_not_take_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 1024}')
    with pytest.raises(ModelError, match=r"has rank 1024, and vLLM takes up to 512"):
        engine_options({"aligned": str(tmp_path)})


def served(version: str) -> Served:
    return Served(version=version, frame_spec=SPEC, media={"video": 1}, max_model_len=512)


def test_versions_over_one_engine_share_its_places_and_are_drained_apart():
    rows = rows_of({"base": served("b"), "aligned": served("v0")}, adapters={"aligned": "/a"})
    aligned = rows[1]
    assert (aligned.engine, aligned.name_there, aligned.deployment, aligned.goes) == (
        "base",
        "aligned@v0",
        "PolicyServer:base",
        True,
    )
    assert (rows[0].engine, rows[0].name_there, rows[0].goes) == ("base", "base", False)
    catalog = Catalog(rows, LimitsConfig(max_sequences=64), works=lambda: {"base": True, "aligned": True})
    assert catalog.places(rows[0]) is catalog.places(aligned)

    async def ask():
        async with catalog.place(aligned, "c", 3):
            return catalog.busy(), catalog.places(rows[0]).running

    assert asyncio.run(ask()) == ({"base": 0, "aligned": 3}, 3)
    assert catalog.busy() == {"base": 0, "aligned": 0}


def test_a_round_over_another_policy_gets_an_engine_of_its_own_and_that_is_said(tmp_path, base, capsys):
    run = make_run(tmp_path / "run", base, parents=[policy_version(base).version, "v0"])
    plan = plan_serve(ServeConfig(), LOGICAL, 1)
    spec = EndpointSpec(
        models={"base": policy_version(base)},
        model=ModelConfig(path=str(base)),
        serve=ServeConfig(),
        plan=plan,
        frame_spec=SPEC,
        adapters={"aligned": "/a"},
    )
    table = Table(id="i", rows=rows_of({"base": served("b"), "aligned": served("v")}, adapters=spec.adapters), spec=spec)
    first, second = (candidates.find_candidate(f"{run}:{index}") for index in (0, 1))
    assert adapter_for(table, first) == str(run / "rounds/0/model/adapter")
    assert adapter_for(table, second) == ""
    assert "note: it gets an engine of its own: the adapter of" in capsys.readouterr().err
    assert adapter_for(dataclasses.replace(table, spec=dataclasses.replace(spec, adapters={})), first) == ""


# A real engine


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_path) -> pathlib.Path:
    """A run whose two rounds have trained adapters from the base, and exported them with the merged weights."""
    import torch

    from vidalign.model.adapters import add_adapter
    from vidalign.model.checkpoint import export_policy
    from vidalign.model.policy import load_policy

    folder = tmp_path_factory.mktemp("run")
    config = {"run_dir": str(folder), "model": {"path": model_path, "dtype": "float32", "max_model_len": 512}}
    config |= {"data": {"train": "t"}, "rounds": 2, "video": {"num_frames": 8, "height": 56, "width": 56}}
    (folder / "config.yaml").write_text(json.dumps(config))
    for index in range(2):
        torch.manual_seed(index)
        model = load_policy(ModelConfig(**config["model"]), model_path)
        adapted = add_adapter(model, TrainConfig(lora=LoraConfig(rank=8, alpha=16)))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # which begins at 0
                torch.nn.init.normal_(parameter, std=0.05)
        export_policy(
            adapted,
            folder / "rounds" / str(index) / "model",
            base=model_path,
            parent=policy_version(model_path).version,
            frame_spec=SPEC,
            prompt="{question}",
            zero_stage=0,
            keep_adapter=True,
        )
    return folder


QUESTIONS = ("Which way does it move?", "Hello", "What color is the object? Answer with one word.")


@functools.cache
def about_a_video() -> list[dict[str, object]]:
    """The content of a question with a video."""
    frames = [np.full((56, 56, 3), 20, np.uint8) for _ in range(8)]
    for index, frame in enumerate(frames):
        frame[20:32, 4 * index : 4 * index + 12] = (220, 30, 30)
    with tempfile.TemporaryDirectory() as folder:
        data = write_video(pathlib.Path(folder) / "clip.mp4", frames).read_bytes()
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    return [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTIONS[0]}]


def replies(url: str, model_id: str, **options: object) -> list[tuple[str, str, str, list[float]]]:
    """Text, name and version of greedy replies, and the log-probs of their tokens."""
    found = []
    for question in [*QUESTIONS, about_a_video()]:
        body = chat(question, max_tokens=16, temperature=0, logprobs=True, ignore_eos=True, **options) | {"model": model_id}
        reply = httpx.post(url + CHAT, json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        row = reply.json()
        tokens = row["choices"][0]["logprobs"]["content"]
        found.append(
            ([token["token"] for token in tokens], row["model"], row["system_fingerprint"], [t["logprob"] for t in tokens])
        )
        assert reply.headers["x-policy-version"] == row["system_fingerprint"]
    return found


@pytest.mark.heavy
@pytest.mark.long
def test_replies_are_those_of_the_merged_weights_and_a_promotion_starts_no_engine(local_ray, run, model_path):
    import ray

    merged = [candidates.find_candidate(f"{run}:{index}").policy for index in range(2)]
    expected = {policy.version: greedy(policy, local_ray) for policy in merged}
    found = find_target(str(run), [*ON, f"serve.port={free_port()}", "rounds=1"])
    assert found.models["aligned"].version == merged[0].version
    with endpoint(spec_of(found, local_ray)) as running:
        url = running.base_url.removesuffix("/v1")
        to = ray.get_runtime_context().gcs_address
        actors = replicas()
        by_base = replies(url, "base")
        check(replies(url, "aligned"), expected, merged[0].version)
        done = vidalign("promote", f"{run}:1", "--to", to, timeout_s=120)
        assert done.returncode == 0, done.stderr[-3000:]
        check(replies(url, "aligned"), expected, merged[1].version)
        check(replies(url, f"aligned@{merged[0].version}"), expected, merged[0].version)
        assert replies(url, "base") == by_base, "the base is what it was"
        assert by_base[0][0] != expected[merged[0].version][0][0], "and other than they"
        assert replicas() == actors, "no engine was started"
        cards = {card["id"]: card["metadata"] for card in httpx.get(f"{url}/v1/models").json()["data"]}
        assert cards["aligned"]["policy_version"] == merged[1].version
        assert cards["aligned"]["parent"] == policy_version(model_path).version
        assert vidalign("rollback", "--to", to, timeout_s=120).returncode == 0
        check(replies(url, "aligned"), expected, merged[0].version)
        broken = run.parent / "broken"
        shutil.copytree(run, broken)
        weights, card = (broken / "rounds/1/model" / name for name in ("adapter/adapter_model.safetensors", CARD))
        weights.write_bytes(weights.read_bytes()[:100])
        card.write_text(json.dumps(json.loads(card.read_text()) | {"version": "broken"}))
        refused = vidalign("promote", f"{broken}:1", "--to", to, timeout_s=120)
        assert refused.returncode == 2
        assert "cannot be served" in refused.stderr
        assert "Traceback" not in refused.stderr
        check(replies(url, "aligned"), expected, merged[0].version)


def greedy(policy: PolicyVersion, resources) -> list:
    """The replies of merged weights in an engine of their own."""
    serve = ServeConfig(port=free_port())
    spec = EndpointSpec(
        models={"aligned": policy},
        model=ModelConfig(path=policy.path, dtype="float32", max_model_len=512),
        serve=serve,
        plan=plan_serve(serve, resources, 1),
        frame_spec=SPEC,
    )
    with endpoint(spec) as running:
        return replies(running.base_url.removesuffix("/v1"), "aligned")


def check(got: list, expected: dict, version: str) -> None:
    for (tokens, name, fingerprint, log_probs), (others, _, _, theirs) in zip(got, expected[version], strict=True):
        assert (tokens, name, fingerprint) == (others, "aligned", version)
        assert log_probs == pytest.approx(theirs, abs=1e-3)


def replicas() -> set[int]:
    """The processes of replicas of this machine."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ServeReplica" in (command := " ".join(process.cmdline())) and "PolicyServer" in command:
                found.add(process.pid)
    return found
