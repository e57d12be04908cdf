"""The comparison of methods: which rate is chosen, what an arm does to pairs, and what the page of the events task says."""

import functools
import importlib
import math
import pathlib
import statistics
import types

import pytest

from bench.intervals import interval
from bench.quality import bases_page, edits, events_page, events_pairs, page
from bench.quality.arms import BASE
from bench.quality.data import Data, base_folder
from bench.quality.events import COMPARED, EVENTS, OF_LEANPO
from bench.quality.events_figures import VERBS, figures, styles, with_true_answer
from bench.quality.queue import Queue
from bench.quality.run import Job
from bench.quality.shapes import SHAPES
from bench.quality.sweep import best_rate, is_swept, missing_rates, tried
from bench.quality.tables import cell, runs_by_arm
from examples.events.phrases import retold
from examples.events.world import STYLES, Event, Question, answer
from vidalign import files
from vidalign.learning import objectives
from vidalign.types import Example, PreferencePair

TRUE = "First a small red circle moves left, then a large blue cross moves up, and finally a small green square moves right."
SLIP = TRUE.replace("red", "blue")  # one phrase of three is wrong
SHORT = "First a small red circle moves left, and finally a large blue cross moves up."


def example(name="a", answer=TRUE, question="What happens in the video?", category="happened"):
    return Example(id=name, video="v", question=question, answer=answer, caption=TRUE, category=category)


def pair(name="a", chosen=TRUE, rejected=SLIP, **fields):
    known = {"video": "v", "question": "What happens in the video?", "answer": TRUE, "chosen_trust": 1.0}
    return PreferencePair(id=name, example_id=name, chosen=chosen, rejected=rejected, **{**known, **fields})


def record(root, task, method, figures_by_rate):
    for rate, values in figures_by_rate.items():
        for seed, value in zip(task.dev_seeds, values, strict=True):
            files.write_json(Job(method, seed, rate, "dev").folder(root) / "result.json", {task.figure: value})


def test_the_best_rate_is_taken_and_of_equals_the_lowest(tmp_path):
    for rate, accuracy in zip((1e-4, 3e-4, 3e-5, 1e-3), (0.7, 0.7, 0.5, 0.6), strict=True):
        assert not is_swept(SHAPES, tmp_path, "DPO") or rate == 1e-3
        record(tmp_path, SHAPES, "DPO", {rate: [accuracy] * len(SHAPES.dev_seeds)})
    assert is_swept(SHAPES, tmp_path, "DPO")
    assert best_rate(SHAPES, tmp_path, "DPO") == 1e-4


def test_a_rate_counts_with_all_of_its_dev_seeds_and_by_their_mean(tmp_path):
    low, high = EVENTS.rates
    record(tmp_path, EVENTS, "DPO", {low: (0.6, 0.6, 0.6), high: (0.9, 0.4, 0.6)})
    assert best_rate(EVENTS, tmp_path, "DPO") == high
    (Job("DPO", EVENTS.dev_seeds[0], high, "dev").folder(tmp_path) / "result.json").unlink()
    assert list(tried(EVENTS, tmp_path, "DPO")) == [low]
    assert missing_rates(EVENTS, tmp_path, "DPO") == [high]


def test_a_method_tries_rates_until_its_best_has_neighbours_on_both_sides(tmp_path):
    assert missing_rates(EVENTS, tmp_path, "DPO") == [1e-4, 3e-4]
    record(tmp_path, EVENTS, "DPO", {1e-4: (0.6,) * 3, 3e-4: (0.5,) * 3})
    assert missing_rates(EVENTS, tmp_path, "DPO") == [3e-5]
    record(tmp_path, EVENTS, "DPO", {3e-5: (0.7,) * 3})
    assert missing_rates(EVENTS, tmp_path, "DPO") == [1e-5]
    assert not is_swept(EVENTS, tmp_path, "DPO")
    record(tmp_path, EVENTS, "DPO", {1e-5: (0.6,) * 3})
    assert is_swept(EVENTS, tmp_path, "DPO")
    assert best_rate(EVENTS, tmp_path, "DPO") == 3e-5


