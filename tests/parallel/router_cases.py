"""What one rank and the ranks of a layout both compute of routers that are kept even."""

from __future__ import annotations

from typing import Any

import torch
from mesh_cases import STEPS, batch, members, parts, policy

from seedthink.config.sections import OptimizerConfig, RouterConfig
from seedthink.engine.trainer import Trainer, policy_forward
from seedthink.parallel.mesh import Mesh
from seedthink.types import Batch


def nothing(logprob_T: torch.Tensor, entropy_T: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, Any]]:
    """A loss that teaches nothing: what is learned comes from the router's losses."""
    return logprob_T.sum() * 0.0, {}


def evened(name: str, mesh: Mesh | None) -> dict[str, Any]:
    """Loads, losses, gradients and biases of a first step, and the biases after some more."""
    model = policy(name, mesh)
    rate = 0.01 if model.config.router.bias else 0.0
    router = RouterConfig(balance_loss=0.5, z_loss=0.1, bias_update_rate=rate)
    trainer = Trainer(model, policy_forward, OptimizerConfig(lr=1e-3, grad_clip=0.0), STEPS, mesh, router=router)
    found: dict[str, Any] = {}
    for step in range(STEPS):
        metrics = trainer.learn(batch(name, members(mesh), step), nothing).metrics
        biases = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("router_bias_E")}
        if step == 0:
            own = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.parameters]
            gradients = parts(trainer, own)
            found["gradients"], found["biases"] = gradients, biases
            found["loads"] = [metrics[f"router/load_{which}_over_mean"] for which in ("max", "min")]
            found["losses"] = [metrics[f"router/{which}_loss"] for which in ("balance", "z")]
    found["later"] = biases
    return found
