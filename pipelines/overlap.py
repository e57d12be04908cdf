"""Two stages at once: while one round trains, a thread makes the responses and pairs of the rounds after it.

    thread   rollout 0 ─► rollout 1 ───────► rollout 2 ───────► …      round k: of the policy that round k - max_staleness starts from
                      └►           └►(waits for policy 1)
    main               train 0 ─► train 1 ─────────► train 2 ─► …      ends with the command: signals arrive here

Which policy makes a round's responses is fixed by the configuration and not by which stage was faster, so that a run which was killed
anywhere continues to the same result, and one without overlap but of equal `max_staleness` has it too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cluster import interrupts
from pipelines.faults import fixable_cause

POLL_S = 0.2
END_S = 3.0  # for the thread to leave what it is in; the command as a whole has `interrupts.LIMIT_S`


def overlapped(num_rounds: int, staleness: int, respond: Callable[[int], None], train: Callable[[int], None]) -> None:
    """Call `respond` in a thread and `train` in this one for every round, each as soon as what it needs is there.

    respond(k) comes after respond(k - 1) and train(k - 1 - staleness), train(k) after respond(k) and train(k - 1). The first of
    both to fail ends the other one, and what it raised is raised here; a signal ends both.
    """
    made, trained, ending = _Rounds(), _Rounds(), _Ending()

    def respond_all() -> None:
        try:
            for index in range(num_rounds):
                trained.wait_for(index - staleness)
                respond(index)
                made.one_more()
        except interrupts.Cancelled:
            return
        except BaseException as error:
            ending.by(error, stop)

    with interrupts.stoppable() as stop:
        thread = threading.Thread(target=respond_all, daemon=True, name="rollouts")
        thread.start()
        try:
            for index in range(num_rounds):
                made.wait_for(index + 1)
                train(index)
                trained.one_more()
        except BaseException:
            ending.begin()
            interrupts.end_thread(thread, END_S)
            raise
        thread.join()


class _Rounds:
    """How many rounds are through, for a thread that waits for some of them."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Condition()

    def one_more(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            while self._count < count:
                self._changed.wait(POLL_S)  # not for ever: a thread that waits in one call cannot be ended


class _Ending:
    """Who ended both: the thread, which then interrupts the main one, or the main one, after which the thread has nothing to say."""

    def __init__(self) -> None:
        self._has_begun, self._lock = False, threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self._has_begun = True

    def by(self, error: BaseException, stop: Callable[[BaseException], None]) -> None:
        with self._lock:
            if not self._has_begun:
                stop(fixable_cause(error) or error)
