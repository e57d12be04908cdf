"""The main job through real parts: PyAV, vLLM, DeepSpeed, Ray Serve, HTTP; and continuing it after it was killed."""

import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import scipy.stats
import yaml
from conftest import vidalign, vidalign_killed
from safetensors.numpy import load_file

from pipelines.serve import models_of
from vidalign import files
from vidalign.config.loading import load_config
from vidalign.data.answers import trust
from vidalign.data.reading import read_examples
from vidalign.types import EvalAnswer, PreferencePair, Response

pytestmark = pytest.mark.heavy
HINTED_TRUST = 0.93  # the base model reaches 0.98 with the answer in its prompt, and 0.89 without it


def pairs_of(run: pathlib.Path) -> list[PreferencePair]:
    return files.read_table(run / "rounds/0/pairs/pairs.parquet", PreferencePair)


def test_summary_says_what_the_run_folder_holds(finished_run):
    summary = files.read_json(finished_run / "summary.json")
    pairs = pairs_of(finished_run)
    assert summary["videos"]["quarantined"] == {"zero_byte": 1, "not_a_video": 1}
    assert summary["videos"]["total"] == summary["videos"]["decoded"] + 2
    assert summary["pairs"]["kept"] == len(pairs) > 0
    assert summary["pairs"]["dropped"]["video_quarantined"] == 2
    assert len(pairs) + sum(summary["pairs"]["dropped"].values()) == 50
    responses = files.read_table(finished_run / "rounds/0/responses/responses.parquet", Response)
    expected = scipy.stats.spearmanr([r.reward for r in responses], [r.trust for r in responses]).statistic
    assert summary["reward_trust_correlation"] == pytest.approx(expected)
    for model_id in ("base", "aligned", "blind"):
        answers = files.read_table(finished_run / f"rounds/0/scores/{model_id}.parquet", EvalAnswer)
        assert len(answers) == summary["accuracy"]["num_examples"] == 24
        scored = [answer.correct for answer in answers if answer.correct is not None]
        assert summary["accuracy"]["scored"][model_id] == len(scored) > 12
        assert summary["accuracy"][model_id] == pytest.approx(sum(scored) / len(scored))
        version = summary["policy"]["aligned" if model_id == "aligned" else "base"]
        assert {answer.policy_version for answer in answers} == {version}
    assert summary["policy"]["base"] != summary["policy"]["aligned"]
    assert summary["endpoint"] == {"model_ids": ["base", "aligned"]}
    measured = files.read_jsonl(finished_run / "rounds/0/train/metrics.jsonl")
    assert (measured[0]["step"], measured[-1]["step"]) == (0, math.ceil(len(pairs) / 4))
    for side in ("chosen", "rejected", "truth"):
        shown = summary["log_likelihood"][side]
        assert shown == {"start": measured[0][f"{side}_logp"], "end": measured[-1][f"{side}_logp"]}
        assert max(shown.values()) < 0
    assert measured[-1]["margin"] > measured[0]["margin"], "training did not move the two sides apart"
    assert set(summary["wall_s"]) == {"rollout", "train", "evaluate", "report"}
    engine_s = files.read_json(finished_run / "rounds/0/responses/manifest.json")["engine_s"]
    assert set(engine_s) == {"starting", "waiting", "working"}
    assert min(engine_s.values()) >= 0 < engine_s["working"]
    assert sum(engine_s.values()) <= summary["wall_s"]["rollout"], "there is one engine"
    assert (finished_run / "report/index.html").stat().st_size > 10_000
    assert "aligned" in (finished_run / "console.txt").read_text()


def test_responses_carry_the_evidence_to_repeat_and_score_them(finished_run, shapes):
    examples = {example.id: example for example in read_examples(shapes / "train.jsonl")}
    responses = files.read_table(finished_run / "rounds/0/responses/responses.parquet", Response)
    by_kind = {kind: [r for r in responses if r.kind == kind] for kind in ("hinted", "reflected", "augmented")}
    assert [len(group) for group in by_kind.values()] == [96, 96, 96]  # 48 examples, 2 candidates a side
    for response in responses:
        assert len(response.token_ids) == len(response.log_probs) > 0
        assert all(value <= 0 for value in response.log_probs)
        assert response.trust == trust(response.text, examples[response.example_id])
        assert response.reward <= 0, "every response has one"
    assert len({(r.example_id, r.text, r.reward) for r in responses}) == len({(r.example_id, r.text) for r in responses})
    mean_trust = {kind: np.mean([r.trust for r in group]) for kind, group in by_kind.items()}
    assert mean_trust["hinted"] > HINTED_TRUST > mean_trust["augmented"], "the hint did not reach the model"
    made = {(r.example_id, r.kind, r.candidate, r.turn): r for r in responses}
    for pair in pairs_of(finished_run):
        provenance = json.loads(pair.provenance)
        chosen, rejected = (
            made[pair.example_id, *(provenance[side][name] for name in ("kind", "candidate", "turn"))]
            for side in ("chosen", "rejected")
        )
        assert (chosen.text, chosen.reward, chosen.trust) == (pair.chosen, pair.chosen_reward, pair.chosen_trust)
        assert (rejected.text, rejected.reward, rejected.trust) == (pair.rejected, pair.rejected_reward, pair.rejected_trust)
        assert pair.chosen_trust - pair.rejected_trust >= 0.1
        assert provenance["policy_version"] == chosen.policy_version == rejected.policy_version


