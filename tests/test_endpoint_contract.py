"""One table of requests and answers for an endpoint with one policy and one with several; here in front of a stub of vLLM."""

import asyncio
import json

import pytest
from contract_table import ANSWERED, CHAT, MISTAKES, READS, VIDEO, Case, chat, check_reply, completion, sent
from endpoint_stub import MODES, SPEC, StubEngine, application, client

from serving.replies import refusal_of

both = pytest.mark.parametrize("mode", MODES)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


@both
def test_every_case_of_the_table(mode):
    async def ask():
        engine = StubEngine()
        async with client(application(mode, engine)) as asking:
            for case in [*ANSWERED, *READS]:
                check_reply(case, await asking.request(**sent(case)))
            answered = len(engine.asked)
            for case in MISTAKES:
                check_reply(case, await asking.request(**sent(case)))
            assert len(engine.asked) == answered == len(ANSWERED), "a mistake never reaches the engine"

    run(ask())


@both
@pytest.mark.parametrize(
    ("user", "status", "says"),
    [
        ("400", 400, "this is wrong"),
        ("500", 500, "the endpoint failed on this request"),
        ("bug", 500, "the endpoint failed on this request"),
        ("dies", 503, "the engine of base ended while it worked on this request"),
    ],
)
def test_what_an_engine_says_of_its_errors_is_one_sentence_without_insides(mode, user, status, says, caplog):
    async def ask():
        async with client(application(mode, StubEngine())) as asking:
            reply = await asking.post(CHAT, json=chat(user=user))
            assert reply.status_code == status
            error = reply.json()["error"]
            assert error["message"].startswith(says)
            assert "secret" not in reply.text
            assert error["request_id"] == reply.headers["x-request-id"]
            assert ("secret.py" in caplog.text) == (status == 500), "the log says what the reply does not"

    run(ask())


FORM = {"structured_outputs": {"grammar": "root ::= root"}}
NO_REPLY = "no reply can be written in the form that is asked for"


@both
@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"user": "gives up"} | FORM, 400, NO_REPLY),
        ({"user": "gives up"}, 500, "the endpoint failed on this request"),
        ({"user": "bug"} | FORM, 500, "the endpoint failed on this request"),
        ({"user": "refused", "stream": True} | FORM, 400, "this regex is none"),
        ({"user": "gave up", "stream": True} | FORM, 400, NO_REPLY),
        ({"user": "gave up", "stream": True}, 500, "the endpoint failed on this request"),
    ],
)
def test_a_form_that_leads_nowhere_is_the_clients_mistake_streamed_or_not(mode, fields, status, says):
    async def ask():
        async with client(application(mode, StubEngine())) as asking:
            reply = await asking.post(CHAT, json=chat(**fields))
            check_reply(Case("form", status, says), reply)
            assert reply.json()["error"]["message"].startswith(says)

    run(ask())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b'{"error": {"message": "' + b"token_id(s) [1, " * 9000, "token_id(s) [1, "),
        (
            b'{"error": {"message": "Failed to apply Qwen2_5_VLProcessor on data={\'images\': [<PIL.Image>]}"}}',
            "the model's processor cannot use this video or image",
        ),
        (b'{"error": "a text"}', "a text"),
    ],
)
def test_what_vllm_says_is_shown_without_its_insides(said, shown):
    message = refusal_of(400, said).message
    assert message.startswith(shown)
    assert len(message) < 700


@both
def test_an_engine_that_is_down_is_said_at_once_and_everywhere(mode):
    async def ask():
        engine = StubEngine()
        async with client(application(mode, engine)) as asking:
            assert (await asking.post(CHAT, json=chat(user="dies"))).json()["error"]["code"] == "engine_died"
            reply = await asking.post(CHAT, json=chat())
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "10")
            assert reply.json()["error"]["code"] == "engine_restarting"
            for path in ("/health", "/ready"):
                assert (await asking.get(path)).status_code == 503
            assert 'vidalign_model_up{model="base"} 0.0' in (await asking.get("/metrics")).text
            engine.works = True
            async with asyncio.timeout(5):
                while (await asking.get("/health")).status_code != 200:
                    await asyncio.sleep(0.05)
            assert (await asking.post(CHAT, json=chat())).status_code == 200

    run(ask())


@both
def test_a_request_has_the_id_that_serve_gave_it_and_the_engine_one_of_its_own(mode):
    async def ask():
        engine, given = StubEngine(), "0b0e7a0e-6f4e-4b0c-9d56-3a1f0a9e2c11"
        async with client(application(mode, engine), **{"x-request-id": given}) as asking:
            replies = [await asking.post(CHAT, json=chat()) for _ in range(2)]
            assert all("x-request-id" not in reply.headers for reply in replies), "Serve adds it"
            assert (await asking.post(CHAT, json=[1])).json()["error"]["request_id"] == given
        ids = [dict(scope["headers"])[b"x-request-id"].decode() for scope in engine.scopes]
        assert len(set(ids)) == 2
        assert all(each.startswith(given) for each in ids)

    run(ask())


@both
def test_what_the_engine_gets(mode):
    async def ask():
        engine = StubEngine()
        async with client(application(mode, engine), **{"x-request-id": "mine"}) as asking:
            reply = await asking.post(CHAT, json=chat(max_tokens=16_384, top_p=None))
            assert engine.asked[-1]["max_tokens"] == 512
            assert reply.headers["x-max-tokens"] == "512"
            assert reply.headers["x-policy-version"] == "v-base"
            assert reply.headers["x-request-id"] != "mine", "two clients may choose the same id"
            engines = dict(engine.scopes[-1]["headers"])[b"x-request-id"].decode()
            assert engines.startswith(reply.headers["x-request-id"])
            assert "top_p" not in engine.asked[-1]
            reply = await asking.post(CHAT, json=chat(n=2, temperature=0))
            assert {name: engine.asked[-1][name] for name in ("n", "temperature", "top_k")} == {
                "n": 2,
                "temperature": 1,
                "top_k": 1,
            }
            assert "x-max-tokens" not in reply.headers
            reply = await asking.post(CHAT, json=chat([VIDEO, {"type": "text", "text": "Which way?"}]))
            assert json.loads(reply.headers["x-frame-spec"]) == SPEC.to_row()

    run(ask())


