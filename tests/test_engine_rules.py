"""What vLLM is told about a model, and the comparison of the prompts that it and training see."""

import types

import pytest
import transformers

from vidalign.errors import ModelError
from vidalign.model.engine_rules import CPU_SEQUENCES, check_on_cpu, engine_rules, with_head_dtype
from vidalign.model.rendering import difference, load_processor

OPTIONS = {"dtype": "bfloat16", "max_model_len": 512, "on_cpu": True, "limits": {"video": 1, "image": 0}}


def rules_of(folder, **options):
    config = transformers.AutoConfig.from_pretrained(folder)
    return engine_rules(load_processor(folder), config, **{**OPTIONS, **options})


def test_nothing_is_said_about_the_built_in_model(model_path):
    assert rules_of(model_path) == {}


def test_pixels_are_normalized_by_the_video_processor_where_the_image_processor_has_other_numbers(checkpoints):
    assert rules_of(checkpoints("qwen3_vl"))["mm_device_do_normalize"] is False
    processor = load_processor(checkpoints("qwen3_vl"))
    for name in ("image_mean", "image_std"):
        setattr(processor.image_processor, name, tuple(getattr(processor.video_processor, name)))
    config = transformers.AutoConfig.from_pretrained(checkpoints("qwen3_vl"))
    assert "mm_device_do_normalize" not in engine_rules(processor, config, **OPTIONS)


def test_a_processor_that_samples_frames_is_told_not_to(checkpoints):
    assert rules_of(checkpoints("internvl"))["mm_processor_kwargs"] == {"do_sample_frames": False}


def test_linear_attention_needs_chunked_prefill_and_on_a_cpu_no_prompt_is_split(checkpoints):
    rules = rules_of(checkpoints("qwen3_5"))
    assert rules["enable_chunked_prefill"] is True
    assert rules["max_num_batched_tokens"] == rules["max_num_seqs"] * 512 == CPU_SEQUENCES * 512
    assert "enable_chunked_prefill" not in rules_of(checkpoints("qwen3_5"), on_cpu=False)


def test_videos_that_go_through_the_image_processor_need_it_to_be_like_the_video_processor(checkpoints):
    folder = checkpoints("minicpmv4_6")
    assert rules_of(folder)["limit_mm_per_prompt"] == {"video": 1, "image": 1}
    processor = load_processor(folder)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ModelError, match=r"as it does images, by .*0\.1, 0\.2, 0\.3.* give both the same"):
        engine_rules(processor, transformers.AutoConfig.from_pretrained(folder), **OPTIONS)


@pytest.mark.parametrize(
    ("name", "option"), [("glm4v", "attention_bias"), ("glm4v_moe", "use_qk_norm"), ("qwen3_vl_moe", "norm_topk_prob")]
)
def test_what_vllm_would_take_otherwise_must_be_said(name, option, checkpoints):
    folder = checkpoints(name)
    config = transformers.AutoConfig.from_pretrained(folder)
    value = getattr(config.text_config, option)
    setattr(config.text_config, option, not value)
    with pytest.raises(ModelError, match=f"the text_config of a {name} must say {option}={value}, not {not value}"):
        engine_rules(load_processor(folder), config, **OPTIONS)


class Letters:
    """A tokenizer whose ids are the letters of the alphabet."""

    def decode(self, ids):
        return "".join(chr(ord("a") + number) for number in ids)


PROCESSOR = types.SimpleNamespace(tokenizer=Letters())
VIDEO = [False, True, True, False]


@pytest.mark.parametrize(
    ("trained", "generated", "said"),
    [
        ([0, 9, 9, 1], [0, 9, 9, 1], ""),
        ([0, 9, 9, 1], [0, 8, 8, 1], ""),  # another stand-in for embeddings
        ([0, 9, 9, 1], [0, 9, 9, 2], "at token 3 of 4, training sees 'ajjb' and the engine 'ajjc'"),
        ([0, 9, 1, 9], [0, 9, 9, 1], "at token 1 of 4, training sees 'ajbj' and the engine 'ajjb'"),
        ([0, 0, 9, 9, 1], [0, 9, 9, 1], "training sees 5 tokens and the engine 4"),
    ],
)
def test_where_two_prompts_differ(trained, generated, said):
    assert difference(PROCESSOR, trained, generated, VIDEO) == said


def test_what_engines_on_cpus_do_not_compute_is_a_sentence(checkpoints):
    with pytest.raises(ModelError, match=r"linear attention of a qwen3_5 .* in float32; set model\.dtype=bfloat16"):
        rules_of(checkpoints("qwen3_5"), dtype="float32")
    rules_of(checkpoints("qwen3_5"), dtype="float32", on_cpu=False)
    config = transformers.AutoConfig.from_pretrained(checkpoints("gemma4"))
    check_on_cpu(config, "float32")
    config.get_text_config().use_bidirectional_attention = "vision"
    with pytest.raises(ModelError, match=r"frames of a gemma4 attend to what follows them"):
        check_on_cpu(config, "float32")


def test_the_type_of_logits_is_said_where_vllm_makes_the_language_model(model_path):
    config = transformers.AutoConfig.from_pretrained(model_path)
    given = {"head_dtype": "float32", "text_config": {"rope_theta": 1.0}}
    assert with_head_dtype(given, config) == {
        "head_dtype": "float32",
        "text_config": {"head_dtype": "float32", "rope_theta": 1.0},
    }
    assert with_head_dtype({"a": 1}, config) == {"a": 1}
    assert with_head_dtype({"head_dtype": "float32"}, config.get_text_config()) == {"head_dtype": "float32"}
