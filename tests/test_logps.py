"""Token log-probabilities and KL in chunks: exact, differentiable, and without the whole logits in memory."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidalign.model.logps import PairLogps, forward_kl, log_sum_squares, masked_sum, num_chunks, pad_to_mask, token_logps


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small tensors gain nothing from threads, and waiting for them is slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class MemoryWatch(TorchDispatchMode):
    """The largest tensor made within, and the most bytes alive at one time of all that were made within."""

    def __init__(self):
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), tensor.nbytes)
        return result

    def _count(self, storage, num_bytes):
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.largest = max(self.largest, num_bytes)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, key, storage.nbytes())

    def _release(self, key, num_bytes):
        self._known.discard(key)
        self.alive -= num_bytes


def inputs(num_tokens=13, vocabulary=50, width=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    labels = torch.randint(vocabulary, (num_tokens,), generator=generator)
    return hidden, weight, labels


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 1000])
@pytest.mark.parametrize("as_callable", [False, True])
def test_token_logps_equal_log_softmax(chunk_size, as_callable):
    hidden, weight, labels = inputs()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    head = torch.nn.functional.linear
    expected = torch.log_softmax(hidden @ weight.T, -1)[torch.arange(13), labels]
    actual = token_logps(hidden, (lambda rows: head(rows, weight)) if as_callable else weight, labels, chunk_size)
    torch.testing.assert_close(actual, expected)
    upstream = torch.linspace(-1, 1, 13, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(actual @ upstream, (hidden, weight)), torch.autograd.grad(expected @ upstream, (hidden, weight))
    )


def test_gradients_match_float64_finite_differences():
    hidden, weight, labels = inputs(num_tokens=5, vocabulary=7, width=3)
    ref_hidden, ref_weight, _ = inputs(num_tokens=5, vocabulary=7, width=3, seed=1)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: token_logps(h, w, labels, 2), (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: forward_kl(h, ref_hidden, w, ref_weight, 2), (hidden, weight))


def test_no_gradient_needed():
    hidden, weight, labels = inputs()
    with torch.no_grad():
        without = token_logps(hidden, weight, labels, 4)
    assert not without.requires_grad
    torch.testing.assert_close(without, token_logps(hidden, weight, labels, 4))


def test_no_tokens():
    hidden, weight, labels = inputs(num_tokens=0)
    assert token_logps(hidden, weight, labels).shape == (0,)
    assert forward_kl(hidden, hidden, weight, weight).shape == (0,)


def test_bfloat16_inputs_are_computed_in_float32():
    hidden, weight, labels = inputs(num_tokens=64, vocabulary=500, width=32, dtype=torch.bfloat16)
    exact = token_logps(hidden.double(), weight.double(), labels)
    actual = token_logps(hidden, weight, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=1e-5)
    rounded = torch.log_softmax(hidden @ weight.T, -1).gather(-1, labels[:, None]).squeeze(-1)
    assert (rounded.double() - exact).abs().max() > 1e-2, "bfloat16 logits would have been wrong"
    hidden = hidden.requires_grad_()
    token_logps(hidden, weight, labels).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_improbable_tokens_stay_finite():
    hidden = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    logps = token_logps(hidden, weight, torch.tensor([1]))
    assert logps.tolist() == [-2e4]
    kl = forward_kl(hidden, -hidden.detach(), weight, weight)
    assert kl.tolist() == [2e4]
    (logps.sum() + kl.sum()).backward()
    assert torch.isfinite(hidden.grad).all()


def test_forward_kl_by_hand():
    # reference (3/4, 1/4), policy (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
    ref_hidden, hidden = torch.tensor([[0.75, 0.25]]).log(), torch.zeros(1, 2)
    eye = torch.eye(2)
    assert forward_kl(hidden, ref_hidden, eye, eye).item() == pytest.approx(0.13081204, rel=1e-5)
    assert forward_kl(ref_hidden, ref_hidden, eye, eye).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_forward_kl_equals_the_definition(chunk_size):
    hidden, weight, _ = inputs()
    ref_hidden, ref_weight, _ = inputs(width=6, seed=1)
    hidden, ref_weight = hidden.requires_grad_(), ref_weight.requires_grad_()
    ref_logps = torch.log_softmax(ref_hidden @ ref_weight.T, -1).detach()
    expected = (ref_logps.exp() * (ref_logps - torch.log_softmax(hidden @ weight.T, -1))).sum(-1)
    actual = forward_kl(hidden, ref_hidden, weight, ref_weight, chunk_size)
    torch.testing.assert_close(actual, expected)
    assert (actual > 0).all()
    actual.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(expected.sum(), hidden)[0])
    assert ref_weight.grad is None, "the reference is not trained"


def peak_memory(function):
    watch = MemoryWatch()
    with watch:
        function().sum().backward()
    return watch


@pytest.mark.parametrize("which", ["token_logps", "forward_kl"])
def test_the_logits_are_never_whole_in_memory(which):
    vocabulary, num_tokens, chunk_size = 152_000, 32, 4
    hidden, weight, labels = inputs(num_tokens, vocabulary, 2, dtype=torch.float32)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()

    def run(chunk):
        if which == "token_logps":
            return token_logps(hidden, weight, labels, chunk)
        return forward_kl(hidden, hidden.detach(), weight, weight.detach(), chunk)

    whole, chunk_bytes = num_tokens * vocabulary * 4, chunk_size * vocabulary * 4
    chunked = peak_memory(lambda: run(chunk_size))
    assert chunked.largest == chunk_bytes
    assert chunked.peak < 6 * chunk_bytes + 4 * weight.nbytes
    assert chunked.peak < whole
    at_once = peak_memory(lambda: run(num_tokens))
    assert at_once.largest == whole, "the measurement sees what chunking avoids"
    assert at_once.peak > 2 * whole


def test_pad_to_mask():
    mask = torch.tensor([[True, True, False], [False, True, False]])
    flat = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    padded = pad_to_mask(flat, mask)
    assert padded.tolist() == [[1, 2, 0], [0, 3, 0]]
    (padded * torch.tensor([[1.0, 10.0, 100.0], [1.0, 1000.0, 1.0]])).sum().backward()
    assert flat.grad.tolist() == [1, 10, 1000]
    with pytest.raises(AssertionError, match="2 values for 3 places"):
        pad_to_mask(flat[:2], mask)


def pair(values, mask):
    values, mask = torch.tensor(values), torch.tensor(mask)
    return PairLogps(chosen=values, rejected=values * 2, chosen_mask=mask, rejected_mask=~mask)


def test_sums_and_averages():
    pairs = pair([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]], [[True, True, False], [True, True, True]])
    assert pairs.num_pairs == 2
    assert pairs.chosen_sum.tolist() == [-3, -56]
    assert pairs.chosen_avg.tolist() == pytest.approx([-1.5, -56 / 3])
    assert pairs.rejected_sum.tolist() == [-8, 0]
    assert pairs.rejected_avg.tolist() == [-8, 0], "a response without tokens is 0, not NaN"


def test_padding_may_hold_anything():
    values = torch.tensor([[-1.0, -float("inf"), float("nan")]], requires_grad=True)
    total = masked_sum(values, torch.tensor([[True, False, False]]))
    total.sum().backward()
    assert total.tolist() == [-1]
    assert values.grad.tolist() == [[1, 0, 0]]


def test_sums_of_bfloat16_are_float32():
    values = torch.full((1, 1000), -1.0, dtype=torch.bfloat16)
    total = masked_sum(values, torch.ones(1, 1000, dtype=torch.bool))
    assert (total.dtype, total.item()) == (torch.float32, -1000)


def test_shapes_that_do_not_agree_are_refused():
    with pytest.raises(AssertionError, match="chosen_mask"):
        PairLogps(
            chosen=torch.zeros(2, 3),
            rejected=torch.zeros(2, 4),
            chosen_mask=torch.ones(2, 4, dtype=torch.bool),
            rejected_mask=torch.ones(2, 4, dtype=torch.bool),
        )
    with pytest.raises(AssertionError, match="same number of pairs"):
        PairLogps(
            chosen=torch.zeros(2, 3),
            rejected=torch.zeros(1, 3),
            chosen_mask=torch.ones(2, 3, dtype=torch.bool),
            rejected_mask=torch.ones(1, 3, dtype=torch.bool),
        )


@pytest.mark.parametrize("which", ["token_logps", "forward_kl"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 3, 4, 9])
def test_the_output_layer_is_called_as_often_as_is_asked_for(which, frozen, num_tokens):
    """Forwards, and again in the backward pass, on rows that count for nothing; also behind a frozen layer (an adapter's)."""
    hidden, weight, labels = inputs(num_tokens=num_tokens)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_(not frozen)
    calls = 0

    def head(rows):
        nonlocal calls
        calls += 1
        return rows @ weight.T

    def run(min_calls):
        nonlocal calls
        calls = 0
        if which == "token_logps":
            made = token_logps(hidden, head, labels, 4, min_calls)
        else:
            made = forward_kl(hidden, hidden.detach() + 1, head, lambda rows: rows @ weight.T, 4, min_calls)
        forwards = calls
        gradients = torch.autograd.grad(made.sum(), [hidden] if frozen else [hidden, weight], allow_unused=True)
        return made.detach(), gradients, forwards, calls - forwards

    made, gradients, forwards, _ = run(0)
    assert forwards == num_chunks(num_tokens, 4)
    padded, others, forwards, again = run(5)
    assert (forwards, again) == (5, 5)
    torch.testing.assert_close(padded, made, rtol=0, atol=0)
    for own, other in zip(gradients, others, strict=True):
        assert other is not None
        torch.testing.assert_close(other, torch.zeros_like(other) if own is None else own, rtol=0, atol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, 512])
def test_log_sum_squares_is_the_log_of_the_expected_probability(chunk_size):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    made = log_sum_squares(hidden, head, chunk_size=chunk_size, min_calls=9)
    expected = (hidden @ head.T).softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(made, expected.detach())
    assert not made.requires_grad
