"""What many clients, and bad ones, can do to an endpoint: nothing to the others. In front of a stub of vLLM, within seconds."""

import asyncio
import collections
import contextlib
import json
import tracemalloc

import pytest
from contract_table import CHAT, chat
from endpoint_stub import MODES, StubEngine, application, client

from serving.admission import Admission
from serving.replies import Refusal

both = pytest.mark.parametrize("mode", MODES)
LIMITS = {"max_sequences": 8, "max_sequences_per_request": 8, "max_waiting": 8}


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer where there is nothing to do: what takes seconds is exact and takes none."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


async def _raw(app, chunks, headers=(), *, leaves=False):
    """One request over bare ASGI: the messages of its answer. `chunks`: the body, of which None never comes."""
    sent, coming = [], list(chunks)

    async def receive():
        if coming and coming[0] is not None:
            return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming) or leaves}
        if not leaves:
            await asyncio.sleep(600)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    named = [(b"content-type", b"application/json"), *headers]
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": named,
        "query_string": b"",
        "client": ("10.0.0.9", 1),
    }
    await app(scope, receive, send)
    return sent


async def _load(app, concurrency, seconds):
    """Requests a second that were answered, their 99th percentile in seconds, and how many were turned away."""
    time = asyncio.get_running_loop().time
    latencies, refused, end, body = [], 0, time() + seconds, json.dumps(chat()).encode()

    async def one():
        nonlocal refused
        while time() < end:
            started_at = time()
            start, *_ = await _raw(app, [body])
            if start["status"] == 200:
                latencies.append(time() - started_at)
            else:
                assert start["status"] in (429, 503)
                assert int(dict(start["headers"])[b"retry-after"]) >= 1
                refused += 1
                await asyncio.sleep(0.2)

    await asyncio.gather(*(one() for _ in range(concurrency)))
    latencies.sort()
    return len(latencies) / seconds, latencies[int(0.99 * len(latencies))], refused


@both
def test_overload_takes_nothing_from_those_who_are_admitted(mode):
    """Once, four times and twenty times what fits: as much is answered, in at most twice the time, and then all is as before."""

    async def ask():
        engine = StubEngine()
        engine.delay_s = 0.1
        app = application(mode, engine, {"limits": LIMITS})
        found = {times: await _load(app, 8 * times, 2.0) for times in (1, 4, 20)}
        peak = max(rate for rate, _, _ in found.values())
        for times, (rate, latency_s, refused) in found.items():
            assert rate >= 0.9 * peak, found
            assert latency_s <= 2 * found[1][1] + 1e-6, found
            assert (refused > 0) == (times > 2), found
        assert engine.most_running == 8
        assert (await _load(app, 1, 0.1))[1] <= found[1][1] + 1e-6, "and then all is as before"

    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(ask())


def test_replies_count_and_not_requests():
    async def ask():
        engine = StubEngine()
        engine.delay_s = 0.05
        async with client(application(MODES[0], engine, {"limits": LIMITS})) as asking:
            replies = await asyncio.gather(*(asking.post(CHAT, json=chat(n=4, temperature=1.0)) for _ in range(6)))
            assert sorted(reply.status_code for reply in replies) == [200, 200, 200, 200, 429, 429]
            assert engine.most_running == 2

    run(ask())


def test_a_greedy_client_displaces_its_own_requests():
    async def ask():
        places = Admission(1, 2, 10)
        answered, refused = [], collections.Counter()

        async def one(name):
            try:
                async with places.place(name, 1):
                    await asyncio.sleep(0.02)
                    answered.append(name)
            except Refusal as refusal:
                refused[name, refusal.status] += 1

        tasks = [asyncio.create_task(one("greedy")) for _ in range(5)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one("modest")))
        await asyncio.gather(*tasks)
        assert sorted(answered) == ["greedy", "greedy", "modest"]
        assert refused == {("greedy", 429): 3}
        assert places.running == places.waiting == 0

    run(ask())


