"""Every recipe before a fake engine: what it asks, with which seeds, and what it makes of the replies."""

import json

import numpy as np
import pytest
from test_pairing import data_row

from vidalign import recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import dump_config, load_config, parse_config
from vidalign.config.recipes import GivenRecipe, HoundRecipe, LeanpoRecipe, RrpoRecipe
from vidalign.errors import ConfigError, DataError
from vidalign.recipes.engine import Completion
from vidalign.recipes.kinds import KINDS, kind_of, kinds_on
from vidalign.recipes.sampling import request_seed
from vidalign.records import Context, Turn
from vidalign.types import Example
from vidalign.video.clip import Clip
from vidalign.video.scene import Scene

JUDGE = JudgeConfig(kind="openai", model="judge", base_url="http://127.0.0.1:1/v1")
EXAMPLES = [
    Example(id="a", video="a.mp4", question="Which way?", answer="A red circle moves left."),
    Example(id="b", video="b.mp4", question="What colour?", answer="It is blue.", options=("It is blue.", "It is red.")),
]


class FakeEngine:
    """Answers by a function of the request; scores a reply by its length. Keeps what it was asked."""

    def __init__(self, answer):
        self.answer, self.requests, self.scored = answer, [], []

    def generate(self, requests):
        self.requests += requests
        return [self._completion(self.answer(request)) for request in requests]

    def _completion(self, text):
        ids = tuple(range(len(text.split())))
        return Completion(text=text, token_ids=ids, log_probs=(-0.5,) * len(ids), finish_reason="stop")

    def score(self, rows):
        self.scored += rows
        return [(-0.1 * len(text),) * 2 for _, _, text in rows]

    def num_tokens(self, text):
        return len(text.split())


def clip(shade):
    frames = np.full((4, 32, 32, 3), shade, np.uint8)
    return Clip(frames=frames, fps=2.0, total_num_frames=4, indices=(0, 1, 2, 3), duration_s=2.0)


CLIPS = [clip(40), clip(200)]


def respond(config, answer, examples=EXAMPLES, clips=CLIPS):
    engine = FakeEngine(answer)
    made = recipes.build(config).respond(engine, examples, clips, policy_version="p1", seed=7)
    return engine, made


def kinds(responses):
    return [(r.example_id, r.kind, r.candidate, r.turn) for r in responses]


def test_leanpo_hints_reflects_and_degrades_the_video():
    engine, made = respond(LeanpoRecipe(num_candidates=2), lambda request: f"reply to {request.prompt[:5]}")
    assert kinds(made) == [
        (example, kind, candidate, turn)
        for kind, turn in (("hinted", 0), ("reflected", 1), ("augmented", 0))
        for example in "ab"
        for candidate in (0, 1)
    ]
    hinted, reflected, augmented = engine.requests[:4], engine.requests[4:8], engine.requests[8:]
    assert all("Hint: " in request.prompt for request in hinted)
    assert all("Earlier reply: reply to W" in request.prompt for request in reflected)
    assert [request.prompt for request in augmented] == ["Which way?"] * 2 + ["What colour?"] * 2
    assert all(request.clip.frames.shape[0] == 2 for request in augmented)
    assert [request.top_p for request in (hinted[0], augmented[0])] == [0.9, 1.0]
    assert len({request.seed for request in engine.requests}) == len(engine.requests)
    assert hinted[0].seed == request_seed(7, "a", "hinted", 0, 0)
    assert augmented[0].seed == request_seed(7, "a", "augmented", 0)


def test_leanpo_scores_each_distinct_reply_once_without_hints():
    engine, made = respond(LeanpoRecipe(num_candidates=3), lambda request: "A red circle moves left.")
    assert [(prompt, text) for prompt, _, text in engine.scored] == [
        ("Which way?", "A red circle moves left."),
        ("What colour?", "A red circle moves left."),
    ]
    assert all(r.reward == pytest.approx(-2.4) for r in made)
    assert {(r.example_id, r.trust == 1.0) for r in made} == {("a", True), ("b", False)}


def test_replies_do_not_depend_on_which_examples_are_answered_together():
    config = LeanpoRecipe(num_candidates=2, negatives="both")

    def answer(request):
        return f"{request.seed} {int(request.clip.frames.sum())}"

    together = respond(config, answer)[1]
    alone = [
        response
        for example, frames in zip(EXAMPLES, CLIPS, strict=True)
        for response in respond(config, answer, [example], [frames])[1]
    ]
    assert sorted(kinds(together)) == sorted(kinds(alone))
    assert {(r.example_id, r.kind, r.text) for r in together} == {(r.example_id, r.kind, r.text) for r in alone}


