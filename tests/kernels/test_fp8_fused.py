"""FP8 straight from RMSNorm and from permute: the codes of the two operations one after the other."""

from __future__ import annotations

import pytest
import torch

from seedthink.kernels.fp8 import Fp8, quantize_fp8
from seedthink.kernels.fp8_fused import permute_fp8, rms_norm_fp8
from seedthink.kernels.norm import rms_norm
from seedthink.kernels.route import route

HOW = [("e4m3", False), ("e5m2", True)]


def same(mine: Fp8, codes: torch.Tensor, scale: torch.Tensor) -> bool:
    return torch.equal(mine.codes.view(torch.uint8), codes.view(torch.uint8)) and torch.equal(mine.scale, scale)


@pytest.mark.parametrize(("format", "power_of_two"), HOW)
def test_rms_norm_and_codes_are_the_two_operations(format: str, power_of_two: bool) -> None:
    x, weight = torch.randn(5, 300), torch.rand(300) + 0.5
    want = quantize_fp8(rms_norm(x, weight, 1e-6), format=format, power_of_two=power_of_two)
    mine = rms_norm_fp8(x, weight, 1e-6, format, power_of_two)
    assert same(mine, want.codes, want.scale) and mine.block == (1, 128)


@pytest.mark.parametrize(("format", "power_of_two"), HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_its_tokens_codes(dtype: torch.dtype, format: str, power_of_two: bool) -> None:
    x, routing = torch.randn(7, 200).to(dtype), route(torch.randn(7, 6), 2)
    want, token = quantize_fp8(x, format=format, power_of_two=power_of_two), routing.token_R.long()
    mine = permute_fp8(x, routing, format, power_of_two)
    assert same(mine, want.codes.view(torch.uint8)[token], want.scale[token])


def test_no_tokens_give_no_codes() -> None:
    mine = permute_fp8(torch.randn(0, 128), route(torch.randn(0, 4), 2))
    assert mine.codes.shape == (0, 128) and mine.scale.shape == (0, 1)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="format: 'e3m4' is not one of"):
        rms_norm_fp8(torch.randn(2, 128), torch.ones(128), 1e-6, "e3m4")
    with pytest.raises(ValueError, match="routing: is of 3 tokens, x has 2"):
        permute_fp8(torch.randn(2, 128), route(torch.randn(3, 4), 1))


def test_the_operators_pass_opcheck() -> None:
    routing = route(torch.randn(3, 4), 2)
    how = ("e4m3", False)
    norm = (torch.randn(3, 128), torch.ones(128), 1e-6, *how)
    torch.library.opcheck(torch.ops.seedthink.rms_norm_fp8.default, norm)
    rows = (torch.randn(3, 128), routing.row_TK, routing.token_R, *how)
    torch.library.opcheck(torch.ops.seedthink.permute_fp8.default, rows)
