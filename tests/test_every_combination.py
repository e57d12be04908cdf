"""Every recipe with every objective: what is accepted gives a gradient on what the recipe makes, all else is refused at load.

Pairs of all recipes are of one kind, so that three pairs (and with `clip_pairs` three over videos) stand for all of them; groups are
of three replies.
"""

import dataclasses

import pytest
import torch
from test_clip_pairs import REVERSED, source_of
from test_reference import prepared  # noqa: F401 (fixture)

from pipelines.checks.learning import check_clip_pairs, check_objective, check_prompts, check_recipe
from pipelines.stages.clip_pairs import altered_here, with_clip_pairs
from vidalign import files
from vidalign.config.loading import parse_config
from vidalign.config.recipes import RECIPES
from vidalign.errors import ConfigError
from vidalign.learning import objectives
from vidalign.learning.group_data import training_group, with_token_advantages
from vidalign.learning.pair_data import usable_pairs
from vidalign.learning.sequences import pair_group
from vidalign.learning.views import view_of
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.logps import RowLogps
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.types import PreferencePair, ResponseGroup

JUDGE = {"kind": "openai", "model": "m", "base_url": "http://x/v1"}
KINDS = {"pairs": {}, "over videos": {"clip_pairs": {"perturb": {"mask_area": None, "shuffle": "reverse"}}}}
WITHOUT_REWARDS = {"rewards": {}, "num_candidates": 1}
REFILLED = {"num_prompts": 2, "refill": True}


class Passes:
    """A forward pass of each kind of data, made once."""

    def __init__(self, config, folder):
        self.model = load_policy(config)
        frames = files.read_json(folder / "frames.json")
        pairs = files.read_table(folder / "pairs.parquet", PreferencePair)
        over, altered, _ = with_clip_pairs(
            pairs,
            frames,
            REVERSED,
            seed=1,
            alter=lambda asked: altered_here(asked, REVERSED),
        )
        self.source = source_of({**frames, **altered}, config, True)
        self.pairs = {"pairs": pairs, "over videos": over[3:]}
        self.scorer = ResponseScorer(self.model, packed=True, squares=True).eval()
        self.made = {}
        texts = ("left", "It moves to the left.", "No.")
        sampled = {("e", n): ((*self.source.tokens(pair_group(pairs[1]).responses[0]), n), ()) for n in range(3)}
        self.sampled = {key: (ids, (-0.5,) * len(ids)) for key, (ids, _) in sampled.items()}
        self.group = ResponseGroup(
            id="g", example_id="e", video="a", question="What?", answer="left", texts=texts, rewards=(1.0, 0.0, 0.5), tokens="t",
            left_out=("", "", ""), policy_version="v",
        )  # fmt: skip

    def groups(self, kind, objective):
        if kind == "groups":
            made = [training_group(self.group, self.sampled, objective)]
            if not objective.needs_values:
                return made
            values = {
                name: torch.linspace(-1, 1, len(r.token_ids)) ** 2
                for name, r in zip(made[0].names, made[0].responses, strict=True)
            }
            return with_token_advantages(made, lambda _: values, lam=objective.values_lam)
        return [pair_group(pair) for pair in usable_pairs(self.pairs[kind], objective)[0]]

    def rows(self, key, groups):
        """Log-probs of these groups; the policy is its own reference, moved a little, so that no ratio is one."""
        if key not in self.made:
            batch = self.source.batch(groups)
            count = int((batch.labels[: len(groups)] != IGNORED).sum())
            with torch.no_grad():
                hidden = self.scorer.hidden(batch.inputs, batch.labels, batch.sources)
            logps, kl, _, squares = self.scorer(batch.inputs, batch.labels, 1.1 * hidden[:count], batch.sources)
            self.made[key] = RowLogps(logps=logps, mask=batch.labels != IGNORED, kl=kl, squares=squares)
        return self.made[key]


@pytest.fixture(scope="module")
def passes(prepared):  # noqa: F811
    assert shared_prefix.ATTENTION
    return Passes(*prepared)


def config_of(recipe, objective, params, more):
    raw = {"name": recipe, **({"judge": JUDGE} if recipe in ("hound", "verified") else {}), **more}
    base = {"run_dir": "x", "model": {"path": "m"}, "data": {"train": "t"}}
    return parse_config({**base, "recipe": raw, "objective": {"name": objective, "params": params}})


def accepted(recipe, objective, params, more):
    """Whether a run would begin with these."""
    try:
        config = config_of(recipe, objective, params, more)
        check_objective(config.objective, config.train)
        check_recipe(config)
        check_clip_pairs(config)
        check_prompts(config, 2)
    except ConfigError as error:
        return len(str(error)) < 40  # a refusal says why, and what to do instead
    return True


def gradient(passes, kind, objective):
    groups = passes.groups(kind, objective)
    view = view_of(objective)(objective=objective, source=passes.source, kept=None)
    groups = [view.sequences(group) for group in groups]
    rows = passes.rows((kind, objective.needs_rejected), groups)
    with torch.no_grad():
        shift = 0.1 * torch.cos(torch.arange(rows.logps.numel(), dtype=torch.float32)).view(rows.logps.shape)
    moved = dataclasses.replace(rows, logps=rows.logps.detach() - shift.where(rows.mask, torch.zeros(())))
    kept = {}
    for place, group in enumerate(groups):
        places = range(place, len(rows.logps), len(groups))
        kept[group.id] = {name: moved.logps[n][rows.mask[n]] for name, n in zip(group.names, places, strict=True)}
    view = dataclasses.replace(view, kept=kept.__getitem__)
    loss = objective(view.policy(rows, groups), view.reference(rows, groups))
    assert torch.isfinite(loss.value)
    [found] = torch.autograd.grad(loss.value, rows.logps, retain_graph=True)
    assert torch.isfinite(found).all()
    assert (found[~rows.mask] == 0).all(), "no token outside the responses is learned from"
    return found


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_combination_learns_or_is_refused(recipe, objective, passes):
    params = {"max_tokens": 256} if objective == "dr_grpo" else {}
    kind = objectives.OBJECTIVES[objective]
    on_groups, makes_groups = kind.consumes == "groups", recipe == "group"
    if kind.needs_values:
        assert accepted(recipe, objective, params, WITHOUT_REWARDS) == makes_groups
        assert not makes_groups or not accepted(recipe, objective, params, {}), "it takes no rewards"
    elif makes_groups and on_groups:
        assert not accepted(recipe, objective, params, WITHOUT_REWARDS)
    for data, more in KINDS.items():
        over = data == "over videos"
        if makes_groups and kind.needs_values:
            more = {**more, **WITHOUT_REWARDS}
        fits = on_groups == makes_groups and not (over and (makes_groups or kind.needs_phrases or not kind.needs_rejected))
        assert accepted(recipe, objective, params, more) == fits
        if fits:
            found = gradient(passes, "groups" if on_groups else data, objectives.build(objective, params))
            assert found.abs().max() > 0
    built = objectives.build(objective, params)
    refills = makes_groups and on_groups and built.drop_uniform
    assert accepted(recipe, objective, params, REFILLED) == refills
    weighed = not on_groups and kind.needs_rejected and not makes_groups and kind.learns == "policy"
    assert accepted(recipe, objective, {**params, "weigh_stale": True}, {}) == weighed
    if weighed:
        found = gradient(passes, "pairs", objectives.build(objective, {"weigh_stale": True}))
        assert found.abs().max() > 0
