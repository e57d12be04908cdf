"""Batches that are rendered ahead of their use: decoding from the frame cache and the processor's work run beside the forward passes.

    the rank's thread     takes batch n ─► forward and backward of n ─► takes batch n + 1 ─► …
    the other thread          renders batch n + 1 ─► then, with time left, prompts of the next optimizer step

One thread renders, in an order that depends on what is asked for alone, so batches are those that `BatchSource` gives by itself.
It makes no collective call: what ranks must agree on they agree on in their own threads.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

import torch

from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import TrainingGroup
from vidalign.model.batch import Batch

_Made: TypeAlias = tuple[list[TrainingGroup], Batch]  # a batch, and what it is of
URGENT, LATER, NEVER = 0, 1, -1  # NEVER ends the thread before anything else that waits


class Batches(Protocol):
    """What gives the batches of several forward passes, one after the other."""

    def batches(self, forwards: Sequence[Sequence[TrainingGroup]]) -> Iterator[Batch]: ...


class Renderer:
    """A `BatchSource` in a thread of its own, which is one batch ahead. Its errors are raised where a batch is taken.

    Batches have their final types already and, for a GPU, lie in pinned memory, from which a copy does not wait.
    """

    def __init__(self, source: BatchSource, *, device: torch.device, dtype: torch.dtype) -> None:
        """`device`: where batches will go. `dtype`: of their pixels."""
        # Tokenizers change their own settings while they work, so two threads cannot share one.
        self._source = dataclasses.replace(
            source, processor=copy.deepcopy(source.processor), _kept={}, _lengths=source._lengths.copy()
        )
        self._device, self._dtype = device, dtype
        self._jobs: queue.PriorityQueue[tuple[int, int, Future[Any] | None, Callable[[], Any]]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._later: list[Future[Any]] = []
        self._prepared: Sequence[TrainingGroup] = ()
        self._first: Future[_Made] | None = None
        self._thread: threading.Thread | None = None

    def batches(self, forwards: Sequence[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        """The batch of each forward pass. The first is rendered at once, if not before, and each other one as the last is taken."""
        todo = iter(forwards)
        first = next(todo, None)
        return self._in_turn(self._made_before(first) or self._batch(first), todo)

    def num_tokens(self, groups: Sequence[TrainingGroup]) -> list[int]:
        """`BatchSource.num_tokens` of each group."""
        return self._submit(URGENT, lambda: [self._source.num_tokens(group) for group in groups]).result()

    def prepare(
        self, groups: Sequence[TrainingGroup], first: Callable[[Sequence[int]], Sequence[int]] | None = None
    ) -> None:
        """Render what will be asked for next, whenever no batch is asked for; replaces what was to be prepared before.

        Args:
            groups: whose prompts are rendered.
            first: which of them the first batch will be of, given the number of tokens of each; then it is made as well.
        """
        for future in self._later:
            future.cancel()
        self._later = [self._submit(LATER, functools.partial(self._source.prepare, group)) for group in groups]
        self._prepared = groups
        self._first = self._submit(LATER, functools.partial(self._make_first, groups, first)) if groups and first else None

    def close(self) -> None:
        """End the thread once it has finished what it is at."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put((NEVER, next(self._numbers), None, lambda: None))
            thread.join()

    def _in_turn(self, ready: Future[Batch] | None, todo: Iterator[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        while ready is not None:
            batch = ready.result()
            ready = self._batch(next(todo, None))
            yield batch

    def _make_first(self, groups: Sequence[TrainingGroup], first: Callable[[Sequence[int]], Sequence[int]]) -> _Made:
        chosen = [groups[index] for index in first([self._source.num_tokens(group) for group in groups])]
        return chosen, self._rendered(chosen)

    def _made_before(self, groups: Sequence[TrainingGroup] | None) -> Future[Batch] | None:
        """The batch of these groups, if it was prepared. What was prepared for later stays, whatever else is asked for before."""
        if not groups or any(group not in self._prepared for group in groups):
            return None
        future, self._first = self._first, None
        if future is None or future.cancel():
            return None
        try:
            chosen, batch = future.result()
        except Exception:  # the batch that is asked for raises its own
            return None
        if chosen != list(groups):
            return None
        made: Future[Batch] = Future()
        made.set_result(batch)
        return made

    def _batch(self, groups: Sequence[TrainingGroup] | None) -> Future[Batch] | None:
        return None if groups is None else self._submit(URGENT, functools.partial(self._rendered, groups))

    def _rendered(self, groups: Sequence[TrainingGroup]) -> Batch:
        batch = self._source.batch(groups).to(torch.device("cpu"), self._dtype)
        return batch.pinned() if self._device.type == "cuda" else batch

    def _submit(self, when: int, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.put((when, next(self._numbers), future, function))
        if self._thread is None:
            # It does not keep a process alive whose other threads have ended.
            self._thread = threading.Thread(target=self._work, name="renderer", daemon=True)
            self._thread.start()
        return future

    def _work(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a thread begins on the first GPU, and pinning memory would take some of it
        while True:
            _, _, future, function = self._jobs.get()
            if future is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # raised again where the result is taken
                future.set_exception(error)
            del future, function  # while it waits, it holds no batch
