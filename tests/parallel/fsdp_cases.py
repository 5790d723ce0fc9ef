"""What ranks that share one copy of the weights compute, beside the cases of mesh_cases.py, and under which layouts."""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import engine_cases
import mesh_cases
import torch

from seedthink.config.sections import MemoryConfig, OptimizerConfig
from seedthink.engine.trainer import Trainer, policy_forward
from seedthink.kernels.packing import kept_bytes
from seedthink.parallel.layout import Layout
from seedthink.parallel.mesh import Mesh
from seedthink.rl.loss import imitation
from seedthink.types import Completion

LAYOUTS = {
    2: {"shard2": Layout(dp_shard=2), "shard2 ep2": Layout(dp_shard=2, ep=2)},
    4: {
        "shard4 ep2": Layout(dp_shard=4, ep=2),
        "shard2 tp2": Layout(dp_shard=2, tp=2),
        "copies2 shard2": Layout(dp_replicate=2, dp_shard=2),
    },
    8: {"shard2 tp4": Layout(dp_shard=2, tp=4, ep=2), "shard2 cp2 tp2": Layout(dp_shard=2, cp=2, tp=2, ep=4)},
}
MODELS = ["sparse", "dense bfloat16"]
CASES = ["learnt", "learnt_again", "answers", "held", "one_sided", "continued", "forgetful"]


def plan(size: int) -> list[tuple[str, str, str]]:
    """(layout, model, case)."""
    found = [(layout, model, case) for layout in LAYOUTS[size] for model in MODELS for case in CASES]
    return found + [(layout, "sparse", case) for layout in LAYOUTS[size] for case in ("restored", "runs", "spoilt")]


def answers(name: str, mesh: Mesh | None) -> dict[str, torch.Tensor]:
    """Of an engine that has learnt nothing yet: tokens and log-probs of every request of this rank."""
    with tempfile.TemporaryDirectory() as parent:
        engine = engine_cases.engine_of(name, mesh, engine_cases.folder_of(name, parent))
        if mesh is None or mesh.layout.data_index(mesh.rank) == 0:
            engine.submit(mesh_cases.asked())
        done: list[Completion] = []
        while engine_cases.engine_busy(engine, mesh):
            done += engine.collect(1.0)
    tokens = {f"tokens {each.id}": torch.from_numpy(each.tokens_T) for each in done}
    return tokens | {f"logprobs {each.id}": torch.from_numpy(each.logprob_T) for each in done}


def held(name: str, mesh: Mesh | None) -> dict[str, Any]:
    """Numbers that a rank holds after a step, and what it has of weights and packs when they are not used."""
    gc.collect()  # packs of other cases' models
    before = kept_bytes()
    model = mesh_cases.policy(name, mesh)
    trainer = Trainer(model, policy_forward, OptimizerConfig(), 2, mesh)
    trainer.learn(mesh_cases.batch(name, mesh_cases.members(mesh)), imitation)
    memories = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() // 4 for p in model.parameters()}
    found: dict[str, Any] = {
        "weights": sum(p.numel() for p in trainer.parameters),
        "gradients": sum(p.grad.numel() for p in trainer.parameters if p.grad is not None),
        "moments": sum(
            each["exp_avg"].numel() + each["exp_avg_sq"].numel() for each in trainer.optimizer.state.values()
        ),
        "module": sum(memories.values()),
        "packs": kept_bytes() - before,
    }
    trainer.storage.hold()
    trainer.forward_only(mesh_cases.batch(name, mesh_cases.members(mesh)))
    found["packs held"] = kept_bytes() - before
    trainer.storage.let_go()
    found["packs let go"] = kept_bytes() - before
    return found


def forgetful(name: str, mesh: Mesh | None) -> list[list[float]]:
    """Losses and norms of two steps that keep all activations, and of two that compute layers again."""
    found = []
    for recompute in ("none", "layers"):
        memory = MemoryConfig(recompute=recompute)  # type: ignore[arg-type]
        trainer = Trainer(mesh_cases.policy(name, mesh), policy_forward, OptimizerConfig(), 2, mesh, memory=memory)
        updates = [
            trainer.learn(mesh_cases.batch(name, mesh_cases.members(mesh), step), imitation) for step in range(2)
        ]
        found.append([number for each in updates for number in (each.metrics["train/loss"], each.grad_norm)])
    return found


def one_sided(name: str, mesh: Mesh | None) -> list[float]:
    """Losses where the first data index has all sequences and the others have none."""
    trainer = Trainer(mesh_cases.policy(name, mesh), policy_forward, OptimizerConfig(lr=1e-3), 2, mesh)
    mine = [0, 1, 2, 3] if mesh is None or mesh.layout.data_index(mesh.rank) == 0 else []
    return [trainer.learn(mesh_cases.batch(name, mine, step), imitation).metrics["train/loss"] for step in range(2)]


def saved(name: str) -> dict[str, torch.Tensor]:
    """What one rank alone saves after a step."""
    trainer = Trainer(mesh_cases.policy(name, None), policy_forward, OptimizerConfig(lr=1e-3), 3)
    trainer.learn(mesh_cases.batch(name, [0, 1, 2, 3]), imitation)
    return {key: value.clone() for key, value in trainer.state().items()}


def continued(name: str, mesh: Mesh | None) -> list[float]:
    """Losses of the steps after one that one rank alone made and saved."""
    return losses_after(saved(name), name, mesh)


def losses_after(state: dict[str, torch.Tensor], name: str, mesh: Mesh | None) -> list[float]:
    """Losses of two steps of a trainer that goes on from `state`."""
    trainer = Trainer(mesh_cases.policy(name, mesh), policy_forward, OptimizerConfig(lr=1e-3), 3, mesh)
    trainer.storage.hold()  # what was there before is not what is restored
    trainer.load_state(state)
    mine = mesh_cases.members(mesh)
    return [trainer.learn(mesh_cases.batch(name, mine, step), imitation).metrics["train/loss"] for step in (1, 2)]
