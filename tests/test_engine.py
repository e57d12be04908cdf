"""vLLM and Hugging Face see the same prompt and say the same, from the same frames, in float32."""

import concurrent.futures
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import add_bos

from actors.engine import VllmEngine
from cluster.engines import CPU_BLOCK_SIZE
from vidalign.config.recipes import LeanpoRecipe
from vidalign.config.run import ModelConfig
from vidalign.errors import ModelError
from vidalign.model.batch import IGNORED, collate
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import load_processor, prompt_text, render_prompt, response_ids
from vidalign.recipes.engine import Request
from vidalign.recipes.leanpo import Leanpo
from vidalign.types import Example, FrameSpec
from vidalign.video.clip import Clip
from vidalign.video.decoding import decode

pytestmark = pytest.mark.heavy

TOLERANCE = 1.5e-3  # nats; the two use different attention kernels and batch shapes


@pytest.fixture(scope="module")
def rows(shapes):
    spec = FrameSpec(num_frames=8, height=56, width=56)
    examples = [json.loads(line) for line in (shapes / "heldout.jsonl").read_text().splitlines()[:6]]
    return [(row["question"], decode(shapes / row["video"], spec), row["answer"]) for row in examples]


@pytest.fixture(scope="module")
def config(model_path):
    return ModelConfig(path=model_path, dtype="float32", max_model_len=512)


@pytest.fixture(scope="module")
def engine(config):
    """In this process; what it sets in the environment must not reach the engines that later tests start."""
    before = dict(os.environ)
    yield VllmEngine(config, config.path, num_gpus=0, seed=0, engine_args={"disable_log_stats": False})
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def hugging_face(config):
    return load_policy(config).eval(), load_processor(config.path)


def greedy(question, clip, seed=0, **changes):
    settings = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 24, **changes}
    return Request(prompt=question, clip=clip, seed=seed, **settings)


def noise_clip(num_frames, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 56, 56, 3), np.uint8)
    return Clip(
        frames=frames, fps=8.0, total_num_frames=num_frames, duration_s=num_frames / 8, indices=tuple(range(num_frames))
    )


@pytest.fixture
def prompt_ids(engine, monkeypatch):
    """The prompts of all requests so far, as vLLM says it computed them."""
    computed = []
    run = engine._loop.run

    def recorded(*arguments):
        outputs = run(*arguments)
        computed.extend(list(output.prompt_token_ids) for output in outputs)
        return outputs

    monkeypatch.setattr(engine._loop, "run", recorded)
    return computed


def test_same_prompt_ids_same_greedy_answer_same_log_probs(rows, engine, prompt_ids, hugging_face):
    model, processor = hugging_face
    replies = engine.generate([greedy(question, clip) for question, clip, _ in rows])
    for (question, clip, _), reply, ids_of_prompt in zip(rows, replies, prompt_ids, strict=True):
        prompt = render_prompt(processor, question, clip)
        assert ids_of_prompt == prompt.tokens["input_ids"].tolist()
        batch = collate([(prompt, [])], pad_id=0)
        made = model.generate(
            **batch.inputs,
            max_new_tokens=24,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=processor.tokenizer.eos_token_id,
        )
        ids = made.sequences[0, prompt.length :].tolist()
        assert ids == list(reply.token_ids)
        logps = [logits[0].log_softmax(-1)[token].item() for token, logits in zip(ids, made.logits, strict=True)]
        np.testing.assert_allclose(reply.log_probs, logps, atol=TOLERANCE)


def test_scores_of_given_replies_are_those_that_training_computes(rows, engine, hugging_face):
    model, processor = hugging_face
    scores = engine.score(rows)
    scorer = ResponseScorer(model)
    for (question, clip, answer), score in zip(rows, scores, strict=True):
        ids = response_ids(processor, answer)
        batch = collate([(render_prompt(processor, question, clip), ids)], pad_id=0)
        with torch.no_grad():
            logps, *_ = scorer(batch.inputs, batch.labels)
        assert len(score) == len(ids)
        np.testing.assert_allclose(score, logps[batch.labels != IGNORED], atol=TOLERANCE)