def test_a_rate_that_some_dev_seeds_found_better_is_tried_with_all_of_them(tmp_path):
    record(tmp_path, EVENTS, "DPO", dict.fromkeys((1e-05, 0.0001, 0.0003, 0.001), (0.6,) * 3))
    record(tmp_path, EVENTS, "DPO", {3e-4: (0.7,) * 3, 1e-5: (0.9,) * 3, 3e-6: (0.5,) * 3})
    (Job("DPO", EVENTS.dev_seeds[0], 1e-5, "dev").folder(tmp_path) / "result.json").unlink()
    assert missing_rates(EVENTS, tmp_path, "DPO") == [1e-5]
    record(tmp_path, EVENTS, "DPO", {1e-5: (0.65,) * 3})
    assert is_swept(EVENTS, tmp_path, "DPO")
    assert best_rate(EVENTS, tmp_path, "DPO") == 3e-4


def test_a_finished_run_is_not_run_again_and_nothing_is_started_too_late(tmp_path):
    job = Job("DPO", 0, 1e-4)
    files.write_json(job.folder(tmp_path) / "result.json", {"f1": 0.5})
    Queue(EVENTS, tmp_path, 1, -math.inf).run([job])
    with pytest.raises(SystemExit):
        Queue(EVENTS, tmp_path, 1, -math.inf).run([job, Job("SFT", 0, 1e-4)])
    assert job.result(tmp_path) == {"f1": 0.5}
    assert not Job("SFT", 0, 1e-4).folder(tmp_path).exists()


def test_runs_of_the_base_are_apart_by_split_and_others_by_rate_and_seed(tmp_path):
    jobs = [Job(BASE), Job(BASE, split="dev"), Job("DPO", 0, 1e-4), Job("DPO", 1, 1e-4), Job("DPO", 1, 3e-4)]
    assert len({job.folder(tmp_path) for job in jobs}) == len(jobs)


def test_everything_is_marked_on_both_sides():
    made = [pair("a", answer=SHORT, chosen_marks=((0, 3),))]
    [marked] = edits.everything_marked(None, made)
    assert (marked.chosen_marks, marked.rejected_marks) == (((0, len(TRUE)),), ((0, len(SLIP)),))


def test_plain_answers_become_losers_where_they_agree_less_with_the_hint(tmp_path):
    rows = {"train": [types.SimpleNamespace(example=example(name)) for name in "abc"]}
    data = Data(EVENTS, tmp_path, rows, {})
    files.write_json(base_folder(tmp_path, "train") / "result.json", {"replies": [SHORT, TRUE, "Hm."]})
    made = [pair(name, rejected_marks=((0, 3),)) for name in "abc"]
    first, *others = edits.plain_losers(data, made)
    assert (first.rejected, first.rejected_marks, first.chosen) == (SHORT, (), TRUE)
    assert 0.7 < first.rejected_trust < 0.9
    assert others == made[1:]  # one agrees as much as its winner, and of the other nothing is known


def test_a_loser_is_told_anew_in_the_words_of_the_winner(tmp_path):
    goes = "First a circle, small and blue, goes left, and finally a cross, large and blue, goes up."
    told = retold(goes, "What happens in the video?", TRUE)
    assert told == SHORT.replace("red", "blue")
    assert retold(TRUE, "Which thing comes last? Think first.", goes).startswith("<think> First a circle, small and red,")
    made = [pair("a", rejected=goes), pair("b", rejected="Hm."), pair("c", rejected="First a circle moves.")]
    first, *others = edits.parallel_losers(None, made)
    assert (first.chosen, first.rejected) == (TRUE, told)
    assert next(first.rejected[start:end] for start, end in first.rejected_marks) == "blue"
    assert others == made[1:]  # of one nothing is understood, of the other not everything is told
    data = Data(EVENTS, tmp_path, {"train": [types.SimpleNamespace(example=example(name)) for name in "abc"]}, {})
    files.write_json(base_folder(tmp_path, "train") / "result.json", {"replies": [SLIP, goes, TRUE]})
    assert [one.rejected for one in edits.plain_and_parallel(data, made)] == [SLIP, told, made[2].rejected]
    [marked, *_] = edits.plain_parallel_and_marked(data, made)
    assert marked.rejected_marks == ((0, len(SLIP)),)


def test_how_much_of_the_pairs_is_marked():
    made = [pair("a", chosen="abcd", rejected="abc", chosen_marks=((0, 1), (2, 3))), pair("b", chosen="ab", rejected="a")]
    assert events_pairs.shares_marked(made) == {"chosen": round(2 / 6, 4), "rejected": 0.0}


