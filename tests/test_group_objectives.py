"""Objectives on groups: value and gradient against float64 NumPy for every switch, identities, and how a step is cut."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from vidalign.errors import ConfigError
from vidalign.learning import objectives
from vidalign.learning.advantages import group_advantages, is_uniform
from vidalign.learning.objectives import OBJECTIVES
from vidalign.learning.objectives.groups import GroupLogps, GroupObjective

NAMES = [name for name, kind in OBJECTIVES.items() if kind.consumes == "groups"]
PADDING = 7.0  # deliberately not 0: what the mask leaves out must not count
LENGTHS = [5, 1, 3, 8, 2, 6]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switched(GroupObjective):
    name = "switched"


def of_norm(normalise):
    return {"max_tokens": 9} if normalise == "constant" else {}


def random_rows(seed=0, lengths=LENGTHS, by_token=False):
    """(GroupLogps in float64, reference [R, T]): log-ratios of up to 0.5 in both directions, advantages of both signs."""
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    behaviour = rng.uniform(-3, -0.1, mask.shape)
    logps = behaviour + rng.uniform(-0.5, 0.5, mask.shape)
    reference = behaviour + rng.uniform(-0.5, 0.5, mask.shape)
    advantages = rng.normal(size=mask.shape if by_token else len(lengths))
    rows = [np.where(mask, values, PADDING) for values in (logps, behaviour, reference)]
    made = [torch.tensor(values) for values in rows]
    policy = GroupLogps(logps=made[0], behaviour=made[1], mask=torch.tensor(mask), advantages=torch.tensor(advantages))
    return policy, made[2]


def oracle(objective, policy, reference):
    """The loss and its gradient [R, T], written out over responses and tokens."""
    logps, behaviour, ref = (values.numpy() for values in (policy.logps, policy.behaviour, reference))
    mask, advantages = policy.mask.numpy(), policy.advantages.numpy()
    counted = [row for row in range(len(logps)) if mask[row].any()]
    total, gradient = 0.0, np.zeros_like(logps)
    for row in counted:
        tokens = np.flatnonzero(mask[row])
        scale = {
            "response": 1 / (len(counted) * len(tokens)),
            "tokens": 1 / mask.sum(),
            "constant": 1 / (len(counted) * objective.max_tokens),
        }[objective.normalise]
        near = ref if objective.decoupled else behaviour
        mean = np.mean(logps[row, tokens] - near[row, tokens])
        sampled = np.mean(ref[row, tokens] - behaviour[row, tokens])
        for token in tokens:
            own = logps[row, token] - near[row, token]
            weight = 1.0
            if objective.decoupled:
                shift = sampled if objective.ratio == "sequence" else ref[row, token] - behaviour[row, token]
                weight = min(math.exp(shift), objective.max_behaviour_weight)
            ratio = math.exp(mean if objective.ratio == "sequence" else own)
            advantage = advantages[row] if advantages.ndim == 1 else advantages[row, token]
            held = min(max(ratio, 1 - objective.eps_low), 1 + objective.eps_high)
            total += scale * weight * -min(ratio * advantage, held * advantage)
            if ratio * advantage <= held * advantage:  # the free term is the smaller one, so it has the gradient
                if objective.ratio == "sequence":
                    gradient[row, tokens] -= scale * weight * ratio * advantage / len(tokens)
                else:
                    gradient[row, token] -= scale * weight * ratio * advantage
            shift = ref[row, token] - logps[row, token]
            total += scale * objective.beta * (math.exp(shift) - shift - 1)
            gradient[row, token] += scale * objective.beta * (1 - math.exp(shift))
    return total, gradient


def value_and_gradient(objective, policy, reference=None, **denominators):
    leaf = policy.logps.clone().requires_grad_()
    loss = objective(dataclasses.replace(policy, logps=leaf), reference, **denominators)
    loss.value.backward()
    return float(loss.value), leaf.grad


SWITCHES = list(itertools.product(("response", "tokens", "constant"), ("token", "sequence"), (0.0, 0.3), (False, True)))


@pytest.mark.parametrize(("normalise", "ratio", "beta", "by_token"), SWITCHES)
def test_value_and_gradient_are_those_written_out(normalise, ratio, beta, by_token):
    objective = Switched(normalise=normalise, ratio=ratio, beta=beta, eps_low=0.02, eps_high=0.03, **of_norm(normalise))
    policy, reference = random_rows(by_token=by_token)
    policy.mask[2] = False  # a response that is left out
    expected, gradient = oracle(objective, policy, reference)
    value, found = value_and_gradient(objective, policy, reference)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found.numpy(), gradient, rtol=1e-10, atol=1e-14)
    assert float(objective(policy, reference).metrics["clipped"]) > 0, "no clip was active, so none was tested"


@pytest.mark.parametrize(("normalise", "ratio", "beta", "by_token"), SWITCHES)
def test_a_decoupled_value_and_gradient_are_those_written_out(normalise, ratio, beta, by_token):
    switches = {"normalise": normalise, "ratio": ratio, "beta": beta, **of_norm(normalise)}
    objective = Switched(decoupled=True, eps_low=0.02, eps_high=0.03, max_behaviour_weight=1.1, **switches)
    policy, reference = random_rows(by_token=by_token)
    policy.mask[2] = False
    expected, gradient = oracle(objective, policy, reference)
    value, found = value_and_gradient(objective, policy, reference)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found.numpy(), gradient, rtol=1e-10, atol=1e-14)
    free = dataclasses.replace(objective, max_behaviour_weight=1e6)
    assert value != pytest.approx(value_and_gradient(free, policy, reference)[0], rel=1e-6), "no weight was capped"


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_what_is_logged_are_means_over_the_tokens_that_are_learned_from(ratio, decoupled):
    policy, reference = random_rows()
    policy.mask[2] = False
    objective = Switched(
        ratio=ratio, beta=0.3, eps_low=0.1, eps_high=0.1, decoupled=decoupled, max_behaviour_weight=1.1 if decoupled else 2.0
    )
    found = {name: float(value) for name, value in objective(policy, reference).metrics.items()}
    tokens: dict[str, list[float]] = {name: [] for name in found}
    for row, mask in enumerate(policy.mask):
        own, behaviour, start = (each[row][mask].tolist() for each in (policy.logps, policy.behaviour, reference))
        advantage, near = float(policy.advantages[row]), start if decoupled else behaviour
        mean = [np.mean(np.subtract(a, b)) if a else 0.0 for a, b in ((own, near), (start, behaviour))]
        for at, logp in enumerate(own):
            rho = math.exp(mean[0] if ratio == "sequence" else logp - near[at])
            weight = min(math.exp(mean[1] if ratio == "sequence" else start[at] - behaviour[at]), 1.1) if decoupled else 1.0
            held = min(max(rho, 0.9), 1.1)
            shift = start[at] - logp
            tokens["policy_loss"].append(-weight * min(rho * advantage, held * advantage))
            tokens["clipped"].append(rho * advantage > held * advantage)
            tokens["kl"].append(math.exp(shift) - shift - 1)
            tokens["log_ratio"].append(abs(logp - behaviour[at]))
            tokens["logp"].append(logp)
            if decoupled:
                tokens["behaviour_weight"].append(weight)
    assert found == {name: pytest.approx(np.mean(values)) for name, values in tokens.items()}
    assert 0 < found["clipped"] < 1
    assert not any(value.requires_grad for value in objective(policy, reference).metrics.values())


@pytest.mark.parametrize("normalise", ["response", "tokens", "constant"])
def test_a_batch_in_which_all_is_left_out_has_no_loss(normalise):
    policy, reference = random_rows()
    policy.mask[:] = False
    value, gradient = value_and_gradient(Switched(normalise=normalise, beta=0.3), policy, reference)
    assert value == 0.0
    assert not gradient.any()
    assert all(math.isfinite(float(value)) for value in Switched()(policy).metrics.values())


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_half_precision_and_numbers_that_are_none_outside_the_mask_do_no_harm(ratio):
    policy, reference = random_rows()
    objective = Switched(ratio=ratio, beta=0.3)
    half = dataclasses.replace(policy, logps=policy.logps.bfloat16())
    exact = dataclasses.replace(half, logps=half.logps.float())
    torch.testing.assert_close(objective(half, reference).value, objective(exact, reference).value)
    outside = ~policy.mask
    broken = dataclasses.replace(
        policy,
        logps=policy.logps.masked_fill(outside, math.nan),
        behaviour=policy.behaviour.masked_fill(outside, -math.inf),
    )
    value, gradient = value_and_gradient(objective, broken, reference.masked_fill(outside, math.nan))
    assert value == value_and_gradient(objective, policy, reference)[0]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_decoupled_is_the_same_for_responses_of_the_policy_that_the_round_starts_from(name):
    params = {"beta": 0.04}
    policy, _ = random_rows(seed=4)
    if objectives.named(name).needs_values:  # an advantage for each token
        policy = dataclasses.replace(policy, advantages=policy.advantages[:, None].expand_as(policy.logps))
    plain = value_and_gradient(objectives.build(name, params), policy, policy.behaviour)
    decoupled = value_and_gradient(objectives.build(name, {**params, "decoupled": True}), policy, policy.behaviour)
    assert decoupled[0] == pytest.approx(plain[0], rel=1e-12)
    torch.testing.assert_close(decoupled[1], plain[1])


def test_decoupled_clips_around_the_start_of_the_round_and_weighs_who_sampled_by_at_most_two():
    """One token: sampled at p = 0.1, 0.3 at the start of the round and as now, so weighted by min(3, 2); a plain ratio is clipped."""
    logps, start, behaviour = (torch.tensor([[math.log(p)]], dtype=torch.float64) for p in (0.3, 0.3, 0.1))
    policy = GroupLogps(
        logps=logps, behaviour=behaviour, mask=torch.ones(1, 1, dtype=torch.bool), advantages=torch.ones(1).double()
    )
    decoupled = objectives.build("dapo", {"decoupled": True})
    assert decoupled.uses_reference
    value, gradient = value_and_gradient(decoupled, policy, start)
    assert (value, float(gradient)) == (pytest.approx(-2.0), pytest.approx(-2.0))
    assert float(decoupled(policy, start).metrics["behaviour_weight"]) == pytest.approx(2.0)
    value, gradient = value_and_gradient(objectives.build("dapo", {}), policy)
    assert (value, float(gradient)) == (pytest.approx(-1.28), 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_what_their_papers_say(name):
    made = objectives.build(name, {})
    found = (made.normalise, made.ratio, made.eps_low, made.eps_high, made.beta, made.scale, made.drop_uniform)
    assert (
        found
        == {
            "grpo": ("response", "token", 0.2, 0.2, 0.04, True, False),
            "dapo": ("tokens", "token", 0.2, 0.28, 0.0, True, True),
            "dr_grpo": ("constant", "token", 0.2, 0.2, 0.0, False, False),
            "gspo": ("response", "sequence", 3e-4, 4e-4, 0.0, True, False),
            "dvpo": ("tokens", "token", 0.2, 0.2, 0.0, True, False),
        }[name]
    )
    assert made.uses_reference == (name in ("grpo", "dvpo"))
    if made.needs_values:
        return  # its advantages are written out in tests/test_value.py
    policy, reference = random_rows(seed=3)
    expected, gradient = oracle(made, policy, reference)
    value, found = value_and_gradient(made, policy, reference)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found.numpy(), gradient, rtol=1e-10, atol=1e-14)


def test_two_responses_right_and_wrong_from_the_policy_itself():
    """Behaviour = policy: the gradient is that of -(A1 logp1 + A2 logp2) / 2, each a token mean."""
    policy, _ = random_rows(lengths=[2, 3])
    advantages = group_advantages([1.0, 0.0], scale=True)
    assert advantages == pytest.approx([0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / (math.sqrt(0.5) + 1e-4)])
    policy = dataclasses.replace(policy, logps=policy.behaviour.clone(), advantages=torch.tensor(advantages))
    value, gradient = value_and_gradient(objectives.build("grpo", {"beta": 0}), policy)
    assert value == pytest.approx(0.0, abs=1e-12)
    expected = [[-advantages[0] / 4, -advantages[0] / 4, 0], [-advantages[1] / 6] * 3]
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12)


def test_the_clip_holds_only_where_going_further_would_gain():
    """rho = 1.5: held for a good response, free for a bad one; rho = 0.5 the other way round."""
    for ratio, advantage, held in ((1.5, 1.0, True), (1.5, -1.0, False), (0.5, 1.0, False), (0.5, -1.0, True)):
        policy = GroupLogps(
            logps=torch.tensor([[math.log(ratio)]]),
            behaviour=torch.zeros(1, 1),
            mask=torch.ones(1, 1, dtype=torch.bool),
            advantages=torch.tensor([advantage]),
        )
        value, gradient = value_and_gradient(objectives.build("dapo", {}), policy)
        assert (float(gradient) == 0) == held
        bound = {1.5: 1.28, 0.5: 0.8}[ratio] if held else ratio
        assert value == pytest.approx(-bound * advantage, rel=1e-6)


def test_a_sequence_ratio_is_the_token_ratio_of_one_token_responses():
    policy, _ = random_rows(lengths=[1, 1, 1])
    by_token, by_sequence = (value_and_gradient(Switched(ratio=ratio), policy) for ratio in ("token", "sequence"))
    assert by_token[0] == pytest.approx(by_sequence[0], rel=1e-12)
    torch.testing.assert_close(by_token[1], by_sequence[1])


def test_a_group_that_is_all_alike_adds_nothing():
    policy, _ = random_rows()
    alike = dataclasses.replace(policy, advantages=torch.zeros(len(LENGTHS)))
    value, gradient = value_and_gradient(objectives.build("dapo", {}), alike)
    assert value == 0
    assert not gradient.any()


def test_the_kl_is_zero_at_the_reference_and_positive_elsewhere():
    policy, reference = random_rows()
    alike = dataclasses.replace(policy, advantages=torch.zeros(len(LENGTHS)))
    objective = objectives.build("grpo", {"beta": 1.0})
    at_reference = dataclasses.replace(alike, logps=reference)
    value, gradient = value_and_gradient(objective, at_reference, reference)
    assert value == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12
    assert float(objective(alike, reference).value) > 0.01
    with pytest.raises(AssertionError, match="needs the reference"):
        objective(policy)


def chosen(policy, rows):
    return GroupLogps(**{field.name: getattr(policy, field.name)[rows] for field in dataclasses.fields(policy)})


def as_taken(objective, policy):
    """With an advantage for each token, where an objective takes those."""
    by_token = policy.advantages[:, None].expand_as(policy.logps)
    return dataclasses.replace(policy, advantages=by_token) if objective.needs_values else policy


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pieces", [[[0, 1], [2, 3], [4, 5]], [[5, 0, 3], [1], [4, 2]], [[4], [2], [0], [5], [1], [3]]])
def test_micro_batches_ranks_and_order_change_nothing(name, pieces):
    """As `Learner.step` cuts it: totals divided by the number of calls, and the mean of the calls' losses."""
    objective = objectives.build(name, {})
    policy, reference = random_rows(seed=5, by_token=objective.needs_values)
    whole, gradient = value_and_gradient(objective, policy, reference)
    totals = {"num_responses": len(LENGTHS) / len(pieces), "num_tokens": sum(LENGTHS) / len(pieces)}
    value, found = 0.0, torch.zeros_like(gradient)
    for rows in pieces:
        part, own = value_and_gradient(objective, chosen(policy, rows), reference[rows], **totals)
        value += part / len(pieces)
        found[rows] += own / len(pieces)
    assert value == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-14)


