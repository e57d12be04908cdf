"""The page beside the report with all pairs, groups and answers: what is in its rows, and how it works in a browser."""

import json
import math
import re

import pytest
from browser import after, axe, needed, rendered
from test_report import ATTACK, make_config, make_run

from pipelines import report
from pipelines.comparing import compare
from pipelines.reports.browse import ROWS_A_FILE, answer_rows, group_row, pair_row
from pipelines.reports.examples import told_apart
from vidalign.files import read_table
from vidalign.types import EvalAnswer, PreferencePair, ResponseGroup


def rows_of(folder) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for path in sorted((folder / "rows").iterdir()):
        name, text = re.fullmatch(r'rowsOf\("(\w+)",(.*)\);\n', path.read_text(encoding="utf-8"), re.DOTALL).groups()
        found.setdefault(name, []).extend(json.loads(text))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("browse")
    run = make_run(root / "run", num_pairs=ROWS_A_FILE + 20, num_questions=60)
    return report.write_report(run, make_config(run.root)), run


def test_every_pair_and_answer_is_in_the_rows(made):
    page, run = made
    rows = rows_of(page.parent)
    pairs = read_table(run.stage("pairs") / "pairs.parquet", PreferencePair)
    assert [(row["chosen"], row["rejected"], row["id"]) for row in rows["pairs"]] == [
        (pair.chosen, pair.rejected, pair.example_id) for pair in pairs
    ]
    assert len(list((page.parent / "rows").glob("pairs-*.js"))) == 2
    assert rows["pairs"][0]["recipe"] == "leanpo best_vs_worst"
    assert (rows["pairs"][0]["chosen_kind"], rows["pairs"][0]["rejected_marks"]) == ("reflected", [[4, 10], [24, 28]])
    for name in ("base", "aligned", "blind"):
        answers = read_table(run.stage("eval") / f"{name}.parquet", EvalAnswer)
        assert [row[name] for row in rows["answers"]] == [answer.text for answer in answers]
        words = {True: "right", False: "wrong", None: "unscored"}
        assert [row[f"{name}_is"] for row in rows["answers"]] == [words[answer.correct] for answer in answers]
    text = page.with_name("browse.html").read_text(encoding="utf-8")
    assert ATTACK not in text
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|https?:", text)


def test_a_report_that_is_written_again_leaves_no_row_of_the_first(tmp_path):
    run = make_run(tmp_path, num_pairs=ROWS_A_FILE + 1)
    report.write_report(run, make_config(tmp_path))
    again = report.write_report(make_run(tmp_path, num_pairs=3), make_config(tmp_path))
    assert len(rows_of(again.parent)["pairs"]) == 3


def test_a_row_without_provenance_scores_or_category_is_shown_without_them():
    bare = PreferencePair(
        id="p", example_id="e", video="v", question="q", answer="a", chosen="c", rejected="r", provenance="oops"
    )
    assert pair_row(bare, 1) == {
        "id": "e",
        "video": "v",
        "question": "q",
        "answer": "a",
        "round": 1,
        "chosen": "c",
        "rejected": "r",
    }
    odd = pair_row(PreferencePair(**{**bare.to_row(), "provenance": '{"chosen": "text", "recipe": "given"}'}), 0)
    assert odd["recipe"] == "given"
    group = ResponseGroup(
        id="g", example_id="e", video="v", question="q", answer="a", texts=("x", "y"), rewards=(1.0, math.nan),
        left_out=("", "cut_by_length"), policy_version="p", tokens="t", parts="{}",
    )  # fmt: skip
    assert group_row(group, 0)["replies"] == [["x", 1.0, ""], ["y", None, "cut_by_length"]]
    assert list(answer_rows({})) == []


@pytest.mark.heavy
@pytest.mark.long
def test_ten_thousand_pairs_are_beside_a_page_of_less_than_5_mb(tmp_path):
    page = report.write_report(make_run(tmp_path, num_pairs=10_000), make_config(tmp_path))
    files = {path.name: path.stat().st_size for path in page.parent.rglob("*") if path.is_file()}
    assert files["index.html"] + files["browse.html"] < 1_000_000
    assert max(size for name, size in files.items() if name.startswith("pairs-")) < 500_000
    assert sum(files.values()) < 6_000_000


