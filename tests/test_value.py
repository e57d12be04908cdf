"""A value model and objective dvpo: against float64 NumPy, by sign, by what they converge to."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_group_objectives import oracle, random_rows, value_and_gradient

from vidalign.errors import ConfigError
from vidalign.learning import objectives
from vidalign.learning.group_data import first_learned, with_token_advantages
from vidalign.learning.sequences import TrainingGroup, TrainingResponse
from vidalign.learning.value import ValueRows, accuracy_of, advantages_of, last_values, token_advantages, value_losses
from vidalign.model.value_head import ValueHead, read_head, write_head

LENGTHS = [5, 1, 3, 8]
PADDING = 7.0


def gae(values, end, lam):
    """A_t of one response, written out as the sum that it is."""
    following = [*values[1:], end]
    deltas = [after - before for before, after in zip(values, following, strict=True)]
    return np.array([sum(lam ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))])


def some_values(seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    mask = np.concatenate([np.zeros((len(LENGTHS), 2), bool), mask], 1)  # a response need not begin at the first place
    values = np.where(mask, rng.normal(size=mask.shape), PADDING)
    return values, mask, np.array([1.0, 1.0, -1.0, -1.0])


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_advantages_targets_value_and_gradient_are_those_written_out(lam):
    values, mask, outcomes = some_values()
    leaf = torch.tensor(values, requires_grad=True)
    rows = ValueRows(values=leaf, mask=torch.tensor(mask), outcomes=torch.tensor(outcomes))
    found = advantages_of(leaf, rows.mask, end=rows.outcomes, lam=lam)
    total, gradient = 0.0, np.zeros_like(values)
    for row, outcome in enumerate(outcomes):
        own = values[row, mask[row]]
        expected = gae(own, outcome, lam)
        np.testing.assert_allclose(found[row, mask[row]].numpy(), expected, rtol=1e-12)
        assert (found[row, ~mask[row]] == 0).all()
        errors = own - (expected + own)
        total += (errors**2).sum() / 2 / mask.sum()
        gradient[row, mask[row]] = errors / mask.sum()
    loss = objectives.build("value", {"lam": lam})(rows)
    loss.value.backward()
    assert float(loss.value.detach()) == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)
    if lam == 1:  # every token's target is the outcome
        np.testing.assert_allclose(
            value_losses(rows, 1.0).detach().numpy(), np.where(mask, (values - outcomes[:, None]) ** 2 / 2, 0)
        )


def test_the_outcome_pulls_a_model_that_says_nothing_by_powers_of_lambda():
    values = torch.zeros(2, 3, requires_grad=True)
    rows = ValueRows(values=values, mask=torch.ones(2, 3, dtype=bool), outcomes=torch.tensor([1.0, -1.0]))
    objectives.build("value", {"lam": 0.5})(rows).value.backward()
    assert (-6 * values.grad[0]).tolist() == pytest.approx([0.25, 0.5, 1.0])
    assert (-6 * values.grad[1]).tolist() == pytest.approx([-0.25, -0.5, -1.0])


@pytest.mark.parametrize(("rising", "mean"), [(True, 0.47), (False, -0.47)])
def test_a_short_response_whose_value_rises_is_a_good_one(rising, mean):
    """The authors' code takes 0 after the last token, which turns the sign of six tokens: -0.42 and 0.42."""
    values = torch.linspace(0, 1, 6)[None] * (1 if rising else -1)
    mask = torch.ones(1, 6, dtype=bool)
    ours = advantages_of(values, mask, end=last_values(values, mask), lam=0.95)
    theirs = advantages_of(values, mask, end=torch.zeros(1), lam=0.95)
    assert float(ours.mean()) == pytest.approx(mean, abs=0.005)
    assert ours[0, -1] == 0, "the end of turn is credited with nothing"
    assert float(theirs.mean()) == pytest.approx(-0.42 if rising else 0.42, abs=0.005)


