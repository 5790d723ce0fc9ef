"""Rows to the experts and back: numbers by hand, float64, gradients, bits that hold for any batch and any threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seedthink import _C
from seedthink.kernels.permute import permute, reference_permute, reference_unpermute, unpermute
from seedthink.kernels.route import Routing, route

DTYPES = [torch.float32, torch.bfloat16]
WIDTHS = [1, 16, 31, 64, 100]  # of a row: whole cache lines, parts of one, and both


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def routed(t: int = 45, count: int = 8, k: int = 3) -> Routing:
    return route(draw(t, count), k)


def with_weight(routing: Routing, weight_TK: Tensor) -> Routing:
    return routing._replace(weight_TK=weight_TK)


@pytest.mark.parametrize("dtype", DTYPES)
def test_three_tokens_by_hand(dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.0, 0.0, 2.0], [0.0, 3.0, 2.0], [2.0, 0.0, 3.0]])
    routing = with_weight(route(logits, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.5, 0.25]]))
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], dtype=dtype)
    rows = permute(x, routing)  # tokens 0 2 | 1 | 0 1 2
    assert rows.dtype == dtype and rows[:, 0].tolist() == [1.0, 4.0, 2.0, 1.0, 2.0, 4.0]
    y = unpermute(rows + torch.arange(6, dtype=dtype)[:, None], routing)
    assert y.dtype == dtype and y[:, 0].tolist() == [1 * 1 + 2 * 4, 3 * 4 + 4 * 6, 0.5 * 5 + 0.25 * 9]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_permute_copies_bits_and_its_gradient_sums_the_copies(dtype: torch.dtype, width: int) -> None:
    routing, x, dx_RD = routed(), draw(45, width).to(dtype).requires_grad_(), draw(135, width).to(dtype)
    rows = permute(x, routing)
    assert torch.equal(rows, reference_permute(x, routing))
    rows.backward(dx_RD)
    total = dx_RD.float()[routing.row_TK.long()]  # in expert order, in float32, rounded once
    assert torch.equal(x.grad, (total[:, 0] + total[:, 1] + total[:, 2]).to(dtype))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_of_unpermute_agree_with_float64(dtype: torch.dtype, width: int) -> None:
    routing, dy = routed(), draw(45, width).to(dtype)
    y, weight = draw(135, width).to(dtype).requires_grad_(), routing.weight_TK.clone().requires_grad_()
    exact_y, exact_weight = y.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    ours = unpermute(y, with_weight(routing, weight))
    truth = reference_unpermute(exact_y, with_weight(routing, exact_weight))
    ours.backward(dy)
    truth.backward(dy.double())
    last_bit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-22
    for our, exact in ((ours, truth), (y.grad, exact_y.grad)):
        assert our is not None and our.dtype == dtype
        torch.testing.assert_close(our.detach().double(), exact.detach(), rtol=last_bit, atol=1e-6)
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, rtol=1e-5, atol=1e-5)


def test_sums_of_bfloat16_rows_are_rounded_once() -> None:
    # 256 + 1 + 1 is 258, which bfloat16 has; 256 + 1 rounds to 256 there.
    routing = with_weight(route(torch.zeros(1, 3), 3), torch.ones(1, 3))
    rows = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    assert unpermute(rows, routing).tolist() == [[258.0]]
    x = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    permute(x, routing).backward(rows)
    assert x.grad is not None and x.grad.tolist() == [[258.0]]


def test_bfloat16_results_round_as_torch_does() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32)  # every upper half, with lower halves around the middle
    halves = [((bits << 16) | low).view(torch.float32) for low in (0, 0x7FFF, 0x8000, 0x8001)]
    values = torch.cat(halves)
    values = values[values.to(torch.bfloat16).isfinite()]
    routing = with_weight(route(torch.zeros(1, 2), 2), torch.ones(1, 2))
    high = values.to(torch.bfloat16)
    low = (values - high.float()).to(torch.bfloat16)  # exact where it is not below the smallest number
    exact = high.float() + low.float()
    rows = torch.stack([high, low])
    assert torch.equal(unpermute(rows, routing)[0], exact.to(torch.bfloat16))
    for special in (float("nan"), float("inf"), float("-inf")):
        row = torch.full((2, 5), special, dtype=torch.bfloat16)
        torch.testing.assert_close(unpermute(row, routing)[0], row[0], equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_results_go_past_the_caches_with_the_same_bits(dtype: torch.dtype) -> None:
    # Above 16 MiB, with rows of whole cache lines, results are streamed; the same tokens in two halves are not.
    t, k, width = 4096, 2, 2048 if dtype == torch.bfloat16 else 1024
    logits, x = draw(t, 4), draw(t, width).to(dtype)
    whole, halves = route(logits, k), [route(part, k) for part in logits.split(t // 2)]
    x.requires_grad_()
    rows = permute(x, whole)
    assert torch.equal(rows, reference_permute(x, whole))
    y = unpermute(rows, whole)
    y.backward(x.detach())
    again = x.detach().requires_grad_()
    parts = [unpermute(permute(part, half), half) for part, half in zip(again.split(t // 2), halves, strict=True)]
    torch.cat(parts).backward(x.detach())
    assert torch.equal(y, torch.cat(parts)) and torch.equal(x.grad, again.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    before, results = _C.threads(), []
    routing = routed(700)
    try:
        for threads in (1, 2, 3):
            _C.set_threads(threads)
            x, weight = draw(700, 200).to(dtype).requires_grad_(), routing.weight_TK.clone().requires_grad_()
            y = unpermute(permute(x, routing), with_weight(routing, weight))
            y.backward(draw(700, 200, seed=1).to(dtype))
            results.append([y.detach(), x.grad, weight.grad])
    finally:
        _C.set_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    t=st.integers(0, 40),
    count=st.integers(1, 20),
    width=st.integers(1, 70),
    half=st.booleans(),
    data=st.data(),
)
def test_properties_of_the_way_there_and_back(
    seed: int, t: int, count: int, width: int, half: bool, data: st.DataObject
) -> None:
    k, generator = data.draw(st.integers(1, count), label="k"), torch.Generator().manual_seed(seed)
    logits = torch.randn(t, count, generator=generator)
    # Whole numbers up to 8: bfloat16 has their multiples by up to 20.
    x = torch.randint(-8, 9, (t, width), generator=generator).to(torch.bfloat16 if half else torch.float32)
    routing = route(logits, k)
    ones = with_weight(routing, torch.ones(t, k))
    rows = permute(x, routing)
    assert torch.equal(unpermute(rows, ones), k * x)  # weights of one: k times the token
    y = unpermute(rows, routing)
    if t > 1:  # a token sees no other token
        some = torch.randperm(t, generator=generator)[: t // 2 + 1]
        part = route(logits[some], k)
        assert torch.equal(unpermute(permute(x[some], part), part), y[some])
        assert torch.equal(permute(x[some], part)[part.row_TK.long()], rows[routing.row_TK.long()][some])


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tokens(dtype: torch.dtype) -> None:
    routing, x = route(torch.empty(0, 4), 2), torch.empty(0, 8, dtype=dtype, requires_grad=True)
    y = unpermute(permute(x, routing), routing)
    y.sum().backward()
    assert y.shape == (0, 8) and x.grad is not None and x.grad.shape == (0, 8)


def test_bad_input_is_an_error_that_names_the_argument() -> None:
    routing, x = routed(6, 4, 2), draw(6, 8)
    rows = permute(x, routing)
    swapped = routing.row_TK.flip(1).contiguous()
    cases: list[tuple[str, Any, Tensor, Routing]] = [
        ("x: expected dtype float32 or bfloat16, got float64", permute, x.double(), routing),
        ("x: expected 2 dimensions, got 1", permute, x[0], routing),
        ("x: must be contiguous", permute, draw(8, 6).T, routing),
        ("routing.row_TK: dimension 0 is 6, expected 5", permute, x[:5], routing),
        ("routing.row_TK: expected dtype int32", permute, x, routing._replace(row_TK=routing.row_TK.long())),
        ("routing.row_TK: entry 0 is not a row of its token", permute, x, routing._replace(row_TK=routing.row_TK + 1)),
        ("routing.row_TK: entry 0 is not", permute, x, routing._replace(row_TK=routing.row_TK - 100)),
        ("routing.row_TK: entry 1 is not .* do not ascend", permute, x, routing._replace(row_TK=swapped)),
        ("routing.token_R: dimension 0 is 11, expected 12", permute, x, routing._replace(token_R=routing.token_R[:11])),
        ("y: expected dtype float32 or bfloat16, got float64", unpermute, rows.double(), routing),
        ("y: expected 2 dimensions, got 3", unpermute, rows[None], routing),
        ("y: dimension 0 is 6, expected 12", unpermute, x, routing),
        (
            "routing.weight_TK: dimension 1 is 1, expected 2",
            unpermute,
            rows,
            with_weight(routing, routing.weight_TK[:, :1].contiguous()),
        ),
        (
            "routing.weight_TK: expected dtype float32",
            unpermute,
            rows,
            with_weight(routing, routing.weight_TK.bfloat16()),
        ),
    ]
    for message, function, value, places in cases:
        with pytest.raises(ValueError, match=message):
            function(value, places)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operators_pass_opcheck(dtype: torch.dtype) -> None:
    routing = routed(6, 4, 2)
    x, rows = draw(6, 5).to(dtype).requires_grad_(), draw(12, 5).to(dtype).requires_grad_()
    places = (routing.row_TK, routing.token_R)
    torch.library.opcheck(torch.ops.seedthink.permute.default, (x, *places))
    torch.library.opcheck(torch.ops.seedthink.unpermute.default, (rows, routing.weight_TK.requires_grad_(), *places))
    torch.library.opcheck(torch.ops.seedthink.permute_backward.default, (rows.detach(), *places))
    torch.library.opcheck(
        torch.ops.seedthink.unpermute_backward.default,
        (x.detach(), rows.detach(), routing.weight_TK.detach(), *places),
    )


def test_experts_that_do_nothing_are_a_weighted_identity() -> None:
    # The weights of a normalised routing sum to 1, so the way there and back is the identity to rounding.
    routing, x = route(draw(200, 16), 4), draw(200, 50)
    torch.testing.assert_close(unpermute(permute(x, routing), routing), x, rtol=1e-6, atol=1e-6)
