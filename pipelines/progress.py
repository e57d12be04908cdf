"""Progress bars with an ETA, one a stage, and the clock of the stages."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import tqdm

from vidalign import files
from vidalign.errors import DataError

BAR = "{desc:<22}{percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} [{elapsed} < {remaining}]"


def bar(description: str, total: int, unit: str) -> tqdm.tqdm:
    """A progress bar on standard error."""
    return tqdm.tqdm(total=total, desc=description, unit=unit, bar_format=BAR, file=sys.stderr, mininterval=0.5)


def warn(text: str) -> None:
    """A warning on standard error, above any bar that is shown."""
    tqdm.tqdm.write(f"warning: {text}", file=sys.stderr)


def note(text: str) -> None:
    """A line on standard error, above any bar that is shown."""
    tqdm.tqdm.write(f"note: {text}", file=sys.stderr)


@contextlib.contextmanager
def waiting(description: str) -> Iterator[Callable[[float], None]]:
    """A line with the seconds waited so far, for what has no steps to count. Yields the function to call with them."""
    with tqdm.tqdm(desc=description, bar_format="{desc:<22}{elapsed}", file=sys.stderr) as line:
        yield lambda _seconds: line.refresh()


@contextlib.contextmanager
def follow_steps(round_index: int, stage: pathlib.Path) -> Iterator[None]:
    """Show a bar for each phase of the `progress.json` that a training job writes in its stage folder."""
    stop = threading.Event()

    def watch() -> None:
        shown: tqdm.tqdm | None = None
        phase = ""
        while True:
            done = stop.wait(0.5)
            with contextlib.suppress(DataError):  # not written yet
                progress = files.read_json(stage / "progress.json")
                if progress.get("phase", "train") != phase:
                    phase = progress.get("phase", "train")
                    if shown is not None:
                        shown.update(shown.total - shown.n)
                        shown.close()
                    unit = "pair" if phase == "reference" else "step"
                    shown = bar(f"{phase}, round {round_index}", progress["num_steps"], unit)
                assert shown is not None
                shown.n = progress["step"]
                shown.refresh()
            if done:
                if shown is not None:
                    shown.close()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class StageClock:
    """Wall time by stage, kept in `wall_s.json` so that a resumed run adds up what was spent before."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = files.read_json(path) if path.is_file() else {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        before = self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = round(before + time.monotonic() - started, 2)
            files.write_json(self._path, self.seconds)
