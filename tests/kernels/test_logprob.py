"""Log-probability and entropy: the bits of the logits, properties of the numbers, gradients against float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from seedthink import _C
from seedthink.kernels import logprob as module
from seedthink.kernels.linear import linear, linear_packed
from seedthink.kernels.logprob import (
    linear_logprob,
    part_gradients,
    reference_linear_logprob,
    reference_row_logprob,
    row_logprob,
)
from seedthink.kernels.logprob_parts import block_states, join_states
from seedthink.kernels.packing import panels_of


def rows(count: int, vocabulary: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(count, vocabulary, generator=generator) * scale
    return logits, torch.randint(0, vocabulary, (count,), generator=generator)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_bits_equal_the_row_function_on_the_logits_of_linear(compute: torch.dtype, temperature: float) -> None:
    h, weight = torch.randn(130, 48), torch.randn(77, 48)
    targets = torch.randint(0, 77, (130,))
    fused = linear_logprob(h, weight, targets, temperature, compute)
    separate = row_logprob(linear(h, weight, compute), targets, torch.full((130,), temperature))
    for one, two in zip(fused, separate, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("vocabulary", [90, 1024, 2500])
def test_a_row_has_the_same_bits_alone_and_with_a_kept_pack(vocabulary: int) -> None:
    h, weight, targets = torch.randn(70, 32), torch.randn(vocabulary, 32), torch.randint(0, vocabulary, (70,))
    whole = linear_logprob(h, weight, targets, 0.9)
    alone = [linear_logprob(h[t : t + 1], weight, targets[t : t + 1], 0.9) for t in range(0, 70, 17)]
    panels_of(weight, torch.float32)
    kept = linear_logprob(h, weight, targets, 0.9)
    for part in range(2):
        assert torch.equal(whole[part], kept[part])
        assert torch.equal(whole[part][::17], torch.cat([one[part] for one in alone]))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ends", [(2500,), (1024, 2500), (1024, 2048, 2500), (0, 2048, 2048, 2500, 2500)])
def test_parts_of_the_vocabulary_joined_are_the_bits_of_the_whole(compute: torch.dtype, ends: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    h, weight, targets = torch.randn(60, 24), torch.randn(2500, 24), torch.randint(0, 2500, (60,))
    weight[2400] = weight[5] = weight[1023] = weight[1024]  # ties across blocks
    targets[:5] = torch.tensor([0, 1023, 1024, 2047, 2499])
    whole = linear_logprob(h, weight, targets, 0.7, compute)
    parts = [
        block_states(h, weight[begin:end], targets, 0.7, compute, (begin, 2500))
        for begin, end in zip((0, *ends), ends, strict=False)
    ]
    joined = join_states(torch.cat(parts), targets, 0.7)
    rows = row_logprob(linear(h, weight, compute), targets, torch.full((60,), 0.7))
    for one, two, three in zip(joined[:2], whole, rows, strict=True):
        assert torch.equal(one, two) and torch.equal(two, three)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [3, 1500, 2400])
def test_parts_with_numbers_that_are_none_join_as_the_whole_does(poison: float, at: int) -> None:
    logits, targets = rows(3, 2500)
    logits[1, at], logits[2, :2048] = poison, float("-inf")
    targets[0], temperature, states = at, torch.full((3,), 0.9), torch.empty(3, 3, 4, dtype=torch.float64)
    _C.logprob_blocks(logits[:, :1024].contiguous(), 0, 2500, targets, temperature, states[:1])
    _C.logprob_blocks(logits[:, 1024:].contiguous(), 1024, 2500, targets, temperature, states[1:])
    for mine, whole in zip(
        join_states(states, targets, 0.9)[:2], row_logprob(logits, targets, temperature), strict=True
    ):
        assert torch.equal(mine.nan_to_num(7.0), whole.nan_to_num(7.0))


def test_gradients_by_parts_of_the_vocabulary_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    h, weight = torch.randn(20, 24, requires_grad=True), torch.randn(2500, 24, requires_grad=True)
    targets, grads = torch.randint(0, 2500, (20,)), (torch.randn(20), torch.randn(20))
    torch.autograd.backward(linear_logprob(h, weight, targets, 0.7), grads)
    h_TD, all_VD = h.detach(), weight.detach()
    *_, state = join_states(block_states(h_TD, all_VD, targets, 0.7, torch.float32, (0, 2500)), targets, 0.7)
    bounds = (0, 1024, 2048, 2500, 2500)
    found = [
        part_gradients(*grads, h_TD, all_VD[begin:end], targets, state, 0.7, torch.float32, (begin, 2500))
        for begin, end in pairwise(bounds)
    ]
    assert torch.equal(torch.cat([dweight for _, dweight in found]), weight.grad)
    dh = found[0][0]
    for other, _ in found[1:]:
        dh = dh + other
    assert torch.equal(dh, h.grad), "the whole adds its blocks up in this order"


@pytest.mark.parametrize("vocabulary", [1, 7, 16, 128, 1024, 1025, 5000])
def test_values_match_float64(vocabulary: int) -> None:
    logits, targets = rows(20, vocabulary)
    temperature = torch.rand(20) + 0.5
    want = reference_row_logprob(logits.double(), targets, temperature.double())
    for mine, theirs in zip(row_logprob(logits, targets, temperature), want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-6, atol=3e-6)


def test_a_vocabulary_of_real_size_keeps_its_digits() -> None:
    logits, targets = rows(2, 151936, scale=1.0)
    want = reference_row_logprob(logits.double(), targets, torch.ones(2).double())
    for mine, theirs in zip(row_logprob(logits, targets, torch.ones(2)), want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0.0, atol=4e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0, 1e4])
def test_log_probabilities_are_not_positive_and_entropy_stays_in_its_range(scale: float) -> None:
    logits, _ = rows(64, 100, scale)
    logp, entropy = row_logprob(logits, logits.argmax(-1), torch.ones(64))
    assert (logp <= 0).all()
    assert (entropy >= -1e-6).all()
    assert (entropy <= math.log(100) + 1e-5).all()


def test_probabilities_sum_to_one() -> None:
    logits, _ = rows(1, 50)
    logp, _ = row_logprob(logits.repeat(50, 1), torch.arange(50), torch.ones(50))
    assert logp.double().exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    logits = torch.randint(-8, 8, (10, 60)).float()  # small integers: the shift is exact
    targets = torch.randint(0, 60, (10,))
    plain, shifted = (row_logprob(logits + shift, targets, torch.ones(10)) for shift in (0.0, 1000.0))
    for one, two in zip(plain, shifted, strict=True):
        assert torch.equal(one, two)


def test_duplicated_logits_have_one_log_probability_and_uniform_rows_full_entropy() -> None:
    logits = torch.zeros(4, 8)
    logp, entropy = row_logprob(logits, torch.tensor([0, 3, 5, 7]), torch.ones(4))
    torch.testing.assert_close(logp, torch.full((4,), -math.log(8)))
    torch.testing.assert_close(entropy, torch.full((4,), math.log(8)))
    assert logp.unique().numel() == 1


def test_a_forbidden_token_has_no_probability_and_leaves_the_entropy_finite() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0]]).repeat(2, 1)
    logp, entropy = row_logprob(logits, torch.tensor([0, 1]), torch.ones(2))
    torch.testing.assert_close(logp, torch.tensor([-math.log(2), float("-inf")]))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(2)))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("count", "vocabulary"), [(40, 33), (300, 128), (3, 1000), (20, 2500)])
def test_gradients_through_both_outputs_match_float64(count: int, vocabulary: int, temperature: float) -> None:
    torch.manual_seed(count)
    inputs = (torch.randn(count, 24), torch.randn(vocabulary, 24) * 0.5)
    targets = torch.randint(0, vocabulary, (count,))
    grads = (torch.randn(count), torch.randn(count))
    ours = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    torch.autograd.backward(linear_logprob(*ours, targets, temperature), grads)
    torch.autograd.backward(
        reference_linear_logprob(*exact, targets, temperature), tuple(grad.double() for grad in grads)
    )
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("order", [1, -1])
def test_blocks_of_very_unlike_size_join_without_loss(order: int) -> None:
    blocks = [torch.full((1024,), float("-inf")), torch.randn(1024) - 80, torch.randn(1024) + 40, torch.randn(500)]
    logits = torch.cat(blocks[::order])[None].repeat(3, 1)
    targets = logits[0].argsort(descending=True)[torch.tensor([0, 700, 1500])]
    want = reference_row_logprob(logits.double(), targets, torch.ones(3).double())
    for mine, theirs in zip(row_logprob(logits, targets, torch.ones(3)), want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [5, 1500, 2400])
def test_a_number_that_is_none_makes_its_row_unknown_and_no_other(poison: float, at: int) -> None:
    logits, targets = rows(3, 2500)
    clean = row_logprob(logits, targets, torch.ones(3))
    logits[1, at] = poison
    for before, after in zip(clean, row_logprob(logits, targets, torch.ones(3)), strict=True):
        assert after[1].isnan()
        assert torch.equal(before[::2], after[::2])


def test_no_more_logits_than_rows_times_1024_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def watched(x: torch.Tensor, panels: torch.Tensor, columns: int) -> torch.Tensor:
        held.append(columns)
        return linear_packed(x, panels, columns)

    monkeypatch.setattr(module, "linear_packed", watched)
    h, weight = torch.randn(3, 8, requires_grad=True), torch.randn(2500, 8, requires_grad=True)
    linear_logprob(h, weight, torch.tensor([0, 1, 2499]), 1.0)[0].sum().backward()
    assert held == [1024, 1024, 452, 1024, 8, 1024, 8, 452, 8]  # forward; backward: logits and dh, block by block


def test_a_batch_without_rows_has_a_gradient_of_zeros() -> None:
    h, weight = torch.zeros(0, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    logp, entropy = linear_logprob(h, weight, torch.zeros(0, dtype=torch.int64), 1.0)
    (logp.sum() + entropy.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros(5, 8))


def test_one_thread_and_two_give_the_same_bits() -> None:
    h, weight, targets = torch.randn(500, 32), torch.randn(100, 32), torch.randint(0, 100, (500,))
    results, before = [], _C.threads()
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            leaves = [h.clone().requires_grad_(), weight.clone().requires_grad_()]
            logp, entropy = linear_logprob(*leaves, targets, 1.0)
            (logp.sum() + entropy.sum()).backward()
            results.append([logp, entropy, *(leaf.grad for leaf in leaves)])
    finally:
        _C.set_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_bad_arguments_are_named() -> None:
    h, weight, targets = torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="targets: entry 1 is 3"):
        linear_logprob(h, weight, targets, 1.0)
    with pytest.raises(ValueError, match=r"temperature: 0\.0 is not above 0"):
        linear_logprob(h, weight, targets.clamp(max=2), 0.0)
    with pytest.raises(ValueError, match="h: expected rows as wide as weight"):
        linear_logprob(torch.zeros(2, 5), weight, targets.clamp(max=2), 1.0)
    with pytest.raises(ValueError, match=r"weight: expected shape \[V, D\] with V above 0"):
        linear_logprob(h, torch.zeros(0, 4), targets, 1.0)
    with pytest.raises(ValueError, match="targets: expected dtype int64"):
        row_logprob(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int32), torch.ones(1))
    with pytest.raises(ValueError, match="targets: entry 1 is 1024, outside the 1 blocks there are"):
        join_states(torch.zeros(1, 2, 4, dtype=torch.float64), torch.tensor([0, 1024]), 1.0)


def test_the_operator_is_registered_soundly() -> None:
    h, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    arguments = (h, weight, torch.tensor([0, 4, 2]), 0.8, torch.float32)
    torch.library.opcheck(torch.ops.seedthink.linear_logprob.default, arguments)
