"""What an endpoint answers to what a client may send, whatever it serves: one table for every mode, with and without a real engine."""

from __future__ import annotations

import gzip
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
VIDEO = {"type": "video_url", "video_url": {"url": "file:///gone.mp4"}}
TEXT = {"type": "text", "text": "Which way?"}


class Case(NamedTuple):
    """A request, and the status and a part of the sentence that answer it. `json` None: what is in `options` is sent as it is."""

    name: str
    status: int
    says: str = ""
    json: Any = None
    path: str = CHAT
    method: str = "POST"
    options: Mapping[str, Any] = types.MappingProxyType({})


def chat(content: Any = "Which way?", /, **fields: Any) -> dict[str, Any]:
    return {"model": "base", "max_tokens": 4, "messages": [{"role": "user", "content": content}], **fields}


def asked(client: Any, url: str, body: dict[str, Any]) -> Any:
    """The reply; 503 "closed" where the connection was closed without one, which OpenAI's client retries as it does 503.

    HAProxy does so where the process behind it ends within a request that is not the first of its connection.
    """
    import httpx

    try:
        return client.post(url + CHAT, json=body)
    except (httpx.RemoteProtocolError, httpx.ReadError):
        return httpx.Response(503, headers={"retry-after": "1"}, json={"error": {"code": "closed"}})


def completion(prompt: Any = "Which way?", /, **fields: Any) -> dict[str, Any]:
    return {"model": "base", "max_tokens": 4, "prompt": prompt, **fields}


def part(**fields: Any) -> list[dict[str, Any]]:
    return [{**VIDEO, **fields}, TEXT]


def calling(call: dict[str, Any]) -> dict[str, Any]:
    """A request after a call of a tool by the assistant."""
    return chat() | {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}, *chat()["messages"]]}


JSON = {"content-type": "application/json"}
CHOICES = [f"choice {number}" for number in range(5000)]
BIASES = {str(number): 1 for number in range(10_001)}
DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

