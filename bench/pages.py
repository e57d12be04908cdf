"""Pages of docs/, joined from the parts that the scripts of this folder write to bench/results/.

`python -m bench.pages` joins them anew.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from vidalign import files

FOLDER = pathlib.Path("bench/results")


@dataclasses.dataclass(frozen=True)
class Page:
    path: pathlib.Path
    title: str
    parts: tuple[str, ...]


RESULTS = Page(pathlib.Path("docs/results.md"), "Results on the built-in data", ("seeds.md", "quality.md"))
PERFORMANCE = Page(
    pathlib.Path("docs/performance.md"),
    "Performance",
    ("train_step.md", "decode.md", "rollout.md", "serve.md", "growth.md", "start.md"),
)


def write_part(page: Page, name: str, text: str) -> None:
    """Keep one script's part and write its page anew."""
    assert name in page.parts, name
    files.write_text_atomic(FOLDER / name, text.rstrip() + "\n")
    join(page)


def goal_line(words: str, ratios: Mapping[str, float], goal: float) -> str:
    """A line of a list that says where a goal is reached: ratios by what they are of, and what each must be at least."""
    missed = {name: value for name, value in ratios.items() if value < goal}
    tail = "; missed by " + ", ".join(f"{name} ({value:.2f}x)" for name, value in missed.items()) if missed else ""
    return f"- {words}: reached in {len(ratios) - len(missed)} of {len(ratios)}{tail}"


def join(page: Page) -> None:
    """Write a page from all parts that there are."""
    parts = [(FOLDER / part).read_text(encoding="utf-8") for part in page.parts if (FOLDER / part).is_file()]
    files.write_text_atomic(page.path, f"# {page.title}\n\n" + "\n".join(parts))
    print(f"wrote {page.path}")


if __name__ == "__main__":
    for made in (RESULTS, PERFORMANCE):
        join(made)