def test_an_erring_judge_swaps_a_share_of_the_pairs_always_the_same():
    made = [pair(str(number), rejected_marks=((1, 2),)) for number in range(400)]
    edited = edits.Flipped(0.25)(None, made)
    flipped = [one for one, other in zip(edited, made, strict=True) if one != other]
    assert 75 < len(flipped) < 125
    assert {(p.chosen, p.rejected, p.rejected_trust, p.chosen_marks) for p in flipped} == {(SLIP, TRUE, 1.0, ((1, 2),))}
    assert edited == edits.Flipped(0.25)(None, made)
    assert edits.Flipped(0.0)(None, made) == made
    assert edits.swapped(edits.swapped(flipped[0])) == flipped[0]


def test_training_rows_are_scored_by_what_happened_and_not_by_their_hint():
    row = example(answer="First a small blue circle moves left, so one thing is blue.", question="How many things are blue?")
    assert with_true_answer(row).answer.startswith("First a small red circle moves left, then")
    assert with_true_answer(row).answer.endswith("so one thing is blue.")
    table = figures([TRUE, SLIP], [example("a"), example("b", answer=SLIP)])
    assert table["right"] == 0.5
    assert table["f1"] == pytest.approx(5 / 6, abs=1e-3)
    assert table["f1_by_category"] == {"happened": table["f1"]}


def test_pairs_are_compared_with_the_hints_and_with_the_plain_answers():
    examples = [example("a", answer=SHORT), example("b"), example("c")]
    pairs = [pair("a", answer=SHORT, chosen=TRUE, rejected=SLIP), pair("b", chosen=SLIP, rejected=TRUE)]
    found = events_pairs.compared(pairs, examples, [SLIP, SLIP, "unused"])
    assert found["chosen to rejected"] == {"better": 0.5, "equal": 0.0, "worse": 0.5}
    assert found["chosen to plain"] == {"better": 0.5, "equal": 0.5, "worse": 0.0}
    assert found["chosen to hint"] == {"better": 0.5, "equal": 0.0, "worse": 0.5}
    assert found["chosen"]["right"] == 0.5
    assert found["hint"]["right"] == 0.5
    assert found["plain"]["right"] == 0.0
    assert found["chosen equals hint"] == 0.0


def test_a_difference_is_paired_by_seed_and_its_verdict_is_of_its_interval():
    arms = {
        "one": [{"seed": 0, "f1": 0.5}, {"seed": 1, "f1": 0.7}, {"seed": 2, "f1": 0.6}],
        "other": [{"seed": 1, "f1": 0.6}, {"seed": 0, "f1": 0.4}],
    }
    base = {"f1": 0.4}
    assert events_page.difference(base, arms, "one", "other") == pytest.approx([10, 10])
    assert events_page.difference(base, arms, "one", BASE) == pytest.approx([10, 30, 20])
    assert events_page.verdict([10, 10.1, 9.9]) == "higher"
    assert events_page.verdict([-10, -10.1, -9.9]) == "lower"
    assert events_page.verdict([10, -10, 5]) == "not told apart"
    assert events_page.verdict([10]) == "one seed tells nothing"


def test_figures_that_were_kept_stand_beside_new_ones_of_the_same_base():
    def figures_of(arm, f1, rate=1e-4, base=0.4, recipe="leanpo"):
        return {
            "base": {"heldout": {"f1": base}},
            "rates": {arm: rate},
            "dev": {arm: {f"{rate:g}": [f1]}},
            "runs": [{"arm": arm, "seed": 0, "learning_rate": rate, "f1": f1}],
            "dev_runs": [{"arm": arm, "seed": 100, "learning_rate": rate, "f1": f1}],
            "pairs": [{"recipe": recipe, "seed": 0, "kept": f1}],
            "versions": "torch 2",
        }

    new, old = figures_of("RRPO", 0.7, recipe="rrpo"), figures_of("SFT", 0.6)
    joined = events_page.with_earlier(new, old)
    assert [row["arm"] for row in joined["runs"]] == ["RRPO", "SFT"]
    assert joined["rates"] == {"RRPO": 1e-4, "SFT": 1e-4}
    assert [row["recipe"] for row in joined["pairs"]] == ["leanpo", "rrpo"]
    assert joined["earlier"] == {"SFT": "torch 2"}
    again = events_page.with_earlier(figures_of("RRPO", 0.8, rate=3e-4), joined)
    assert [row["f1"] for row in again["runs"]] == [0.8, 0.6], "a rate that is not chosen any more is not reported"
    assert events_page.with_earlier(new, None) == new
    with pytest.raises(SystemExit, match="measure all arms anew"):
        events_page.with_earlier(figures_of("RRPO", 0.7, base=0.5), old)


