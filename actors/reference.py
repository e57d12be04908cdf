"""A frozen reference policy's outputs for pairs, computed once and kept.

They are the log-probs of all response tokens and, for objectives with a full-vocabulary KL, the final hidden states on the chosen
responses. The trainer then holds only one model. There is one file per pair, named by the hash of (weights, rendering, pair), so
that a killed stage continues where it stopped, and another run with the same pairs computes nothing; see
`pipelines/stages/train.py`.

    write_missing   by the ranks of a training before their first step, with the weights that they have anyway, whole or sharded
    Reference       by actors under Ray Data, each with a copy of the model, where something is asked before training starts
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vidalign import files, mirror
from vidalign.config.run import ModelConfig
from vidalign.learning.ahead import Batches
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.batches import spread
from vidalign.learning.sequences import TrainingGroup, pair_group
from vidalign.model.tensor_cache import TensorCache, missing, write_tensors
from vidalign.records import Context
from vidalign.types import PreferencePair, ResponseGroup

if TYPE_CHECKING:
    import torch

    from actors.rank import Rank

SIDES = ("chosen", "rejected")
PARTS = ("hidden", "features")  # in addition to the log-probs, if requested


class Reference:
    """Ray Data actor: it takes indices of pairs, and their files are on disk before a call returns.

    A file holds `chosen` and `rejected`, the log-probs [T] of each side's tokens, float32, including the end-of-turn token; `hidden`
    [T, D], the final hidden states on the chosen response, in the model's dtype; and `features` [2, D], the mean of the final hidden
    states on each side.
    """

    def __init__(
        self,
        model: dict[str, Any],
        path: str,
        pairs: str,
        frames: str,
        plain_prompt: str,
        use_gpu: bool,
        kept: str,
        parts: Sequence[str] = (),
        packed: bool = True,
        float32_head: bool = False,
    ) -> None:
        """`kept` is a JSON file {pair id: the file for its tensors}; `parts` are those of `PARTS` that are wanted."""
        import torch

        from vidalign.model import shared_prefix
        from vidalign.model.folder import stage_model
        from vidalign.model.policy import ResponseScorer, load_policy
        from vidalign.model.rendering import cached_processor

        config = ModelConfig(**model)
        path = stage_model(config.path, path)
        pairs, frames, kept = (str(mirror.fetched(each)) for each in (pairs, frames, kept))
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._dtype = getattr(torch, config.dtype)
        policy = load_policy(config, path)
        packed = shared_prefix.wanted(policy, packed)
        self._scorer = ResponseScorer(policy, packed=packed, float32_head=float32_head).to(self._device).eval()
        self._groups = [pair_group(pair) for pair in files.read_table(pathlib.Path(pairs), PreferencePair)]
        self._source = BatchSource(
            frames=files.read_places(pathlib.Path(frames)),
            processor=cached_processor(path, config.trust_remote_code),
            plain_prompt=plain_prompt,
            max_model_len=config.max_model_len,
            number=shared_prefix.numbering(policy) if packed else None,
        )
        self._kept = files.read_places(pathlib.Path(kept))
        self._parts = frozenset(parts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Batch column: index of each pair in the pairs table."""
        import torch

        from vidalign.model.batch import IGNORED

        indices = [int(index) for index in batch["index"]]
        rendered = self._source.batch([self._groups[index] for index in indices]).to(self._device, self._dtype)
        mask = rendered.labels != IGNORED
        with torch.inference_mode():
            hidden = self._scorer.hidden(rendered.inputs, rendered.labels, rendered.sources)
            logps = self._scorer.score(hidden, rendered.labels[mask])
        outputs = outputs_of_groups(logps, hidden, mask.sum(-1).tolist(), self._parts)
        for index, tensors in zip(indices, outputs, strict=True):
            write_tensors(pathlib.Path(self._kept[self._groups[index].id]), tensors)
        return {"done": [len(indices)]}


def outputs_of_groups(
    logps: torch.Tensor,
    hidden: torch.Tensor,
    lengths: Sequence[int],
    parts: Collection[str],
    *,
    names: Sequence[str] = SIDES,
) -> list[dict[str, torch.Tensor]]:
    """The tensors to keep of each pair, see `Reference`, or of each larger group: log-probs alone, by `names`.

    Args:
        logps, hidden: [N] and [N, D] of all response tokens, response after response, the first of each group first.
        lengths: the number of tokens of each response. parts: those of `PARTS` that are wanted.
        names: of a group's responses, see `TrainingGroup.names`.
    """
    import torch

    count = len(lengths) // len(names)
    logps_of, states_of = logps.split(list(lengths)), hidden.split(list(lengths))
    made = []
    for index in range(count):
        places = range(index, len(lengths), count)
        tensors = {name: logps_of[place] for name, place in zip(names, places, strict=True)}
        if "hidden" in parts:
            tensors["hidden"] = states_of[index]
        if "features" in parts:
            tensors["features"] = torch.stack([states_of[place].float().mean(0) for place in places])
        made.append(tensors)
    return made


