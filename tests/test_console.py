"""What is written past Python stays off the console, and what Python writes stays on it."""

import subprocess
import sys

CODE = """
import logging, os, sys
from cluster.console import without_native_lines
before = sys.stderr
logger = logging.getLogger("theirs")
with without_native_lines():
    os.write(2, b"native\\n")
    print("python", file=sys.stderr)
    logger.addHandler(logging.StreamHandler())
logger.warning("logged")
os.write(2, b"after\\n")
print("again", file=sys.stderr)
assert sys.stderr is before
try:
    with without_native_lines():
        raise KeyError
except KeyError:
    print("raised", file=sys.stderr)
"""


def test_only_what_python_writes_is_shown():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["python", "logged", "after", "again", "raised"]


def test_a_standard_error_that_is_no_file_is_left_alone(capsys):
    from cluster.console import without_native_lines

    with without_native_lines():
        print("shown", file=sys.stderr)
    assert capsys.readouterr().err == "shown\n"


def test_what_a_raylet_reports_is_printed_in_no_commands_output(capsys):
    from ray._private import worker

    from cluster.console import without_raylet_lines

    def report(text):
        worker.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)

    with without_raylet_lines():
        report("one of a kind")
    report("another one")
    out = capsys.readouterr().out
    assert "another one" in out
    assert "one of a kind" not in out


def test_torch_does_not_warn_of_the_triton_that_cpus_do_not_need():
    code = "import torch; from torch._library.triton import get_inner_triton_kernels as look; print(look(len))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Triton" not in done.stderr
    assert done.stdout.startswith("[")
