"""Pairs over videos: which clips they show, what a forward pass of them gives, and who learns from them."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_augment import make_clip
from test_pairing import data_row
from test_recipe_units import CLIPS as UNIT_CLIPS
from test_recipe_units import EXAMPLES, respond
from test_reference import prepared  # noqa: F401 (fixture)

from actors import generator
from actors.reference import kept_paths
from actors.training_data import TrainingData
from pipelines.checks.learning import check_clip_pairs, check_clips, check_given, forward_tokens
from pipelines.inputs import read_inputs
from pipelines.reports.examples import drawn_pairs
from pipelines.stages.clip_pairs import altered_here, with_clip_pairs, write_frames
from vidalign import files, recipes
from vidalign.config.degrading import ClipPairsConfig
from vidalign.config.loading import parse_config
from vidalign.config.recipes import RECIPES
from vidalign.config.rewriting import RrpoRecipe
from vidalign.data.reading import read_rows
from vidalign.data.rows import parse_row
from vidalign.data.stored_pairs import stored_pair
from vidalign.errors import ConfigError, DataError, RowError
from vidalign.learning import objectives
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import pair_group
from vidalign.learning.views import view_of
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.logps import RowLogps
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import cached_processor, render_prompt
from vidalign.model.tensor_cache import TensorCache
from vidalign.recipes.base import Evidence
from vidalign.types import Example, FrameSpec, PreferencePair
from vidalign.video.altered import alter, altered_path, write_altered
from vidalign.video.frame_cache import FrameCache, load_clip
from vidalign.video.scene import Scene, scene_of

REVERSED = ClipPairsConfig(perturb={"mask_area": None, "shuffle": "reverse"})
SHUFFLED = ClipPairsConfig(perturb={"mask_area": None, "shuffle": "global"}, with_others="alone")


@pytest.fixture(scope="module")
def made(prepared):  # noqa: F811
    """(pairs, those over videos among them; where all clips are; the folder)."""
    _, folder = prepared
    frames = files.read_json(folder / "frames.json")
    pairs = files.read_table(folder / "pairs.parquet", PreferencePair)
    both, altered, dropped = with_clip_pairs(
        pairs, frames, REVERSED, seed=1, alter=lambda asked: altered_here(asked, REVERSED)
    )
    assert dropped == {}
    return both, {**frames, **altered}, folder


def test_each_pair_gets_one_of_its_chosen_response_with_another_clip(made):
    both, frames, _ = made
    assert len(both) == 6
    for pair, over in zip(both[:3], both[3:], strict=True):
        assert not pair.rejected_videos
        assert over.chosen == over.rejected == pair.chosen
        assert (over.chosen_marks, over.rejected_marks) == ((), ())
        assert over.context == pair.context
        assert over.id != pair.id
        clean = load_clip(frames[pair.video])
        [other] = [load_clip(frames[name]) for name in over.rejected_context.videos]
        np.testing.assert_array_equal(other.frames, clean.frames[::-1])
        assert (other.indices, other.fps) == (clean.indices, clean.fps)
        assert json.loads(over.provenance)["rule"] == "clip_pairs"
    assert len({pair.id for pair in both}) == 6


def test_a_pair_comes_back_from_its_table_and_another_pair_is_stored_as_before(made, tmp_path):
    both, frames, _ = made
    files.write_table(tmp_path / "pairs.parquet", both)
    back = files.read_table(tmp_path / "pairs.parquet", PreferencePair)
    assert [pair.rejected_context for pair in back] == [pair.rejected_context for pair in both]
    assert [repr(pair.content()) for pair in back[:3]] == [repr(pair.content()) for pair in both[:3]]
    assert "rejected_videos" not in both[0].to_row()
    write_frames(tmp_path, {}, frames)
    assert files.read_places(tmp_path / "frames.json") == frames


def test_a_clip_that_would_show_the_same_gives_no_pair(tmp_path, made):
    still = dataclasses.replace(make_clip(4, 56, 56), frames=np.repeat(make_clip(1, 56, 56).frames, 4, 0))
    path = FrameCache(tmp_path).put("aaaa", FrameSpec(), still)
    assert alter(still, REVERSED, 3) is None
    assert write_altered(path, SHUFFLED, 3) is None
    masked = ClipPairsConfig(perturb={"shuffle": "none"})
    assert not np.array_equal(alter(still, masked, 3).frames, still.frames)
    pair = made[0][0]
    alone, altered, dropped = with_clip_pairs(
        [pair, *(dataclasses.replace(pair, id=name, video="", images=("i.png",), example_id=name) for name in ("f", "g"))],
        {pair.video: str(path), "i.png": str(path)},
        SHUFFLED,
        seed=1,
        alter=lambda asked: altered_here(asked, SHUFFLED),
    )
    assert (alone, altered, dropped) == ([], {}, {"same_clip": 1, "no_video": 2})


def test_a_shuffle_of_two_frames_is_drawn_until_it_shows():
    clip = make_clip(2, 56, 56)
    for seed in range(20):
        found = alter(clip, SHUFFLED, seed)
        if found is not None:
            np.testing.assert_array_equal(found.frames, clip.frames[::-1])
    assert sum(alter(clip, SHUFFLED, seed) is not None for seed in range(40)) >= 35


def test_equal_seeds_give_one_file_and_a_torn_one_is_made_again(tmp_path):
    path = FrameCache(tmp_path).put("aaaa", FrameSpec(), make_clip(8, 56, 56))
    first = write_altered(path, SHUFFLED, 5)
    whole = first.read_bytes()
    assert write_altered(path, SHUFFLED, 5) == first == altered_path(path, SHUFFLED, 5)
    assert write_altered(path, SHUFFLED, 6) != first
    first.write_bytes(whole[:-100])
    write_altered(path, SHUFFLED, 5)
    assert first.read_bytes() == whole


def test_a_response_that_is_preferred_twice_has_one_pair_over_videos(made):
    both, frames, _ = made
    twice = [both[0], dataclasses.replace(both[0], id="other", rejected="Something else.", chosen_reward=-99.0)]
    over, _, _ = with_clip_pairs(twice, frames, SHUFFLED, seed=1, alter=lambda asked: altered_here(asked, SHUFFLED))
    assert [(pair.chosen, pair.chosen_reward) for pair in over] == [(both[0].chosen, both[0].chosen_reward)], "of the first"
    others = [both[0], dataclasses.replace(both[0], id="third", chosen="It moves away.")]
    over, _, _ = with_clip_pairs(others, frames, SHUFFLED, seed=1, alter=lambda asked: altered_here(asked, SHUFFLED))
    assert len({pair.id for pair in over}) == 2


def source_of(frames, model, packed):
    return BatchSource(
        frames=frames,
        processor=cached_processor(str(model.path)),
        plain_prompt="{question}",
        max_model_len=512,
        number=shared_prefix.numbering(load_policy(model)) if packed else None,
    )


@pytest.mark.parametrize("packed", [False, True])
def test_dpo_on_them_is_the_loss_of_the_paper(made, prepared, packed):  # noqa: F811
    """-log sigmoid(beta [log pi/ref(y | v) - log pi/ref(y | v')]), each log-prob by a pass over one prompt and one response."""
    both, frames, _ = made
    config = prepared[0]
    model = load_policy(config)
    source = source_of(frames, config, packed)
    scorer = ResponseScorer(model, packed=packed).eval()
    groups = [pair_group(pair) for pair in (both[3], both[0], both[4])]  # one of two responses among those of two clips

    def rows_of(these):
        batch = source.batch(these)
        logps, _, _ = scorer(batch.inputs, batch.labels, None, batch.sources)
        return RowLogps(logps=logps, mask=batch.labels != IGNORED)

    def alone(group, side):
        each = group.responses[side]
        shown = dataclasses.replace(group, context=each.context or group.context)
        with torch.no_grad():
            return rows_of([dataclasses.replace(shown, responses=(dataclasses.replace(each, context=None),))])

    kept = {
        group.id: {
            name: (row.logps[0][row.mask[0]] - 0.01 * (side + 1))
            for side, name in enumerate(("chosen", "rejected"))
            for row in [alone(group, side)]
        }
        for group in groups
    }
    objective = objectives.build("dpo", {"beta": 0.5})
    view = view_of(objective)(objective=objective, source=source, kept=kept.__getitem__)
    rows = rows_of(groups)
    loss = objective(view.policy(rows, groups), view.reference(rows, groups))
    expected = []
    for group in groups:
        sums = [float(alone(group, side).logps[alone(group, side).mask].double().sum()) for side in (0, 1)]
        references = [float(kept[group.id][name].double().sum()) for name in ("chosen", "rejected")]
        margin = (sums[0] - references[0]) - (sums[1] - references[1])
        expected.append(math.log1p(math.exp(-0.5 * margin)))
    assert float(loss.value) == pytest.approx(sum(expected) / 3, abs=1e-5)
    sides = rows.avg.view(2, 3)
    assert abs(float((sides[0] - sides[1])[0])) > 1e-4, "the two clips tell the model different things"
    loss.value.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    lengths = [source.num_tokens(group) for group in groups]
    one = source.num_tokens(dataclasses.replace(groups[0], responses=groups[0].responses[:1]))
    assert lengths[0] == 2 * one, "a pair over videos has two prompts, packed or not"


def test_its_reference_is_kept_apart_from_that_of_other_pairs(made, tmp_path):
    both, frames, _ = made
    same = dataclasses.replace(both[3], rejected_videos=())
    other = dataclasses.replace(both[3], rejected_videos=both[4].rejected_videos)
    paths = [
        kept_paths(TensorCache(tmp_path), [pair], frames, policy_version="v", dtype="float32", plain_prompt="p", parts=[])
        for pair in (both[3], same, other)
    ]
    assert len({next(iter(each.values())) for each in paths}) == 3


def test_displacement_is_measured_of_them_too(made):
    groups = [pair_group(pair) for pair in made[0]]
    data = TrainingData(groups=groups, probe=[], reference={}, doubt={})
    assert data.watched == groups
    assert [len(group.prompts) for group in groups] == [1, 1, 1, 2, 2, 2]
    assert [sides for _, sides in groups[3].prompts] == [(0,), (1,)]


def parse(recipe, objective="dpo", **more):
    base = {"run_dir": "x", "model": {"path": "m"}, "data": {"train": "t"}, "objective": {"name": objective}}
    return parse_config({**base, "recipe": recipe, **more})


JUDGE = {"kind": "openai", "model": "m", "base_url": "http://x/v1"}
CLIPS = {"clip_pairs": {"perturb": {"shuffle": "reverse"}}}


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_and_objective_takes_pairs_over_videos_or_says_why_not(recipe, objective):
    raw = {"name": recipe, **({"judge": JUDGE} if recipe in ("hound", "verified") else {}), **CLIPS}
    if recipe == "group":
        with pytest.raises(ConfigError, match=r"recipe.clip_pairs is for pairs, and recipe group makes none"):
            parse(raw, objective)
        return
    config, kind = parse(raw, objective), objectives.build(objective, {})
    if kind.consumes == "groups":
        return  # refused by another rule, whatever the option
    if kind.needs_phrases or not kind.needs_rejected:
        with pytest.raises(
            ConfigError, match=f"objective.name={objective} learns from the .*; choose an objective such as dpo"
        ):
            check_clip_pairs(config)
    else:
        check_clip_pairs(config)
        check_given(config, [])


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"perturb": {}, "augment": {}},
        {"perturb": {}, "of_rows": True},
        {"perturb": {"mask_area": None, "shuffle": "none"}},
    ],
)
def test_another_clip_is_made_in_one_way_that_changes_something(raw):
    with pytest.raises(ConfigError, match=r"needs exactly one of perturb, augment and of_rows|leave the video unchanged"):
        parse({"name": "given", "clip_pairs": raw})


