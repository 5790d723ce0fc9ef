"""What a run would need: parameters and memory, from the model folder's config.json and the settings alone.

Per parameter, training holds the float32 master weight, its gradient and two moments of AdamW (16 bytes), and two
packed copies for matrix products (forward and backward) in the compute dtype. Activations count what autograd keeps
for one micro-batch under `memory.recompute`. It is an estimate: the run's summary holds the measured peak.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedthink.config.sections import MemoryConfig
from seedthink.errors import DataError
from seedthink.models.config import ModelConfig

PROCESS_BYTES = 350 << 20  # Python and torch, once per engine process
RAY_BYTES = 450 << 20  # Ray's own processes on one machine
VERIFIER_BYTES = 30 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the estimate."""

    name: str
    bytes: float


def parameters(config: ModelConfig) -> tuple[int, int]:
    """Return (all parameters, those that one token passes through) of a policy."""
    width, heads, kv, head = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    attention = width * head * (2 * heads + 2 * kv) + 2 * head
    embedding = config.vocab_size * width
    total = active = embedding * (1 if config.tie_word_embeddings else 2) + width
    for layer in range(config.num_layers):
        shared = attention + 2 * width
        if config.is_sparse(layer):
            expert = 3 * width * config.moe_intermediate_size
            shared += width * config.num_experts
            total += shared + config.num_experts * expert
            active += shared + config.experts_per_token * expert
        else:
            total += shared + 3 * width * config.intermediate_size
            active += shared + 3 * width * config.intermediate_size
    return total, active


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
        kept = activations(model, config.trainer.micro_batch_tokens, config.memory)
        way = config.memory.recompute
        parts.append(Part("activations of a micro-batch" + (f", {way} recomputed" if way != "none" else ""), kept))
    parts.append(Part("KV cache, at most", float(sampling.kv_memory_mib << 20)))
    processes = float(PROCESS_BYTES)
    if hasattr(config, "reward"):
        processes += VERIFIER_BYTES * config.reward.workers
    if hasattr(config, "controller") and config.controller.kind == "ray":
        processes += RAY_BYTES + PROCESS_BYTES
    return [*parts, Part("processes", processes)]


def activations(model: ModelConfig, tokens: int, memory: MemoryConfig) -> float:
    """Return the bytes of float32 numbers that autograd holds at most for one micro-batch, block by block.

    Blocks that are recomputed whole leave their input, and one of them at a time is there again.
    """
    kept, largest = 0, 0
    for layer in range(model.num_layers):
        whole, cheap = _block(model, layer)
        if memory.recompute == "none" or layer % memory.recompute_every:
            kept += whole
        elif memory.recompute == "selective":
            kept += whole - cheap
        else:
            kept, largest = kept + model.hidden_size, max(largest, whole)
    return 4.0 * tokens * (kept + largest + 2 * model.hidden_size)


def _block(model: ModelConfig, layer: int) -> tuple[int, int]:
    """Numbers per token that a block's backward needs, and those of them that are cheap to make again.

    The stream and its norm twice; projections, queries, keys, values and attention's result; the MLP's. Cheap are the
    norms, queries, keys and values, and a dense MLP's activation (experts make theirs again in any case).
    """
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    whole = 4 * model.hidden_size + 3 * queries + 4 * keys
    cheap = 2 * model.hidden_size + queries + 2 * keys
    if model.is_sparse(layer):
        return whole + 2 * model.experts_per_token * model.moe_intermediate_size + model.num_experts, cheap
    return whole + 3 * model.intermediate_size, cheap + model.intermediate_size


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
