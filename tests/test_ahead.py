"""Batches that a thread renders ahead: the same ones, one ahead, with their errors, and no thread that stays."""

import dataclasses
import threading

import pytest
import torch
from test_monitor import ModelAlone
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)

from actors.monitor import Monitor
from vidalign.errors import ModelError
from vidalign.learning.ahead import Renderer
from vidalign.model.batch import Batch
from vidalign.model.policy import ResponseScorer, load_policy

CPU = torch.device("cpu")
SECONDS = 20.0


class Watched:
    """In place of a prompt's numbering: says in which thread and order prompts were rendered, and lets a test hold the thread."""

    def __init__(self):
        self.rendered, self.threads = [], set()
        self.goes_on, self.is_at = threading.Event(), threading.Semaphore(0)
        self.goes_on.set()

    def __call__(self, prompt):
        self.is_at.release()
        assert self.goes_on.wait(SECONDS)
        self.threads.add(threading.current_thread())
        self.rendered.append(prompt.length)
        return torch.arange(prompt.length)[None]

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def watched():
    return Watched()


@pytest.fixture
def renderer(source, watched):  # noqa: F811
    made = Renderer(dataclasses.replace(source, number=watched, _kept={}, _lengths={}), device=CPU, dtype=torch.bfloat16)
    yield made
    watched.goes_on.set()
    made.close()


def idle(renderer):
    """Waits until all that was asked of the thread is done."""
    renderer.num_tokens([])
    for future in renderer._later:
        if not future.cancelled():
            future.result(SECONDS)


def test_batches_are_those_of_the_source_in_their_order(renderer, source, groups):  # noqa: F811
    forwards = [[groups[0]], groups[:2], [groups[1]], [groups[0]]]
    plain = dataclasses.replace(source, number=lambda prompt: torch.arange(prompt.length)[None], _kept={})
    made = list(renderer.batches(forwards))
    for batch, forward in zip(made, forwards, strict=True):
        expected = plain.batch(forward).to(CPU, torch.bfloat16)
        assert batch.inputs.keys() == expected.inputs.keys()
        for name, value in expected.inputs.items():
            assert torch.equal(batch.inputs[name], value) if isinstance(value, torch.Tensor) else batch.inputs[name] == value
        assert torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.sources, expected.sources)
        assert batch.inputs["pixel_values_videos"].dtype == torch.bfloat16
    assert list(renderer.batches([])) == []


def test_one_batch_is_rendered_while_another_is_used_and_no_more(renderer, watched, groups):  # noqa: F811
    batches = renderer.batches([[groups[0]], [groups[1]], [groups[0]], [groups[1]]])
    assert watched.is_at.acquire(timeout=SECONDS)  # at once, before it is taken
    next(batches)
    assert watched.is_at.acquire(timeout=SECONDS)  # the second, while the first is used
    idle(renderer)
    assert len(watched.rendered) == 2
    next(batches)
    idle(renderer)
    assert len(watched.rendered) == 3
    assert threading.current_thread() not in watched.threads
    assert len(watched.threads) == 1


def test_what_is_asked_for_comes_before_what_is_prepared(renderer, watched, groups):  # noqa: F811
    watched.goes_on.clear()
    first = renderer.batches([[groups[0]]])
    assert watched.is_at.acquire(timeout=SECONDS)
    renderer.prepare([groups[1]])
    second = renderer.batches([[groups[0]]])
    watched.goes_on.set()
    next(first), next(second)
    idle(renderer)
    lengths = [watched.rendered[0], watched.rendered[-1]]
    assert watched.rendered == [lengths[0], lengths[0], lengths[1]]
    assert lengths[0] != lengths[1]  # the prompts are of different videos


def test_a_prepared_prompt_is_rendered_once(renderer, watched, groups):  # noqa: F811
    renderer.prepare(groups[:2])
    idle(renderer)
    assert len(watched.rendered) == 2
    tokens = renderer.num_tokens(groups[:2])
    batch = next(renderer.batches([groups[:2]]))
    assert len(watched.rendered) == 2
    assert batch.inputs["input_ids"].shape == (1, sum(tokens))
    assert renderer.num_tokens(groups[:2]) == tokens
    assert len(watched.rendered) == 2  # lengths are remembered without the prompts