def test_leanpo_without_hints_and_with_replays():
    config = LeanpoRecipe(num_candidates=1, num_turns=1, hints=False, negatives="replayed")
    engine, made = respond(config, lambda request: "MADE" if request.prefix or request.max_new_tokens < 100 else "plain")
    assert [kind for _, kind, _, _ in kinds(made)] == ["unhinted", "unhinted", "replayed", "replayed"]
    assert all(request.prompt in ("Which way?", "What colour?") for request in engine.requests)
    for response, request in zip(made[2:], engine.requests[2:], strict=True):
        assert response.text == f"{request.prefix}MADE"  # the reply ended, so nothing follows the new segment
    recipe = recipes.build(config)
    assert recipe.keeps_replays
    found = recipe.replays([(made, [])])
    assert [r.kind for r in found.responses] == ["replayed", "replayed"]
    assert not recipes.build(LeanpoRecipe()).keeps_replays


def test_rrpo_rewrites_the_likeliest_wrong_reply_only():
    def answer(request):
        if "List what" in request.prompt:
            return "red => blue" if "Which" in request.prompt else "I see none."
        if "Swap in" in request.prompt:
            return "A blue circle moves left."
        return "A blue thing." if request.prompt == "Which way?" else "It is red."

    engine, made = respond(RrpoRecipe(num_candidates=2, rewrite="policy"), answer)
    by_kind = {kind: [r for r in made if r.kind == kind] for kind in dict.fromkeys(r.kind for r in made)}
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "perturbed": 4,
        "truth": 2,
        "rewritten": 1,
        "differences": 2,
    }
    perturbed = engine.requests[0].clip.frames
    assert perturbed.shape == CLIPS[0].frames.shape
    assert not np.array_equal(perturbed, CLIPS[0].frames)
    assert all(request.temperature == 0 for request in engine.requests[4:])
    assert [r.trust for r in by_kind["truth"]] == [1.0, 1.0]
    assert np.isnan(by_kind["differences"][0].reward)
    recipe = recipes.build(RrpoRecipe(rewrite="policy"))
    own = [r for r in made if r.example_id == "a"]
    assert recipe.pair(data_row(EXAMPLES[0]), own, recipes.base.Evidence()).rejected == "A blue circle moves left."


@pytest.mark.parametrize(
    ("tries", "rejected"), [(1, "rewrite_differs_elsewhere"), (2, "A red circle moves up."), (3, "A red circle moves up.")]
)
def test_rrpo_tries_further_wrong_replies_where_a_rewrite_cannot_be_used(tries, rejected):
    """The likeliest wrong reply is the shortest; what is listed of it is not what the rewrite changes."""

    def answer(request):
        if "List what" in request.prompt:
            return "red => blue" if "Blue." in request.prompt else "left => up"
        if "Swap in" in request.prompt:
            return "A blue cross moves left." if "blue" in request.prompt else "A red circle moves up."
        return ("Blue.", "Blue. ", "It moves upwards.", "It goes up and up.")[request.seed % 4]

    config = RrpoRecipe(num_candidates=12, rewrite="policy", rewrite_tries=tries)
    engine, made = respond(config, answer, EXAMPLES[:1], CLIPS[:1])
    steps = [request.prompt for request in engine.requests if "List what" in request.prompt]
    assert len(steps) == min(tries, 2)  # a usable rewrite is the last
    assert sum("Blue." in step for step in steps) == 1  # a text is tried once
    outcome = recipes.build(config).pair(data_row(EXAMPLES[0]), made, recipes.base.Evidence())
    assert (outcome if isinstance(outcome, str) else outcome.rejected) == rejected


def test_rrpo_has_a_judge_score_and_rewrite_where_it_is_told_to():
    by_trust = recipes.build(RrpoRecipe())
    _, made = respond(RrpoRecipe(num_candidates=1), lambda request: "wrong")
    assert by_trust.judge_rows(EXAMPLES, made) is None
    assert by_trust.rewrite(EXAMPLES, made, []) is None
    by_judge = recipes.build(RrpoRecipe(wrong_by="judge", judge=JUDGE))
    assert [json.loads(row)["response"] for row in by_judge.judge_rows(EXAMPLES, made).rows] == ["wrong", "wrong"]
    rewriter = recipes.build(RrpoRecipe(rewrite="judge", judge=JUDGE, trust="exact"))
    task = rewriter.rewrite(EXAMPLES, made, [])
    assert [json.loads(row)["wrong"] for row in task.rows] == [[{"candidate": 0, "text": "wrong"}]] * 2
    assert set(task.asked_with) == {"differences_prompt", "rewrite_prompt"}
    rows = [{"example_id": "a", "candidate": 0, "differences": "red => blue", "rewritten": " ", "judge": "j"}]
    assert kinds(rewriter.rewritten(rows)) == [("a", "differences", 0, 0)]


