"""FP8 quantisation against a warm copy of the same bytes, torch eager and torch.compile; and what error feedback gives.

Speed: 4096 x 4096, blocks of 1 x 128 and 128 x 128, E4M3, each from float32 and bfloat16. "copy" moves as many bytes as
the kernel reads and writes (x, codes, scales; with carry the residual in and out) between warm arrays with torch on the
same threads. "eager" and "compiled" (inductor) compute the same codes, which is checked before the clock starts, and so
is torchao's quantiser where torchao is installed. The kernel is called as users call it: it allocates its results.
Quality: relative output error ||(Q(W) - W) X|| / ||W X|| on inputs that the Gram has not seen, and the share of codes
that change from publish to publish, for inputs near a low-rank space and for inputs with a power-law spectrum.
Run: `python benchmarks/kernel_fp8.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from turns import environment, in_turns, save

from seedthink import _C
from seedthink.kernels.fp8 import (
    Fp8,
    dequantize_fp8,
    quantize_fp8,
    quantize_fp8_carry,
    reference_codes,
    reference_scale,
)
from seedthink.kernels.fp8_delta import fp8_delta
from seedthink.kernels.fp8_feedback import (
    ActivationGram,
    feedback_factor,
    fp8_residual,
    output_error,
    quantize_fp8_feedback,
)
from seedthink.kernels.fp8_linear import fp8_linear, reference_fp8_linear

try:
    from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8
except ImportError:
    _choose_scale_float8 = None

SIDE = 4096
E4M3 = torch.float8_e4m3fn
LEAST = 448.0 * 2.0**-126


def blockwise(x: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The peers' code: codes and scales of a matrix that blocks divide."""
    rows, columns = block
    tiles = x.float().unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    scale = tiles.abs().amax((1, 3), keepdim=True).clamp(min=LEAST) / 448.0
    return (tiles / scale).to(E4M3).flatten(2).flatten(0, 1), scale[:, 0, :, 0]


