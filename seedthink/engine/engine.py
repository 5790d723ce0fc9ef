"""One rank's engine: a policy that learns and generates with one set of weights, and a critic beside it.

Verbs: submit / collect / abort (the Generator protocol), score (values and, where asked for, recomputed and reference
log-probs), learn (one optimizer step of policy and critic), publish (the learned weights become the next version).
Publishing moves no bytes: generation reads the very tensors that the optimizer writes, so it only counts the version
and forgets the prefix cache. A rollout's log-probs are therefore those of the trainer, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seedthink.autotune.install import step_tuner
from seedthink.autotune.spaces import ModelShape
from seedthink.autotune.steps import untuned
from seedthink.config.sections import GenerationConfig, MemoryConfig, OptimizerConfig, RouterConfig
from seedthink.engine.generator import TokenGenerator
from seedthink.engine.micro_batch import scoring_batch
from seedthink.engine.model_io import load_model, load_value_model
from seedthink.engine.page_cache import pages_within
from seedthink.engine.trainer import Loss, Trainer, forward_only, module_storage, policy_forward, value_forward
from seedthink.models.config import ModelConfig
from seedthink.models.cuts import cuts_of
from seedthink.models.decoder import Transformer
from seedthink.models.value import ValueModel
from seedthink.parallel.shards import shards_of
from seedthink.types import Batch, Completion, Detokenizer, Request, Scored, Update, Valued

if TYPE_CHECKING:
    from seedthink.parallel.mesh import Mesh
    from seedthink.types import Float32

_EMPTY = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine is built from.

    `dtype` is the matmul operands' dtype, `total_updates` the schedules' length, `micro_batch_tokens` 0 where nothing
    is scored or learned. `tuner` is `model.tuner`, `logs` a
    folder for its decisions. `critic` False leaves the value network out, `critic_path` names a stored one to start
    from; `reference` keeps a frozen copy of the starting policy; `recompute` asks `score` for the policy's own
    log-probs (a proximal policy apart from the behaviour policy). `memory` says what learning keeps, and where;
    `router` keeps the experts of both networks even.
    """

    model: Path
    dtype: str = "float32"
    tuner: str = "off"
    logs: Path | None = None
    rollout: GenerationConfig
    policy_optimizer: OptimizerConfig
    critic_optimizer: OptimizerConfig
    total_updates: int
    critic: bool = True
    critic_path: str = ""
    reference: bool = False
    recompute: bool = False
    micro_batch_tokens: int = 8192
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    router: RouterConfig = field(default_factory=RouterConfig)


@dataclass(frozen=True)
class Losses:
    """The callables that `learn` optimises; `value` is unused without a critic."""

    policy: Loss
    value: Loss | None = None


