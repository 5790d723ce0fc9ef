"""Rows of benchmarks/gpu.py: block-scaled FP8, alone, fused with RMSNorm and with permute, and its product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_moe import K, routed
from gpu_rows import Call, Case, Made, compiled, first_wrong, near, same
from torch import Tensor

E4M3, LARGEST = torch.float8_e4m3fn, 448.0
PLAIN = ("e4m3", False, 1.0, [0.25, 1.0])  # what follows the block: format, power of two, headroom, band
BYTES = {"plain": 3.0 + 4 / 128, "residual": 7.0 + 4 / 128}  # of an element


def cases() -> Iterator[Case]:
    """The memory-bound operations."""
    for rows, width in ((32768, 4096), (8192, 7168)):
        shape = f"{rows} x {width} bf16"
        yield Case("fp8 1x128", shape, ">= 88 % of copy", partial(_quantize, rows, width, (1, 128)))
        yield Case("fp8 1x128 residual", shape, ">= 85 % of copy", partial(_carry, rows, width))
        yield Case("rms_norm + fp8", shape, ">= 80 % of copy", partial(_norm, rows, width))
    yield Case("fp8 128x128", "32768 x 4096 bf16", "", partial(_quantize, 32768, 4096, (128, 128)))
    for width in (2048, 7168):
        shape = f"T=8192 D={width} K=8 bf16"
        yield Case("permute + fp8", shape, "quantise fused into permute", partial(_permute, 8192, width))


def awkward(rows: int, width: int) -> Tensor:
    """Random numbers of all sizes, a block of zeros, -0, NaN, infinities and halves of a code's step."""
    x = torch.randn(rows, width, device="cuda") * torch.logspace(-6, 6, rows, device="cuda")[:, None]
    x[0] = 0.0
    x[1] = -0.0
    x[2, ::5] = torch.tensor([torch.nan, torch.inf, -torch.inf], device="cuda").repeat(width)[: len(x[2, ::5])]
    x[3] = torch.arange(width, device="cuda") * 0.5
    x[4] = torch.finfo(torch.float32).tiny
    return x.bfloat16()


def _formula(x: Tensor) -> tuple[Tensor, Tensor]:
    group = x.float().unflatten(1, (-1, 128))
    scale = group.abs().amax(-1).clamp(min=1e-30) / LARGEST
    return (group / scale[:, :, None]).clamp(-LARGEST, LARGEST).to(E4M3).flatten(1), scale


def _quantize(rows: int, width: int, block: tuple[int, int]) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.fp8 import _quantize_cpu
    from seedthink.kernels.triton import fp8 as by_triton

    x = torch.randn(rows, width, device="cuda").bfloat16()
    by_name: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
        "cuda": lambda x: cuda.quantize(x, None, list(block), *PLAIN),
    }
    if block[0] == 1:
        by_name["triton"] = lambda x: by_triton.quantize_rows(x, 128, E4M3, False)

    def check(name: str) -> str:
        wrong = []
        for given in (awkward(256, width), awkward(7, 384)):
            codes, scale = by_name[name](given)
            theirs = _quantize_cpu(given.cpu(), None, list(block), *PLAIN)
            wrong += [same("scale", scale, theirs[1]), _codes("codes", codes, theirs[0])]
        full = [by_name[each](x)[0].view(torch.uint8) for each in by_name]
        return first_wrong(*wrong, *(same("the other kernel, at full size", full[0], each) for each in full[1:]))

    ours: dict[str, list[Call]] = {name: [partial(run, x)] for name, run in by_name.items()}
    peers: dict[str, list[Call]] = {}
    if block[0] == 1:
        peers = {"eager": [partial(_formula, x)], "compile": compiled(_formula, (x,))}
    return Made(ours, peers, check, bytes=BYTES["plain"] * rows * width)


def _codes(name: str, mine: Tensor, theirs: Tensor) -> str:
    """Bytes; every code of NaN counts as one, for its sign has no meaning."""
    mine, theirs = (each.cpu().view(torch.uint8) for each in (mine, theirs))
    nan = (mine & 0x7F) == 0x7F
    if not torch.equal(nan, (theirs & 0x7F) == 0x7F):
        return f"{name}: NaN in other places"
    return same(name, mine.masked_fill(nan, 0), theirs.masked_fill(nan, 0))


