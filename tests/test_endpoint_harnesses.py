"""Evaluation harnesses ask an endpoint as they are: their own requests, in front of a stub of vLLM; and any request of its OpenAPI."""

import asyncio
import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT
from contract_table import CHAT, COMPLETIONS
from endpoint_stub import MODES, SPEC, StubEngine, application, client

MODEL = "base"
IMAGE = "data:image/jpeg;base64,AAAA"


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def ask(path, body, **served):
    """The reply to a request, and what the engine got."""

    async def asking():
        engine = StubEngine()
        async with client(application(MODES[0], engine, **served)) as made:
            reply = await made.post(path, json=body)
            return reply, engine.asked[-1] if engine.asked else None

    return run(asking())


@pytest.fixture
def lmms_messages(monkeypatch):
    """lmms-eval's own builder of messages, in which decoding is replaced by four frames."""
    torch = pytest.importorskip("torch")
    from lmms_eval import protocol

    frames, facts = torch.zeros(4, 3, 28, 28), {"frames_indices": [0, 8, 16, 24], "fps": 8.0}
    monkeypatch.setattr(protocol, "fetch_video", lambda video, **options: ((frames, facts), 2.0) if options else frames)
    content = [{"type": "video", "url": "/films/clip one#2 50%.mp4"}, {"type": "text", "text": "Which way?"}]
    return protocol.ChatMessages(messages=[{"role": "user", "content": content}])


def test_lmms_evals_frames_are_one_video(lmms_messages):
    """The messages of its `openai` and `async_openai` models, which send a frame as an image."""
    body = {
        "messages": lmms_messages.to_openai_messages({"nframes": 4}),
        "model": MODEL,
        "max_tokens": 16_384,
        "temperature": 0,
    }
    assert len(body["messages"][0]["content"]) == 5
    reply, got = ask(CHAT, body, frames_fps=2.0)
    assert reply.status_code == 200, reply.text
    video, question = got["messages"][0]["content"]
    assert video["video_url"]["url"].startswith("data:video/jpeg;base64,")
    assert video["video_url"]["url"].endswith("#fps=2")
    assert video["video_url"]["url"].count(",") == 4
    assert question == {"type": "text", "text": "Which way?"}
    refused, _ = ask(CHAT, body)
    assert "serve.media.frames_fps takes a run of images as the frames of one video" in refused.json()["error"]["message"]


def test_lmms_evals_frames_with_their_times(lmms_messages):
    """Those of `is_qwen3_vl=True`."""
    messages = lmms_messages.to_qwen3_vl_openai_messages({"nframes": 4})
    assert {"type": "text", "text": "<1.0 seconds>"} in messages[0]["content"]
    _, got = ask(CHAT, {"messages": messages, "model": MODEL}, frames_fps=2.0)
    assert [part["type"] for part in got["messages"][0]["content"]] == ["video_url", "text"]


@pytest.mark.parametrize(
    ("policy", "num_frames", "status"), [("refuse", 8, 400), ("same", 8, 200), ("same", 32, 400), ("allow", 32, 200)]
)
def test_lmms_evals_videos_by_url(lmms_messages, policy, num_frames, status):
    """Those of `openai` with pass_video_url=True, which always says how many frames it wants."""
    body = {
        "messages": lmms_messages.to_openai_messages({"nframes": num_frames}, pass_video_url=True),
        "model": MODEL,
        "max_tokens": 1024,
        "temperature": 0,
        "media_io_kwargs": {"video": {"num_frames": num_frames}},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    reply, got = ask(CHAT, body, client_sampling=policy)
    assert reply.status_code == status, reply.text
    if status == 200:
        assert got["messages"][0]["content"][0]["video_url"]["url"] == "file:///films/clip one#2 50%.mp4"
        assert json.loads(reply.headers["x-frame-spec"]) == {**SPEC.to_row(), "num_frames": num_frames}


def user(content):
    return [{"role": "user", "content": content}]


OTHERS = {
    # vlmeval/api/gpt.py, OpenAIWrapper.prepare_inputs and generate_inner
    "VLMEvalKit": (
        CHAT,
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You are helpful."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Frames:"},
                        *([{"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}] * 3),
                        {"type": "text", "text": "Which way?"},
                    ],
                },
            ],
            "n": 1,
            "temperature": 0,
            "max_tokens": 16_384,
        },
    ),
    # vlmeval/api/lmdeploy.py
    "VLMEvalKit, videos": (
        CHAT,
        {
            "model": MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
                        {"type": "text", "text": "?"},
                    ],
                }
            ],
            "n": 1,
            "temperature": 0.0,
            "max_tokens": 1024,
        },
    ),
    # lm_eval/models/openai_completions.py, LocalCompletionsAPI._create_payload: log-likelihoods, then generation
    "lm-evaluation-harness, log-likelihood": (
        COMPLETIONS,
        {
            "prompt": [[5, 6, 7], [8, 9]],
            "model": MODEL,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
            "temperature": 0,
        },
    ),
    "lm-evaluation-harness, generation": (
        COMPLETIONS,
        {
            "prompt": ["Which way?"],
            "model": MODEL,
            "max_tokens": 256,
            "temperature": 0,
            "stop": ["\n\n", "Question:"],
            "seed": 1234,
        },
    ),
    "lm-evaluation-harness, chat": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "?"}],
            "model": MODEL,
            "max_tokens": 256,
            "temperature": 0,
            "stop": ["</s>"],
            "seed": 1234,
        },
    ),
    # simple-evals/sampler/chat_completion_sampler.py
    "simple-evals": (
        CHAT,
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}],
            "temperature": 0.5,
            "max_tokens": 1024,
        },
    ),
    "several replies at temperature 0": (
        CHAT,
        {"model": MODEL, "messages": user("?"), "n": 4, "temperature": 0},
    ),
    "a JSON schema": (
        CHAT,
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "?"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_requests_of_other_harnesses(name):
    path, body = OTHERS[name]
    reply, _ = ask(path, body, frames_fps=1.0)
    assert reply.status_code == 200, reply.text


@pytest.mark.heavy
def test_any_request_of_the_openapi_is_answered_as_it_says():
    """In a process of its own: schemathesis brings werkzeug's proxies, and vLLM looks at what every module holds."""
    script = ROOT / "tests" / "any_request.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "7 operations"  # all but the document's own


def test_images_of_lmms_eval_are_images_where_the_endpoint_takes_them():
    from lmms_eval import protocol

    picture = PIL.Image.fromarray(np.zeros((28, 28, 3), np.uint8))
    content = [{"type": "image", "url": picture}, {"type": "text", "text": "What is it?"}]
    messages = protocol.ChatMessages(messages=[{"role": "user", "content": content}]).to_openai_messages()
    reply, got = ask(CHAT, {"model": MODEL, "messages": messages}, media={"video": 1, "image": 1}, frames_fps=1.0)
    assert reply.status_code == 200
    assert got["messages"] == messages
