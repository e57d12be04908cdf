"""The whole runs of the events task: their files, their judges, and what their page says."""

import json
import urllib.request

import pytest
from conftest import ROOT

from bench import event_runs
from vidalign.config.loading import parse_config


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", event_runs.FILES)
def test_each_is_a_file_of_the_events_task_with_an_evaluation(name):
    config = parse_config(event_runs.config_of(name))
    assert (config.data.train, config.data.eval) == ("data/events/train.jsonl", "data/events/heldout.jsonl")
    with_judges = {"events-bmc", "events-hound", "events-veripo"}
    assert ("base_url" in json.dumps(event_runs.config_of(name))) == (name in with_judges)


def test_no_two_files_have_the_same_folder():
    files = [*ROOT.glob("examples/events/*.yaml"), *ROOT.glob("configs/events-*.yaml")]
    assert len(event_runs.FILES) == len(files)


def test_the_judge_of_a_step_runs_for_as_long_as_the_run_does():
    judge = {"base_url": "http://127.0.0.1:8101/v1"}
    raw = {"recipe": {"name": "group"}, "rounds": [{}, {"recipe": {"judge": judge}}]}
    with event_runs.judge_of(raw), urllib.request.urlopen(f"{judge['base_url']}/models", timeout=60) as reply:
        assert reply.status == 200
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{judge['base_url']}/models", timeout=5)


def kept(seconds):
    summary = {
        "wall_s": {"rollout": 20.4, "train": 31.0, "evaluate": 60.0, "report": 1.0},
        "accuracy": {
            "num_examples": 480,
            "figures": {"base": {"f1": 0.49, "chair_s": 0.4}, "aligned": {"f1": 0.5, "chair_s": 0.3}},
        },
    }
    return {"seconds": seconds, "cores": 2} | event_runs.facts_of(summary)


def test_the_page_says_which_runs_are_too_long():
    runs = {"events-grpo": kept(299.6), "events-veripo": kept(125)}
    text = event_runs.page({"runs": runs, "versions": "v."})
    assert "| `configs/events-grpo.yaml` | 5 min 0 s | 20 | 31 | 60 | 49.0 → 50.0 | 40.0 → 30.0 |" in text
    assert "These take less than 10 minutes; the longest, `configs/events-grpo.yaml`, takes 5 min 0 s." in text
    assert "- Not run: `examples/events/align.yaml`, " in text
    everything = dict.fromkeys(event_runs.FILES, kept(1))
    assert "Not run" not in event_runs.page({"runs": everything, "versions": "v."})
    text = event_runs.page({"runs": runs | {"events-sft": kept(600)}, "versions": "v."})
    assert "Not under 10 minutes: `configs/events-sft.yaml`." in text
