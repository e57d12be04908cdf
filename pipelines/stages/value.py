"""Value: pairs ─► a value model by the same training, in rounds/k/value. It ranks pairs that it has not seen, or the run ends there.

    rounds/k/value   train.parquet, heldout.parquet   the round's pairs, divided by their videos
                     model/, value_head.safetensors   the value model: a backbone as a policy is exported, and its linear head
                     heldout.json                     what both sides of each held-out pair are worth at their end
                     manifest.json                    written last, with the share of held-out pairs that are ranked right

The policy is not trained: the next round starts from the one that this round started from.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

from actors.monitor import HELDOUT
from actors.token_values import MODEL
from pipelines import progress
from pipelines.stages.train import Train
from vidalign import files, mirror
from vidalign.data.leakage import locate
from vidalign.errors import DataError
from vidalign.learning import objectives
from vidalign.learning.objectives.value import Value
from vidalign.learning.pair_data import usable_pairs
from vidalign.learning.value import accuracy_of
from vidalign.model.checkpoint import read_card
from vidalign.model.tensor_cache import read_tensors
from vidalign.model.value_head import FILE
from vidalign.statistics import wilson_interval
from vidalign.stored import shown
from vidalign.types import PreferencePair, stable_hash

TRAINED, HELD_OUT = "train.parquet", "heldout.parquet"


@dataclasses.dataclass(kw_only=True)
class ValueStage(Train):
    """One round's training of a value model on its pairs. One that was killed continues from its newest checkpoint."""

    name: ClassVar[str] = "value"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folder = self.run_folder.stage("value", self.round_index)
        self.export = self.folder / MODEL

    def inputs(self) -> dict[str, Any]:
        """Without `min_accuracy`: a value model that is trained may be taken by another bound."""
        made = super().inputs()
        params = {name: value for name, value in self.objective.params.items() if name != "min_accuracy"}
        return {**made, "objective": {**made["objective"], "params": params}}

    def inputs_v1(self) -> Any:
        return None

    def run(self) -> dict[str, Any]:
        """Train, rank the pairs that were held out, and refuse a model that cannot. Returns facts for the manifest.

        Raises:
            DataError: there are too few pairs to hold some out, or too few of those are ranked as the data has them.
        """
        objective = objectives.build(self.objective.name, self.objective.params)
        assert isinstance(objective, Value)
        usable, dropped = usable_pairs(files.read_table(self.pairs / "pairs.parquet", PreferencePair), objective)
        trained, heldout = divided(usable, share=objective.heldout, seed=self.seed)
        if not trained or not heldout:
            raise DataError(
                f"objective.name={self.objective.name} holds out the pairs of {objective.heldout:.0%} of the videos, and the "
                f"{len(usable):,} pairs that it can be trained on ({dropped or 'none dropped'}) are of too few videos for that: those "
                "that are shown together, or in place of one another, count as one; add rows, or set objective.params.heldout "
                "nearer to 0.5"
            )
        if not self._is_trained():
            files.write_table(self.folder / TRAINED, trained)
            files.write_table(self.folder / HELD_OUT, heldout)
            job = self._job(self.folder / TRAINED, None)
            self._fit(dataclasses.replace(job, heldout=str(self.folder / HELD_OUT)))
        facts = {"num_pairs": len(trained), "dropped": dropped, **self._ranked(objective)}
        card = read_card(self.export)
        assert card is not None
        head = {name: tensor.tolist() for name, tensor in read_tensors(self.folder / FILE).items()}
        return {"value": stable_hash([card["version"], head]), **facts}

    def _is_trained(self) -> bool:
        """Whether an earlier command came as far as the exported model, and ended because of its accuracy."""
        mirror.refresh(self.folder)
        return (self.folder / HELDOUT).is_file() and read_card(self.export) is not None

    def _ranked(self, objective: Value) -> dict[str, Any]:
        values = files.read_json(self.folder / HELDOUT)
        chosen, rejected = zip(*values.values(), strict=True)
        accuracy = accuracy_of(chosen, rejected)
        low, high = wilson_interval(round(accuracy * len(values)), len(values))
        said = f"{accuracy:.0%} of {len(values):,} held-out pairs ({low:.0%} to {high:.0%} at 95 %)"
        if accuracy < objective.min_accuracy:
            raise DataError(
                f"the value model of round {self.round_index} ranks {said} as the data does, and "
                f"objective.params.min_accuracy={objective.min_accuracy:g}: what it says of tokens would mislead a policy. Set that "
                f"lower to go on with it, or delete {shown(self.folder)} and train it with more pairs, more train.num_epochs or "
                "another train.learning_rate"
            )
        progress.note(f"value, round {self.round_index}: the value model ranks {said} as the data does")
        return {"num_heldout": len(values), "accuracy": accuracy, "interval": [low, high]}


def divided(
    pairs: Sequence[PreferencePair], *, share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(pairs to train on, pairs to hold out): no video is on both sides. About `share` of the videos are held out, at least one.

    Parts of a video are that video, and so is one whose frames a question chose. What a pair shows stays together: the videos and
    images of its prompt, and the other clips of a pair over videos.
    """
    from scipy.cluster.hierarchy import DisjointSet  # costs half a second to import

    located = functools.cache(functools.partial(locate, root=pathlib.Path()))
    shown = [sorted({located(name) for name in (*pair.context.visuals, *pair.rejected_videos)}) for pair in pairs]
    groups = DisjointSet(itertools.chain.from_iterable(shown))
    for videos in shown:
        for one, other in itertools.pairwise(videos):
            groups.merge(one, other)
    together = [groups[videos[0]] if videos else "" for videos in shown]
    places: dict[str, str] = {}
    for video, pair in zip(together, pairs, strict=True):
        place = stable_hash([seed, *pair.context.visuals])
        places[video] = min(place, places.get(video, place))
    ordered = sorted(places, key=places.__getitem__)
    count = min(max(1, round(share * len(ordered))), len(ordered) - 1)
    held = set(ordered[: max(0, count)])
    sides = [(video in held, pair) for video, pair in zip(together, pairs, strict=True)]
    return [pair for is_held, pair in sides if not is_held], [pair for is_held, pair in sides if is_held]
