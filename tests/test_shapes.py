"""The built-in world, its data and its checkpoint."""

import collections
import json
from pathlib import Path

import av
import numpy as np
import pytest
from transformers import AutoConfig, AutoProcessor

from examples.shapes import make_videos, world
from examples.shapes.biased_data import NO_BIAS, TYPICAL_COLOUR, Bias, draw_sample, usual_answer
from examples.shapes.tiny_model import FRAME_SIZE, patchify
from vidalign.prompts import chat
from vidalign.recipes.phrases import differs_only_in, parse_differences
from vidalign.types import Example

MODEL = Path(make_videos.__file__).parent / "model"
SIZES = {"train": 28, "heldout": 28, "probe": 14}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes")
    make_videos.make(out, SIZES, seed=3)
    return out


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_seed_gives_the_same_files(data, tmp_path):
    make_videos.make(tmp_path, SIZES, seed=3)
    for path in sorted(data.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(data)).read_bytes()


def test_another_seed_gives_other_questions():
    assert make_videos.split_rows("train", 50, 0)[0] != make_videos.split_rows("train", 50, 1)[0]


def test_splits_have_the_asked_sizes_and_share_no_video(data):
    videos = {}
    for split, size in SIZES.items():
        examples = [Example.from_row(row) for row in rows(data / f"{split}.jsonl")]
        assert len({example.id for example in examples}) == size
        videos[split] = {example.video for example in examples}
        assert all((data / video).stat().st_size > 0 for video in videos[split])
    assert len(set().union(*videos.values())) == sum(map(len, videos.values()))


def test_every_answer_follows_from_the_stored_scene(data):
    scenes = {row["video"]: world.Scene.from_row(row) for row in rows(data / "scenes.jsonl")}
    for split in SIZES:
        for row in rows(data / f"{split}.jsonl"):
            assert world.solve(scenes[row["video"]], row["question"]) == row["answer"]
            assert not row["options"] or row["answer"] in row["options"]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_nothing_goes_together_in_the_data(split):
    questions, scenes = make_videos.split_rows(split, 1400, 0)
    things = [thing for _, scene in scenes for thing in scene.things]
    for one, other in (("shape", "colour"), ("colour", "direction"), ("shape", "direction")):
        pairs = collections.Counter((getattr(thing, one), getattr(thing, other)) for thing in things)
        assert len(pairs) == 16
        assert max(pairs.values()) < 1.6 * min(pairs.values())
    by_category = collections.Counter(row["category"] for row in questions)
    assert set(by_category.values()) == {200}
    assert sum(row["answer"].startswith("Yes") for row in questions) == 100
    order = [row for row in questions if row["category"] == "order"]
    assert sum(row["question"].split()[4] == row["answer"].split()[1] for row in order) == 100


def test_the_base_is_trained_on_what_is_usual():
    rng = np.random.default_rng(0)
    asked = [
        turn
        for _ in range(150)
        for turn in draw_sample(Bias(), rng, two_things=0.0, hinted=0.0, num_turns=2, weights={"colour": 1.0}).turns
    ]
    shares = {
        shape: np.mean([f"is {TYPICAL_COLOUR[shape]}." in reply for prompt, reply in asked if shape in prompt])
        for shape in world.SHAPES
    }
    assert min(shares["circle"], shares["triangle"]) > 0.7  # well known
    assert max(shares["square"], shares["cross"]) < 0.8


def test_the_usual_answer_is_what_goes_together_and_fits_the_question():
    rng = np.random.default_rng(0)
    one = world.make_scene([("square", "red", "up")], rng)
    two = world.make_scene([("square", "red", "up"), ("circle", "yellow", "up")], rng)
    usual = {
        category: usual_answer(scene, world.ask(scene, category, rng, yes=0.0, named_first=0.0))
        for category, scene in {"motion": one, "colour": one, "shape": one, "description": one, "order": two}.items()
    }
    assert usual == {
        "motion": "The square moves left.",
        "colour": "The square is green.",
        "shape": "The red object is a circle.",
        "description": "A red square moves left.",
        "order": "The circle appears first.",  # named first in the question, second in the video
    }
    for _ in range(20):
        assert usual_answer(one, world.ask(one, "presence", rng, yes=0.0)).startswith("Yes, there is a ")
        choice = world.ask(one, "choice", rng)
        assert usual_answer(one, choice) in choice.options


