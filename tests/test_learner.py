"""The learner under Ray Train and DeepSpeed: ZeRO stages, workers, adapters and precisions give the training they should."""

import pathlib
import shutil

import numpy as np
import pytest
from conftest import plan_of
from safetensors.torch import load_file

from cluster.resources import ClusterResources
from pipelines.inputs import read_inputs
from pipelines.rounds import Rounds, aligned_policy
from pipelines.stages.base import once
from vidalign import files
from vidalign.config.loading import load_config
from vidalign.config.run import RunConfig
from vidalign.files import RunFolder
from vidalign.model.checkpoint import policy_version, read_card

pytestmark = pytest.mark.heavy


@pytest.fixture
def trained(finished_run, small_config, tmp_path, local_ray):
    """Train on the pairs of the finished run with other settings; returns the exported folder and the measurements."""

    def run(*overrides: str) -> tuple[pathlib.Path, list[dict]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(
            finished_run, folder, ignore=shutil.ignore_patterns("train", "model", "eval", "report", "summary.json")
        )
        config: RunConfig = load_config(small_config, [f"run_dir={folder}", "train.checkpoint_every=1000", *overrides])
        opened = RunFolder.open(config.run_dir)
        resources = ClusterResources(num_cpus=local_ray.num_cpus)
        inputs = read_inputs(config.data, config.recipe, splits=())
        base = policy_version(config.model.path)
        rounds = Rounds(config=config, run=opened, plan=plan_of(config, resources), inputs=inputs, base=base)
        once(rounds.train(0))
        return pathlib.Path(aligned_policy(opened, 0).path), files.read_jsonl(opened.stage("train") / "metrics.jsonl")

    return run


def weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """As float32, whatever they are stored in."""
    return {name: value.float().numpy() for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


ALIKE = [  # with the finished run every setting of each kind at least once (ZeRO 0: tests/test_zero3.py); the long form has others
    (
        "train.zero_stage=1",
        "train.num_workers=2",
        "train.micro_batch_size=1",
        "train.shared_prefix=false",
        "train.cache_vision_features=true",
    ),
    ("train.zero_stage=3", "train.num_workers=2", "train.micro_batch_size=1", "train.tokens_per_micro_batch=400"),
]
ALSO_ALIKE = [
    ("train.zero_stage=0", "train.micro_batch_size=1", "train.shared_prefix=false", "train.cache_vision_features=true"),
    ("train.zero_stage=1", "train.num_workers=2", "train.micro_batch_size=2"),
    ("train.zero_stage=3", "train.micro_batch_size=2", "train.cache_vision_features=true"),
    ("train.zero_stage=0", "train.micro_batch_size=1"),
    ("train.zero_stage=3", "train.num_workers=2", "train.micro_batch_size=1", "train.shared_prefix=false"),
    ("train.zero_stage=2", "train.num_workers=2", "train.micro_batch_size=1", "train.tokens_per_micro_batch=400"),
]


@pytest.mark.parametrize(
    "overrides", [*ALIKE, *(pytest.param(overrides, marks=pytest.mark.long) for overrides in ALSO_ALIKE)], ids=" ".join
)
def test_stages_workers_and_accumulation_train_alike(trained, finished_run, model_path, overrides):
    """One step of 4 pairs is the same step, however it is cut and sharded; the finished run is ZeRO 2, 1 worker, 1 x 4."""
    folder, rows = trained(*overrides)
    card = read_card(folder)
    assert card is not None
    assert card["parent"] == policy_version(model_path).version
    made, expected = weights(folder), weights(finished_run / "rounds/0/model")
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, atol=2e-4, err_msg=name)
    reference = files.read_jsonl(finished_run / "rounds/0/train/metrics.jsonl")
    for name in ("loss", "chosen_logp", "rejected_logp", "truth_logp"):
        assert rows[-1][name] == pytest.approx(reference[-1][name], abs=2e-3), name
    for name in ("loss", "grad_norm") if "train.zero_stage=0" not in overrides else ("loss",):
        assert rows[1][name] == pytest.approx(reference[1][name], rel=1e-4), name


def test_frozen_parts_do_not_move_and_the_rest_does(finished_run, model_path):
    before, after = weights(pathlib.Path(model_path)), weights(finished_run / "rounds/0/model")
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if "visual" in name]


def test_an_adapter_is_merged_into_a_complete_folder(trained, model_path):
    folder, rows = trained("train.lora={rank: 4, alpha: 8}", "train.learning_rate=1e-3")
    before, after = weights(pathlib.Path(model_path)), weights(folder)
    assert after.keys() == before.keys()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved
    assert all("proj" in name and "visual" not in name for name in moved)
    assert rows[-1]["chosen_logp"] != rows[0]["chosen_logp"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json", "vidalign.json"} <= names


def test_bfloat16_and_a_reference(trained):
    """DPO's rewards start at 0 because the reference is the policy itself; it trains in bfloat16 too."""
    folder, rows = trained("objective.name=dpo", "model.dtype=bfloat16", "train.learning_rate=1e-4")
    assert np.isfinite([row["loss"] for row in rows[1:]]).all()
    assert rows[1]["loss"] == pytest.approx(np.log(2), abs=0.05)
    assert rows[-1]["margin"] > rows[0]["margin"]
    assert (folder / "model.safetensors").is_file()


def test_nothing_but_the_policy_and_its_figures_is_left(finished_run):
    """Checkpoints hold the optimizer's states, several times the weights."""
    folder = finished_run / "rounds/0/train"
    assert not (folder / "ray").exists()
    assert (folder / "metrics.jsonl").is_file()
