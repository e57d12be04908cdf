"""Every family in vLLM: the prompts, replies and log-probs of rollouts are those of training, for a checkpoint and for its export."""

import functools
import gc
import itertools
import math
import os
import pathlib
import shutil

import linear_attention
import numpy as np
import pytest
import torch
from test_family_training import TRAINING, processor_of
from tiny_families import QUESTIONS, WRITERS, clip, clips

from actors.engine import VllmEngine
from cluster.engines import with_float32_head
from pipelines.checks import model as check_model
from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ModelError
from vidalign.model.batch import IGNORED, collate
from vidalign.model.checkpoint import export_policy
from vidalign.model.families import FAMILIES, decoder
from vidalign.model.folder import stored_shapes
from vidalign.model.policy import ResponseScorer, load_policy, prepare_training
from vidalign.model.rendering import render_prompt, response_ids
from vidalign.recipes.engine import Request
from vidalign.types import FrameSpec

pytestmark = pytest.mark.heavy

NOT_SERVED = {"ernie4_5_vl_moe": "spatial_conv_size"}  # what vLLM misses
STATE_SPACE = ("qwen3_5", "minicpmv4_6")
FLOAT32_HEADS = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "glm4v")  # whose language models vLLM makes in other ways
TOLERANCE = 1e-4  # nats
BFLOAT16, BFLOAT16_MEAN = (
    0.2,
    0.03,
)  # nats; in bfloat16 transformers itself differs from float32 by 0.02 to 0.1 in these models
ANSWER = "A red circle moves left."


def named(names, always=()):
    """Families as parameters; those beside `always` are for `make test-families` alone."""
    return [pytest.param(name, marks=[] if name in always else pytest.mark.families) for name in names]


@pytest.fixture
def start(monkeypatch):
    """Starts an engine in this process, in place of one before; it is gone after the test, and what it set in the environment."""
    from vllm.distributed import cleanup_dist_env_and_memory

    before, running = dict(os.environ), []

    def begin(folder, dtype="float32", **options):
        stop()
        linear_attention.allow_float32(monkeypatch)
        model = ModelConfig(path=folder, dtype=dtype, max_model_len=768)
        running.append(VllmEngine(model, folder, num_gpus=0, seed=0, **options))
        return running[-1]

    def stop():
        while running:
            running.pop().llm.llm_engine.engine_core.shutdown()
            gc.collect()
            cleanup_dist_env_and_memory()

    yield begin
    stop()
    os.environ.clear()
    os.environ.update(before)


def asked(question, shown, **changes):
    settings = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0, **changes}
    return Request(prompt=question, clip=shown, **settings)


class Trained:
    """The training side: what transformers says."""

    def __init__(self, folder, dtype="float32", **options):
        self.processor, self.dtype = processor_of(folder), getattr(torch, dtype)
        self.scorer = ResponseScorer(load_policy(ModelConfig(path=folder, dtype=dtype)), **options).eval()

    def logps(self, question, shown, tokens):
        if not tokens:
            return np.zeros(0)
        batch = collate([(render_prompt(self.processor, question, shown), tokens)], pad_id=0)
        batch = batch.to(torch.device("cpu"), self.dtype)
        with torch.no_grad():
            logps, *_ = self.scorer(batch.inputs, batch.labels)
        return logps[batch.labels != IGNORED].numpy()

    def likeliest(self, question, shown, tokens):
        """The token that greedy decoding takes at each of these places, and the lead of the best one over the second."""
        if not tokens:
            return [], []
        batch = collate([(render_prompt(self.processor, question, shown), tokens)], pad_id=0)
        with torch.no_grad():
            logits = self.scorer.logits(self.scorer.hidden(batch.inputs, batch.labels))
        best = logits.topk(2)
        return best.indices[:, 0].tolist(), (best.values[:, 0] - best.values[:, 1]).tolist()