def test_token_advantages_are_whitened_over_all_tokens_and_fall_at_the_wrong_word():
    good, bad = torch.tensor([0.0, 0.1, 0.2, 0.3]), torch.tensor([0.0, 0.1, -0.8, -0.9, -0.9])
    made = token_advantages([good, bad], 0.0)
    flat = torch.cat(made)
    assert [len(each) for each in made] == [4, 5]
    assert float(flat.mean()) == pytest.approx(0, abs=1e-6)
    assert float(flat.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert int(made[1].argmin()) == 1, "of the token after which the value has fallen"
    raw = torch.tensor([*gae(good.tolist(), 0.3, 0.0), *gae(bad.tolist(), -0.9, 0.0)])
    torch.testing.assert_close(flat, ((raw - raw.mean()) / raw.std(unbiased=False)).float(), atol=1e-4, rtol=1e-4)


def test_whitening_the_values_first_changes_no_advantage():
    values = [torch.tensor([0.1, 0.3, -0.4, 0.0]), torch.tensor([0.9, -0.2])]
    flat = torch.cat(values)
    white = [(each - flat.mean()) / flat.std() for each in values]
    torch.testing.assert_close(
        torch.cat(token_advantages(white, 0.95)), torch.cat(token_advantages(values, 0.95)), atol=1e-5, rtol=1e-5
    )


def test_values_that_do_not_move_credit_nothing():
    made = token_advantages([torch.full((3,), 0.5), torch.full((1,), -2.0)], 0.95)
    assert torch.cat(made).abs().max() == 0


def test_pairs_are_ranked_by_what_their_responses_are_worth_at_the_end():
    values, mask, _ = some_values()
    ends = last_values(torch.tensor(values), torch.tensor(mask))
    assert ends.tolist() == [values[row, mask[row]][-1] for row in range(len(LENGTHS))]
    one_token = torch.tensor([[True, False, False], [True, True, False]])
    assert last_values(torch.tensor([[3.0, 7.0, 7.0], [1.0, 2.0, 7.0]]), one_token).tolist() == [3.0, 2.0]
    assert accuracy_of([1.0, 0.0, 0.2, 0.0, -1.0], [0.0, 1.0, 0.1, 0.0, 1.0]) == (1 + 0 + 1 + 0.5 + 0) / 5
    assert accuracy_of([0.0], [0.0]) == 0.5


def test_half_precision_values_are_summed_in_float32():
    """In bfloat16 the differences of values near 1 are lost."""
    exact = torch.linspace(0.9, 1.0, 40)[None].bfloat16()
    mask, outcomes = torch.ones(1, 40, dtype=torch.bool), torch.ones(1)
    found, wanted = (
        value_losses(ValueRows(values=values, mask=mask, outcomes=outcomes), 0.95) for values in (exact, exact.float())
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    made = advantages_of(exact, mask, end=outcomes, lam=0.95)
    torch.testing.assert_close(made, advantages_of(exact.float(), mask, end=outcomes, lam=0.95))


def test_a_value_model_of_data_with_one_outcome_says_that_outcome():
    """A head on states that say nothing of it: its bias learns the constant, for every token of every length."""
    torch.manual_seed(0)
    head, hidden = ValueHead(4), torch.randn(16, 6, 4)
    mask = torch.arange(6)[None] < torch.randint(1, 7, (16, 1))
    assert head(hidden.flatten(0, 1)).abs().max() == 0, "it begins at 0"
    optimizer, objective = torch.optim.Adam(head.parameters(), lr=0.05), objectives.build("value", {})
    for _ in range(300):
        rows = ValueRows(values=head(hidden.flatten(0, 1)).view(16, 6), mask=mask, outcomes=torch.ones(16))
        optimizer.zero_grad()
        objective(rows).value.backward()
        optimizer.step()
    values = head(hidden.flatten(0, 1)).view(16, 6)[mask]
    assert float((values - 1).abs().max()) < 0.02


def test_micro_batches_and_padding_change_no_gradient():
    values, mask, outcomes = some_values()
    whole, cut = (torch.tensor(values, requires_grad=True) for _ in range(2))
    objective = objectives.build("value", {})
    objective(ValueRows(values=whole, mask=torch.tensor(mask), outcomes=torch.tensor(outcomes))).value.backward()
    for rows in ([0, 2], [1, 3]):
        part = ValueRows(values=cut[rows], mask=torch.tensor(mask[rows]), outcomes=torch.tensor(outcomes[rows]))
        objective(part, num_tokens=int(mask.sum())).value.backward()
    np.testing.assert_allclose(cut.grad.numpy(), whole.grad.numpy(), rtol=1e-12)


def test_dvpo_is_the_clipped_loss_of_the_value_models_advantages_less_the_kl():
    objective = objectives.build("dvpo", {"kl": 0.2})
    assert (objective.normalise, objective.eps_low, objective.eps_high) == ("tokens", 0.2, 0.2)
    assert objective.uses_reference
    policy, reference = random_rows(seed=4, by_token=True)
    shifted = policy.advantages - 0.2 * (policy.logps - reference)
    expected, gradient = oracle(objective, dataclasses.replace(policy, advantages=shifted), reference)
    value, found = value_and_gradient(objective, policy, reference)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found.numpy(), gradient, rtol=1e-10, atol=1e-14)
    assert (objectives.build("dvpo", {}).kl, objectives.build("dvpo", {}).values_lam) == (0.2, 0.95)


def test_dvpo_without_its_kl_needs_no_reference():
    objective = objectives.build("dvpo", {"kl": 0})
    assert not objective.uses_reference
    policy, _ = random_rows(seed=5, by_token=True)
    expected, _ = oracle(objective, policy, policy.behaviour)
    assert value_and_gradient(objective, policy)[0] == pytest.approx(expected, rel=1e-12)


def test_a_frozen_value_model_gets_no_gradient():
    values = torch.tensor([0.0, 0.5, -0.5], requires_grad=True)
    [advantages] = token_advantages([values], 0.95)
    assert not advantages.requires_grad
    policy, reference = random_rows(lengths=[3], by_token=True)
    leaf = policy.logps.clone().requires_grad_()
    made = dataclasses.replace(policy, logps=leaf, advantages=advantages[None].double())
    objectives.build("dvpo", {})(made, reference).value.backward()
    assert values.grad is None
    assert leaf.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("params", "says"), [({"scale": False}, "rewards"), ({"drop_uniform": True}, "rewards"), ({"kl": -1}, "kl")]
)
def test_what_dvpo_cannot_be(params, says):
    with pytest.raises(ConfigError, match=says):
        objectives.build("dvpo", params)


