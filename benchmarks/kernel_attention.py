"""Attention against torch's scaled_dot_product_attention, in turns in one process, on shapes kind to the peer.

Training: equal lengths, so that the peer needs no padding; forward, and forward with backward. Ours runs on packed
rows, the peer on its own [B, N, T, H] layout, prepared before the clock starts. Decode: one query row for each of 128
sequences; ours reads pages, the peer dense keys and values that somebody would have had to gather.
Run: `python benchmarks/kernel_attention.py`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from turns import environment, in_turns, save

from seedthink import _C
from seedthink.kernels.attention import PAGE, attend_packed, attend_paged, new_pages

# sequences, length, query heads, KV heads, head width
TRAINING = [(128, 64, 4, 2, 64), (64, 128, 4, 2, 64), (16, 512, 4, 2, 64), (64, 128, 4, 2, 32), (8, 512, 8, 2, 128)]
DECODE = [(128, 64, 4, 2, 64), (128, 256, 4, 2, 64), (128, 256, 8, 2, 128)]


def training(shape: tuple[int, ...], samples: int, patience: int) -> list[dict[str, Any]]:
    """Forward, and forward with backward, of one shape."""
    count, length, heads, kv_heads, width = shape
    total, scale = count * length, width**-0.5
    bounds = torch.arange(0, total + 1, length, dtype=torch.int32)
    q, k, v = (torch.randn(total, n, width) for n in (heads, kv_heads, kv_heads))
    grad = torch.randn(total, heads, width)

    def split(x: Tensor) -> Tensor:
        return x.view(count, length, -1, width).transpose(1, 2).contiguous()

    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs, their_grad = [split(x).requires_grad_() for x in (q, k, v)], split(grad)

    def peer() -> Tensor:
        return scaled_dot_product_attention(*theirs, is_causal=True, scale=scale, enable_gqa=True)

    def step() -> None:
        torch.autograd.grad(attend_packed(*ours, bounds, scale), ours, grad)

    def peer_step() -> None:
        torch.autograd.grad(peer(), theirs, their_grad)

    with torch.no_grad():
        own, other = attend_packed(q, k, v, bounds, scale), peer()
        torch.testing.assert_close(split(own), other, rtol=1e-4, atol=1e-4)
        runs = {"ours": lambda: attend_packed(q, k, v, bounds, scale), "sdpa": peer}
        forward = in_turns(runs, samples, patience)
    both = in_turns({"ours": step, "sdpa": peer_step}, samples, patience)
    flops = 2 * count * heads * length * (length + 1) // 2 * width * 2  # what causality leaves
    name = {"shape": list(shape), "dtype": "float32"}
    return [
        finish({**name, "pass": "forward", **forward}, flops),
        finish({**name, "pass": "forward and backward", **both}, flops * 7 // 2),
    ]


def decode(shape: tuple[int, ...], dtype: torch.dtype, samples: int, patience: int) -> dict[str, Any]:
    """One new token for every sequence."""
    count, length, heads, kv_heads, width = shape
    scale, per_row = width**-0.5, -(-length // PAGE)
    k_pages, v_pages = new_pages(count * per_row, kv_heads, width, dtype)
    k_pages.normal_()
    v_pages.normal_()
    table = torch.randperm(count * per_row).int().view(count, per_row)
    bounds, lengths = torch.arange(count + 1, dtype=torch.int32), torch.full((count,), length, dtype=torch.int32)
    q = torch.randn(count, heads, width)
    k, v = (torch.randn(count, kv_heads, length, width, dtype=dtype) for _ in range(2))
    query = q[:, :, None].to(dtype)
    runs = {
        "ours": lambda: attend_paged(q, k_pages, v_pages, table, bounds, lengths, scale),
        "sdpa": lambda: scaled_dot_product_attention(query, k, v, scale=scale, enable_gqa=True),
    }
    found = in_turns(runs, samples, patience)
    name = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "pass": "decode"}
    return finish({**name, **found}, 4 * count * heads * length * width)


def finish(row: dict[str, Any], flops: int) -> dict[str, Any]:
    """Add the ratio and the rate, and print the row."""
    row["ratio"] = row["sdpa_ms"] / row["ours_ms"]
    row["ours_gflops"] = flops / row["ours_ms"] / 1e6
    print(
        f"{row['shape']!s:>22} {row['dtype']:>8} {row['pass']:<20} ours {row['ours_ms']:8.3f} ms "
        f"({row['ours_gflops']:5.0f} GFLOP/s), sdpa {row['sdpa_ms']:8.3f} ms, ratio {row['ratio']:5.2f} (least times "
        f"{row['sdpa_ms_least'] / row['ours_ms_least']:.2f}), elsewhere {row['cores_used_elsewhere']:.2f}",
        flush=True,
    )
    return row


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=11)
    parser.add_argument("--patience", type=int, default=3, help="times to repeat a case that others disturbed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _C.set_threads(options.threads)
    surroundings, rows = environment(), []
    for shape in TRAINING:
        rows += training(shape, options.samples, options.patience)
    for shape in DECODE:
        for dtype in (torch.float32, torch.bfloat16):
            rows.append(decode(shape, dtype, options.samples, options.patience))
    save("kernel_attention", rows, surroundings)


if __name__ == "__main__":
    main()
