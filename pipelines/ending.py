"""What the console shows at the end of a command."""

from __future__ import annotations

import pathlib
import shlex
import shutil
import sys
from typing import Any


def ending(summary: dict[str, Any], run_dir: str) -> str:
    """What the console shows at the end: base against aligned, the report and the command that serves the model."""
    from pipelines.reports.tables import summary_table
    from vidalign.files import RunFolder

    report = RunFolder.open(run_dir).report / "index.html"
    return "\n".join(
        [summary_table(summary), "", f"report   {report}", f"serve    {own_name()} serve {shlex.quote(run_dir)}"]
    )


def own_name() -> str:
    """How this command is called in the user's shell: by its name, where that is this environment's, or else by its path."""
    own = pathlib.Path(sys.executable).parent / "vidalign"
    found = shutil.which("vidalign")
    if not own.is_file() or (found is not None and pathlib.Path(found).resolve() == own.resolve()):
        return "vidalign"
    here = pathlib.Path.cwd()
    return str(own.relative_to(here)) if own.is_relative_to(here) else str(own)
