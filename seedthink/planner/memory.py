"""The memory of one rank under a layout, from the model's config.json and the settings alone.

Per parameter, training holds the float32 master weight, its gradient and two moments of AdamW (16 bytes), and two
packed copies for matrix products (forward and backward) in the compute dtype. tp cuts attention and dense MLPs, ep the
experts; norms, router, embedding and head are whole on every rank. Where dp_shard cuts what they leave once more, no
copy outlives its use, and the policy's weights are whole while it generates. Activations count what autograd keeps for
one micro-batch. It is an estimate: the run's summary holds the measured peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from seedthink.models.config import ModelConfig
from seedthink.models.sizes import parts as parameter_parts
from seedthink.parallel.layout import Layout
from seedthink.parallel.layout_check import Sizes

FSDP = True  # whether the ranks of dp_shard (and cp) cut weights and optimizer between them: parallel/fsdp.py
PROCESS_BYTES = 350 << 20  # Python and torch, once per engine process
RAY_BYTES = 450 << 20  # Ray's own processes on one machine
VERIFIER_BYTES = 30 << 20
_MASTER, _GRADIENT, _MOMENTS = 4, 4, 8  # bytes per parameter, float32


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the estimate."""

    name: str
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the settings put on every rank.

    `item` is the bytes of one number in the compute dtype, `micro_batch_tokens` 0 where nothing is trained. `sequences`
    run at once. `beside` is the memory of processes, in bytes.
    """

    item: int
    micro_batch_tokens: int
    kv_memory_mib: int
    sequences: int
    critic: bool = False
    reference: bool = False
    beside: int = PROCESS_BYTES


def load_of(config: Any) -> Load:
    """The load of a resolved configuration of any command."""
    algorithm = getattr(config, "algorithm", None)
    sampling = getattr(config, "rollout", None) or config.generation
    beside = PROCESS_BYTES
    if hasattr(config, "reward"):
        beside += VERIFIER_BYTES * config.reward.workers
    if hasattr(config, "controller") and config.controller.kind == "ray":
        beside += RAY_BYTES + PROCESS_BYTES
    return Load(
        item=2 if config.model.dtype == "bfloat16" else 4,
        micro_batch_tokens=config.trainer.micro_batch_tokens if hasattr(config, "trainer") else 0,
        kv_memory_mib=sampling.kv_memory_mib,
        sequences=sampling.max_sequences,
        critic=algorithm is not None and algorithm.critic,
        reference=algorithm is not None and algorithm.reference,
        beside=beside,
    )


def sizes_of(model: ModelConfig) -> Sizes:
    """What a layout cuts of a model."""
    dense = any(not model.is_sparse(layer) for layer in range(model.num_layers))
    return Sizes(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size if dense else 0,
        num_experts=model.num_experts,
    )


def rank_parameters(model: ModelConfig, layout: Layout, fsdp: bool = FSDP) -> float:
    """Parameters of a policy that one rank holds; with `fsdp`, its share of what ranks of one copy would have alike."""
    parts = parameter_parts(model)
    fsdp = fsdp and layout.dp_shard > 1
    cut = layout.dp_shard * layout.cp if fsdp else 1
    kv = parts["kv"] / min(layout.tp, model.num_kv_heads)
    dense = (parts["whole"] + parts["matrices"] / layout.tp + kv) / cut
    return dense + parts["experts"] / (layout.dp_shard * layout.plane if fsdp else layout.ep)


def memory(model: ModelConfig, load: Load, layout: Layout, fsdp: bool = FSDP) -> list[Part]:
    """Return the parts of one rank's memory."""
    held, cut = rank_parameters(model, layout, fsdp), fsdp and layout.dp_shard > 1
    if load.micro_batch_tokens:
        nets = 2 if load.critic else 1
        parts = [
            Part("parameters", nets * held * (_MASTER + (0 if cut else 2 * load.item))),
            Part("gradients", nets * held * _GRADIENT),
            Part("optimizer", nets * held * _MOMENTS),
        ]
    else:
        parts = [Part("parameters", held * (_MASTER + (0 if cut else load.item)))]
    if load.reference:
        parts.append(Part("reference policy", held * (_MASTER + (0 if cut else load.item))))
    if cut:
        whole = rank_parameters(model, layout, fsdp=False)
        parts.append(Part("policy while it generates", whole * (_MASTER + load.item)))
    if load.micro_batch_tokens:
        parts.append(Part("activations of a micro-batch", activations(model, load.micro_batch_tokens, layout)))
    parts.append(Part("KV cache, at most", kv_cache(model, load, layout, load.kv_memory_mib)))
    return [*parts, Part("processes", float(load.beside))]


def kv_cache(model: ModelConfig, load: Load, layout: Layout, mebibytes: int) -> float:
    """Return the bytes of one rank's KV cache of a size: that, or what its sequences at their longest could fill."""
    longest = load.sequences * model.max_position_embeddings * kv_bytes_per_token(model, load.item, layout)
    return float(min(mebibytes << 20, longest))


def kv_bytes_per_token(model: ModelConfig, item: int, layout: Layout) -> int:
    """Bytes of keys and values that one rank stores of a token: tp and cp share the kv heads out."""
    heads = max(1, model.num_kv_heads // layout.plane)
    return 2 * model.num_layers * heads * model.head_dim * item


def activations(model: ModelConfig, tokens: int, layout: Layout) -> float:
    """Return the bytes that autograd keeps for one micro-batch: float32 inputs of every operation, layer by layer.

    A rank keeps its run of the rows, and what is gathered over tp, the inputs of sharded products, of its cp's rows.
    """
    gathered, kept = _kept_per_token(model)
    return 4.0 * tokens * (gathered / layout.cp + kept / layout.plane)


@cache
def _kept_per_token(model: ModelConfig) -> tuple[int, int]:
    """Numbers that autograd keeps for a token: gathered inputs of sharded products, and all others."""
    width, head = model.hidden_size, model.head_dim
    gathered, kept = 0, 2 * width
    for layer in range(model.num_layers):
        gathered += width + head * model.num_heads  # of the first product and of the last
        kept += 3 * width + head * (2 * model.num_heads + 2 * model.num_kv_heads)
        if model.is_sparse(layer):
            kept += model.experts_per_token * (width + 3 * model.moe_intermediate_size) + model.num_experts
            gathered += model.shared_expert_width
            kept += 2 * model.shared_expert_width
        else:
            gathered += width + model.intermediate_size
            kept += 2 * model.intermediate_size - width
    return gathered, kept


def total(parts: list[Part]) -> float:
    """Return the bytes of all parts."""
    return sum(part.bytes for part in parts)


def in_words(count: float) -> str:
    """A number of bytes in MiB, or in GiB where it is one or more."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def lines(parts: list[Part], last: str) -> list[str]:
    """Aligned lines, a part each, and the sum, which `last` names."""
    named: Mapping[str, float] = {part.name: part.bytes for part in parts} | {last: total(parts)}
    return [f"{in_words(count):>9}  {name}" for name, count in named.items()]