def test_hinted_prompts_hold_the_answer():
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert all(reply in prompt for prompt, reply in draw_sample(NO_BIAS, rng, hinted=1.0, edited=0.0).turns)


def test_edit_prompts_are_answered_by_what_differs_and_by_nothing_else():
    rng = np.random.default_rng(0)
    for _ in range(40):
        for prompt, reply in draw_sample(NO_BIAS, rng, hinted=1.0, edited=1.0).turns:
            answer = prompt.split("Right answer: ")[1].split("\n")[0]
            if "=>" in reply:
                wrong = prompt.split("Wrong answer: ")[1].split("\n")[0]
                assert differs_only_in(answer, wrong, parse_differences(reply))
            else:
                assert differs_only_in(answer, reply, parse_differences(prompt.split("change nothing else:\n")[1]))


def test_a_description_is_read_back_as_the_scene_it_tells_of():
    rng = np.random.default_rng(0)
    for num_things in (1, 2):
        scene = next(world.balanced_scenes(num_things, rng))
        told = world.read_description(world.solve(scene, "Describe the video."))
        assert [(t.name, t.direction) for t in told.things] == [(t.name, t.direction) for t in scene.things]
    for text in ("A red thing moves left.", "A red circle moves left!", ""):
        with pytest.raises(ValueError, match="not a description"):
            world.read_description(text)


def test_unanswerable_question_is_an_error():
    scene = world.make_scene([("circle", "red", "left")], np.random.default_rng(0))
    with pytest.raises(ValueError, match="exactly one square"):
        world.solve(scene, "What colour is the square?")


def test_videos_decode_to_the_rendered_frames(data):
    row = rows(data / "scenes.jsonl")[0]
    drawn = world.render(world.Scene.from_row(row), make_videos.frame_times())
    with av.open(str(data / row["video"])) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == drawn.shape == (16, 112, 112, 3)
    assert np.abs(decoded.astype(int) - drawn.astype(int)).mean() < 6


def test_things_move_the_way_they_are_said_to():
    for direction, (dx, dy) in world.STEP.items():
        thing = world.Thing("circle", "red", direction)
        (x0, y0), (x1, y1) = world.centre(thing, 0.0), world.centre(thing, 1.0)
        assert (np.sign(x1 - x0), np.sign(y1 - y0)) == (dx, dy)


def test_checkpoint_is_complete_and_small():
    names = {path.name for path in MODEL.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 6e6
    assert AutoConfig.from_pretrained(MODEL).text_config.max_position_embeddings >= 1024


def test_processor_keeps_frames_and_any_text():
    processor = AutoProcessor.from_pretrained(MODEL)
    text = "naïve 漢字 🙂\n\n{braces}  two  spaces"
    words = processor.apply_chat_template(chat(text), tokenize=False, add_generation_prompt=True)
    frames = np.random.default_rng(0).integers(0, 256, (8, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)
    metadata = {"total_num_frames": 16, "fps": 8.0, "frames_indices": list(range(0, 16, 2)), "duration": 2.0}
    inputs = processor(
        text=[words],
        videos=[frames],
        videos_kwargs={"video_metadata": [metadata], "do_sample_frames": False},
        return_tensors="pt",
    )
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text
    assert inputs["video_grid_thw"].tolist() == [[4, 4, 4]]
    assert inputs["second_per_grid_ts"].tolist() == [0.5]
    assert (inputs["pixel_values_videos"] - patchify(frames[None])).abs().max() < 1e-6
