"""How doubtful each preference is, from a small head that tells which response is better, asked several times under dropout.

    B = H(mean of p) - mean of H(p)      p: probability that the chosen response is better, one value per pass; nats, in [0, ln 2]

Uncertainty is the name of the method and of its settings (`train.uncertainty`); doubt is what it gives for one pair. The idea is
UPO's (BALD, arXiv 1112.5745, on a "which is better" head). A pair whose mean vote goes against its order is reported. The B of the
other pairs becomes label smoothing by an increasing map that stays below one half: the more doubt, the more smoothing. Each pair is
judged by heads that were not trained on it.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FOLDS = 4
HIDDEN = 64
NUM_STEPS = 200
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2


@dataclasses.dataclass(frozen=True)
class Doubt:
    """For each of P pairs: B in nats [P], and the mean probability that the chosen response is better [P]."""

    bald: Tensor
    vote: Tensor

    def smoothing(self, maximum: float) -> Tensor:
        """Label smoothing [P] in [0, maximum], proportional to B: `maximum` (below 0.5) at B = ln 2."""
        assert 0 <= maximum < 0.5, maximum
        return maximum * (self.bald / math.log(2)).clamp(0, 1)


def estimate(chosen: Tensor, rejected: Tensor, *, num_passes: int, dropout: float, seed: int) -> Doubt:
    """Fit heads by cross-validation and ask each about the pairs that it did not see.

    Args:
        chosen, rejected: [P, D] features of the two responses, for example mean final hidden states of a policy.
        num_passes: forward passes under dropout. dropout: share of the head's hidden units that a pass leaves out.

    Returns:
        `Doubt`, the same for equal arguments. With fewer than `NUM_FOLDS` pairs nothing can be learned: B is ln 2, the vote 0.5.
    """
    assert chosen.shape == rejected.shape, (chosen.shape, rejected.shape)
    count = len(chosen)
    bald, vote = torch.full((count,), math.log(2)), torch.full((count,), 0.5)
    if count < NUM_FOLDS:
        return Doubt(bald, vote)
    both = torch.cat([chosen, rejected]).float()
    scale = both.std(0).clamp(min=1e-6)
    chosen, rejected = ((side.float() - both.mean(0)) / scale for side in (chosen, rejected))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fold = torch.randperm(count) % NUM_FOLDS
        for number in range(NUM_FOLDS):
            seen, asked = fold != number, fold == number
            head = _fit(chosen[seen], rejected[seen], dropout)
            with torch.no_grad():
                p = torch.stack([torch.sigmoid(head(chosen[asked]) - head(rejected[asked])) for _ in range(num_passes)])
            vote[asked] = p.mean(0)
            bald[asked] = (entropy(p.mean(0)) - entropy(p).mean(0)).clamp(min=0)
    return Doubt(bald, vote)


def entropy(p: Tensor) -> Tensor:
    """Entropy of a coin with probability p, in nats; 0 at 0 and at 1."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


def _fit(chosen: Tensor, rejected: Tensor, dropout: float) -> nn.Module:
    """A head that scores one response; it stays in training mode, so that dropout stays active."""
    head = nn.Sequential(
        nn.Linear(chosen.shape[1], HIDDEN), nn.GELU(), nn.Dropout(dropout), nn.Linear(HIDDEN, 1), nn.Flatten(0)
    ).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(NUM_STEPS):
        loss = -F.logsigmoid(head(chosen) - head(rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head
