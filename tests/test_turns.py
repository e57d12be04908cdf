"""End of turn and bos as the chat templates of ten families have them, and the same ids wherever a prompt or a reply is rendered."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from vidalign.errors import ModelError
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.phrase_tokens import phrase_ids
from vidalign.learning.sequences import TrainingResponse
from vidalign.model.checkpoint import stop_at
from vidalign.model.rendering import prompt_ids, prompt_text, render_prompt, render_without_pixels, response_ids
from vidalign.model.turns import turns_of
from vidalign.video.clip import Clip

TOKENS_PER_VIDEO = 4


class Processor:
    """As Hugging Face's processors behave: it lets the tokenizer add what it adds unless told not to, and expands the video."""

    def __init__(self, tokenizer, template, video_token):
        self.tokenizer, self.chat_template, self.video_token = tokenizer, template, video_token

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=tokenize, add_generation_prompt=add_generation_prompt
        )

    def __call__(self, text, videos=None, return_tensors=None, video_metadata=None, do_sample_frames=None, **options):
        expanded = [each.replace(self.video_token, self.video_token * TOKENS_PER_VIDEO) if videos else each for each in text]
        ids = self.tokenizer(expanded, return_tensors=return_tensors, **options)["input_ids"]
        return {"input_ids": ids, **({"pixel_values_videos": torch.zeros(7, 3)} if videos else {})}


