"""The dry run's checks of rows with a conversation, several videos or images."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import tiny_families
from test_check import TWO_CORES, copied_model, make_config, tiny_model, write_shades  # noqa: F401 (fixtures)

from pipelines.check import check
from pipelines.inputs import read_inputs
from vidalign import prompts
from vidalign.errors import ConfigError, DataError, ModelError, VideoError
from vidalign.model import rendering
from vidalign.types import FrameSpec
from vidalign.video import visuals
from vidalign.video.planning import planned
from vidalign.video.scene import shown

TURNS = [{"role": "user", "content": "What moves?"}, {"role": "assistant", "content": "A circle."}]
RICH = {"videos": ["a.mp4", {"video": "f", "fps": 4}], "images": ["i.png"], "system": "Answer briefly.", "turns": TURNS}


def rows(path, *fields):
    made = [{"id": f"r{number}", "question": "Which way?", "answer": "left"} | each for number, each in enumerate(fields)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return {"train": str(path)}


@pytest.fixture
def media(tmp_path, make_config):  # noqa: F811
    (tmp_path / "f").mkdir()
    for number in range(6):
        write_image(tmp_path / "f" / f"{number}.png", 48, 64)
    write_image(tmp_path / "i.png", 100, 80)
    return tmp_path


def write_image(path, height, width):
    PIL.Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


def test_the_largest_prompt_is_the_one_the_processor_renders(media, make_config):  # noqa: F811
    config = make_config(data=rows(media / "d.jsonl", {"video": "a.mp4"}, RICH))
    report = check(config, machines=TWO_CORES, ask_vllm=False)
    [line] = [line for line in report.tokens if line.startswith("largest prompt with a conversation")]
    recipe = config.recipe
    example = read_inputs(config.data).train[1].example
    spec = config.video.frame_spec()
    clips = tuple(visuals.decode(name, spec) for name in example.context.visuals)
    text = prompts.fill(recipe.reflect_prompt, question=example.question, answer=example.answer)
    rendered = rendering.render_prompt(rendering.load_processor(config.model.path), text, shown(example.context, clips))
    needed = rendered.length + 2 * recipe.max_new_tokens
    assert line.endswith(f": {needed:,} tokens (reflection prompt of example r1)")
    assert report.data[0] == f"train: 2 examples on 3 videos ({media / 'd.jsonl'})"
    config = make_config(data=rows(media / "d.jsonl", RICH), model={"max_model_len": needed - 1})
    with pytest.raises(
        ModelError, match=rf"reflection prompt of example r0 needs {needed:,} tokens .* raise it to {needed},"
    ):
        check(config, machines=TWO_CORES, ask_vllm=False)


def test_a_family_that_takes_one_video_is_named(media, make_config, tmp_path):  # noqa: F811
    model = {"path": str(tiny_families.checkpoint("llava_onevision", tmp_path)), "max_model_len": 1024}
    config = make_config(data=rows(media / "d.jsonl", {"videos": ["a.mp4", "a.mp4"]}), model=model)
    with pytest.raises(
        ModelError, match=r"example r0 shows 2 videos and 0 images, and models of type llava_onevision .* qwen2_5_vl"
    ):
        check(config, machines=TWO_CORES, ask_vllm=False)


@pytest.mark.parametrize(
    ("template", "fields", "says"),
    [
        (
            "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}",
            RICH,
            "(no system role)",
        ),
        ("{%- set messages = messages[-1:] -%}", {"video": "a.mp4", "turns": TURNS}, "leaves out 'What moves?' of the user"),
    ],
)
def test_a_template_that_cannot_write_a_row_is_named(media, make_config, copied_model, template, fields, says):  # noqa: F811
    shipped = (pathlib.Path(__file__).parents[1] / "examples/shapes/model/chat_template.jinja").read_text()
    (copied_model / "chat_template.jinja").write_text(template + shipped)
    config = make_config(data=rows(media / "d.jsonl", fields), model={"path": str(copied_model)})
    with pytest.raises(ModelError) as caught:
        check(config, machines=TWO_CORES, ask_vllm=False)
    assert "the chat template cannot write the prompt of example r0" in str(caught.value)
    assert says in str(caught.value)


def test_training_that_cannot_take_the_rows(media, make_config):  # noqa: F811
    data = rows(media / "d.jsonl", {"video": "a.mp4"}, {"videos": ["a.mp4"], "images": ["i.png"]})
    with pytest.raises(ConfigError, match="cache_vision_features keeps the features of prompts with one video"):
        check(make_config(data=data, train={"cache_vision_features": True}), machines=TWO_CORES, ask_vllm=False)
    with pytest.raises(ConfigError, match=r"r0 and r1 differ\. Lower train.zero_stage to 2"):
        check(make_config(data=data, train={"zero_stage": 3, "num_workers": 2}), machines=TWO_CORES, ask_vllm=False)
    check(make_config(data=data, train={"zero_stage": 3, "num_workers": 1}), machines=TWO_CORES, ask_vllm=False)


def test_missing_files_and_shared_ones_of_every_shape(media, make_config):  # noqa: F811
    shapes = [
        {"video": ["f/0.png", "f/gone.png"], "fps": 1},
        {"video": "a.mp4", "images": ["gone.png"]},
        {"video": "gone", "fps": 2},
        {"video": "a.mp4", "clip": {"start": 0.5, "end": 1}},
    ]
    config = make_config(data=rows(media / "d.jsonl", *shapes))
    inputs = read_inputs(config.data)
    assert len(inputs.missing) == 3
    shutil.copy(media / "d.jsonl", media / "e.jsonl")
    rows(media / "e.jsonl", {"video": "a.mp4", "clip": {"start": 0}})
    with pytest.raises(DataError, match=r"must share no video with data\.train"):
        read_inputs(make_config(data={"train": str(media / "d.jsonl"), "eval": str(media / "e.jsonl")}).data)


def test_sizes_are_those_that_decoding_gives(media):
    spec = FrameSpec(num_frames=None, fps=2.0, max_pixels=3000)
    video, folder = (media / "a.mp4").as_uri(), (media / "f").as_uri()
    for name in (f"{video}#t=0.5,1.5", f"{folder}#fps=2", f"{folder}#fps=2&t=0,2", f"{(media / 'i.png').as_uri()}#image"):
        clip, decoded = planned(name, spec), visuals.decode(name, spec)
        assert clip is not None
        assert clip.frames.shape == decoded.frames.shape, name
        assert clip.metadata() | {"video_backend": ""} == decoded.metadata() | {"video_backend": ""}, name
    assert planned("s3://b/v.mp4#t=1,2", spec) is None
    with pytest.raises(VideoError, match="its clip begins at 5 s"):
        planned(f"{video}#t=5,6", spec)
    with pytest.raises(VideoError) as caught:
        planned(f"{(media / 'gone.png').as_uri()}#image", spec)
    assert caught.value.reason == "unreadable"
