"""Every objective: a number worked out by hand, a direction, gradients, extreme inputs, identities, accumulation.

The pair of all hand-computed numbers, with its padding and masks:

    chosen   log-probs -0.5 -1.5       sum -2  avg -1      reference -1.0 -1.5       sum -2.5  avg -1.25
    rejected log-probs -1.0 -2.0 -3.0  sum -6  avg -2      reference -1.0 -1.5 -2.0  sum -4.5  avg -1.50

so D = 1, Delta = 0.5 + 1.5 = 2, Delta_avg = 0.25 + 0.5 = 0.75. Marked: the first chosen and the last rejected token
(log-ratios 0.5 and -1, u = 1.5). KL = 0.3.
"""

import dataclasses
import json
import math

import pytest
import torch

from vidalign.errors import ConfigError
from vidalign.learning.objectives import OBJECTIVES, build
from vidalign.learning.objectives.orpo import log_odds
from vidalign.model.logps import PairLogps

STATES = {"alpha_dpo": {"mean": 0.2, "deviation": 0.3}, "mpo": {"sum": 1.5, "count": 10.0}}
NAMES = [name for name, kind in OBJECTIVES.items() if kind.consumes == "pairs" and kind.learns == "policy"]
PADDING = 7.0  # deliberately not 0: what the mask leaves out must not count


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small tensors gain nothing from threads, and waiting for them is slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def side(rows, dtype=torch.float32):
    width = max(map(len, rows))
    values = torch.tensor([[*row, *[PADDING] * (width - len(row))] for row in rows], dtype=dtype).reshape(len(rows), width)
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows], dtype=torch.bool).reshape(len(rows), width)
    return values, mask


def make_pairs(chosen, rejected, marks=None, kl=None, dtype=torch.float32):
    chosen_values, chosen_mask = side(chosen, dtype)
    rejected_values, rejected_mask = side(rejected, dtype)
    pairs = PairLogps(
        chosen=chosen_values,
        rejected=rejected_values,
        chosen_mask=chosen_mask,
        rejected_mask=rejected_mask,
        chosen_kl=torch.tensor(kl if kl is not None else [0.3] * len(chosen), dtype=dtype),
    )
    if marks is None:
        return mark_all(pairs)
    return dataclasses.replace(
        pairs,
        chosen_phrases=torch.tensor([[*m, *[9] * (chosen_values.shape[1] - len(m))] for m in marks[0]]),
        rejected_phrases=torch.tensor([[*m, *[9] * (rejected_values.shape[1] - len(m))] for m in marks[1]]),
    )


def mark_all(pairs, mark=1):
    return dataclasses.replace(
        pairs,
        chosen_phrases=torch.full(pairs.chosen.shape, mark),
        rejected_phrases=torch.full(pairs.rejected.shape, mark),
    )


def swap(pairs):
    return PairLogps(
        chosen=pairs.rejected,
        rejected=pairs.chosen,
        chosen_mask=pairs.rejected_mask,
        rejected_mask=pairs.chosen_mask,
        chosen_phrases=pairs.rejected_phrases,
        rejected_phrases=pairs.chosen_phrases,
        chosen_kl=pairs.chosen_kl,
    )


def select(pairs, rows):
    tensors = {name: getattr(pairs, name) for name in (field.name for field in dataclasses.fields(pairs))}
    return PairLogps(**{name: None if tensor is None else tensor[rows] for name, tensor in tensors.items()})


def random_pairs(num_pairs=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def rows():
        lengths = torch.randint(1, 9, (num_pairs,), generator=generator).tolist()
        return [(-3 * torch.rand(n, generator=generator, dtype=torch.float64)).tolist() for n in lengths]

    chosen, rejected = rows(), rows()
    marks = [[[int(i % 2 == 0) for i in range(len(row))] for row in rows] for rows in (chosen, rejected)]
    kl = torch.rand(num_pairs, generator=generator).tolist()
    policy = make_pairs(chosen, rejected, marks, kl, dtype)
    shift = torch.rand(policy.chosen.shape, generator=generator, dtype=dtype) - 0.5
    other = torch.rand(policy.rejected.shape, generator=generator, dtype=dtype) - 0.5
    return policy, dataclasses.replace(policy, chosen=policy.chosen + shift, rejected=policy.rejected + other)


def with_grad(pairs):
    return dataclasses.replace(
        pairs,
        chosen=pairs.chosen.detach().clone().requires_grad_(),
        rejected=pairs.rejected.detach().clone().requires_grad_(),
        chosen_kl=pairs.chosen_kl.detach().clone().requires_grad_(),
    )


def gradients(pairs):
    tensors = (pairs.chosen, pairs.rejected, pairs.chosen_kl)
    return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]