def test_a_style_is_told_by_its_verb():
    event = Event("small", "red", "circle", "left")
    question = Question("How many things move left?", "count", "left")
    answers = [answer([event], question, style) for style in range(len(STYLES))]
    assert all(" moves left" in text for text in answers)  # the conclusion, in every style
    assert [styles([text]) for text in answers] == [{v: float(v == verb) for v in VERBS} for verb in VERBS]
    assert styles([*answers, "Hm."]) == dict.fromkeys(VERBS, 0.25)


@pytest.mark.parametrize("task", [SHAPES, EVENTS], ids=lambda task: task.name)
def test_arms_name_recipes_objectives_and_arms_that_exist(task):
    for arm in task.arms.values():
        assert arm.recipe in task.recipes
        assert objectives.build(arm.objective, arm.params) is not None
        assert (arm.edit is None) == (arm.edited == "")
    assert {name for two in COMPARED for name in two} <= {BASE, *EVENTS.arms}


def test_an_arm_that_does_not_exist_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench.quality", "--task", "events", "--arms", "SFT", "SAPO"])
    with pytest.raises(SystemExit):
        importlib.import_module("bench.quality.__main__").main()
    assert "SAPO: not among the arms of events, which are SFT, DPO, LeanPO" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "written"), [("quality", page.page), ("events", events_page.page)])
def test_a_part_of_the_results_says_what_the_figures_beside_it_say(name, written):
    results = pathlib.Path(__file__).parents[1] / "bench" / "results"
    assert (results / f"{name}.md").read_text().strip() == written(files.read_json(results / f"{name}.json")).strip()


def test_the_page_of_other_bases_says_what_holds_on_each_and_over_all():
    def on(base, sft, leanpo):
        rows = [
            {"arm": arm, "seed": seed, "f1": value, "learning_rate": 3e-4}
            for arm, values in (("SFT", sft), ("LeanPO", leanpo))
            for seed, value in enumerate(values)
        ]
        return {"base": {"f1": base, "num_questions": 480}, "runs": rows, "pairs": []}

    asked = {"num_examples": 96, "turns": [{"f1": 0.7, "true": 0.4}] * 3} | {
        name: {"f1": f1} for name, f1 in (("base", 0.5), ("noise", 0.05), ("swapped", 0.06))
    }
    zero = on(0.5, (0.8, 0.8), (0.7, 0.72))
    first = {**zero, "base": {"heldout": zero["base"]}}
    bases = {"1": on(0.4, (0.8, 0.8), (0.6, 0.6)) | {"asked": asked}, "2": on(0.6, (0.8, 0.8), (0.7, 0.7)) | {"asked": None}}
    said = bases_page.page({"bases": bases, "rates": {"SFT": 3e-4}, "versions": "torch 2"}, first, asked)
    assert "## The events task on three bases" in said
    assert "| SFT | 80.0 ± 0.0 (2) | 80.0 ± 0.0 (2) | 80.0 ± 0.0 (2) |" in said
    assert "| base 1 | 96 | 50.0 | 5.0 | 6.0 | 70.0 / 40.0 | 70.0 / 40.0 | 70.0 / 40.0 |" in said
    assert "| base 2 | 96" not in said
    over = "| +9.0 ± 12.7, not told apart | +20.0 ± 0.0, higher | +10.0 ± 0.0, higher | +13.0 ± 15.1, not told apart |"
    assert f"| SFT minus LeanPO {over}" in said
    assert "| LeanPO minus DPO | not run | not run | not run |  |" in said


@functools.cache
def events_found():
    """What was measured on the events task: the runs by arm, and what the base does."""
    found = files.read_json(pathlib.Path(__file__).parents[1] / "bench/results/events.json")
    return found, runs_by_arm(found, EVENTS.arms), found["base"]["heldout"]


