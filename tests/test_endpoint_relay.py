"""A request on its way to the process of its model, and what becomes of it where that process is gone, silent or slow."""

import asyncio
import json

import pytest
from contract_table import CHAT, chat
from endpoint_stub import MODES, StubEngine, client, models

from serving import leaving, relay
from serving.answer import USAGE
from serving.gates import GateOptions
from serving.relay import ACCEPTED, Relay, answered
from serving.replies import ClientLeft
from vidalign.config.run import ServeConfig


class Call:
    """An actor's answer: messages, an exception in their place, or nothing at all (None)."""

    def __init__(self, *steps):
        self.steps, self.cancelled = steps, False

    async def __aiter__(self):
        for step in self.steps:
            if step is None:
                await asyncio.sleep(600)
            if isinstance(step, Exception):
                raise step
            yield step

    def cancel(self):
        self.cancelled = True


REPLY = [
    [{"type": ACCEPTED}],
    [{"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body", "body": b"{}"}],
]


def ask(*calls, alive=lambda: True, accept_s=0.2, watched=True, num_replicas=1):
    """The replies to as many requests as there are calls, and what the relay says of the model at the end."""

    async def asking():
        coming = list(calls)

        async def is_alive():
            found = alive()
            if isinstance(found, Exception):
                raise found
            return found

        made = Relay(
            {name: lambda scope, body: coming.pop(0) for name in ("base", "aligned")},
            {"base": is_alive, "aligned": is_alive} if watched else {},
            accept_s=accept_s,
            num_replicas=num_replicas,
        )
        options = GateOptions(models=models(MODES[1]), serve=ServeConfig())
        gate = options.gate(made, options.catalog(lambda: made.up))
        async with client(gate) as asking:
            replies = [await asking.post(CHAT, json=chat()) for _ in calls]
        await asyncio.sleep(0.05)
        return replies, dict(made.up)

    return asyncio.run(asyncio.wait_for(asking(), 10))


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(relay, "WATCH_S", 0.01)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (Call(RuntimeError("the actor died at /srv/x")), "engine_restarting"),
        (Call(None), "engine_restarting"),
        (Call([{"type": ACCEPTED}], RuntimeError("the actor died")), "engine_died"),
    ],
)
def test_a_replica_that_is_gone_or_silent(call, code):
    [reply], up = ask(call)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, code)
    assert int(reply.headers["retry-after"]) >= 1
    assert "/srv" not in reply.text
    assert call.cancelled
    assert up == {"base": True, "aligned": True}, "it answers again"


