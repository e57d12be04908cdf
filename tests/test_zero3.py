"""ZeRO stage 3 on two CPU ranks that see different data: the same collectives in the same order, and one rank's numbers.

The output layer is called in chunks of 8 tokens, and every parameter is partitioned, so that a call too few on one rank is a
mismatch of collectives (which PyTorch names) and not a coincidence of small layers.
"""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import re

import gloo_ranks
import peft
import pytest
import tiny_families
import torch
from safetensors.torch import load_file
from test_augment import make_clip

from actors.reference import Reference
from actors.train_job import TrainJob
from vidalign import files
from vidalign.config.run import ModelConfig, ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.learning.batches import batch_order
from vidalign.model.checkpoint import policy_version, read_card
from vidalign.model.policy import load_policy
from vidalign.model.rendering import cached_processor, response_ids
from vidalign.recipes.phrases import differing_marks
from vidalign.types import Example, FrameSpec, PreferencePair
from vidalign.video.frame_cache import FrameCache

pytestmark = pytest.mark.heavy

CHUNK_SIZE, SEED, BATCH_SIZE = 8, 0, 4
SHORT, LONG = ("red " * 7, "blue " * 7), ("red " * 19, "blue " * 19)  # 16 and 40 tokens, both sides together
VARIANTS = {
    "plain": {},
    "micro batches": {"micro_batch_size": 2},
    "token budget": {"tokens_per_micro_batch": 100},
    "checkpointing": {"micro_batch_size": 2, "gradient_checkpointing": True},
    "separate": {"shared_prefix": False, "tokens_per_micro_batch": 150, "gradient_checkpointing": True},
    "lora": {
        "lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "up_proj"]},
        "micro_batch_size": 2,
        "gradient_checkpointing": True,
    },
    "features": {"cache_vision_features": True, "micro_batch_size": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_path):
    """Eight pairs, so ordered that in each step rank 0 has the short ones and rank 1 the long ones; and a probe of two."""
    folder = tmp_path_factory.mktemp("zero3")
    clip = make_clip(8, 56, 56, seed=1)
    files.write_json(folder / "frames.json", {"a": str(FrameCache(folder / "frames").put("aaaa", FrameSpec(), clip))})
    is_long = {}
    for step in batch_order(8, BATCH_SIZE, 1, SEED):
        is_long |= {int(index): place % 2 == 1 for place, index in enumerate(step)}
    pairs = []
    for number in range(8):
        chosen, rejected = (text.strip() for text in (LONG if is_long[number] else SHORT))
        marks = differing_marks(chosen, rejected)
        pairs.append(
            PreferencePair(
                id=f"p{number}",
                example_id=f"e{number}",
                video="a",
                question="Describe the video.",
                answer=chosen,
                chosen=chosen,
                rejected=rejected,
                chosen_marks=marks[0],
                rejected_marks=marks[1],
            )
        )
    files.write_table(folder / "pairs.parquet", pairs)
    probe = [Example(id=str(n), video="a", question="What?", answer=("red " * n).strip()) for n in (3, 30)]
    files.write_table(folder / "probe.parquet", probe)
    processor = cached_processor(model_path)
    lengths = [[len(response_ids(processor, text.strip())) for text in side] for side in (SHORT, LONG)]
    assert list(map(sum, lengths)) == [16, 40]
    refer(folder, model_path, pairs)
    return folder


def refer(folder: pathlib.Path, model_path: str, pairs) -> None:
    kept = {pair.id: str(folder / "kept" / f"{pair.id}.safetensors") for pair in pairs}
    files.write_json(folder / "reference.json", kept)
    actor = Reference(
        model=ModelConfig(path=model_path, dtype="float32", max_model_len=512).model_dump(mode="json"),
        path=model_path,
        pairs=str(folder / "pairs.parquet"),
        frames=str(folder / "frames.json"),
        plain_prompt="{question}",
        use_gpu=False,
        kept=str(folder / "reference.json"),
        parts=["hidden"],
    )
    actor({"index": list(range(len(pairs)))})


def job(folder, model_path, *, objective="rrpo", dtype="float32", **train) -> dict:
    options = {"batch_size": BATCH_SIZE, "learning_rate": 1e-4, "warmup_ratio": 0, "num_monitored": 8}
    if train.get("zero_stage") == 3:
        options["deepspeed"] = {
            "zero_optimization": {"stage3_param_persistence_threshold": 0}
        }  # none is small enough to stay whole
    return TrainJob(
        model=ModelConfig(path=model_path, dtype=dtype, max_model_len=512),
        policy_path=model_path,
        policy_version="v",
        train=TrainConfig(**{**options, **train}),
        objective=ObjectiveConfig(name=objective),
        plain_prompt="{question}",
        frame_spec=FrameSpec(num_frames=8, height=56, width=56),
        seed=SEED,
        pairs=str(folder / "pairs.parquet"),
        frames=str(folder / "frames.json"),
        probe=str(folder / "probe.parquet"),
        reference=str(folder / "reference.json"),
        cache=str(folder / "cache"),
        stage=str(folder / "stage"),
        checkpoints=str(folder / "checkpoints"),
        export=str(folder / "model"),
    ).to_dict()


CASES = {
    f"{objective}, {name}": {"objective": objective, **VARIANTS[name]}
    for objective, names in {"rrpo": list(VARIANTS), "dpo": ["token budget"]}.items()
    for name in names
}
EXPORTED = {"all": {"train_vision_tower": True, "train_projector": True}, "lora": VARIANTS["lora"]}
REFERENCE = {"full": VARIANTS["micro batches"], "lora": VARIANTS["lora"]}
SHARD_BYTES = 10**6


@dataclasses.dataclass(frozen=True)
class Ran:
    """What two sharded ranks made of the jobs of this file, and what one rank with all of the model made of `CASES`."""

    folder: pathlib.Path
    two: dict
    one: dict


@pytest.fixture(scope="module")
def ran(folder, model_path, tmp_path_factory) -> Ran:
    """One start of the ranks for all jobs. The rank that is alone works beside them."""
    place = tmp_path_factory.mktemp("ran")
    for name in ("exported", "whole"):
        (place / name).mkdir()
    shared = {"zero_stage": 3, "num_workers": 2}
    alone, jobs = {}, {}
    for name, train in REFERENCE.items():
        kept = {f"p{number}": str(place / name / f"{number}.safetensors") for number in range(8)}
        files.write_json(place / f"{name}.json", kept)
        files.write_bytes_atomic(pathlib.Path(kept["p2"]), (folder / "kept" / "p2.safetensors").read_bytes())
        os.utime(kept["p2"], (1, 1))
        jobs[f"reference, {name}"] = {"job": job(folder, model_path, **shared, **train)}
        jobs[f"reference, {name}"]["job"]["reference"] = str(place / f"{name}.json")
    for name, case in CASES.items():
        alone[name] = {"job": job(folder, model_path, **case, zero_stage=0), "chunk_size": CHUNK_SIZE}
        jobs[name] = {"job": job(folder, model_path, **case, **shared)}
    for name, train in EXPORTED.items():
        to = {"folder": str(place / "exported" / name), "whole": str(place / "whole" / name), "max_shard_bytes": SHARD_BYTES}
        jobs[f"export, {name}"] = {"job": job(folder, model_path, objective="dpo", **shared, **train), "export": to}
    jobs = {name: settings | {"chunk_size": CHUNK_SIZE} for name, settings in jobs.items()}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        expected = pool.submit(gloo_ranks.run, alone, place / "one", count=1)
        made = gloo_ranks.run(jobs, place / "two", count=2)
        return Ran(folder=place, two=made, one=expected.result())


def test_sharded_ranks_compute_the_reference_of_a_whole_model(ran, folder):
    """Files that are missing are written before the first step, each rank its share; none that is there is written again."""
    for name in REFERENCE:
        assert (ran.folder / name / "2.safetensors").stat().st_mtime == 1
        for number in range(8):
            made = load_file(ran.folder / name / f"{number}.safetensors")
            whole = load_file(folder / "kept" / f"p{number}.safetensors")
            assert made.keys() == whole.keys() == {"chosen", "rejected", "hidden"}
            for key, tensor in whole.items():
                torch.testing.assert_close(made[key], tensor, atol=1e-5, rtol=1e-5)


def figures(made: dict) -> list[float]:
    return [*made["losses"], *(value for row in made["measured"] for value in row.values())]


@pytest.mark.parametrize("name", CASES)
def test_ranks_with_other_data_train_like_one(ran, name):
    """rrpo has a KL to the reference, whose calls of the output layer are its own."""
    assert len(ran.two[name]["losses"]) == 2
    assert figures(ran.two[name]) == pytest.approx(figures(ran.one[name]), abs=1e-5, rel=1e-5)


@pytest.mark.long
def test_ranks_whose_rows_show_other_numbers_and_lengths_of_videos_train_like_one(folder, checkpoints, tmp_path):
    """Rank 0 has rows of one video, rank 1 of two, and where rows show one, videos of unequal length come as a list."""
    frames = FrameCache(tmp_path / "frames")
    clips = {str(count): str(frames.put(str(count), FrameSpec(), tiny_families.clip(count, count))) for count in (4, 6)}
    files.write_json(tmp_path / "frames.json", clips)
    pairs, read = [], files.read_table(folder / "pairs.parquet", PreferencePair)
    first = {int(index) for step in batch_order(8, BATCH_SIZE, 1, SEED) for index in step[::2]}
    for number, pair in enumerate(read):
        one = {"video": "4" if number in first else str(4 + number % 2 * 2), "question": f"What moves {number}?"}
        pairs.append(dataclasses.replace(pair, **one))
    files.write_table(tmp_path / "one.parquet", pairs)
    two = {"videos": ("4", "6")}
    several = [pair if number in first else dataclasses.replace(pair, **two) for number, pair in enumerate(pairs)]
    files.write_table(tmp_path / "two.parquet", several)
    probe = [Example(id=str(n), video="4", question="What?", answer="red red") for n in (1, 2)]
    files.write_table(tmp_path / "probe.parquet", probe)
    cases = {
        "qwen2_5_vl, two": {"shared_prefix": True, "micro_batch_size": 2},
        "qwen2_5_vl, two, apart": {"shared_prefix": False, "tokens_per_micro_batch": 300},
        "llava_next_video, one": {"shared_prefix": True, "micro_batch_size": 2},
        "llava_onevision, one": {"shared_prefix": False, "tokens_per_micro_batch": 300, "train_projector": True},
        "qwen3_vl_moe, one": {"shared_prefix": True, "micro_batch_size": 2},  # experts, of which a rank's tokens need some
        "gemma4, one": {"micro_batch_size": 2, "gradient_checkpointing": True},  # layers that share keys and values
    }
    jobs = {}
    for name, case in cases.items():
        family, rows = name.split(", ")[:2]
        own = {"pairs": str(tmp_path / f"{rows}.parquet"), "probe": str(tmp_path / "probe.parquet")}
        own |= {"frames": str(tmp_path / "frames.json"), "reference": "", "objective": {"name": "simpo", "params": {}}}
        for count, options in ((1, {"zero_stage": 0}), (2, {"zero_stage": 3, "num_workers": 2})):
            made = job(folder, checkpoints(family), **case, **options)
            jobs.setdefault(count, {})[name] = {"job": made | own, "chunk_size": CHUNK_SIZE}
    expected = gloo_ranks.run(jobs[1], tmp_path / "alone", count=1)
    made = gloo_ranks.run(jobs[2], tmp_path / "together", count=2)
    for name in cases:
        assert figures(made[name]) == pytest.approx(figures(expected[name]), abs=1e-5, rel=1e-5), name


@pytest.mark.long
def test_an_output_layer_in_float32_is_gathered_as_any_other(folder, model_path, tmp_path):
    """It is partitioned in bfloat16 and computes in float32, also for the KL; rounding alone sets the two apart."""
    made = {}
    for name, count, options in (("one", 1, {"zero_stage": 2}), ("two", 2, {"zero_stage": 3, "num_workers": 2})):
        settings = job(folder, model_path, float32_head=True, **options)
        settings["model"]["dtype"] = "bfloat16"
        jobs = {"only": {"job": settings, "chunk_size": CHUNK_SIZE}}
        made[name] = gloo_ranks.run(jobs, tmp_path / name, count=count)["only"]
    assert made["two"]["losses"] == pytest.approx(made["one"]["losses"], abs=0.05)
    assert figures(made["two"]) == pytest.approx(figures(made["one"]), abs=0.1, rel=0.05)


def test_export_is_whole_and_no_rank_ever_held_it(ran, model_path):
    """The files are those of `save_pretrained` on the gathered model; what was whole at one time is bounded."""
    before = {name: tensor.float() for name, tensor in load_file(f"{model_path}/model.safetensors").items()}
    for name in EXPORTED:
        ours, theirs = ran.folder / "exported" / name, ran.folder / "whole" / name
        stored = {path.name for path in theirs.iterdir()}
        assert stored < {path.name for path in ours.iterdir()}
        for file in stored:
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), (name, file)
        after = {key: value for path in ours.glob("*.safetensors") for key, value in load_file(path).items()}
        assert {key: value.shape for key, value in after.items()} == {key: value.shape for key, value in before.items()}
        assert any(not torch.equal(after[key], before[key]) for key in before)
        card = read_card(ours)
        assert card is not None
        assert card["version"] == policy_version(ours).version
        load_policy(ModelConfig(path=str(ours), dtype="float32"))
        if name == "lora":
            assert_adapter_gives(ours, model_path)
        largest, whole = max(tensor.nbytes for tensor in after.values()), sum(tensor.nbytes for tensor in after.values())
        peak = ran.two[f"export, {name}"]["peak_bytes"]
        # One tensor at a time; of an adapted layer, its adapter's two matrices as well.
        assert peak["device"] == largest if name == "all" else peak["device"] < 1.2 * largest, (name, peak)
        assert peak["host"] <= largest_block(after) + SHARD_BYTES < whole / 2, (name, peak, whole)
    assert not [path for path in (ran.folder / "exported").iterdir() if path.name.startswith(".")]


