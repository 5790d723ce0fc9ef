"""FP8: quantising a matrix in blocks, bound by memory, and the product of two block-scaled matrices.

The error of a quantised matrix is its distance from what went in, relative to the largest number of the block: half a
step, 1/28 for E4M3, is the most that rounding may leave. The operands of the product have one scale everywhere, so that
`torch._scaled_mm`, which knows one scale per tensor on every device, computes the same product.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Outputs, Place, Prepared, Run, Work, against
from seedthink.bench.peers import as_outputs, needs, of_torch
from seedthink.bench.presets import Shapes
from seedthink.kernels.fp8 import Fp8, quantize_fp8, quantize_fp8_carry
from seedthink.kernels.fp8_linear import fp8_linear

BLOCKS = ((1, 128), (128, 128))
LARGEST, HALF_STEP = 448.0, 16.0 / 448.0
CHECKED = 64  # rows of the product made in float64
Block = tuple[int, int]


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """Matrices of the preset, and its weights against T rows."""
    for size in shapes.matrices:
        for block in BLOCKS:
            place: Place = {"M": size[0], "N": size[1], "block": f"{block[0]}x{block[1]}"}
            for dtype in DTYPES:
                least = work(size, block, dtype)
                yield Case("fp8_quantize", place, dtype, least, partial(prepare, size, block, dtype))
                carried = Work(least.bytes + 4.0 * size[0] * size[1], 2 * least.flops)
                yield Case("fp8_carry", place, dtype, carried, partial(prepare_carry, size, block, dtype))
    for inputs, outputs in shapes.linears:
        for tokens in shapes.product_tokens(device):
            rows = (tokens, inputs, outputs)
            place = {"T": tokens, "K": inputs, "N": outputs}
            yield Case("fp8_linear", place, "e4m3", product_work(*rows, device), partial(prepare_product, rows))


def work(size: tuple[int, int], block: Block, dtype: str) -> Work:
    """A number in and a code out per element, a scale per block; absolute value, maximum, quotient and cast.

    A carried residual is 2 bytes in and 2 out.
    """
    cells, blocks = size[0] * size[1], -(-size[0] // block[0]) * -(-size[1] // block[1])
    return Work(bytes=(ITEM_SIZE[dtype] + 1.0) * cells + 4.0 * blocks, flops=4.0 * cells)


def product_work(tokens: int, inputs: int, outputs: int, device: str) -> Work:
    """Codes and scales in, float32 out. A CPU multiplies no FP8 numbers: its ceiling is that of bfloat16."""
    codes = tokens * inputs + inputs * outputs
    scales = (tokens * inputs // 128) + (inputs // 128) * -(-outputs // 128)
    rate = "float8_e4m3fn" if device == "cuda" else "bfloat16"
    return Work(bytes=codes + 4.0 * scales + 4.0 * tokens * outputs, flops=2.0 * tokens * inputs * outputs, rate=rate)


def prepare(size: tuple[int, int], block: Block, dtype: str, draw: Draw) -> Prepared:
    """Normal numbers, rows of unequal magnitude."""
    x_MN = (draw.normal(*size) * draw.normal(size[0], 1).exp()).to(DTYPES[dtype])

    def ours() -> Run:
        return lambda: quantize_fp8(x_MN, block)[:2]

    return Prepared(
        ours={draw.device.type: ours},
        peers={**of_torch(partial(formula, block=block), x_MN), "torchao": lambda: torchao(x_MN, block)},
        error=partial(distance, x_MN, block),
        tolerance=HALF_STEP * 1.001,
    )


def formula(x_MN: Tensor, *, block: Block) -> tuple[Tensor, Tensor]:
    """Largest magnitude of each block, scale, quotient, cast. Sizes are multiples of the block's."""
    blocks = x_MN.float().unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
    scale = blocks.abs().amax((1, 3), keepdim=True).clamp(min=1e-30) / LARGEST
    codes = (blocks / scale).to(torch.float8_e4m3fn)
    return codes.view(x_MN.shape), scale.view(scale.shape[0], scale.shape[2])


