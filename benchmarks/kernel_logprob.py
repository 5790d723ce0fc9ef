"""Fused linear-log-prob-entropy against full logits in torch: time in turns in one process, memory in processes apart.

Log-probabilities and entropies of T rows of width D under a vocabulary of V, forward alone and with the gradients of h
and the weight. Peers: torch eager with logits, log-sum-exp and softmax as rows of [T, V], and the same function under
torch.compile, compiled before the clock starts; in bfloat16 their operands are bfloat16 before the clock starts. Ours
takes float32 and packs the weight inside the clock, as after every optimizer step: no pack is kept between calls.
Memory is the peak of resident bytes in one call beyond what was there before it (inputs and warm threads), less the two
gradients, which everyone returns; `of_logits` is that over the bytes of the full logits in float32.
Run: `python benchmarks/kernel_logprob.py` (needs about 14 GB of memory).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from turns import environment, in_turns, save

from seedthink.kernels.build import set_threads
from seedthink.kernels.logprob import linear_logprob, reference_linear_logprob

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Function = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def full_logits(h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """The usual way: every logit in memory, in float32 from the product on."""
    logits_TV = torch_linear(h_TD, weight_VD).float()
    log_sum_T = logits_TV.logsumexp(-1)
    entropy_T = log_sum_T - (logits_TV.softmax(-1) * logits_TV).sum(-1)
    return logits_TV.gather(-1, targets_T[:, None]).squeeze(-1) - log_sum_T, entropy_T


def inputs(rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden rows, weight and targets; logits of deviation 2."""
    generator = torch.Generator().manual_seed(rows)
    h_TD = torch.randn(rows, width, generator=generator)
    weight_VD = torch.randn(vocabulary, width, generator=generator).mul_(2.0 / width**0.5)
    return h_TD.to(dtype), weight_VD.to(dtype), torch.randint(0, vocabulary, (rows,), generator=generator)


def functions(dtype: str) -> dict[str, tuple[Function, torch.dtype]]:
    """Each implementation and the dtype of its inputs."""
    compute = DTYPES[dtype]
    return {
        "ours": (lambda h, weight, targets: linear_logprob(h, weight, targets, 1.0, compute), torch.float32),
        "eager": (full_logits, compute),
        "compiled": (torch.compile(full_logits), compute),
    }


def call(function: Function, arguments: tuple[Tensor, Tensor, Tensor], backward: bool) -> Callable[[], object]:
    """One forward, or a forward and a backward that leaves nothing behind."""
    h_TD, weight_VD, targets_T = arguments
    if not backward:
        return torch.no_grad()(lambda: function(h_TD, weight_VD, targets_T))
    leaves = [h_TD.requires_grad_(), weight_VD.requires_grad_()]

    def step() -> None:
        logprob_T, entropy_T = function(h_TD, weight_VD, targets_T)
        torch.autograd.grad((logprob_T - 0.01 * entropy_T).sum(), leaves)

    return step


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}")


def peak_of_one_call(name: str, dtype: str, shape: tuple[int, int, int], backward: bool) -> int:
    """Bytes that one call adds at its peak, gradients left out; to be asked once in a process."""
    function, of_inputs = functions(dtype)[name]
    small = inputs(4, shape[1], 64, of_inputs)
    for _ in range(2):  # threads, compiler
        call(function, small, backward)()
    arguments = inputs(*shape, of_inputs)
    run = call(function, arguments, backward)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident("VmRSS")
    run()
    gradients = sum(each.nbytes for each in arguments[:2]) if backward else 0
    return resident("VmHWM") - before - gradients


def peaks(dtype: str, shape: tuple[int, int, int], backward: bool, names: list[str]) -> dict[str, int]:
    """Peak bytes of each implementation, each in a process of its own."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--child", json.dumps([name, dtype, shape, backward])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = int(done.stdout.split()[-1])
    return found


def check(dtype: str, width: int, vocabulary: int) -> float:
    """Largest error of our log-probabilities and entropies of eight rows against float64 (of the rounded operands)."""
    h_TD, weight_VD, targets_T = inputs(8, width, vocabulary, torch.float32)
    compute = DTYPES[dtype]
    ours = linear_logprob(h_TD, weight_VD, targets_T, 1.0, compute)
    exact = [each.to(compute).double() for each in (h_TD, weight_VD)]
    want = reference_linear_logprob(*exact, targets_T, 1.0)
    error = max((mine.double() - theirs).abs().max().item() for mine, theirs in zip(ours, want, strict=True))
    if not error < 1e-3:
        raise SystemExit(f"FAIL: {dtype}, error {error}")
    return error


def measure(dtype: str, shape: tuple[int, int, int], backward: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    rows, width, vocabulary = shape
    made = {of_inputs: inputs(*shape, of_inputs) for of_inputs in {torch.float32, DTYPES[dtype]}}
    runs = {name: call(function, made[of_inputs], backward) for name, (function, of_inputs) in functions(dtype).items()}
    for run in runs.values():  # compiles
        run()
    row: dict[str, Any] = {"dtype": dtype, "T": rows, "D": width, "V": vocabulary, "backward": backward}
    row |= in_turns(runs, options.samples, options.patience)
    row["better_peer"] = min(("eager", "compiled"), key=lambda name: row[f"{name}_ms"])
    row["ratio"] = row[f"{row['better_peer']}_ms"] / row["ours_ms"]
    row["ratio_least"] = min(row["eager_ms_least"], row["compiled_ms_least"]) / row["ours_ms_least"]
    products = (4 if backward else 1, 3 if backward else 1)  # ours makes the logits again
    row["ours_gflops"], row["peer_gflops"] = (
        n * 2 * rows * width * vocabulary / milliseconds / 1e6
        for n, milliseconds in zip(products, (row["ours_ms"], row[f"{row['better_peer']}_ms"]), strict=True)
    )
    del runs, made
    row |= {f"{name}_peak_bytes": peak for name, peak in peaks(dtype, shape, backward, list(functions(dtype))).items()}
    row["of_logits"] = row["ours_peak_bytes"] / (4 * rows * vocabulary)
    return row


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--patience", type=int, default=1, help="times to repeat a case that others disturbed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_threads(options.threads)
    if options.child:
        name, dtype, shape, backward = json.loads(options.child)
        print(peak_of_one_call(name, dtype, shape, backward))
        return
    surroundings, found = environment(), []
    for dtype in options.dtypes:
        error = check(dtype, options.width, options.vocabulary)
        for rows in options.rows:
            for backward in (False, True):
                row = measure(dtype, (rows, options.width, options.vocabulary), backward, options)
                found.append(row | {"largest_error": error})
                print(
                    f"{dtype:>8} T {rows:5} {'forward and backward' if backward else 'forward':20} ours "
                    f"{row['ours_ms']:7.0f} ms ({row['ours_gflops']:4.0f} GFLOP/s), eager {row['eager_ms']:7.0f} ms, "
                    f"compiled {row['compiled_ms']:7.0f} ms, ratio {row['ratio']:.2f} (least times "
                    f"{row['ratio_least']:.2f}); peak {row['ours_peak_bytes'] / 2**20:5.0f} MiB, "
                    f"{row['of_logits']:.3f} of the logits (eager {row['eager_peak_bytes'] / 2**20:.0f}, compiled "
                    f"{row['compiled_peak_bytes'] / 2**20:.0f} MiB); elsewhere {row['cores_used_elsewhere']:.2f}",
                    flush=True,
                )
                save("kernel_logprob", found, surroundings)  # after every row: one takes minutes


if __name__ == "__main__":
    main()
