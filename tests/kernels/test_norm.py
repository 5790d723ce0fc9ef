"""RMSNorm: rows stand alone, values and gradients match float64."""

from __future__ import annotations

import pytest
import torch

from seedthink import _C
from seedthink.kernels.norm import add_rms_norm, reference_rms_norm, rms_norm


def test_a_row_of_equal_numbers_becomes_the_weight() -> None:
    y = rms_norm(torch.full((1, 4), 3.0), torch.tensor([1.0, 2.0, -1.0, 0.5]), 0.0)
    torch.testing.assert_close(y, torch.tensor([[1.0, 2.0, -1.0, 0.5]]))


@pytest.mark.parametrize("width", [1, 15, 16, 70, 256])
def test_values_and_gradients_match_float64(width: int) -> None:
    torch.manual_seed(width)
    inputs = (torch.randn(300, width), torch.randn(width))
    grad = torch.randn(300, width)
    ours = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    y, want = rms_norm(*ours, 1e-3), reference_rms_norm(*exact, 1e-3)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-6)
    y.backward(grad)
    want.backward(grad.double())
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=2e-5)


def test_a_row_has_the_same_bits_alone_and_in_a_batch() -> None:
    x, weight = torch.randn(37, 130), torch.randn(130)
    together = rms_norm(x, weight, 1e-6)
    alone = torch.cat([rms_norm(x[t : t + 1], weight, 1e-6) for t in range(37)])
    assert torch.equal(together, alone)


def test_the_weight_gradient_does_not_depend_on_threads() -> None:
    x, before, grads = torch.randn(1000, 64), _C.threads(), []
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            weight = torch.ones(64, requires_grad=True)
            rms_norm(x, weight, 1e-6).sin().sum().backward()
            grads.append(weight.grad)
    finally:
        _C.set_threads(before)
    assert torch.equal(*grads)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="weight: dimension 0 is 3, expected 4"):
        rms_norm(torch.zeros(2, 4), torch.zeros(3), 1e-6)
    with pytest.raises(ValueError, match="x: expected dtype float32, got float64"):
        rms_norm(torch.zeros(2, 4, dtype=torch.float64), torch.zeros(4), 1e-6)
    with pytest.raises(ValueError, match="x: must be contiguous"):
        rms_norm(torch.zeros(4, 2).T, torch.zeros(4), 1e-6)


def test_the_operator_is_registered_soundly() -> None:
    x, weight = torch.randn(3, 20, requires_grad=True), torch.randn(20, requires_grad=True)
    torch.library.opcheck(torch.ops.seedthink.rms_norm.default, (x, weight, 1e-6))
    torch.library.opcheck(torch.ops.seedthink.add_rms_norm.default, (x, torch.randn(3, 20), weight, 1e-6))


def residual(width: int) -> list[torch.Tensor]:
    """x, delta and weight."""
    torch.manual_seed(width)
    return [torch.randn(300, width), torch.randn(300, width), torch.randn(width)]


@pytest.mark.parametrize("width", [1, 70, 256])
def test_sum_and_norm_have_the_bits_of_the_two_operations_and_so_have_their_gradients(width: int) -> None:
    fused, apart = ([x.clone().requires_grad_() for x in residual(width)] for _ in range(2))
    total, normed = add_rms_norm(*fused, 1e-6)
    sum_apart = apart[0] + apart[1]
    assert torch.equal(total, sum_apart)
    assert torch.equal(normed, rms_norm(sum_apart, apart[2], 1e-6))
    (total.sin() + normed.cos()).sum().backward()
    (sum_apart.sin() + rms_norm(sum_apart, apart[2], 1e-6).cos()).sum().backward()
    for ours, other in zip(fused, apart, strict=True):
        assert torch.equal(ours.grad, other.grad)


def test_either_result_may_go_unused() -> None:
    for used in (0, 1):
        x, delta, weight = (each.requires_grad_() for each in residual(20))
        add_rms_norm(x, delta, weight, 1e-6)[used].sum().backward()
        assert torch.equal(x.grad, delta.grad) and (x.grad != 0).any()
        assert (weight.grad is not None) == (used == 1)


def test_a_sum_of_two_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="delta: dimension 0 is 3, expected 2"):
        add_rms_norm(torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(4), 1e-6)
