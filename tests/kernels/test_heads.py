"""Splitting a projection into heads: the bits of its parts, gradients against float64, and what is refused."""

from __future__ import annotations

import pytest
import torch

from seedthink import _C
from seedthink.kernels.heads import reference_split_heads, split_heads
from seedthink.kernels.norm import rms_norm
from seedthink.kernels.rope import rope, rope_table

EPS = 1e-6


def inputs(tokens: int, heads: int, kv_heads: int, width: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """([qkv, q_norm, k_norm], table, positions)."""
    torch.manual_seed(tokens + width)
    floats = [torch.randn(tokens, (heads + 2 * kv_heads) * width), torch.randn(width), torch.randn(width)]
    return floats, rope_table(500, width, 1e4), torch.randint(0, 500, (tokens,), dtype=torch.int32)


@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (37, 4, 2, 16), (70, 3, 3, 48), (9, 6, 1, 128)])
def test_it_has_the_bits_of_norm_and_rotation_one_after_the_other(shape: tuple[int, int, int, int]) -> None:
    tokens, heads, kv_heads, width = shape
    (qkv, q_norm, k_norm), table, positions = inputs(*shape)
    parts = qkv.split([heads * width, kv_heads * width, kv_heads * width], dim=1)
    q, k, v = split_heads(qkv, q_norm, k_norm, EPS, table, positions, heads, kv_heads)
    for found, part, norm, count in ((q, parts[0], q_norm, heads), (k, parts[1], k_norm, kv_heads)):
        normed = rms_norm(part.contiguous().view(-1, width), norm, EPS)
        assert torch.equal(found, rope(normed.view(tokens, count, width), table, positions))
    assert torch.equal(v, parts[2].reshape(tokens, kv_heads, width))


@pytest.mark.parametrize("shape", [(37, 4, 2, 16), (100, 2, 1, 40)])
def test_values_and_gradients_match_float64(shape: tuple[int, int, int, int]) -> None:
    floats, table, positions = inputs(*shape)
    ours, exact = [x.clone().requires_grad_() for x in floats], [x.double().requires_grad_() for x in floats]
    found = split_heads(*ours, EPS, table, positions, *shape[1:3])
    wanted = reference_split_heads(*exact, EPS, table.double(), positions, *shape[1:3])
    grads = [torch.randn_like(each) for each in found]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)
    torch.autograd.backward(found, grads)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=5e-5)


def test_the_gradients_do_not_depend_on_threads() -> None:
    before, grads = _C.threads(), []
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            floats, table, positions = inputs(333, 4, 2, 32)
            leaves = [x.requires_grad_() for x in floats]
            sum(x.sin().sum() for x in split_heads(*leaves, EPS, table, positions, 4, 2)).backward()
            grads.append([leaf.grad for leaf in leaves])
    finally:
        _C.set_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_no_tokens_are_no_trouble() -> None:
    floats, table, positions = inputs(0, 2, 1, 16)
    leaves = [x.requires_grad_() for x in floats]
    sum(x.sum() for x in split_heads(*leaves, EPS, table, positions, 2, 1)).backward()
    assert torch.equal(leaves[1].grad, torch.zeros(16))


def test_bad_arguments_are_named() -> None:
    (qkv, q_norm, k_norm), table, positions = inputs(2, 2, 1, 16)
    with pytest.raises(ValueError, match="qkv: dimension 1 is 64, expected 80"):
        split_heads(qkv, q_norm, k_norm, EPS, table, positions, 3, 1)
    with pytest.raises(ValueError, match="k_norm: dimension 0 is 8, expected 16"):
        split_heads(qkv, q_norm, k_norm[:8], EPS, table, positions, 2, 1)
    with pytest.raises(ValueError, match="positions: entry 1 is 500, outside the table's 500 rows"):
        split_heads(qkv, q_norm, k_norm, EPS, table, torch.tensor([0, 500], dtype=torch.int32), 2, 1)


def test_the_operator_is_registered_soundly() -> None:
    floats, table, positions = inputs(3, 2, 1, 16)
    arguments = (*(x.requires_grad_() for x in floats), EPS, table, positions, 2, 1)
    torch.library.opcheck(torch.ops.seedthink.split_heads.default, arguments)
