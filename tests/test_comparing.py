"""Runs beside one another: only what can be compared is, and by the same questions."""

import html.parser

import pytest
import yaml

from pipelines import comparing
from pipelines.cli import main
from vidalign import files
from vidalign.types import EvalAnswer


def answer(example_id, correct):
    return EvalAnswer(
        example_id=example_id, category="c", video="v", question="q", answer="a", text="t", correct=correct, model_id="aligned",
        policy_version="p", latency_s=0.1,
    )  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """A finished run, with which answers of its aligned model are right."""

    def made(name, right, **options):
        run = tmp_path / name
        accuracy = {
            "base": 0.5,
            "aligned": 0.5,
            "by_category": {"<c>": {"aligned": sum(map(bool, right.values())) / len(right)}},
        }
        summary = {"accuracy": accuracy, "pairs": {"kept": 7, "dropped": {"x": 2}}, "wall_s": {"train": 60.0}, "seed": 0}
        files.write_json(run / "summary.json", summary)
        raw = {"run_dir": str(run), "model": {"path": "m"}, "data": {"train": "t"}, **options}
        files.write_text_atomic(run / "config.yaml", yaml.safe_dump(raw))
        files.write_table(run / "rounds/0/eval/aligned.parquet", [answer(id_, correct) for id_, correct in right.items()])
        return str(run)

    return made


def test_two_runs_by_the_questions_on_which_they_differ(make, tmp_path, capsys):
    ids = [f"e{n}" for n in range(20)]
    one = make("one", {id_: n < 10 for n, id_ in enumerate(ids)})
    two = make("two", {id_: n < 1 or n >= 9 for n, id_ in enumerate(ids)}, objective={"name": "dpo"})
    assert main(["report", one, two, "--out", str(tmp_path / "c.html")]) == 0
    out = capsys.readouterr().out
    first, second = out.splitlines()[2:4]
    assert first.split()[:4] == ["one", "20", "50.0", "%"]
    assert "60.0 %" in second
    assert "+10.0 pt (p = 0.815)" in second  # 10 gained, 8 lost: 2 * P(X <= 8), X ~ B(18, 1/2)
    assert "objective.name: leanpo, dpo" in out
    assert "run_dir" not in out
    page = (tmp_path / "c.html").read_text()
    assert "&lt;c&gt;" in page
    assert "<c>" not in page
    assert "10 / 8" in page

    class Tables(html.parser.HTMLParser):
        headers, scoped = 0, 0

        def handle_starttag(self, tag, attributes):
            if tag == "th":
                self.headers += 1
                self.scoped += dict(attributes).get("scope") in ("row", "col")

    tables = Tables()
    tables.feed(page)
    assert tables.headers == tables.scoped > 20


def test_runs_that_were_asked_other_questions_are_compared_on_what_they_share(make, tmp_path):
    one = make("one", {"a": True, "b": False, "c": True})
    two = make("x/one", {"b": True, "c": True, "d": None})
    found = comparing.compared([comparing.run_of(one), comparing.run_of(two)])
    assert found["num_common"] == 2
    assert [row["n"] for row in found["rows"]] == [2, 2]
    assert [row["aligned"] for row in found["rows"]] == [0.5, 1.0]
    assert found["rows"][0]["change"] is None, "base was asked others"
    assert found["rows"][1]["against_first"]["gained"] == 1
    assert found["names"] == [f"{tmp_path.name}/one", "x/one"]
    assert "of the 2 questions that all runs were asked" in comparing.table(found)


def test_the_sign_test():
    assert comparing.sign_test(0, 0) == 1.0
    assert comparing.sign_test(5, 0) == pytest.approx(2 / 32)
    assert comparing.sign_test(1, 9) == pytest.approx(2 * 11 / 1024)


def test_what_cannot_be_compared_is_refused(make, tmp_path, capsys):
    one = make("one", {"a": True})
    for arguments, says in (
        ([one, str(tmp_path)], "is no run with a summary.json"),
        ([one, one], "a run is named twice"),
        ([one, "seed=1", make("two", {"a": True})], "runs are compared as they are"),
        ([one, "--out", "x.html"], "name more than one run"),
        ([one, make("three", {"a": True}), "--out", str(tmp_path)], "is a folder; name a file"),
    ):
        assert main(["report", *arguments]) == 2
        assert says in capsys.readouterr().err
