"""`vidalign bench gpu` where there is no GPU: its page, what it refuses, and its parts in a quick form on the CPU."""

import argparse
import os
import signal
import sys

import pytest

from bench import gpu, gpu_page
from bench.gpu_parts.engine import QUICK_CASES
from bench.gpu_parts.models import SHAPES, config_of
from vidalign import files

CASES = {"training": ["tiny, LoRA", "nonsense"], "engine": ["tiny, rollouts"]}
FACTS = {
    "name": "Some GPU",
    "memory": 80 * 2**30,
    "driver": "580.1",
    "versions": {"torch": "2.13.0", "cuda": "13.0"},
    "copied_bytes_a_second": 3e12,
    "matmul_flops": 8e14,
}
TRAINING = {
    "flops": 4e14,
    "step_s": 1.0,
    "render_s": 0.5,
    "num_tokens": 20_000,
    "peak": 40 * 2**30,
    "predicted": {"weights": 20 * 2**30, "activations": 24 * 2**30},
    "start_s": 12.0,
}


def test_the_page_says_what_was_measured_what_failed_and_what_was_left_out():
    text = gpu_page.page(
        {
            "parts": {
                "facts": {"result": FACTS},
                "training: 3B": {"result": TRAINING},
                "training: 7B": {"failed": "code 1: out of `memory`\n"},
                "align": {"left_out": "vllm cannot be imported here"},
            }
        }
    )
    assert "**Some GPU**, 80 GiB, driver 580.1, CUDA 13.0; torch 2.13.0." in text
    assert "| 3B | 1.00 s | 0.50 s | 20,000 | 50% | 40.0 GiB | 44.0 GiB (+10%) | 12 s |" in text
    assert "- training: 7B failed: `code 1: out of 'memory'`" in text
    assert "- align was left out: vllm cannot be imported here" in text
    assert "the CPU's in float32" not in text


def test_the_page_says_what_a_run_and_its_endpoint_did_on_the_device():
    policy = {"same": 23, "questions": 24, "alone_s": 0.05, "requests_a_second": 200.4}
    accuracy = {"base": 0.5, "aligned": 0.75, "blind": 0.1, "num_examples": 24, "scored": {"base": 24}}
    align = {"stages_s": {"rollout": 40.4, "evaluate": 90.0}, "pairs": {"kept": 33}, "accuracy": accuracy}
    serve = {"start_s": 80.2, "at_once": 32, "tokens": 24, "policies": {"base": policy}}
    text = gpu_page.page({"parts": {"facts": {"result": FACTS}, "align": {"result": align}, "serve": {"result": serve}}})
    assert (
        "rollout 40 s, evaluate 90 s; 33 pairs; of the answers to 24 held-out questions are right: base 50 %, aligned 75 %."
        in text
    )
    assert "was ready in 80 s" in text
    assert (
        "base answered one at a time in 50 ms (median), 32 at once at 200 a second, and gave an OpenAI client 23 of 24"
        in text
    )


def test_a_device_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        SystemExit, match=r"^--device=cuda, but PyTorch .* sees no GPU; install it with `make setup EXTRA=gpu`"
    ):
        gpu.require("cuda")
    gpu.require("cpu")


def test_a_part_ends_with_the_bench_where_that_is_told_to_end(monkeypatch, tmp_path):
    ended = []

    class Part:
        pid = 4711

        def __init__(self, command, **options):
            self.first = True

        def wait(self, timeout):
            if self.first:
                self.first = False
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(gpu.subprocess, "Popen", Part)
    monkeypatch.setattr(gpu, "end_session", lambda leader, number: ended.append((leader, number)))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--quick", "--parts", "facts", "--work", str(tmp_path)])
    try:
        with pytest.raises(SystemExit) as caught:
            gpu.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    assert ended == [(4711, signal.SIGKILL)]


def test_a_part_whose_packages_are_missing_or_for_which_no_time_is_left_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "vllm" else object())
    arguments = argparse.Namespace(parts=["engine", "facts"], cases=None, quick=True, minutes=0, device="cpu")
    found: dict = {"parts": {}}
    assert gpu.measure(arguments, tmp_path, found) == []
    assert found["parts"] == {
        **{f"engine: {case}": {"left_out": "vllm cannot be imported here"} for case in QUICK_CASES},
        "facts": {"left_out": "no time was left of 0 minutes"},
    }


def test_what_a_part_tells_may_be_followed_by_what_its_engine_prints():
    assert gpu.told('1\n{"a": 1}\n{"a": 2}\nWARNING [x] y\n\n3\n') == {"a": 2}
    assert gpu.told("Killed\n") is None


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_models_that_exist(name):
    config = config_of(SHAPES[name])
    text = config.get_text_config()
    assert len(text.layer_types) == text.num_hidden_layers
    assert 2 * sum(text.rope_parameters["mrope_section"]) == text.hidden_size // text.num_attention_heads
    assert config.vision_config.out_hidden_size == text.hidden_size


@pytest.mark.long
@pytest.mark.heavy
def test_its_parts_run_on_the_cpu_in_a_quick_form(monkeypatch, tmp_path):
    """A failure in one part is in the page and in the exit code, and does not end the others."""
    monkeypatch.setattr(gpu, "cases_of", lambda part, quick: CASES.get(part, ()))
    options = ["--device", "cpu", "--quick", "--minutes", "60", "--parts", "numbers", "vision", "training", "engine"]
    monkeypatch.setattr(sys, "argv", ["gpu", *options, "--out", str(tmp_path), "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit, match=r"^training: nonsense failed; the page says how$"):
        gpu.main()
    found = files.read_json(tmp_path / "results/gpu.json")["parts"]
    assert "KeyError: 'nonsense'" in found["training: nonsense"]["failed"]
    numbers = found["numbers"]["result"]["variants"]
    assert max(numbers["float32, packed"].values()) < 1e-4
    assert 1e-4 < numbers["bfloat16, packed"]["logp"] < 0.5
    assert {row["difference"] < 1e-5 for name, row in found["vision"]["result"]["ways"].items() if "difference" in row} == {
        True
    }
    training = found["training: tiny, LoRA"]["result"]
    assert training["num_trained"] < training["num_parameters"]
    assert training["checkpoint_bytes"] > 0 < training["export_bytes"]
    assert found["engine: tiny, rollouts"]["result"]["weights"]["moved"] > 0
    text = (tmp_path / "results/gpu.md").read_text()
    assert text in (tmp_path / "docs/performance.md").read_text()
    assert "| tiny, LoRA | " in text
