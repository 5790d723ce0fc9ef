"""The row-exact linear and the experts against torch, in turns in one process, forward and gradients.

linear: F.linear and the two products of its backward, in the same dtype. Ours takes and returns float32 and rounds the
operands itself in bfloat16; torch's bfloat16 operands are bfloat16 before the clock starts. experts: a loop over the
experts in torch. Weights are packed before the clock starts, as in decoding and between optimizer steps; `pack` is what
an optimizer step adds. A sample is a batch of calls after one call that wakes the threads; medians over the samples.
A case that other processes disturb by over a tenth of a core is taken again up to `--patience` times.
Run: `python benchmarks/kernel_linear.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from turns import environment

from seedthink import _C
from seedthink.autotune.timing import paired_seconds
from seedthink.kernels.experts import experts
from seedthink.kernels.linear import linear, linear_packed
from seedthink.kernels.packing import forget, panels_of
from seedthink.kernels.route import Routing, route

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = [(128, 128), (256, 256), (256, 512), (512, 256), (1024, 1024)]  # (K, N)
ROWS = [1, 8, 32, 128, 1024, 8192]
HEAD = (151936, 1024)
SAMPLE_SECONDS = 0.012
Case = tuple[dict[str, Any], int, Callable[[], object], Callable[[], object]]


def measure(case: Case, samples: int, patience: int) -> dict[str, Any]:
    """The row of one case."""
    names, flops, ours, theirs = case
    paired = paired_seconds({"ours": ours, "torch": theirs}, samples, sample_seconds=SAMPLE_SECONDS, patience=patience)
    row: dict[str, Any] = {**names, "cores_used_elsewhere": paired.cores_used_elsewhere}
    for side in ("ours", "torch"):
        seconds = paired.spread(side).median
        row |= {f"{side}_us": seconds * 1e6, f"{side}_gflops": flops / seconds / 1e9}
        row[f"{side}_us_least"] = min(paired.samples(side)) * 1e6
    return row | {"ratio": row["torch_us"] / row["ours_us"]}


def linear_cases(dtype: str, rows: list[int], shapes: list[tuple[int, int]]) -> Iterator[Case]:
    """Forward, input gradient, weight gradient and packing over the shapes."""
    compute = DTYPES[dtype]
    for k, n in shapes:
        weight = torch.randn(n, k)
        panels, back = panels_of(weight, compute), panels_of(weight, compute, transposed=True)
        w = weight.to(compute)
        for t in rows:
            x, dy, dweight = torch.randn(t, k), torch.randn(t, n), torch.empty(n, k)
            a, b, flops = x.to(compute), dy.to(compute), 2 * t * k * n
            name = {"op": "linear", "dtype": dtype, "M": t, "K": k, "N": n}
            yield (
                {**name, "pass": "forward"},
                flops,
                lambda x=x, panels=panels, n=n: linear_packed(x, panels, n),
                lambda a=a, w=w: torch_linear(a, w),
            )
            yield (
                {**name, "pass": "dx"},
                flops,
                lambda dy=dy, back=back, k=k: linear_packed(dy, back, k),
                lambda b=b, w=w: b @ w,
            )
            yield (
                {**name, "pass": "dw"},
                flops,
                lambda dy=dy, x=x, to=dweight: _C.linear_weight_grad(dy, x, compute == torch.bfloat16, to),
                lambda a=a, b=b: b.T @ a,
            )
        yield (
            {"op": "pack", "dtype": dtype, "M": 0, "K": k, "N": n, "pass": "both orientations; torch: two copies"},
            0,
            lambda weight=weight: pack_both(weight, compute),
            lambda weight=weight: (weight.to(compute, copy=True), weight.T.to(compute).contiguous()),
        )


def pack_both(weight: Tensor, compute: torch.dtype) -> None:
    """What the first forward and backward after an optimizer step do."""
    forget(weight)
    panels_of(weight, compute)
    panels_of(weight, compute, transposed=True)
    forget(weight)


def head_cases(dtype: str) -> Iterator[Case]:
    """Logits over a large vocabulary."""
    n, k = HEAD
    weight = torch.randn(n, k)
    w = weight.to(DTYPES[dtype])
    panels = panels_of(weight, DTYPES[dtype])
    for t in (1, 32):
        x = torch.randn(t, k)
        a = x.to(DTYPES[dtype])
        yield (
            {"op": "linear", "dtype": dtype, "M": t, "K": k, "N": n, "pass": "forward"},
            2 * t * k * n,
            lambda x=x: linear_packed(x, panels, n),
            lambda a=a: torch_linear(a, w),
        )
    forget(weight)


def torch_experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """The experts as a loop in torch: gather, two products around SwiGLU, weighted scatter."""
    width, y = down.shape[2], torch.zeros_like(x)
    slot_R = torch.empty(routing.token_R.numel(), dtype=torch.int64)
    slot_R[routing.row_TK.reshape(-1).long()] = torch.arange(slot_R.numel())
    weight_R = routing.weight_TK.reshape(-1)[slot_R].to(x.dtype)
    bounds = routing.offsets_E1.tolist()
    for e, (first, last) in enumerate(itertools.pairwise(bounds)):
        if last > first:
            tokens = routing.token_R[first:last].long()
            gate, up = torch_linear(x[tokens], gate_up[e]).split(width, -1)
            row = torch_linear(torch.nn.functional.silu(gate) * up, down[e])
            y = y.index_add(0, tokens, row * weight_R[first:last, None])
    return y


def expert_cases(dtype: str, rows: list[int]) -> Iterator[Case]:
    """Experts of the peer model (width 256, 8 experts of 256, top 2): decoding, and a training step."""
    d, i, count, k, compute = 256, 256, 8, 2, DTYPES[dtype]
    gate_up, down = torch.randn(count, 2 * i, d) / 16, torch.randn(count, d, i) / 16
    theirs = [gate_up.to(compute), down.to(compute)]
    for t in rows:
        x, routing = torch.randn(t, d), route(torch.randn(t, count), k)
        a, flops = x.to(compute), 2 * t * k * 3 * d * i
        name = {"op": "experts", "dtype": dtype, "M": t, "K": d, "N": i}

        def forward(x: Tensor = x, routing: Routing = routing) -> Tensor:
            with torch.no_grad():
                return experts(x, routing, gate_up, down, compute)

        def peer(a: Tensor = a, routing: Routing = routing) -> Tensor:
            with torch.no_grad():
                return torch_experts(a, routing, *theirs)

        yield {**name, "pass": "forward"}, flops, forward, peer
        if t < 128:
            continue
        own = [value.clone().requires_grad_() for value in (x, gate_up, down)]
        other = [value.clone().requires_grad_() for value in (a, *theirs)]

        def step(own: list[Tensor] = own, routing: Routing = routing) -> None:
            experts(own[0], routing, own[1], own[2], compute).backward(own[0].detach())

        def peer_step(other: list[Tensor] = other, routing: Routing = routing) -> None:
            torch_experts(other[0], routing, other[1], other[2]).backward(other[0].detach())

        yield {**name, "pass": "forward and backward"}, 3 * flops, step, peer_step


def route_cases(rows: list[int]) -> Iterator[Case]:
    """Router product, softmax and top-k of 8 experts."""
    router = torch.randn(8, 256)
    for t in rows:
        x = torch.randn(t, 256)

        def peer(x: Tensor = x) -> tuple[Tensor, Tensor]:
            top = torch_linear(x, router).softmax(-1).topk(2, -1)
            return top.indices, top.values / top.values.sum(-1, keepdim=True)

        yield (
            {"op": "route", "dtype": "float32", "M": t, "K": 256, "N": 8, "pass": "forward"},
            2 * t * 256 * 8,
            lambda x=x: route(linear(x, router), 2),
            peer,
        )


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--patience", type=int, default=3, help="times to repeat a case that others disturbed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--head", action="store_true", help="also the head of 151,936 tokens (3 GB of memory)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernel_linear.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _C.set_threads(options.threads)
    found: dict[str, Any] = {"environment": environment(), "rows": []}
    suites = [route_cases(options.rows)]
    for dtype in DTYPES:
        suites += [linear_cases(dtype, options.rows, SHAPES), expert_cases(dtype, options.rows)]
        suites += [head_cases(dtype)] if options.head else []
    for case in (case for suite in suites for case in suite):
        row = measure(case, options.samples, options.patience)
        found["rows"].append(row)
        print(
            f"{row['op']:>7} {row['dtype']:>8} M {row['M']:5} K {row['K']:5} N {row['N']:6} {row['pass']:<20} "
            f"{row['ours_us']:10.1f} us ({row['ours_gflops']:5.0f} GFLOP/s), torch {row['torch_us']:10.1f} us "
            f"({row['torch_gflops']:5.0f}), ratio {row['ratio']:5.2f}, elsewhere {row['cores_used_elsewhere']:.2f}",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
