"""What a run would need: parameters and memory, from the model folder's config.json and the settings alone.

Per parameter, training holds the float32 master weight, its gradient and two moments of AdamW (16 bytes), and two
packed copies for matrix products (forward and backward) in the compute dtype. Activations count what autograd keeps
for one micro-batch. It is an estimate: the run's summary holds the measured peak.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedthink.errors import DataError
from seedthink.models.config import ModelConfig
from seedthink.models.sizes import parameters

PROCESS_BYTES = 350 << 20  # Python and torch, once per engine process
RAY_BYTES = 450 << 20  # Ray's own processes on one machine
VERIFIER_BYTES = 30 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the estimate."""

    name: str
    bytes: float


def memory(model: ModelConfig, config: Any) -> list[Part]:
    """Return the parts of a run's memory for a resolved configuration of any command."""
    total, _ = parameters(model)
    item = 2 if config.model.dtype == "bfloat16" else 4
    trains = hasattr(config, "trainer")
    algorithm = getattr(config, "algorithm", None)
    sampling = getattr(config, "rollout", None) or config.generation
    trained = total * (16 + 2 * item)
    parts = [Part("policy", trained if trains else total * (4 + item))]
    if algorithm is not None and algorithm.critic:
        parts.append(Part("critic", trained))
    if algorithm is not None and algorithm.reference:
        parts.append(Part("reference policy", total * (4 + item)))
    if trains:
        parts.append(Part("activations of a micro-batch", activations(model, config.trainer.micro_batch_tokens)))
    parts.append(Part("KV cache, at most", float(sampling.kv_memory_mib << 20)))
    processes = float(PROCESS_BYTES)
    if hasattr(config, "reward"):
        processes += VERIFIER_BYTES * config.reward.workers
    if hasattr(config, "controller") and config.controller.kind == "ray":
        processes += RAY_BYTES + PROCESS_BYTES
    return [*parts, Part("processes", processes)]


def activations(model: ModelConfig, tokens: int) -> float:
    """Return the bytes that autograd keeps for one micro-batch: float32 inputs of every operation, layer by layer."""
    width, head = model.hidden_size, model.head_dim
    attention = 4 * width + head * (3 * model.num_heads + 2 * model.num_kv_heads)
    per_token = 0
    for layer in range(model.num_layers):
        if model.is_sparse(layer):
            mlp = model.experts_per_token * (width + 3 * model.moe_intermediate_size)
            mlp += model.num_experts + 3 * model.shared_expert_width
        else:
            mlp = 3 * model.intermediate_size
        per_token += attention + mlp
    return 4.0 * tokens * (per_token + 2 * width)


def in_words(config: Any) -> list[str]:
    """Return the lines that --dry-run prints. DataError where the model folder that is named cannot be read."""
    if not config.model.path:
        return ["parameters  unknown: model.path is not set"]
    model = read_model(Path(config.model.path))
    total, active = parameters(model)
    parts = memory(model, config)
    lines = [f"parameters  {total:,} ({active:,} per token)"]
    lines += [f"memory      {_size(part.bytes):>9}  {part.name}" for part in parts]
    return [*lines, f"            {_size(sum(part.bytes for part in parts)):>9}  in all, estimated"]


def read_model(folder: Path) -> ModelConfig:
    """Read a model folder's config.json. DataError names what is wrong with it."""
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} holds no config.json; model.path must be a Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read: {error}") from None
    return ModelConfig.from_hf(table)


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
