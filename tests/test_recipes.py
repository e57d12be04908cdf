"""Every recipe from videos to an exported policy, through real Ray, vLLM and DeepSpeed, by the command."""

import json
import pathlib
import threading

import pytest
import yaml
from conftest import vidalign

from examples.shapes import rule_judge
from vidalign import files
from vidalign.model.tensor_cache import read_tensors
from vidalign.recipes.phrases import differs_only_in, parse_differences
from vidalign.types import Judgement, PreferencePair, Response

pytestmark = pytest.mark.heavy
NUM_EXAMPLES = 24


def run_without_endpoint(small_config, folder: pathlib.Path, changes: dict, command: str = "align") -> pathlib.Path:
    """`vidalign align` on a few examples without held-out questions: rollout, train, report. Or one stage of it."""
    raw = yaml.safe_load(small_config.read_text())
    raw["data"].pop("eval")
    raw.pop("recipe")
    raw |= {"run_dir": str(folder / "run"), **changes}
    raw["data"]["limit"] = raw["rollout"]["batch_size"] = NUM_EXAMPLES
    raw["train"]["checkpoint_every"] = 1000
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = vidalign(command, str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


def exported(run: pathlib.Path) -> None:
    card = json.loads((run / "rounds/0/model/vidalign.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["policy"]["aligned"] == card["version"] != summary["policy"]["base"]
    assert (run / "report" / "index.html").is_file()


@pytest.mark.long
def test_rrpo_makes_parallel_pairs_and_trains_near_its_reference(small_config, tmp_path):
    run = run_without_endpoint(
        small_config,
        tmp_path,
        {
            "recipe": {"name": "rrpo", "num_candidates": 2, "max_new_tokens": 48, "rewrite": "policy"},
            "objective": {"name": "rrpo"},
        },
    )
    pairs = files.read_table(run / "rounds/0/pairs/pairs.parquet", PreferencePair)
    responses = files.read_table(run / "rounds/0/responses/responses.parquet", Response)
    assert {r.kind for r in responses} == {"perturbed", "truth", "differences", "rewritten"}
    listed = {r.example_id: r.text for r in responses if r.kind == "differences"}
    for pair in pairs:
        assert pair.chosen == pair.answer
        assert pair.chosen_marks or pair.rejected_marks
        assert differs_only_in(pair.chosen, pair.rejected, parse_differences(listed[pair.example_id]))
    kept = files.read_places(run / "rounds/0/reference/files.json")
    assert kept.keys() == {pair.id for pair in pairs}
    assert all("hidden" in read_tensors(path) for path in kept.values())
    exported(run)


@pytest.mark.long
def test_hound_takes_its_pairs_from_a_judge_behind_an_endpoint(small_config, tmp_path):
    server = rule_judge.serve()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        run = run_without_endpoint(
            small_config,
            tmp_path,
            {
                "recipe": {
                    "name": "hound",
                    "num_candidates": 4,
                    "max_new_tokens": 24,
                    "captions": "policy",
                    "caption_prompt": "Describe the video.",
                    "judge": {
                        "kind": "openai",
                        "model": rule_judge.MODEL,
                        "base_url": f"http://127.0.0.1:{server.server_address[1]}/v1",
                    },
                },
            },
            command="rollout",
        )
    finally:
        server.shutdown()
        server.server_close()
    pairs = files.read_table(run / "rounds/0/pairs/pairs.parquet", PreferencePair)
    for pair in pairs:
        chosen, rejected = (json.loads(pair.provenance)[side] for side in ("chosen", "rejected"))
        assert chosen["score"] >= 3 > rejected["score"]
        assert chosen["judge"].startswith("openai:rules:")
        assert chosen["explanation"]
    rows = [row for path in (run / "rounds/0/judgements/parts").glob("*.json") for row in files.read_json(path)]
    judged = [Judgement.from_row(row) for row in rows if "score" in row]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["judge"]["judged"] == len(judged) > len(pairs) > 0
    assert summary["judge"]["quarantined"].get("unparsable_judgement", 0) == len(rows) - len(judged)
    assert summary["judge"]["agreement"]["agreement"] > 0.5


@pytest.mark.long
def test_doubt_about_given_pairs_smooths_or_drops_them(small_config, tmp_path, finished_run):
    made = files.read_table(finished_run / "rounds/0/pairs/pairs.parquet", PreferencePair)
    train = tmp_path / "pairs.jsonl"
    with train.open("w") as file:
        for pair in made:
            row = {"id": pair.id, "video": pair.video, "question": pair.question, "answer": pair.answer}
            file.write(json.dumps({**row, "chosen": pair.chosen, "rejected": pair.rejected}) + "\n")
    raw = yaml.safe_load(small_config.read_text())
    changes = {
        "recipe": {"name": "given"},
        "data": {**raw["data"], "train": str(train)},
        "train": {**raw["train"], "uncertainty": {"max_smoothing": 0.3}},
    }
    del changes["data"]["eval"]
    run = run_without_endpoint(small_config, tmp_path, changes)
    smoothing = files.read_json(run / "rounds/0/doubt/doubt.json")
    manifest = files.read_json(run / "rounds/0/train/manifest.json")
    num_given = min(len(made), NUM_EXAMPLES)
    assert manifest["num_pairs"] == len(smoothing) == num_given - manifest["dropped"].get("voted_against", 0)
    assert all(0 <= value <= 0.3 for value in smoothing.values())
    assert len(set(smoothing.values())) > 1
    exported(run)


@pytest.mark.long
def test_supervised_training_needs_no_rollout(small_config, tmp_path):
    run = run_without_endpoint(small_config, tmp_path, {"recipe": {"name": "given"}, "objective": {"name": "sft"}})
    rows = files.read_jsonl(run / "rounds/0/train/metrics.jsonl")
    assert rows[-1]["chosen_logp"] > rows[0]["chosen_logp"]
    assert "rejected_logp" not in rows[-1]
    exported(run)


def test_a_second_round_starts_from_the_policy_of_the_first_and_draws_on_its_replays(small_config, tmp_path):
    recipe = {"name": "leanpo", "num_candidates": 2, "num_turns": 1, "max_new_tokens": 24, "negatives": "replayed"}
    steps = [{}, {"objective": {"name": "dpo", "params": {"beta": 0.3}}, "train": {"learning_rate": 2e-5}}]
    run = run_without_endpoint(small_config, tmp_path, {"recipe": recipe, "rounds": steps})
    trained = [json.loads((run / f"rounds/{index}/train/manifest.json").read_text())["inputs"] for index in (0, 1)]
    assert [inputs["objective.name"] for inputs in trained] == ["leanpo", "dpo"]
    assert trained[1]["train.learning_rate"] == 2e-5 != trained[0]["train.learning_rate"]
    cards = [json.loads((run / f"rounds/{index}/model/vidalign.json").read_text()) for index in (0, 1)]
    assert cards[1]["parent"] == cards[0]["version"]
    replays = []
    for index in (0, 1):
        responses = files.read_table(run / f"rounds/{index}/responses/responses.parquet", Response)
        assert {r.policy_version for r in responses} == {cards[index]["parent"]}
        replays += [(r.example_id, r.text.strip()) for r in responses if r.kind == "replayed"]
        pairs = files.read_table(run / f"rounds/{index}/pairs/pairs.parquet", PreferencePair)
        assert pairs
        assert all((pair.example_id, pair.rejected) in replays for pair in pairs)
        assert all(pair.rejected_trust < 1 for pair in pairs)
