"""The house: imports go down only, no two files import each other in a circle, and every name has one owner."""

import ast
import functools
import importlib.metadata
import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("vidalign", "cluster", "actors", "serving", "pipelines")
OUTSIDE = ("bench", "examples", "tests")
BELOW = {
    "vidalign": set(),
    "cluster": {"vidalign"},
    "actors": {"vidalign", "cluster"},
    "serving": {"vidalign", "cluster"},
    "pipelines": {"vidalign", "cluster", "actors", "serving"},
}
BASE = {
    "azure",
    "types",
    "records",
    "errors",
    "prompts",
    "files",
    "hidden",
    "line_log",
    "mirror",
    "storage",
    "room",
    "stored",
    "plugins",
    "special_tokens",
    "statistics",
    "torch_backend",
}  # what every room may use
ROOMS = ("config", "video", "data", "model", "learning", "recipes")  # each may use those before it
FORBIDDEN_IN_LIBRARY = {"ray", "fastapi", "uvicorn", "openai", "httpx", "requests"}
MAX_LINES = 300


def name_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
ALL_FILES = FILES | {name_of(path): path for folder in OUTSIDE for path in sorted((ROOT / folder).rglob("*.py"))}


@functools.cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    """The imports of a file, and what it takes from something by name: `a.b`."""
    kinds = (ast.Import, ast.ImportFrom, ast.Attribute)
    return tuple(node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds))


def imports(text: str) -> list[tuple[str, str]]:
    """(module, name) of every import; the name is empty for `import module`."""
    found = []
    for node in nodes(text):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [(node.module, alias.name) for alias in node.names]
    return found


def targets(text: str, known: dict) -> set[str]:
    """The project's own modules that a file imports: a package itself only where something is taken from its __init__."""
    found = set()
    for module, name in imports(text):
        if f"{module}.{name}" in known:
            found.add(f"{module}.{name}")
        elif module in known:
            found.add(module)
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Every way round, as the modules on it; each circle is found once, from its first module by name."""
    found, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(path[path.index(module) :])
            return
        if module in done:
            return
        for other in sorted(edges.get(module, ())):
            visit(other, [*path, module])
        done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return found


def private_uses(text: str, own_package: str) -> list[str]:
    """Names and attributes with one leading underscore that are taken from a module of another package of the project."""
    taken, found = {}, []
    for node in nodes(text):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in (*PACKAGES, *OUTSIDE):
            for alias in node.names:
                taken[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if is_private(alias.name) and node.module.rpartition(".")[0] != own_package:
                    found.append(f"{node.module}.{alias.name}")
    for node in nodes(text):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and isinstance(node.value, ast.Name):
            module = taken.get(node.value.id)
            if module is not None and module.rpartition(".")[0] != own_package:
                found.append(f"{module}.{node.attr}")
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("layer", BELOW)
def test_imports_go_down_only(layer):
    for path in (ROOT / layer).rglob("*.py"):
        tops = {module.split(".")[0] for module, _ in imports(path.read_text(encoding="utf-8"))}
        upward = tops & (set(BELOW) | set(OUTSIDE)) - BELOW[layer] - {layer}
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def room_of(module: str) -> int:
    """The place of a module's room in the order; -1 for what every room may use."""
    parts = module.split(".")
    part = parts[1] if len(parts) > 1 else ""
    return ROOMS.index(part) if part in ROOMS else -1


def upward_imports(module: str, text: str) -> set[str]:
    used = {target for target in targets(text, FILES) if target.startswith("vidalign")}
    return {target for target in used if room_of(target) > room_of(module)}


def test_inside_the_library_each_room_uses_only_those_below_it():
    assert {path.name for path in (ROOT / "vidalign").iterdir() if path.is_dir() and path.name != "__pycache__"} == set(
        ROOMS
    )
    assert {path.stem for path in (ROOT / "vidalign").glob("*.py")} <= BASE | {"__init__", "__main__", "api"}
    for module, path in FILES.items():
        if module.startswith("vidalign.") and module != "vidalign.api":
            upward = upward_imports(module, path.read_text(encoding="utf-8"))
            assert not upward, f"{module} imports {upward}"


def test_no_files_import_each_other_in_a_circle():
    edges = {module: targets(path.read_text(encoding="utf-8"), ALL_FILES) - {module} for module, path in ALL_FILES.items()}
    assert not circles(edges)


def test_no_private_name_of_another_package_is_used():
    for module, path in ALL_FILES.items():
        own = name_of(path.parent / "__init__.py")
        assert not private_uses(path.read_text(encoding="utf-8"), own), module


def test_the_library_starts_no_cluster_and_speaks_no_http():
    for path in (ROOT / "vidalign").rglob("*.py"):
        tops = {module.split(".")[0] for module, _ in imports(path.read_text(encoding="utf-8"))}
        assert not tops & FORBIDDEN_IN_LIBRARY, path.name


def test_files_stay_short():
    measured = {m: path for m, path in ALL_FILES.items() if m in FILES or m.startswith("bench")}
    too_long = {
        m: n for m, path in measured.items() if (n := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not too_long


def test_no_recipe_is_told_apart_outside_of_its_room():
    """Who asks which recipe it is has to be touched for the next one."""
    for module, path in FILES.items():
        if module.startswith(("vidalign.recipes", "vidalign.config")):
            continue
        names = {name for _, name in imports(path.read_text(encoding="utf-8"))}
        sections = {"LeanpoRecipe", "RrpoRecipe", "HoundRecipe", "GivenRecipe", "Leanpo", "Rrpo", "Hound", "Given"}
        assert not names & sections, f"{module} imports {names & sections}"


def test_each_top_level_name_has_one_owner():
    owners = importlib.metadata.packages_distributions()
    for name in BELOW:
        assert set(owners.get(name, ["vidalign"])) == {"vidalign"}, owners[name]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.split(".")[0] for package in packages} == set(BELOW)
    assert set(packages) == {name_of(path) for path in FILES.values() if path.name == "__init__.py"}
    for layer in BELOW:
        for folder in (ROOT / layer).rglob("*.py"):
            assert ".".join(folder.parent.relative_to(ROOT).parts) in packages, f"{folder} is in no listed package"


def test_these_checks_can_fail():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert upward_imports("vidalign.data.x", "from vidalign.model import policy") == {"vidalign.model.policy"}
    assert not upward_imports("vidalign.model.x", "from vidalign.data.rows import parse_row")
    assert private_uses("from actors.generator import _x", "bench") == ["actors.generator._x"]
    assert private_uses("from pipelines import align\nalign._y()", "bench") == ["pipelines.align._y"]
    assert not private_uses("from bench.turns import _x", "bench")