def test_who_waits_too_long_is_told_so_and_leaves_no_trace():
    async def ask():
        places = Admission(1, 5, 0.05)
        async with places.place("a", 1):
            with pytest.raises(Refusal, match=r"no place became free within 0.05 s") as caught:
                async with places.place("b", 1):
                    pass
            assert caught.value.status == 503
            waiting = asyncio.create_task(places.place("c", 1).__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            assert (places.running, places.waiting) == (1, 0)
        async with places.place("d", 1):
            assert places.running == 1

    run(ask())


@both
def test_large_bodies_and_slow_ones_take_no_memory_and_no_place(mode):
    async def ask():
        engine = StubEngine()
        limits = {"max_body_mb": 1, "max_bodies_mb": 4, "body_idle_s": 0.2}
        app = application(mode, engine, {"limits": limits})
        tracemalloc.start()
        huge = [b"x" * 2**16] * 4000
        [start, body] = await _raw(app, huge)
        assert start["status"] == 413
        assert b"a body may have 1,048,576 bytes" in body["body"]
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        tracemalloc.stop()
        [start, _] = await _raw(app, [], headers=[(b"content-length", b"4000000000")])
        assert start["status"] == 413, "said before anything of it comes"
        slow = [asyncio.create_task(_raw(app, [b'{"mo', None])) for _ in range(600)]
        async with client(app) as asking:
            await asyncio.sleep(0.05)
            assert (await asking.post(CHAT, json=chat())).status_code == 200
        assert {messages[0]["status"] for messages in await asyncio.gather(*slow)} == {408}
        many = [asyncio.create_task(_raw(app, [b" " * 700_000, None])) for _ in range(12)]
        statuses = [messages[0]["status"] for messages in await asyncio.gather(*many)]
        assert set(statuses) == {408, 503}, "all bodies together have a bound too"
        async with client(app) as asking:
            assert (await asking.post(CHAT, json=chat())).status_code == 200

    run(ask())


@both
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_client_has_left_is_ended(mode, stream):
    async def ask():
        engine = StubEngine()
        app = application(mode, engine, {"limits": {**LIMITS, "max_sequences": 8}})
        body = json.dumps(chat(user="hangs", stream=stream)).encode()
        asking = [asyncio.create_task(_raw(app, [body])) for _ in range(8)]
        async with asyncio.timeout(5):
            while engine.running < 8:
                await asyncio.sleep(0.01)
            for task in asking:  # as Ray Serve does, and uvicorn's Starlette applications do, where a client leaves
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            while engine.cancelled < 8:
                await asyncio.sleep(0.01)
        async with client(app) as after:
            assert (await after.post(CHAT, json=chat())).status_code == 200
            assert 'status="499"} 8.0' in (await after.get("/metrics")).text

    run(ask())


def test_a_client_that_leaves_within_its_body_is_no_error(caplog):
    async def ask():
        app = application(MODES[0], StubEngine())
        assert await _raw(app, [b'{"model"'], leaves=True) == []
        async with client(app) as asking:
            assert 'status="499"} 1.0' in (await asking.get("/metrics")).text

    run(ask())
    assert not caplog.records


def test_who_is_turned_away_together_does_not_come_back_together():
    """Whole seconds as the standard has them, and milliseconds as OpenAI's clients take them, up to a minute."""
    for after_s, low, high in ((0.1, 0.5, 1.5), (4.0, 4.0, 6.0), (10.0, 10.0, 15.0), (58.0, 58.0, 60.0)):
        found = [Refusal(429, "full", retry_after_s=after_s).headers for _ in range(1000)]
        assert {headers["retry-after"] for headers in found} == {str(max(1, round(after_s)))}
        times = [float(headers["retry-after-ms"]) / 1000 for headers in found]
        assert low <= min(times) < max(times) <= high
        assert len(set(times)) > 10