def test_twelve_replies_to_a_video_are_scored_with_one_look_at_it(engine):
    """What comes from the cache is the prompt, never a token of a reply: also not where a reply or its beginning was seen before."""
    clip = noise_clip(32, 30)
    words = ["red", "blue", "green", "a circle", "moves", "left", "up", "down", "square", "no", "yes", "slowly"]
    long = "red circle moves left then up " * 8  # several blocks
    rows = [("What moves?", clip, f"{word} then {word}") for word in words]
    rows += [("What moves?", clip, long + "red"), ("What moves?", clip, long + "blue")]
    expected = []
    for row in rows:
        engine.reset_caches()
        expected += engine.score([row])
    engine.reset_caches()
    before = engine.counters()
    made = engine.score(rows[:12])
    spent = {name: value - before.get(name, 0) for name, value in engine.counters().items()}
    one = spent["vllm:prefix_cache_queries"] / 12
    assert spent["vllm:prefix_cache_hits"] >= 11 * 2 * CPU_BLOCK_SIZE, "of two blocks of video each, after the first"
    assert one > 2 * CPU_BLOCK_SIZE
    engine.generate([greedy("What moves?", clip, max_new_tokens=48)])
    made += engine.score(rows[12:])
    for row, found, alone in zip(rows, made, expected, strict=True):
        np.testing.assert_allclose(found, alone, atol=TOLERANCE, err_msg=row[2])
    again = engine.score(rows)
    for found, alone in zip(again, expected, strict=True):
        np.testing.assert_allclose(found, alone, atol=TOLERANCE)


def test_callers_in_threads_are_served_together(rows, engine):
    """As the generator asks: an example each, in threads of their own, and equal to asking for all at once."""
    requests = [greedy(question, clip, seed=seed, temperature=1.0) for seed in range(4) for question, clip, _ in rows]
    together = engine.generate(requests)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        apart = list(pool.map(lambda request: engine.generate([request])[0], requests))
        scores = list(pool.map(lambda row: engine.score([row])[0], rows))
    assert [reply.token_ids for reply in apart] == [reply.token_ids for reply in together]
    for found, score in zip(scores, engine.score(rows), strict=True):
        np.testing.assert_allclose(found, score, atol=TOLERANCE)
    taken = engine.take_seconds()
    assert taken["working"] > 0


def test_candidates_differ_and_a_seed_repeats_them(rows, engine):
    question, clip, _ = rows[0]

    def candidates(*seeds):
        return engine.generate([greedy("Describe the video.", clip, seed=seed, temperature=1.5) for seed in seeds])

    first, again, other = candidates(5, 6, 7, 8), candidates(5, 6, 7, 8), candidates(9, 10, 11, 12)
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert len({c.token_ids for c in first}) > 1
    assert [c.token_ids for c in first] != [c.token_ids for c in other]
    assert prompt_text(load_processor(engine.path), question).count("<|video_pad|>") == 1


def test_candidates_and_reflections_are_found_in_the_prefix_cache_and_the_multimodal_cache(engine):
    """By vLLM's own counters. 64 tokens of video, in blocks of 32: two whole blocks are shared by every prompt on a video."""
    num_candidates = 4
    examples = [Example(id=str(i), video=f"{i}.mp4", question="What moves?", answer="A square.") for i in range(3)]
    clips = [noise_clip(32, seed) for seed in range(3)]
    counts = [engine.counters()]

    class Counted:
        """The engine, with its counters read after each turn."""

        def generate(self, requests):
            replies = engine.generate(requests)
            counts.append(engine.counters())
            return replies

        score = engine.score

    section = LeanpoRecipe(num_candidates=num_candidates, num_turns=2, max_new_tokens=8, negatives="augmented")
    Leanpo(section).respond(Counted(), examples, clips, policy_version="v", seed=0)

    def spent(turn, name):
        return counts[turn + 1][f"vllm:{name}"] - counts[turn].get(f"vllm:{name}", 0)

    # Turn 1: one look at each video, and all candidates but the first of each find its blocks.
    assert spent(0, "mm_cache_queries") == len(examples)
    assert spent(0, "mm_cache_hits") == 0
    assert spent(0, "prefix_cache_hits") >= len(examples) * (num_candidates - 1) * 2 * CPU_BLOCK_SIZE
    # Turn 2, reflection: other words after the same video, which is never processed again.
    assert spent(1, "mm_cache_hits") == spent(1, "mm_cache_queries") >= len(examples)
    assert spent(1, "prefix_cache_hits") >= len(examples) * num_candidates * 2 * CPU_BLOCK_SIZE
    # The losers' videos are all different, so nothing can be found.
    assert spent(2, "mm_cache_queries") == len(examples) * num_candidates
    assert spent(2, "mm_cache_hits") == 0