def test_hound_samples_captions_and_wants_captions_in_the_data():
    config = HoundRecipe(num_candidates=2, judge=JUDGE, captions="policy", caption_prompt="Say what is there.")
    engine, made = respond(config, lambda request: "a scene" if "there" in request.prompt else "reply")
    assert [kind for _, kind, _, _ in kinds(made)] == ["plain"] * 4 + ["caption"] * 2
    assert (engine.requests[-1].temperature, engine.requests[-1].prompt) == (0.0, "Say what is there.")
    task = recipes.build(config).judge_rows(EXAMPLES, made)
    assert [json.loads(row)["caption"] for row in task.rows] == ["a scene", "a scene"]
    rows = [data_row(example) for example in EXAMPLES]
    recipes.build(config).check_data(rows, source="train.jsonl")
    with pytest.raises(DataError, match=r"'caption' in every row of train.jsonl, but 2 of 2 rows have none, the first 'a'"):
        recipes.build(HoundRecipe(judge=JUDGE)).check_data(rows, source="train.jsonl")


def test_given_pairs_come_from_the_rows():
    recipe = recipes.build(GivenRecipe())
    assert not recipe.asks_policy
    pair = recipe.pair(data_row(EXAMPLES[0]), [], recipes.base.Evidence())
    assert (pair.chosen, pair.rejected) == (EXAMPLES[0].answer, "")
    assert recipe.given([data_row(EXAMPLES[0])]) == [pair]


@pytest.mark.parametrize(
    ("config", "asked", "described"),
    [
        (
            LeanpoRecipe(),
            ["plain", "hint", "reflection"],
            "leanpo: 4 candidates, 2 turns, augmented negatives, best_vs_worst",
        ),
        (
            LeanpoRecipe(num_turns=1, hints=False),
            ["plain", "hint"],
            "leanpo: 4 candidates, 1 turns, no hints, augmented neg",
        ),
        (RrpoRecipe(), ["plain"], "rrpo: 4 candidates, wrong by trust, rewrite by none"),
        (
            RrpoRecipe(rewrite="policy"),
            ["plain", "differences", "rewrite"],
            "rrpo: 4 candidates, wrong by trust, rewrite by",
        ),
        (HoundRecipe(judge=JUDGE), ["plain"], "hound: 4 candidates, judge judge, threshold 3, captions from data"),
        (HoundRecipe(judge=JUDGE, captions="policy"), ["plain", "caption"], "hound: 4 candidates, judge judge, threshold 3"),
        (GivenRecipe(), ["plain", "given"], "given: pairs from the data"),
    ],
)
def test_what_a_recipe_says_of_itself(config, asked, described):
    recipe = recipes.build(config)
    assert [kind.kind for kind in recipe.asked([data_row(example) for example in EXAMPLES])] == asked
    assert recipe.describe().startswith(described)


def test_every_kind_that_a_recipe_makes_is_in_its_table():
    configs = [
        LeanpoRecipe(negatives="both"),
        LeanpoRecipe(hints=False),
        RrpoRecipe(rewrite="policy"),
        HoundRecipe(judge=JUDGE, captions="policy"),
    ]
    for config in configs:
        made = respond(config, lambda request: "red => blue")[1]
        assert {r.kind for r in made} <= recipes.build(config).kinds.keys()
    assert kinds_on("chosen") == {"hinted", "unhinted", "reflected"}
    assert kinds_on("rejected") == {"augmented", "perturbed", "replayed"}
    assert not kind_of("unheard of").scored
    assert KINDS.keys() >= {"truth", "caption", "differences", "rewritten", "plain"}


# --- a recipe of one's own, in one file ---