class Engine:
    """See the module's docstring. Not thread-safe: one verb at a time."""

    def __init__(
        self,
        settings: EngineSettings,
        losses: Losses,
        detokenizer: Detokenizer | None = None,
        stop_tokens: Sequence[int] = (),
        mesh: Mesh | None = None,
    ) -> None:
        """`stop_tokens` are the tokenizer's: they end an answer as the model's own do, since texts are taught so.

        `mesh` are the ranks that learn together with this one, holding copies or parts of the same networks.
        """
        self.settings, self.losses = settings, losses
        compute = getattr(torch, settings.dtype)
        temperature = settings.rollout.temperature
        shards = shards_of(mesh)
        policy = load_model(settings.model, compute, shards)
        room = settings.rollout.kv_memory_mib, settings.rollout.max_sequences
        pages = pages_within(policy.config, compute, *room, shards)
        tuner = step_tuner(settings.tuner, shape_of(policy.config, pages), settings.dtype, log=settings.logs)
        around = tuner.step if tuner is not None else untuned
        forward = partial(policy_forward, temperature=temperature)
        policy_optimizer, critic_optimizer = settings.policy_optimizer, settings.critic_optimizer
        ways: dict[str, Any] = {"memory": settings.memory, "router": settings.router}
        self.critic: Trainer | None = None
        if settings.critic:
            stored = settings.critic_path
            critic = load_value_model(stored, compute, shards) if stored else ValueModel.from_policy(policy)
            critic_steps = settings.total_updates, mesh, around
            self.critic = Trainer(critic, value_forward, critic_optimizer, *critic_steps, **ways)
        # NOTE: after the critic is made of it: a trainer may take a module's weights apart.
        self.policy = Trainer(policy, forward, policy_optimizer, settings.total_updates, mesh, around, **ways)
        self.reference = load_model(settings.model, compute, shards) if settings.reference else None
        self._reference = None if self.reference is None else module_storage(self.reference, mesh)
        self.version, self._mesh = 0, mesh
        self.generator = TokenGenerator(
            policy,
            pages=pages,
            max_batch_tokens=settings.rollout.max_batch_tokens,
            max_sequences=settings.rollout.max_sequences,
            detokenizer=detokenizer,
            eos_token_ids=sorted({*policy.config.eos_token_ids, *stop_tokens}),
            around=around,
            mesh=mesh,
        )

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues generations; see `types.Generator`."""
        self.generator.submit(requests)

    def collect(self, timeout: float) -> Sequence[Completion]:
        """Generates until some request finishes or `timeout` seconds have passed.

        Where ranks share one copy of the weights all of them are here from the first `collect` to the next `learn`.
        """
        self.policy.storage.hold()
        return self.generator.collect(timeout)

    def abort(self, ids: Sequence[str]) -> None:
        """Gives up the named requests."""
        self.generator.abort(ids)

    def score(self, scored: Sequence[Scored]) -> list[Valued]:
        """Critic values, proximal and reference log-probs of each response token, where the settings ask for them."""
        if self.critic is None and self.reference is None and not self.settings.recompute:
            return [Valued(item, _EMPTY, _EMPTY, _EMPTY) for item in scored]
        batch, spans = scoring_batch(scored, self.settings.micro_batch_tokens)
        value_T = proximal_T = reference_T = None
        if self.critic is not None:
            value_T = self.critic.forward_only(batch)
        if self.settings.recompute:
            proximal_T = self.policy.forward_only(batch)
        if self.reference is not None:
            reference_T = forward_only(self.reference, self.policy.forward, batch, self._mesh, self._reference)

        def cut(array_T: Float32 | None, span: slice) -> Float32:
            return _EMPTY if array_T is None else array_T[span]

        return [
            Valued(item, cut(value_T, span), cut(proximal_T, span), cut(reference_T, span))
            for item, span in zip(scored, spans, strict=True)
        ]

    def learn(self, batch: Batch) -> Update:
        """One optimizer step of the policy and one of the critic on the same mini-batch."""
        policy = self.policy.learn(batch, self.losses.policy)
        metrics = {f"actor/{name}" if "/" not in name else name: value for name, value in policy.metrics.items()}
        metrics["actor/grad_norm"] = policy.grad_norm
        skipped = policy.skipped
        if self.critic is not None:
            critic = self.learn_value(batch)
            metrics |= critic.metrics
            skipped = skipped or critic.skipped
        return Update(metrics, policy.grad_norm, skipped)

    def learn_value(self, batch: Batch) -> Update:
        """One optimizer step of the critic alone (value pretraining)."""
        assert self.critic is not None and self.losses.value is not None
        self.policy.storage.let_go()
        update = self.critic.learn(batch, self.losses.value)
        metrics = {
            f"critic/{name}" if "/" not in name or name.startswith("router/") else name: value
            for name, value in update.metrics.items()
        }
        return Update(metrics | {"critic/grad_norm": update.grad_norm}, update.grad_norm, update.skipped)

    def publish(self) -> int:
        """Makes the learned weights the next policy version and returns its number."""
        self.version += 1
        self.generator.set_version(self.version)
        return self.version

    def state(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """Groups of named tensors that a checkpoint keeps: whole on rank 0. Every rank asks, see `Trainer.state`."""
        groups: dict[str, Mapping[str, torch.Tensor]] = {"policy": self.policy.state()}
        if self.critic is not None:
            groups["critic"] = self.critic.state()
        return groups

    def load_state(self, groups: Mapping[str, Mapping[str, torch.Tensor]], version: int) -> None:
        """Restores `state` and the policy version that it had."""
        self.policy.load_state(groups["policy"])
        if self.critic is not None:
            self.critic.load_state(groups["critic"])
        self.version = version
        self.generator.set_version(version)

    def parameters(self) -> dict[str, int]:
        """Parameters of the policy: all, and those that one token passes through."""
        module = self.policy.module
        assert isinstance(module, Transformer)
        config = module.config
        cuts = cuts_of(module, config, module.shards.seat)
        sizes = {name: cuts[name].rows * p.shape[1:].numel() for name, p in module.named_parameters()}
        total = sum(sizes.values())
        experts = sum(sizes[name] for name, p in module.named_parameters() if p.ndim == 3)
        idle = experts * (config.num_experts - config.experts_per_token) // max(1, config.num_experts)
        return {"parameters": total, "active_parameters": total - idle}


def shape_of(config: ModelConfig, pages: int) -> ModelShape:
    """A model's sizes as the kernel tuner wants them; `pages` is the size of the KV cache."""
    sparse = [config.is_sparse(layer) for layer in range(config.num_layers)]
    return ModelShape(
        width=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocabulary=config.vocab_size,
        experts=config.num_experts if any(sparse) else 0,
        experts_per_token=config.experts_per_token if any(sparse) else 0,
        expert_width=config.moe_intermediate_size if any(sparse) else 0,
        dense_width=0 if all(sparse) else config.intermediate_size,
        pages=pages,
    )