@pytest.mark.parametrize(
    ("times", "texts"),
    [
        ([0.1, 0.5], ["0.1 s", "0.5 s"]),
        ([0.02, 0.04], ["0.02 s", "0.04 s"]),
        ([1.001, 1.002], ["1.001 s", "1.002 s"]),
        ([1.0, 1.0], ["1.0 s", "1.0 s"]),
        ([0.00001, 0.00002], ["0.000 s", "0.000 s"]),
    ],
)
def test_times_tell_frames_apart(times, texts):
    assert told_apart(times) == texts


# In a browser


@needed
@pytest.mark.heavy
def test_rows_are_loaded_under_the_pages_own_policy(made, tmp_path):
    made_of = rendered(made[0].with_name("browse.html").as_uri(), tmp_path)
    assert '<p role="status" id="status" class="soft">520 of 520 pairs</p>' in made_of
    assert made_of.count("<li>") == 40
    assert "&lt;script&gt;alert('x')&lt;/script&gt; Which way does square 0 move?" in made_of
    assert "<mark>circle</mark>" in made_of


@needed
@pytest.mark.heavy
def test_search_filters_and_pages(made, tmp_path):
    script = """
      const wait = () => new Promise((done) => setTimeout(done, 60)), status = () => at("status").textContent, seen = [];
      const set = async (name, value) => {
        const each = document.querySelector(`[data-name=${name}]`); each.value = value; each.onchange(); await wait();
      };
      while (!status().startsWith("520 of 520 pairs")) await wait();
      at("search").value = "SQUARE  51 Right"; at("search").oninput(); seen.push(status());
      at("search").value = ""; at("search").oninput();
      await set("category", "motion"); seen.push(status()); at("after").onclick(); seen.push(at("page").textContent);
      document.querySelector("[data-kind=answers]").click(); await wait();
      await set("aligned_is", "right"); await set("base_is", "wrong"); seen.push(status());
      seen.push([...at("kinds").children].map((each) => each.getAttribute("aria-pressed")).join());
      return seen;
    """
    found = after(made[0].with_name("browse.html"), script, tmp_path)
    rows = rows_of(made[0].parent)
    gained = [row for row in rows["answers"] if (row["base_is"], row["aligned_is"]) == ("wrong", "right")]
    texts = [" ".join(value for value in row.values() if isinstance(value, str)).lower() for row in rows["pairs"]]
    matching = [text for text in texts if all(word in text for word in ("square", "51", "right"))]
    assert found == [
        f"{len(matching)} of 520 pairs", "104 of 520 pairs", "page 2 of 3", f"{len(gained)} of 60 answers", "false,true",
    ]  # fmt: skip


@needed
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "size", "dark"),
    [
        ("index", "390,844", False),
        pytest.param("index", "1280,900", True, marks=pytest.mark.long),
        ("browse", "390,844", True),
        pytest.param("comparison", "1280,900", False, marks=pytest.mark.long),
    ],
)
def test_the_pages_can_be_used_by_keyboard_and_screen_reader(made, tmp_path, name, size, dark):
    page = made[0].with_name(f"{name}.html")
    if name == "comparison":
        page = tmp_path / "comparison.html"
        other = make_run(tmp_path / "other", num_pairs=5)
        for run in (made[1], other):
            run.config.write_text("run_dir: r\nmodel: {path: m}\ndata: {train: t}\n")
        compare([str(made[1].root), str(other.root)], page)
    assert axe(page, tmp_path, size=size, dark=dark) == []


@needed
@pytest.mark.heavy
def test_nothing_is_wider_than_a_phone(made, tmp_path):
    for name in ("index", "browse"):
        page = made[0].with_name(f"{name}.html")
        wide = after(page, "return [document.documentElement.scrollWidth, innerWidth]", tmp_path, size="500,900")
        assert wide[0] <= wide[1], name
