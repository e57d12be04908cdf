"""How doubtful each preference is, from small heads that tell which response is better, asked several times under dropout.

    z      score of the chosen response minus that of the rejected one, by a head that was not trained on the pair; one value a pass
    q      = sigmoid(slope z), the probability that the chosen response is better
    w      = noise (1 - q) / (noise (1 - q) + (1 - noise) q), the probability that the pair's order is wrong    ─► label smoothing
    B      = H(mean of q) - mean of H(q) over the passes; nats, in [0, ln 2]                                       ─► sampling

Uncertainty is the name of the method and of its settings (`train.uncertainty`); doubt is what it gives for one pair. The idea is
UPO's, whose smoothing is a map of B (BALD, arXiv 1112.5745). But B says whether the heads disagree, not whether the order is wrong: a
pair that all of them hold to be the wrong way round has a small one. On 240 pairs of the built-in model with a fifth of the labels
flipped, B tells flipped from clean at chance (AUC 0.50) and is a twentieth of ln 2 on average, and w has an AUC of 0.87. So the
smoothing is w, with `slope` and `noise`, the share of wrong orders, fitted to all pairs at once (mixture likelihood, a Beta(2, 10)
prior on `noise`).

A head reads a response's log-likelihood under the policy (mean, sum and least of its tokens) and its mean final hidden state.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FOLDS = 4
NUM_STEPS = 60
LEARNING_RATE = 3e-2
WEIGHT_DECAY = 1e-2
SLOPES = torch.logspace(-1, 1.3, 40)  # 0.1 to 20
NOISES = torch.linspace(0.01, 0.45, 45)
PRIOR = (2.0, 10.0)  # of the noise: few orders are wrong, but not none


@dataclasses.dataclass(frozen=True)
class Doubt:
    """For each of P pairs: B in nats [P], the mean probability q that the chosen response is better [P], and the mean probability w
    that the order is wrong [P]. `noise` is the estimated share of pairs whose order is wrong.
    """

    bald: Tensor
    vote: Tensor
    wrong: Tensor
    noise: float

    def smoothing(self, maximum: float) -> Tensor:
        """Label smoothing [P]: the probability that the order is wrong, at most `maximum`, which is below 0.5."""
        assert 0 <= maximum < 0.5, maximum
        return self.wrong.clamp(max=maximum)


def likelihood_features(logps: Tensor) -> Tensor:
    """Mean, sum and least of a response's token log-probs [T], as [3]."""
    return torch.stack([logps.mean(), logps.sum(), logps.min()])


def estimate(hidden: Tensor, likelihood: Tensor, *, num_passes: int, dropout: float, seed: int) -> Doubt:
    """Fit heads by cross-validation, ask each about the pairs that it did not see, and calibrate what they say.

    Args:
        hidden: [P, 2, D] features of the chosen and the rejected response, for example mean final hidden states of a policy.
        likelihood: [P, 2, 3] their `likelihood_features`.
        num_passes: forward passes under dropout. dropout: share of the features that a pass leaves out.

    Returns:
        `Doubt`, the same for equal arguments. With fewer than `NUM_FOLDS` pairs nothing can be learned: B is ln 2, the vote and the
        probability of a wrong order are 0.5.
    """
    count = len(hidden)
    if count < NUM_FOLDS:
        half = torch.full((count,), 0.5)
        return Doubt(torch.full((count,), math.log(2)), half, half, 0.5)
    # Together, the many hidden features weigh as much as one of the likelihood.
    features = torch.cat([_standard(likelihood), _standard(hidden) / math.sqrt(hidden.shape[-1])], dim=-1)
    gaps = torch.zeros(num_passes, count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fold = torch.randperm(count) % NUM_FOLDS
        for number in range(NUM_FOLDS):
            seen, asked = fold != number, fold == number
            head = _fit(features[seen], dropout)
            with torch.no_grad():
                gaps[:, asked] = torch.stack([_gap(head, features[asked]) for _ in range(num_passes)])
    slope, noise = calibrate(gaps)
    q = torch.sigmoid(slope * gaps)
    bald = (entropy(q.mean(0)) - entropy(q).mean(0)).clamp(min=0)
    return Doubt(bald, q.mean(0), wrong_order(q, noise).mean(0), noise)


def calibrate(gaps: Tensor) -> tuple[float, float]:
    """The likeliest (slope, noise) for the gaps z [passes, P].

    Every order was given, so each has the likelihood (1 - noise) q + noise (1 - q). Lowering the slope and admitting noise both
    explain pairs that the heads hold to be the wrong way round; how sure the heads are of the others tells the two apart.
    """
    q = torch.sigmoid(SLOPES[:, None, None] * gaps)
    best = (-math.inf, 1.0, 0.0)
    for noise in NOISES.tolist():
        likelihood = ((1 - noise) * q + noise * (1 - q)).mean(1).clamp(min=1e-12).log().sum(-1)
        value, at = likelihood.max(0)
        prior = (PRIOR[0] - 1) * math.log(noise) + (PRIOR[1] - 1) * math.log(1 - noise)
        best = max(best, (float(value) + prior, float(SLOPES[at]), noise))
    return best[1], best[2]


def wrong_order(q: Tensor, noise: float) -> Tensor:
    """The probability that an order is wrong, where the chosen response is better with probability q and `noise` of all are wrong."""
    against = noise * (1 - q)
    return against / (against + (1 - noise) * q).clamp(min=1e-12)


def draw(bald: Tensor, count: int, *, seed: int) -> list[int]:
    """`count` of P pairs without replacement, in their order: half by 1 - B, then half by B of the rest (UPO)."""
    share = (bald / math.log(2)).clamp(0, 1)
    generator = torch.Generator().manual_seed(seed)
    certain = (1 - share).clamp(min=1e-6)
    first = torch.multinomial(certain, count - count // 2, generator=generator)
    doubtful = share.clamp(min=1e-6).index_fill(0, first, 0.0)
    second = torch.multinomial(doubtful, count // 2, generator=generator) if count > 1 else first[:0]
    return sorted([*first.tolist(), *second.tolist()])


def entropy(p: Tensor) -> Tensor:
    """Entropy of a coin with probability p, in nats; 0 at 0 and at 1."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


def _standard(features: Tensor) -> Tensor:
    """Features [P, 2, D] with mean 0 and deviation 1 over both sides of all pairs; constant ones become 0."""
    flat = features.float().flatten(0, 1)
    return (features.float() - flat.mean(0)) / flat.std(0).clamp(min=1e-6)


def _gap(head: nn.Module, features: Tensor) -> Tensor:
    return head(features[:, 0]) - head(features[:, 1])


def _fit(features: Tensor, dropout: float) -> nn.Module:
    """A head that scores one response; it stays in training mode, so that dropout stays active."""
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features.shape[-1], 1), nn.Flatten(0)).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(NUM_STEPS):
        loss = -F.logsigmoid(_gap(head, features)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head
