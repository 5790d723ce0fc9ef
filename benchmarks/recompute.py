"""What recomputation saves and costs: memory of activations and time of a forward and backward, 24 layers.

One micro-batch of a policy with Qwen3's proportions (heads of 128, two queries to a key head, an MLP three times as
wide as the stream), dense and sparse, under each value of `memory.recompute`. Gradients are held equal bit for bit
before anything is measured. Memory, each way in a process of its own: resident bytes that the forward leaves behind
("kept"), and the most resident bytes of forward and backward beyond what was there before ("peak": what is kept, the
block at hand, the head's logits, and a weight's gradient before it is added to the one that is there). Gradients and
the weights' packs are there before; freed memory goes back to the system at once. Time: forward and backward in turns
in one process, without the optimizer.
Run: `python benchmarks/recompute.py` (needs about 8 GB of memory).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernel_logprob import resident
from turns import environment, in_turns, save

from seedthink.engine.micro_batch import MicroBatch, micro_batches, unlabelled_batch
from seedthink.engine.trainer import policy_forward
from seedthink.kernels.build import set_threads
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer
from seedthink.models.keeping import Keeping

WAYS = ("none", "selective", "layers")
VOCABULARY = 4096


def model(kind: str, dtype: str, width: int, layers: int) -> Transformer:
    """Random weights; a sparse model has 16 experts, of which a token takes 4, each a quarter of the dense MLP."""
    experts = {"num_experts": 16, "experts_per_token": 4, "moe_intermediate_size": width * 3 // 4}
    config = ModelConfig(
        family="qwen3" if kind == "dense" else "qwen3_moe",
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_layers=layers,
        num_heads=max(2, width // 64),
        num_kv_heads=max(1, width // 128),
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **({} if kind == "dense" else experts),
    )
    made = Transformer(config, getattr(torch, dtype))
    made.init_weights(0)
    return made


def micro_batch(tokens: int) -> MicroBatch:
    """Four sequences of random tokens, everything after the first token predicted."""
    draw = np.random.default_rng(0)
    sequences = [draw.integers(0, VOCABULARY, tokens // 4).astype(np.int32) for _ in range(4)]
    masks = [np.concatenate([[0.0], np.ones(len(each) - 1)]) for each in sequences]
    (micro,) = micro_batches(unlabelled_batch(sequences, masks, tokens, float(tokens), 4.0))
    return micro


def step(policy: Transformer, micro: MicroBatch, way: str, after_forward: Callable[[], None] = lambda: None) -> None:
    """Forward and backward; the gradients stand in the parameters, in place of those before."""
    policy.keeping = Keeping(way)  # type: ignore[arg-type]
    policy.zero_grad(set_to_none=False)
    logprob_T, _ = policy_forward(policy, micro)
    after_forward()
    logprob_T.sum().backward()


def check(policy: Transformer, micro: MicroBatch) -> None:
    """Ends the program where a gradient's bits depend on the way."""
    expected: list[torch.Tensor] = []
    for way in WAYS:
        step(policy, micro, way)
        found = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        expected = expected or found
        if not all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
            raise SystemExit(f"FAIL: gradients of {way} differ")


def memory_of_one_step(policy: Transformer, micro: MicroBatch, way: str) -> dict[str, int]:
    """Bytes kept and at the peak; to be asked once in a process."""
    step(policy, micro_batch(16), way)  # threads, packs of the weights, gradients
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, kept = resident("VmRSS"), []
    step(policy, micro, way, lambda: kept.append(resident("VmRSS") - before))
    return {"kept_bytes": kept[0], "peak_bytes": resident("VmHWM") - before}


def memory(case: tuple[Any, ...], threads: int) -> dict[str, dict[str, int]]:
    """Of each way, each in a process of its own."""
    # Blocks from 64 KiB on are mapped one by one, and unmapped when they are freed.
    surroundings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--threads", str(threads), "--child", json.dumps([*case, way])]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(kind: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    case = (kind, dtype, options.width, options.layers, options.tokens)
    policy, micro = model(*case[:-1]), micro_batch(options.tokens)
    check(policy, micro)
    row: dict[str, Any] = dict(zip(("model", "dtype", "D", "layers", "T"), case, strict=True))
    row |= in_turns({way: partial(step, policy, micro, way) for way in WAYS}, options.samples, options.patience)
    del policy
    for way, found in memory(case, options.threads).items():
        row |= {f"{way}_{name}": value for name, value in found.items()}
        row |= {f"{way}_{name}_of_none": value / row[f"none_{name}_bytes"] for name, value in _short(found).items()}
        row[f"{way}_time_of_none"] = row[f"{way}_ms"] / row["none_ms"]
    return row


def _short(found: dict[str, int]) -> dict[str, int]:
    return {name.removesuffix("_bytes"): value for name, value in found.items()}


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["dense", "sparse"], default=["dense", "sparse"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--patience", type=int, default=1, help="times to repeat a case that others disturbed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="recompute", help="name of the file in results/")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_threads(options.threads)
    if options.child:
        *sizes, tokens, way = json.loads(options.child)
        print(json.dumps(memory_of_one_step(model(*sizes), micro_batch(tokens), way)))
        return
    surroundings, found = environment(), []
    for kind in options.models:
        for dtype in options.dtypes:
            row = measure(kind, dtype, options)
            found.append(row)
            for way in WAYS:
                print(
                    f"{kind:>6} {dtype:>8} {way:>9}: kept {row[f'{way}_kept_bytes'] / 2**20:6.0f} MiB "
                    f"({row[f'{way}_kept_of_none']:.3f} of none), peak {row[f'{way}_peak_bytes'] / 2**20:6.0f} MiB "
                    f"({row[f'{way}_peak_of_none']:.3f}), {row[f'{way}_ms']:6.0f} ms "
                    f"({row[f'{way}_time_of_none']:.2f}); elsewhere {row['cores_used_elsewhere']:.2f}",
                    flush=True,
                )
            save(options.out, found, surroundings)


if __name__ == "__main__":
    main()
