"""What an operator says can be made again is made again with the same bits, from what it keeps anyway."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seedthink.kernels.activation import swiglu
from seedthink.kernels.heads import split_heads
from seedthink.kernels.linear import linear
from seedthink.kernels.norm import add_rms_norm, rms_norm
from seedthink.kernels.remade import Remake, watched
from seedthink.kernels.rope import rope_table


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


CALLS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "rms_norm": lambda: (rms_norm(numbers(5, 24), numbers(24), 1e-6),),
    "add_rms_norm": lambda: add_rms_norm(numbers(5, 24), numbers(5, 24) * 3, numbers(24), 1e-6)[1:],
    "swiglu": lambda: (swiglu(numbers(5, 48)),),
    "split_heads": lambda: split_heads(
        numbers(5, 64), numbers(8), numbers(8), 1e-6, rope_table(9, 8, 1e4), torch.arange(5, dtype=torch.int32), 4, 2
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_are_made_again_bit_for_bit(name: str) -> None:
    heard: list[Remake] = []
    with watched(heard.append):
        results = CALLS[name]()
    (remake,) = heard
    assert [each.data_ptr() for each in remake.results] == [each.data_ptr() for each in results]
    with torch.no_grad():
        again = remake.kernel(*remake.inputs)
    assert len(again) == len(results)
    assert all(torch.equal(one, other) for one, other in zip(again, results, strict=True))


def test_nobody_is_told_of_products_nor_of_calls_without_a_gradient_nor_after_the_end() -> None:
    heard: list[Remake] = []
    with watched(heard.append):
        linear(numbers(5, 24), numbers(7, 24))
        with torch.no_grad():
            CALLS["swiglu"]()
    CALLS["swiglu"]()
    assert heard == []