def minus(a, b=BASE, figure="f1"):
    _, arms, base = events_found()
    return cell(events_page.difference(base, arms, a, b, figure))


def ends(arm, figure="f1"):
    _, arms, _ = events_found()
    return cell([row[figure] for row in arms[arm]], 100)


def test_what_the_findings_say_of_turns_is_what_was_measured():
    root = pathlib.Path(__file__).parents[1]
    said = " ".join((root / "docs/findings.md").read_text(encoding="utf-8").split())
    found, arms, base = events_found()
    one, two, three = "LeanPO, one turn", "LeanPO", "LeanPO, three turns"

    def winners(figure, digits):
        rows = [[row for row in found["pairs"] if row["recipe"] == EVENTS.arms[arm].recipe] for arm in (one, two, three)]
        return [f"{100 * statistics.fmean(row['chosen'][figure] for row in each):.{digits}f}" for each in rows]

    def answers(figure):
        return [f"{100 * statistics.fmean(row[figure] for row in arms[arm]):.1f}" for arm in (one, two, three)]

    f1 = ["{:.1f} ± {:.1f}".format(*interval([100 * row["f1"] for row in arms[arm]])) for arm in (one, two, three)]
    left_out, invented = winners("omitted", 0), winners("chair_s", 0)
    kept = [
        f"{statistics.fmean(row['kept'] for row in found['pairs'] if row['recipe'] == EVENTS.arms[arm].recipe):.0f}"
        for arm in (one, two, three)
    ]
    updates = [statistics.fmean(row["num_steps"] for row in arms[arm]) for arm in (one, two, three)]
    assert max(updates) - min(updates) <= 2
    for more, less in ((three, one), (two, one), (three, two)):
        assert events_page.verdict(events_page.difference(base, arms, more, less)) == "not told apart"
    for sentence in (
        f"LeanPO ends at {f1[0]} with one turn, {f1[1]} with two and {f1[2]} with three",
        f"three turns minus LeanPO with one is {minus(three, one)} points, two against one {minus(two, one)} and three against two "
        f"{minus(three, two)}.",
        "phrase F1 of {}, {} and {}".format(*winners("f1", 1)),
        f"{left_out[0]} % of what winners of one turn should tell is left out, with two turns {left_out[1]} and with three "
        f"{left_out[2]} %, while",
        "while {}, {} and {} % of them tell".format(*invented),
        "second: {}, {} and {} % are left out, and".format(*answers("omitted")),
        "and {}, {} and {} % of the answers have an invented event".format(*answers("chair_s")),
        "One turn leaves {} pairs, two {} and three {}".format(*kept),
    ):
        assert sentence in said


def test_what_the_findings_say_of_judges_that_err_and_of_marks_is_what_was_measured():
    root = pathlib.Path(__file__).parents[1]
    said = " ".join((root / "docs/findings.md").read_text(encoding="utf-8").split())
    _, arms, base = events_found()
    flipped, marked = "DPO, flipped", "RRPO, parallel losers, every token marked"

    by_seed = sorted(events_page.difference(base, arms, "RRPO, parallel losers", marked))
    rates = {
        arm: f"{arms[arm][0]['learning_rate']:g}".replace("e-0", "e-") for arm in (flipped, "cDPO, flipped", "rDPO, flipped")
    }
    assert rates[flipped] == rates["rDPO, flipped"] == "0.0001"
    for sentence in (
        f"DPO ends at {ends(flipped)} %, and that minus DPO on the pairs as they were is {minus(flipped, 'DPO')} points",
        f"on the same swapped pairs is {minus('rDPO, flipped', flipped)} points of F1, and cDPO minus DPO "
        f"{minus('cDPO, flipped', flipped)}. Each",
        f"a lower one for cDPO ({rates['cDPO, flipped']}) than for the others (1e-4)",
        f"RRPO ends at {ends(marked)}: the marks gain {minus('RRPO, parallel losers', marked)} points",
        f"({by_seed[0]:.0f} to {by_seed[-1]:.0f} by seed) and {minus('RRPO, parallel losers', marked, 'right')} points of right "
        "answers",
        f"is marked anyway, marks gain {minus('RRPO', 'RRPO, every token marked')} points, of right answers "
        f"nothing that could be told ({minus('RRPO', 'RRPO, every token marked', 'right')})",
        f"DPO with plain losers minus DPO is {minus('DPO, plain losers', 'DPO')} points: not told apart",
    ):
        assert sentence in said
    assert {row["styles"]["heading"] for row in arms["DPO, plain losers"]} == {1.0}