def value_of(name, params, policy, reference, **kwargs):
    return build(name, params)(policy, reference, **kwargs).value


HAND_POLICY = make_pairs([[-0.5, -1.5]], [[-1.0, -2.0, -3.0]], marks=([[1, 0]], [[0, 0, 2]]))
HAND_REFERENCE = make_pairs([[-1.0, -1.5]], [[-1.0, -1.5, -2.0]])


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("leanpo", {}, 0.70141328),  # log(1 + e^-1.5) + 0.5 * 1
        ("leanpo", {"sft_weight": 0.0, "smoothing_threshold": 2.0}, 0.43916093),  # .9 log(1 + e^-1.5) + .1 log(1 + e^2.5)
        ("simpo", {}, 0.20141328),  # log(1 + e^-1.5)
        ("simpo", {"label_smoothing": 0.1}, 0.35141328),  # .9 log(1 + e^-1.5) + .1 log(1 + e^1.5)
        ("rrpo", {}, 0.62395666),  # log(1 + e^-0.15) + .01 * .3
        ("dpo", {}, 0.59813887),  # log(1 + e^-0.2)
        ("dpo", {"sft_weight": 0.5}, 1.09813887),
        ("cdpo", {}, 0.61813887),  # .9 log(1 + e^-0.2) + .1 log(1 + e^0.2)
        ("rdpo", {}, 0.57313887),  # (.9 log(1 + e^-0.2) - .1 log(1 + e^0.2)) / .8
        ("ipo", {}, 18.0625),  # (0.75 - 5)^2
        ("rpo", {}, 0.51326169),  # log(1 + e^-1) + .2 * 1
        ("rpo", {"form": "sum", "eta": 0.1}, 0.41326169),  # log(1 + e^-1) + .5 * .1 * 2
        ("alpha_dpo", {}, 0.16022415),  # log(1 + e^-(2.5 * 0.7))
        ("orpo", {}, 1.02381830),  # 1 + .1 log(1 + e^-1.31326169), log odds -0.54132485 and -1.85458654
        ("sppo", {}, 249001.25),  # ((0.5 - 500)^2 + (-1.5 + 500)^2) / 2
        ("bmc", {}, 0.57979387),  # S-differences 2.64872127 * 0.5 and -0.5 - 3: log(1 + e^-(.05 * 4.82436064))
        ("bmc", {"reference_weights": "reference"}, 0.57210396),  # 1.67563936 + 3.5: log(1 + e^-(.05 * 5.17563936))
        ("expo", {}, 0.04814993),  # log(1 + e^-4) + .1 * .3
        ("mpo", {}, 1.73639443),  # .8 log(1 + e^-0.2) + .2 (log(1 + e^-0.05) + log(1 + e^-0.15)) + 1
        ("sft", {}, 1.0),
    ],
)
def test_hand_computed(name, params, expected):
    assert float(value_of(name, params, HAND_POLICY, HAND_REFERENCE)) == pytest.approx(expected, rel=1e-6)


def test_hand_computed_leanpo_smooths_a_pair_ranked_the_wrong_way():
    loss = build("leanpo", {})(swap(HAND_POLICY))
    # D = -1: .9 log(1 + e^2.5) + .1 log(1 + e^-1.5) + .5 * 2
    assert float(loss.value) == pytest.approx(0.9 * 2.57888973 + 0.1 * 0.20141328 + 1.0, rel=1e-6)
    assert float(loss.metrics["smoothed_share"]) == 1.0


def test_hand_computed_alpha_dpo_with_state():
    # g = 1 - 0.25 = 0.75, one deviation above the mean: margin 0.3 + 0.1, log(1 + e^-(2.5 * 0.6))
    state = {"mean": 0.25, "deviation": 0.5}
    assert float(value_of("alpha_dpo", {}, HAND_POLICY, HAND_REFERENCE, state=state)) == pytest.approx(0.20141328, rel=1e-5)


