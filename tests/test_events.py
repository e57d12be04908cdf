"""The events task: its world, its data, and what its base is trained on."""

import collections
import dataclasses
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from examples.events import careless, make_videos, rule_judge, train_base, world
from examples.events.careless import NO_FLAWS, Flaws, draw_sample, imperfect, repaired
from examples.events.phrases import parse
from examples.events.scorers import phrase_f1
from examples.events.world import UNSEEN_KINDS, Event
from vidalign.config.judging import JudgeConfig
from vidalign.config.rewriting import RrpoRecipe
from vidalign.prompts import BRIDGE, CONSISTENCY, JUDGE, substitute
from vidalign.recipes import verified
from vidalign.recipes.bridging import why_no_bridge
from vidalign.types import Example

SIZES = {"train": 12, "heldout": 12, "dev": 6}
EVENTS = [
    Event("small", "red", "square", "up"),
    Event("large", "green", "triangle", "left"),
    Event("small", "blue", "circle", "down"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("events")
    make_videos.make(out, SIZES, seed=3)
    return out


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(scenes):
    return {event.kind for _, scene in scenes for event in world.events_of(scene)}


def test_the_same_seed_gives_the_same_files(data, tmp_path):
    make_videos.make(tmp_path, SIZES, seed=3)
    for path in sorted(data.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(data)).read_bytes()


def test_another_seed_gives_other_rows():
    assert make_videos.split_rows("train", 50, 0)[0] != make_videos.split_rows("train", 50, 1)[0]


def test_splits_share_no_video_and_their_rows_are_examples(data):
    videos = {}
    for split, size in SIZES.items():
        examples = [Example.from_row(row) for row in rows(data / f"{split}.jsonl")]
        assert len({example.id for example in examples}) == size
        videos[split] = {example.video for example in examples}
        assert all((data / video).stat().st_size > 0 for video in videos[split])
    assert len(set().union(*videos.values())) == sum(map(len, videos.values()))


def test_training_never_shows_the_kinds_that_held_out_questions_are_also_about():
    assert len(UNSEEN_KINDS) == 8
    assert all(
        collections.Counter(kind[place] for kind in UNSEEN_KINDS) == dict.fromkeys(names, 2)
        for place, names in enumerate((world.SHAPES, world.COLOURS, world.DIRECTIONS))
    )
    assert kinds(make_videos.split_rows("train", 400, 0)[1]).isdisjoint(UNSEEN_KINDS)
    assert kinds(make_videos.split_rows("heldout", 400, 0)[1]) >= UNSEEN_KINDS


def test_things_of_one_video_have_three_names_and_kinds_are_balanced():
    scenes = [scene for _, scene in make_videos.split_rows("heldout", 1280, 0)[1]]
    counted = collections.Counter(event.kind for scene in scenes for event in world.events_of(scene))
    assert len(counted) == 64
    assert max(counted.values()) <= 1.25 * min(counted.values())
    for scene in scenes:
        assert len({(event.colour, event.shape) for event in world.events_of(scene)}) == 3


def test_held_out_answers_are_what_happens_and_training_answers_are_not_always():
    examples = {
        split: [Example.from_row(row) for row in make_videos.split_rows(split, 600, 0)[0]] for split in ("train", "heldout")
    }
    shares = {split: np.mean([phrase_f1(row.answer, row) == 1.0 for row in made]) for split, made in examples.items()}
    assert shares["heldout"] == 1.0
    true = {split: [row.caption.count(" moves ") for row in made] for split, made in examples.items()}
    assert set(true["train"]) == {3}
    told = [parse(row.answer, row.question) for row in examples["train"]]
    assert 0.25 < np.mean([len(reply.events) == 2 for reply in told]) < 0.35


@pytest.mark.parametrize(("style", "category"), list(itertools.product(range(3), world.CATEGORIES)))
def test_answers_in_every_style_are_read_as_what_they_tell(style, category):
    rng = np.random.default_rng(style)
    for _ in range(10):
        question = world.ask(EVENTS, category, rng)
        text = world.answer(EVENTS, question, style)
        assert [tuple(said.stated().values()) for said in parse(text, question.text).events] == [
            dataclasses.astuple(event) for event in EVENTS
        ]
        assert 20 <= len(text.split()) <= 50


def test_questions_name_no_thing():
    rng = np.random.default_rng(0)
    for category in world.CATEGORIES:
        for _ in range(20):
            told = parse(world.ask(EVENTS, category, rng).text, "")
            assert all(len(said.stated()) == 1 for said in told.events)


def test_conclusions_follow_from_the_list():
    count = world.Question("How many things are small?", "count", "small")
    assert world.answer(EVENTS, count, 0).endswith(", so two things are small.")
    assert world.answer(EVENTS[:1], count, 0).endswith(", so one thing is small.")
    assert world.counted(0, "cross") == "nothing is a cross"
    assert world.counted(2, "cross") == "two things are crosses"
    last = world.Question("Which thing comes last? Think first.", "reasoning", "last")
    assert world.answer(EVENTS, last, 0).endswith("</think> The small blue circle comes last.")
    assert world.answer(EVENTS[:2], last, 0).endswith("</think> The large green triangle comes last.")


# -- flaws -------------------------------------------------------------------------------------------------------------


def told_carelessly(flaws, num=1200):
    rng = np.random.default_rng(0)
    scenes = world.balanced_scenes(rng, unseen=False)
    pairs = [
        (events, careless.careless_list(events, flaws, rng))
        for events in map(world.events_of, itertools.islice(scenes, num))
    ]
    return pairs


def test_a_writer_without_flaws_tells_what_happens():
    assert all(events == told for events, told in told_carelessly(NO_FLAWS, 200))


def test_flaws_have_their_shares():
    pairs = told_carelessly(Flaws())
    lengths = collections.Counter(len(told) - len(events) for events, told in pairs)
    assert 0.18 < lengths[-1] / len(pairs) < 0.29  # left out
    assert 0.18 < lengths[1] / len(pairs) < 0.29  # invented
    names = [([e.shape for e in events], [e.shape for e in told[:3]]) for events, told in pairs if len(told) >= 3]
    assert 0.15 < np.mean([a != b and sorted(a) == sorted(b) for a, b in names]) < 0.3  # told in another order
    known = [
        (event.colour, careless.slipped(event, Flaws(), np.random.default_rng(index)).colour)
        for index, (events, _) in enumerate(pairs)
        for event in events
        if event.shape in careless.WELL_KNOWN and event.colour != careless.TYPICAL_COLOUR[event.shape]
    ]
    assert 0.35 < np.mean([a != b for a, b in known]) < 0.5


def test_reasoning_is_contradicted_in_its_share():
    rng = np.random.default_rng(0)
    scenes, wrong = world.balanced_scenes(rng, unseen=False), []
    for scene in itertools.islice(scenes, 500):
        events = world.events_of(scene)
        question = world.ask(events, "reasoning", rng)
        text = careless.careless_answer(events, question, 0, Flaws(), rng)
        wrong.append(bool(phrase_f1.measure([text], [example(question, events)])["contradicts"]))
    assert 0.2 < np.mean(wrong) < 0.35


def example(question, events):
    answer = world.answer(events, question, 0)
    caption = world.listed(events, 0)
    return Example(id="a", video="v.mp4", question=question.text, answer=answer, category=question.category, caption=caption)


# -- hints -------------------------------------------------------------------------------------------------------------


def test_hints_are_wrong_or_incomplete_in_their_shares():
    rng = np.random.default_rng(0)
    hints = [imperfect(EVENTS, rng) for _ in range(3000)]
    missing = np.mean([None in hint for hint in hints])
    wrong = np.mean([any(said not in (None, true) for said, true in zip(hint, EVENTS, strict=True)) for hint in hints])
    assert abs(missing - 0.3) < 0.03
    assert abs(wrong - 0.3 * (1 - 0.3 / 3)) < 0.03  # a wrong event may be the one that is left out


def test_repairing_mends_errors_in_their_share_and_makes_none():
    rng = np.random.default_rng(0)
    told = [dataclasses.replace(EVENTS[0], colour="blue"), None, EVENTS[2]]
    made = [repaired(told, EVENTS, rng) for _ in range(2000)]
    assert abs(np.mean([row[0] == EVENTS[0] for row in made]) - 0.6) < 0.04
    assert abs(np.mean([row[1] == EVENTS[1] for row in made]) - 0.6) < 0.04
    assert all(row[2] == EVENTS[2] for row in made)
    assert {row[0].colour for row in made} == {"red", "blue"}


def test_samples_hold_the_prompts_that_a_run_asks():
    rng = np.random.default_rng(0)
    scene = next(world.balanced_scenes(rng, unseen=False))
    hinted = draw_sample(scene, NO_FLAWS, rng, hinted=1.0)
    assert hinted.frames.shape == (12, 56, 56, 3)
    assert len(hinted.turns) == 3
    assert all("\nHint: " in prompt for prompt, _ in hinted.turns)
    reflecting = draw_sample(scene, NO_FLAWS, rng, reflecting=1.0)
    assert all("\nEarlier reply: " in prompt for prompt, _ in reflecting.turns)
    blind = draw_sample(scene, dataclasses.replace(Flaws(), blind=1.0), rng)
    for prompt, reply in blind.turns:
        for said in parse(reply, prompt).events:
            assert said.colour == careless.TYPICAL_COLOUR[said.shape]


# -- checkpoint --------------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_complete_small_and_of_the_phases_that_train_it():
    folder = Path(make_videos.__file__).parent / "model"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "training_log.jsonl"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6e6
    first, *steps = rows(folder / "training_log.jsonl")
    assert first["phases"] == [dataclasses.asdict(phase) for phase in train_base.PHASES]
    lengths = {phase.name: phase.steps for phase in train_base.PHASES}
    assert {row["phase"]: row["step"] for row in steps} == lengths


def test_what_is_copied_is_about_another_video():
    rng = np.random.default_rng(0)
    scenes = world.balanced_scenes(rng, unseen=False)
    own, other = next(scenes), next(scenes)
    told = {event.kind for event in world.events_of(other)} - {event.kind for event in world.events_of(own)}
    assert told
    for _ in range(20):
        sample = draw_sample(own, NO_FLAWS, rng, copying=1.0, other=other)
        assert all(reply in prompt for prompt, reply in sample.turns)
    assert not any(reply in prompt for prompt, reply in draw_sample(own, NO_FLAWS, rng, other=other).turns)


# -- judge -------------------------------------------------------------------------------------------------------------


def judged(response, question="What happens in the video?", **options):
    caption = f"{world.listed(EVENTS, 0)}."
    prompt = substitute(JUDGE, caption=caption, question=question, answer="unknown", response=response)
    return rule_judge.judge(prompt, **options)


def test_the_judge_says_what_a_reasoning_leads_to():
    question = world.ask(EVENTS, "reasoning", np.random.default_rng(0))
    for style in range(3):
        true = world.answer(EVENTS, question, style)
        reasoning = verified.parts(true)[0]
        row = {
            "example": Example(id="e", video="v", question=question.text, answer=true).to_row(),
            "prompt": CONSISTENCY,
            "compare": "examples.events.scorers:same_conclusion",
        }
        torn = true.replace(verified.parts(true)[1], verified.parts(world.answer(EVENTS[::-1], question, style))[1])
        assert torn != true
        assert reasoning in torn
        config = JudgeConfig(kind="openai", model="rules", base_url="http://x/v1")
        rows = [row | {"response": text} for text in (true, torn)]
        made = verified.consistency(
            rows, config, lambda asked: [rule_judge.judge(each[0]["content"]) for each in asked], "m"
        )
        assert [each.get("score") for each in made] == [5.0, 1.0], made


def test_the_judge_corrects_a_wrong_answer_in_its_own_style():
    question, wrong = (
        "What happens in the video?",
        world.answer(EVENTS[:2], world.question_of("What happens in the video?"), 1),
    )
    truth = world.solve(EVENTS, question)
    prompt = substitute(BRIDGE, question=question, answer=truth, previous=wrong)
    corrected = rule_judge.judge(prompt)
    assert corrected == world.solve(EVENTS, question, 1)
    recipe = RrpoRecipe(
        bridge="judge",
        judge=JudgeConfig(kind="openai", model="rules", base_url="http://x/v1"),
        trust="examples.events.scorers:agreement",
        max_trust=0.9,
    )
    example = Example(id="e", video="v", question=question, answer=truth)
    assert why_no_bridge(example, wrong, corrected, recipe) == ""
    told_nothing = rule_judge.judge(substitute(BRIDGE, question=question, answer=truth, previous="Hm."))
    assert why_no_bridge(example, "Hm.", told_nothing, recipe) == "no_bridge"


def test_the_judge_goes_by_the_caption_and_the_phrases():
    rng = np.random.default_rng(0)
    for category in world.CATEGORIES:
        question = world.ask(EVENTS, category, rng)
        assert judged(world.answer(EVENTS, question, 2), question.text).endswith("Score: 5")
    assert judged("A small yellow cross moves right.").endswith("Score: 1")
    assert judged(world.listed([*EVENTS, careless.INVENTED], 0)).endswith("Score: 4")
    assert "Score" not in judged("Lorem ipsum.")
    assert "Score" not in judged(world.listed(EVENTS, 0), "Why?")


def test_the_judge_turns_around_the_share_of_its_verdicts_that_is_asked_for():
    turned = [rule_judge.flipped(f"prompt {number}", 0.25, 0) for number in range(2000)]
    assert abs(np.mean(turned) - 0.25) < 0.04
    assert turned == [rule_judge.flipped(f"prompt {number}", 0.25, 0) for number in range(2000)]
    assert turned != [rule_judge.flipped(f"prompt {number}", 0.25, 1) for number in range(2000)]
    assert not any(rule_judge.flipped(f"prompt {number}", 0.0, 0) for number in range(100))
    assert judged("A small yellow cross moves right.", flips=1.0).endswith("Score: 5")
    assert judged(f"{world.listed(EVENTS, 0)}.", flips=1.0).endswith("Score: 1")


def test_batches_of_the_base_are_the_same_when_they_are_drawn_ahead():
    see, tell = (dataclasses.replace(train_base.PHASES[number], num_videos=2) for number in (0, 3))
    made = {}
    for ahead in (False, True):
        for phase in (see, tell):
            rng = np.random.default_rng(7)
            step = functools.partial(train_base.draw, phase, world.balanced_scenes(rng, unseen=False), rng)
            made[ahead, phase.name] = list(train_base.drawn(step, 3, ahead=ahead))
    for now, later in zip(made[False, see.name], made[True, see.name], strict=True):
        assert now[0] == later[0]
        np.testing.assert_array_equal(now[1], later[1])
    for now, later in zip(made[False, tell.name], made[True, tell.name], strict=True):
        assert [sample.turns for sample in now] == [sample.turns for sample in later]
        assert all((one.frames == two.frames).all() for one, two in zip(now, later, strict=True))