def test_a_forward_pass_of_them_holds_two_prompts():
    sizes = {"batch_size": 4, "micro_batch_size": 2}
    assert forward_tokens(parse({"name": "given", **CLIPS}, train=sizes), 100, packed=True) == 400
    limited = parse({"name": "given", **CLIPS}, train={**sizes, "tokens_per_micro_batch": 150})
    assert forward_tokens(limited, 100, packed=True) == 200


def test_they_are_no_data_of_another_run(made):
    with pytest.raises(RowError, match="rejected_videos"):
        stored_pair(made[0][3].to_row())
    assert repr(stored_pair(made[0][0].to_row())) == repr(made[0][0])


@pytest.mark.parametrize("packed", [False, True])
def test_a_forward_pass_says_how_sure_the_policy_is(made, prepared, packed):  # noqa: F811
    """What `weigh_stale` needs, of every response token: log sum p^2, beside its log-prob."""
    both, frames, _ = made
    model = load_policy(prepared[0])
    source = source_of(frames, prepared[0], packed)
    scorer = ResponseScorer(model, packed=packed, squares=True, chunk_size=5).eval()
    groups = [pair_group(pair) for pair in both[2:4]]
    batch = source.batch(groups)
    with torch.no_grad():
        logps, _, hidden, squares = scorer(batch.inputs, batch.labels, None, batch.sources)
        probabilities = scorer.logits(hidden).softmax(-1)
    mask = batch.labels != IGNORED
    torch.testing.assert_close(squares[mask], probabilities.square().sum(-1).log(), atol=1e-5, rtol=1e-5)
    assert (squares[~mask] == 0).all()
    objective = objectives.build("simpo", {"weigh_stale": True})
    view = view_of(objective)(objective=objective, source=source, kept={}.__getitem__)
    rows = RowLogps(logps=logps, mask=mask, squares=squares)
    assert 0 < float(objective(view.policy(rows, groups)).metrics["weight"]) <= 1


