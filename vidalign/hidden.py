"""vidalign is several packages side by side. A folder of the user's that is called as one of them hides it from Python."""

from __future__ import annotations

import importlib.machinery
import pathlib
import sys

from vidalign.errors import ConfigError

PACKAGES = ("vidalign", "cluster", "actors", "serving", "pipelines")
ROOT = pathlib.Path(__file__).parents[1]


def refuse_hidden_packages() -> None:
    """Raises `ConfigError` where a folder or a file hides one of vidalign's packages, in this process or in Ray's workers.

    Ray's workers look in the working directory first, whether or not this process does.
    """
    try:
        places = [str(pathlib.Path.cwd()), *sys.path]
    except OSError:  # the working directory is gone
        places = sys.path
    for name in PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(name, places)
        if spec is None:  # found in another way, as an editable install does
            continue
        found = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
        place = pathlib.Path(found[0]) if found else ROOT / name
        folder = place.parent if place.name == "__init__.py" else place
        if folder.resolve() != (ROOT / name).resolve():
            raise ConfigError(
                f"{folder} hides vidalign's own package {name}, because Python looks there first; rename it, or start vidalign from "
                "another folder that is not on PYTHONPATH either"
            )
