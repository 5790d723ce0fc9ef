"""Bytes that a rank holds of parameters, gradients and optimizer state, between two steps, against one rank alone.

The 7.15 M MoE of rl_task.py, float32. "shared": ranks on dp_shard share one copy, also where experts are spread (ep);
"copies": ranks on dp_replicate hold one each. Every storage is counted once, after a step. Packs (weights laid out for
the matrix products) are caches beside them: `packs` at that time, `packs_generating` once all weights are there and
have been used without gradients, with `weights_generating` the values that are gathered for that and given back.
Run: `python benchmarks/fsdp_memory.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_task import MIDDLE
from seedthink.models.qwen3 import Transformer
from turns import environment, save

from seedthink.config.sections import OptimizerConfig
from seedthink.engine.micro_batch import unlabelled_batch
from seedthink.engine.trainer import Trainer, policy_forward
from seedthink.kernels.build import set_threads
from seedthink.kernels.packing import kept_bytes
from seedthink.models.config import ModelConfig
from seedthink.parallel.launch import free_port
from seedthink.parallel.layout import Layout
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.replicas import Replicas
from seedthink.parallel.shards import shards_of
from seedthink.rl.loss import imitation
from seedthink.types import Batch

LAYOUTS = {
    "alone": Layout(),
    "shared": Layout(dp_shard=4),
    "shared, ep = 2": Layout(dp_shard=4, ep=2),
    "copies of shared": Layout(dp_replicate=2, dp_shard=2),
    "copies": Layout(dp_replicate=4),
}
MOST = 0.30  # of one rank's bytes, on four ranks that share one copy


def batch_of(index: int) -> Batch:
    """Four sequences of 64 tokens for each of four data indices."""
    draw = np.random.default_rng(index)
    texts = [draw.integers(0, MIDDLE["vocab_size"], 64).astype(np.int32) for _ in range(4)]
    mask_T = np.concatenate([np.zeros(16), np.ones(48)])
    return unlabelled_batch(texts, [mask_T] * 4, 128, 16.0 * 48, 16.0)


def bytes_of(tensors: Any) -> int:
    """Of the memory that tensors stand in, each counted once."""
    memories = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(memories.values())


def held(mesh: Mesh | None) -> dict[str, int]:
    """What this rank holds after a step."""
    model = Transformer(ModelConfig(**MIDDLE), shards=shards_of(mesh))
    model.init_weights(seed=0)
    trainer = Trainer(model, policy_forward, OptimizerConfig(), 2, mesh)
    batch = batch_of(0 if mesh is None else mesh.layout.data_index(mesh.rank))
    update = trainer.learn(batch, imitation)
    assert not update.skipped, update.skipped
    moments = (each[key] for each in trainer.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    found = {
        "parameters": bytes_of([*trainer.parameters, *model.parameters()]),
        "gradients": bytes_of(p.grad for p in [*trainer.parameters, *model.parameters()] if p.grad is not None),
        "optimizer": bytes_of(moments),
        "packs": kept_bytes(),
    }
    trainer.storage.hold()
    trainer.forward_only(batch)
    found["packs_generating"] = kept_bytes()
    found["weights_generating"] = bytes_of(model.parameters()) if trainer.storage.sharded else 0
    trainer.storage.let_go()
    return found


def as_rank(name: str, rank: int, rendezvous: str) -> None:
    """One rank of a layout: prints what the fullest one holds, if it is the first."""
    layout = LAYOUTS[name]
    replicas = Replicas(rank, layout.size, rendezvous, 120.0)
    everyone = replicas.gather(held(Mesh(layout, replicas)))
    if rank == 0:
        print(json.dumps(max(everyone, key=lambda each: sum(each.values()))))
    replicas.close()


def on_ranks(name: str) -> dict[str, int]:
    """What the fullest rank of a layout holds."""
    rendezvous = f"127.0.0.1:{free_port()}"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--layout", name, "--rank", str(rank), "--rendezvous", rendezvous],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(LAYOUTS[name].size)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"{name}: a rank failed")
    found: dict[str, int] = json.loads(said[0])
    return found


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, default="alone", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--rendezvous", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_threads(1)
    if options.rendezvous:
        as_rank(options.layout, options.rank, options.rendezvous)
        return
    surroundings, alone = environment(), held(None)
    rows: list[dict[str, Any]] = []
    print("layout             parameters  gradients  optimizer  share of alone    packs  generating: weights     packs")
    for name, layout in LAYOUTS.items():
        found = alone if layout.size == 1 else on_ranks(name)
        kept = [sum(each[part] for part in ("parameters", "gradients", "optimizer")) for each in (found, alone)]
        share = kept[0] / kept[1]
        rows.append({"layout": name, "axes": str(layout), **found, "share_of_alone": share})
        print(
            f"{name:17}  {found['parameters']:10}  {found['gradients']:9}  {found['optimizer']:9}  {share:14.4f}"
            f"  {found['packs']:7}  {found['weights_generating']:19}  {found['packs_generating']:8}",
            flush=True,
        )
    save("fsdp_memory", rows, surroundings)
    worst = max(row["share_of_alone"] for row in rows if row["layout"].startswith("shared"))
    print(f"four ranks that share one copy hold {worst:.4f} of it each; asked: at most {MOST}")


if __name__ == "__main__":
    main()