def test_running_it_again_redoes_nothing(finished_run, small_config):
    watched = [p for p in (finished_run / "rounds").rglob("*") if p.is_file() and p.suffix in (".parquet", ".safetensors")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    done = vidalign("align", str(small_config), "train.log_every=3", "evaluate.concurrency=4")  # which change no result
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in watched} == before
    accepted = (finished_run / "config.yaml").read_text()
    assert "log_every: 3" in accepted
    changed = vidalign("align", str(small_config), "recipe.temperature=0.9")
    assert changed.returncode == 2
    assert "was finished with another configuration: recipe.temperature was 1.0 and is now 0.9; " in changed.stderr
    assert (finished_run / "config.yaml").read_text() == accepted, "a refused configuration took the place of the run's own"


def test_a_run_that_was_moved_reports_serves_and_is_still_finished(finished_run, tmp_path):
    moved, report = tmp_path / "elsewhere" / "moved", finished_run / "report" / "index.html"
    before, page = files.read_json(finished_run / "summary.json"), report.read_text()
    moved.parent.mkdir()
    finished_run.rename(moved)
    try:
        assert str(finished_run) not in (moved / "rounds/0/responses/frames.json").read_text()
        done = [vidalign("report", str(moved)), vidalign("align", str(moved), "--dry-run")]
        assert [each.returncode for each in done] == [0, 0], [each.stderr[-2000:] for each in done]
        assert not finished_run.exists(), "something was written where the run had been"
        after, now = files.read_json(moved / "summary.json"), (moved / "report/index.html").read_text()
        models, _ = models_of(files.RunFolder(moved), load_config(moved))
        assert {name: policy.version for name, policy in models.items()} == before["policy"]
        assert models["aligned"].path == str(moved / "rounds/0/model")
        assert files.read_json(moved / "plan.json")["train"]["num"] == 1
    finally:
        moved.rename(finished_run)
    changing = {"wall_s": None, "disk_bytes": None}  # the report itself takes room
    assert {**after, **changing} == {**before, **changing}
    assert now.count("data:image") == page.count("data:image") > 0


def test_a_run_whose_data_was_moved_is_still_finished(finished_run, small_config, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    config = yaml.safe_load(small_config.read_text())
    shutil.copytree(pathlib.Path(config["data"]["train"]).parent, data)
    shutil.copytree(finished_run, run)
    config["data"] = {split: str(data / pathlib.Path(path).name) for split, path in config["data"].items()}
    path = tmp_path / "moved.yaml"
    path.write_text(yaml.safe_dump({**config, "run_dir": str(run)}))
    done = vidalign("align", str(path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nothing is left to do" in done.stderr
    assert str(data) in (run / "config.yaml").read_text()
    other = data / "videos" / sorted(path.name for path in (data / "videos").iterdir() if path.stat().st_size > 100)[0]
    other.write_bytes(other.read_bytes() + b" ")
    shutil.rmtree(run)
    shutil.copytree(finished_run, run)
    refused = vidalign("align", str(path))
    assert refused.returncode == 2, "other videos were taken for those of before"
    assert "data.train was " in refused.stderr


def test_a_rollout_that_was_killed_continues_to_the_same_pairs(finished_run, small_config, tmp_path):
    part = tmp_path / "run/rounds/0/responses/parts/000001.json"
    arguments = ("rollout", str(small_config), f"run_dir={tmp_path / 'run'}")
    vidalign_killed(*arguments, when=part.is_file)
    assert not (tmp_path / "run/rounds/0/responses/manifest.json").exists()
    kept = part.stat().st_mtime_ns
    done = vidalign(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert part.stat().st_mtime_ns == kept
    again, before = pairs_of(tmp_path / "run"), pairs_of(finished_run)
    assert [(p.id, p.chosen, p.rejected) for p in again] == [(p.id, p.chosen, p.rejected) for p in before]


def test_training_that_was_killed_continues_as_if_it_never_stopped(finished_run, small_config, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("train", "model", "eval", "report", "summary.json"))
    progress = run / "rounds/0/train/progress.json"
    arguments = ("train", str(small_config), f"run_dir={run}")
    vidalign_killed(*arguments, when=lambda: progress.is_file() and files.read_json(progress)["step"] >= 6)
    assert not (run / "rounds/0/train/manifest.json").exists()
    before = files.read_jsonl(run / "rounds/0/train/metrics.jsonl")
    kept_step = min(int(path.name.split("-")[1]) for path in (run / "rounds/0/train/ray").glob("step-*"))
    done = vidalign(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, resumed = (files.read_jsonl(r / "rounds/0/train/metrics.jsonl") for r in (finished_run, run))
    assert [row["step"] for row in resumed] == [row["step"] for row in whole]
    untouched = [row for row in before if row["step"] <= kept_step]
    assert len(untouched) >= 2, "step 0, and one that was trained"
    assert resumed[: len(untouched)] == untouched, "the second process measured again what the first one had (see `seconds`)"
    weights, expected = (load_file(r / "rounds/0/model/model.safetensors") for r in (run, finished_run))
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_models_that_are_served_one_after_the_other_answer_as_side_by_side(finished_run, small_config, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run, ignore=shutil.ignore_patterns("eval", "scores", "report", "summary.json"))
    done = vidalign("evaluate", str(small_config), f"run_dir={run}", "evaluate.in_turn=true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.index("start base") < done.stderr.index("evaluate blind") < done.stderr.index("start aligned")
    for name in ("base", "blind", "aligned"):
        alone, beside = (files.read_table(r / f"rounds/0/eval/{name}.parquet", EvalAnswer) for r in (run, finished_run))
        found, expected = ([(a.example_id, a.text, a.model_id, a.correct) for a in answers] for answers in (alone, beside))
        assert found == expected
        assert len(found) == 24