def test_mpo_compares_with_the_mean_of_the_rewards_so_far():
    """-log sigmoid(beta r_w - shift) - log sigmoid(-(beta r_l - shift)), shift the mean of all rewards of earlier steps."""
    objective = build("mpo", {"beta": 0.3})
    state, seen = {}, []
    for seed in range(4):
        policy, reference = random_pairs(num_pairs=3 + seed, seed=seed)
        chosen = (0.3 * (policy.chosen_sum - reference.chosen_sum)).tolist()
        rejected = (0.3 * (policy.rejected_sum - reference.rejected_sum)).tolist()
        shift = sum(seen) / len(seen) if seen else 0.0
        expected = [
            0.8 * math.log1p(math.exp(-(won - lost)))
            + 0.2 * (math.log1p(math.exp(shift - won)) + math.log1p(math.exp(lost - shift)))
            for won, lost in zip(chosen, rejected, strict=True)
        ]
        before = dict(state)
        loss = objective(policy, reference, state=state)
        likelihood = float(-policy.chosen_sum.sum() / policy.chosen_mask.sum())
        assert float(loss.value) == pytest.approx(sum(expected) / len(expected) + likelihood, rel=1e-9)
        assert float(loss.metrics["reward_shift"]) == pytest.approx(shift)
        assert state == before
        state = objective.next_state(state, loss.statistics)
        seen += [*chosen, *rejected]
    assert json.loads(json.dumps(state)) == state


def with_squares(pairs, seed=3):
    """log sum_v p(v)^2 of some distribution for each token, in [-3, 0]; what the mask leaves out is a number too."""
    generator = torch.Generator().manual_seed(seed)
    return dataclasses.replace(
        pairs,
        chosen_squares=-3 * torch.rand(pairs.chosen.shape, generator=generator, dtype=pairs.chosen.dtype),
        rejected_squares=-3 * torch.rand(pairs.rejected.shape, generator=generator, dtype=pairs.rejected.dtype),
    )


@pytest.mark.parametrize("name", NAMES)
def test_stale_pairs_weigh_less(name):
    """min(1, exp(a_w + a_l)), a = mean over a response's own tokens of logp - log sum p^2; the SFT term keeps its weight."""
    policy, reference = random_pairs()
    policy = with_squares(policy)
    if name == "sft":
        with pytest.raises(ConfigError, match=r"weighs preferences, and objective.name=sft has none"):
            build(name, {"weigh_stale": True})
        return
    weights = []
    for row in range(8):
        total = 0.0
        for side in ("chosen", "rejected"):
            logps, squares, mask = (getattr(policy, side + suffix)[row].tolist() for suffix in ("", "_squares", "_mask"))
            gaps = [logp - square for logp, square, inside in zip(logps, squares, mask, strict=True) if inside]
            total += sum(gaps) / len(gaps)
        weights.append(min(1.0, math.exp(total)))
    assert min(weights) < 1 == max(weights), "some pairs of this draw are as likely as the policy's own"
    plain = build(name, {"sft_weight": 0.0})
    losses = [
        float(plain(select(policy, slice(row, row + 1)), select(reference, slice(row, row + 1))).value) for row in range(8)
    ]
    ours = with_grad(policy)
    loss = build(name, {"sft_weight": 0.4, "weigh_stale": True})(ours, reference)
    expected = sum(weight * each for weight, each in zip(weights, losses, strict=True)) / 8
    expected += 0.4 * float(-policy.chosen_sum.sum() / policy.chosen_mask.sum())
    assert float(loss.value) == pytest.approx(expected, rel=1e-9)
    assert float(loss.metrics["weight"]) == pytest.approx(sum(weights) / 8)
    loss.value.backward()
    constant = with_grad(policy)
    (
        torch.stack(
            [
                weight * plain(select(constant, slice(row, row + 1)), select(reference, slice(row, row + 1))).value
                for row, weight in enumerate(weights)
            ]
        ).sum()
        / 8
        + 0.4 * value_of("sft", {}, constant, None)
    ).backward()
    torch.testing.assert_close(gradients(ours), gradients(constant), rtol=1e-8, atol=1e-10)


def test_hand_computed_sppo_with_win_rates():
    pairs = dataclasses.replace(HAND_POLICY, chosen_win_rate=torch.tensor([0.8]), rejected_win_rate=torch.tensor([0.3]))
    # ((0.5 - 0.3)^2 + (-1.5 + 0.2)^2) / 2
    assert float(value_of("sppo", {"beta": 1.0}, pairs, HAND_REFERENCE)) == pytest.approx(0.865, rel=1e-6)


