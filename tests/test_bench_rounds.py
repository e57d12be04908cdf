"""What bench.overlap and bench.reagent say of finished runs, and what a critic by rule says of an answer."""

import base64
import sys
import time

import numpy as np
import pytest

from bench import overlap, overlap_page, reagent
from examples.shapes import rule_critic
from vidalign.config.loading import parse_config
from vidalign.recipes import critic
from vidalign.recipes.reagent import Verdict
from vidalign.types import Example, PreferencePair, Response

TURN = {
    "seed": 0, "command_s": 160.0, "round_s": 33.0, "rollout_s": 20.0, "train_s": 16.0, "both_s": 0.0, "cores_at_work": 1.5,
    "cores_of_others": 0.25,
}  # fmt: skip
BESIDE = TURN | {
    "command_s": 130.0,
    "round_s": 22.0,
    "rollout_s": 24.0,
    "train_s": 20.0,
    "both_s": 60.0,
    "cores_at_work": 1.9,
}


def test_the_page_of_overlap_says_what_bounds_it():
    timed = {"in turn": [TURN] * 3, "overlap": [BESIDE] * 3}
    aged = {"dpo": {f"max_staleness {age}": [{"accuracy": 0.7 - age / 100, "base": 0.65}] for age in range(3)}}
    said = overlap_page.page({"timed": timed, "aged": aged, "rounds": 4, "questions": 60, "held_out": 300, "cores": 2})
    assert "| 1 | in turn | 109 | 33.0 | 20.0 | 16.0 | 0.0 | 1.50 | 0.25 | 160 |" in said
    assert "Overlap makes 1.50x (1.50 to 1.50) as many rounds an hour" in said
    assert "hour: reached." in said
    assert "by itself (20.0 s)" in said
    assert "clocks (turn 1, 2, 3) the processes of a run spend 50 core-seconds on a round in turn and 42 where" in said
    assert "which 2 cores do in 20.9 s." in said
    assert "(33.0 s) that would be 1.58x" in said
    older = [{key: value for key, value in run.items() if not key.startswith("cores")} for run in (TURN, BESIDE)]
    mixed = {"in turn": [older[0], TURN], "overlap": [older[1], BESIDE]}
    made = overlap_page.page({"timed": mixed, "aged": {}, "rounds": 4, "questions": 60, "held_out": 300, "cores": 2})
    assert "| not read | not read | 160 |" in made
    assert "| 1.50 | 0.25 | 160 |" in made
    assert "Rollout takes 1.20x (1.20 to 1.20) as long beside training as by itself, and training 1.25x" in said
    assert "| dpo | 1 | 65.0% | 70.0% (70.0%) | 69.0% (69.0%) | 68.0% (68.0%) |" in said


def test_the_page_of_overlap_says_what_the_age_of_responses_costs(tmp_path, monkeypatch):
    timed = {"in turn": [TURN], "overlap": [BESIDE]}
    found = {"timed": timed, "rounds": 4, "questions": 60, "held_out": 300, "cores": 2}

    def ages(*by_age):
        return {
            f"max_staleness {age}": [{"accuracy": value, "base": 0.65} for value in values]
            for age, values in enumerate(by_age)
        }

    near = ages((0.70, 0.72, 0.71), (0.70, 0.71, 0.70), (0.60, 0.62, 0.61))
    said = overlap_page.page(found | {"aged": {"dpo": near}, "timed_at": "abc1234"})
    assert "dpo: max_staleness 0 ends at 71.0 % (68.5 to 73.5: 95 % interval of the mean over seeds)." in said
    assert "max_staleness 1 minus 0 is -0.7 ± 1.4 points; max_staleness 2 minus 0 is -10.0 ± 0.0 points." in said
    assert "Goal: at max_staleness 1 not below that interval: reached (70.3 %)." in said
    assert "measured before, at commit `abc1234`" in said
    far = ages((0.70, 0.72, 0.71), (0.60, 0.61, 0.60), (0.60, 0.62, 0.61))
    assert "not below that interval: missed (60.3 %)." in overlap_page.page(found | {"aged": {"dpo": far}})
    alone = overlap_page.page(found | {"aged": {"dpo": ages((0.7,), (0.66,), (0.6,))}})
    assert (
        "70.0 % (64.6 to 74.9: 95 % interval of one seed, over questions). max_staleness 1 minus 0 is -4.0 points;" in alone
    )

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="measure some with --turns 2"):
        overlap.timed_before()


