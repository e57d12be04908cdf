"""The stages of a run, made from its configuration: the folder, options, policy and resources of each."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from cluster.plan import plan
from cluster.resources import ClusterResources, ResourcePlan
from pipelines.ahead import Ahead
from pipelines.inputs import Inputs, read_inputs
from pipelines.moved import Moved, moved
from pipelines.stages import base as stages_base
from pipelines.stages.base import MANIFEST, Stage
from pipelines.stages.evaluate import Evaluate
from pipelines.stages.filling import left_to_ask, place_before, solved_before
from pipelines.stages.pairs import Pairs
from pipelines.stages.rollout import Rollout
from pipelines.stages.scores import Scores
from pipelines.stages.staleness import fresh, responder
from pipelines.stages.train import Train, exported
from pipelines.stages.value import ValueStage
from pipelines.value_rounds import is_trained, trains, value_round
from vidalign import recipes
from vidalign.config.loading import load_config
from vidalign.config.rounds import at
from vidalign.config.run import RunConfig
from vidalign.errors import ConfigError, DataError, VidalignError
from vidalign.files import RunFolder
from vidalign.model.checkpoint import policy_version
from vidalign.types import PolicyVersion

ASKING = ("options_prompt", "options_style")  # options of a recipe that are part of the questions
StageT = TypeVar("StageT", bound=Stage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds:
    """Makes the stage objects of a run.

    `base`: the policy that the first round starts from. `text_tokens`: of the longest prompt and its reply without the video.
    """

    config: RunConfig
    run: RunFolder
    plan: ResourcePlan
    inputs: Inputs
    base: PolicyVersion
    text_tokens: int = 0

    @functools.cached_property
    def stored(self) -> RunConfig | None:
        """The configuration in the run's folder when this was first asked; None where there is none that can be read."""
        try:
            return load_config(self.run.config)
        except VidalignError:
            return None

    @functools.cached_property
    def data(self) -> Moved:
        """Where the data is, and where it was in earlier commands on this run."""
        return moved(self.run, self.stored, self.config.data, self.inputs)

    def accept(self, names: Sequence[str]) -> list[Ahead]:
        """What these stages have ahead of them, in order, as far as that is known before anything runs.

        Raises:
            ConfigError: a stage's folder was made from other inputs; the message names the options that differ.
        """
        _ = self.stored  # before the present configuration takes its place
        found = []
        for index in range(self.config.rounds):
            begins = self._started_by(index) is not None
            prompts_known = index == 0 or (self.run.stage("pairs", index - 1) / MANIFEST).is_file()
            asks = begins or (prompts_known and self._started_by(self._responder(index)) is not None)
            if "rollout" in names:
                found.append(self._ahead("rollout", "responses", index, self.rollout if asks else None))
                found.append(self._ahead("pairs", "pairs", index, self.pairs if asks else None))
            if "train" in names:
                has_pairs = begins and (self.run.stage("pairs", index) / MANIFEST).is_file()
                name, taken = trains(self.config, index), value_round(self.config, index)
                is_ready = has_pairs and (taken is None or is_trained(self.run, taken))
                found.append(self._ahead(name, name, index, self.train if is_ready else None))
        last = self.config.rounds - 1
        if "evaluate" in names and self.config.data.eval:
            has_policy = exported_or_none(self.run, last) is not None
            found.append(self._ahead("evaluate", "eval", last, (lambda _: self.evaluate()) if has_policy else None))
            has_answers = has_policy and (self.run.stage("eval", last) / MANIFEST).is_file()
            found.append(self._ahead("scores", "scores", last, (lambda _: self.scores()) if has_answers else None))
        return found

    def _ahead(self, name: str, folder: str, index: int, stage: Callable[[int], Stage] | None) -> Ahead:
        """`stage`: makes the stage, or None where what it needs is not there yet."""
        is_finished = stage is not None and stages_base.check(stage(index))
        return Ahead(name=name, round_index=index, folder=self.run.stage(folder, index), is_finished=is_finished)

    def policy(self, index: int) -> PolicyVersion:
        """The policy that a round starts from. Raises `DataError` where the round before it has not been trained."""
        found = self._started_by(index)
        return aligned_policy(self.run, index - 1) if found is None else found  # which says that it is not there

    def _started_by(self, index: int) -> PolicyVersion | None:
        for before in range(index - 1, -1, -1):
            if (policy := exported_or_none(self.run, before)) is not None:
                return policy
            if not is_trained(self.run, before):
                return None
        return self.base

    def _responder(self, index: int) -> int:
        return responder(index, self.config.staleness, self.run.stage("responses", index), self._started_by)

    def rollout(self, index: int) -> Rollout:
        config = at(self.config, index)
        recipe, train = recipes.build(config.recipe), [row.example for row in self.inputs.train]
        places: list[int] | None = None
        if recipe.num_prompts is not None or recipe.drop_solved:
            start, solved = place_before(self.run, index), solved_before(self.run, index) if recipe.drop_solved else ()
            train, places = left_to_ask(train, recipe, seed=config.seed, start=start, solved=solved)
        return self._with_earlier(
            Rollout(
                folder=self.run.stage("responses", index),
                quarantine=self.run.stage("quarantine", index),
                cache=cache_folder(config.video.cache_dir, self.run.frames),
                round_index=index,
                model=config.model,
                video=config.video,
                rollout=config.rollout,
                recipe=recipe,
                policy=self.policy(place := self._responder(index)),
                policy_round=place,
                train=train,
                places=places,
                probe=self.inputs.probe,
                decoders=self.plan.decoders,
                engines=self.plan.engines,
                engine_seed=config.seed,
                float32_head=config.train.float32_head,
                text_tokens=self.text_tokens,
                missing=self.inputs.missing,
                data=self.data,
            ),
            lambda rounds: rounds.rollout(index),
        )

    def pairs(self, index: int) -> Pairs:
        stage = Pairs(
            run_folder=self.run,
            rollout=self.rollout(index),
            rows=self.inputs.train,
            engines=self.plan.engines,
            fresh=fresh(index, self.config.staleness, self._started_by),
        )
        return self._with_earlier(stage, lambda rounds: rounds.pairs(index))

    def train(self, index: int) -> Train:
        """The training of a round's policy, or of its value model."""
        config, kind = at(self.config, index), {"train": Train, "value": ValueStage}[trains(self.config, index)]
        before = value_round(self.config, index)
        return self._with_earlier(
            kind(
                run_folder=self.run,
                cache=cache_folder(config.train.cache_dir, self.run.root / "cache"),
                round_index=index,
                model=config.model,
                train=config.train,
                objective=config.objective,
                plain_prompt=config.recipe.plain_prompt,
                frame_spec=config.video.frame_spec(),
                policy=self.policy(index),
                workers=self.plan.train,
                run_seed=config.seed,
                tensorboard="tensorboard" in config.track,
                value=None if before is None else self.run.stage("value", before),
            ),
            lambda rounds: rounds.train(index),
        )

    def evaluate(self) -> Evaluate:
        config, last = self.config, self.config.rounds - 1
        return self._with_earlier(
            Evaluate(
                folder=self.run.stage("eval", last),
                model=config.model,
                video=config.video,
                serve=config.serve,
                evaluate=config.evaluate,
                prompt=config.recipe.plain_prompt,
                policies={"base": self.base, "aligned": aligned_policy(self.run, last)},
                examples=self.inputs.eval,
                plan=self.plan.serve,
                wait_for_nodes_s=config.cluster.wait_for_nodes_s,
                data=self.data,
            ),
            lambda rounds: rounds.evaluate(),
        )

    def scores(self) -> Scores:
        config, last = self.config, self.config.rounds - 1
        return self._with_earlier(
            Scores(
                folder=self.run.stage("scores", last),
                answers=self.run.stage("eval", last),
                evaluate=config.evaluate,
                examples=self.inputs.eval,
                policy=self.base,
                model=config.model,
                video=config.video,
                cache=cache_folder(config.video.cache_dir, self.run.frames),
                decoders=self.plan.decoders,
                engines=self.plan.engines,
                data=self.data,
            ),
            lambda rounds: rounds.scores(),
        )

    def _with_earlier(self, stage: StageT, same: Callable[[Rounds], Stage]) -> StageT:
        stage.earlier = functools.partial(_earlier_stage, self, same)
        return stage

    def before(self) -> Rounds | None:
        """As the stored configuration has them. Raises `VidalignError` where its data or model cannot be read any more."""
        config = self.stored
        if config is None:
            return None
        asked_alike = all(getattr(config.recipe, name) == getattr(self.config.recipe, name) for name in ASKING)
        choice = config.video.choice
        same_data = config.data == self.config.data and asked_alike and choice == self.config.video.choice
        inputs = self.inputs if same_data else read_inputs(config.data, config.recipe, choice=choice.frame_choice())
        same_model = config.model.path == self.config.model.path
        base = self.base if same_model else policy_version(config.model.path)
        return dataclasses.replace(self, config=config, inputs=inputs, base=base)