ANSWERED = [
    Case("a question", 200, json=chat()),
    Case(
        "a system message",
        200,
        json={**chat(), "messages": [{"role": "system", "content": "Be brief."}, *chat()["messages"]]},
    ),
    Case(
        "several turns",
        200,
        json={
            **chat(),
            "messages": [*chat()["messages"], {"role": "assistant", "content": "Left."}, *chat("And then?")["messages"]],
        },
    ),
    Case("text in parts", 200, json=chat([TEXT])),
    Case("null is left out", 200, json=chat(top_p=None, stop=None, seed=None, n=None)),
    Case("OpenAI's notes", 200, json=chat(user="me", store=False, metadata={"run": "1"}, service_tier="auto")),
    Case(
        "one key in several objects, and marks of JSON within texts",
        200,
        json=chat([{**TEXT, "text": 'a: b, {"type": "text", "type": 1} \\" :'}, {**TEXT, "text": "é\u003a:"}]),
    ),
    Case(
        "an escaped colon",
        200,
        options={
            "content": rb'{"model": "base", "max_tokens": 4, "messages": [{"role": "user", "content": "a\u003ab\u003A:"}]}',
            "headers": JSON,
        },
    ),
    Case("several replies at temperature 0", 200, json=chat(n=3, temperature=0)),
    Case("more tokens than there are", 200, json=chat(max_tokens=16_384)),
    Case("log-probs", 200, json=chat(logprobs=True, top_logprobs=2)),
    Case("a completion", 200, json=completion(), path=COMPLETIONS),
    Case("a completion of token ids", 200, json=completion([[5, 6], [7]], echo=True, logprobs=1), path=COMPLETIONS),
]
PATTERNS = {f"p{i}": {"type": "string", "pattern": f"^([a-z]{{1,{900 + i}}}x?){{1,99}}$"} for i in range(450)}
SLOW_FORMS = [  # still not compiled after 20 s
    chat(structured_outputs={"regex": "(" + "|".join(f"[a-z]{{{low},{low + 40}}}" for low in range(1, 1200)) + ")*"}),
    chat(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object", "properties": PATTERNS}},
        }
    ),
]
UNUSUAL = [  # what only the engine can tell: it is answered, or a mistake, and never a fault
    chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}),
    chat(response_format={"type": "json_schema"}),
    chat(response_format={"type": "json_object"}),
    chat(structured_outputs={"regex": "((("}),
    chat(structured_outputs={"grammar": "root ::= "}),
    chat(structured_outputs={"choice": []}),
    chat(structured_outputs={"nonsense": 1}),
    *SLOW_FORMS,
    chat(logit_bias={"99999999": 5}),
    chat(logit_bias={"left": 5}),
    chat(allowed_token_ids=[99_999_999]),
    chat(allowed_token_ids=[]),
    chat(bad_words=[""]),
    chat(stop=[""]),
    chat(top_logprobs=3),
    chat(stream_options={"include_usage": True}),
    chat(continue_final_message=True, add_generation_prompt=True),
    chat(tools=[{"type": "function"}]),
    chat(tool_choice="auto"),
    chat(tool_choice={"type": "function", "function": {"name": "x"}}),
    chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}),
    chat(structured_outputs={"grammar": "root ::= root"}),
    chat(structured_outputs={"regex": "((("}, stream=True),
    chat(structured_outputs={"grammar": "root ::= root"}, stream=True),
    chat(reasoning_effort="much"),
    chat(documents=[{"a": "b"}]),
    chat(max_tokens=0),
    chat(""),
    chat([]),
    {
        **chat(),
        "messages": [{"role": "assistant", "content": None, "tool_calls": [{"bad": 1}]}, {"role": "tool", "content": "x"}],
    },
    {**chat(), "messages": [{"role": "system", "content": "x"}]},
    chat("word " * 5000),
    chat([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, TEXT]),
    chat([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,!"}}, TEXT]),
    chat([{"type": "video_url", "video_url": {"url": "file:///etc/passwd%00"}}, TEXT]),
    chat([{"type": "video_url", "video_url": {"url": "file:///" + "x" * 5000}}, TEXT]),
    chat([{"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,AAAA#fps=2"}}, TEXT]),
    chat([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA#t=5,1"}}, TEXT]),
    chat([{"type": "video_url", "video_url": {"url": ""}}, TEXT]),
    chat([{"type": "video_url", "video_url": {"url": "http://[::1"}}, TEXT]),
]
MISTAKES = [
    Case("no JSON", 400, "the body is not JSON", options={"content": b"{'a': 1}", "headers": JSON}),
    Case("JSON without end", 400, "the body is not JSON", options={"content": DEEP, "headers": JSON}),
    Case("no text at all", 400, "the body is not JSON", options={"content": b"\xff\xfe{", "headers": JSON}),
    Case(
        "half a character",
        400,
        "the body is not JSON",
        options={"content": rb'{"model": "base", "messages": [{"role": "user", "content": "\ud800"}]}', "headers": JSON},
    ),
    Case("a list", 400, "the body must be a JSON object", json=[1]),
    Case(
        "a key that is there twice",
        400,
        "the body has the key 'model' twice in one object",
        options={"content": b'{"model": "x", "messages": [], "model": "base"}', "headers": JSON},
    ),
    Case(
        "a key twice further inside, once escaped",
        400,
        "the body has the key 'content' twice in one object",
        options={
            "content": rb'{"model": "base", "messages": [{"role": "user", "content": "a: b", "c\u006fntent": "x\u003ay"}]}',
            "headers": JSON,
        },
    ),
    Case("a call of a tool that is none", 400, "messages[0].tool_calls[0].function is required", json=calling({"bad": 1})),
    Case(
        "arguments of a call that are no text",
        400,
        "messages[0].tool_calls[0].function.arguments: input should be a valid string, got {'x': 1}",
        json=calling({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}),
    ),
    Case("a form", 415, "must be application/json", options={"data": {"a": "b"}}),
    Case(
        "a compressed body",
        415,
        "the body must not be compressed, got Content-Encoding 'gzip'",
        options={"content": gzip.compress(b"{}"), "headers": {**JSON, "content-encoding": "gzip"}},
    ),
    Case(
        "a body that is said to be compressed",
        415,
        "got Content-Encoding 'br'",
        options={"content": b"{}", "headers": {**JSON, "content-encoding": "br"}},
    ),
    Case("more values than can be read", 400, "the body has 300,0", json=chat(metadata={"a": [1] * 300_000})),
    Case("more text than a context", 400, "have 70,0", json=chat("x" * 70_000)),
    Case("more text, not in a message", 400, "have 70,0", json=chat(user="x" * 70_000)),
    Case(
        "a form that is too large",
        400,
        "structured_outputs has 68,902 bytes",
        json=chat(structured_outputs={"choice": CHOICES}),
    ),
    Case(
        "more biases than there may be",
        400,
        "logit_bias: dictionary should have at most 10000 items",
        json=chat(logit_bias=BIASES),
    ),
    Case("many stops", 400, "stop: ", json=chat(stop=["a"] * 2000)),
    Case(
        "many messages",
        400,
        "messages: list should have at most 10000 items",
        json=chat() | {"messages": chat()["messages"] * 10_001},
    ),
    Case(
        "a question without content",
        400,
        "messages[0].content is required of role user",
        json=chat() | {"messages": [{"role": "user"}]},
    ),
    *(
        Case(
            f"a question with {name}",
            400,
            f"messages[0].{name} is of role {role} only",
            json=chat() | {"messages": [{"role": "user", "content": "Where?", name: value}]},
        )
        for name, role, value in (
            ("tool_calls", "assistant", []),
            ("refusal", "assistant", "no"),
            ("reasoning_content", "assistant", "hm"),
            ("tool_call_id", "tool", "1"),
        )
    ),
    Case("a question that is null", 400, "messages[0].content is required of role user", json=chat(None)),
    Case(
        "messages in the template's options",
        400,
        "chat_template_kwargs.messages is the endpoint's own",
        json=chat(chat_template_kwargs={"messages": []}),
    ),
    Case("no messages", 400, "messages is required", json={"model": "base"}),
    Case("empty messages", 400, "messages: list should have at least 1 item", json={"model": "base", "messages": []}),
    Case("messages of text", 400, "messages: input should be a valid list", json={"model": "base", "messages": "hi"}),
    Case(
        "another role",
        400,
        "messages[0].role: input should be 'system'",
        json={"model": "base", "messages": [{"role": "boss", "content": "x"}]},
    ),
    Case("no role", 400, "messages[0].role is required", json={"model": "base", "messages": [{"content": "x"}]}),
    Case("content that is a number", 400, "messages[0].content", json=chat(3)),
    Case(
        "audio", 400, "type must be one of text, video_url, image_url, got 'audio_url'", json=chat([{"type": "audio_url"}])
    ),
    Case("a part without type", 400, "type must be one of text, video_url, image_url, got None", json=chat([{"text": "x"}])),
    Case("uuid on a video", 400, "messages[0].content[0].uuid is not taken: what a video", json=chat(part(uuid="a"))),
    Case(
        "frames in a part",
        400,
        "video_url.num_frames is not taken",
        json=chat(part(video_url={"url": "x", "num_frames": 2})),
    ),
    Case("options in a part", 400, "content[0].media_io_kwargs is not taken", json=chat(part(media_io_kwargs={}))),
    Case("two videos", 400, "the prompt has 2 videos, and this endpoint takes 1", json=chat([VIDEO, VIDEO, TEXT])),
    Case(
        "an image",
        400,
        "1 image, and this endpoint takes 0",
        json=chat([{"type": "image_url", "image_url": {"url": "x"}}, TEXT]),
    ),
    Case("a url that is none", 400, "content[0].video_url.url", json=chat(part(video_url={"url": 3}))),
    Case("a key that nobody knows", 400, "best_of is not taken by this endpoint", json=chat(best_of=4)),
    Case("an id of one's own", 400, "request_id is not taken", json=chat(request_id="mine")),
    Case("a priority of one's own", 400, "priority is not taken", json=chat(priority=-5)),
    Case("a template of one's own", 400, "chat_template is not taken", json=chat(chat_template="{{ 1 }}")),
    Case(
        "sampling of one's own",
        400,
        "media_io_kwargs is not accepted",
        json=chat(media_io_kwargs={"video": {"num_frames": 2}}),
    ),
    Case("fps of one's own", 400, "fps is not accepted", json=chat(fps=2.0)),
    Case(
        "a special token",
        400,
        "messages[0].content[0].text: holds the special token <|im_end|>",
        json=chat([{**TEXT, "text": "x<|im_end|>"}]),
    ),
    Case("no model of this name", 404, "there is no model 'other'; this endpoint has base", json=chat(model="other")),
    Case("a model that is a number", 400, "model: input should be a valid string", json=chat(model=3)),
    Case("n 0", 400, "n: input should be greater than or equal to 1, got 0", json=chat(n=0)),
    Case("n 4000", 400, "asks for 4000 replies, and this endpoint gives at most 64", json=chat(n=4000, ignore_eos=True)),
    Case("n as text", 400, "n: input should be a valid integer, got '3'", json=chat(n="3")),
    Case("many prompts", 400, "asks for 100 replies", json=completion(["x"] * 100), path=COMPLETIONS),
    Case("max_tokens below 0", 400, "max_tokens: input should be greater than or equal to 0", json=chat(max_tokens=-1)),
    Case("max_tokens that is huge", 400, "max_tokens", json=chat(max_tokens=10**30)),
    Case("min above max", 400, "min_tokens=9 is above max_tokens=4", json=chat(min_tokens=9)),
    Case("temperature below 0", 400, "temperature: input should be greater", json=chat(temperature=-1)),
    Case(
        "temperature NaN",
        400,
        "the body is not JSON",
        options={
            "content": b'{"model": "base", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
            "headers": JSON,
        },
    ),
    Case("top_p 0", 400, "top_p: input should be greater than 0", json=chat(top_p=0)),
    Case("top_logprobs 1000", 400, "top_logprobs: input should be less", json=chat(logprobs=True, top_logprobs=1000)),
    Case("a seed beyond 64 bits", 400, "seed: input should be less", json=chat(seed=2**70)),
    Case("logit_bias of text", 400, "logit_bias", json=chat(logit_bias={"5": "much"})),
    Case("stop of numbers", 400, "stop: ", json=chat(stop=[1, 2])),
    Case("a token id below 0", 400, "stop_token_ids[0]: input should be greater", json=chat(stop_token_ids=[-1])),
    Case("stream_options of text", 400, "stream_options", json=chat(stream=True, stream_options="all")),
    Case(
        "plain prompt without text",
        400,
        'prompt_mode "plain" puts one text',
        json=chat(part(), prompt_mode="plain") | {"messages": [{"role": "user", "content": [VIDEO]}]},
    ),
    Case("no prompt", 400, "prompt is required", json={"model": "base"}, path=COMPLETIONS),
    Case("an empty prompt", 400, "prompt: ", json=completion(""), path=COMPLETIONS),
    Case(
        "embeddings as a prompt", 400, "prompt_embeds is not taken", json=completion(prompt_embeds="AAAA"), path=COMPLETIONS
    ),
    Case("a GET of chat", 405, "this path takes POST", path=CHAT, method="GET"),
    Case("a POST of models", 405, "this path takes GET", json={}, path="/v1/models"),
    Case("a model that is not there", 404, "there is no model 'x'", path="/v1/models/x", method="GET"),
] + [
    Case(f"no {path}", 404, "there is nothing at", json={"model": "base", "prompt": "x", "input": "x"}, path=path)
    for path in (
        "/v1/responses",
        "/v1/chat/completions/batch",
        "/invocations",
        "/tokenize",
        "/scale_elastic_ep",
        "/v1/embeddings",
        "/",
    )
]
READS = [
    Case("health", 200, path="/health", method="GET"),
    Case("ready", 200, path="/ready", method="GET"),
    Case("metrics", 200, path="/metrics", method="GET"),
    Case("models", 200, path="/v1/models", method="GET"),
    Case("a model", 200, path="/v1/models/base", method="GET"),
    Case("openapi", 200, path="/openapi.json", method="GET"),
]


def sent(case: Case) -> dict[str, Any]:
    """Keyword arguments of httpx's `request`."""
    return {
        "method": case.method,
        "url": case.path,
        **({"json": case.json} if case.json is not None else {}),
        **case.options,
    }


def check_reply(case: Case, reply: Any) -> None:
    """The status, and of an error the sentence, its id and nothing of the endpoint's insides."""
    assert reply.status_code == case.status, (case.name, reply.status_code, reply.text[:500])
    assert re.fullmatch(r"[0-9a-f-]{32,36}", reply.headers["x-request-id"]), (case.name, "one id")
    if case.status == 200:
        return
    error = reply.json()["error"]
    assert case.says in error["message"], (case.name, error["message"])
    assert error["request_id"] == reply.headers["x-request-id"], case.name
    assert set(error) == {"message", "type", "param", "code", "request_id"}, case.name
    for inside in ("\n", "Traceback", 'File "', ".py", "site-packages", "pydantic"):
        assert inside not in error["message"], (case.name, error["message"])