def assert_adapter_gives(folder, model_path):
    """The adapter beside the merged weights, put on the base by peft, is those weights."""
    base, merged = (load_policy(ModelConfig(path=str(path), dtype="float32")) for path in (model_path, folder))
    made = peft.PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(made[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.long
def test_bfloat16_trains_alike_at_every_stage_and_on_one_rank(folder, model_path, tmp_path):
    """Several micro-batches a step, whose gradients are added up in float32: neither stages nor ranks make a difference."""
    train = {"objective": "dpo", "dtype": "bfloat16", "learning_rate": 1e-4}
    alone = {"job": job(folder, model_path, zero_stage=2, micro_batch_size=1, **train), "chunk_size": CHUNK_SIZE}
    jobs = {
        str(stage): {
            "job": job(folder, model_path, zero_stage=stage, num_workers=2, micro_batch_size=1, **train),
            "chunk_size": CHUNK_SIZE,
        }
        for stage in (1, 2, 3)
    }
    expected = gloo_ranks.run({"alone": alone}, tmp_path / "one", count=1)["alone"]
    made = gloo_ranks.run(jobs, tmp_path / "two", count=2)
    for stage in jobs:
        assert made[stage]["losses"] == pytest.approx(expected["losses"], abs=0.02), stage
        assert made[stage]["measured"][1]["margin"] == pytest.approx(expected["measured"][1]["margin"], rel=0.1), stage


@pytest.mark.long
def test_ranks_with_a_base_in_4_bits_train_like_one(folder, model_path, tmp_path):
    pytest.importorskip("bitsandbytes")
    train = {"objective": "dpo", "learning_rate": 1e-3, "lora": {"rank": 4, "alpha": 8, "quantize": "4bit"}}
    made = {}
    for name, count, options in (("one", 1, {"zero_stage": 0}), ("two", 2, {"zero_stage": 2, "num_workers": 2})):
        jobs = {"only": {"job": job(folder, model_path, **train, **options), "chunk_size": CHUNK_SIZE}}
        made[name] = gloo_ranks.run(jobs, tmp_path / name, count=count)["only"]
    assert figures(made["two"]) == pytest.approx(figures(made["one"]), abs=1e-4, rel=1e-4)
    assert made["one"]["measured"][1]["margin"] > made["one"]["measured"][0]["margin"] + 0.01  # it learns


def largest_block(tensors) -> int:
    """Bytes of the largest numbered block, `a.layers.3` of `a.layers.3.b.c`."""
    sizes: collections.Counter[str] = collections.Counter()
    for name, tensor in tensors.items():
        head = re.match(r"(.*?\.\d+)\.", name)
        sizes[head[1] if head else name] += tensor.nbytes
    return max(sizes.values())
