"""One vLLM engine that many threads ask at the same time, so that none of them waits for the replies of another.

    callers ─ jobs ─► rendering thread ─ ready prompts ─► engine's thread: add what is ready, step, hand out what has finished

The engine works as long as anything is ready for it. Prompts are rendered ahead of it, in the order of the calls, because vLLM's
cache of processed videos has two halves that must see them in the same order.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

NUM_READY = 64  # prompts that are rendered ahead of the engine
NUM_WAITING = 64  # prompts in the engine that it has no room for yet


@dataclasses.dataclass
class _Job:
    """One call: its prompts as functions that render them, and what has come back."""

    prompts: Sequence[Callable[[], Any]]
    params: Sequence[Any]
    outputs: list[Any]
    left: int
    ids: list[str] = dataclasses.field(default_factory=list)  # the engine's own, of its requests
    made: concurrent.futures.Future[list[Any]] = dataclasses.field(default_factory=concurrent.futures.Future)

    def fail(self, error: BaseException) -> None:
        if not self.made.done():
            self.made.set_exception(error)

    def finish(self, place: int, output: Any) -> None:
        self.outputs[place] = output
        self.left -= 1
        if not self.left and not self.made.done():
            self.made.set_result(self.outputs)


class EngineLoop:
    """Makes an engine in a thread of its own and works there; `run` may be called from any thread.

    `make` returns a `vllm.LLM`, which is `llm` afterwards; what it raises, the constructor raises.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._ready: queue.Queue[tuple[_Job, int, Any]] = queue.Queue(maxsize=NUM_READY)
        self._asked: dict[str, tuple[_Job, int]] = {}  # what the engine works on, by request id
        self._clock = threading.Lock()
        self._seconds = {"waiting": 0.0, "working": 0.0}
        started: concurrent.futures.Future[Any] = concurrent.futures.Future()
        threading.Thread(target=self._work, args=(make, started), daemon=True, name="engine").start()
        self.llm = started.result()
        threading.Thread(target=self._render, daemon=True, name="rendering").start()

    def run(self, prompts: Sequence[Callable[[], Any]], params: Sequence[Any]) -> list[Any]:
        """vLLM's outputs for these prompts, in their order, once all are there.

        Args:
            prompts: functions that return a prompt as vLLM's renderer does; called in the rendering thread.
            params: vLLM's sampling parameters of each.

        Raises:
            Exception: what a prompt's function or the engine raised; the call's other requests are dropped then.
        """
        if not prompts:
            return []
        job = _Job(prompts, params, [None] * len(prompts), len(prompts))
        self._jobs.put(job)
        return job.made.result()

    def take_seconds(self) -> dict[str, float]:
        """The engine's seconds of "waiting" for prompts and of "working" since this was called before."""
        with self._clock:
            taken = dict(self._seconds)
            self._seconds = dict.fromkeys(taken, 0.0)
        return taken

    def _render(self) -> None:
        while True:
            job = self._jobs.get()
            for place, prompt in enumerate(job.prompts):
                if job.made.done():  # it has failed
                    break
                try:
                    rendered = prompt()
                except BaseException as error:
                    job.fail(error)
                    break
                self._ready.put((job, place, rendered))

    def _work(self, make: Callable[[], Any], started: concurrent.futures.Future[Any]) -> None:
        try:
            llm = make()
        except BaseException as error:
            started.set_exception(error)
            return
        engine = llm.llm_engine
        most = 2 * engine.vllm_config.scheduler_config.max_num_seqs
        started.set_result(llm)
        dead: BaseException | None = None
        while dead is None:
            began = time.monotonic()
            first = self._ready.get() if not self._asked else None
            waited = time.monotonic()
            try:
                self._add(llm, first, most)
                for output in engine.step() if self._asked else ():
                    if output.finished and output.request_id in self._asked:
                        job, place = self._asked.pop(output.request_id)
                        job.finish(place, output)
            except BaseException as error:  # of the engine itself: nothing can be asked of it any more
                dead = error
            with self._clock:
                self._seconds["waiting"] += waited - began
                self._seconds["working"] += time.monotonic() - waited
        for job, _ in self._asked.values():
            job.fail(dead)
        while True:
            self._ready.get()[0].fail(dead)

    def _add(self, llm: Any, first: tuple[_Job, int, Any] | None, most: int) -> None:
        """Give the engine what is ready, as far as it can work on it soon: requests keep their pixels until they are done.

        `most`: requests at a time. How many of them run together depends on the length of their prompts, which the engine knows.
        """
        engine = llm.llm_engine
        scheduler = engine.engine_core.engine_core.scheduler
        while first is not None or (len(self._asked) < most and scheduler.get_request_counts()[1] < NUM_WAITING):
            try:
                job, place, rendered = first or self._ready.get_nowait()
            except queue.Empty:
                break
            first = None
            if job.made.done():
                continue
            name = str(next(llm.request_counter))
            try:
                job.ids.append(engine.add_request(name, rendered, job.params[place]))
            except (ValueError, TypeError) as error:  # vLLM refused this one
                job.fail(error)
                continue
            self._asked[name] = job, place
        failed = {name: job for name, (job, _) in self._asked.items() if job.made.done()}
        for name, job in failed.items():
            engine.abort_request(job.ids, internal=True)
            job.ids = []
            del self._asked[name]
