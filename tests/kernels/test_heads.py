"""Splitting a projection into heads: the bits of its parts, gradients against float64, and what is refused."""

from __future__ import annotations

import pytest
import torch

from seedthink import _C
from seedthink.kernels.heads import reference_split_heads, split_heads
from seedthink.kernels.norm import rms_norm
from seedthink.kernels.rope import rope, rope_table

EPS = 1e-6


Floats = list[torch.Tensor | None]
every_family = pytest.mark.parametrize(
    ("normed", "biased"),
    [(True, False), (False, False), (False, True), (True, True)],
    ids=lambda on: "x" if on else "-",
)


def inputs(
    tokens: int, heads: int, kv_heads: int, width: int, normed: bool = True, biased: bool = False
) -> tuple[Floats, torch.Tensor, torch.Tensor]:
    """([qkv, q_norm, k_norm, bias], table, positions); norms and bias are None where they are left out."""
    torch.manual_seed(tokens + width)
    wide = (heads + 2 * kv_heads) * width
    qkv, q_norm, k_norm, bias = torch.randn(tokens, wide), torch.randn(width), torch.randn(width), torch.randn(wide)
    floats = [qkv, *((q_norm, k_norm) if normed else (None, None)), bias if biased else None]
    return floats, rope_table(500, width, 1e4), torch.randint(0, 500, (tokens,), dtype=torch.int32)


def learning(floats: Floats, dtype: torch.dtype = torch.float32) -> Floats:
    return [None if x is None else x.to(dtype, copy=True).requires_grad_() for x in floats]


def split(floats: Floats, *places: object) -> tuple[torch.Tensor, ...]:
    """`split_heads` of [qkv, q_norm, k_norm, bias] and (table, positions, heads, kv_heads)."""
    qkv, q_norm, k_norm, bias = floats
    return split_heads(qkv, q_norm, k_norm, EPS, *places, bias)


@every_family
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (37, 4, 2, 16), (70, 3, 3, 48), (9, 6, 1, 128)])
def test_it_has_the_bits_of_sum_norm_and_rotation_one_after_the_other(
    shape: tuple[int, int, int, int], normed: bool, biased: bool
) -> None:
    tokens, heads, kv_heads, width = shape
    floats, table, positions = inputs(*shape, normed, biased)
    qkv, q_norm, k_norm, bias = floats
    whole = qkv if bias is None else qkv + bias
    parts = whole.split([heads * width, kv_heads * width, kv_heads * width], dim=1)
    q, k, v = split(floats, table, positions, heads, kv_heads)
    for found, part, norm, count in ((q, parts[0], q_norm, heads), (k, parts[1], k_norm, kv_heads)):
        each = part.contiguous().view(-1, width)
        each = each if norm is None else rms_norm(each, norm, EPS)
        assert torch.equal(found, rope(each.view(tokens, count, width), table, positions))
    assert torch.equal(v, parts[2].reshape(tokens, kv_heads, width))


@every_family
@pytest.mark.parametrize("shape", [(37, 4, 2, 16), (100, 2, 1, 40)])
def test_values_and_gradients_match_float64(shape: tuple[int, int, int, int], normed: bool, biased: bool) -> None:
    floats, table, positions = inputs(*shape, normed, biased)
    ours, exact = learning(floats), learning(floats, torch.float64)
    found = split(ours, table, positions, *shape[1:3])
    wanted = reference_split_heads(*exact[:3], EPS, table.double(), positions, *shape[1:3], exact[3])
    grads = [torch.randn_like(each) for each in found]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)
    torch.autograd.backward(found, grads)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    for mine, theirs in zip(ours, exact, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=5e-5)


@every_family
def test_the_gradients_do_not_depend_on_threads(normed: bool, biased: bool) -> None:
    before, grads = _C.threads(), []
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            floats, table, positions = inputs(333, 4, 2, 32, normed, biased)
            leaves = learning(floats)
            sum(x.sin().sum() for x in split(leaves, table, positions, 4, 2)).backward()
            grads.append([leaf.grad for leaf in leaves if leaf is not None])
    finally:
        _C.set_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_no_tokens_are_no_trouble() -> None:
    floats, table, positions = inputs(0, 2, 1, 16, biased=True)
    leaves = learning(floats)
    sum(x.sum() for x in split(leaves, table, positions, 2, 1)).backward()
    assert torch.equal(leaves[1].grad, torch.zeros(16)) and torch.equal(leaves[3].grad, torch.zeros(64))


def test_bad_arguments_are_named() -> None:
    (qkv, q_norm, k_norm, bias), table, positions = inputs(2, 2, 1, 16, biased=True)
    with pytest.raises(ValueError, match="qkv: dimension 1 is 64, expected 80"):
        split_heads(qkv, q_norm, k_norm, EPS, table, positions, 3, 1)
    with pytest.raises(ValueError, match="k_norm: dimension 0 is 8, expected 16"):
        split_heads(qkv, q_norm, k_norm[:8], EPS, table, positions, 2, 1)
    with pytest.raises(ValueError, match="k_norm: must be given with q_norm, or neither"):
        split_heads(qkv, q_norm, None, EPS, table, positions, 2, 1)
    with pytest.raises(ValueError, match="bias: dimension 0 is 63, expected 64"):
        split_heads(qkv, q_norm, k_norm, EPS, table, positions, 2, 1, bias[1:])
    with pytest.raises(ValueError, match="positions: entry 1 is 500, outside the table's 500 rows"):
        split_heads(qkv, q_norm, k_norm, EPS, table, torch.tensor([0, 500], dtype=torch.int32), 2, 1)


@every_family
def test_the_operator_is_registered_soundly(normed: bool, biased: bool) -> None:
    floats, table, positions = inputs(3, 2, 1, 16, normed, biased)
    qkv, q_norm, k_norm, bias = learning(floats)
    arguments = (qkv, bias, q_norm, k_norm, EPS, table, positions, 2, 1)
    torch.library.opcheck(torch.ops.seedthink.split_heads.default, arguments)
