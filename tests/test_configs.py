"""The 7B configurations of configs/: a dry run accepts each for a node of eight GPUs of 80 GB, at the size of the real model."""

import json
import shutil

import pytest
import yaml
from conftest import ROOT, plan_of
from test_dry_run import write_clip
from test_frame_choice import tiny_towers
from test_memory import counted_once, facts  # noqa: F401 (a fixture that is used by itself)

from cluster.described import described
from pipelines.checks.memory import check_memory
from pipelines.cli import main
from vidalign.config.loading import parse_config
from vidalign.config.rounds import at

NAMES = sorted(path.name for path in (ROOT / "configs").glob("*-7b.yaml"))
TOKENS = 2600  # of a prompt with 16 frames of 448 x 448, and its two responses


def read(name):
    return yaml.safe_load((ROOT / "configs" / name).read_text())


def recipes_of(raw):
    steps = raw["rounds"] if isinstance(raw.get("rounds"), list) else []
    return [raw["recipe"], *(step.get("recipe", {}) for step in steps)]


@pytest.fixture(scope="module")
def model(checkpoints, tmp_path_factory):
    """A tiny Qwen2.5-VL made for as many positions as the configurations need."""
    folder = shutil.copytree(checkpoints("qwen2_5_vl"), tmp_path_factory.mktemp("model") / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 128_000
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_there_is_one_for_each_method():
    methods = (
        "bmc",
        "dapo",
        "dr-grpo",
        "dvpo",
        "gspo",
        "hound-dpo",
        "leanpo",
        "mixdpo",
        "mpo",
        "overlap",
        "reagent",
        "rrpo",
        "sft",
        "temple",
        "tgrpo",
        "vdpo",
        "veripo",
    )
    assert [f"{method}-7b.yaml" for method in methods] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_accepts_it(name, model, tmp_path, monkeypatch, capsys):
    """All of the file's options; data, and a model of the family, are small."""
    monkeypatch.setattr("pipelines.checks.model.check_architecture", lambda *a, **k: None)
    raw = read(name)
    for split, shade in (("train", 10), ("eval", 60), ("probe", 110)):
        write_clip(tmp_path / f"{split}.mp4", shade)
        row = {
            "id": split,
            "video": f"{split}.mp4",
            "question": "What moves?",
            "answer": "A circle.",
            "caption": "A circle.",
        }
        count = max(each.get("num_prompts", 1) for each in recipes_of(raw)) if split == "train" else 1
        rows = [row | {"id": f"{split}{number}", "question": f"What moves? {number}"} for number in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        raw["data"][split] = str(tmp_path / f"{split}.jsonl")
    raw["run_dir"], raw["model"]["path"] = str(tmp_path / "run"), model
    if "choice" in raw["video"]:
        raw["video"]["choice"]["relevance"] = str(tiny_towers(tmp_path / "clip", "clip"))
    for recipe in recipes_of(raw):
        if recipe.get("judge"):
            recipe["judge"]["model"] = model
    (tmp_path / name).write_text(yaml.safe_dump(raw))
    code, said = main(["align", str(tmp_path / name), "--dry-run", "--on", "8x80"]), capsys.readouterr()
    assert code == 0, said.err
    assert "training: each GPU holds" in said.out
    assert ("32 to 32 of 128 a video, chosen by" in said.out) == ("choice" in raw["video"])


@pytest.mark.parametrize("name", NAMES)
def test_the_real_model_fits(name):
    config, machines = parse_config(read(name)), described("8x80")
    assert config.train.cache_vision_features
    assert config.train.tokens_per_micro_batch
    if config.recipe.name in ("hound", "rrpo") and config.recipe.judge:  # its judge is a model that is not here
        raw = read(name)
        raw["recipe"]["judge"] = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
        config = parse_config(raw)
    made = plan_of(config, machines.resources)
    lines = check_memory(
        config, made, facts(), machines, num_tokens=TOKENS, stages=("rollout", "train", "evaluate", "report")
    )
    tokens = f"for {config.train.tokens_per_micro_batch:,} tokens"
    assert any(line.startswith("training: each GPU holds") and tokens in line for line in lines)


def test_the_curriculum_is_a_perturbation_a_round_from_strong_to_weak():
    config = parse_config(read("temple-7b.yaml"))
    shown = [at(config, index).recipe.perturb for index in range(config.rounds)]
    assert [(each.keep, each.shuffle, each.mask_area) for each in shown] == [
        ("segment", "none", None),
        ("all", "reverse", None),
        ("drop", "none", None),
        ("all", "local", None),
    ]
    assert {at(config, index).recipe.trust for index in range(config.rounds)} == {"f1"}
