"""The scripts of bench/ that start Ray, vLLM or DeepSpeed, with the smallest settings; what they write goes to a temporary folder."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT, vidalign, write_video
from test_bench import table, written

from bench import decode, decode_page, growth
from bench.pages import PERFORMANCE, Output
from vidalign import files
from vidalign.types import PreferencePair

pytestmark = pytest.mark.heavy


def bench(*arguments):
    done = vidalign("bench", *map(str, arguments))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def script(module, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_memory_of_the_driver(tmp_path):
    bench("memory", "--counts", 3, "--out", tmp_path)
    [row] = files.read_json(tmp_path / "results/driver_memory.json")["runs"]
    assert row["num_videos"] == 3
    assert len(table(written(tmp_path, "driver_memory"))) == 3


@pytest.mark.long
def test_decode(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 64, 3), np.uint8)
    clips = [write_video(tmp_path / f"{number}.mp4", made) for number, made in enumerate(frames)]
    loops, missing = decode.measure_loops({"clip": clips[0]}, (8,), 1, {"decord2": "", "torchcodec": ""})
    found = {
        "versions": decode.installed({}),
        "size": decode.SIZE,
        "cores": 1,
        "rounds": 1,
        "loops": loops,
        "missing": missing,
        "memory": decode.measure_memory({"clip": clips[0]}),
        "ray": decode.measure_ray({"2 clips": clips}, 1),
    }
    variants = loops[0]["variants"]
    assert set(decode.OURS) | {"pyav_seek", "pyav_in_order"} <= set(variants)
    assert all(variants[name]["same_frames"] for name in (*decode.OURS, "pyav_in_order"))
    Output.below(tmp_path).write_part(PERFORMANCE, "decode", decode_page.page(found))
    assert any(line.startswith("| clip | 8 | ") for line in table(written(tmp_path, "decode")))


@pytest.mark.long
def test_engine(tmp_path):
    bench("engine", "--quick", "--model", "built-in", "--out", tmp_path)
    [row] = files.read_json(tmp_path / "results/rollout_engine.json")["rows"]
    [flow], [barrier] = row["busy"]["flow"], row["busy"]["barrier"]
    assert flow["num_tokens"] == barrier["num_tokens"] > 0, "both forms do the same"
    assert flow["working_s"] <= flow["seconds"]
    assert row["score"]["difference"] < 1e-3
    assert row["weights"]["moved"] > 1e-3 > row["weights"]["returned"]
    assert len(table(written(tmp_path, "rollout_engine"))) == 2 * 3


@pytest.mark.long
def test_rollout(tmp_path):
    bench("rollout", "--quick", "--counts", 1, "--examples", 2, "--out", tmp_path)
    found = files.read_json(tmp_path / "results/rollout.json")
    assert [set(row["seconds"]) for row in found["in_process"]["rows"]] == [{"ours", "bare", "hugging_face"}] * 2
    assert all(row["tokens"]["ours"] == row["tokens"]["bare"] for row in found["in_process"]["rows"])
    assert found["on_ray"]["num_replies"] == 16 * 4 * 2
    assert len(table(written(tmp_path, "rollout"))) == 2 + 4 + 1


@pytest.mark.long
def test_serve(tmp_path):
    bench("serve", "--quick", "--out", tmp_path)
    found = files.read_json(tmp_path / "results/serve.json")
    assert all(len(row[side]["median_s"]) == 1 for row in found["rows"] for side in ("ours", "several", "vllm"))
    assert len(table(written(tmp_path, "serve"))) == 2 + 12 + 2 + 3 + 2 + len(found["decoded"])


@pytest.mark.long
def test_start(tmp_path):
    bench("start", "--quick", "--out", tmp_path)
    found = files.read_json(tmp_path / "results/start.json")
    [ours], [bare] = found["ours"], found["bare"]
    assert 0 < ours["imported"] < ours["ray"] < ours["called"] < ours["engine"] < ours["token"]
    assert 0 < bare["imported"] < bare["engine"] < bare["token"]
    assert len(table(written(tmp_path, "start"))) == 2 + 5


def test_growth_reads_a_finished_run(finished_run):
    """The run itself is as long as `vidalign align`; its configuration, its watching and its page are in test_bench.py."""
    found = growth.figures_of(finished_run)
    parts = list((finished_run / "rounds/0/responses/parts").glob("*.json"))
    assert found["num_pairs"] == len(files.read_table(finished_run / "rounds/0/pairs/pairs.parquet", PreferencePair))
    assert len(found["chunk_s"]) == len(parts) - 1 > 0
    assert found["train_s"] == pytest.approx(2 * sum(found["step_s"]), rel=0.5)
    assert min(found["step_s"]) > 0


@pytest.mark.long
def test_seeds(finished_run, small_config, tmp_path):
    """Rollout and training are finished; what is left is the endpoint with base and aligned, and the page."""
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds/0").symlink_to(finished_run)
    config = yaml.safe_load(small_config.read_text())
    path = tmp_path / "seeds.yaml"
    path.write_text(yaml.safe_dump({**config, "data": {**config["data"], "eval_limit": 8}}))
    script("bench.seeds", "--seeds", 0, "--config", path, "--root", tmp_path / "seeds", "--out", tmp_path)
    assert len(list((tmp_path / "seeds/eval").glob("*.parquet"))) == 3
    lines = table(written(tmp_path, "seeds", "results.md"))
    pairs = files.read_json(finished_run / "rounds/0/pairs/manifest.json")["kept"]
    assert lines[2].startswith(f"| 0 | {pairs} | ")


def test_quality(tmp_path):
    """One arm, from pairs that are written here: train with a reference, measure everything, page and plot."""
    from bench.quality.data import prepare
    from bench.quality.page import write_page
    from bench.quality.queue import Queue
    from bench.quality.run import BASE, Job, run
    from bench.quality.shapes import SHAPES

    data = prepare(dataclasses.replace(SHAPES, sizes={"train": 16, "heldout": 12, "probe": 4, "dev": 4}), tmp_path)
    pairs = [
        PreferencePair(
            id=example.id,
            example_id=example.id,
            video=example.video,
            question=example.question,
            answer=example.answer,
            chosen=example.answer,
            rejected="A purple star.",
            chosen_marks=((0, len(example.answer)),),
            rejected_marks=((0, 8),),
        )
        for example in data.examples("train")
    ]
    files.write_table(tmp_path / "pairs/rrpo/0/pairs.parquet", pairs)
    facts = {"kept": 16, "dropped": {}, "reward_trust_correlation": None, "seconds": 1.0}
    files.write_json(tmp_path / "pairs/rrpo/0/facts.json", facts)
    job = Job("RRPO", 0, 0.001)
    Queue(SHAPES, tmp_path, 1, math.inf).run([job])
    run("shapes", tmp_path, Job(BASE))
    found = job.result(tmp_path)
    assert not (job.folder(tmp_path) / "model").exists()
    assert (found["num_pairs"], found["num_steps"]) == (16, 3)
    assert found["kl_to_base"] > 0
    assert Job(BASE).result(tmp_path)["kl_to_base"] == 0
    write_page(tmp_path, {"RRPO": 0.001}, Output.below(tmp_path))
    assert any(line.startswith("| RRPO | 1 | ") for line in table(written(tmp_path, "quality", "results.md")))
    assert (tmp_path / "docs/results.png").stat().st_size > 10_000
