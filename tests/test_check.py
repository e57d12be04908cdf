"""The dry run's checks, and the estimates behind them: against hand-computed numbers and the real processor."""

import json
import os
import shutil

import numpy as np
import pytest
import transformers
from conftest import write_video

from cluster.described import Machines
from cluster.resources import ClusterResources
from pipelines.check import check, render
from pipelines.checks import model as check_model
from pipelines.checks.context import probe_videos
from pipelines.cli import main
from pipelines.inputs import read_inputs
from vidalign import prompts
from vidalign.config.loading import parse_config
from vidalign.config.training import TrainConfig
from vidalign.errors import ClusterError, ConfigError, DataError, ModelError
from vidalign.model import estimate, memory, rendering, training_memory
from vidalign.model.clip_check import black, measure_tokens
from vidalign.model.estimate import VisionCost
from vidalign.model.folder import read_headers, weight_files
from vidalign.model.training_memory import ParameterCount
from vidalign.types import FrameSpec
from vidalign.video.readers import target_size

TWO_CORES = Machines(resources=ClusterResources(num_cpus=2))
QWEN = VisionCost(min_pixels=3136, max_pixels=12_845_056)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    from examples.shapes import tiny_model as tiny

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = tiny.build_tokenizer(["the red circle moves left", "which way does the blue square move?"] * 20)
    tiny.build_processor(tokenizer).save_pretrained(folder)
    tiny.build_model(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def copied_model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def write_shades(path, *, height=64, width=48, shade=0):
    shades = [(shade + 9 * index) % 256 for index in range(8)]
    return write_video(path, [np.full((height, width, 3), shade, np.uint8) for shade in shades], fps=4)


def write_rows(path, *videos, question="Which way does it move?"):
    rows = [
        {"id": f"{path.stem}-{index}", "video": video, "question": question, "answer": "It moves left."}
        for index, video in enumerate(videos)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make_config(tmp_path, tiny_model):
    write_shades(tmp_path / "a.mp4", shade=10)
    write_shades(tmp_path / "b.mp4", shade=90)

    def make(**sections):
        raw = {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": str(tiny_model), "dtype": "float32", "max_model_len": 1024},
            "data": {
                "train": write_rows(tmp_path / "train.jsonl", "a.mp4"),
                "eval": write_rows(tmp_path / "eval.jsonl", "b.mp4"),
            },
        }
        for name, values in sections.items():
            raw[name] = raw.get(name, {}) | values
        return parse_config(raw)

    return make


# --- estimates ---


def test_vision_tokens_by_hand():
    assert QWEN.tokens(8, 448, 448) == 4 * 16 * 16
    assert QWEN.tokens(7, 448, 448) == 4 * 16 * 16  # an odd frame is doubled
    assert QWEN.resized(1, 1080, 1920) == (1092, 1932)  # 38.6 and 68.6 blocks of 28, rounded
    capped = VisionCost(min_pixels=3136, max_pixels=12_845_056, max_video_tokens=1000)
    assert capped.tokens(64, 448, 448) <= 900


@pytest.mark.parametrize(("height", "width"), [(64, 48), (120, 160), (360, 640), (14, 30)])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [(3136, 3136), (3136, 100_352)])
def test_the_formula_agrees_with_the_processor(copied_model, height, width, num_frames, size):
    raw = json.loads((copied_model / "processor_config.json").read_text())
    raw["video_processor"] |= {"size": {"shortest_edge": size[0], "longest_edge": size[1]}}
    (copied_model / "processor_config.json").write_text(json.dumps(raw))
    cost = estimate.read_vision_cost(copied_model)
    processor = rendering.load_processor(str(copied_model))
    assert cost.tokens(num_frames, height, width) == measure_tokens(processor, black(num_frames, height, width))


def test_the_shared_budget_agrees_with_the_processor(copied_model):
    raw = json.loads((copied_model / "processor_config.json").read_text())
    raw["video_processor"] |= {
        "size": {"shortest_edge": 784, "longest_edge": 100_352},
        "cap_pixels_per_frame": True,
        "max_video_tokens": 200,
    }
    (copied_model / "processor_config.json").write_text(json.dumps(raw))
    cost = estimate.read_vision_cost(copied_model)
    processor = rendering.load_processor(str(copied_model))
    assert cost.max_video_tokens == 200
    assert cost.tokens(16, 240, 320) == measure_tokens(processor, black(16, 240, 320))


@pytest.mark.parametrize("num_frames", [8, 64, 128, 768])
@pytest.mark.parametrize(("height", "width"), [(720, 1280), (1080, 1920), (240, 320), (480, 854), (1920, 1080)])
def test_frames_within_a_total_budget_are_what_the_processor_would_make_of_them(num_frames, height, width):
    """Qwen3-VL's processor spreads its budget over all frames. With the same total_pixels, it is left with rounding to its blocks."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    budget, block = 24_576 * 32 * 32, 32
    decoded = target_size(height, width, FrameSpec(num_frames=num_frames, total_pixels=budget), num_frames)
    assert num_frames * decoded[0] * decoded[1] <= budget
    own, ours = (
        smart_resize(num_frames, *size, factor=block, min_pixels=128 * block**2, max_pixels=budget)
        for size in ((height, width), decoded)
    )
    assert num_frames * ours[0] * ours[1] <= budget
    assert max(abs(a - b) for a, b in zip(own, ours, strict=True)) <= block


def test_a_context_that_is_too_short_names_both_ways_out():
    with pytest.raises(ModelError) as caught:
        estimate.check_context(
            lambda frames: 128 * frames,
            num_frames=96,
            frames_key="video.max_frames",
            num_text_tokens=100,
            max_new_tokens=156,
            max_model_len=8192,
        )
    assert str(caught.value) == (
        "video.max_frames=96 needs 12,288 vision tokens, plus 100 for the prompt and 156 for the response, but max_model_len=8,192; "
        "lower video.max_frames to 62 or raise model.max_model_len to 12544"
    )


def test_a_context_that_just_fits():
    limits = {"frames_key": "video.num_frames", "num_text_tokens": 50, "max_new_tokens": 14, "num_frames": 2}
    assert estimate.check_context(lambda frames: 100 * frames, max_model_len=264, **limits) == 264
    with pytest.raises(ModelError, match=r"lower video.num_frames to 1 or raise model.max_model_len to 264"):
        estimate.check_context(lambda frames: 100 * frames, max_model_len=263, **limits)
    with pytest.raises(ModelError, match="shorten the prompts"):
        estimate.check_context(lambda frames: 100 * frames, max_model_len=100, model_limit=100, **limits)
    with pytest.raises(ModelError, match="made for 4,096 positions"):
        estimate.check_context(lambda frames: frames, max_model_len=5000, model_limit=4096, **limits)


@pytest.mark.parametrize(
    ("dtype", "stage", "workers", "weights", "gradients", "optimizer"),
    [
        ("bfloat16", 0, 4, 2000, 2000, 12000),
        ("bfloat16", 1, 4, 2000, 2000, 3000),
        ("bfloat16", 2, 4, 2000, 500, 3000),
        ("bfloat16", 3, 4, 500, 500, 3000),
        ("float32", 0, 1, 4000, 4000, 8000),
        ("float32", 2, 1, 4000, 4000, 12000),
    ],
)
def test_training_memory_by_zero_stage(dtype, stage, workers, weights, gradients, optimizer):
    train = TrainConfig(num_workers=workers, batch_size=workers, zero_stage=stage)  # type: ignore[call-arg]
    made = training_memory.train_memory(ParameterCount(total=1000, trainable=1000), train, dtype)
    assert (made.weights, made.gradients, made.optimizer) == (weights, gradients, optimizer)


def test_parameters_are_counted_as_the_policy_freezes_them(tiny_model):
    from vidalign.config.run import ModelConfig
    from vidalign.model.adapters import add_adapter
    from vidalign.model.loading import outline
    from vidalign.model.policy import load_policy, set_trainable

    shapes = read_headers(weight_files(tiny_model))
    empty = outline(str(tiny_model))
    model = load_policy(ModelConfig(path=str(tiny_model), dtype="float32"))  # type: ignore[call-arg]
    assert sum(int(np.prod(shape)) for _, shape in shapes.values()) == sum(p.numel() for p in model.parameters())
    for options in ({}, {"train_projector": True}, {"train_vision_tower": True, "train_projector": True}):
        train = TrainConfig(**options)
        set_trainable(model, vision_tower=train.train_vision_tower, projector=train.train_projector)
        expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert training_memory.count_parameters(empty, train).trainable == expected, options
    train = TrainConfig(lora={"rank": 8, "alpha": 16})  # type: ignore[arg-type]
    adapted = add_adapter(model, train)
    expected = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert training_memory.count_parameters(empty, train).trainable == expected


def test_engine_memory_by_hand():
    text = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64, "num_hidden_layers": 3}
    options = {"dtype": "bfloat16", "num_devices": 2, "max_model_len": 10}
    made = memory.engine_memory(1000, transformers.Qwen2_5_VLConfig(text_config=text), **options)
    assert made.weights == 1000
    assert made.kv_per_sequence == 10 * (2 * 3 * 2 * 8 * 2)
    mixed = {**text, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "sliding_window": 4}
    mixed |= {"use_sliding_window": True}
    made = memory.engine_memory(1000, transformers.Qwen2_5_VLConfig(text_config=mixed), **options)
    assert made.kv_per_sequence == (10 + 4 + 4) * (2 * 2 * 8 * 2)


# --- the model folder ---


def test_a_cut_weight_file(copied_model):
    data = (copied_model / "model.safetensors").read_bytes()
    (copied_model / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="is cut: its header promises"):
        read_headers(weight_files(copied_model))
    (copied_model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="Git LFS pointer"):
        read_headers(weight_files(copied_model))


def break_folder(folder, what):
    if what == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif what == "weightless":
        (folder / "model.safetensors").unlink()
    elif what == "shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "config":
        (folder / "config.json").unlink()
    elif what == "template":
        (folder / "chat_template.jinja").unlink()
    elif what == "adapter":
        (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    elif what in ("patches", "merges"):
        name = {"patches": "patch_size", "merges": "merge_size"}[what]
        raw = json.loads((folder / "processor_config.json").read_text())
        (folder / "processor_config.json").write_text(
            json.dumps({key: {**part, name: 4} if isinstance(part, dict) else part for key, part in raw.items()})
        )
    elif what == "stop":
        raw = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps(raw | {"eos_token_id": [2, "<|im_end|>"]}))
    elif what == "processor":
        (folder / "processor_config.json").unlink()
    elif what in ("code", "architecture"):
        raw = json.loads((folder / "config.json").read_text())
        change = {"auto_map": {"AutoModel": "m.M"}} if what == "code" else {"architectures": []}
        (folder / "config.json").write_text(json.dumps(raw | change))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pickled", r"only pickled weights \(pytorch_model.bin\)"),
        ("weightless", r"no \*.safetensors weights"),
        ("shard", r"lacks 1 of its 2 weight files, first model-2.safetensors"),
        ("config", r"has no config.json"),
        ("adapter", r"holds an adapter alone; merge it into its base"),
        ("patches", r"the processor has patch_size=4, but the vision tower takes patch_size=14"),
        ("merges", r"the processor has merge_size=4, but the vision tower takes spatial_merge_size=2"),
        ("stop", r"has eos_token_id=\[2, '<\|im_end\|>'\]; write the id of a token, or a list of ids"),
        ("template", r"no chat template"),
        ("processor", r"no processor that transformers can load|is not a video model"),
        ("code", r"brings its own Python code"),
        ("architecture", r"names no architecture"),
    ],
)
def test_a_broken_model_folder(copied_model, make_config, what, message):
    break_folder(copied_model, what)
    config = make_config(model={"path": str(copied_model)})
    with pytest.raises(ModelError, match=message) as caught:
        check_model.inspect(config.model, ask_vllm=False)
    assert "\n" not in str(caught.value)


def test_a_model_path_that_does_not_exist(make_config):
    with pytest.raises(ModelError, match=r"no model folder at \./nothing"):
        check_model.inspect(make_config(model={"path": "./nothing"}).model, ask_vllm=False)


@pytest.mark.heavy
def test_vllm_is_asked_whether_it_serves_the_architecture(tiny_model, tmp_path):
    served, other = "Qwen2_5_VLForConditionalGeneration", "Qwen9VLForNothing"
    before = dict(os.environ)
    check_model.check_architecture(served, tiny_model)
    assert dict(os.environ) == before, "which the workers of a run inherit"
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text()) | {"architectures": [other]}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"is a Qwen9VLForNothing, which vLLM .* does not serve; "):
        check_model.check_architecture(other, folder)
    check_model.check_architecture(other, folder, engine_args={"hf_overrides": {"architectures": [served]}})
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ModelError, match=r"is a Qwen9VLForNothing, which vLLM .* does not serve; "):
        check_model.check_architecture(other, folder, video=False)
    check_model.check_architecture(served, folder, video=False)


@pytest.mark.heavy
def test_vllm_is_asked_whether_it_takes_videos(tiny_model, tmp_path):
    """SmolVLM takes videos in transformers, and images alone in vLLM."""
    config = transformers.SmolVLMConfig()
    config.architectures = ["SmolVLMForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path)
    with pytest.raises(
        ModelError, match=r"vLLM takes only images for .* \(SmolVLMForConditionalGeneration\), and no videos"
    ):
        check_model.check_architecture("SmolVLMForConditionalGeneration", tmp_path)


# --- data ---


def test_a_video_in_train_and_eval_is_refused(make_config, tmp_path):
    shared = write_rows(tmp_path / "shared.jsonl", "b.mp4", "a.mp4")
    with pytest.raises(DataError, match=r"1 of its 2 videos are in both, first .*a\.mp4"):
        read_inputs(make_config(data={"eval": shared}).data)
    with pytest.raises(DataError, match=r"data.probe must share no video"):
        read_inputs(make_config(data={"probe": shared}).data)


def test_a_copy_of_a_training_video_is_refused(make_config, tmp_path):
    shutil.copy(tmp_path / "a.mp4", tmp_path / "renamed.mp4")
    with pytest.raises(DataError, match=r"renamed.mp4 and .*a.mp4 are copies of one file"):
        read_inputs(make_config(data={"eval": write_rows(tmp_path / "e.jsonl", "renamed.mp4")}).data)


def test_missing_videos_are_counted(make_config, tmp_path):
    rows = write_rows(tmp_path / "some.jsonl", "a.mp4", "gone.mp4", "gone too.mp4")
    report = check(make_config(data={"train": rows}), machines=TWO_CORES, ask_vllm=False)
    assert report.data[-1] == "videos: 2 present, 2 missing"
    assert report.warnings[0].startswith("2 of 4 videos are missing and will be quarantined, first ")
    none = write_rows(tmp_path / "none.jsonl", "gone.mp4")
    with pytest.raises(DataError, match="none of the 1 videos exists"):
        read_inputs(make_config(data={"train": none, "eval": None}).data)


def test_broken_videos_are_left_to_the_decode_stage(make_config, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = [str(tmp_path / "broken.mp4"), str(tmp_path / "a.mp4"), "s3://x/y.mp4"]
    found, refused = probe_videos(videos, make_config().video.frame_spec(), lambda *_: None)
    assert [(video, *clip.frames.shape[:3]) for video, clip in found] == [(str(tmp_path / "a.mp4"), 8, 64, 48)]
    assert [error.reason for error in refused] == ["not_a_video"]


# --- the whole ---


def test_a_report_of_what_fits(make_config):
    report = check(make_config(), machines=Machines(resources=TWO_CORES.resources, host_memory=2**40), ask_vllm=False)
    assert report.warnings == ()
    text = render(report)
    for expected in (
        "learning_rate: 5.0e-07",
        "engines: 1 x (0.5 CPU)",
        "train: 1 examples on 1 videos",
        "8 frames of 64x48",
    ):
        assert expected in text


def test_the_longest_prompt_is_the_one_the_processor_renders(make_config, tmp_path):
    question = "Which way does the square move? " * 20
    config = make_config(
        data={"train": write_rows(tmp_path / "long.jsonl", "a.mp4", question=question)},
        recipe={"num_turns": 1, "max_new_tokens": 10},
        evaluate={"max_new_tokens": 10},
    )
    report = check(config, machines=TWO_CORES, ask_vllm=False)
    processor = rendering.load_processor(config.model.path)
    hint = prompts.fill(config.recipe.hint_prompt, question=question, answer="It moves left.")
    text = len(processor.tokenizer(rendering.prompt_text(processor, hint))["input_ids"]) - 1
    assert report.tokens[1] == f"longest prompt: {text} tokens without its video (hint prompt of example long-0)"


def test_a_prompt_beyond_the_context(make_config, tmp_path):
    rows = write_rows(tmp_path / "long.jsonl", "a.mp4", question="Why? " * 2000)
    with pytest.raises(ModelError, match=r"reflection prompt of example long-0, .* but max_model_len=1,024; shorten"):
        check(make_config(data={"train": rows}), machines=TWO_CORES, ask_vllm=False)


def test_training_that_exceeds_the_device(make_config):
    machines = Machines(resources=TWO_CORES.resources, host_memory=2**20)
    with pytest.raises(ClusterError, match=r"training holds .* but the machine has 1.0 MiB; .* or set train.lora"):
        check(make_config(recipe={"name": "given"}, objective={"name": "sft"}), machines=machines, ask_vllm=False)
    with pytest.raises(ClusterError, match=r"rollout holds 1.0 GiB .* but the machine has 1.0 MiB; use a smaller model"):
        check(make_config(), machines=machines, ask_vllm=False)


def test_long_videos_are_warned_of(make_config, tmp_path):
    config = make_config(video={"num_frames": None, "fps": 1.0, "max_frames": 1000})
    report = check(config, machines=TWO_CORES, ask_vllm=False)
    assert any("a video long enough for video.max_frames=1000" in warning for warning in report.warnings)


def model_with_own_token(folder):
    """The tiny model with "<|im_end|>" renamed to a token that no family is known for."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text((folder / name).read_text().replace("<|im_end|>", "<turn:end>"))
    return folder


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_models_own_special_token_in_a_row_is_refused_as_known_ones_are(
    make_config, copied_model, tmp_path, split, capsys
):
    folder = model_with_own_token(copied_model)
    config = make_config(model={"path": str(folder)})
    path = tmp_path / f"{split}.jsonl"
    write_rows(path, "a.mp4" if split == "train" else "b.mp4", question="Which way?<turn:end> Sure?")
    with pytest.raises(DataError) as refused:
        check(config, machines=TWO_CORES, ask_vllm=False)
    assert str(refused.value).startswith(f"{path}:1: question: holds the special token <turn:end>; write the plain text")
    assert main(["data", "validate", str(path)]) == 0
    assert main(["data", "validate", str(path), "--model", str(folder)]) == 2
    assert str(refused.value) in capsys.readouterr().err


def test_a_models_own_special_token_in_a_prompt_of_the_recipe_is_refused(make_config, copied_model):
    config = make_config(
        model={"path": str(model_with_own_token(copied_model))}, recipe={"hint_prompt": "{question}<turn:end>{answer}"}
    )
    with pytest.raises(ConfigError, match=r"recipe\.hint_prompt holds the special token <turn:end>"):
        check(config, machines=TWO_CORES, ask_vllm=False)


def test_a_template_that_cannot_be_used_is_found_and_an_unusual_end_of_turn_is_said(make_config, copied_model):
    (copied_model / "tokenizer_config.json").write_text(
        (copied_model / "tokenizer_config.json")
        .read_text()
        .replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"')
    )
    config = make_config(model={"path": str(copied_model)})
    assert "a reply ends with '<|im_end|>', as in the chat template, not with '<|endoftext|>'" in render(
        check(config, machines=TWO_CORES, ask_vllm=False)
    )
    template = copied_model / "chat_template.jinja"
    template.write_text(template.read_text().replace("part.text", "part.text | upper"))
    with pytest.raises(ModelError, match="does not keep the text of a question as it is"):
        check(config, machines=TWO_CORES, ask_vllm=False)
