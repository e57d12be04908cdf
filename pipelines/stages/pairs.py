"""Pairs: responses ─► judgements and rewrites, where the recipe asks a judge ─► a preference pair per example ─► linter; or groups."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from cluster.resources import Workers
from pipelines import progress
from pipelines.stages.advice import NO_CLIP_PAIRS, NO_PAIRS, cut_facts, cut_warning, unclear_warning
from pipelines.stages.base import Stage, identity, once
from pipelines.stages.clip_pairs import altered_on_cluster, with_clip_pairs, write_frames
from pipelines.stages.filling import asked_ids
from pipelines.stages.groups import (
    NO_GROUPS,
    group_facts,
    no_contrast,
    sampled_tokens,
    special_ids,
    with_accuracy,
    without_spelled,
)
from pipelines.stages.judge import Judging, judgements_of
from pipelines.stages.responses import read_frames, read_responses
from pipelines.stages.rollout import Rollout
from pipelines.stages.staleness import read_fresh
from vidalign import files
from vidalign.data.reading import DataRow
from vidalign.data.source import GROUPS_FILE
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.recipes.base import Recipe, Replays, responses_by_example, scores_by_example
from vidalign.recipes.group import make_groups
from vidalign.recipes.judging import JudgeTask
from vidalign.recipes.kinds import kind_of
from vidalign.recipes.lint import filter_pairs, lint
from vidalign.recipes.pairing import make_pairs
from vidalign.statistics import rank_correlation
from vidalign.types import Judgement, PreferencePair, Response, ResponseGroup, stable_hash

JUDGEMENTS = "judgements.parquet"  # of a round, for the rounds after it


@dataclasses.dataclass(kw_only=True)
class Pairs(Stage):
    """The preference pairs of one round, from its finished rollout, or its groups. `fresh`: as `read_fresh` takes it."""

    name: ClassVar[str] = "pairs"

    run_folder: RunFolder
    rollout: Rollout
    rows: Sequence[DataRow]
    engines: Workers
    fresh: frozenset[str] | None = None
    earlier: Callable[[], Stage | None] | None = None

    def __post_init__(self) -> None:
        self.folder = self.run_folder.stage("pairs", self.rollout.round_index)

    @property
    def needs(self) -> Sequence[pathlib.Path]:
        return [self.rollout.folder]

    @property
    def recipe(self) -> Recipe[Any]:
        return self.rollout.recipe

    def inputs(self) -> dict[str, Any]:
        config = self.recipe.config
        return {
            **self.rollout.inputs(),
            **({"groups": [identity(self.run_folder.stage("pairs", i)) for i in self._reused]} if self._reused else {}),
            "data.pairs": stable_hash([pair.content() for pair in self.recipe.given(self.rows)]),
            "pairing": {name: value for name, value in config.deciding().items() if name in config.PAIRING},
        }

    def elsewhere(self) -> Iterator[Pairs]:
        former = zip(self.rollout.elsewhere(), self.rollout.data.rows(self.rows), strict=True)
        return (dataclasses.replace(self, rollout=rollout, rows=rows) for rollout, rows in former)

    def inputs_v1(self) -> dict[str, Any]:
        config = self.recipe.config
        return {
            "responses": self.rollout.inputs_v1(),
            "pairing": config.recorded(include=set(config.PAIRING)),
            "given": [pair.id for pair in self.recipe.given(self.rows)],
        }

    def run(self) -> dict[str, Any]:
        """Write pairs.parquet and lint.json, or groups.parquet. Raises `DataError` when no pair or group is left."""
        recipe, index = self.recipe, self.rollout.round_index
        rows = self.asked
        if recipe.makes == "groups":
            return self._grouped()
        folders = [*(self.run_folder.stage("responses", i) for i in self._reused), self.rollout.folder]
        responses, aged = read_fresh(folders, self.fresh, tokens=recipe.needs_tokens)
        if recipe.reuses_groups:
            tables = [self.run_folder.stage("pairs", i) / GROUPS_FILE for i in self._reused]
            groups = [group for path in tables for group in files.read_table(path, ResponseGroup)]
            responses = with_accuracy(responses, groups, [row.example for row in rows])
        judgements, rewritten, facts = self._judged(responses)
        if verdicts := recipe.verdicts(responses, scores_by_example(judgements)):
            files.write_table(self.folder / "verdicts.parquet", verdicts)
            facts["verdicts"] = recipe.counted(verdicts)
            progress.note(f"verdicts, round {index}: {progress.counts(facts['verdicts'])}")
        pairs, dropped = make_pairs(
            rows,
            [*responses, *rewritten],
            recipe,
            judgements,
            decoded=read_frames(self.rollout.folder),
            replays=self._replays(),
            seed=self.rollout.seed,
        )
        if not pairs:
            raise DataError(
                f"no preference pair was made from {len(rows)} examples ({dropped}); "
                f"{unclear_warning(dropped, len(rows)) or NO_PAIRS}"
            )
        report = lint(pairs, recipe.config.lint)
        pairs, filtered = filter_pairs(pairs, report, recipe.config.lint)
        if not pairs:
            raise DataError(
                f"recipe.lint dropped all {report.num_pairs} pairs ({filtered}); loosen it, and look at the responses of round "
                f"{index}"
            )
        num_paired = len(pairs)
        pairs, clip_facts = self._over_videos(pairs)
        facts |= aged | ({"clip_pairs": clip_facts} if clip_facts else {})
        files.write_json(self.folder / "lint.json", report.to_row())
        files.write_table(self.folder / "pairs.parquet", pairs)
        if recipe.trusts_judge:
            files.write_table(self.folder / JUDGEMENTS, judgements)
        facts |= cut_facts(responses, recipe)
        if (warning := cut_warning(facts, recipe.config)) is not None:
            progress.warn(warning)
        if (warning := unclear_warning(dropped, len(rows))) is not None:
            progress.warn(warning)
        progress.note(
            f"pairs, round {index}: {num_paired:,} of {len(rows):,} examples; dropped: {progress.counts(dropped | filtered)}"
        )
        trusted = self._trusted(responses, judgements)
        correlation = reward_trust_correlation([*trusted, *rewritten], recipe)
        return {"kept": len(pairs), "dropped": dropped | filtered, "reward_trust_correlation": correlation, **facts}

    def _grouped(self) -> dict[str, Any]:
        """Write groups.parquet; the facts. Raises `DataError` when there is no group, or none whose replies differ."""
        rollout, recipe = self.rollout, self.recipe
        special = special_ids(rollout.policy.path, trust_remote_code=rollout.model.trust_remote_code)
        tokens, spelled = sampled_tokens(rollout.folder / "responses.parquet", special)
        responses, aged = read_fresh([rollout.folder], self.fresh, tokens=recipe.needs_tokens)
        responses = without_spelled(responses, spelled)
        judgements, _, facts = self._judged(responses)
        decoded = read_frames(rollout.folder)
        groups, dropped = make_groups(self.asked, responses, recipe, judgements, decoded=decoded, tokens=tokens)
        if not groups:
            raise DataError(f"no group was made from {len(self.asked)} examples ({dropped}); {NO_GROUPS}")
        found = group_facts(groups, compares=recipe.compares)
        if recipe.compares and (why := no_contrast(found, len(groups))) is not None:
            raise DataError(why)
        files.write_table(self.folder / GROUPS_FILE, groups)
        facts |= cut_facts(responses, recipe) | aged
        if (warning := cut_warning(facts, recipe.config)) is not None:
            progress.warn(warning)
        correlation = reward_trust_correlation(responses, recipe)
        return {"kept": len(groups), "dropped": dropped, "groups": found, "reward_trust_correlation": correlation, **facts}

    def _over_videos(self, pairs: list[PreferencePair]) -> tuple[list[PreferencePair], dict[str, Any]]:
        """The pairs to train on, and facts; unchanged where the recipe makes no pairs over videos."""
        config, seed = self.recipe.config.clip_pairs, self.rollout.seed
        if config is None:
            return pairs, {}
        frames, alter = read_frames(self.rollout.folder), functools.partial(altered_on_cluster, config=config)
        own = {row.example.id: row.example.rejected_video for row in self.rows if row.example.rejected_video}
        made, altered, dropped = with_clip_pairs(pairs, frames, config, seed=seed, alter=alter, of_rows=own)
        over = sum(bool(pair.rejected_videos) for pair in made)
        if not over:
            raise DataError(f"no pair over videos was made of {len(pairs)} pairs ({dropped}); {NO_CLIP_PAIRS}")
        write_frames(self.folder, frames, altered)
        said = progress.counts(dropped)
        progress.note(
            f"pairs over videos, round {self.rollout.round_index}: {over:,} of {len(pairs):,} pairs; without: {said}"
        )
        return made, {"kept": over, "dropped": dropped}

    @property
    def asked(self) -> Sequence[DataRow]:
        """The rows whose responses are paired: all, or those that the rounds asked about, in that order."""
        folders = [self.run_folder.stage("responses", i) for i in self._reused] or [self.rollout.folder]
        found = [asked_ids(folder) for folder in folders]
        names = dict.fromkeys(name for each in found for name in each or ())
        if None in found:
            return self.rows
        by_id = {row.example.id: row for row in self.rows}
        return [by_id[name] for name in names]

    @property
    def _reused(self) -> list[int]:
        """The rounds whose responses a recipe takes in place of new ones: those of groups just before this one."""
        found: list[int] = []
        if self.recipe.reuses_groups:
            index = self.rollout.round_index - 1
            while index >= 0 and (self.run_folder.stage("pairs", index) / GROUPS_FILE).is_file():
                found.insert(0, index)
                index -= 1
        return found

    def _judged(self, responses: Sequence[Response]) -> tuple[list[Judgement], list[Response], dict[str, Any]]:
        """Judgements, rewritten responses, and facts about the judge; all empty where the recipe has no task for a judge."""
        examples = [row.example for row in self.asked]
        judgements: list[Judgement] = []
        rewritten: list[Response] = []
        facts: dict[str, Any] = {}
        if (task := self.recipe.judge_rows(examples, responses)) is not None:
            judgements, judge = judgements_of(self._ask("judgements", "judge", task), task, self.recipe, examples)
            facts["judge"] = judge if self.recipe.judges_answers else {**judge, "agreement": None}
        if (task := self.recipe.rewrite(examples, responses, judgements)) is not None:
            rewritten = self.recipe.rewritten(self._ask("rewrites", "rewrite", task))
        return judgements, rewritten, facts

    def _ask(self, folder: str, label: str, task: JudgeTask) -> list[dict[str, Any]]:
        assert self.recipe.judge is not None, f"recipe {self.recipe.config.name} has a task for a judge and no judge"
        index = self.rollout.round_index
        stage = Judging(
            folder=self.run_folder.stage(folder, index),
            judge=self.recipe.judge,
            task=task,
            engines=self.engines,
            label=f"{label}, round {index}",
            frames=read_frames(self.rollout.folder),
            policy=self.rollout.policy,
            model=self.rollout.model,
            data=self.rollout.data,
        )
        once(stage)
        return stage.rows()

    def _responses(self, index: int) -> list[Response]:
        """An earlier round's responses, with the trust that its judge gave them."""
        responses = read_responses(self.run_folder.stage("responses", index))
        path = self.run_folder.stage("pairs", index) / JUDGEMENTS
        return self._trusted(responses, files.read_table(path, Judgement)) if path.is_file() else responses

    def _trusted(self, responses: Sequence[Response], judgements: Sequence[Judgement]) -> list[Response]:
        scores, by_example = scores_by_example(judgements), responses_by_example(responses)
        return [r for id_, made in by_example.items() for r in self.recipe.trusted(made, scores.get(id_, {}))]

    def _replays(self) -> Replays:
        if not self.recipe.keeps_replays:
            return Replays()
        rounds = []
        for index in range(self.rollout.round_index):
            path = self.run_folder.stage("pairs", index) / "pairs.parquet"
            if path.is_file():  # a round of groups has none
                made = [pair for pair in files.read_table(path, PreferencePair) if not pair.rejected_videos]
                rounds.append((self._responses(index), made))
        return self.recipe.replays(rounds)


def reward_trust_correlation(responses: Sequence[Response], recipe: Recipe[Any]) -> float | None:
    """Rank correlation of reward and trust over the responses whose kind is scored; None where it is not defined."""
    scored = [
        r for r in responses if math.isfinite(r.reward) and math.isfinite(r.trust) and kind_of(r.kind, recipe.kinds).scored
    ]
    return rank_correlation([r.reward for r in scored], [r.trust for r in scored])