def group(name, lengths, left_out=()):
    responses = [
        TrainingResponse(
            group=name, role="member", token_ids=tuple(range(1, count + 1)), behaviour_logps=(-1.0,) * count, advantage=0.0,
            weight=0.0 if place in left_out else 1.0,
        )
        for place, count in enumerate(lengths)
    ]  # fmt: skip
    return TrainingGroup(id=name, video="a", question="What?", responses=tuple(responses))


def test_responses_that_are_left_out_are_in_no_mean():
    groups = [group("a", [3, 1], left_out=[1]), group("b", [2, 1], left_out=[0])]
    kept = {
        "a": {"member_0": torch.tensor([0.0, 0.4, 0.2]), "member_1": torch.tensor([99.0])},
        "b": {"member_0": torch.tensor([99.0, -99.0]), "member_1": torch.tensor([0.3])},
    }
    made = with_token_advantages(groups, kept.__getitem__, lam=0.95)
    expected = token_advantages([kept["a"]["member_0"], kept["b"]["member_1"]], 0.95)
    assert made[0].responses[0].token_advantages == tuple(expected[0].tolist())
    assert made[0].responses[1].token_advantages == (0.0,)
    assert made[1].responses[0].token_advantages == (0.0, 0.0)
    assert made[1].responses[1].token_advantages == tuple(expected[1].tolist())
    assert first_learned(made[1]).responses[0].token_ids == (1,)
    assert math.isfinite(sum(sum(each.token_advantages) for one in made for each in one.responses))


def test_a_head_is_read_back_as_it_was_written(tmp_path):
    head, other = ValueHead(5), ValueHead(5)
    torch.nn.init.normal_(head.weight)
    write_head(head, tmp_path)
    read_head(other, tmp_path)
    hidden = torch.randn(3, 5)
    assert torch.equal(head(hidden), other(hidden))
