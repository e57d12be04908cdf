"""The house: imports go down only, and every top-level name has one owner."""

import ast
import importlib.metadata
import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BELOW = {
    "vidalign": set(),
    "cluster": {"vidalign"},
    "actors": {"vidalign", "cluster"},
    "serving": {"vidalign", "cluster"},
    "pipelines": {"vidalign", "cluster", "actors", "serving"},
}
FORBIDDEN_IN_LIBRARY = {"ray", "fastapi", "uvicorn", "openai", "httpx", "requests"}


def imported(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("layer", BELOW)
def test_imports_go_down_only(layer):
    for path in (ROOT / layer).rglob("*.py"):
        upward = imported(path) & (set(BELOW) | {"tests", "examples", "bench"}) - BELOW[layer] - {layer}
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_the_library_starts_no_cluster_and_speaks_no_http():
    for path in (ROOT / "vidalign").rglob("*.py"):
        assert not imported(path) & FORBIDDEN_IN_LIBRARY, path.name


def test_each_top_level_name_has_one_owner():
    owners = importlib.metadata.packages_distributions()
    for name in BELOW:
        assert set(owners.get(name, ["vidalign"])) == {"vidalign"}, owners[name]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.split(".")[0] for package in packages} == set(BELOW)
    for layer in BELOW:
        for folder in (ROOT / layer).rglob("*.py"):
            assert ".".join(folder.parent.relative_to(ROOT).parts) in packages, f"{folder} is in no listed package"