def test_what_the_findings_say_of_all_objectives_on_the_same_pairs_is_what_was_measured():
    root = pathlib.Path(__file__).parents[1]
    said = " ".join((root / "docs/findings.md").read_text(encoding="utf-8").split())
    _, arms, base = events_found()
    imitating, preferring = (
        ("SFT", "ORPO", "MPO", "LeanPO", "RPO"),
        [name for name in OF_LEANPO if name not in ("ORPO", "MPO", "RPO")],
    )

    def by_f1(names):
        return sorted(names, key=lambda name: -arms_mean(arms, name))

    def named(names):
        return [f"{name} {ends(name)}" for name in by_f1(names)]

    def verdict(one, other):
        return events_page.verdict(events_page.difference(base, arms, one, other))

    def moved(arm, side):
        return statistics.fmean(row["end"][f"{side}_logp"] - row["start"][f"{side}_logp"] for row in arms[arm])

    assert by_f1(imitating)[0] == "SFT"
    assert {verdict(name, "SFT") for name in (*imitating[1:], *preferring, "DPO")} == {"lower"}
    assert min(arms_mean(arms, name) for name in imitating) > max(arms_mean(arms, name) for name in (*preferring, "DPO"))
    assert {name for name in preferring if verdict(name, "DPO") == "lower"} == {"SPPO", "EXPO"}
    assert len([name for name in preferring if verdict(name, "DPO") == "not told apart"]) == 5
    other_betas = (
        "DPO, beta 0.3",
        "DPO, beta 0.03",
        "LeanPO, beta 6",
        "LeanPO, beta 0.7",
        "RRPO, beta 0.3",
        "RRPO, beta 0.03",
    )
    betas = {name: minus(name, name.partition(",")[0]) for name in other_betas}
    assert {name: told for name in betas if (told := verdict(name, name.partition(",")[0])) != "not told apart"} == {
        "DPO, beta 0.03": "lower"
    }
    *first, last = named(imitating)
    *others, least = named([*preferring, "DPO"])
    gap = statistics.fmean(row["start"]["chosen_logp"] - row["start"]["rejected_logp"] for row in arms["EXPO"])
    assert {EVENTS.arms[name].recipe for name in (*imitating, *preferring)} == {"leanpo"}
    exp = {side: abs(moved("EXPO", side)) for side in ("chosen", "rejected")}
    for sentence in (
        f"{', '.join(first)} and {last}",
        f"{', '.join(others)} and {least} (base {100 * base['f1']:.1f})",
        f"ORPO minus SFT is {minus('ORPO', 'SFT')} and MPO minus SFT {minus('MPO', 'SFT')}",
        f"likelier by {gap:.2f} nats a token already",
        f"gives {betas['DPO, beta 0.3']} points and a third of it {betas['DPO, beta 0.03']}; of LeanPO's 2.0 they give "
        f"{betas['LeanPO, beta 6']} (6) and {betas['LeanPO, beta 0.7']} (0.7), of RRPO's 0.1 they give {betas['RRPO, beta 0.3']} and "
        f"{betas['RRPO, beta 0.03']},",
        f"EXPO hardly moves at any rate: at its best the winners move by {exp['chosen']:.2f} nats a token and the losers by "
        f"{exp['rejected']:.2f}",
    ):
        assert sentence in said, sentence
    rows = " ".join((root / "docs/methods.md").read_text(encoding="utf-8").split())
    assert f"events F1: {', '.join(named(name for name in OF_LEANPO if name != 'MPO'))}; DPO {ends('DPO')} " in rows


def arms_mean(arms, name):
    return statistics.fmean(row["f1"] for row in arms[name])


