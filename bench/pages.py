"""Pages of docs/, joined from the parts that the scripts of this folder write to bench/results/.

`python -m bench.pages` joins them anew. Each part says which commit it was measured at (bench/results/measured.json).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

from pipelines.summary import versions
from vidalign import files


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of docs/: the name of its file, its title, and the names of its parts in their order."""

    name: str
    title: str
    parts: tuple[str, ...]


MEASURED = "measured.json"
RESULTS = Page(
    "results.md",
    "Results on the built-in data",
    (
        "seeds.md",
        "quality.md",
        "events.md",
        "events_bases.md",
        "veripo.md",
        "veripo_reasoning.md",
        "veripo_tries.md",
        "groups.md",
        "event_runs.md",
        "dvpo.md",
        "reagent.md",
        "needles.md",
    ),
)
PERFORMANCE = Page(
    "performance.md",
    "Performance",
    (
        "train_step.md",
        "prefetch.md",
        "gpu.md",
        "decode.md",
        "long_videos.md",
        "rollout.md",
        "rollout_engine.md",
        "overlap.md",
        "serve.md",
        "serve_costs.md",
        "serve_load.md",
        "growth.md",
        "driver_memory.md",
        "start.md",
    ),
)
RELIABILITY = Page("reliability.md", "Reliability", ("chaos.md",))
PAGES = (RESULTS, PERFORMANCE, RELIABILITY)


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a script writes: its figures and its part of a page to `results`, pages and plots to `docs`."""

    results: pathlib.Path = pathlib.Path("bench/results")
    docs: pathlib.Path = pathlib.Path("docs")

    @classmethod
    def below(cls, folder: str | pathlib.Path) -> Output:
        """Both in one folder."""
        return cls(pathlib.Path(folder, "results"), pathlib.Path(folder, "docs"))

    def found(self, name: str) -> Any:
        """The figures that a script kept the last time; None where there are none."""
        path = self.results / f"{name}.json"
        return files.read_json(path) if path.is_file() else None

    def keep(self, name: str, found: Any) -> None:
        """Keep a script's figures."""
        files.write_json(self.results / f"{name}.json", found)

    def write_part(self, page: Page, name: str, text: str) -> None:
        """Keep one script's part and write its page anew."""
        assert f"{name}.md" in page.parts, name
        part = self.results / f"{name}.md"
        files.write_text_atomic(part, text.rstrip() + "\n")
        noted = self.measured()
        files.write_json(self.results / MEASURED, {**noted, part.name: measurement(part, this_commit())})
        self.join(page)

    def measured(self) -> dict[str, Any]:
        """Which commit each part was measured at: {part: {"commit", "date", "hash" of the part}}."""
        path = self.results / MEASURED
        return files.read_json(path) if path.is_file() else {}

    def note_measured(self) -> None:
        """Say of parts that were stored in another way that they are of the commit that stored them."""
        noted = self.measured()
        for page in PAGES:
            for part in (path for name in page.parts if (path := self.results / name).is_file()):
                if noted.get(part.name, {}).get("hash") != hash_of(part):
                    noted[part.name] = measurement(part, git("log", "-1", "--format=%h %cs", "--", str(part)))
        files.write_json(self.results / MEASURED, dict(sorted(noted.items())))

    def join(self, page: Page) -> None:
        """Write a page from all parts that there are."""
        paths = [path for part in page.parts if (path := self.results / part).is_file()]
        noted = self.measured()
        parts = [path.read_text(encoding="utf-8") + measured_line(noted.get(path.name)) for path in paths]
        files.write_text_atomic(self.docs / page.name, f"# {page.title}\n\n" + "\n".join(parts))
        print(f"wrote {self.docs / page.name}")


def add_arguments(parser: argparse.ArgumentParser, *, quick: str = "") -> None:
    """The options that say where a script writes. `quick`: what its quick run leaves out; without, it has none."""
    parser.add_argument("--out", type=Output.below, metavar="FOLDER", help="instead of bench/results and docs")
    if quick:
        parser.add_argument("--quick", action="store_true", help=f"{quick}; without --out it is only printed")


def publish(arguments: argparse.Namespace, page: Page, name: str, found: Any, text: str) -> None:
    """Keep figures and the part of a page as `add_arguments` were given: a quick run without --out is only printed."""
    if arguments.quick:
        text = text.replace("\n\n", "\n\n**A quick run, without a turn before it: its figures say little.** ", 1)
    if arguments.quick and arguments.out is None:
        print(text)
        return
    out = arguments.out or Output()
    out.keep(name, found)
    out.write_part(page, name, text)


def goal_line(words: str, ratios: Mapping[str, float], goal: float) -> str:
    """A line of a list that says where a goal is reached: ratios by what they are of, and what each must be at least."""
    missed = {name: value for name, value in ratios.items() if value < goal}
    tail = "; missed by " + ", ".join(f"{name} ({value:.2f}x)" for name, value in missed.items()) if missed else ""
    return f"- {words}: reached in {len(ratios) - len(missed)} of {len(ratios)}{tail}"


def versions_line(*names: str) -> str:
    """Those of these packages that are installed, with their versions."""
    known = versions()
    return ", ".join(f"{name} {known[name]}" for name in names if name in known)


def hash_of(part: pathlib.Path) -> str:
    """What tells one text of a part from another."""
    return hashlib.sha256(part.read_bytes()).hexdigest()[:16]


def git(*arguments: str) -> str:
    """What git says in this checkout; nothing where there is none."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def this_commit() -> str:
    """The short hash and the date of the commit that is checked out, and whether the code is another."""
    commit = git("log", "-1", "--format=%h %cs")
    changed = git("status", "--porcelain", "--", "vidalign", "cluster", "actors", "serving", "pipelines", "examples")
    return f"{commit}, with changes" if commit and changed else commit


def measurement(part: pathlib.Path, commit: str) -> dict[str, str]:
    """`commit`: its short hash and its date."""
    short, _, date = commit.partition(" ")
    return {"commit": short, "date": date, "hash": hash_of(part)}


def measured_line(noted: Mapping[str, str] | None) -> str:
    """The last line of a part: which commit its figures are of."""
    return f"\nMeasured at commit `{noted['commit']}` ({noted['date']}).\n" if noted and noted["commit"] else ""


if __name__ == "__main__":
    Output().note_measured()
    for made in PAGES:
        Output().join(made)
