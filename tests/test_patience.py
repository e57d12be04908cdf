"""How an evaluation rides over an endpoint that restarts, and finds the question that ends its engine."""

import asyncio

import httpx
import openai
import pytest

import serving.app as serving_app
from pipelines import asking, patience
from pipelines.patience import EndsEngineError, GivenUpError, Patience
from vidalign.config.run import EvaluateConfig


def status_error(status, code, **headers):
    response = httpx.Response(status, headers=headers, request=httpx.Request("POST", "http://e/v1"))
    body = {"message": "m", "code": code}
    kind = openai.RateLimitError if status == 429 else openai.InternalServerError
    return kind("m", response=response, body=body)


class Endpoint:
    """An engine that one question ends; it is back after some further requests."""

    def __init__(self, deadly=(), down_for=3):
        self.deadly, self.down_for = set(deadly), down_for
        self.down = self.deaths = 0
        self.generation = 0
        self.running = set()

    async def send(self, question):
        if self.down:
            self.down -= 1
            raise status_error(503, "engine_restarting", **{"retry-after": "10"})
        generation = self.generation
        self.running.add(question)
        await asyncio.sleep(0.001)
        if question in self.deadly:
            self.generation, self.down, self.deaths = generation + 1, self.down_for, self.deaths + 1
        await asyncio.sleep(0.001)
        self.running.discard(question)
        if generation != self.generation:
            raise status_error(503, "engine_died", **{"retry-after": "10"})
        return question


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch):
    monkeypatch.setattr(patience, "_pause_s", lambda error, attempts: 0.001)


def ask_all(endpoint, questions, concurrency=4):
    async def one(asking, question):
        try:
            return await asking.ask(lambda: endpoint.send(question))
        except EndsEngineError:
            return "quarantined"

    async def all_():
        asking = Patience(concurrency)
        return await asyncio.gather(*(one(asking, question) for question in questions))

    return asyncio.run(asyncio.wait_for(all_(), 10))


def test_only_the_question_that_ends_the_engine_is_quarantined():
    endpoint = Endpoint(deadly={5})
    assert ask_all(endpoint, range(12)) == [*range(5), "quarantined", *range(6, 12)]
    assert endpoint.deaths == 2


def test_two_such_questions_among_others():
    endpoint = Endpoint(deadly={1, 2})
    assert ask_all(endpoint, range(6)) == [0, "quarantined", "quarantined", 3, 4, 5]


def test_a_restart_takes_longer_than_a_few_attempts():
    endpoint = Endpoint(down_for=50)
    endpoint.down = 50
    assert ask_all(endpoint, range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (status_error(500, 500), 5),
        (status_error(503, 503), 5),
        (openai.APIConnectionError(request=httpx.Request("POST", "http://e")), 5),
        (openai.APITimeoutError(request=httpx.Request("POST", "http://e")), 5),
    ],
)
def test_what_does_not_pass_is_given_up_soon(error, attempts):
    async def send():
        raise error

    with pytest.raises(GivenUpError) as caught:
        asyncio.run(Patience(2).ask(send))
    assert caught.value.attempts == attempts


def test_an_endpoint_that_has_answered_is_waited_for_where_it_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_S", 0.1)
    calls = []

    async def send():
        calls.append(1)
        if 1 < len(calls) < 20:
            raise openai.APIConnectionError(request=httpx.Request("POST", "http://e"))
        if len(calls) > 21:
            raise status_error(429, 429, **{"retry-after": "1"})
        return len(calls)

    async def ask():
        asking = Patience(1)
        assert await asking.ask(send) == 1
        assert await asking.ask(send) == 20
        assert await asking.ask(send) == 21
        with pytest.raises(GivenUpError):  # at last
            await asking.ask(send)

    asyncio.run(ask())


def test_so_is_one_that_was_ready_before_the_first_question(monkeypatch):
    """Its proxy may end between two models, or before the first."""
    monkeypatch.setattr(patience, "PATIENCE_S", 5)
    calls = []

    async def send():
        calls.append(1)
        if len(calls) < 20:
            raise openai.APIConnectionError(request=httpx.Request("POST", "http://e"))
        return len(calls)

    assert asyncio.run(Patience(1, was_ready=True).ask(send)) == 20


@pytest.mark.parametrize("at_once", [True, False])
def test_an_endpoint_says_to_those_who_ask_that_it_was_ready(at_once, tmp_path, monkeypatch):
    made = []

    class Asked(Exception):
        pass

    def noted(concurrency, *, was_ready):
        made.append(was_ready)
        raise Asked

    monkeypatch.setattr(asking, "Patience", noted)
    for was_ready in (True, False):
        endpoint = serving_app.Endpoint(base_url="http://e/v1", versions={"base": "v"}, was_ready=was_ready)
        with pytest.raises(Asked):
            asking.evaluate_each(
                [], endpoint, [("base", False)], stage=tmp_path, config=EvaluateConfig(), at_once=at_once, progress=False
            )
    assert made == [True, False]