def test_sppo_takes_the_hard_case_for_pairs_without_win_rates_and_where_told():
    unknown = torch.tensor([math.nan])
    known = dataclasses.replace(HAND_POLICY, chosen_win_rate=torch.tensor([0.8]), rejected_win_rate=torch.tensor([0.3]))
    without = dataclasses.replace(HAND_POLICY, chosen_win_rate=unknown, rejected_win_rate=unknown)
    hard = value_of("sppo", {"beta": 1.0}, HAND_POLICY, HAND_REFERENCE)
    assert float(hard) == pytest.approx(0.5 * (0.0**2 + (-1.5 + 0.5) ** 2))
    assert float(value_of("sppo", {"beta": 1.0}, without, HAND_REFERENCE)) == float(hard)
    assert float(value_of("sppo", {"beta": 1.0, "win_rates": "hard"}, known, HAND_REFERENCE)) == float(hard)


def test_sppo_logs_the_win_rates_that_it_used_and_one_unknown_rate_makes_both_hard():
    pairs = make_pairs([[-0.5], [-0.5], [-0.5]], [[-1.0], [-1.0], [-1.0]])
    nan = math.nan
    rates = {"chosen_win_rate": torch.tensor([0.8, nan, 0.7]), "rejected_win_rate": torch.tensor([0.4, 0.3, nan])}
    loss = build("sppo", {"beta": 1.0})(dataclasses.replace(pairs, **rates), pairs)
    assert float(loss.metrics["chosen_win_rate"]) == pytest.approx((0.8 + 1 + 1) / 3)
    assert float(loss.metrics["rejected_win_rate"]) == pytest.approx((0.4 + 0 + 0) / 3)
    # the policy is the reference, so that each error is its target: 0.3 and -0.1; 0.5 and -0.5 where the rates are not known
    assert float(loss.value) == pytest.approx(0.5 * (0.3**2 + 0.1**2 + 2 * (0.5**2 + 0.5**2)) / 3)


@pytest.mark.parametrize(
    "name", [name for name, kind in OBJECTIVES.items() if kind.consumes == "pairs" and kind.learns == "policy"]
)
def test_half_precision_log_probs_are_summed_in_float32(name):
    """Sums of a thousand bfloat16 numbers would have two digits."""
    generator = torch.Generator().manual_seed(3)
    rows = [(-torch.rand(2, 1000, generator=generator)).tolist() for _ in range(4)]
    marks = [[[1, 0] * 500] * 2] * 2
    exact = [make_pairs(*rows[at : at + 2], marks=marks, kl=[0.1, 0.2], dtype=torch.bfloat16) for at in (0, 2)]
    wide = [dataclasses.replace(each, chosen=each.chosen.float(), rejected=each.rejected.float()) for each in exact]
    found, wanted = (value_of(name, {}, *pairs, state=STATES.get(name)) for pairs in (exact, wide))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


def test_defaults_are_those_of_the_papers_or_of_their_code():
    defaults = {
        "leanpo": {"beta": 2.0, "margin": 0.5, "label_smoothing": 0.1, "smoothing_threshold": 0.0, "sft_weight": 0.5},
        "simpo": {"beta": 2.0, "margin": 0.5, "label_smoothing": 0.0, "sft_weight": 0.0},
        "rrpo": {"beta": 0.1, "alpha": 0.01},
        "dpo": {"beta": 0.1, "sft_weight": 0.0},
        "cdpo": {"beta": 0.1, "label_smoothing": 0.1},
        "rdpo": {"beta": 0.1, "label_smoothing": 0.1},
        "rpo": {"beta": 0.5, "eta": 0.2, "form": "average"},
        "orpo": {"odds_weight": 0.1, "sft_weight": 1.0},
        "mpo": {"beta": 0.1, "preference_weight": 0.8, "quality_weight": 0.2, "sft_weight": 1.0},
        "alpha_dpo": {"beta": 2.5, "gamma_beta_ratio": 0.3, "alpha": 0.1, "momentum": 0.9},
        "sppo": {"beta": 0.001, "win_rates": "pairs"},
        "bmc": {"beta": 0.05, "delta": 2.0, "reference_weights": "policy"},
    }
    for name, wanted in defaults.items():
        made = build(name, {})
        assert {key: getattr(made, key) for key in wanted} == wanted, name
    assert {name for name, kind in OBJECTIVES.items() if kind.takes_doubt} == {"leanpo", "simpo", "cdpo"}
    assert {name for name, kind in OBJECTIVES.items() if kind.takes_win_rates} == {"sppo"}


