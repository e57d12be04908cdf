"""docs/results.md, joined from the parts that the scripts of this folder write to bench/results/."""

from __future__ import annotations

import pathlib

from vidalign import files

PARTS = ("seeds.md", "quality.md")
FOLDER = pathlib.Path("bench/results")
PAGE = pathlib.Path("docs/results.md")


def write_part(name: str, text: str) -> None:
    """Keep one script's part and write the page anew from all parts that there are."""
    assert name in PARTS, name
    files.write_text_atomic(FOLDER / name, text.rstrip() + "\n")
    parts = [(FOLDER / part).read_text(encoding="utf-8") for part in PARTS if (FOLDER / part).is_file()]
    files.write_text_atomic(PAGE, "# Results on the built-in data\n\n" + "\n".join(parts))
    print(f"wrote {PAGE}")
