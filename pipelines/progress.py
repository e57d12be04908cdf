"""How far a stage is: a bar with an ETA on a terminal, whole lines anywhere else; and the clock of the stages."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import tqdm

from vidalign import files, mirror, stored
from vidalign.errors import DataError

BAR = "{desc:<22}{percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} [{elapsed} < {remaining}]{postfix}"
INTERVAL_S = 20.0  # between two lines of one bar, in a file or a job's log
POLL_S = 0.5
FETCH_EVERY_S = 5.0
# What a measurement of training calls a figure, how it is shown, and in which form.
FIGURES = (
    ("loss", "loss", "{:.4g}"),
    ("learning_rate", "lr", "{:.2g}"),
    ("chosen_logp", "chosen", "{:.3f}"),
    ("rejected_logp", "rejected", "{:.3f}"),
    ("margin", "margin", "{:.3g}"),
    ("accuracy", "accuracy", "{:.0%}"),
)


class Bar:
    """How far something is. `n` of `total` are done.

    On a terminal, a bar that is drawn anew. Anywhere else (a file, a job's log, CI), a line at the start and the end, and one every
    `interval_s` between them, without control characters.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str,
        *,
        initial: int = 0,
        file: IO[str] | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.n, self.total = initial, total
        self._description, self._unit, self._initial, self._interval_s = description, unit, initial, interval_s
        self._file = file or sys.stderr
        self._figures = ""
        self._began = self._shown = time.monotonic()
        self._lock = threading.RLock()
        self._drawn: tqdm.tqdm | None = None
        if self._file.isatty():
            self._drawn = tqdm.tqdm(
                total=total,
                initial=initial,
                desc=description,
                unit=unit,
                bar_format=BAR,
                file=self._file,
                mininterval=POLL_S,
            )
        else:
            self._write()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, number: int = 1) -> None:
        """So many more are done."""
        with self._lock:
            self.show(self.n + number)

    def show(self, number: int, figures: str | None = None) -> None:
        """So many are done; `figures` stand behind them until there are others."""
        with self._lock:
            self.n = number
            self._figures = self._figures if figures is None else figures
            if self._drawn is not None:
                self._drawn.set_postfix_str(self._figures, refresh=False)
                self._drawn.update(number - self._drawn.n)
                if figures is not None:
                    self._drawn.refresh()
            elif time.monotonic() - self._shown >= self._interval_s:
                self._write()

    def close(self) -> None:
        """The last line, or the bar as it stands."""
        if self._drawn is not None:
            self._drawn.close()
        else:
            self._write(last=True)

    def _write(self, *, last: bool = False) -> None:
        self._shown = time.monotonic()
        spent, done = self._shown - self._began, self.n - self._initial
        parts = [f"{self._description}: {self.n:,}/{self.total:,} {self._unit}s ({self.n / max(1, self.total):.0%})"]
        if spent >= 1 or last:
            parts.append(f"in {clock(spent)}")
        if done > 0 and self.n < self.total and spent > 0 and not last:
            parts.append(f"about {clock((self.total - self.n) * spent / done)} left")
        with contextlib.suppress(OSError, ValueError):  # a log that is gone does not end a run
            print("; ".join([", ".join(parts), *([self._figures] if self._figures else [])]), file=self._file, flush=True)


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:09."""
    return tqdm.tqdm.format_interval(max(0, int(seconds)))


def bar(description: str, total: int, unit: str, *, initial: int = 0) -> Bar:
    """A progress bar on standard error."""
    return Bar(description, total, unit, initial=initial)


def warn(text: str) -> None:
    """A warning on standard error, above any bar that is shown."""
    _say(f"warning: {text}")


def note(text: str) -> None:
    """A line on standard error, above any bar that is shown."""
    _say(f"note: {text}")


def _say(text: str) -> None:
    if sys.stderr.isatty():
        tqdm.tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def waiting(description: str) -> Iterator[Callable[[float, str], None]]:
    """A line with the seconds waited so far, for what has no steps to count.

    Yields the function to call with them and with what is waited for, which the line names.
    """
    if sys.stderr.isatty():
        with tqdm.tqdm(desc=description, bar_format="{desc:<22}{elapsed}{postfix}", file=sys.stderr) as line:
            yield lambda _seconds, what: line.set_postfix_str(what)
        return
    began = shown = time.monotonic()
    print(f"{description}: waiting", file=sys.stderr, flush=True)

    def say(_seconds: float, what: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= INTERVAL_S:
            shown = time.monotonic()
            print(
                f"{description}: waiting for {clock(shown - began)}{what and f'; not there yet: {what}'}",
                file=sys.stderr,
                flush=True,
            )

    yield say
    print(f"{description}: done in {clock(time.monotonic() - began)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def looked_at(look: Callable[[], None], every_s: float = POLL_S) -> Iterator[None]:
    """A block during which a thread calls `look` now and then, and once more at its end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every_s):
            look()
        look()

    thread = threading.Thread(target=watch, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def follow_steps(round_index: int, stage: pathlib.Path) -> Iterator[None]:
    """Show a bar for each phase of the `progress.json` that a training job writes in its stage folder."""
    before = _changed(stage / "progress.json")  # of a training that was stopped
    shown: Bar | None = None
    phase, fetched_at = "", 0.0

    def look() -> None:
        nonlocal shown, phase, fetched_at
        if stored.of(stage) is not None and time.monotonic() - fetched_at >= FETCH_EVERY_S:
            fetched_at = time.monotonic()
            with contextlib.suppress(DataError, OSError):  # the rank that writes them may be on another node
                for name in ("metrics.jsonl", "progress.json"):
                    mirror.fetched(stage / name)
        with contextlib.suppress(DataError):  # not written yet
            if _changed(stage / "progress.json") == before:
                return
            made = files.read_json(stage / "progress.json")
            if made.get("phase", "train") != phase:
                phase = made.get("phase", "train")
                if shown is not None:
                    shown.show(shown.total)
                    shown.close()
                unit = "pair" if phase == "reference" else "step"
                shown = bar(
                    f"{phase}, round {round_index}", made["num_steps"], unit, initial=min(made["step"], made["num_steps"])
                )
            assert shown is not None
            measured = _last_row(stage / "metrics.jsonl") if phase == "train" else {}
            by_step = made.get("figures", {})
            shown.show(made["step"], figures({**by_step, **measured, "loss": by_step.get("loss")}))

    try:
        with looked_at(look):
            yield
    finally:
        if shown is not None:
            shown.close()


def counts(numbers: Mapping[str, int]) -> str:
    """Counts by name in words, as in "trust_unclear 3, no_gap 1", the largest first; "none" where all are 0."""
    named = [f"{name} {number:,}" for name, number in sorted(numbers.items(), key=lambda item: -item[1]) if number]
    return ", ".join(named) or "none"


def figures(measured: Mapping[str, Any]) -> str:
    """What is worth seeing of a measurement of training, in words."""
    known = [
        (shown, form.format(measured[name])) for name, shown, form in FIGURES if isinstance(measured.get(name), int | float)
    ]
    return "  ".join(f"{name} {value}" for name, value in known)


def _changed(path: pathlib.Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _last_row(path: pathlib.Path) -> dict[str, Any]:
    """The last whole row of a file of JSON lines, {} where there is none yet."""
    with contextlib.suppress(OSError, ValueError):
        return files.read_jsonl(path)[-1] if path.stat().st_size else {}
    return {}


class StageClock:
    """Wall time by stage, kept in `wall_s.json` so that a resumed run adds up what was spent before. Stages may overlap."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.seconds: dict[str, float] = files.read_json(path) if path.is_file() else {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        before = self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] = round(before + time.monotonic() - started, 2)
                files.write_json(self._path, self.seconds)
