"""Block-scaled FP8: codes and scales of a matrix, and back.

code = fp8(x / scale), value = code * scale, with one float32 scale per block and fp8() rounding to nearest even. E4M3
(largest number 448) and E5M2 (57344) as in Micikevicius et al. 2022, arXiv:2209.05433. Blocks of 1 x 128 (activations)
and 128 x 128 (weights) as DeepSeek-V3 uses them (arXiv:2412.19437), 1 x N (one scale per token), or any other size;
blocks at the edge of a matrix are smaller.

- *Scale*: headroom * amax / largest, where amax is the block's largest finite magnitude, clamped from below so that a
  block of zeros has a normal scale. `power_of_two` rounds it up to a power of two, by integer arithmetic.
- *Sticky ranges*: given the scales of the last publish, a block keeps its scale while amax stays in a band below the
  largest number. A publish after a small update then moves few codes (kernels/fp8_delta.py).
- *Finite numbers* saturate. What is NaN or infinite becomes NaN (code 0x7f) and does not count for its block's scale.
- *Residual carry*: what the codes leave of x is kept in bfloat16 and added to the next x, so that the error of a
  repeatedly quantised quantity does not add up.

Codes and scales have the same bits on every instruction set: all steps are integer operations or single IEEE ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels import cuda
from seedthink.kernels.registry import define

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
BAND = (0.25, 1.0)
_LEAST_NORMAL = 2.0**-126


class Fp8(NamedTuple):
    """A quantised matrix: value[m, n] = codes[m, n] * scale[m // block[0], n // block[1]]."""

    codes: Tensor  # float8_e4m3fn or float8_e5m2 [M, N]
    scale: Tensor  # float32 [ceil(M / block[0]), ceil(N / block[1])], finite, positive, no subnormals
    block: tuple[int, int]

    @property
    def format(self) -> str:
        """e4m3 or e5m2."""
        return "e4m3" if self.codes.dtype == torch.float8_e4m3fn else "e5m2"

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes


def reference_scale(
    x_MN: Tensor,
    block: tuple[int, int],
    format: str = "e4m3",
    power_of_two: bool = False,
    headroom: float = 1.0,
    previous: Tensor | None = None,
    band: tuple[float, float] = BAND,
) -> Tensor:
    """The scales that `quantize_fp8` chooses, in torch."""
    largest, (rows, columns) = LARGEST[format], block
    edge = (0, -x_MN.shape[1] % columns, 0, -x_MN.shape[0] % rows)
    magnitude = torch.nn.functional.pad(x_MN.float().nan_to_num(0.0, 0.0, 0.0).abs(), edge)
    amax_PQ = magnitude.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).amax((1, 3))
    range_PQ = (amax_PQ * headroom).clamp(largest * _LEAST_NORMAL, torch.finfo(torch.float32).max)
    scale_PQ = range_PQ / largest
    if power_of_two:
        fraction, exponent = torch.frexp(range_PQ.double() / largest)  # fraction in [0.5, 1)
        exponent = torch.where(fraction == 0.5, exponent - 1, exponent).clamp(-126, 127)
        scale_PQ = ((exponent + 127).int() << 23).view(torch.float32)
    if previous is None:
        return scale_PQ
    most_PQ = previous * largest
    stays = (amax_PQ >= band[0] * most_PQ) & (amax_PQ <= band[1] * most_PQ) & (previous >= _LEAST_NORMAL)
    return torch.where(stays, previous, scale_PQ)


def reference_codes(x_MN: Tensor, scale_PQ: Tensor, block: tuple[int, int], format: str = "e4m3") -> Tensor:
    """The codes of x under given scales, in torch, whose cast rounds to nearest even."""
    x_MN = x_MN.float()
    scaled_MN = (x_MN / spread(scale_PQ, block, x_MN.shape)).clamp(-LARGEST[format], LARGEST[format])
    return scaled_MN.where(x_MN.isfinite(), torch.nan).to(FORMATS[format])


