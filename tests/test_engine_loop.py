"""Calls from many threads through one engine: no call waits for another's replies, and none is left without an answer."""

import concurrent.futures
import functools
import itertools
import threading
import types

import pytest

from actors.engine import lacks_scores
from actors.engine_loop import NUM_WAITING, EngineLoop

PATIENT_S = 20


class FakeLlm:
    """An engine whose requests are numbers of steps. `steps` says what was in it at each; with `gate`, each step waits for it."""

    def __init__(self, most=8, running=8):
        self.llm_engine = self
        self.engine_core = types.SimpleNamespace(engine_core=types.SimpleNamespace(scheduler=self))
        self.running = running
        self.vllm_config = types.SimpleNamespace(scheduler_config=types.SimpleNamespace(max_num_seqs=most // 2))
        self.request_counter = itertools.count()
        self.left, self.steps, self.aborted, self.threads = {}, [], [], set()
        self.gate = threading.Semaphore(0)

    def get_request_counts(self):
        return min(self.running, len(self.left)), max(0, len(self.left) - self.running)

    def add_request(self, name, rendered, params):
        self.threads.add(threading.get_ident())
        if rendered < 0:
            raise ValueError("a negative number of steps")
        self.left[name] = rendered
        return f"{name}-own"

    def abort_request(self, names, internal):
        assert internal
        self.aborted += names
        for name in names:
            self.left.pop(name.removesuffix("-own"), None)

    def step(self):
        assert self.gate.acquire(timeout=PATIENT_S)
        self.threads.add(threading.get_ident())
        if any(left > 100 for left in self.left.values()):
            raise RuntimeError("the device is gone")
        self.steps.append(sorted(self.left))
        done = [name for name, left in self.left.items() if left == 1]
        self.left = {name: left - 1 for name, left in self.left.items() if left > 1}
        return [types.SimpleNamespace(request_id=name, finished=True) for name in done]


@pytest.fixture
def llm():
    return FakeLlm()


@pytest.fixture
def ask(llm):
    """Call the loop in a thread of its own with prompts that are these numbers of steps."""
    loop = EngineLoop(lambda: llm)
    pool = concurrent.futures.ThreadPoolExecutor(8)

    def asked(*steps):
        prompts = [steps_ if callable(steps_) else functools.partial(int, steps_) for steps_ in steps]
        return pool.submit(loop.run, prompts, [None] * len(prompts))

    yield asked
    llm.gate.release(1000)
    pool.shutdown(wait=False, cancel_futures=True)


def wait_until(condition):
    event = threading.Event()
    for _ in range(PATIENT_S * 100):
        if condition():
            return
        event.wait(0.01)
    raise AssertionError("it never came")


def test_a_short_call_does_not_wait_for_a_long_one(llm, ask):
    long = ask(50)
    wait_until(lambda: llm.left)
    short = ask(2, 1)
    while not short.done():
        llm.gate.release()
        short_is_done = concurrent.futures.wait([short], timeout=0.05).done
        assert len(llm.steps) < 40, short_is_done
    assert not long.done()
    llm.gate.release(50)
    assert [output.request_id for output in long.result(PATIENT_S)] == ["0"]
    assert [output.request_id for output in short.result()] == ["1", "2"]
    assert len(llm.threads) == 1, "the engine belongs to one thread"


def test_no_more_is_in_the_engine_than_it_can_work_on_soon(llm, ask):
    call = ask(*[1] * 40)
    llm.gate.release(1000)
    assert len(call.result(PATIENT_S)) == 40
    assert max(len(names) for names in llm.steps) <= 8


def test_an_engine_without_room_is_given_no_more_pixels_than_it_takes_soon():
    llm = FakeLlm(most=1000, running=3)
    loop = EngineLoop(lambda: llm)
    llm.gate.release(10_000)
    loop.run([functools.partial(int, 90)] * 300, [None] * 300)
    assert 3 < max(map(len, llm.steps)) <= 3 + NUM_WAITING


@pytest.mark.parametrize("bad", [lambda: 1 / 0, -1], ids=["it cannot be rendered", "the engine refuses it"])
def test_a_bad_prompt_ends_its_own_call_and_no_other(llm, ask, bad):
    good = ask(3)
    wait_until(lambda: llm.left)
    failed = ask(90, bad, 90)
    wait_until(lambda: failed.done() or llm.gate.release() is not None)
    with pytest.raises((ZeroDivisionError, ValueError)):
        failed.result(PATIENT_S)
    llm.gate.release(5)
    assert good.result(PATIENT_S)
    assert ask(1).result(PATIENT_S)
    wait_until(lambda: not llm.left)
    assert set(llm.aborted) <= {"1-own", "2-own"}


def test_an_engine_that_dies_answers_all_calls_with_its_error(llm, ask):
    first, second = (
        ask(100),
        ask(100),
    )  # as many steps as an engine may have left that lives, so that the first waits for the second
    wait_until(lambda: first.running() and second.running() and llm.left)
    wait_until(lambda: len(llm.left) == 2 or llm.gate.release() is not None)
    deadly = ask(1000)
    llm.gate.release(1000)
    for call in (deadly, ask(1)):
        with pytest.raises(RuntimeError, match="the device is gone"):
            call.result(PATIENT_S)
    assert first.exception(PATIENT_S) is None or str(first.exception()) == "the device is gone"
    assert second.exception(PATIENT_S) is None or str(second.exception()) == "the device is gone"


def test_what_hinders_the_engine_from_starting_is_raised():
    with pytest.raises(RuntimeError, match="no memory"):
        EngineLoop(functools.partial(exec, "raise RuntimeError('no memory')"))


def test_the_clock_starts_anew_each_time_it_is_read(llm):
    loop = EngineLoop(lambda: llm)
    llm.gate.release(1000)
    loop.run([functools.partial(int, 3)], [None])
    wait_until(lambda: len(llm.steps) == 3)
    taken = loop.take_seconds()
    assert taken["working"] >= 0
    assert loop.take_seconds()["waiting"] == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize(
    ("cached", "steps", "lacks"),
    [
        (0, [None, *"abcdefghi"], False),
        (
            6,
            [None, *"abcdefghi"],
            False,
        ),  # of ten tokens, the last three are the reply; V1 says all steps, of cached tokens anything
        (7, [None, *"abcdefghi"], True),
        (6, [None, *"ghi"], False),  # the V2 runner says only those that it computed
        (6, [None, *"ghi"][:3], True),  # it has forgotten those of a part of the prompt
        (6, [None, "i"], True),
        (None, [None, *"abcdefghi"], False),
    ],
)
def test_scores_that_vllm_has_not_computed_are_noticed(cached, steps, lacks):
    output = types.SimpleNamespace(prompt_logprobs=steps, num_cached_tokens=cached, prompt_token_ids=list(range(10)))
    assert lacks_scores(output, 3) == lacks
