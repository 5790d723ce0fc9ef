"""SwiGLU: values and gradients match float64, also where the exponential overflows."""

from __future__ import annotations

import pytest
import torch

from seedthink.kernels.activation import reference_swiglu, swiglu


def test_known_values() -> None:
    y = swiglu(torch.tensor([[0.0, 100.0, 7.0, 2.0]]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 200.0]]))


@pytest.mark.parametrize("width", [1, 16, 23, 100])
def test_values_and_gradients_match_float64(width: int) -> None:
    torch.manual_seed(width)
    x, grad = torch.randn(50, 2 * width) * 4, torch.randn(50, width)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, want = swiglu(ours), reference_swiglu(exact)
    torch.testing.assert_close(y.double(), want, rtol=2e-6, atol=1e-6)
    y.backward(grad)
    want.backward(grad.double())
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_a_gate_far_below_zero_closes_without_nan() -> None:
    x = torch.tensor([[-1e4, -100.0, 3.0, 3.0]], requires_grad=True)
    y = swiglu(x)
    y.sum().backward()
    assert y.abs().max() < 1e-30
    assert torch.equal(x.grad.isfinite(), torch.ones(1, 4, dtype=torch.bool))


def test_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="gate_up"):
        swiglu(torch.zeros(2, 5))


def test_the_operator_is_registered_soundly() -> None:
    torch.library.opcheck(torch.ops.seedthink.swiglu.default, (torch.randn(3, 20, requires_grad=True),))
