"""A judge in vLLM, end to end: a text model in an engine of its own, under Ray Data, whose scores become judgements.

The judge is a two-layer language model that is trained here, in seconds, to compare one word with another.
"""

import dataclasses
import itertools

import pytest
import torch
from test_files import RESPONSE

from cluster.resources import Workers
from pipelines.stages.base import once
from pipelines.stages.judge import Judging, judgements_of
from vidalign import recipes
from vidalign.config.recipes import HoundRecipe
from vidalign.recipes import judging
from vidalign.types import Example

pytestmark = pytest.mark.heavy

COLOURS = ("red", "green", "blue")
UNCLEAR = "purple"  # what this judge cannot make up its mind about
TEMPLATE = "{caption} {question} {answer} {response}"
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"


def words(answer: str, response: str) -> tuple[list[str], list[str]]:
    """A judge's prompt and its reply, word by word."""
    prompt = ["user", "scene", "colour", answer, response, "assistant"]
    if response == UNCLEAR:
        return prompt, ["unclear", "<end>"]
    return prompt, ["same" if answer == response else "other", "\n", "Score:", "5" if answer == response else "1", "<end>"]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    reminder = judging.REMINDER.split()
    talks = [words(*pair) for pair in itertools.product(COLOURS, (*COLOURS, UNCLEAR))]
    again = [([*prompt, "unclear", "user", *reminder, "assistant"], ["unclear", "<end>"]) for prompt, _ in talks[3::4]]
    vocabulary = dict.fromkeys(["<pad>", "<end>", "<unk>", *(w for talk in [*talks, *again] for side in talk for w in side)])
    ids = {word: number for number, word in enumerate(vocabulary)}
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ids),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    rows = [[ids[word] for word in [*prompt, *reply]] for prompt, reply in [*talks, *again]]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.full_like(tokens, -100)
    for index, (prompt, reply) in enumerate([*talks, *again]):
        labels[index, len(prompt) : len(prompt) + len(reply)] = tokens[index, len(prompt) : len(prompt) + len(reply)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=tokens, attention_mask=(tokens != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 1e-3:
            break
    assert loss.item() < 0.05, "the judge did not learn to compare"
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = CHAT
    folder = tmp_path_factory.mktemp("judge")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_judge_in_vllm_scores_and_what_it_leaves_open_is_quarantined(judge_folder, local_ray, tmp_path):
    recipe = HoundRecipe(
        judge={
            "kind": "vllm",
            "model": judge_folder,
            "dtype": "float32",
            "max_model_len": 128,
            "max_new_tokens": 8,
            "prompt": TEMPLATE,
            "engine_args": {"max_num_seqs": 8},
        }
    )
    examples = [Example(id=colour, video="v.mp4", question="colour", answer=colour, caption="scene") for colour in COLOURS]
    asked = (*COLOURS, UNCLEAR)
    responses = [
        dataclasses.replace(RESPONSE, example_id=example.id, kind="plain", text=text, trust=float(text == example.answer))
        for example in examples
        for text in asked
    ]
    made = recipes.build(recipe)
    task = made.judge_rows(examples, responses)
    assert task is not None
    engines = Workers(num=1, cpus=1)
    stage = Judging(folder=tmp_path / "judgements", judge=recipe.judge, task=task, engines=engines, label="judge")
    once(stage)
    judged, facts = judgements_of(stage.rows(), task, made, examples)
    assert {(j.example_id, j.response): j.score for j in judged} == {
        (example.id, colour): 5.0 if colour == example.id else 1.0 for example in examples for colour in COLOURS
    }
    assert {j.judge.split(":")[0] for j in judged} == {"vllm"}
    assert facts["quarantined"] == {"unparsable_judgement": 3}
    assert facts["agreement"]["agreement"] == 1.0