def spread(scale_PQ: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """Each element's scale: [P, Q] to `shape`."""
    rows_MQ = scale_PQ.repeat_interleave(block[0], 0)[: shape[0]]
    return rows_MQ.repeat_interleave(block[1], 1)[:, : shape[1]]


def quantize_fp8(
    x_MN: Tensor,
    block: tuple[int, int] = (1, 128),
    format: str = "e4m3",
    power_of_two: bool = False,
    headroom: float = 1.0,
    previous: Tensor | None = None,
    band: tuple[float, float] = BAND,
) -> Fp8:
    """Quantise x_MN, float32 or bfloat16 [M, N], dense on the CPU.

    block: rows and columns that share a scale. headroom: 1 to 256, by how much a new range exceeds amax. previous:
    scales to keep (float32 [P, Q]) where band[0] <= amax / (largest * scale) <= band[1]; a band that ends at 1
    never saturates, and (0, inf) keeps every scale. No autograd. ValueError names the argument that does not fit.
    """
    codes_MN, scale_PQ = _quantize(
        x_MN, previous, list(block), known_format(format), power_of_two, float(headroom), [float(end) for end in band]
    )
    return Fp8(codes_MN.view(FORMATS[format]), scale_PQ, (block[0], block[1]))


def quantize_fp8_carry(
    x_MN: Tensor,
    residual_MN: Tensor,
    block: tuple[int, int] = (1, 128),
    format: str = "e4m3",
    power_of_two: bool = False,
    headroom: float = 1.0,
    previous: Tensor | None = None,
    band: tuple[float, float] = BAND,
) -> tuple[Fp8, Tensor]:
    """(y quantised, what its codes leave of it) for y = x + residual; the rest as `quantize_fp8`.

    residual_MN: bfloat16 [M, N], zeros at first, then what the last call returned. The values handed out over many
    calls add up to the sum of all x, short of the last residual and of rounding residuals to bfloat16. This serves a
    quantity that is quantised again and again while it moves slowly (weights at each publish); it does nothing for a
    single use.
    Where x is not finite the residual starts again at zero.
    """
    codes_MN, scale_PQ, left_MN = _quantize_carry(
        x_MN,
        residual_MN,
        previous,
        list(block),
        known_format(format),
        power_of_two,
        float(headroom),
        list(map(float, band)),
    )
    return Fp8(codes_MN.view(FORMATS[format]), scale_PQ, (block[0], block[1])), left_MN


def dequantize_fp8(quantized: Fp8, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values codes * scale [M, N] as float32, or rounded to bfloat16."""
    codes_MN, scale_PQ, block = quantized
    x_MN: Tensor = _dequantize(codes_MN.view(torch.uint8), scale_PQ, list(block), quantized.format, dtype)
    return x_MN


def known_format(format: str) -> str:
    """`format`, or ValueError unless it is one of FORMATS."""
    if format not in FORMATS:
        raise ValueError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    return format


def _scales_like(x_MN: Tensor, block: list[int]) -> Tensor:
    if x_MN.dim() != 2:
        raise ValueError(f"x: expected 2 dimensions, got {x_MN.dim()}")
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"block: expected two positive sizes, got {tuple(block)}")
    return x_MN.new_empty([-(-size // side) for size, side in zip(x_MN.shape, block, strict=True)], dtype=torch.float32)


# Operators hand codes around as bytes, which all of torch's tools can compare and print; float8 is a view of them.
def _quantize_cpu(
    x_MN: Tensor,
    previous_PQ: Tensor | None,
    block: list[int],
    format: str,
    power_of_two: bool,
    headroom: float,
    band: list[float],
) -> tuple[Tensor, Tensor]:
    scale_PQ, codes_MN = _scales_like(x_MN, block), torch.empty(x_MN.shape, dtype=torch.uint8)
    codes = codes_MN.view(FORMATS[format])
    _C.fp8_quantize(x_MN, None, previous_PQ, *block, power_of_two, headroom, *band, codes, scale_PQ, None)
    return codes_MN, scale_PQ


def _quantize_carry_cpu(
    x_MN: Tensor,
    residual_MN: Tensor,
    previous_PQ: Tensor | None,
    block: list[int],
    format: str,
    power_of_two: bool,
    headroom: float,
    band: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    scale_PQ, codes_MN = _scales_like(x_MN, block), torch.empty(x_MN.shape, dtype=torch.uint8)
    left_MN, codes = torch.empty(x_MN.shape, dtype=torch.bfloat16), codes_MN.view(FORMATS[format])
    _C.fp8_quantize(x_MN, residual_MN, previous_PQ, *block, power_of_two, headroom, *band, codes, scale_PQ, left_MN)
    return codes_MN, scale_PQ, left_MN


def _dequantize_cpu(codes_MN: Tensor, scale_PQ: Tensor, block: list[int], format: str, dtype: torch.dtype) -> Tensor:
    x_MN = torch.empty(codes_MN.shape, dtype=dtype)
    _C.fp8_dequantize(codes_MN.view(FORMATS[format]), scale_PQ, *block, x_MN)
    return x_MN


_HOW = "int[] block, str format, bool power_of_two, float headroom, float[] band"
_quantize = define(
    f"fp8_quantize(Tensor x, Tensor? previous, {_HOW}) -> (Tensor, Tensor)",
    cpu=_quantize_cpu,
    cuda=cuda.quantize,
    fake=lambda x, previous, block, *how: (x.new_empty(x.shape, dtype=torch.uint8), _scales_like(x, block)),
)
_quantize_carry = define(
    f"fp8_quantize_carry(Tensor x, Tensor residual, Tensor? previous, {_HOW}) -> (Tensor, Tensor, Tensor)",
    cpu=_quantize_carry_cpu,
    cuda=cuda.quantize_carry,
    fake=lambda x, residual, previous, block, *how: (
        x.new_empty(x.shape, dtype=torch.uint8),
        _scales_like(x, block),
        x.new_empty(x.shape, dtype=torch.bfloat16),
    ),
)
_dequantize = define(
    "fp8_dequantize(Tensor codes, Tensor scale, int[] block, str format, ScalarType dtype) -> Tensor",
    cpu=_dequantize_cpu,
    fake=lambda codes, scale, block, format, dtype: codes.new_empty(codes.shape, dtype=dtype),
)