def differences(engine, trained):
    """Of log-probs, over greedy replies one by one, sampled replies to videos of unequal length in one batch, and given replies."""
    found = []
    one_by_one = [asked(question, shown) for question, shown in zip(QUESTIONS, clips(), strict=True)]
    together = [asked(question, shown, temperature=1.0, seed=5) for shown in fresh() for question in QUESTIONS]
    replies = [*(engine.generate([request])[0] for request in one_by_one), *engine.generate(together)]
    for request, reply in zip([*one_by_one, *together], replies, strict=True):
        tokens = plain(trained, reply.token_ids)
        found.append(trained.logps(request.prompt, request.clip, tokens) - reply.log_probs[: len(tokens)])
        if request.temperature == 0:
            likeliest, lead = trained.likeliest(request.prompt, request.clip, tokens)
            sure = [place for place, margin in enumerate(lead) if margin > 4 * np.abs(found[-1]).max()]
            assert [likeliest[place] for place in sure] == [tokens[place] for place in sure]
    rows = [(question, shown, ANSWER) for question, shown in zip(QUESTIONS, clips(), strict=True)]
    ids = response_ids(trained.processor, ANSWER)
    for (question, shown, _), score in zip(rows, engine.score(rows), strict=True):
        found.append(trained.logps(question, shown, ids) - score)
    assert len(np.concatenate(found)) > 40
    return np.abs(np.concatenate(found))


def plain(trained, tokens):
    """Tokens up to the first special one: transformers puts a video's embeddings in the place of a reply's video token too."""
    special = trained.processor.tokenizer.added_tokens_decoder  # not all of them are among all_special_ids
    return list(itertools.takewhile(lambda token: token not in special, tokens))


def check(name, start, folder):
    """What stands in a cell: the largest difference. Raises `AssertionError` if it is more than rounding."""
    trained = Trained(folder)
    found = differences(start(folder), trained)
    assert found.max() < TOLERANCE
    if name not in STATE_SPACE:
        return f"{found.max():.0e}"
    rounded = differences(start(folder, "bfloat16"), trained)
    assert rounded.mean() < BFLOAT16_MEAN
    assert rounded.max() < BFLOAT16
    return f"{found.max():.0e}, in bfloat16 {rounded.max():.0e}: {KERNEL}"


@functools.cache
def fresh():
    """Clips of unequal length that no engine has seen."""
    return clip(8, 11), clip(4, 12), clip(6, 13, 64, 96)


KERNEL = (
    "vLLM's operator for linear attention on CPUs, cpu_gdn_attention_core, takes only bfloat16. In float32 that of transformers is "
    "in its place (tests/linear_attention.py); in bfloat16 its own is, against transformers in float32"
)


@pytest.mark.parametrize("name", named(name for name in WRITERS if name not in NOT_SERVED))
def test_rollouts_are_those_of_the_model_that_is_trained(name, checkpoints, start, cell):
    passed = cell(name, "rollout")
    folder = checkpoints(name)
    passed(check(name, start, folder))


@pytest.mark.parametrize("name", named(WRITERS))
def test_the_dry_run_says_what_the_run_says(name, checkpoints, cell):
    passed = cell(name, "dry run")
    config = ModelConfig(path=checkpoints(name), dtype="float32", max_model_len=768)
    if name in NOT_SERVED:
        with pytest.raises(ModelError, match=FAMILIES[name].not_served):
            check_model.inspect(config)
        passed(f"no: {FAMILIES[name].not_served}")
        return
    facts = check_model.inspect(config)
    assert facts.config.model_type == name
    held = {id(tensor): tensor for tensor in facts.outline.state_dict(keep_vars=True).values()}  # tied ones are stored once
    stored = stored_shapes(pathlib.Path(config.path))
    assert sum(tensor.numel() for tensor in held.values()) == sum(math.prod(shape) for shape in stored.values())
    passed()