OWN = '''
"""Prefers the shorter of two plain replies: a recipe in one file."""

from typing import Literal

from vidalign import prompts
from vidalign.config.recipe import SamplingSection
from vidalign.recipes.base import Recipe
from vidalign.recipes.engine import Request
from vidalign.recipes.pairing import build_pair, side
from vidalign.recipes.sampling import Chunk


class ShorterConfig(SamplingSection):
    name: Literal["own_recipe:Shorter"]
    min_difference: int = 1


class Shorter(Recipe[ShorterConfig]):
    Config = ShorterConfig

    def respond(self, engine, examples, clips, *, policy_version, seed):
        chunk = Chunk(engine, examples, clips, policy_version, seed)

        def plain(row, candidate):
            return Request(
                prompt=prompts.fill(self.config.plain_prompt, question=examples[row].question),
                clip=clips[row],
                seed=chunk.request_seed(row, "plain", candidate),
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                max_new_tokens=self.config.max_new_tokens,
            )

        return chunk.score(chunk.sample("plain", self.config.num_candidates, plain), self.config.plain_prompt)

    def pair(self, row, responses, evidence):
        ordered = sorted(responses, key=lambda r: (len(r.text), r.candidate))
        if len(ordered[-1].text) - len(ordered[0].text) < self.config.min_difference:
            return "equally_long"
        return build_pair(row.example, side(ordered[0]), side(ordered[-1]), recipe=self.config.name, rule="shorter")
'''


@pytest.fixture
def own_recipe(tmp_path, monkeypatch):
    (tmp_path / "own_recipe.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}, "recipe": {"name": "own_recipe:Shorter"}}


def test_a_recipe_of_ones_own_is_one_file(own_recipe, tmp_path):
    config = parse_config(own_recipe, ["recipe.min_difference=3", "recipe.num_candidates=2"])
    assert config.recipe.min_difference == 3
    recipe = recipes.build(config.recipe)
    replies = iter(["long reply", "short", "same", "size"])
    made = recipe.respond(FakeEngine(lambda request: next(replies)), EXAMPLES, CLIPS, policy_version="p", seed=0)
    rows = [data_row(example) for example in EXAMPLES]
    pairs, dropped = recipes.pairing.make_pairs(rows, made, recipe, decoded={"a.mp4", "b.mp4"})
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("short", "long reply")]
    assert dropped == {"equally_long": 1}
    assert json.loads(pairs[0].provenance)["recipe"] == "own_recipe:Shorter"
    assert recipe.describe() == "own_recipe:Shorter: 2 candidates"
    stored = tmp_path / "config.yaml"
    stored.write_text(dump_config(config))
    assert load_config(stored) == config


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (
            {"name": "own_recipe:Shorter", "min_diference": 1},
            "unknown key recipe.min_diference; did you mean recipe.min_dif",
        ),
        ({"name": "own_recipe:Shorter", "min_difference": "x"}, "recipe.min_difference='x'"),
        ({"name": "own_recipe:Longer"}, "has no attribute Longer"),
        ({"name": "no_such_module:Recipe"}, "no module no_such_module"),
        ({"name": "own_recipe:ShorterConfig"}, "is not a recipe"),
        ({"name": "lenpo"}, "choose one of leanpo"),
    ],
)
def test_a_mistake_in_it_is_named(own_recipe, recipe, says):
    with pytest.raises(ConfigError, match=says):
        parse_config({**own_recipe, "recipe": recipe})


def test_a_conversation_and_all_clips_reach_every_request():
    turns = (Turn(role="user", content="What moves?"), Turn(role="assistant", content="A circle."))
    context = Context(videos=("a.mp4", "b.mp4"), images=("i.png",), turns=turns)
    example = Example(
        id="a", video="a.mp4", videos=context.videos, images=context.images, turns=turns, question="Q?", answer="A."
    )
    scene = Scene(context=context, clips=(clip(40), clip(200), clip(90)))
    engine, _ = respond(LeanpoRecipe(num_candidates=1), lambda request: "A reply.", [example], [scene])
    assert {request.clip.context for request in engine.requests} == {context}
    hinted, reflected, augmented = engine.requests
    assert hinted.clip is reflected.clip is scene
    assert [len(each.frames) for each in augmented.clip.clips] == [2, 2, 2], "every clip is degraded"
    assert [shown for _, shown, _ in engine.scored] == [scene]
    engine, _ = respond(
        RrpoRecipe(num_candidates=1, rewrite="judge", judge=JUDGE), lambda request: "No.", [example], [scene]
    )
    assert engine.requests[0].clip.context == context
    assert all((each.frames == 0).any() for each in engine.requests[0].clip.clips)
    config = HoundRecipe(num_candidates=1, captions="policy", judge=JUDGE)
    engine, _ = respond(config, lambda request: "A reply.", [example], [scene])
    asked, caption = engine.requests
    assert (asked.clip.context.turns, caption.clip.context.turns) == (turns, ())
    assert caption.clip.clips == scene.clips