def test_what_is_said_of_losers_and_clips_is_what_was_measured():
    root = pathlib.Path(__file__).parents[1]
    said, rows = (
        " ".join((root / f"docs/{page}.md").read_text(encoding="utf-8").split()) for page in ("findings", "methods")
    )
    found, arms, base = events_found()
    masked, dropped, backwards, segment = (
        "DPO on RRPO's pairs", "TPO, dropped frames", "TEMPLE, reversed", "TPO, one segment",
    )  # fmt: skip

    own = "BMC's loss on RRPO's pairs"

    def losers(arm):
        each = [row["rejected"]["f1"] for row in found["pairs"] if row["recipe"] == EVENTS.arms[arm].recipe]
        return f"{100 * statistics.fmean(each):.1f}"

    def dev(rate):
        *first, last = (f"{100 * value:.1f}" for value in found["dev"]["VDPO"][rate])
        return f"{', '.join(first)} and {last}"

    worst = [row for row in found["dev_runs"] if (row["arm"], row["learning_rate"]) == ("VDPO", 3e-4)]
    fell = [row["start"]["chosen_logp"] - row["end"]["chosen_logp"] for row in worst if row["seed"] == EVENTS.dev_seeds[0]]
    for sentence in (
        f"DPO gains {minus(masked)} points over the base, with half of the frames dropped (TPO) {minus(dropped)}, "
        f"{minus(dropped, masked)} more, and with all frames backwards (a part of TEMPLE's curriculum) {minus(backwards)}.",
        f"it gains {minus(segment)} points, {minus(segment, dropped)} more than with dropped frames",
        f"phrase F1 {losers(dropped)} and {losers(backwards)} %, of a segment {losers(segment)}, with masks {losers(masked)}.",
        f"fall from {100 * base['chair_s']:.1f} to {ends(dropped, 'chair_s')} and {ends(backwards, 'chair_s')} %, with a segment to "
        f"{ends(segment, 'chair_s')} and with masks to {ends(masked, 'chair_s')}.",
        f"already does in {100 * statistics.fmean(row['start']['accuracy'] for row in arms['VDPO']):.0f} % of the pairs",
        f"from {100 * found['base']['dev']['f1']:.1f} % to {dev('3e-05')} % at 3e-5 and {dev('0.0003')} % at 3e-4",
        f"the hints lose {fell[0]:.2f} nats a token",
        f"VDPO minus the base is {minus('VDPO')} points",
        f"gains {minus('MixDPO')}, and MixDPO minus DPO is {minus('MixDPO', 'DPO')}.",
        f"BMC gains {minus('BMC')} points; BMC minus DPO on RRPO's pairs, whose winners are the hints, is {minus('BMC', masked)}, and "
        f"minus its own loss on those pairs {minus('BMC', own)}.",
    ):
        assert sentence in said
    temple = files.read_json(root / "bench/results/events_temple.json")
    shares = {name: f"{100 * temple['figures'][name]:.1f}" for name in ("f1", "right", "chair_s")}
    low, high = (f"{100 * edge:.1f}" for edge in temple["interval_right"])
    assert (
        f"ends at a phrase F1 of {shares['f1']} %, with {shares['right']} % of the answers right ({low} to {high})" in said
    )
    assert f"and an invented event in {shares['chair_s']} %; raw" in said
    assert f"`configs/events-temple.yaml` (one seed) {shares['f1']} |" in rows
    assert {row["learning_rate"] for row in arms["VDPO"]} == {sorted(EVENTS.wider_rates)[1]}
    for arm in (masked, dropped, backwards, segment, "BMC"):
        assert max(events_page.difference(base, arms, arm, "SFT on the hints")) < -20
    for sentence in (
        f"events F1 {ends(dropped)} with dropped frames, {ends(segment)} with one segment, "
        f"{ends(backwards)} with reversed ones, {ends(masked)} with RRPO's losers",
        f"events F1 {ends('RRPO')}, with parallel losers {ends('RRPO, parallel losers')}",
        f"events F1 {ends('MPO')} |",
        f"events F1 {ends('VDPO')}, the base's",
        f"events F1 {ends('MixDPO')}, DPO on the same pairs alone {ends('DPO')}",
        f"events F1 {ends('BMC')}, DPO without bridging {ends(masked)}",
    ):
        assert sentence in rows