def test_without_the_denominators_the_cut_would_show():
    policy, _ = random_rows()
    objective = objectives.build("dapo", {})
    mean_of_means = sum(float(objective(chosen(policy, [row])).value) for row in range(6)) / 6
    assert abs(mean_of_means - float(objective(policy).value)) > 1e-3


def test_a_step_down_the_gradient_makes_the_better_response_likelier():
    policy, _ = random_rows(lengths=[4, 4])
    policy = dataclasses.replace(policy, logps=policy.behaviour.clone(), advantages=torch.tensor([0.7, -0.7]))
    for name in NAMES:
        made = as_taken(objectives.build(name, {}), policy)
        _, gradient = value_and_gradient(objectives.build(name, {}), made, policy.behaviour)
        assert (gradient[0] < 0).all(), name
        assert (gradient[1] > 0).all(), name


def test_extreme_log_probs_stay_finite():
    for shift in (-60.0, 60.0):
        policy = GroupLogps(
            logps=torch.full((2, 3), -80.0),
            behaviour=torch.full((2, 3), -80.0 - shift),
            mask=torch.ones(2, 3, dtype=torch.bool),
            advantages=torch.tensor([0.7, -0.7]),
        )
        for name in NAMES:
            objective = objectives.build(name, {"beta": 0})
            value, gradient = value_and_gradient(objective, as_taken(objective, policy), policy.logps)
            assert math.isfinite(value)
            assert torch.isfinite(gradient).all()


