"""The list of licences: what counts as said, what as copyleft, and that it is of the whole lock file."""

import importlib.util
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "requirements" / "licences.py"
spec = importlib.util.spec_from_file_location("licences", SCRIPT)
licences = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licences)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("MIT", "x", ["License :: OSI Approved :: BSD License"]), "MIT"),
        (
            (None, "long text", ["Topic :: X", "License :: OSI Approved", "License :: OSI Approved :: BSD License"]),
            "BSD License",
        ),
        ((None, "\n  Apache 2.0  \n\n more", []), "Apache 2.0"),
        ((None, "UNKNOWN", []), "not said"),
        ((None, None, []), "not said"),
    ],
)
def test_what_metadata_says(given, said):
    assert licences.said(*given) == said


@pytest.mark.parametrize(
    ("text", "copyleft"),
    [
        ("GPL-2.0-only", True), ("LGPL-2.1-or-later", True), ("GNU Lesser General Public License v3 (LGPLv3)", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True), ("MPL-2.0 AND MIT", True), ("GPLv2", True), ("AGPL-3.0", True),
        ("MIT", False), ("Apache-2.0", False), ("BSD-3-Clause", False), ("CC0-1.0 OR Apache-2.0", False), ("MPLUS", False),
    ],
)  # fmt: skip
def test_what_is_copyleft(text, copyleft):
    assert bool(licences.COPYLEFT.search(text)) is copyleft


def test_the_whole_lock_file_is_listed_and_copyleft_comes_first():
    done = subprocess.run(
        [sys.executable, SCRIPT, ROOT / "requirements" / "cpu.lock"], capture_output=True, text=True, check=True
    )
    first, inside, everything = done.stdout.split("\n\n")[:3]
    assert first.startswith("Copyleft, whole packages:")
    for name in ("certifi", "tqdm"):
        assert f"\n  {name} " in first
    assert "FFmpeg in av" in inside
    names = licences.locked(ROOT / "requirements" / "cpu.lock")
    assert everything.startswith(f"All {len(names)}:")
    assert [line.split()[0] for line in everything.splitlines()[1:]] == names
    assert subprocess.run([sys.executable, SCRIPT], capture_output=True, check=False).returncode == 2
