"""GRPO from videos to an exported policy, through real Ray, vLLM and DeepSpeed, by the command."""

import dataclasses
import json
import math
import random

import gloo_ranks
import pytest
import torch
import yaml
from conftest import vidalign
from test_augment import make_clip
from test_zero3 import CHUNK_SIZE, job

from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.data.reading import read_examples
from vidalign.data.scorers import exact
from vidalign.learning import objectives
from vidalign.learning.advantages import is_uniform
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.group_data import training_group
from vidalign.learning.views import by_rows
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import cached_processor, response_ids
from vidalign.model.tensor_cache import read_tensors
from vidalign.recipes.rewards import temporal
from vidalign.types import Example, FrameSpec, Response, ResponseGroup
from vidalign.video.frame_cache import FrameCache

pytestmark = pytest.mark.heavy
TOLERANCE = 1.5e-3  # nats; vLLM and transformers use different attention kernels and batch shapes (tests/test_engine.py)
NUM_EXAMPLES, NUM_REPLIES = 24, 4


def test_grpo_starts_where_its_replies_were_sampled(small_config, shapes, model_path, tmp_path):
    raw = yaml.safe_load(small_config.read_text())
    raw["data"].pop("eval")
    raw["data"]["limit"] = raw["rollout"]["batch_size"] = NUM_EXAMPLES
    raw["train"] |= {"batch_size": 12, "micro_batch_size": 4, "log_every": 1, "checkpoint_every": 1000}
    raw |= {
        "run_dir": str(tmp_path / "run"),
        "recipe": {
            "name": "group",
            "num_candidates": NUM_REPLIES,
            "max_new_tokens": 24,
            "trust": "exact",
            "rewards": {"accuracy": 1.0, "temporal": 0.3},
            "num_shuffled": 2,
        },
        "objective": {"name": "grpo"},
        "cluster": {"address": "local"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = vidalign("align", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "run"
    groups = files.read_table(run / "rounds/0/pairs/groups.parquet", ResponseGroup)
    replies = files.read_table(run / "rounds/0/responses/responses.parquet", Response)
    sampled = {(r.example_id, r.candidate): (r.token_ids, r.log_probs) for r in replies if r.kind == "plain"}
    assert len(sampled) == NUM_EXAMPLES * NUM_REPLIES
    examples = {example.id: example for example in read_examples(shapes / "train.jsonl")}
    for group in groups:
        example = examples[group.example_id]
        shuffled = [r for r in replies if r.kind == "shuffled" and r.example_id == example.id]
        assert len(shuffled) == 2
        right = [None if why else exact(text, example) for text, why in zip(group.texts, group.left_out, strict=True)]
        mixed = [exact(r.text, example) for r in shuffled if r.finish_reason == "stop"]
        for reward, own, bonus in zip(group.rewards, right, temporal(right, mixed, 0.8), strict=True):
            assert math.isnan(reward) if own is None or bonus is None else reward == pytest.approx(own + 0.3 * bonus)
    summary = json.loads((run / "summary.json").read_text())
    counted = summary["groups"]
    assert counted["kept"] + sum(counted["dropped"].values()) == NUM_EXAMPLES
    assert counted["all_alike"] == sum(is_uniform(group.rewards) for group in groups) < len(groups)
    assert counted["replies"] + sum(counted["left_out"].values()) == len(groups) * NUM_REPLIES
    assert summary["policy"]["aligned"] != summary["policy"]["base"]
    assert "Groups" in (run / "report/index.html").read_text()

    # Behaviour log-probs are the learner's own: computed again here, by its parts, and as the learner kept and logged them.
    model = load_policy(ModelConfig(path=model_path, dtype="float32", max_model_len=512))
    source = BatchSource(
        frames=files.read_places(run / "rounds/0/responses/frames.json"),
        processor=cached_processor(model_path),
        plain_prompt="{question}",
        max_model_len=512,
        number=shared_prefix.numbering(model),
    )
    made = [training_group(group, sampled, objectives.build("grpo", {})) for group in groups]
    batch = source.batch(made)
    with torch.no_grad():
        logps, _, _ = ResponseScorer(model, packed=True).eval()(batch.inputs, batch.labels, None, batch.sources)
    mask = batch.labels != IGNORED
    kept = files.read_places(run / "rounds/0/reference/files.json")
    reference = {group.id: read_tensors(kept[group.id]) for group in made}
    for row, response in enumerate(by_rows(made)):
        if response.weight:
            behaviour = torch.tensor(response.behaviour_logps)
            name = made[row % len(made)].names[row // len(made)]
            torch.testing.assert_close(logps[row][mask[row]], behaviour, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(reference[response.group][name], behaviour, atol=TOLERANCE, rtol=0)
    rows = files.read_jsonl(run / "rounds/0/train/metrics.jsonl")
    assert 0 < rows[0]["behaviour_gap"] < TOLERANCE
    assert abs(rows[1]["loss"]) < TOLERANCE, (
        "at ratio 1 the advantages of each group add up to 0, and the KL to the reference is 0"
    )
    assert rows[0]["chosen_logp"] < 0
    assert len(rows) == 1 + math.ceil(len(groups) / 12)
    assert rows[-1]["margin"] > rows[0]["margin"], "the best replies should have gained on the worst"


REPLIES = ["left", "A small red circle moves from the left side to the right.", "No."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_path):
    """Eight groups of three replies of unequal lengths on one video; some are all alike, in some a reply is left out."""
    folder = tmp_path_factory.mktemp("groups")
    clip = make_clip(8, 56, 56, seed=1)
    files.write_json(folder / "frames.json", {"a": str(FrameCache(folder / "frames").put("aaaa", FrameSpec(), clip))})
    processor, rng = cached_processor(model_path), random.Random(0)
    groups, replies = [], []
    for number in range(8):
        said = {"example_id": f"e{number}", "policy_version": "v"}
        for candidate, text in enumerate(rng.sample(REPLIES, 3)):
            ids = tuple(response_ids(processor, text))
            replies.append(
                Response(
                    **said, kind="plain", candidate=candidate, turn=0, text=text, token_ids=ids, log_probs=(0.0,) * len(ids), seed=0,
                    temperature=1.0, top_p=1.0, finish_reason="stop",
                )
            )  # fmt: skip
        left_out = ("", "", "cut_by_length") if number % 3 == 0 else ("", "", "")
        rewards = (1.0, 0.0, math.nan) if number % 3 == 0 else (0.0, 0.5, 1.0) if number % 3 == 1 else (1.0, 1.0, 1.0)
        groups.append(
            ResponseGroup(
                **said, id=f"g{number}", video="a", question="Describe the video.", answer="left", texts=("", "", ""), rewards=rewards,
                left_out=left_out, tokens=str(number),
            )
        )  # fmt: skip
    files.write_table(folder / "groups.parquet", groups)
    files.write_table(folder / "responses.parquet", sampled_nearby(folder, model_path, groups, replies, rng))
    probe = [Example(id=str(n), video="a", question="What?", answer=("red " * n).strip()) for n in (3, 30)]
    files.write_table(folder / "probe.parquet", probe)
    return folder


def sampled_nearby(folder, model_path, groups, replies, rng):
    """The replies with the policy's log-probs moved by up to 0.4, so that some clips are active."""
    model = load_policy(ModelConfig(path=model_path, dtype="float32", max_model_len=512))
    frames, processor = files.read_json(folder / "frames.json"), cached_processor(model_path)
    source = BatchSource(frames=frames, processor=processor, plain_prompt="{question}", max_model_len=512)
    sampled = {(r.example_id, r.candidate): (r.token_ids, r.log_probs) for r in replies}
    whole = [dataclasses.replace(group, rewards=(0.0,) * 3, left_out=("",) * 3) for group in groups]
    made = [training_group(group, sampled, objectives.build("grpo", {})) for group in whole]
    batch = source.batch(made)
    with torch.no_grad():
        logps, _, _ = ResponseScorer(model, packed=False).eval()(batch.inputs, batch.labels, None, batch.sources)
    rows = [row[kept].tolist() for row, kept in zip(logps, batch.labels != IGNORED, strict=True)]
    near = {
        (groups[row % len(groups)].example_id, row // len(groups)): tuple(value + rng.uniform(-0.4, 0.4) for value in values)
        for row, values in enumerate(rows)
    }
    return [dataclasses.replace(r, log_probs=near[r.example_id, r.candidate]) for r in replies]


@pytest.mark.long
def test_a_training_on_groups_is_the_same_however_it_is_cut_and_shared(folder, model_path, tmp_path):
    """One rank with whole steps, one with a group a forward pass and separate sequences, two ranks at two ZeRO stages."""

    def jobs(where, **train):
        made = {}
        for name in ("grpo", "dapo", "dr_grpo", "gspo"):
            kept = {f"g{number}": str(tmp_path / where / name / f"{number}.safetensors") for number in range(8)}
            files.write_json(tmp_path / f"{where}-{name}.json", kept)
            own = {
                "pairs": str(folder / "groups.parquet"),
                "responses": str(folder / "responses.parquet"),
                "reference": str(tmp_path / f"{where}-{name}.json") if name == "grpo" else "",
            }
            made[f"{where} {name}"] = {
                "job": job(folder, model_path, objective=name, **train) | own,
                "chunk_size": CHUNK_SIZE,
            }
        return made

    one = jobs("whole", zero_stage=0, micro_batch_size=4) | jobs("cut", zero_stage=2, shared_prefix=False)
    two = jobs("two", zero_stage=2, num_workers=2) | jobs("sharded", zero_stage=3, num_workers=2, tokens_per_micro_batch=100)
    found = gloo_ranks.run(one, tmp_path / "one", count=1) | gloo_ranks.run(two, tmp_path / "both", count=2)
    for name in ("grpo", "dapo", "dr_grpo", "gspo"):
        expected = found[f"whole {name}"]
        assert len(expected["losses"]) == 2
        assert max(map(abs, expected["losses"])) > 1e-3
        for where in ("cut", "two", "sharded"):
            made = found[f"{where} {name}"]
            assert made["losses"][0] == pytest.approx(expected["losses"][0], rel=1e-4, abs=1e-6), (where, name)
            assert made["losses"][1] == pytest.approx(expected["losses"][1], abs=2e-3), (where, name)
            assert made["measured"][0] == pytest.approx(expected["measured"][0], abs=1e-4), (where, name)
            assert made["measured"][1]["margin"] == pytest.approx(expected["measured"][1]["margin"], abs=2e-2), (where, name)
    reference = read_tensors(tmp_path / "two/grpo/1.safetensors")
    assert reference.keys() == {"member_0", "member_1", "member_2"}