def test_what_the_findings_say_of_ablations_is_what_was_measured():
    root = pathlib.Path(__file__).parents[1]
    said = " ".join((root / "docs/findings.md").read_text(encoding="utf-8").split())
    arms = runs_by_arm(files.read_json(root / "bench/results/quality.json"), SHAPES.arms)

    def ends(arm):
        return cell([row["accuracy"] for row in arms[arm]], 100)

    def lower(arm):
        of = arm.partition(" without")[0]
        return round(statistics.fmean(row["accuracy"] for row in arms[of]) * 100 - float(ends(arm).split()[0]))

    def of(arm, figure):
        return f"{statistics.fmean(row[figure] for row in arms[arm]):.2f}"

    on_pairs = "DPO on RRPO's pairs"
    rates = {"RRPO": 3e-4, "RRPO without KL": 1e-4, on_pairs: 1e-4, "RRPO, alpha 0.1": 1e-3}
    assert {arm: arms[arm][0]["learning_rate"] for arm in rates} == rates
    gained = [arm for arm in SHAPES.arms if " without " not in arm and float(ends(arm).split()[0]) > 75]
    assert set(sorted(gained, key=lambda arm: of(arm, "kl_where_right"))[:3]) == {"EXPO", "alpha-DPO", "SimPO"}
    lost = statistics.fmean(row["end"]["both_fell"] for row in arms["LeanPO without SFT term"])
    assert {row["learning_rate"] for row in arms["LeanPO without SFT term"]} == {1e-4}
    assert {row["learning_rate"] for row in arms["LeanPO"]} == {3e-4}
    assert lower("LeanPO without SFT term") == 5
    for arm in ("LeanPO without reflection", "LeanPO without smoothing"):
        gaps = [full["accuracy"] - row["accuracy"] for full, row in zip(arms["LeanPO"], arms[arm], strict=True)]
        assert events_page.verdict(gaps) == "not told apart"
    for sentence in (
        f"Without its SFT term LeanPO ends at {ends('LeanPO without SFT term')} at the rate that is best for that (1e-4), 5 points "
        f"lower, and {100 * lost:.0f} % of its pairs",
        f"Without hints LeanPO ends at {ends('LeanPO without hints')}, {lower('LeanPO without hints')} points lower",
        f"Without reflection it ends at {ends('LeanPO without reflection')}, which is not told apart",
        f"Without smoothing it ends at {ends('LeanPO without smoothing')}, as with it",
        f"it ends at {ends('RRPO without KL')}, {lower('RRPO without KL')} points lower",
        f"without the refined reward at {ends('RRPO without refined reward')}, which is not told apart",
        f"best at 3e-4 and ends {of('RRPO', 'kl_to_base')} nats from the base",
        f"best at 1e-4 and ends at {ends('RRPO without KL')} and {of('RRPO without KL', 'kl_to_base')} nats, as DPO does on the same "
        f"pairs ({ends(on_pairs)} and {of(on_pairs, 'kl_to_base')})",
        f"with `alpha: 0.1` RRPO ends at {ends('RRPO, alpha 0.1')} and {of('RRPO, alpha 0.1', 'kl_to_base')} nats, at its best rate "
        "of 1e-3",
        f"next to nothing at any rate ({ends('RRPO, alpha 1')}, base 67.7)",
        f"({of('RRPO', 'kl_where_right')} nats) than DPO on its pairs ({of(on_pairs, 'kl_where_right')}); EXPO "
        f"({of('EXPO', 'kl_where_right')}), alpha-DPO and SimPO ({of('SimPO', 'kl_where_right')}) are the nearest of all that gain",
    ):
        assert sentence in said


def test_what_the_findings_say_of_three_bases_is_what_was_measured():
    root = pathlib.Path(__file__).parents[1]
    said = " ".join((root / "docs/findings.md").read_text(encoding="utf-8").split())
    lines = (root / "bench/results/events_bases.md").read_text(encoding="utf-8").splitlines()
    rows = {cells[1].strip(): cells[2:6] for line in lines if len(cells := line.split("|")) > 6}
    found = {name: [cell.split(",")[0].strip().removeprefix("+") for cell in cells] for name, cells in rows.items()}
    for sentence in (
        "SFT beats LeanPO by {}, {} and {} points, over bases {}".format(*found["SFT minus LeanPO"]),
        f"LeanPO beats DPO by {found['LeanPO minus DPO'][3]} and RRPO by {found['LeanPO minus RRPO'][3]}.",
        f"Over bases LeanPO gains {found['LeanPO minus Base'][3]} and SFT {found['SFT minus Base'][3]}.",
        "DPO gains {} and {} on two of them and nothing on the third ({})".format(*found["DPO minus Base"][:3]),
        f"over bases {found['RRPO minus Base'][3]}.",
    ):
        assert sentence in said
