"""The notebooks of examples/notebooks/ run from top to bottom, and what a notebook needs of the package holds in its event loop."""

import asyncio
import os
import threading
import time

import nbclient
import nbformat
import pytest
from conftest import ROOT

import vidalign
from pipelines import coroutines

FOLDER = ROOT / "examples" / "notebooks"


def executed(name: str, folder, timeout_s: int) -> nbformat.NotebookNode:
    """The notebook after all its cells ran, in a folder outside of the checkout, which is where vidalign is found."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "IPYTHONDIR": str(folder / "ipython")}
    client = nbclient.NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(env=environment)


def test_the_notebooks_are_stored_without_what_a_run_leaves_in_them():
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    assert names == ["align", "first_look"]
    for name in names:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert not [cell for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]


async def doubled(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def broken() -> None:
    raise ValueError("no")


def test_a_coroutine_runs_beside_a_running_loop_and_without_one():
    async def in_a_loop() -> int:
        with pytest.raises(ValueError, match="no"):
            coroutines.run(broken())
        return coroutines.run(doubled(2))

    assert asyncio.run(in_a_loop()) == coroutines.run(doubled(2)) == 4


def test_what_interrupts_the_wait_cancels_the_work(monkeypatch):
    ended = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def in_a_loop() -> None:
        real = coroutines.concurrent.futures.Future.result

        def result(self, timeout=None):
            if threading.current_thread() is threading.main_thread() and not self.done():
                time.sleep(0.1)
                raise KeyboardInterrupt
            return real(self, timeout)

        monkeypatch.setattr(coroutines.concurrent.futures.Future, "result", result)
        with pytest.raises(KeyboardInterrupt):
            coroutines.run(long())

    asyncio.run(in_a_loop())
    assert ended.is_set()


@pytest.mark.heavy
def test_the_first_look(tmp_path):
    notebook = executed("first_look", tmp_path, 120)
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "(8, 56, 56, 3)" in printed
    assert "True   The answer is (B)." in printed
    assert "False  (A)" in printed
    assert "unknown key train.lerning_rate; did you mean train.learning_rate" in printed


@pytest.mark.heavy
@pytest.mark.long
def test_a_whole_run(tmp_path):
    notebook = executed("align", tmp_path, 500)
    last = notebook.cells[-1].outputs[0]["data"]["text/html"]
    assert "report/index.html" in last
    (found,) = [
        output["data"]["text/plain"] for output in notebook.cells[2].outputs if output.output_type == "execute_result"
    ]
    assert 0 <= float(found.strip("()").split(",")[0]) <= 1


def test_the_public_names_can_be_used_in_a_running_loop():
    async def in_a_loop() -> bool | None:
        assert vidalign.load_config(ROOT / "examples/shapes/align.yaml").seed == 0
        return vidalign.judge_reply("B", question="Which way?", answer="left", options=("right", "left"))

    assert asyncio.run(in_a_loop()) is True
