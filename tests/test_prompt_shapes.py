"""Prompts of every shape: the same chat messages, and the same token ids, in rollouts, training and at the endpoint."""

from __future__ import annotations

import base64
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import write_video

from pipelines.media_urls import in_noise, media_url, messages
from serving.video_loader import NAME, media_io_kwargs
from vidalign import prompts
from vidalign.config.run import ModelConfig
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import TrainingGroup, TrainingResponse, pair_group, truth_group
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED, Batch, collate
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import cached_processor, prompt_ids, render_prompt, response_ids
from vidalign.recipes.engine import Request
from vidalign.records import Context, Turn
from vidalign.types import Example, FrameSpec, PreferencePair
from vidalign.video import visuals
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import FrameCache
from vidalign.video.naming import Visual, name_of
from vidalign.video.scene import Shown, changed, scene_of, shown, without_conversation

SPEC = FrameSpec(num_frames=4, height=56, width=56)
TURNS = (Turn(role="user", content="What moves?"), Turn(role="assistant", content="A circle."))
QUESTION = "Which way?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Two videos of 2 s, a folder of 8 frames, and an image."""
    folder = tmp_path_factory.mktemp("media")
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", list(draw.integers(0, 256, (8, 56, 56, 3), np.uint8)), fps=4)
    (folder / "frames").mkdir()
    for number in range(8):
        pixels = draw.integers(0, 256, (56, 56, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "frames" / f"{number}.png")
    PIL.Image.fromarray(draw.integers(0, 256, (84, 56, 3), np.uint8)).save(folder / "i.png")
    return folder


@pytest.fixture(scope="module")
def shapes(folder) -> dict[str, tuple[Context, str]]:
    """(context, question) of one prompt of each shape."""
    a, b = str(folder / "a.mp4"), str(folder / "b.mp4")
    part = f"{(folder / 'a.mp4').as_uri()}#t=0.5,1.5"
    frames = name_of(Visual(kind="folder", uris=((folder / "frames").as_uri(),), fps=4))
    listed = name_of(Visual(kind="list", uris=tuple((folder / "frames" / f"{n}.png").as_uri() for n in (5, 1, 3)), fps=2))
    image = f"{(folder / 'i.png').as_uri()}#image"
    return {
        "plain": (Context(videos=(a,)), QUESTION),
        "turns": (Context(videos=(a,), system="Answer in one word.", turns=TURNS), QUESTION),
        "two videos": (Context(videos=(a, b)), "Is <video> before <video>?"),
        "images": (Context(videos=(a,), images=(image, image)), QUESTION),
        "image alone": (Context(videos=(), images=(image,)), QUESTION),
        "part": (Context(videos=(part,)), QUESTION),
        "frames": (Context(videos=(frames,)), QUESTION),
        "everything": (
            Context(
                videos=(listed, part),
                images=(image,),
                system="Brief.",
                turns=(
                    Turn(role="user", content="See <image> and <video>."),
                    Turn(role="assistant", content="Yes: <video>."),
                ),
            ),
            "And <video>?",
        ),
    }


def scene(context: Context) -> Shown:
    return shown(context, tuple(visuals.decode(name, SPEC) for name in context.visuals))


NAMES = ("plain", "turns", "two videos", "images", "image alone", "part", "frames", "everything")


# Messages


def test_one_video_is_asked_as_ever():
    assert prompts.chat("Q?") == [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Q?"}]}]
    assert prompts.chat("", Context(videos=("v",)))[0]["content"] == [{"type": "video"}, {"type": "text", "text": ""}]


def kinds(message: dict[str, Any]) -> list[str]:
    return [part.get("text", part["type"]) for part in message["content"]]


def test_messages_of_a_conversation():
    context = Context(videos=("a", "b"), images=("i",), system="Brief.", turns=TURNS)
    system, first, reply, last = prompts.chat("Which?", context)
    assert [message["role"] for message in (system, first, reply, last)] == ["system", "user", "assistant", "user"]
    assert kinds(system) == ["Brief."]
    assert kinds(first) == ["video", "video", "image", "What moves?"]
    assert (kinds(reply), kinds(last)) == (["A circle."], ["Which?"])


def test_places_say_where_videos_and_images_stand():
    context = Context(videos=("a", "b"), images=("i",))
    filled = prompts.fill(prompts.HINT, question="<image>Is <video> before <video>?", answer="<video>")
    assert kinds(prompts.chat(filled, context)[0]) == ["image", "Is ", "video", " before ", "video", "?\nHint: <video>"]
    assert "<video>" not in prompts.fill("{question}", question="<video>"), "only what the question says is a place"
    turns = (Turn(role="user", content="See <video>."), Turn(role="assistant", content="<video>"))
    asked = Context(videos=("a", "b"), turns=turns)
    first, reply, last = prompts.chat(prompts.fill("{question}", question="And <video>?"), asked)
    assert (kinds(first), kinds(reply), kinds(last)) == (["See ", "video", "."], ["<video>"], ["And ", "video", "?"])
    assert kinds(prompts.chat("Describe.", asked)[-1]) == ["video", "Describe."], "a prompt that does not quote the question"


def test_a_quoted_reply_with_a_tag_is_text():
    filled = prompts.fill(prompts.REFLECT, question="Q?", answer="a", previous="<video>")
    assert kinds(prompts.chat(filled, Context(videos=("v",)))[0])[0] == "video"
    assert "Earlier reply: <video>" in kinds(prompts.chat(filled, Context(videos=("v",)))[0])[1]


def test_a_judge_reads_the_conversation():
    example = Example(id="a", video="v", question="Which?", answer="left", turns=TURNS)
    assert prompts.conversation(example) == "User: What moves?\nAssistant: A circle.\nUser: Which?"
    assert prompts.conversation(Example(id="a", video="v", question="Which?", answer="left")) == "Which?"


# Token ids


@pytest.mark.parametrize("name", NAMES)
def test_training_has_the_ids_of_rollouts(shapes, model_path, name):
    context, question = shapes[name]
    processor = cached_processor(model_path)
    text = prompts.fill(prompts.PLAIN, question=question)
    rendered = render_prompt(processor, text, scene(context))
    unexpanded = prompt_ids(processor, text, context=context)
    places = {processor.video_token_id, processor.image_token_id}
    ids = rendered.tokens["input_ids"].tolist()
    once = [token for at, token in enumerate(ids) if token not in places or token != (ids[at - 1] if at else None)]
    assert once == unexpanded
    assert [token for token in unexpanded if token in places] == [
        {"video": processor.video_token_id, "image": processor.image_token_id}[part["type"]]
        for message in prompts.chat(text, context)
        for part in message["content"]
        if part["type"] != "text"
    ]
    assert len(rendered.vision.get("video_grid_thw", ())) == len(context.videos)
    assert len(rendered.vision.get("image_grid_thw", ())) == len(context.images)


def test_the_order_of_videos_is_that_of_their_pixels(shapes, model_path):
    processor = cached_processor(model_path)
    context, _ = shapes["two videos"]
    both = scene_of(scene(context))
    alone = [render_prompt(processor, QUESTION, clip).vision["pixel_values_videos"] for clip in both.clips]
    together = render_prompt(processor, QUESTION, both).vision["pixel_values_videos"]
    assert torch.equal(together, torch.cat(alone))


def source(folder: pathlib.Path, shapes: dict[str, tuple[Context, str]], model_path: str) -> BatchSource:
    cache = FrameCache(folder / "cache")
    names = {name for context, _ in shapes.values() for name in context.visuals}
    frames = {}
    for name in names:
        with visuals.opened(name) as local:
            frames[name] = str(cache.put(local.content_hash(), SPEC, local.decode(SPEC)))
    processor = cached_processor(model_path)
    return BatchSource(frames=frames, processor=processor, plain_prompt=prompts.PLAIN, max_model_len=512)


def group_of(name: str, context: Context, question: str) -> TrainingGroup:
    sides = (("chosen", "left"), ("rejected", "to the right"))
    responses = tuple(TrainingResponse(group=name, role=role, text=text) for role, text in sides)
    return TrainingGroup(id=name, video="", question=question, responses=responses, context=context)


def test_a_batch_may_mix_shapes_and_learns_only_from_the_last_reply(folder, shapes, model_path):
    made = source(folder, shapes, model_path)
    groups = [group_of(name, *shape) for name, shape in shapes.items()]
    batch = made.batch(groups)
    for row, group in enumerate(groups):
        learnt = batch.labels[row][batch.labels[row] >= 0].tolist()
        assert learnt == response_ids(made.processor, "left"), group.id
    config = ModelConfig(path=model_path, dtype="float32")
    scorer = ResponseScorer(load_policy(config)).eval()
    alone = [logps_of(scorer, made.batch([group])) for group in groups]  # of each group, those of chosen and rejected
    policy = load_policy(config)
    tight = dataclasses.replace(made, number=shared_prefix.numbering(policy), _kept={}).batch(groups)
    for found in (logps_of(scorer, batch), logps_of(ResponseScorer(policy, packed=True).eval(), tight)):
        for index, group in enumerate(groups):
            for side in (0, 1):
                torch.testing.assert_close(
                    found[index + side * len(groups)], alone[index][side], atol=2e-5, rtol=0, msg=group.id
                )


def logps_of(scorer: ResponseScorer, batch: Batch) -> list[torch.Tensor]:
    with torch.inference_mode():
        logps, *_ = scorer(batch.inputs, batch.labels, None, batch.sources)
    return [row[labels != IGNORED] for row, labels in zip(logps, batch.labels, strict=True)]


def test_groups_carry_the_context_of_their_example_and_pair():
    shown_in = {"video": "a", "videos": ("a", "b"), "images": ("i",), "system": "Brief.", "turns": TURNS}
    example = Example(id="e", question=QUESTION, answer="left", **shown_in)
    pair = PreferencePair(id="p", example_id="e", question=QUESTION, answer="left", chosen="x", rejected="y", **shown_in)
    assert truth_group(example).context == pair_group(pair).context == example.context
    plain = Example(id="e", video="a", question=QUESTION, answer="left")
    assert truth_group(plain).context == Context(videos=("a",))


# Scenes


def test_scenes_change_every_clip_and_lose_only_their_conversation(shapes):
    context, _ = shapes["everything"]
    whole = scene(context)
    seen: list[Clip] = []
    assert changed(whole, lambda clip: seen.append(clip) or clip).clips == whole.clips == tuple(seen)  # type: ignore[union-attr, func-returns-value]
    alone = scene_of(without_conversation(whole)).context
    assert (alone.visuals, alone.system, alone.turns) == (context.visuals, "", ())
    clip = scene(shapes["plain"][0])
    assert isinstance(clip, Clip)
    assert without_conversation(clip) is clip


# Urls


def test_urls_below_the_media_root_are_read_there_and_others_are_sent(folder, shapes, tmp_path):
    names = [name for context, _ in shapes.values() for name in context.visuals]
    below = [media_url(name, str(folder)) for name in dict.fromkeys(names)]
    assert below[:1] == [(folder / "a.mp4").as_uri()]
    assert f"{(folder / 'a.mp4').as_uri()}#t=0.5,1.5" in below
    assert f"{(folder / 'frames').as_uri()}#fps=4" in below
    assert (folder / "i.png").as_uri() in below
    [sent] = [url for url in below if url.startswith("data:")]
    assert sent.startswith("data:video/jpeg;base64,")
    assert sent.endswith("#fps=2")
    first = base64.b64decode(sent.removeprefix("data:video/jpeg;base64,").partition(",")[0])
    assert first == (folder / "frames" / "5.png").read_bytes()
    beyond = [media_url(name, str(tmp_path)) for name in dict.fromkeys(names)]
    assert all(url.startswith("data:") for url in beyond)
    assert [url.partition("#")[2] for url in beyond] == [url.partition("#")[2] for url in below]


@pytest.mark.parametrize("name", NAMES)
def test_the_endpoint_is_sent_the_messages_of_training(folder, shapes, name):
    context, question = shapes[name]
    text = prompts.fill(prompts.PLAIN, question=question)
    sent = messages(text, context, str(folder))
    asked = prompts.chat(text, context)
    urls = [part[part["type"]]["url"] for message in sent for part in message["content"] if part["type"].endswith("_url")]
    assert [
        {
            **message,
            "content": [p if p["type"] == "text" else {"type": p["type"].removesuffix("_url")} for p in message["content"]],
        }
        for message in sent
    ] == asked
    assert sorted(urls) == sorted(media_url(name, str(folder)) for name in context.visuals)


def test_noise_takes_the_place_of_everything_that_is_shown(shapes, tmp_path):
    context, _ = shapes["everything"]
    noise = in_noise("e", context, tmp_path)
    assert (len(noise.videos), len(noise.images), noise.turns) == (2, 1, context.turns)
    assert noise.videos[0] != noise.videos[1]
    assert visuals.decode(noise.images[0], SPEC).frames.shape == (1, 56, 56, 3)


# vLLM


@pytest.fixture(scope="module")
def engine(folder, model_path):
    """In this process, with the endpoint's way to read urls; what it sets in the environment must not reach later tests."""
    import vllm.envs

    from actors.engine import VllmEngine

    before = dict(os.environ)
    os.environ["VLLM_MEDIA_CONNECTOR"] = NAME
    vllm.envs.disable_envs_cache()  # the first engine of a process makes vLLM keep the variables as they are then
    options = {"media_io_kwargs": media_io_kwargs(SPEC), "allowed_local_media_path": str(folder)}
    config = ModelConfig(path=model_path, dtype="float32", max_model_len=512)
    yield VllmEngine(config, model_path, num_gpus=0, seed=0, engine_args=options, limits={"video": 2, "image": 2})
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.heavy
def test_rollouts_training_and_the_endpoint_see_the_same(engine, folder, shapes, model_path):
    """Equal token ids and, which tells the pixels apart, equal log-probs."""
    import vllm

    other = (Context(videos=(f"{(folder / 'a.mp4').as_uri()}#t=1,2",)), QUESTION)
    asked = {**shapes, "other part": other}
    config = ModelConfig(path=model_path, dtype="float32")
    scorer, processor = ResponseScorer(load_policy(config)).eval(), cached_processor(model_path)
    params = vllm.SamplingParams(max_tokens=6, temperature=0.0, logprobs=0)
    for name, (context, question) in asked.items():
        text = prompts.fill(prompts.PLAIN, question=question)
        what = scene(context)
        rendered = render_prompt(processor, text, what)
        request = Request(prompt=text, clip=what, seed=0, temperature=0.0, top_p=1.0, max_new_tokens=6)
        [completion] = engine.generate([request])
        for root in (str(folder), None):
            [output] = engine.llm.chat(messages(text, context, root), params, use_tqdm=False)
            assert output.prompt_token_ids == rendered.tokens["input_ids"].tolist(), name
            reply = output.outputs[0]
            served = [step[token].logprob for token, step in zip(reply.token_ids, reply.logprobs, strict=True)]
            assert tuple(reply.token_ids) == completion.token_ids, name
            np.testing.assert_allclose(served, completion.log_probs, atol=1e-4, err_msg=name)
        [scored] = engine.score([(text, what, "left")])
        [expected] = logps_of(scorer, collate([(rendered, response_ids(processor, "left"))], pad_id=0))
        np.testing.assert_allclose(scored, expected, atol=1.5e-3, err_msg=name)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{folder}/a.mp4#t=5,6", r"video cannot be used \(out_of_bounds\)"),
        ("{folder}/a.mp4#fps=2", r"video cannot be used \(unreadable\): .*a\.mp4 is not a folder"),
        ("{folder}/frames", r"video cannot be used \(unreadable\): .*frames is not a file"),
        ("{folder}/../..#fps=2", "below the endpoint's media root"),
        ("data:video/mp4;base64,AAAA#fps=2", "a list of frames"),
        ("data:video/jpeg;base64,AAAA,AAAA#fps=2", r"video cannot be used \(not_an_image\): frame 0 is no image"),
    ],
)
def test_the_endpoint_refuses_what_is_no_part_or_frames(folder, url, message):
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    media = MEDIA_CONNECTOR_REGISTRY.load(NAME, media_io_kwargs=media_io_kwargs(SPEC), allowed_local_media_path=str(folder))
    with pytest.raises(ValueError, match=message):
        media.fetch_video(url.format(folder=folder.as_uri()))


def test_a_reply_that_holds_a_reserved_character_forges_no_place_of_a_video():
    text = prompts.fill("{question}\nEarlier: {previous}", question="Which?", previous="left\ufdd0")
    [message] = prompts.chat(text)
    assert [part["type"] for part in message["content"]] == ["video", "text"]
