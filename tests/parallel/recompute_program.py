"""What the ranks of test_recompute_on_ranks.py run: steps that keep everything, and the same ones that recompute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mesh_cases
import torch

from seedthink.config.sections import MemoryConfig, OptimizerConfig
from seedthink.engine.trainer import Trainer, policy_forward
from seedthink.kernels.build import set_threads
from seedthink.parallel.launch import launched
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.replicas import Replicas
from seedthink.rl.loss import imitation

WAYS = ("none", "layers", "selective")


def learnt(name: str, mesh: Mesh, way: str, spoilt: bool = False) -> dict[str, Any]:
    """First gradient, norms and weights of two steps. spoilt: a router says NaN to one rank's row: nobody may move."""
    model = mesh_cases.policy(name, mesh)
    if spoilt:
        mesh_cases.spoil(name, model)
    memory = MemoryConfig(recompute=way)  # type: ignore[arg-type]
    trainer = Trainer(model, policy_forward, OptimizerConfig(lr=1e-3), 2, mesh, memory=memory)
    found: dict[str, Any] = {"norms": [], "skipped": []}
    for step in range(2):
        update = trainer.learn(mesh_cases.batch(name, mesh_cases.members(mesh), 0 if spoilt else step), imitation)
        found["norms"].append(update.grad_norm)
        found["skipped"].append(update.skipped)
        if not step and not spoilt:
            found["gradients"] = [p.grad.clone() for p in trainer.parameters]
    found["weights"] = [p.detach().clone() for p in trainer.parameters]
    return found


if __name__ == "__main__":
    rendezvous, folder = sys.argv[1:]
    launch = launched()
    assert launch is not None
    torch.set_num_threads(1)
    set_threads(1)
    replicas = Replicas(launch.rank, launch.size, rendezvous, 60.0)
    found: dict[tuple[str, str, str], Any] = {}
    for layout, plan in mesh_cases.LAYOUTS[launch.size].items():
        mesh = Mesh(plan, replicas)
        for way in WAYS:
            for model in mesh_cases.FEW:
                found[layout, model, way] = learnt(model, mesh, way)
            if mesh.entangled:
                found[layout, "spoilt", way] = learnt("sparse", mesh, way, spoilt=True)
    torch.save(found, Path(folder) / f"{launch.rank}.pt")
    replicas.group.tell("done")
    replicas.close()