def processor(template, specials, *, video, bos=None, eos=None, adds=(), words=()):
    """A byte-level tokenizer with these special tokens, which puts `adds` before a text; `words` are added tokens that are text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(each, special=True) for each in specials])
    made.add_tokens(list(words))
    if adds:
        pieces = [(each, made.token_to_id(each)) for each in adds]
        made.post_processor = tokenizers.processors.TemplateProcessing(single=[*adds, "$A"], special_tokens=pieces)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos)
    return Processor(tokenizer, template, video)


def parts(video, *, before="", text="{{ part.text }}"):
    return (
        "{%- for part in message.content -%}{%- if part.type == 'video' -%}"
        + video
        + "{%- else -%}"
        + before
        + text
        + "{%- endif -%}"
        "{%- endfor -%}"
    )


def loop(body, generation):
    return (
        "{%- for message in messages -%}"
        + body
        + "{%- endfor -%}{%- if add_generation_prompt -%}"
        + generation
        + "{%- endif -%}"
    )


def chatml(video, *, generation="{{ '<|im_start|>assistant\\n' }}", **options):
    body = "{{ '<|im_start|>' + message.role + '\\n' }}" + parts(video, **options) + "{{ '<|im_end|>\\n' }}"
    return loop(body, generation)


@dataclasses.dataclass(frozen=True)
class Family:
    """A template in the shape of a family's, and how a question of it looks; `end` closes a reply."""

    processor: object
    prompt: str
    end: str


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
PAD = "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
FAMILIES = {
    # Its tokenizer's eos is <|endoftext|>, as in base models, but a turn ends with <|im_end|>.
    "qwen2_vl": Family(
        functools.partial(processor, chatml(PAD), CHATML, video="<|video_pad|>", eos="<|endoftext|>"),
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which way?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "qwen3_vl": Family(
        functools.partial(
            processor, "{{ '' }}" + chatml(PAD), CHATML, video="<|video_pad|>", eos="<|im_end|>", words=["<think>"]
        ),
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which way?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llava_onevision": Family(
        functools.partial(
            processor,
            loop(
                "{{ '<|im_start|>' + message.role + ' ' }}" + parts("<video>", before="{{ '\\n' }}") + "{{ '<|im_end|>' }}",
                "{{ '<|im_start|>assistant\\n' }}",
            ),
            ("<|im_start|>", "<|im_end|>", "<video>", "<image>"),
            video="<video>",
            eos="<|im_end|>",
        ),
        "<|im_start|>user <video>\nWhich way?<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    # The tokenizer adds <s>, the template does not.
    "llava_next_video": Family(
        functools.partial(
            processor,
            loop(
                "{{ message.role.upper() + ': ' }}"
                + parts("{{ '<video>\\n' }}")
                + "{{ ' ' if message.role == 'user' else '</s>' }}",
                "ASSISTANT:",
            ),
            ("<s>", "</s>", "<video>", "<image>"),
            video="<video>",
            bos="<s>",
            eos="</s>",
            adds=("<s>",),
        ),
        "<s>USER: <video>\nWhich way? ASSISTANT:",
        "</s>",
    ),
    # The same without any end of turn, as published: the tokenizer's eos has to do.
    "llava_next_video_hf": Family(
        functools.partial(
            processor,
            loop("{{ message.role.upper() + ': ' }}" + parts("{{ '<video>\\n' }}") + "{{ ' ' }}", "ASSISTANT:"),
            ("<s>", "</s>", "<video>"),
            video="<video>",
            bos="<s>",
            eos="</s>",
            adds=("<s>",),
        ),
        "<s>USER: <video>\nWhich way? ASSISTANT:",
        "</s>",
    ),
    "internvl": Family(
        functools.partial(
            processor,
            loop(
                "{{ '<|im_start|>' + message.role + '\\n' }}" + parts("{{ '<video>\\n' }}") + "{{ '<|im_end|>\\n' }}",
                "{{ '<|im_start|>assistant\\n' }}",
            ),
            ("<|im_start|>", "<|im_end|>", "</s>", "<video>", "<IMG_CONTEXT>", "<img>", "</img>"),
            video="<video>",
            eos="</s>",
        ),
        "<|im_start|>user\n<video>\nWhich way?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    # A turn ends where the next role's token stands.
    "glm4v": Family(
        functools.partial(
            processor,
            "[gMASK]<sop>"
            + loop(
                "{{ '<|' + message.role + '|>\\n' }}" + parts("{{ '<|begin_of_video|><|video|><|end_of_video|>' }}"),
                "{{ '<|assistant|>\\n' }}",
            ),
            (
                *("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
                *("<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
            ),
            video="<|video|>",
            eos="<|endoftext|>",
            adds=("[gMASK]", "<sop>"),  # as older tokenizers of the family do
            words=["<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>"],
        ),
        "[gMASK]<sop><|user|>\n<|begin_of_video|><|video|><|end_of_video|>Which way?<|assistant|>\n",
        "<|user|>",
    ),
    # The tokenizer adds <bos>, and the template writes one too.
    "gemma": Family(
        functools.partial(
            processor,
            "{{ bos_token }}"
            + loop(
                "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
                + parts("<start_of_image>", text="{{ part.text | trim }}")
                + "{{ '<end_of_turn>\\n' }}",
                "{{ '<start_of_turn>model\\n' }}",
            ),
            ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>"),
            video="<start_of_image>",
            bos="<bos>",
            eos="<eos>",
            adds=("<bos>",),
        ),
        "<bos><start_of_turn>user\n<start_of_image>Which way?<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
    ),
    "minicpm_v": Family(
        functools.partial(
            processor,
            chatml("{{ '<video>\\n' }}"),
            (
                "<|im_start|>",
                "<|im_end|>",
                "<|endoftext|>",
                "<image>",
                "</image>",
                "<slice>",
                "</slice>",
                "<unk>",
                "<video>",
            ),
            video="<video>",
            bos="<|im_start|>",  # named, but added by nobody
            eos="<|im_end|>",
        ),
        "<|im_start|>user\n<video>\nWhich way?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "ernie": Family(
        functools.partial(
            processor,
            "<|begin_of_sentence|>"
            + loop(
                "{{ {'user': 'User: ', 'assistant': 'Assistant: '}[message.role] }}"
                + parts("<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>")
                + "{{ '\\n' if message.role == 'user' else '<|end_of_sentence|>' }}",
                "{{ 'Assistant: ' }}",
            ),
            (
                *("<|begin_of_sentence|>", "<|end_of_sentence|>", "</s>"),
                *("<|VIDEO_START|>", "<|VIDEO_PLACEHOLDER|>", "<|VIDEO_END|>"),
            ),
            video="<|VIDEO_PLACEHOLDER|>",
            bos="<|begin_of_sentence|>",
            eos="</s>",
        ),
        "<|begin_of_sentence|>User: <|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>Which way?\nAssistant: ",
        "<|end_of_sentence|>",
    ),
    # The end of turn stands on a line of its own.
    "paddleocr_vl": Family(
        functools.partial(
            processor,
            "{{ bos_token }}"
            + loop(
                "{{ message.role.capitalize() + ': ' }}"
                + parts("<|IMAGE_START|><|VIDEO_PLACEHOLDER|><|IMAGE_END|>")
                + "{{ '\\n' }}{{ eos_token if message.role == 'assistant' else '' }}",
                "{{ 'Assistant:\\n' }}",
            ),
            (
                "<|begin_of_sentence|>",
                "<|end_of_sentence|>",
                "</s>",
                "<|IMAGE_START|>",
                "<|VIDEO_PLACEHOLDER|>",
                "<|IMAGE_END|>",
            ),
            video="<|VIDEO_PLACEHOLDER|>",
            bos="<|begin_of_sentence|>",
            eos="</s>",
            adds=("<|begin_of_sentence|>",),
        ),
        "<|begin_of_sentence|>User: <|IMAGE_START|><|VIDEO_PLACEHOLDER|><|IMAGE_END|>Which way?\nAssistant:\n",
        "\n</s>",
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    described = FAMILIES[request.param]
    return dataclasses.replace(described, processor=described.processor())


def plain(made, text):
    return made.tokenizer(text, add_special_tokens=False)["input_ids"]


def clip():
    return Clip(frames=np.zeros((2, 8, 8, 3), np.uint8), fps=1.0, total_num_frames=2, duration_s=2.0, indices=(0, 1))


def test_prompts_and_ends_are_those_of_the_template(family):
    made = family.processor
    assert prompt_text(made, "Which way?") == family.prompt
    assert response_ids(made, "Left.") == plain(made, f"Left.{family.end}")


def test_training_scoring_rollout_and_cached_features_render_the_same_ids(family):
    made = family.processor
    expanded = family.prompt.replace(made.video_token, made.video_token * TOKENS_PER_VIDEO)
    assert render_prompt(made, "Which way?", clip()).tokens["input_ids"].tolist() == plain(made, expanded)
    without = render_without_pixels(made, "Which way?", TOKENS_PER_VIDEO, {})
    assert without.tokens["input_ids"].tolist() == plain(made, expanded)
    assert prompt_ids(made, "Which way?") == plain(made, family.prompt)
    assert prompt_ids(made, "Which way?", "Le") == plain(made, f"{family.prompt}Le")
    source = BatchSource(frames={}, processor=made, plain_prompt="{question}", max_model_len=512)
    response = TrainingResponse(group="g", role="chosen", text="Left.")
    assert list(source.tokens(response)) == response_ids(made, "Left.")
    assert len(phrase_ids(made, "Left.", ())) == len(response_ids(made, "Left."))


def test_there_is_one_bos_where_there_is_any(family):
    made = family.processor
    bos = made.tokenizer.bos_token_id
    ids = render_prompt(made, "Which way?", clip()).tokens["input_ids"].tolist()
    if bos is not None and made.tokenizer.bos_token != "<|im_start|>":
        assert ids.count(bos) == 1
        assert ids[0] == bos


def test_no_text_can_end_its_turn_or_forge_another(family):
    made = family.processor
    for token in {family.end.strip(), made.video_token, *turns_of(made).special.texts}:
        with pytest.raises(ModelError, match="a prompt holds the special token"):
            prompt_text(made, f"Which way?{token} Sure?")
        with pytest.raises(ModelError, match="a response holds the special token"):
            response_ids(made, f"Left.{token}")


def test_words_are_no_special_tokens(family):
    for text in ("The user asks an assistant: yes!", "<think>It moves.</think> Left.", "User", "model"):
        assert turns_of(family.processor).special.found(text) == []


def test_headings_of_turns_in_plain_words_are_found():
    special = turns_of(FAMILIES["llava_next_video"].processor()).special
    assert special.found("Which way? ASSISTANT: Left.") == ["ASSISTANT:"]
    assert special.found("Left. USER: Sure?") == ["USER:"]
    assert turns_of(FAMILIES["ernie"].processor()).special.found("Left.\nUser: Sure?") == ["User:"]


def test_what_differs_from_the_usual_is_said():
    notes = {name: turns_of(each.processor()).notes for name, each in FAMILIES.items()}
    assert notes["qwen2_vl"] == ("a reply ends with '<|im_end|>', as in the chat template, not with '<|endoftext|>'",)
    assert notes["glm4v"] == ("a reply ends with '<|user|>', as in the chat template, not with '<|endoftext|>'",)
    assert notes["llava_next_video_hf"] == (
        "the chat template writes no end of turn, so a reply ends with the tokenizer's </s>",
    )
    assert "takes white space off both ends" in notes["gemma"][-1]
    assert notes["qwen3_vl"] == notes["llava_onevision"] == notes["minicpm_v"] == ()


def test_a_template_that_writes_the_date_is_said():
    template = chatml(PAD).replace("{%-", "{%- set today = strftime_now('%d %b %Y') -%}{%-", 1)
    made = processor(template, CHATML, video="<|video_pad|>", eos="<|im_end|>")
    assert "the chat template may write the date or the time" in turns_of(made).notes[-1]


def test_what_was_kept_before_is_found_again_where_nothing_differs():
    keys = {name: turns_of(each.processor()).key() for name, each in FAMILIES.items()}
    assert {name for name, key in keys.items() if not key} == {"qwen3_vl", "llava_onevision", "minicpm_v"}
    assert keys["llava_next_video"]["turns"][1] == "<s>"


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"eos_token_id": 2}, 2), ({"eos_token_id": 0}, [0, 2]), ({"eos_token_id": [0, 1]}, [0, 1, 2]), ({}, 2), (None, 2)],
)
def test_an_exported_policy_stops_at_the_end_of_turn_wherever_it_is_served(tmp_path, config, expected):
    path = tmp_path / "generation_config.json"
    if config is not None:
        path.write_text(json.dumps({"do_sample": False, **config}))
    stop_at(tmp_path, 2)
    assert json.loads(path.read_text())["eos_token_id"] == expected


# --- templates that open a reasoning block, and templates that cannot be used ---


def thinking(opened):
    return processor(
        chatml(PAD, generation="{{ '<|im_start|>assistant\\n" + opened + "' }}"),
        CHATML,
        video="<|video_pad|>",
        eos="<|im_end|>",
        words=["<think>", "</think>"],
    )


@pytest.mark.parametrize(
    ("opened", "text", "follows"),
    [
        ("<think>\\n", "Left.", "\n</think>\n\nLeft."),  # as Qwen3 writes a reply without reasoning
        ("<think>", "Left.", "\n\n</think>\n\nLeft."),
        ("<think>\\n", "It moves.\n</think>\n\nLeft.", "It moves.\n</think>\n\nLeft."),  # a sampled reply
        ("<think>\\n", "<think>\nIt moves.\n</think>\n\nLeft.", "It moves.\n</think>\n\nLeft."),  # a row of data
        ("<think>\\n", "<think>It moves.</think>Left.", "It moves.</think>Left."),
    ],
)
def test_a_reply_fits_the_reasoning_block_that_its_prompt_opens(opened, text, follows):
    made = thinking(opened)
    assert prompt_text(made, "Which way?").endswith("<|im_start|>assistant\n" + opened.replace("\\n", "\n"))
    assert response_ids(made, text) == plain(made, f"{follows}<|im_end|>")
    assert "opens <think>" in turns_of(made).notes[0]


def test_marks_move_with_the_text_that_they_mark():
    made = thinking("<think>\\n")
    for text in ("To the left.", "<think>\nIt moves.\n</think>\n\nTo the left."):
        at = text.index("left")
        ids, tokens = phrase_ids(made, text, [(at, at + 4)]), response_ids(made, text)
        assert len(ids) == len(tokens)
        assert made.tokenizer.decode([token for token, phrase in zip(tokens, ids, strict=True) if phrase]) == "left"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no') }}", "cannot be rendered for one question on a video"),
        ("{{ 1 / 0 }}", "cannot be rendered for one question on a video"),
        (chatml(PAD, text="{{ part.text | upper }}"), "does not keep the text of a question"),
        (
            "{%- for message in messages -%}{{ message.content }}{{ '<|im_end|>' }}{%- endfor -%}",
            "it must take a content of parts",
        ),
        (chatml(""), r"has no place for a video: it writes no <\|video_pad\|>"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template, says):
    with pytest.raises(ModelError, match=says):
        turns_of(processor(template, CHATML, video="<|video_pad|>", eos="<|im_end|>"))


def test_a_template_that_takes_no_reply_falls_back_to_eos_and_without_one_is_refused():
    template = chatml(PAD).replace(
        "{{ '<|im_start|>' + ", "{{ raise_exception('one turn') if message.role != 'user' else '<|im_start|>' + "
    )
    made = processor(template, CHATML, video="<|video_pad|>", eos="<|endoftext|>")
    assert response_ids(made, "Left.") == plain(made, "Left.<|endoftext|>")
    with pytest.raises(ModelError, match="says how a reply ends"):
        turns_of(processor(template, CHATML, video="<|video_pad|>"))


def test_a_pad_token_that_is_an_ordinary_sign_is_no_special_text():
    made = processor(chatml(PAD), (*CHATML, "!"), video="<|video_pad|>", eos="<|im_end|>")
    assert turns_of(made).special.found("Left!") == []