def test_the_first_batch_of_the_next_step_is_made_before_it_is_asked_for(renderer, watched, groups):  # noqa: F811
    asked = []

    def first(lengths):
        asked.append(list(lengths))
        return [1]

    renderer.prepare(groups[:2], first=first)
    idle(renderer)
    made = renderer._first.result(SECONDS)[1]
    assert asked == [renderer.num_tokens(groups[:2])]
    batches = renderer.batches([[groups[1]], [groups[0]]])
    assert next(batches) is made
    assert next(batches).inputs["input_ids"].shape == (1, asked[0][0])
    assert len(watched.rendered) == 2


def test_a_first_batch_of_other_groups_is_not_taken(renderer, watched, groups):  # noqa: F811
    renderer.prepare(groups[:2], first=lambda lengths: [1])
    idle(renderer)
    renderer._first.result(SECONDS)
    [batch] = renderer.batches([[groups[0]]])
    assert batch.inputs["input_ids"].shape == (1, renderer.num_tokens([groups[0]])[0])
    renderer.prepare([groups[0]], first=lambda lengths: [7])  # an error of what nobody asked for
    idle(renderer)
    assert len(next(renderer.batches([[groups[0]]])).labels) == 2


@pytest.mark.parametrize("between", [[], [1]], ids=["nothing", "another batch"])
def test_a_measurement_between_two_steps_leaves_what_is_prepared_for_the_next(renderer, watched, groups, between):  # noqa: F811
    renderer.prepare([groups[0]], first=lambda lengths: [0])
    idle(renderer)
    made = renderer._first.result(SECONDS)[1]
    assert len(list(renderer.batches([[groups[index]] for index in between]))) == len(between)
    assert next(renderer.batches([[groups[0]]])) is made
    assert len(watched.rendered) == 1 + len(between)


def test_what_was_to_be_prepared_is_replaced(renderer, watched, groups):  # noqa: F811
    watched.goes_on.clear()
    renderer.prepare([groups[0], groups[1], groups[1]])
    assert watched.is_at.acquire(timeout=SECONDS)
    renderer.prepare([])
    watched.goes_on.set()
    idle(renderer)
    assert len(watched.rendered) == 1


def test_an_error_is_raised_where_its_batch_is_taken(renderer, groups):  # noqa: F811
    too_long = tuple(dataclasses.replace(each, text="red " * 600, marks=()) for each in groups[1].responses)
    batches = renderer.batches([[groups[0]], [dataclasses.replace(groups[1], responses=too_long)], [groups[0]]])
    assert isinstance(next(batches), Batch)
    with pytest.raises(ModelError, match="a training sequence has"):
        next(batches)
    assert len(next(renderer.batches([groups[:2]])).labels) == 4  # the thread goes on


def test_no_thread_stays(renderer, watched, groups):  # noqa: F811
    next(renderer.batches([[groups[0]], [groups[1]]]))
    renderer.prepare(groups)
    (thread,) = watched.threads
    assert thread.is_alive()
    renderer.close()
    assert not thread.is_alive()
    renderer.close()  # twice is once


def test_measurements_keep_their_batches_up_to_a_bound(source, prepared, groups):  # noqa: F811
    rank, asked = ModelAlone(ResponseScorer(load_policy(prepared[0]))), []

    class Counting:
        def batches(self, forwards):
            asked.append(len(forwards))
            return source.batches(forwards)

    largest = max(source.batch([group]).num_bytes for group in groups)
    found = []
    for kept_bytes in (1 << 30, largest, 0):
        monitor = Monitor(rank, Counting(), pairs=groups, probe=groups[:0], size=1, kept_bytes=kept_bytes)
        found += [monitor.measure(0) for _ in range(2)]
    assert all(figures == found[0] for figures in found)
    number, of_pairs = len(groups), asked[::2]  # the probe is empty
    assert of_pairs[:3] == [number, 0, number]
    assert 0 < of_pairs[3] < number
    assert of_pairs[4:] == [number, number]