def test_caches_can_be_emptied(engine):
    request = greedy("What moves?", noise_clip(32, 20))
    engine.generate([request])
    before = engine.counters()
    engine.generate([request])
    between = engine.counters()
    engine.reset_caches()
    engine.generate([request])
    after = engine.counters()
    for name in ("vllm:mm_cache_hits", "vllm:prefix_cache_hits"):
        assert between[name] > before[name]
        assert after[name] == between[name]


def test_equal_frames_of_different_speed_are_different_videos(engine):
    """The cache goes by the clip's hash, which must cover what the model hears about time."""
    clip = noise_clip(8, 9)
    slow = dataclasses.replace(clip, fps=clip.fps / 4, duration_s=clip.duration_s * 4)
    before = engine.counters()
    engine.generate([greedy("What moves?", clip), greedy("What moves?", slow), greedy("What moves?", clip)])
    after = engine.counters()
    assert after["vllm:mm_cache_queries"] - before["vllm:mm_cache_queries"] == 2
    assert after["vllm:mm_cache_hits"] == before["vllm:mm_cache_hits"]


def test_a_prompt_beyond_the_context_is_one_clear_error(rows, engine):
    question, clip, _ = rows[0]
    with pytest.raises(ModelError, match=r"max_model_len=512.*Lower video.num_frames"):
        engine.generate([greedy(question, clip), greedy(question * 200, clip)])
    assert len(engine.generate([greedy(question, clip)])) == 1  # nothing of the refused call is left in the engine


def test_padding_and_company_do_not_change_a_log_prob(rows, hugging_face):
    model, processor = hugging_face
    scorer = ResponseScorer(model, chunk_size=3)
    built = [(render_prompt(processor, q, clip), response_ids(processor, a)) for q, clip, a in rows]
    together = collate(built, pad_id=0)
    with torch.no_grad():
        all_at_once = scorer(together.inputs, together.labels)[0].sum(-1)
        one_by_one = []
        for row in built:
            batch = collate([row], pad_id=0)
            one_by_one.append(scorer(batch.inputs, batch.labels)[0].sum())
    torch.testing.assert_close(all_at_once, torch.stack(one_by_one), atol=1e-4, rtol=0)


def test_a_video_beyond_the_table_of_positions_is_one_clear_error(rows, engine):
    """vLLM itself would index past its table: an IndexError on CPUs that ends its engine, a device-side assert on GPUs."""
    question, clip, _ = rows[0]
    hours = dataclasses.replace(clip, fps=clip.total_num_frames / 40_000, duration_s=40_000.0)
    with pytest.raises(ModelError, match=r"40,000 s takes positions up to .*video.max_duration_s"):
        engine.generate([greedy(question, clip), greedy(question, hours)])
    with pytest.raises(ModelError, match="40,000 s"):  # vLLM knows the video by now
        engine.score([(question, hours, "Left.")])
    assert len(engine.generate([greedy(question, clip)])) == 1  # nothing of the refused call is left in the engine


def test_bos_and_end_of_turn_are_those_of_the_chat_template(rows, tmp_path_factory, model_path, hugging_face):
    """A tokenizer that adds a bos beside a template that writes one, and whose eos is not the template's end of turn."""
    folder = tmp_path_factory.mktemp("odd") / "model"
    shutil.copytree(model_path, folder)
    add_bos(folder, in_template=True)
    for name, changed in (
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("generation_config.json", {"eos_token_id": 0}),
    ):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changed}))
    model, processor = hugging_face[0], load_processor(str(folder))
    before = dict(os.environ)
    engine = VllmEngine(ModelConfig(path=str(folder), dtype="float32", max_model_len=512), str(folder), num_gpus=0, seed=0)
    question, clip, answer = rows[0]
    [reply] = engine.generate([greedy(question, clip)])
    [score] = engine.score([(question, clip, answer)])
    os.environ.clear()
    os.environ.update(before)
    assert (reply.finish_reason, reply.token_ids[-1]) == ("stop", processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    prompt = render_prompt(processor, question, clip)
    assert prompt.tokens["input_ids"][:2].tolist() == processor.tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_start|>"]
    )
    for ids, logps in ((reply.token_ids, reply.log_probs), (response_ids(processor, answer), score)):
        batch = collate([(prompt, ids)], pad_id=0)
        with torch.no_grad():
            expected, *_ = ResponseScorer(model)(batch.inputs, batch.labels)
        np.testing.assert_allclose(logps, expected[batch.labels != IGNORED], atol=TOLERANCE)