OF_ROWS = ClipPairsConfig(of_rows=True)


def test_a_row_may_bring_the_clip_with_which_its_answer_is_wrong(made, tmp_path):
    both, frames, _ = made
    pairs = both[:3]  # of videos a, b and a
    own = {"e0": "b", "e1": "gone", "e2": "copy"}
    found, altered, dropped = with_clip_pairs(
        [*pairs, dataclasses.replace(pairs[0], example_id="e3")],
        {**frames, "copy": frames["a"]},
        OF_ROWS,
        seed=1,
        alter=lambda asked: {},
        of_rows=own,
    )
    assert [pair.rejected_videos for pair in found[4:]] == [("b",)]
    assert found[4].rejected == found[4].chosen == pairs[0].chosen
    assert (altered, dropped) == ({}, {"video_quarantined": 1, "same_clip": 1, "no_video": 1})


def row(**more):
    return {"id": "e", "video": "a.mp4", "question": "Which way?", "answer": "left", **more}


def test_rows_with_another_clip_are_read_and_their_clips_looked_for(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "train.jsonl").write_text(json.dumps(row(rejected_video="b.mp4")) + "\n" + json.dumps(row(id="f")) + "\n")
    [first, second] = read_rows(tmp_path / "train.jsonl")
    assert first.example.rejected_video == str(tmp_path / "b.mp4")
    assert first.example.decoded == (str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"))
    assert second.example.decoded == (str(tmp_path / "a.mp4"),)
    assert "rejected_video" not in second.example.to_row(), "rows without one are recorded as they were"
    assert Example.from_row(first.example.to_row()) == first.example
    config = parse({"name": "given", "clip_pairs": {"of_rows": True}}, data={"train": str(tmp_path / "train.jsonl")})
    inputs = read_inputs(config.data, config.recipe)
    assert inputs.present == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    (tmp_path / "b.mp4").unlink()
    assert read_inputs(config.data, config.recipe).missing == [str(tmp_path / "b.mp4")]


def test_rows_without_what_the_pairs_are_made_of_are_refused_before_a_run(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(row()) + "\n")
    rows = read_rows(tmp_path / "train.jsonl")
    check_clips(parse({"name": "given", **CLIPS}), rows)
    with pytest.raises(DataError, match=r"none of the 1 rows of t names one; add them"):
        check_clips(parse({"name": "given", "clip_pairs": {"of_rows": True}}), rows)
    pictures = [
        dataclasses.replace(each, example=dataclasses.replace(each.example, video="", images=("i",))) for each in rows
    ]
    with pytest.raises(DataError, match=r"the 1 rows of t show images alone"):
        check_clips(parse({"name": "given", **CLIPS}), pictures)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rejected_video": "a.mp4"}, "is the video of the row itself"),
        ({"rejected_video": "b.mp4", "images": ["i.png"]}, "stands beside 1 videos and 1 images"),
        ({"rejected_video": 3}, "rejected_video"),
        (
            {"rejected_video": {"video": "a.mp4", "clip": {"start": 0, "end": 5}}, "clip": {"start": 0, "end": 5}},
            "row itself",
        ),
        ({"rejected_video": ["a.png", "b.png"]}, "is a list of frames without 'fps'"),
        ({"rejected_video": {"video": "b.mp4", "clip": {"start": 9, "end": 5}}}, "ends at 5 s, and begins at 9 s"),
    ],
)
def test_another_clip_that_makes_no_sense_is_refused(more, says):
    _, errors = parse_row(row(**more))
    assert any(says in str(error) for error in errors), errors