@both
def test_the_prompt_of_training_is_applied_where_it_is_asked_for(mode):
    async def ask():
        engine = StubEngine()
        async with client(application(mode, engine, plain_prompt="Watch. {question} Be brief.")) as asking:
            card = (await asking.get("/v1/models/base")).json()
            assert card["metadata"]["plain_prompt"] == "Watch. {question} Be brief."
            for content in ("Which {way}?", [VIDEO, {"type": "text", "text": "Which {way}?"}]):
                await asking.post(CHAT, json=chat(content, prompt_mode="plain"))
                got = engine.asked[-1]["messages"][0]["content"]
                assert (got if isinstance(got, str) else got[1]["text"]) == "Watch. Which {way}? Be brief."
                assert "prompt_mode" not in engine.asked[-1]

    run(ask())


@pytest.mark.parametrize(
    ("policy", "given", "status", "spec"),
    [
        ("same", {"num_frames": 8}, 200, SPEC.to_row()),
        ("same", {"media_io_kwargs": {"video": {"num_frames": 8, "fps": -1}}}, 200, SPEC.to_row()),
        ("same", {"num_frames": 4}, 400, "num_frames=4 is another sampling"),
        ("allow", {"num_frames": 4}, 200, {**SPEC.to_row(), "num_frames": 4}),
        ("allow", {"mm_processor_kwargs": {"fps": 2}}, 200, {**SPEC.to_row(), "num_frames": None, "fps": 2}),
        ("allow", {"media_io_kwargs": {"video": {"num_frames": 900}}}, 400, "above this endpoint's video.max_frames=128"),
        (
            "allow",
            {"media_io_kwargs": {"video": {"video_backend": "x"}}},
            400,
            "only fps and num_frames are taken, got video_backend",
        ),
        ("allow", {"num_frames": 4, "fps": 1.0}, 400, "only one can be given"),
        ("allow", {"media_io_kwargs": {"video": {"num_frames": "4"}}}, 400, "num_frames must be a number above 0"),
    ],
)
def test_sampling_of_ones_own(policy, given, status, spec):
    async def ask():
        engine = StubEngine()
        async with client(application(MODES[0], engine, client_sampling=policy)) as asking:
            reply = await asking.post(CHAT, json=chat([VIDEO, {"type": "text", "text": "?"}], **given))
            assert reply.status_code == status, reply.text
            if status == 400:
                assert spec in reply.json()["error"]["message"]
                return
            assert json.loads(reply.headers["x-frame-spec"]) == spec
            assert not {"fps", "num_frames", "mm_processor_kwargs"} & set(engine.asked[-1])
            assert ("media_io_kwargs" in engine.asked[-1]) == (spec != SPEC.to_row())

    run(ask())


def test_a_run_of_images_is_one_video_where_that_is_set():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    text = {"type": "text", "text": "?"}

    async def ask():
        engine = StubEngine()
        async with client(application(MODES[0], engine, frames_fps=2.0)) as asking:
            assert (await asking.post(CHAT, json=chat([image, image, image, text]))).status_code == 200
            video, rest = engine.asked[-1]["messages"][0]["content"]
            assert video == {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,AAAA,AAAA#fps=2"}}
            assert rest == text
            far = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
            reply = await asking.post(CHAT, json=chat([image, far, text]))
            assert (
                "are sent as data:image/…;base64 urls, got 'https://example.org/a.png'" in reply.json()["error"]["message"]
            )

    run(ask())


@both
def test_models_are_listed_with_what_they_were_trained_with(mode):
    async def ask():
        async with client(application(mode, StubEngine())) as asking:
            cards = {card["id"]: card["metadata"] for card in (await asking.get("/v1/models")).json()["data"]}
            assert list(cards) == (["base"] if mode == MODES[0] else ["base", "aligned"])
            assert cards["base"] == {
                "policy_version": "v-base",
                "parent": "p",
                "frame_spec": SPEC.to_row(),
                "plain_prompt": "{question}",
                "max_model_len": 512,
                "client_sampling": "refuse",
            }

    run(ask())


@both
def test_streams(mode):
    async def ask():
        async with client(application(mode, StubEngine())) as asking:
            reply = await asking.post(CHAT, json=chat(stream=True))
            assert reply.text == 'data: {"text": "It"}\n\ndata: {"text": "moves"}\n\ndata: [DONE]\n\n'
            assert reply.headers["x-policy-version"] == "v-base"
            broken = await asking.post(CHAT, json=chat(stream=True, user="breaks"))
            last = broken.text.split("\n\n")[-3].removeprefix("data: ")
            assert json.loads(last)["error"]["request_id"] == broken.headers["x-request-id"]
            assert "secret" not in broken.text

    run(ask())


def test_only_one_model_need_not_be_named():
    async def ask():
        body = completion()
        del body["model"]
        for mode, status in zip(MODES, (200, 400), strict=True):
            async with client(application(mode, StubEngine())) as asking:
                reply = await asking.post("/v1/completions", json=body)
                assert reply.status_code == status
        assert "model is required, because this endpoint has several: base, aligned" in reply.text

    run(ask())
