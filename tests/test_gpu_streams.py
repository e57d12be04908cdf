"""The stages of a run on two logical GPUs: each actor, rank and replica has its own, and all are free after each stage.

Ray hands out GPUs that are only numbers here, so that its rules for actors with GPUs hold. In the streams of rollout and judge an
engine that computes nothing stands in; the whole run computes on CPUs.
"""

import functools
import json
import os
import pathlib
import time

import openai
import pytest
import yaml
from conftest import ROOT, free_port
from test_recipe_units import FakeEngine

import actors.generator
import serving.app
from actors.generator import Generator
from actors.judge import Judge
from actors.learner import train_loop
from actors.reference import Reference
from cluster.plan import plan_serve
from cluster.resources import ClusterResources, Workers
from pipelines import align
from pipelines.stages import judge as judge_stage
from pipelines.stages import reference as reference_stage
from pipelines.stages import rollout as rollout_stage
from pipelines.stages import train as train_stage
from serving.spec import EndpointSpec
from vidalign import files, recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import load_config
from vidalign.config.recipes import LeanpoRecipe
from vidalign.config.run import ModelConfig, RolloutConfig, ServeConfig, VideoConfig
from vidalign.data.reading import read_examples
from vidalign.model.checkpoint import policy_version
from vidalign.recipes.judging import JudgeTask, judge_rows
from vidalign.types import FrameSpec, PolicyVersion, Response

pytestmark = pytest.mark.heavy

NUM_EXAMPLES, CHUNK = 21, 2
PATIENT_S = 120.0


@pytest.fixture(scope="module")
def two_gpus():
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}},  # for the stand-ins
    )
    yield
    ray.shutdown()


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