def write_missing(
    rank: Rank,
    source: Batches,
    groups: Sequence[TrainingGroup],
    kept: Mapping[str, str],
    *,
    parts: Collection[str],
    size: int,
    done: Callable[[int, int], None] | None = None,
) -> None:
    """Write the files that do not exist yet, each rank those of its share of the groups. Collective.

    To be called before the first step, when the ranks still hold the weights of the reference.

    Args:
        groups: of the same number of responses. kept: {group id: its file}. size: groups per forward pass.
        done: called with how many of how many missing groups are written, counting all ranks.
    """
    import torch

    absent = missing({group.id: kept[group.id] for group in groups})
    rank.wait()  # all ranks have looked before one writes
    todo = [group for group in groups if group.id in absent]
    rank.train(False)
    number = 0
    forwards = list(spread(len(todo), max(1, size), rank.index, rank.count))
    batches = source.batches([[todo[index] for index in indices] for indices, _ in forwards])
    for (indices, inside), batch in zip(forwards, batches, strict=True):
        own = [todo[index] for index in indices]
        with torch.no_grad():
            rows, hidden = rank.outputs(batch)
        lengths = rows.mask.sum(-1).tolist()
        outputs = outputs_of_groups(rows.logps[rows.mask], hidden, lengths, parts, names=own[0].names)
        for group, tensors, is_own in zip(own, outputs, inside, strict=True):
            if is_own and rank.leads:
                write_tensors(pathlib.Path(kept[group.id]), tensors)
        number = min(len(todo), number + max(1, size) * rank.count)
        if done is not None:
            done(number, len(todo))
    rank.wait()  # a rank reads what the others wrote


def kept_paths(
    cache: TensorCache,
    pairs: Sequence[PreferencePair | ResponseGroup],
    frames: Mapping[str, str],
    *,
    policy_version: str,
    dtype: str,
    plain_prompt: str,
    parts: Sequence[str],
    turns: Mapping[str, Any] = MappingProxyType({}),
    float32_head: bool = False,
    quantize: str | None = None,
) -> dict[str, str]:
    """The file for the policy's outputs of each pair or group: {its id: path}. `turns`: `vidalign.model.turns.Turns.key`.

    A clip's own file name is a hash of the video's bytes and its FrameSpec.
    """
    return {
        pair.id: str(
            cache.path(
                {
                    "policy": policy_version,
                    **turns,
                    "dtype": dtype,
                    "prompt": plain_prompt,
                    **_shown(pair.context, frames),
                    "question": pair.question,
                    **_said(pair),
                    **_shown_beside(pair, frames),
                    "parts": sorted(parts),
                    **({"float32_head": True} if float32_head else {}),
                    **({"quantize": quantize} if quantize else {}),
                }
            )
        )
        for pair in pairs
    }


def _said(pair: PreferencePair | ResponseGroup) -> dict[str, Any]:
    """The responses of a pair; of a group, a hash of their tokens, and which of them are left out and so stand for none."""
    if isinstance(pair, ResponseGroup):
        return {"tokens": pair.tokens, "left_out": [bool(why) for why in pair.left_out]}
    return {"chosen": pair.chosen, "rejected": pair.rejected}


def _shown_beside(pair: PreferencePair | ResponseGroup, frames: Mapping[str, str]) -> dict[str, Any]:
    """Of a pair over videos, the clips of its rejected side; of any other nothing."""
    names = pair.rejected_videos if isinstance(pair, PreferencePair) else ()
    return {"rejected_clips": [pathlib.Path(frames[name]).name for name in names]} if names else {}


def _shown(context: Context, frames: Mapping[str, str]) -> dict[str, Any]:
    """What a prompt shows and says before its question: of one video alone, its clip."""
    clips = [pathlib.Path(frames[name]).name for name in context.visuals]
    if context.is_plain:
        return {"clip": clips[0]}
    turns = [turn.to_row() for turn in context.turns]
    return {"clips": clips, "num_images": len(context.images), "system": context.system, "turns": turns}


def parts_of(*, hidden: bool, features: bool) -> list[str]:
    """Those of `PARTS` that are wanted."""
    return [part for part, wanted in zip(PARTS, (hidden, features), strict=True) if wanted]
