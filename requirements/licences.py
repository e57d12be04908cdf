"""The licences of what a lock file installs: `make licences`. Reads what is installed; asks nobody.

    python requirements/licences.py requirements/cpu.lock

A licence is what a package's own metadata says. Copyleft is named first, and so is what wheels carry inside: FFmpeg says under which
licence it was built.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

COPYLEFT = re.compile(
    r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|OSL|CC[ -]BY[ -]SA)(?=v?\d|\W|$)|General Public|Mozilla Public|Lesser", re.IGNORECASE
)
SHORT = 70


def main() -> int:
    names = locked(pathlib.Path(sys.argv[1])) if len(sys.argv) == 2 else []
    if not names:
        print("give a lock file: python requirements/licences.py requirements/cpu.lock", file=sys.stderr)
        return 2
    found = [(name, *licence(name)) for name in names]
    inside = list(bundled())
    print("Copyleft, whole packages:")
    for name, version, text in found:
        if COPYLEFT.search(text):
            print(f"  {name} {version}: {text}")
    print("\nInside of wheels:")
    for name, text in inside or [("nothing was found", "")]:
        print(f"  {name}: {text}")
    print(f"\nAll {len(found)}:")
    for name, version, text in found:
        print(f"  {name:<32} {version:<22} {text}")
    unknown = [name for name, _, text in found if text == "not said"]
    if unknown:
        print(f"\nNot said by their metadata: {', '.join(unknown)}")
    return 0


def locked(path: pathlib.Path) -> list[str]:
    """The names of the distributions that a lock file pins."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.partition("==")[0].strip() for line in lines if "==" in line and not line.startswith("#")]


def licence(name: str) -> tuple[str, str]:
    """(version, licence) of an installed distribution."""
    try:
        found = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "", "not installed here"
    return str(found["Version"]), said(
        found.get("License-Expression"), found.get("License"), found.get_all("Classifier") or []
    )


def said(expression: str | None, text: str | None, classifiers: Sequence[str]) -> str:
    """The shortest exact thing that metadata says: an SPDX expression, the classifiers, or the first line of the text."""
    if expression:
        return expression
    named = [
        each.rpartition(" :: ")[2]
        for each in classifiers
        if each.startswith("License ::") and each != "License :: OSI Approved"
    ]
    if named:
        return ", ".join(named)
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[0][:SHORT] if lines and lines[0] != "UNKNOWN" else "not said"


def bundled() -> Iterator[tuple[str, str]]:
    """FFmpeg inside of the wheels of PyAV and decord, by the licence that the library itself gives."""
    for name, folder in (("av", "av.libs"), ("decord", "decord.libs"), ("decord", "decord")):
        try:
            root = pathlib.Path(str(importlib.metadata.distribution(name).locate_file(folder)))
        except importlib.metadata.PackageNotFoundError:
            continue
        for library in sorted(root.glob("libavutil*.so*")):
            try:
                ask = ctypes.CDLL(str(library)).avutil_license
            except (OSError, AttributeError):
                continue
            ask.restype = ctypes.c_char_p
            yield f"FFmpeg in {name} ({library.name})", ask().decode()


if __name__ == "__main__":
    sys.exit(main())