class OnAGpu:
    """Writes down each of its calls with the GPUs of its process, and works once two of its kind have started."""

    def enter(self, folder: pathlib.Path) -> None:
        self.folder = folder / "calls"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{os.getpid()}.started").touch()

    def note(self, number: int, count: int) -> None:
        import ray

        wait_until(lambda: len(list(self.folder.glob("*.started"))) == 2)
        line = {"number": number, "count": count, "gpus": ray.get_gpu_ids(), "visible": os.environ["CUDA_VISIBLE_DEVICES"]}
        with (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class Standing(FakeEngine):
    def take_seconds(self):
        return {"waiting": 0.0, "working": 0.0}


class GeneratorOnAGpu(OnAGpu, Generator):
    def __init__(self, **settings):
        assert settings["num_gpus"] == 1
        self.enter(pathlib.Path(settings["parts"]))
        actors.generator.VllmEngine = lambda *_, **__: Standing(lambda request: f"reply to {request.prompt}")
        super().__init__(**settings)

    def __call__(self, row):
        made = super().__call__(row)
        self.note(made["chunk"], made["num_examples"])
        return made


class JudgeOnAGpu(OnAGpu, Judge):
    def __init__(self, config, parts, work, **more):
        assert config["num_gpus"] == 1
        self.enter(pathlib.Path(parts))
        super().__init__(config, parts, work, **more)
        self._chat, self._name = (lambda conversations: ["Score: 5"] * len(conversations)), "stand-in"

    def __call__(self, row):
        made = super().__call__(row)
        self.note(int(row["part"]), made["judged"])
        return made


def calls(parts: pathlib.Path) -> list[dict]:
    by_actor = [files.read_jsonl(path) for path in (parts / "calls").glob("*.jsonl")]
    assert len(by_actor) == 2, "each actor had a share"
    assert sorted({tuple(line["gpus"]) for lines in by_actor for line in lines}) == [(0,), (1,)]
    assert {line["visible"] for lines in by_actor for line in lines} == {"0", "1"}
    assert all(len({line["visible"] for line in lines}) == 1 for lines in by_actor)
    return sorted((line for lines in by_actor for line in lines), key=lambda line: line["number"])


def assert_gpus_are_free() -> None:
    import ray

    wait_until(lambda: ray.available_resources().get("GPU") == 2.0)


def test_rollout(two_gpus, shapes, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_stage, "Generator", GeneratorOnAGpu)
    examples = read_examples(shapes / "train.jsonl")[:NUM_EXAMPLES]
    stage = rollout_stage.Rollout(
        folder=tmp_path / "responses",
        quarantine=tmp_path / "quarantine",
        cache=tmp_path / "frames",
        round_index=0,
        model=ModelConfig(path=model_path, dtype="float32", max_model_len=512),
        video=VideoConfig(num_frames=4, height=56, width=56),
        rollout=RolloutConfig(batch_size=CHUNK),
        recipe=recipes.build(LeanpoRecipe(num_candidates=1)),
        policy=PolicyVersion(version="v", path=model_path, parent=""),
        train=examples,
        probe=[],
        decoders=Workers(num=2, cpus=1),
        engines=Workers(num=2, cpus=1, gpus=1),
        engine_seed=0,
    )
    stage.run()
    counts = [CHUNK] * (NUM_EXAMPLES // CHUNK) + [NUM_EXAMPLES % CHUNK]
    assert [(line["number"], line["count"]) for line in calls(stage.folder / "parts")] == list(enumerate(counts))
    answered = [r.example_id for r in files.read_table(stage.folder / "responses.parquet", Response)]
    assert list(dict.fromkeys(answered)) == [example.id for example in examples]
    assert_gpus_are_free()


def test_judge(two_gpus, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_stage, "Judge", JudgeOnAGpu)
    monkeypatch.setattr(judge_stage, "BATCH_SIZE", CHUNK)
    rows = [
        {"example_id": f"e{number}", "question": "q", "answer": "a", "response": "r", "caption": "c, [d] {e}"}
        for number in range(NUM_EXAMPLES)
    ]
    stage = judge_stage.Judging(
        folder=tmp_path / "judgements",
        judge=JudgeConfig(kind="vllm", model="none", num_gpus=1),
        task=JudgeTask(rows=[json.dumps(row) for row in rows], work=judge_rows),
        engines=Workers(num=2, cpus=1, gpus=1),
        label="judge",
    )
    stage.run()
    counts = [CHUNK] * (NUM_EXAMPLES // CHUNK) + [NUM_EXAMPLES % CHUNK]
    assert [(line["number"], line["count"]) for line in calls(stage.folder / "parts")] == list(enumerate(counts))
    assert [row["example_id"] for row in stage.rows()] == [row["example_id"] for row in rows]
    assert_gpus_are_free()


class GeneratorOnCpu(Generator):
    def __init__(self, **settings):
        from server_on_cpu import note_gpus

        assert settings["num_gpus"] == 1
        note_gpus(pathlib.Path(settings["parts"]).parent / "given")
        super().__init__(**{**settings, "num_gpus": 0})


class ReferenceOnCpu(Reference):
    def __init__(self, **settings):
        from server_on_cpu import note_gpus

        assert settings["use_gpu"]
        note_gpus(pathlib.Path(settings["kept"]).parent / "given")
        super().__init__(**{**settings, "use_gpu": False})


def train_on_cpu(config):
    import ray.train.torch
    import torch
    from server_on_cpu import note_gpus

    note_gpus(pathlib.Path(config["stage"], "given"))
    assert ray.train.torch.get_device().type == "cuda"
    ray.train.torch.get_device = lambda: torch.device("cpu")
    train_loop(config)


def serves_on_cpu(monkeypatch, given: pathlib.Path) -> None:
    """Replicas write down in this folder which GPUs they are given, and compute on CPUs."""
    options = serving.app.llm_options

    def options_on_cpu(spec, model_id, policy):
        made = options(spec, model_id, policy)
        made["runtime_env"]["env_vars"] |= {"GPUS_GIVEN": str(given), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return made | {"server_cls": "server_on_cpu.ServerOnCpu"}

    monkeypatch.setattr(serving.app, "llm_options", options_on_cpu)


@pytest.mark.long
def test_base_and_aligned_share_a_gpu(two_gpus, model_path, tmp_path, monkeypatch):
    """As `vidalign serve` of a run has them where there is one GPU: vLLM's workers ask for the share that their bundles hold."""
    serves_on_cpu(monkeypatch, tmp_path)
    serve = ServeConfig(port=free_port(), engine_args={"enforce_eager": True, "kv_cache_memory_bytes": 2**28})
    plan = plan_serve(serve, ClusterResources(num_cpus=8, num_gpus=1), 2)
    assert plan.bundle_gpus == 0.5
    spec = EndpointSpec(
        models=dict.fromkeys(("base", "aligned"), policy_version(model_path)),
        model=ModelConfig(path=model_path, dtype="float32", max_model_len=512),
        serve=serve,
        plan=plan,
        frame_spec=FrameSpec(num_frames=4, height=56, width=56),
    )
    with serving.app.endpoint(spec) as running:
        client = openai.OpenAI(base_url=running.base_url, api_key=running.api_key)
        asked = [{"role": "user", "content": "What moves?"}]
        for name in spec.models:
            assert client.chat.completions.create(model=name, messages=asked, max_tokens=4).usage.completion_tokens > 0
    given = [files.read_json(path)["gpus"] for path in tmp_path.glob("*.json")]
    assert [len(gpus) for gpus in given] == [1, 1]
    assert_gpus_are_free()


@pytest.mark.long
def test_a_run(two_gpus, shapes, model_path, small_config, tmp_path, monkeypatch):
    """Rollout, reference, training and evaluation, from the configuration that a user writes."""
    import ray.train.torch

    run = tmp_path / "run/rounds/0"
    finished = []

    def and_all_are_free(stage):
        facts = once(stage)
        finished.append(stage.name)
        assert_gpus_are_free()
        return facts

    once = align.once
    monkeypatch.setattr(align, "once", and_all_are_free)
    monkeypatch.setattr(rollout_stage, "Generator", GeneratorOnCpu)
    monkeypatch.setattr(reference_stage, "Reference", ReferenceOnCpu)
    monkeypatch.setattr(train_stage, "train_loop", train_on_cpu)
    on_gloo = functools.partial(ray.train.torch.TorchTrainer, torch_config=ray.train.torch.TorchConfig(backend="gloo"))
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", on_gloo)
    serves_on_cpu(monkeypatch, run / "eval/given")
    raw = yaml.safe_load(small_config.read_text()) | {"run_dir": str(tmp_path / "run")}
    raw["data"] |= {"limit": 12, "eval_limit": 4}
    raw["rollout"] = {"batch_size": 3}
    raw["train"] |= {"num_workers": 2, "micro_batch_size": 2, "uncertainty": {"drop_disagreeing": False}}
    raw["evaluate"] |= {"blind": False}
    raw["serve"]["engine_args"] = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    align.align(load_config(tmp_path / "config.yaml"), ("rollout", "train", "evaluate"))
    assert finished == ["rollout", "pairs", "train", "evaluate", "score"]
    for stage in ("responses", "reference", "train", "eval"):
        given = [files.read_json(path) for path in (run / stage / "given").glob("*.json")]
        assert sorted(process["gpus"] for process in given) == [[0], [1]], stage