def test_metrics_of_the_hand_pair():
    metrics = {name: float(metric) for name, metric in build("leanpo", {})(HAND_POLICY).metrics.items()}
    assert metrics == pytest.approx(
        {
            "preference_loss": 0.20141328,
            "sft_loss": 1.0,
            "chosen_reward": -2.0,
            "rejected_reward": -4.0,
            "margin": 2.0,
            "accuracy": 1.0,
            "chosen_logp": -1.0,
            "rejected_logp": -2.0,
            "smoothed_share": 0.0,
        }
    )
    assert float(build("dpo", {})(HAND_POLICY, HAND_REFERENCE).metrics["margin"]) == pytest.approx(0.2)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_detached_scalars_and_follow_the_ranking(name):
    policy = with_grad(HAND_POLICY)
    right = build(name, {})(policy, HAND_REFERENCE)
    wrong = build(name, {})(with_grad(swap(HAND_POLICY)), swap(HAND_REFERENCE))
    assert right.value.shape == ()
    assert right.value.requires_grad
    for metric in (*right.metrics.values(), *right.statistics.values()):
        assert metric.shape == ()
        assert not metric.requires_grad
    assert (right.metrics["accuracy"], wrong.metrics["accuracy"]) == (1.0, 0.0)
    assert right.metrics["margin"] > 0 > wrong.metrics["margin"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("swapped", [False, True])
def test_direction(name, swapped):
    """The loss falls when a chosen token grows likelier and when a rejected one grows less likely."""
    flip = swap if swapped else lambda pairs: pairs
    policy, reference = with_grad(mark_all(flip(HAND_POLICY))), flip(HAND_REFERENCE)
    value_of(name, {}, policy, reference).backward()
    chosen, rejected, kl = gradients(policy)
    assert (chosen[policy.chosen_mask] < 0).all()
    assert (chosen[~policy.chosen_mask] == 0).all()
    assert (rejected[~policy.rejected_mask] == 0).all()
    if name == "sft":
        assert (rejected == 0).all()
    else:
        assert (rejected[policy.rejected_mask] > 0).all()
    if build(name, {}).needs_kl:
        assert (kl > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_matches_float64_finite_differences(name):
    policy, reference = random_pairs(num_pairs=2)
    if name == "bmc":  # its weights carry no gradient: hold them constant by saturating min(1 / p, delta)
        policy = dataclasses.replace(policy, chosen=policy.chosen - 2, rejected=policy.rejected - 2)
    objective = dataclasses.replace(build(name, {}), sft_weight=0.3)

    def loss(chosen, rejected, kl):
        return objective(dataclasses.replace(policy, chosen=chosen, rejected=rejected, chosen_kl=kl), reference).value

    policy = with_grad(policy)
    assert torch.autograd.gradcheck(loss, (policy.chosen, policy.rejected, policy.chosen_kl), eps=1e-6, rtol=1e-5)


def test_bmc_gradient_holds_the_weights():
    policy = with_grad(HAND_POLICY)
    value_of("bmc", {}, policy, HAND_REFERENCE).backward()
    slope = -0.05 / (1 + math.exp(0.05 * 4.82436064))  # of -logsigmoid(beta x) in x
    assert policy.chosen.grad[0, :2].tolist() == pytest.approx([slope * 2.64872127, slope], rel=1e-5)
    assert policy.rejected.grad[0].tolist() == pytest.approx([-slope, -slope, -slope * 3], rel=1e-5)


def test_alpha_dpo_gradient_holds_the_margin():
    policy, reference = random_pairs(num_pairs=1)
    state = {"mean": 0.1, "deviation": 0.4}
    adaptive, plain = with_grad(policy), with_grad(policy)
    loss = build("alpha_dpo", {})(adaptive, reference, state=state)
    loss.value.backward()
    margin = 2.5 * float(loss.metrics["adaptive_margin"])
    value_of("simpo", {"beta": 2.5, "margin": margin}, plain, None).backward()
    torch.testing.assert_close(gradients(adaptive), gradients(plain))


LONG = [-1e4] * 100_000
EXTREMES = {
    "one token": ([[-0.7]], [[-0.2]]),
    "certain tokens": ([[0.0, 0.0]], [[0.0]]),
    "nearly certain tokens": ([[-1e-8]], [[-1e-8, -1e-7]]),
    "impossible chosen": ([[-1e4, -1e4]], [[0.0]]),
    "impossible rejected": ([[0.0]], [[-1e4, -1e4]]),
    "very long chosen": ([LONG], [[-0.5]]),
    "very long rejected": ([[-0.5]], [LONG]),
    "empty rejected beside a full one": ([[-0.5], [-0.5]], [[], [-1.0]]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_inputs_stay_finite(name, case, dtype):
    policy = with_grad(make_pairs(*EXTREMES[case], dtype=dtype))
    reference = dataclasses.replace(policy, chosen=torch.full_like(policy.chosen, -0.5))
    loss = build(name, {})(policy, reference, state={"mean": 0.0, "deviation": 0.0} if name == "alpha_dpo" else None)
    loss.value.backward()
    assert loss.value.dtype == torch.float32
    assert torch.isfinite(loss.value)
    assert all(torch.isfinite(metric) for metric in loss.metrics.values()), loss.metrics
    assert all(torch.isfinite(gradient).all() for gradient in gradients(policy))


@pytest.mark.parametrize("name", ["rrpo", "bmc"])
def test_empty_rejected_phrase(name):
    policy = dataclasses.replace(with_grad(HAND_POLICY), rejected_phrases=torch.zeros(1, 3, dtype=torch.long))
    loss = build(name, {})(policy, HAND_REFERENCE)
    loss.value.backward()
    assert torch.isfinite(loss.value)
    if name == "rrpo":  # u = 0.5 - 0
        assert loss.value.item() == pytest.approx(math.log1p(math.exp(-0.05)) + 0.003, rel=1e-6)
        assert (policy.rejected.grad == 0).all()


def same(first, second):
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_leanpo_without_smoothing_and_sft_is_simpo():
    policy, _ = random_pairs()
    params = {"beta": 1.7, "margin": 0.4}
    same(
        value_of("leanpo", {**params, "label_smoothing": 0.0, "sft_weight": 0.0}, policy, None),
        value_of("simpo", params, policy, None),
    )


def test_leanpo_smoothing_has_no_effect_above_the_threshold():
    policy, _ = random_pairs()
    gaps = policy.chosen_avg - policy.rejected_avg
    at_the_gap = {"smoothing_threshold": float(gaps.min()), "label_smoothing": 0.4}  # D == threshold is not below it
    same(value_of("leanpo", at_the_gap, policy, None), value_of("leanpo", {"label_smoothing": 0.0}, policy, None))
    above = {"smoothing_threshold": float(gaps.min()) + 1e-9, "label_smoothing": 0.4}
    assert value_of("leanpo", above, policy, None) != value_of("leanpo", {"label_smoothing": 0.0}, policy, None)


def test_leanpo_always_smoothed_without_margin_is_label_smoothed_simpo():
    policy, _ = random_pairs()
    leanpo = {"margin": 0.0, "smoothing_threshold": math.inf, "sft_weight": 0.0, "label_smoothing": 0.2}
    simpo = {"margin": 0.0, "label_smoothing": 0.2}
    same(value_of("leanpo", leanpo, policy, None), value_of("simpo", simpo, policy, None))
    leanpo["margin"] = simpo["margin"] = 0.5  # the flipped term keeps -margin, so with one the two part
    assert abs(value_of("leanpo", leanpo, policy, None) - value_of("simpo", simpo, policy, None)) > 1e-3


def test_rrpo_with_every_token_marked_is_dpo_plus_kl():
    policy, reference = random_pairs()
    policy = mark_all(policy, mark=3)
    dpo = value_of("dpo", {"beta": 0.3}, policy, reference)
    same(value_of("rrpo", {"beta": 0.3, "alpha": 0.02}, policy, reference), dpo + 0.02 * policy.chosen_kl.mean())
    without_kl = dataclasses.replace(policy, chosen_kl=None)
    same(value_of("rrpo", {"beta": 0.3, "alpha": 0.0}, without_kl, reference), dpo)


def test_marks_on_padding_do_not_count():
    policy, reference = random_pairs()
    clean = dataclasses.replace(
        policy,
        chosen_phrases=policy.chosen_phrases * policy.chosen_mask,
        rejected_phrases=policy.rejected_phrases * policy.rejected_mask,
    )
    assert (policy.chosen_phrases != clean.chosen_phrases).any()
    for name in ("rrpo", "bmc"):
        same(value_of(name, {}, policy, reference), value_of(name, {}, clean, reference))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("cdpo", {"label_smoothing": 0.0}),
        ("rdpo", {"label_smoothing": 0.0}),
        ("rpo", {"eta": 0.0}),
        ("rpo", {"eta": 0.0, "form": "sum"}),
        ("bmc", {"delta": 0.0}),
        ("bmc", {"delta": 0.0, "reference_weights": "reference"}),
    ],
)
def test_relatives_of_dpo_reduce_to_it(name, params):
    policy, reference = random_pairs()
    same(value_of(name, {**params, "beta": 0.2}, policy, reference), value_of("dpo", {"beta": 0.2}, policy, reference))


def test_bmc_without_marks_is_dpo():
    policy, reference = random_pairs()
    unmarked = mark_all(policy, mark=0)
    same(value_of("bmc", {"beta": 0.2}, unmarked, reference), value_of("dpo", {"beta": 0.2}, policy, reference))


def test_rdpo_is_unbiased_under_flipped_labels():
    policy, reference = random_pairs()
    straight = value_of("rdpo", {"label_smoothing": 0.3}, policy, reference)
    flipped = value_of("rdpo", {"label_smoothing": 0.3}, swap(policy), swap(reference))
    same(0.7 * straight + 0.3 * flipped, value_of("dpo", {}, policy, reference))


def test_alpha_dpo_without_alpha_is_simpo():
    policy, reference = random_pairs()
    adaptive = value_of("alpha_dpo", {"alpha": 0.0}, policy, reference, state={"mean": 0.3, "deviation": 0.1})
    same(adaptive, value_of("simpo", {"beta": 2.5, "margin": 2.5 * 0.3}, policy, None))


def test_expo_without_kl_is_dpo_against_a_uniform_reference():
    policy, _ = random_pairs()
    uniform = dataclasses.replace(policy, chosen=torch.zeros_like(policy.chosen), rejected=torch.zeros_like(policy.rejected))
    same(value_of("expo", {"kl_weight": 0.0}, policy, None), value_of("dpo", {"beta": 1.0}, policy, uniform))


def test_log_odds():
    assert log_odds(torch.tensor([0.25, 0.5, 0.9]).log()).tolist() == pytest.approx(
        [math.log(1 / 3), 0, math.log(9)], abs=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_sft_weight_adds_cross_entropy_to_any_objective(name):
    policy, reference = random_pairs()
    objective = build(name, {})
    more = dataclasses.replace(objective, sft_weight=objective.sft_weight + 0.7)
    difference = more(policy, reference).value - objective(policy, reference).value
    torch.testing.assert_close(difference, 0.7 * value_of("sft", {}, policy, None), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("averaging", [False, True], ids=["gradients summed", "gradients averaged by the engine"])
def test_1x8_accumulation_equals_8x1(name, averaging):
    policy, reference = random_pairs(num_pairs=8)
    objective = dataclasses.replace(build(name, {}), sft_weight=0.5)
    state = STATES.get(name, {})
    whole, pieces = with_grad(policy), with_grad(policy)
    loss = objective(whole, reference, state=state)
    loss.value.backward()

    steps = 8 if averaging else 1
    tokens = int(policy.chosen_mask.sum())
    statistics = dict.fromkeys(loss.statistics, torch.zeros((), dtype=torch.float64))
    total = 0.0
    for row in range(8):
        micro = objective(
            select(pieces, slice(row, row + 1)),
            select(reference, slice(row, row + 1)),
            num_pairs=8 / steps,
            num_chosen_tokens=tokens / steps,
            state=state,
        )
        (micro.value / steps).backward()
        total += float(micro.value.detach()) / steps
        statistics = {key: statistics[key] + sums for key, sums in micro.statistics.items()}
    assert total == pytest.approx(loss.value.item(), rel=1e-12)
    torch.testing.assert_close(gradients(pieces), gradients(whole), rtol=1e-10, atol=1e-12)
    assert objective.next_state(state, statistics) == pytest.approx(objective.next_state(state, loss.statistics))


def test_accumulation_without_the_denominators_would_differ():
    policy, _ = random_pairs(num_pairs=8)
    objective = build("leanpo", {})
    mean_of_means = sum(objective(select(policy, slice(row, row + 1))).value for row in range(8)) / 8
    assert abs(mean_of_means - objective(policy).value) > 1e-3


def test_alpha_dpo_state():
    policy, reference = random_pairs()
    objective = build("alpha_dpo", {})
    shift = (policy.chosen_avg - policy.rejected_avg) - (reference.chosen_avg - reference.rejected_avg)
    first = objective.next_state({}, objective(policy, reference, state={}).statistics)
    assert first == pytest.approx({"mean": float(shift.mean()), "deviation": float(shift.std(correction=0))})
    assert json.loads(json.dumps(first)) == first
    before = dict(first)
    loss = objective(swap(policy), swap(reference), state=first)
    assert first == before, "a call must not move the state: evaluation calls too"
    second = objective.next_state(first, loss.statistics)
    assert second["mean"] == pytest.approx(0.9 * first["mean"] - 0.1 * first["mean"])
    assert second["deviation"] == pytest.approx(first["deviation"])


def test_alpha_dpo_holds_outliers():
    state = {"mean": 0.0, "deviation": 0.0}  # a first step in which the policy was still the reference
    loss = build("alpha_dpo", {})(HAND_POLICY, HAND_REFERENCE, state=state)
    assert float(loss.metrics["adaptive_margin"]) == pytest.approx(0.3 + 0.1 * 10)


def test_sft_needs_no_rejected_side():
    policy = make_pairs([[-0.5, -1.5], [-2.0]], [[], []])
    objective = build("sft", {})
    assert not objective.needs_rejected
    loss = objective(policy)
    assert float(loss.value) == pytest.approx(4 / 3)
    assert loss.metrics.keys() == {"preference_loss", "sft_loss", "chosen_reward", "chosen_logp"}


def test_what_each_objective_needs():
    built = {name: build(name, {}) for name in NAMES}
    reference_free = {name for name, objective in built.items() if not objective.needs_reference}
    assert reference_free == {"leanpo", "simpo", "orpo", "expo", "sft"}
    assert {name for name, objective in built.items() if objective.needs_phrases} == {"rrpo", "bmc"}
    assert {name for name, objective in built.items() if objective.needs_kl} == {"rrpo", "expo"}
    assert not build("rrpo", {"alpha": 0}).needs_kl
    policy, _ = random_pairs()
    for name in NAMES:
        if name in reference_free:
            assert torch.isfinite(built[name](policy).value)
        else:
            with pytest.raises(AssertionError, match="reference"):
                built[name](policy)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("lean_po", {}, r"unknown objective\.name 'lean_po'; did you mean leanpo\?"),
        ("zzz", {}, "known: leanpo, simpo, rrpo"),
        ("leanpo", {"margn": 1.0}, r"unknown objective\.params\.margn of leanpo; did you mean margin\?"),
        ("dpo", {"label_smoothing": 0.1}, "unknown objective.params.label_smoothing of dpo"),
        ("dpo", {"beta": 0.0}, "beta of dpo must be greater than 0, got 0; its default is 0.1"),
        ("dpo", {"beta": "big"}, "beta of dpo must be a number, got 'big'"),
        ("dpo", {"beta": True}, "must be a number, got True"),
        ("dpo", {"beta": math.nan}, "must be a finite number"),
        ("dpo", {"beta": math.inf}, "must be a finite number"),
        ("dpo", {"sft_weight": -1}, "sft_weight of dpo must be at least 0, got -1"),
        ("rdpo", {"label_smoothing": 0.5}, "label_smoothing of rdpo must be less than 0.5, got 0.5"),
        ("leanpo", {"label_smoothing": 1.1}, "must be at most 1, got 1.1"),
        ("leanpo", {"smoothing_threshold": math.nan}, "must be a finite number"),
        ("rpo", {"form": "total"}, "form of rpo must be one of 'average', 'sum', got 'total'"),
    ],
)
def test_build_explains_what_is_wrong(name, params, message):
    with pytest.raises(ConfigError, match=message):
        build(name, params)


def test_build_takes_integers_and_infinite_thresholds():
    objective = build("leanpo", {"beta": 3, "smoothing_threshold": math.inf})
    assert isinstance(objective.beta, float)
    assert (objective.beta, objective.smoothing_threshold) == (3.0, math.inf)


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.takes_doubt])
def test_doubt_smooths_each_pair_by_its_own_amount(name):
    policy, reference = random_pairs(3)
    doubt = torch.tensor([0.0, 0.3, 0.2], dtype=torch.float64)
    plain = build(name, {"label_smoothing": 0.0})
    doubted = plain.preference(dataclasses.replace(policy, doubt=doubt), reference, {}).losses
    everywhere = {"smoothing_threshold": math.inf} if name == "leanpo" else {}
    for index, share in enumerate(doubt.tolist()):
        smoothed = build(name, {"label_smoothing": share, **everywhere}).preference(policy, reference, {}).losses
        assert doubted[index].item() == pytest.approx(smoothed[index].item(), rel=1e-6)
    assert not torch.equal(doubted, plain.preference(policy, reference, {}).losses)


def test_an_objective_without_label_smoothing_takes_no_doubt():
    policy, reference = random_pairs(2)
    with pytest.raises(AssertionError, match="dpo takes no doubt"):
        build("dpo", {})(dataclasses.replace(policy, doubt=torch.zeros(2)), reference)
