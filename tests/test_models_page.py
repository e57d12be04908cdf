"""docs/models.md says what the tests of families found, and nothing else."""

import re

from tiny_families import WRITERS

from bench import families


def test_the_page_is_what_was_found():
    assert families.PAGE.read_text(encoding="utf-8") == families.page(families.read())


def test_every_family_that_is_tested_has_a_row_and_no_test_failed():
    found = families.read()["families"]
    assert set(families.NAMES) == set(WRITERS) >= set(found)
    for family, row in found.items():
        assert set(row) <= set(families.COLUMNS), family
        assert "failed" not in row.values(), family


def test_it_was_found_with_the_locked_versions():
    locks = "".join((families.ROOT / "requirements" / f"{name}.lock").read_text() for name in ("cpu", "torch-cpu"))
    locked = dict(re.findall(r"^([\w-]+)==([\w.]+)", locks, re.M))
    for name, version in families.read()["versions"].items():
        assert version.partition("+")[0] == locked[name], name


def test_what_fails_and_what_was_not_run_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "FOUND", tmp_path / "models.json")
    monkeypatch.setattr(families, "PAGE", tmp_path / "models.md")
    families.record({"qwen2_vl": {"rollout": "1e-06", "train, packed": "no: a reason"}})
    families.record({"qwen2_vl": {"rollout": "failed"}, "gemma4": {"train, packed": "no: a reason"}})
    page = families.PAGE.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| Qwen2-VL"))
    columns = list(families.COLUMNS)
    cells = [cell.strip() for cell in row.split("|")[3:-1]]
    assert cells[columns.index("rollout")] == "failed"
    assert cells[columns.index("train, packed")] == "no [1]"
    assert cells[columns.index("serve")] == "not run"
    assert page.count("1. a reason") == 1
    monkeypatch.setattr(families, "versions", lambda: {"transformers": "9"})
    families.record({"gemma4": {"serve": "yes"}})
    assert families.read()["families"] == {"gemma4": {"serve": "yes"}}  # what other versions did says nothing of these
