"""FP8 codes straight from RMSNorm and from permute: what a layer of FP8 products reads, without the row in between.

rms_norm_fp8 is `quantize_fp8(rms_norm(x))`, permute_fp8 is `permute` of `quantize_fp8(x)`; both in blocks of 1 x 128.
On CUDA each is one pass over memory; a token that goes to K experts is quantised once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.kernels import cuda
from seedthink.kernels.fp8 import FORMATS, Fp8, known_format, quantize_fp8
from seedthink.kernels.norm import rms_norm
from seedthink.kernels.registry import define
from seedthink.kernels.route import Routing

GROUP = 128  # columns that share a scale


def rms_norm_fp8(x_TD: Tensor, weight_D: Tensor, eps: float, format: str = "e4m3", power_of_two: bool = False) -> Fp8:
    """The codes of RMSNorm's rows. x_TD as of `rms_norm` [T, D], D a multiple of 128 on CUDA; no autograd.

    ValueError names the argument that does not fit.
    """
    codes_TD, scale_TQ = _norm(x_TD, weight_D, eps, known_format(format), power_of_two)
    return Fp8(codes_TD.view(FORMATS[format]), scale_TQ, (1, GROUP))


def permute_fp8(x_TD: Tensor, routing: Routing, format: str = "e4m3", power_of_two: bool = False) -> Fp8:
    """The codes of the tokens' rows, expert by expert. x_TD: float32 or bfloat16 [T, D]; no autograd.

    ValueError names the argument that does not fit.
    """
    codes_RD, scale_RQ = _permute(x_TD, routing.row_TK, routing.token_R, known_format(format), power_of_two)
    return Fp8(codes_RD.view(FORMATS[format]), scale_RQ, (1, GROUP))


def _quantized(x_TD: Tensor, format: str, power_of_two: bool) -> tuple[Tensor, Tensor]:
    codes_TD, scale_TQ, _ = quantize_fp8(x_TD, (1, GROUP), format, power_of_two)
    return codes_TD.view(torch.uint8), scale_TQ


def _norm_cpu(x_TD: Tensor, weight_D: Tensor, eps: float, format: str, power_of_two: bool) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return _quantized(rms_norm(x_TD, weight_D, eps), format, power_of_two)


def _norm_cuda(x_TD: Tensor, weight_D: Tensor, eps: float, format: str, power_of_two: bool) -> tuple[Tensor, Tensor]:
    return cuda.rms_norm_fp8(x_TD, weight_D, eps, format, power_of_two)[:2]


def _permute_cpu(
    x_TD: Tensor, row_TK: Tensor, token_R: Tensor, format: str, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    if row_TK.dim() != 2 or row_TK.shape[0] != x_TD.shape[0] or token_R.shape != (row_TK.numel(),):
        raise ValueError(f"routing: is of {row_TK.shape[0]} tokens, x has {x_TD.shape[0]}")
    codes_TD, scale_TQ = _quantized(x_TD, format, power_of_two)
    return codes_TD.index_select(0, token_R), scale_TQ.index_select(0, token_R)


def _permute_cuda(
    x_TD: Tensor, row_TK: Tensor, token_R: Tensor, format: str, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    return cuda.permute_fp8(x_TD, row_TK, format, power_of_two)


def _like(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    width = x.shape[1]
    codes = x.new_empty((rows, width), dtype=torch.uint8)
    return codes, x.new_empty((rows, -(-width // GROUP)), dtype=torch.float32)


_norm = define(
    "rms_norm_fp8(Tensor x, Tensor weight, float eps, str format, bool power_of_two) -> (Tensor, Tensor)",
    cpu=_norm_cpu,
    cuda=_norm_cuda,
    fake=lambda x, weight, eps, *how: _like(x, x.shape[0]),
)
_permute = define(
    "permute_fp8(Tensor x, Tensor row, Tensor token, str format, bool power_of_two) -> (Tensor, Tensor)",
    cpu=_permute_cpu,
    cuda=_permute_cuda,
    fake=lambda x, row, token, *how: _like(x, row.numel()),
)