def test_a_client_that_leaves_is_noticed_without_a_server_that_says_so_by_cancelling():
    """As under uvicorn, where a Serve replica takes requests itself."""

    class Hangs(Call):
        async def __aiter__(self):
            yield [{"type": ACCEPTED}]
            while not self.cancelled:
                await asyncio.sleep(0.01)
            raise RuntimeError("the call was cancelled")

    async def asking():
        call, sent, messages = Hangs(), [], [{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0) if messages else await asyncio.sleep(600)

        async def send(message):
            sent.append(message)

        with pytest.raises(ClientLeft):
            await Relay({"base": lambda scope, body: call}, {})({"type": "http", "target": "base"}, receive, send)
        return call.cancelled, sent

    assert asyncio.run(asyncio.wait_for(asking(), 5)) == (True, [])


@pytest.mark.parametrize("knows", [True, False])
def test_a_cancelled_request_ends_what_generates_for_it(knows, monkeypatch):
    """`knows`: the application listens for its client, as vLLM's handlers do; one that does not is cancelled after a while."""
    monkeypatch.setattr(leaving, "END_S", 0.05)
    ended = []

    async def generate():
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            ended.append("generation")
            raise

    async def listen(receive):
        while (await receive())["type"] != "http.disconnect":
            pass

    async def app(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        tasks = [asyncio.create_task(generate()), *([asyncio.create_task(listen(receive))] if knows else [])]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            ended.append("waiting")
            raise
        tasks[0].cancel()

    async def asking():
        messages = [{"type": "http.request", "body": b""}]

        async def receive():
            return messages.pop() if messages else await asyncio.sleep(600)

        task = asyncio.create_task(leaving.ended_with_its_client(app, {}, receive, None))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.02)
        return list(ended)

    assert asyncio.run(asyncio.wait_for(asking(), 10)) == (["generation"] if knows else ["waiting"])


def test_an_answer_is_whole_though_servers_say_at_its_end_that_the_client_left():
    async def asking():
        usage = {"type": "vidalign.usage", "prompt_tokens": 1, "completion_tokens": 1}
        call, sent, ended = Call(*REPLY, [usage]), [], asyncio.Event()

        async def receive():
            if not sent and not received:
                received.append(1)
                return {"type": "http.request", "body": b"{}"}
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if message["type"] == "http.response.body":
                ended.set()
                await asyncio.sleep(0.05)

        received: list[int] = []
        await Relay({"base": lambda scope, body: call}, {})({"type": "http", "target": "base"}, receive, send)
        return sent[-1] == usage, call.cancelled

    assert asyncio.run(asyncio.wait_for(asking(), 5)) == (True, False)


def test_a_model_that_does_not_answer_gets_no_requests():
    [first, second], up = ask(Call(RuntimeError("gone")), Call(*REPLY), alive=lambda: TimeoutError())
    assert (first.status_code, second.status_code) == (503, 503)
    assert up == {"base": False, "aligned": False}


@pytest.mark.parametrize(("num_replicas", "then"), [(1, 503), (2, 200)])
def test_a_replica_that_dies_takes_only_its_own_requests_with_it(num_replicas, then, monkeypatch):
    monkeypatch.setattr(relay, "WATCH_S", 60)
    died = Call([{"type": ACCEPTED}], RuntimeError("the actor died"))
    [first, second], _ = ask(died, Call(*REPLY), num_replicas=num_replicas)
    assert (first.status_code, first.json()["error"]["code"], second.status_code) == (503, "engine_died", then)


def test_a_model_that_may_sleep_is_not_looked_at_and_woken_by_a_request():
    looked = []
    [first, second], up = ask(
        Call(RuntimeError("gone")), Call(*REPLY), alive=lambda: looked.append(1) or True, watched=False
    )
    assert (first.status_code, second.status_code) == (503, 200)
    assert up == {"base": True, "aligned": True}
    assert not looked


def test_a_relayed_application_is_ended_with_its_caller():
    ended = []

    async def app(scope, receive, send):
        assert (await receive())["body"] == b"x"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(scope["path"])

    async def asking():
        messages = answered(app, {"type": "http", "path": "/p"}, b"x")
        assert await anext(messages) == [{"type": ACCEPTED}]
        assert (await anext(messages))[0]["status"] == 200
        await messages.aclose()
        await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(asking(), 5))
    assert ended == ["/p"]


def test_an_endpoint_that_starts_is_ready_once_its_engines_answer():
    """The gate answers long before them: a load balancer that looks at /ready must not send anybody yet."""
    there: list[bool] = []

    async def alive():
        if not there:
            raise TimeoutError
        return True

    async def ask():
        names = ("base", "aligned")
        made = Relay(dict.fromkeys(names, lambda scope, body: Call(*REPLY)), dict.fromkeys(names, alive), starting=True)
        made.watch()
        options = GateOptions(models=models(MODES[1]), serve=ServeConfig())
        async with client(options.gate(made, options.catalog(lambda: made.up))) as asking:
            refused = await asking.post(CHAT, json=chat())
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_restarting")
            assert "retry-after" in refused.headers
            assert [(await asking.get(path)).status_code for path in ("/ready", "/health", "/v1/models")] == [503, 503, 200]
            there.append(True)
            while (await asking.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            assert (await asking.post(CHAT, json=chat())).status_code == 200

    asyncio.run(asyncio.wait_for(ask(), 10))


@pytest.mark.parametrize(("streams", "steps"), [(False, [1, 3]), (True, [1, 2, 1, 2])])
def test_an_answers_end_goes_with_its_last_part(streams, steps):
    """Each step from process to process costs both; the parts of a stream go as they come."""

    async def ask():
        engine = StubEngine()
        engine.delay_s = 0.01
        body = json.dumps(chat(stream=streams)).encode()
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        found = [messages async for messages in answered(engine, scope, body)]
        assert found[-1][-1]["type"] == USAGE
        return [len(messages) for messages in found]

    assert asyncio.run(ask()) == steps