def carried(x: Tensor, residual: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The same with a residual carried over."""
    total = x.float() + residual.float()
    codes, scale = blockwise(total, block)
    spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return codes, scale, (total - codes.float() * spread).bfloat16()


def torchao_quantize(x: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """TorchAO's scale and cast."""
    scale = _choose_scale_float8(x, list(block), float8_dtype=E4M3)
    return _quantize_affine_float8(x, scale, E4M3), scale


def same_codes(ours: Fp8, codes: Tensor, scale: Tensor) -> None:
    """A peer computes what we do, bit for bit."""
    assert torch.equal(ours.scale, scale)
    assert torch.equal(ours.codes.view(torch.uint8), codes.view(torch.uint8))


def speed(dtype: torch.dtype, block: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """One row of the speed table without residual."""
    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(dtype)
    compiled, ours = torch.compile(blockwise), quantize_fp8(x, block)
    for peer in (blockwise, compiled):
        same_codes(ours, *peer(x, block))
    moved = x.nbytes + ours.nbytes
    peers: dict[str, Callable[[], object]] = {
        "eager": lambda: blockwise(x, block),
        "compiled": lambda: compiled(x, block),
    }
    if _choose_scale_float8 is not None:
        # Of bfloat16 it computes the scale in bfloat16, which is another function; it is timed on x all the same.
        same_codes(ours, *torchao_quantize(x.float(), block))
        peers["torchao"] = lambda: torchao_quantize(x, block)
    row = {"case": f"{block[0]} x {block[1]}", "dtype": str(dtype), "carry": False, "bytes": moved}
    return row | against(lambda: quantize_fp8(x, block), moved, peers, options)


def speed_with_carry(dtype: torch.dtype, block: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """One row of the speed table with residual."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIDE, SIDE, generator=generator).to(dtype)
    residual = (torch.randn(SIDE, SIDE, generator=generator) / 64).bfloat16()
    compiled, (ours, left) = torch.compile(carried), quantize_fp8_carry(x, residual, block)
    for peer in (carried, compiled):
        codes, scale, kept = peer(x, residual, block)
        same_codes(ours, codes, scale)
        # Inductor may fuse the product and the difference into one rounding.
        torch.testing.assert_close(left, kept, rtol=2**-7, atol=1e-6)
    moved = x.nbytes + ours.nbytes + 2 * residual.nbytes
    peers = {"eager": lambda: carried(x, residual, block), "compiled": lambda: compiled(x, residual, block)}
    row = {"case": f"{block[0]} x {block[1]}", "dtype": str(dtype), "carry": True, "bytes": moved}
    return row | against(lambda: quantize_fp8_carry(x, residual, block), moved, peers, options)


def against(
    kernel: Callable[[], object], moved: int, peers: dict[str, Callable[[], object]], options: argparse.Namespace
) -> dict[str, Any]:
    """Times of the kernel, of a copy of as many bytes, and of the peers, in turns."""
    source, target = torch.randint(0, 255, (2, moved // 2), dtype=torch.uint8).unbind()
    found = in_turns({"kernel": kernel, "copy": lambda: target.copy_(source)}, options.samples, options.patience)
    slow = in_turns({"kernel": kernel, **peers}, max(3, options.samples // 3), options.patience)
    found |= {f"{name}_ms": slow[f"{name}_ms"] for name in peers}
    best = min(peers, key=lambda name: slow[f"{name}_ms"])
    found |= {"of_copy": found["copy_ms"] / found["kernel_ms"], "gb_per_s": moved / found["kernel_ms"] / 1e6}
    found |= {"of_copy_least": found["copy_ms_least"] / found["kernel_ms_least"]}
    found |= {"best_peer": best, "ratio": slow[f"{best}_ms"] / slow["kernel_ms"]}
    return found | {"ratio_lowest": slow[f"{best}_ms_least"] / slow["kernel_ms_most"]}


def draw_inputs(kind: str, tokens: int, width: int, generator: torch.Generator, basis_KK: Tensor) -> Tensor:
    """Inputs of a layer: near a space of a sixteenth of the width, or with eigenvalues 1 / i; channels differ."""
    if kind == "low rank":
        rank = width // 16
        x_TK = torch.randn(tokens, rank, generator=generator) @ basis_KK[:rank] * 4
        return x_TK + 0.3 * torch.randn(tokens, width, generator=generator)
    size = torch.arange(1, width + 1).float().rsqrt()
    return torch.randn(tokens, width, generator=generator) * size @ basis_KK


def relative_error(weight: Tensor, values: Tensor, x_TK: Tensor) -> float:
    """||(Q(W) - W) X|| / ||W X||."""
    return float((x_TK @ (values - weight).T).norm() / (x_TK @ weight.T).norm())


def quality(kind: str, rows: int, width: int, publishes: int) -> dict[str, Any]:
    """One row of the quality table: errors on fresh inputs, and the share of codes that change at a publish."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    basis = basis * torch.exp(0.5 * torch.randn(width, generator=generator))  # outlier channels
    gram = ActivationGram(width)
    for _ in range(4):
        gram.update(draw_inputs(kind, 4 * width, width, generator, basis))
    fresh = draw_inputs(kind, 2 * width, width, generator, basis)
    weight, block = 0.02 * torch.randn(rows, width, generator=generator), (128, 128)
    factor = feedback_factor(gram.mean())
    ways: dict[str, Callable[[Tensor, Fp8 | None], Fp8]] = {
        "plain": lambda w, _: quantize_fp8(w, block),
        "plain_sticky": lambda w, old: quantize_fp8(w, block, headroom=1.125, previous=old and old.scale),
        "fed": lambda w, old: quantize_fp8_feedback(w, factor, block, headroom=1.125, previous=old, hysteresis=0.5),
        "fed_kept": lambda w, old: quantize_fp8_feedback(w, factor, block, headroom=1.125, previous=old),
    }
    found: dict[str, Any] = {"inputs": kind, "rows": rows, "width": width, "publishes": publishes}
    last: dict[str, Fp8] = {name: way(weight, None) for name, way in ways.items()}
    for name in ("plain", "fed"):
        found[f"{name}_error_first"] = relative_error(weight, dequantize_fp8(last[name]), fresh)
    shares: dict[str, list[float]] = {name: [] for name in ways}
    messages: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(publishes):
        weight = weight + 6e-6 * torch.randn(rows, width, generator=generator)  # Adam at a rate of about 6e-6
        for name, way in ways.items():
            new = way(weight, last[name])
            changed = new.codes.view(torch.uint8) != last[name].codes.view(torch.uint8)
            shares[name].append(changed.float().mean().item())
            messages[name].append(fp8_delta(last[name], new).nbytes / new.nbytes)
            last[name] = new
    for name in ways:
        found[f"{name}_error"] = relative_error(weight, dequantize_fp8(last[name]), fresh)
        found[f"{name}_changed"] = sum(shares[name]) / publishes
        found[f"{name}_message"] = sum(messages[name]) / publishes
    both = dequantize_fp8(last["fed_kept"]) + dequantize_fp8(fp8_residual(weight, last["fed_kept"], factor))
    found["residual_error"] = relative_error(weight, both, fresh)
    found["predicted_error"] = output_error(weight, dequantize_fp8(last["fed_kept"]), gram.mean())
    return found | {"fed_ratio": found["fed_error_first"] / found["plain_error_first"]}


def best_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of a few calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def layer_times() -> dict[str, Any]:
    """Seconds to quantise one layer with feedback, and to multiply with it."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, SIDE, generator=generator) for rows in (SIDE, 1024))
    gram = ActivationGram(SIDE)
    gram.update(x)
    factor = feedback_factor(gram.mean())
    first = quantize_fp8_feedback(weight, factor, headroom=1.125)
    xq = quantize_fp8(x)
    want = reference_fp8_linear(Fp8(xq.codes[:8], xq.scale[:8], xq.block), first)
    torch.testing.assert_close(fp8_linear(xq, first)[:8].double(), want, rtol=1e-4, atol=1e-3)
    wide_x, wide_w = dequantize_fp8(xq, torch.bfloat16), dequantize_fp8(first, torch.bfloat16)
    return {
        "case": f"layer {SIDE} x {SIDE}",
        "gram_seconds": best_seconds(lambda: gram.update(x)),
        "factor_seconds": best_seconds(lambda: feedback_factor(gram.mean())),
        "first_publish_seconds": best_seconds(lambda: quantize_fp8_feedback(weight, factor)),
        "next_publish_seconds": best_seconds(lambda: quantize_fp8_feedback(weight, factor, previous=first)),
        "delta_seconds": best_seconds(lambda: fp8_delta(first, first)),
        "product_1024_seconds": best_seconds(lambda: fp8_linear(xq, first)),
        "product_1024_bf16_seconds": best_seconds(lambda: torch.nn.functional.linear(wide_x, wide_w)),
    }


def print_speed(row: dict[str, Any]) -> None:
    """One line of the speed table."""
    peers = ", ".join(
        f"{peer} {row[f'{peer}_ms']:.1f}" for peer in ("eager", "compiled", "torchao") if f"{peer}_ms" in row
    )
    copy = f"{row['of_copy']:4.0%} of copy (least times {row['of_copy_least']:.0%})"
    print(
        f"{row['case']:>9} {row['dtype'][6:]:8} {'carry' if row['carry'] else '     '} {row['kernel_ms']:6.2f} ms "
        f"({row['gb_per_s']:4.1f} GB/s), {copy}; {peers} ms: {row['ratio']:.1f}x {row['best_peer']} "
        f"(lowest {row['ratio_lowest']:.1f}x), elsewhere {row['cores_used_elsewhere']:.2f}",
        flush=True,
    )


def check() -> None:
    """The kernel against torch, on random data, before anything is timed."""
    x = torch.randn(300, 1000, generator=torch.Generator().manual_seed(2))
    for block in ((1, 128), (128, 128)):
        ours, scale = quantize_fp8(x, block), reference_scale(x, block)
        assert torch.equal(ours.scale, scale)
        assert torch.equal(ours.codes.view(torch.uint8), reference_codes(x, scale, block).view(torch.uint8))


def main() -> None:
    """Measure, print the tables, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--patience", type=int, default=3, help="times to repeat a case that others disturbed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _C.set_threads(options.threads)
    surroundings = environment()
    if _choose_scale_float8 is not None:
        surroundings["torchao"] = metadata.version("torchao")
    check()
    rows = []
    for measure in (speed, speed_with_carry):
        for block in ((1, 128), (128, 128)):
            for dtype in (torch.bfloat16, torch.float32):
                rows.append(measure(dtype, block, options))
                print_speed(rows[-1])
    for kind in ("low rank", "power law"):
        rows.append(row := quality(kind, 1024, 2048, 20))
        print(kind, {key: f"{value:.4g}" for key, value in row.items() if isinstance(value, float)}, flush=True)
    rows.append(layer_times())
    print(rows[-1], flush=True)
    save("kernel_fp8", rows, surroundings)


if __name__ == "__main__":
    main()