def _carry(rows: int, width: int) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.fp8 import _quantize_carry_cpu

    x = torch.randn(rows, width, device="cuda").bfloat16()
    residual = (0.01 * torch.randn(rows, width, device="cuda")).bfloat16()

    def run(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return cuda.quantize_carry(x, residual, None, [1, 128], *PLAIN)

    def check(_: str) -> str:
        given, left = awkward(256, width), (0.01 * torch.randn(256, width, device="cuda")).bfloat16()
        codes, scale, rest = run(given, left)
        theirs = _quantize_carry_cpu(given.cpu(), left.cpu(), None, [1, 128], *PLAIN)
        return first_wrong(
            same("scale", scale, theirs[1]), _codes("codes", codes, theirs[0]), same("left", rest, theirs[2])
        )

    return Made({"cuda": [partial(run, x, residual)]}, {}, check, bytes=BYTES["residual"] * rows * width)


def _norm(rows: int, width: int) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.triton import rms_norm as by_triton

    x, weight = torch.randn(rows, width, device="cuda").bfloat16(), 1 + 0.1 * torch.randn(width, device="cuda")
    by_name: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
        "cuda": lambda x: cuda.rms_norm_fp8(x, weight, 1e-6)[:2],
        "triton": lambda x: by_triton.quantized(x, None, weight, 1e-6, E4M3, False)[1:],
    }

    def normed(x: Tensor) -> tuple[Tensor, Tensor]:
        return _formula((x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) * weight).bfloat16())

    def check(name: str) -> str:
        small = torch.randn(512, width, device="cuda").bfloat16()
        codes, scale = by_name[name](small)
        exact = small.cpu().double()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6) * weight.cpu().double()
        found = codes.view(E4M3).cpu().double().unflatten(1, (-1, 128)) * scale.cpu().double()[:, :, None]
        return near("values against float64", found.flatten(1), exact, 0.03)

    ours: dict[str, list[Call]] = {name: [partial(run, x)] for name, run in by_name.items()}
    peers: dict[str, list[Call]] = {"compile": compiled(normed, (x,))}
    return Made(ours, peers, check, bytes=BYTES["plain"] * rows * width)


def _permute(tokens: int, width: int) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.fp8 import _quantize_cpu

    x = torch.randn(tokens, width, device="cuda").bfloat16()
    _, row, _, _ = routed(tokens)

    def check(_: str) -> str:
        _, few_rows, few_tokens, _ = routed(64)
        given = awkward(64, width)
        codes, scale = cuda.permute_fp8(given, few_rows)
        theirs = _quantize_cpu(given.cpu(), None, [1, 128], *PLAIN)
        index = few_tokens.cpu().long()
        return first_wrong(_codes("codes", codes, theirs[0][index]), same("scale", scale, theirs[1][index]))

    moved = 2.0 * tokens * width + tokens * K * width * (1 + 4 / 128) + 4 * tokens * K
    return Made({"cuda": [partial(cuda.permute_fp8, x, row)]}, {}, check, bytes=moved)


def products() -> Iterator[Case]:
    """The block-scaled product."""
    for rows, columns, depth in ((8192, 4096, 7168), (4096, 24576, 1536)):
        reach = ">= 1.2 of bf16, or torch's scaled_mm"
        yield Case(
            "fp8 product", f"{rows} x {columns} x {depth}", reach, partial(_product, rows, columns, depth), seconds=30.0
        )


def _product(rows: int, columns: int, depth: int) -> Made:
    from seedthink.kernels import cuda
    from seedthink.kernels.fp8 import Fp8
    from seedthink.kernels.fp8_linear import fp8_linear, reference_fp8_linear
    from seedthink.kernels.triton import fp8_matmul as by_triton

    x, w = torch.randn(rows, depth, device="cuda").bfloat16(), torch.randn(columns, depth, device="cuda").bfloat16()
    xq, xs = cuda.quantize(x, None, [1, 128], *PLAIN)
    wq, ws = cuda.quantize(w, None, [128, 128], *PLAIN)
    xq, wq = xq.view(E4M3), wq.view(E4M3)

    fast = partial(fp8_linear, Fp8(xq, xs, (1, 128)), Fp8(wq, ws, (128, 128)), fast=True)

    def check(name: str) -> str:
        if name == "fast":
            return near("against ours", fast(), by_triton.fp8_matmul(xq, xs, wq, ws, torch.float32), 1e-2)
        few, out = 256, slice(0, 256)
        mine = by_triton.fp8_matmul(xq[:few], xs[:few], wq[out], ws[:2], torch.float32)
        theirs = reference_fp8_linear(
            Fp8(xq[:few].cpu(), xs[:few].cpu(), (1, 128)), Fp8(wq[out].cpu(), ws[:2].cpu(), (128, 128))
        )
        return near("against float64", mine, theirs, 1e-3)

    ours: dict[str, list[Call]] = {
        "triton": [lambda: by_triton.fp8_matmul(xq, xs, wq, ws, torch.bfloat16)],
        "fast": [fast],
    }
    peers: dict[str, list[Call]] = {"bf16": [lambda: x @ w.T]}
    return Made(ours, peers, check, flops=2.0 * rows * columns * depth, peers_within=0.1)