def exported(base, folder):
    """The export of a model with a random adapter merged."""
    torch.manual_seed(0)
    model = load_policy(ModelConfig(path=base, dtype="float32"))
    trained = prepare_training(model, TrainConfig(**TRAINING["LoRA"], gradient_checkpointing=False))
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    export_policy(trained, folder, base=base, parent="", frame_spec=FrameSpec(), prompt="{question}", zero_stage=0)
    return str(folder)


@pytest.mark.parametrize("name", named(name for name in WRITERS if name not in NOT_SERVED))
def test_an_exported_model_is_read_by_vllm(name, checkpoints, start, cell, tmp_path):
    passed = cell(name, "export, read by vLLM")
    passed(check(name, start, exported(checkpoints(name), tmp_path / "model")))


@torch.no_grad()
def without_layers(folder, copy):
    """A copy whose layers add nothing, with embeddings of one size: final states are exact in bfloat16, whoever computes them."""
    processor, model = processor_of(folder), load_policy(ModelConfig(path=folder, dtype="float32"))
    for name, parameter in decoder(model).named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        elif name == "norm.weight":
            parameter.fill_(1)
    torch.manual_seed(1)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embeddings.copy_(torch.randint(0, 2, embeddings.shape) - 0.5)
    head.copy_(torch.randn(head.shape).bfloat16())
    model.bfloat16().save_pretrained(copy)
    processor.save_pretrained(copy)
    return str(copy)


@pytest.mark.parametrize("name", named(FLOAT32_HEADS, always=["qwen2_5_vl"]))
def test_an_output_layer_in_float32_gives_rollouts_the_log_probs_of_training(name, checkpoints, start, tmp_path):
    folder = without_layers(checkpoints(name), tmp_path / "model")
    engine = start(folder, "bfloat16", engine_args=with_float32_head({}))
    replies = [asked(question, shown, temperature=1.0) for question, shown in zip(QUESTIONS, clips(), strict=True)]
    rows = [(question, shown, ANSWER) for question, shown in zip(QUESTIONS, clips(), strict=True)]
    made, scores = engine.generate(replies), engine.score(rows)
    found = {}
    for exact in (True, False):
        trained = Trained(folder, "bfloat16", float32_head=exact)
        ids, found[exact] = response_ids(trained.processor, ANSWER), []
        for (question, shown, _), score, reply in zip(rows, scores, made, strict=True):
            tokens = plain(trained, reply.token_ids)
            found[exact].append(trained.logps(question, shown, ids) - score)
            found[exact].append(trained.logps(question, shown, tokens) - reply.log_probs[: len(tokens)])
    assert np.abs(np.concatenate(found[True])).max() < 1e-5
    assert np.abs(np.concatenate(found[False])).max() > 1e-3


def test_families_that_vllm_does_not_read_are_known():
    assert set(NOT_SERVED) == {name for name, family in FAMILIES.items() if family.not_served}


@pytest.mark.families
@pytest.mark.parametrize("name", NOT_SERVED)
def test_a_family_that_vllm_does_not_read_is_refused_in_a_sentence(name, checkpoints, start, cell, tmp_path):
    passed = [cell(name, column) for column in ("rollout", "export, read by vLLM")]
    for folder in (checkpoints(name), exported(checkpoints(name), tmp_path / "model")):
        with pytest.raises(ModelError, match=NOT_SERVED[name]):
            start(folder)
    for each in passed:
        each(f"no: {FAMILIES[name].not_served}")


@pytest.mark.families
def test_a_processor_that_differs_between_images_and_videos_is_refused_where_vllm_knows_one(checkpoints, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoints("minicpmv4_6"), folder)
    raw = files.read_json(folder / "processor_config.json")
    raw["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    files.write_json(folder / "processor_config.json", raw)
    with pytest.raises(ModelError, match="normalizes a video of MiniCPMV4_6Processor as it does images"):
        VllmEngine(ModelConfig(path=str(folder), dtype="bfloat16", max_model_len=768), str(folder), num_gpus=0, seed=0)