def test_cores_at_work_are_those_of_the_command_and_what_it_starts():
    work = overlap.Work([])
    work._read = [(10.0, 100.0, 5.0), (20.0, 100.0, 5.0), (30.0, 115.0, 21.0), (40.0, 135.0, 42.0)]
    assert work.cores(20.0, 40.0) == pytest.approx({"cores_at_work": 1.75, "cores_of_others": 0.1})
    assert work.cores(25.0, 35.0)["cores_at_work"] == pytest.approx((125 - 107.5) / 10)
    spin = "import time; until = time.process_time() + 2\nwhile time.process_time() < until: pass\nprint('done')"
    below = overlap.Work([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"])
    began = time.time()
    done = below.run()
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert below.cores(began, time.time())["cores_at_work"] * (time.time() - began) > 0.5, "the work of a child counts"
    assert overlap.Work([sys.executable, "-c", "1/0"]).run().returncode == 1


def test_a_rule_finds_the_row_of_a_video_and_reports_on_the_answer(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    question = "What colour is the circle?"
    examples = [
        Example(id=name, video=str(tmp_path / f"{name}.mp4"), question=question, answer=f"The circle is {colour}.")
        for name, colour in (("a", "red"), ("b", "blue"))
    ]
    told = rule_critic.critic(examples)

    def ask(name, answer, asked=question):
        url = "data:video/mp4;base64," + base64.b64encode((tmp_path / f"{name}.mp4").read_bytes()).decode()
        prompt = rule_critic.REPORT.replace("{question}", asked).replace("{previous}", answer)
        return critic.reward(
            critic.parse_report(told([{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": prompt}]))
        )

    assert ask("a", "The circle is red.") == 1
    assert ask("b", "The circle is red.") == pytest.approx(5 / 25), "a sentence, of which nothing is so"
    assert ask("b", "up => left") == 0
    with pytest.raises(ValueError, match="no row has this video"):
        ask("a", "red", "What moves?")
    with pytest.raises(ValueError, match=r"set judge\.sees to video"):
        told([{"type": "text", "text": "x"}])
    with pytest.raises(ValueError, match="only the prompt that it was told"):
        told([{"type": "video_url", "video_url": {"url": "data:,"}}, {"type": "text", "text": "x"}])


def test_what_a_critic_of_the_built_in_world_learns_can_be_read():
    rng = np.random.default_rng(0)
    for sample in [reagent.critic_sample(rng) for _ in range(20)]:
        (_, said), (prompt, answer) = sample.turns
        assert critic.parse_report(said) is not None
        assert "of 5" in prompt
        assert answer


def answer(kind, text, turn=0):
    return Response(
        example_id="a", kind=kind, candidate=0, turn=turn, text=text, token_ids=(1,), log_probs=(-1.0,), seed=0, temperature=1.0,
        top_p=1.0, finish_reason="stop", policy_version="p",
    )  # fmt: skip


def test_figures_count_what_reflections_keep_and_mend_and_how_rewards_order():
    example = Example(id="a", video="a.mp4", question="Which way does the circle move?", answer="The circle moves left.")
    right, wrong = example.answer, "The circle moves up."
    texts = {"plain": wrong, "conservative": wrong, "neutral": right, "aggressive": right}
    made = [answer(kind, text, turn) for turn, (kind, text) in enumerate(texts.items())] + [answer("report", "?")]
    rewards = {"plain": 0.2, "conservative": None, "neutral": 1.0, "aggressive": 0.2}
    verdicts = [Verdict(example_id="a", kind=kind, candidate=0, reward=value, report="") for kind, value in rewards.items()]
    pair = PreferencePair(
        id="p", example_id="a", video="a.mp4", question=example.question, answer=right, chosen=right, rejected=wrong
    )
    found = reagent.figures([example], made, verdicts, [pair])
    assert found["answers"] == {"plain": [0, 1], "conservative": [0, 1], "neutral": [1, 1], "aggressive": [1, 1]}
    assert found["mended"] == {"conservative": [0, 1], "neutral": [1, 1], "aggressive": [1, 1]}
    assert found["kept"]["neutral"] == [0, 0]
    assert (found["auc"], found["auc_within"], found["mixed"], found["unreadable"]) == (0.75, 0.75, 1, 1)
    assert (found["pairs"], found["among"]) == ({"right/wrong": 1}, 0.5)
    runs = {who: found | {"base": 0.6, "aligned": 0.7} for who in reagent.CRITICS}
    said = reagent.page({"questions": 1, "held_out": 300, "steps": 3, "runs": runs})
    assert "| policy | 0.0 (0 of 1) | 0.0 (0 of 1) | 100.0 (1 of 1) | 100.0 (1 of 1) | none | 66.7 (2 of 3) |" in said
    assert "| rule | 1 of 4 | 75.0 (1 questions) | 1 | 100.0 | 50.0 | 0.0 | 60.0% | 70.0% (64.6% to 74.9%) |" in said


def test_tries_of_veripos_pairs_differ_from_the_loop_in_one_round_alone(tmp_path):
    from bench import veripo, veripo_tries

    loop = veripo.config_of("loop", tmp_path, veripo_tries.QUESTIONS, "http://x/v1", veripo.REASONED)
    for name, (train, params) in veripo_tries.TRIES.items():
        made = veripo_tries.config_of_try(name, tmp_path, "http://x/v1")
        step = made["rounds"][1]
        assert made["run_dir"] != loop["run_dir"]
        assert step["objective"] == {"name": "dpo"} | ({"params": params} if params else {})
        assert step["train"] == loop["rounds"][1]["train"] | train
        unlike = {"rounds": [], "run_dir": ""}
        assert made | unlike == loop | unlike
        assert (made["rounds"][0], step["recipe"]) == (loop["rounds"][0], loop["rounds"][1]["recipe"])
        parse_config(made)
    figures = dict.fromkeys(veripo.FIGURES, 0.5) | {"words": 25.0}
    text = veripo_tries.page({"tries": {"1e-4": figures}, "versions": "v."})
    assert "| 1e-4 | 50.0 | 50.0 | 50.0 (33 to 67) | 50.0 | 25.0 |" in text


def test_veripos_loop_is_the_example_and_its_page_says_what_a_pair_costs(tmp_path):
    from bench import veripo

    loop, groups = (veripo.config_of(side, tmp_path, 24, "http://x/v1") for side in veripo.SIDES)
    assert [step.get("objective", {}).get("name", "grpo") for step in loop["rounds"]] == ["grpo", "dpo", "grpo"]
    assert loop["rounds"][1]["recipe"]["judge"]["base_url"] == "http://x/v1"
    assert groups["rounds"] == [{}, {}, {}]
    figures = {"f1": 0.5, "right": 0.1, "contradicts.reasoning": 0.6, "contradicts": 0.6, "chair_s": 0.3, "words": 26.0}

    def of(objective, seconds, kept, contradicts, **more):
        known = {"objective": objective, "kept": kept, "dropped": {}, "groups": None, "verdicts": None, "kinds": None}
        return {
            **known,
            "seconds": {"responses": seconds, "train": seconds},
            "figures": {**figures, "contradicts.reasoning": contradicts},
        } | more

    verified = of(
        "dpo", 5.0, 50, 0.3, verdicts={"accurate": 9}, dropped={"no_verified": 3}, kinds={"consistency": 20, "penalty": 30}
    )
    found = {
        "questions": 96,
        "num_questions": 480,
        "base": figures,
        "sides": {
            "loop": [of("grpo", 96.0, 96, 0.6), verified, of("grpo", 9.0, 96, 0.2)],
            "groups": [of("grpo", 9.0, 96, 0.6)] * 3,
        },
        "versions": "torch 2.",
    }
    said = veripo.page(found)
    assert (
        "| loop | 2 | dpo | 50 (consistency 20, penalty 30) | 5 | 5 | 50.0 | 10.0 | 30.0 (21 to 41) | 30.0 | 26.0 |" in said
    )
    assert (
        "A pair costs 0.20 s of all stages and 0.10 s of training; a group costs 2.00 s and 1.00 s, 10.0x and 10.0x as much."
        in said
    )
    assert "Inconsistency was halved by the loop: 60.0 % before, 20.0 % after, and 60.0 % after groups alone." in said
    assert "are not below the interval of those of groups alone (7.6 to 13.0)" in said
    del found["sides"]["groups"]
    assert "Inconsistency" not in veripo.page(found)
