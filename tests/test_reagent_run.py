"""Recipe reagent from videos to an exported policy, through real Ray, vLLM and DeepSpeed, with a critic that sees and never errs."""

import json
import threading

import pytest
import yaml
from conftest import vidalign
from test_recipes import exported, run_without_endpoint

from examples.shapes import rule_critic, rule_judge
from vidalign import files
from vidalign.data.reading import read_examples
from vidalign.recipes.reagent import ANSWERS, Verdict
from vidalign.types import PreferencePair, Response

pytestmark = pytest.mark.heavy
# In few tokens of the built-in model's own, which knows no critics: it answers these with what it will.
PROMPTS = {
    "report_prompt": "{question}\nAnswer: {previous}\nReport.",
    "conservative_prompt": "{question}\nEarlier reply: {previous}\nIt can be improved.\n{report}",
    "neutral_prompt": "{previous}\n{report}\n{question}",
    "aggressive_prompt": "{report}\n{previous}\n{question}",
}


@pytest.fixture(scope="module")
def truths(shapes):
    return {(example.id, example.question): example.answer for example in read_examples(shapes / "train.jsonl")}


@pytest.fixture
def judge(shapes):
    examples = [example for example in read_examples(shapes / "train.jsonl") if example.id not in ("empty", "text")]
    server = rule_judge.serve(reply=rule_critic.critic(examples, PROMPTS["report_prompt"]))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield {"kind": "openai", "model": rule_judge.MODEL, "base_url": url, "sees": "video"}
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_a_critic_that_sees_orders_answers_and_reflections_and_a_policy_learns_from_them(
    small_config, truths, judge, tmp_path
):
    recipe = {"name": "reagent", "num_candidates": 2, "max_new_tokens": 24, "report_tokens": 8, "judge": judge, **PROMPTS}
    run = run_without_endpoint(small_config, tmp_path, {"recipe": recipe, "objective": {"name": "dpo"}})
    responses = files.read_table(run / "rounds/0/responses/responses.parquet", Response)
    answers = [response for response in responses if response.kind in ANSWERS]
    assert {response.kind for response in responses} == {*ANSWERS, "report"}
    assert all(response.turn == 0 for response in responses if response.kind == "report"), "others are the judge's"
    whole = [answer for answer in answers if answer.finish_reason != "length" and answer.text.strip()]

    verdicts = files.read_table(run / "rounds/0/pairs/verdicts.parquet", Verdict)
    assert len(verdicts) == len(whole)
    pairs = files.read_table(run / "rounds/0/pairs/pairs.parquet", PreferencePair)
    assert pairs
    for pair in pairs:
        truth = truths[pair.example_id, pair.question]
        told = {side: json.loads(pair.provenance)[side] for side in ("chosen", "rejected")}
        assert told["chosen"]["critic_reward"] - told["rejected"]["critic_reward"] > 0.19, "1 - 0.8 is less than 0.2"
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            score, _ = rule_judge.compare(text, truth, pair.question)
            assert (told[side]["critic_reward"] >= 0.8) == (score >= 4), "the file that the critic got is this pair's video"
    facts = files.read_json(run / "rounds/0/pairs/manifest.json")
    assert facts["verdicts"] == {"answers": len(whole), "unparsable_report": 0}
    exported(run)


@pytest.mark.long
def test_a_policy_that_writes_no_report_makes_no_pair_and_the_command_says_so(small_config, tmp_path):
    raw = yaml.safe_load(small_config.read_text())
    raw["data"] = {"train": raw["data"]["train"], "limit": 6}
    raw["recipe"] = {"name": "reagent", "max_new_tokens": 24, "report_tokens": 24, **PROMPTS}
    raw |= {"run_dir": str(tmp_path / "run"), "objective": {"name": "dpo"}, "cluster": {"address": "local"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = vidalign("align", str(path))
    assert done.returncode == 2, done.stderr[-4000:]
    assert "unparsable_report" in done.stderr
    assert "recipe.judge" in done.stderr
    assert "recipe.report_prompt" in done.stderr
    assert "Traceback" not in done.stderr