def _earlier_stage(rounds: Rounds, same: Callable[[Rounds], Stage]) -> Stage | None:
    try:
        before = rounds.before()
        return same(before) if before else None
    except VidalignError:
        return None  # the folder is then compared with the present configuration alone


def check_order(config: RunConfig, stages: Sequence[str]) -> None:
    """Raises `DataError` or `ConfigError` where the first of these stages has nothing to work on, and none of them makes it."""
    run = RunFolder.at(config.run_dir)
    if "train" in stages and "rollout" not in stages:
        left = [index for index in range(config.rounds) if not is_trained(run, index)]
        if left and not (run.stage("pairs", left[0]) / MANIFEST).is_file():
            raise DataError(
                f"{run} holds no pairs of round {left[0]} to train on; run `vidalign rollout` with this configuration first, or "
                "`vidalign align`, which runs all stages"
            )
    if "evaluate" in stages and "train" not in stages:
        if not config.data.eval:
            raise ConfigError(
                "vidalign evaluate asks the questions of data.eval, which is not set; set it, or name a --suite"
            )
        aligned_policy(run, config.rounds - 1)
    if set(stages) == {"report"} and not any(run.root.glob("rounds/*/*")):
        raise DataError(f"{run} has nothing to report: no stage of a run was begun there; run `vidalign align` first")


def resource_plan(config: RunConfig, resources: ClusterResources, num_videos: int | None = None) -> ResourcePlan:
    """Who gets which CPUs and GPUs in this run of so many videos. Raises `ClusterError` where something does not fit."""
    return plan(
        resources,
        rollout=config.rollout,
        train=config.train,
        serve=config.serve,
        num_decoders=config.video.num_decoders,
        num_videos=num_videos,
        in_turn=config.evaluate.in_turn,
        overlap=config.cluster.overlap,
    )


def cache_folder(shared: str | None, own: pathlib.Path) -> pathlib.Path:
    """The cache that several runs share, or the run's own."""
    return pathlib.Path(shared).absolute() if shared else own


def aligned_policy(run: RunFolder, index: int) -> PolicyVersion:
    """The policy that a round exported. Raises `DataError` when that round has not been trained."""
    policy = exported_or_none(run, index)
    if policy is None:
        raise DataError(f"{run} holds no trained policy of round {index}; run `vidalign train` on it first")
    return policy


def exported_or_none(run: RunFolder, index: int) -> PolicyVersion | None:
    finished = (run.stage("train", index) / MANIFEST).is_file()
    return exported(run.stage("model", index)) if finished else None
