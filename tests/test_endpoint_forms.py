"""Forms of replies are compiled in a child under a deadline: what takes long holds nobody, and is refused."""

import asyncio
import functools
import json
import os
import time

import pytest
from conftest import ROOT
from contract_table import SLOW_FORMS, chat
from endpoint_stub import MODES, StubEngine, application, client

from serving.decoders import client as asker
from serving.forms import Forms, forms_of
from serving.gate import IN_FORM
from serving.replies import Refusal

QUICK = {"type": "object", "properties": {"way": {"enum": ["left", "right"]}}, "required": ["way"]}
SLOW_TO_COMPILE = SLOW_FORMS[0]["structured_outputs"]["regex"]
SLOW_TO_PARSE = SLOW_FORMS[1]["response_format"]["json_schema"]["schema"]
LIMIT_S = 1.0


@functools.cache
def tokenizer() -> str:
    import xgrammar

    words = [chr(number) for number in range(32, 127)] + ["left", "right", '":', "way"]
    return xgrammar.TokenizerInfo(words, stop_token_ids=[0]).serialize_json()


@pytest.fixture
def forms(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    made = Forms(lambda: {"tokenizer": tokenizer(), "whitespace": True}, LIMIT_S)
    yield made
    made.close()


def in_schema(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def test_every_form_of_a_request_is_found():
    """As vLLM takes them: also those of tools, and of tags as they were written before."""
    asked = chat(
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": QUICK}},
        structured_outputs={"regex": "a+", "json": json.dumps(QUICK), "choice": ["left", "right"], "grammar": "root: /a/"},
        tools=[{"type": "function", "function": {"name": "f", "parameters": QUICK}}, {"type": "function"}],
    )
    found = list(forms_of(asked))
    assert [(name, kind) for name, kind, _ in found] == [
        ("response_format", "json"),
        ("structured_outputs", "json"),
        ("structured_outputs", "regex"),
        ("structured_outputs", "grammar"),
        ("structured_outputs", "lark"),
        ("tools", "json"),
    ]
    assert json.loads(found[-1][2]) == {"anyOf": [QUICK]}
    tag = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": QUICK, "end": "</a>"}], "triggers": ["<a>"]}
    assert [each[:2] for each in forms_of({"response_format": tag})] == [("response_format", "json")]
    tag = {"type": "structural_tag", "format": {"type": "any_text"}}
    assert [each[:2] for each in forms_of({"structured_outputs": {"structural_tag": json.dumps(tag)}})] == [
        ("structured_outputs", "structural_tag")
    ]
    odd = ({}, {"response_format": 3}, {"response_format": {"type": "json_object"}}, {"structured_outputs": {"choice": []}})
    assert [list(forms_of(each)) for each in odd] == [[], [], [], []]


@pytest.mark.heavy
def test_a_form_that_takes_long_is_refused_and_holds_nobody(forms):
    async def ask(who, body):
        asker.set(who)
        began, refused = time.monotonic(), ""
        try:
            await forms.check(body)
        except Refusal as refusal:
            refused = refusal.message
        assert not refused or "takes more than 1 s of processor time, or too much memory, to compile" in refused
        return refused.split(" ")[0], time.monotonic() - began

    async def run():
        assert (await ask("a", in_schema(QUICK)))[0] == ""
        assert (await ask("a", {"structured_outputs": {"regex": "((("}}))[0] == "", "vLLM says what is wrong with it"
        lags = asyncio.create_task(lag())
        slow = [ask("a", {"structured_outputs": {"regex": SLOW_TO_COMPILE}}), ask("a", in_schema(SLOW_TO_PARSE))]
        slow = [asyncio.create_task(each) for each in slow]
        await asyncio.sleep(0.1)
        quick = [await ask("b", in_schema(QUICK | {"description": str(number)})) for number in range(2)]
        assert [each[0] for each in quick] == ["", ""], "another client has a child of its own"
        assert not any(each.done() for each in slow) or quick[1][1] < LIMIT_S
        assert [(await each)[0] for each in slow] == ["structured_outputs", "response_format"]
        again = await ask("b", {"structured_outputs": {"regex": SLOW_TO_COMPILE}})
        assert again[0] == "structured_outputs"
        assert again[1] < LIMIT_S, "it is known"
        assert (await ask("a", in_schema(QUICK)))[0] == ""
        lags.cancel()
        assert max(seen) < LIMIT_S, "the loop goes on while a form takes longer than that"

    seen = [0.0]

    async def lag():
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            seen.append(time.monotonic() - began)

    asyncio.run(asyncio.wait_for(run(), 120))


def test_a_client_that_leaves_takes_its_child_with_it(forms):
    async def run():
        await forms.check(in_schema(QUICK))
        [child] = forms._idle
        leaving = asyncio.create_task(forms.check({"structured_outputs": {"regex": SLOW_TO_COMPILE}}))
        await asyncio.sleep(0.2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await asyncio.to_thread(child.wait, 10) < 0
        await forms.check(in_schema(QUICK | {"description": "another"}))

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("mode", MODES)
def test_the_engine_is_told_that_a_reply_is_to_have_a_form(mode):
    async def ask():
        engine = StubEngine()
        async with client(application(mode, engine)) as asking:
            for fields, said in ((in_schema(QUICK), True), ({}, None)):
                assert (await asking.post("/v1/chat/completions", json=chat(**fields))).status_code == 200
                assert engine.scopes[-1].get(IN_FORM) is said

    asyncio.run(asyncio.wait_for(ask(), 20))