def test_advantages_leave_out_what_has_no_reward():
    rewards = [1.0, math.nan, 0.0, 0.0]
    assert group_advantages(rewards, scale=False) == pytest.approx([2 / 3, 0, -1 / 3, -1 / 3])
    std = np.std([1.0, 0.0, 0.0], ddof=1)
    assert group_advantages(rewards, scale=True) == pytest.approx(np.array([2 / 3, 0, -1 / 3, -1 / 3]) / (std + 1e-4))
    assert group_advantages(rewards, scale=True).sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.3, 0.1 + 0.2], [math.nan, 1.0, math.nan], [math.nan] * 2, []])
def test_rewards_that_do_not_differ_give_no_advantage(rewards):
    assert is_uniform(rewards)
    assert not group_advantages(rewards, scale=True).any()
    assert not is_uniform([*rewards, 0.0, 1.0])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"normalise": "mean"}, "normalise of grpo must be one of 'response', 'tokens', 'constant', got 'mean'"),
        ({"eps_low": 1.0}, "eps_low of grpo must be less than 1"),
        ({"beta": -0.1}, "beta of grpo must be at least 0"),
        ({"scale": 1}, "scale of grpo must be true or false"),
        ({"sft_weight": 1}, r"unknown objective\.params\.sft_weight of grpo"),
    ],
)
def test_wrong_parameters_are_explained(params, message):
    with pytest.raises(ConfigError, match=message):
        objectives.build("grpo", params)


@pytest.mark.parametrize(("option", "value"), [("max_tokens", 512.0), ("max_behaviour_weight", 5.0)])
def test_a_parameter_that_the_switches_do_not_use_is_refused(option, value):
    with pytest.raises(ConfigError, match=f"objective.params.{option} is set but nothing uses it: it is for"):
        Switched(**{option: value})
    Switched(normalise="constant", decoupled=True, **{option: value})
