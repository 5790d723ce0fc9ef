"""Block-scaled FP8 product on the CPU: what FP8 tensor cores with two-level accumulation promise, exactly repeatable.

y[t, n] = sum over blocks q of 128 along K, ascending in fp32, of (x_scale[t, q] * w_scale[n // 128, q]) * part_q[t, n],
where part_q = sum over the block's k of x_code * w_code in fp32. Codes of either format are bfloat16 numbers, so part_q
is the row-exact bfloat16 product of kernels/linear.py over 128 of K: nothing is rounded before it, and its order is the
device class's. The scales' product, its product with the part and the sum are rounded one by one. A row of y depends on
that row of x alone. This is the accumulation of DeepGEMM (DeepSeek-V3, arXiv:2412.19437, section 3.3.2); the sum inside
a block is fp32 here, where Hopper's tensor cores keep about 14 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.fp8 import FORMATS, Fp8
from seedthink.kernels.registry import define, from_triton

BLOCK = 128


def reference_fp8_linear(x: Fp8, w: Fp8, dtype: torch.dtype = torch.float64) -> Tensor:
    """The formula in torch, in `dtype`."""
    y_TN = torch.zeros(x.codes.shape[0], w.codes.shape[0], dtype=dtype)
    x_scale_TQ, w_scale_NQ = x.scale.to(dtype), w.scale.to(dtype).repeat_interleave(BLOCK, 0)[: w.codes.shape[0]]
    for q in range(x.scale.shape[1]):
        at = slice(q * BLOCK, (q + 1) * BLOCK)
        part_TN = x.codes[:, at].to(dtype) @ w.codes[:, at].to(dtype).T
        y_TN += part_TN * (x_scale_TQ[:, q, None] * w_scale_NQ[:, q])
    return y_TN


def fp8_linear(x: Fp8, w: Fp8, fast: bool = False) -> Tensor:
    """y_TN = x w^T in float32, of x [T, K] in blocks of (1, 128) and w [N, K] in blocks of (128, 128); no autograd.

    Formats may differ. fast: a bfloat16 result by the quickest product at hand, which on CUDA is torch's block-scaled
    one where it takes the shapes; a row's bits may then depend on the other rows.
    ValueError names the argument that does not fit.
    """
    for what, block, wanted in (("x", x.block, (1, BLOCK)), ("w", w.block, (BLOCK, BLOCK))):
        if tuple(block) != wanted:
            raise ValueError(f"{what}: expected blocks of {wanted}, got {tuple(block)}")
    codes = x.codes.view(torch.uint8), x.scale, w.codes.view(torch.uint8), w.scale
    y_TN: Tensor = _linear(*codes, x.format, w.format, fast)
    return y_TN


def _linear_cpu(
    x_TK: Tensor, x_scale_TQ: Tensor, w_NK: Tensor, w_scale_PQ: Tensor, x_format: str, w_format: str, fast: bool
) -> Tensor:
    y_TN = torch.empty((x_TK.shape[0], w_NK.shape[0]), dtype=torch.float32)
    cells = torch.empty((x_TK.shape[0], _C.fp8_linear_pitch(x_TK.shape[1])), dtype=torch.int32)
    _C.fp8_linear(x_TK.view(FORMATS[x_format]), x_scale_TQ, w_NK.view(FORMATS[w_format]), w_scale_PQ, cells, y_TN)
    return y_TN.bfloat16() if fast else y_TN


def _shape(
    x_TK: Tensor, x_scale_TQ: Tensor, w_NK: Tensor, w_scale_PQ: Tensor, x_format: str, w_format: str, fast: bool
) -> Tensor:
    return x_scale_TQ.new_empty((x_TK.shape[0], w_NK.shape[0]), dtype=torch.bfloat16 if fast else torch.float32)


_linear = define(
    "fp8_linear(Tensor x, Tensor x_scale, Tensor w, Tensor w_scale, str x_format, str w_format, bool fast) -> Tensor",
    cpu=_linear_cpu,
    cuda=from_triton("fp8_matmul", "operator_fp8_linear"),
    fake=_shape,
)
