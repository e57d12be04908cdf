"""Names are found in a table, or imported; every mistake in one is a sentence that says which part of it is wrong."""

import math
import sys

import pytest

from vidalign.errors import ConfigError
from vidalign.plugins import resolve

TABLE = {"leanpo": 1, "simpo": 2}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "toy_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "needy.py").write_text("import a_module_that_nobody_has\n")
    (folder / "wrong.py").write_text("from math import no_such_function\n")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "good.py").write_text("recipe = 'mine'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_package"]:
        del sys.modules[name]


def test_a_name_of_the_table_and_an_imported_attribute(package):
    assert resolve("simpo", TABLE, what="objective.name") == 2
    assert resolve("math:tau", TABLE, what="objective.name") == math.tau
    assert resolve("toy_package.good:recipe", TABLE, what="recipe") == "mine"


def test_the_table_comes_first():
    assert resolve("math:tau", {"math:tau": 1}, what="x") == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lenpo", r"^unknown objective.name 'lenpo'; did you mean leanpo\?$"),
        ("zzz", r"^unknown objective.name 'zzz'; known: leanpo, simpo, or package.module:attribute$"),
        ("", r"^unknown objective.name ''; known"),
        ("a.b:", r"'a.b:' does not have the form package.module:attribute"),
        (":b", "does not have the form"),
        ("a..b:c", "does not have the form"),
        (".a:b", "does not have the form"),
        ("a:b:c", "does not have the form"),
        ("no_such_package.x:y", r"'no_such_package.x:y': there is no module no_such_package; install"),
        ("toy_package.nothing:y", r"there is no module toy_package.nothing;"),
        ("toy_package.needy:y", r"importing toy_package.needy failed \(No module named 'a_module_that_nobody_has'\)"),
        ("toy_package.wrong:y", r"importing toy_package.wrong failed \(cannot import name 'no_such_function'"),
        ("toy_package.good:recipes", r"has no attribute recipes; did you mean toy_package.good:recipe\?"),
        ("toy_package.good:zzz", r"has no attribute zzz; use a name that .*good.py defines"),
    ],
)
def test_mistakes(package, name, says):
    with pytest.raises(ConfigError, match=says) as caught:
        resolve(name, TABLE, what="objective.name")
    assert "\n" not in str(caught.value)


def test_an_error_inside_of_an_imported_module_is_its_own(package):
    with pytest.raises(ZeroDivisionError):
        resolve("toy_package.broken:y", TABLE, what="objective.name")