def prepare_carry(size: tuple[int, int], block: Block, dtype: str, draw: Draw) -> Prepared:
    """A residual as an earlier call leaves it; checked are value + new residual against matrix + residual."""
    x_MN = draw.normal(*size, dtype=DTYPES[dtype])
    residual_MN = draw.normal(*size, dtype=torch.bfloat16, std=0.02)

    def ours() -> Run:
        def run() -> Outputs:
            quantized, left_MN = quantize_fp8_carry(x_MN, residual_MN, block)
            return *quantized[:2], left_MN

        return run

    return Prepared(
        ours={draw.device.type: ours},
        peers=of_torch(partial(carry_formula, block=block), x_MN, residual_MN),
        error=partial(carry_distance, x_MN.float() + residual_MN.float(), block),
        tolerance=2.0**-8 * HALF_STEP * 1.001,
    )


def carry_formula(x_MN: Tensor, residual_MN: Tensor, *, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, codes and scales, and what they leave of the sum."""
    y_MN = x_MN.float() + residual_MN.float()
    codes, scale = formula(y_MN, block=block)
    values = codes.float().unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0])) * scale[:, None, :, None]
    return codes, scale, (y_MN - values.view(y_MN.shape)).bfloat16()


def carry_distance(y_MN: Tensor, block: Block, outputs: Outputs) -> float:
    """The same for values and residuals together: what is left is the rounding of a half step to bfloat16."""
    codes, scale, left_MN = outputs
    assert left_MN is not None
    return distance(y_MN.double() - left_MN.double(), block, (codes, scale))


def torchao(x_MN: Tensor, block: Block) -> Run:
    """torchao's affine FP8 primitives."""
    with needs("torchao"):
        from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8

    def run() -> Outputs:
        scale = _choose_scale_float8(x_MN, list(block))
        return _quantize_affine_float8(x_MN, scale), scale

    return run


def distance(x_MN: Tensor, block: Block, outputs: Outputs) -> float:
    """The largest distance of a value from its number, over the largest number of its block."""
    codes, scale = outputs
    assert codes is not None and scale is not None
    blocks = x_MN.cpu().double().unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
    values = codes.cpu().double().view(blocks.shape) * scale.cpu().double().view(blocks.shape[0], 1, -1, 1)
    error = ((values - blocks).abs() / blocks.abs().amax((1, 3), keepdim=True)).max().item()
    return error if error == error else float("inf")


def prepare_product(size: tuple[int, int, int], draw: Draw) -> Prepared:
    """Codes of normal numbers under one scale."""
    tokens, inputs, outputs = size
    x_TK, x_scale = one_scale(draw.normal(tokens, inputs))
    w_NK, w_scale = one_scale(draw.normal(outputs, inputs, std=inputs**-0.5))
    rounded = (x_TK.float() * x_scale).bfloat16(), (w_NK.float() * w_scale).bfloat16()

    def ours() -> Run:
        x = Fp8(x_TK, x_scale.expand(tokens, -(-inputs // 128)).contiguous(), (1, 128))
        w = Fp8(w_NK, w_scale.expand(-(-outputs // 128), -(-inputs // 128)).contiguous(), (128, 128))
        return partial(as_outputs, fp8_linear, x, w)

    def reference() -> Outputs:
        x, w = (each.cpu().double() for each in (x_TK[:CHECKED], w_NK))
        return ((x @ w.T) * (x_scale.cpu().double() * w_scale.cpu().double()),)

    return Prepared(
        ours={draw.device.type: ours},
        peers={
            "scaled_mm": lambda: partial(as_outputs, scaled_mm, x_TK, w_NK, x_scale, w_scale),
            "bfloat16": lambda: partial(as_outputs, torch_linear, *rounded),
            **of_torch(dequantised, x_TK, w_NK, x_scale, w_scale),
        },
        error=against(reference, rows=CHECKED),
        tolerance=1e-2,
    )


def one_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scale [1, 1]) of a tensor."""
    scale = x.abs().amax().view(1, 1) / LARGEST
    return (x / scale).to(torch.float8_e4m3fn), scale


def scaled_mm(x_TK: Tensor, w_NK: Tensor, x_scale: Tensor, w_scale: Tensor) -> Tensor:
    """torch's FP8 product with a scale per tensor."""
    return torch._scaled_mm(x_TK, w_NK.T, scale_a=x_scale.view(()), scale_b=w_scale.view(()), out_dtype=torch.bfloat16)


def dequantised(x_TK: Tensor, w_NK: Tensor, x_scale: Tensor, w_scale: Tensor) -> Tensor:
    """Both operands to bfloat16, then the product."""
    return torch_linear((x_TK.float() * x_scale).bfloat16(), (w_NK.float() * w_scale).bfloat16())