def test_the_report_shows_both_clips(made):
    shown = {}

    def strip(name):
        shown[name] = {"thumbnails": [(name, "0 s")], "note": None}
        return shown[name]

    response_pair, over = (drawn_pairs([pair], strip, random.Random(0))[0] for pair in (made[0][0], made[0][3]))
    assert response_pair["other"] is None
    assert over["frames"]["thumbnails"] == [("a", "0 s")]
    assert over["other"]["thumbnails"] == [(made[0][3].rejected_videos[0], "0 s")]
    assert over["sides"][1]["source"].startswith("kind clip")


def test_a_policy_may_answer_about_the_rows_other_clip():
    """TPO's losers: answers to another video, or another part of it, scored as answers to the row's own."""
    config = RrpoRecipe(num_candidates=2, shows="rejected_video", trust="exact")
    other = make_clip(4, 32, 32, seed=9)
    with_other = Scene(context=EXAMPLES[0].context, clips=(UNIT_CLIPS[0],), other=other)
    engine, responses = respond(config, lambda request: "A red circle moves up.", EXAMPLES, [with_other, UNIT_CLIPS[1]])
    assert [(r.example_id, r.kind) for r in responses if r.kind == "perturbed"] == [("a", "perturbed")] * 2
    assert all(scene_of(request.clip).clips == (other,) for request in engine.requests)
    recipe = recipes.build(config)
    own = [r for r in responses if r.example_id == "a"]
    assert recipe.pair(data_row(EXAMPLES[0]), own, Evidence()).rejected == "A red circle moves up."
    assert recipe.pair(data_row(EXAMPLES[1]), [r for r in responses if r.example_id == "b"], Evidence()) == "no_other_clip"
    assert recipe.needs_other_clip


