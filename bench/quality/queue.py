"""Runs one after the other, or several at a time, each in a process of its own. What is finished is not run again."""

from __future__ import annotations

import multiprocessing
import pathlib
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.quality.arms import Task
from bench.quality.run import Job, run_alone


class Queue:
    """Where a task's runs are kept, how many go at a time, and when (of the monotonic clock) no more are started.

    Processes are forked from one that has imported all that a run needs, which takes seconds.
    """

    def __init__(self, task: Task, root: pathlib.Path, parallel: int, deadline: float):
        self.task, self.root, self.parallel, self.deadline = task, root, parallel, deadline
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["bench.quality.run"])

    def run(self, jobs: Sequence[Job]) -> None:
        """Run what is not finished. Raises `SystemExit` where a run failed, or where some are left when it is too late."""
        todo = [job for job in jobs if job.result(self.root) is None]
        outcomes = []
        with ThreadPoolExecutor(self.parallel) as pool:
            for number, (job, outcome) in enumerate(zip(todo, pool.map(self._run_one, todo), strict=True), start=1):
                outcomes.append(outcome)
                if outcome != "late":
                    rate = f"seed {job.seed} rate {job.learning_rate:g}"
                    print(f"{number}/{len(todo)} {job.arm} {rate}: {outcome}", flush=True)
        if any(outcome.startswith("FAILED") for outcome in outcomes):
            raise SystemExit("some runs failed; correct the cause and run the same command again")
        if "late" in outcomes:
            print(f"{outcomes.count('late')} runs left; run the same command again, or with --page-only")
            raise SystemExit(0)

    def _run_one(self, job: Job) -> str:
        if time.monotonic() > self.deadline:
            return "late"
        folder = job.folder(self.root)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        process = self._processes.Process(target=run_alone, args=(self.task.name, self.root, job))
        process.start()
        process.join()
        for name in ("model", "reference"):
            shutil.rmtree(folder / name, ignore_errors=True)
        result = job.result(self.root)
        if process.exitcode or result is None:
            return f"FAILED, see {folder / 'console.txt'}"
        return f"{self.task.figure} {result[self.task.figure]:.3f} on {job.split}"