def test_the_generator_hands_the_other_clip_on_and_shows_it_in_no_prompt(made):
    _, frames, _ = made
    example = Example(id="e", video="a", question="q", answer="x", rejected_video="b")
    scene = generator.shown_of(example, frames)
    np.testing.assert_array_equal(scene.other.frames, load_clip(frames["b"]).frames)
    [clip] = scene.clips
    np.testing.assert_array_equal(clip.frames, load_clip(frames["a"]).frames)
    without = generator.shown_of(dataclasses.replace(example, rejected_video="gone"), frames)
    np.testing.assert_array_equal(without.frames, clip.frames)
    processor = cached_processor(str(ROOT / "examples/shapes/model"))
    alone, beside = (render_prompt(processor, "Which way?", what).tokens["input_ids"].tolist() for what in (without, scene))
    assert alone == beside


def test_its_own_clips_are_not_perturbed_and_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="leave perturb out, or shows"):
        parse({"name": "rrpo", "shows": "rejected_video", "perturb": {"shuffle": "global"}})
    (tmp_path / "train.jsonl").write_text(json.dumps(row()) + "\n")
    with pytest.raises(DataError, match=r"none of the 1 rows of t names one; add them, or set recipe.shows to perturbed"):
        check_clips(parse({"name": "rrpo", "shows": "rejected_video"}), read_rows(tmp_path / "train.jsonl"))


def test_another_part_of_the_same_video_is_another_clip(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"a")
    made = row(clip={"start": 0, "end": 5}, rejected_video={"video": "a.mp4", "clip": {"start": 30, "end": 60}})
    (tmp_path / "train.jsonl").write_text(json.dumps(made) + "\n")
    [read] = read_rows(tmp_path / "train.jsonl")
    assert read.example.rejected_video == f"{(tmp_path / 'a.mp4').as_uri()}#t=30,60"
    assert read.example.video != read.example.rejected_video
