"""One network that learns: forward, loss and backward over micro-batches, then one optimizer step.

    for micro in batch: loss(forward(module, micro), micro).backward()
    clip; step (skipped where the gradient is not finite)

The loss divides by global counts that the batch carries, so that the gradient does not depend on how the batch is cut;
the gradients of data-parallel ranks are therefore added up, and never averaged.
The trainer knows neither rewards nor algorithms: the loss arrives as a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seedthink.autotune.steps import Around, untuned
from seedthink.config.sections import OptimizerConfig
from seedthink.engine.adamw import AdamW
from seedthink.engine.diverged import diverged
from seedthink.engine.micro_batch import MicroBatch, micro_batches
from seedthink.engine.rows import Rows
from seedthink.kernels.finite import not_finite
from seedthink.kernels.logprob import linear_logprob
from seedthink.models.context import PackedContext
from seedthink.models.decoder import Transformer
from seedthink.models.value import ValueModel
from seedthink.telemetry.metrics import Metric, merge, reduce
from seedthink.types import Batch, Update

if TYPE_CHECKING:
    from seedthink.parallel.replicas import Replicas

Outputs = tuple[torch.Tensor, ...]
Forward = Callable[[Any, MicroBatch], Outputs]
Loss = Callable[..., tuple[torch.Tensor, Mapping[str, Metric]]]


def policy_forward(model: Transformer, batch: MicroBatch, temperature: float = 1.0) -> Outputs:
    """(logprob_T, entropy_T) of the predicted tokens, zeros elsewhere."""
    rows = batch.rows()
    hidden_UD = model(rows.tokens_U, context_of(model, rows))
    rows_RD = hidden_UD.index_select(0, rows.source_R)
    targets_R = batch.tokens_T.index_select(0, batch.predicted_R)
    logprob_R, entropy_R = linear_logprob(rows_RD, model.head_VD, targets_R, temperature, model.compute)
    return batch.scatter(logprob_R), batch.scatter(entropy_R)


def value_forward(model: ValueModel, batch: MicroBatch) -> Outputs:
    """(value_T,): the critic's value of the state before each predicted token, zeros elsewhere."""
    rows = batch.rows()
    value_U = model(rows.tokens_U, context_of(model, rows))
    return (batch.scatter(value_U.index_select(0, rows.source_R)),)


def context_of(model: Transformer | ValueModel, rows: Rows) -> PackedContext:
    """How a network's rows stand to each other."""
    return PackedContext(rows.cu_seqlens_S1, model.compute, model.config.attention_scale, rows.prefix_S)


@torch.no_grad()
def forward_only(module: torch.nn.Module, forward: Forward, batch: Batch) -> np.ndarray:
    """The forward's first output over the whole batch, float32 [T], without gradients. RunError where it diverged."""
    try:
        outputs = [forward(module, micro)[0].numpy() for micro in micro_batches(batch)]
    except ValueError as error:
        if not not_finite(error):
            raise
        raise diverged(error) from error
    return np.concatenate(outputs) if outputs else np.zeros(0, np.float32)


class Trainer:
    """A module, its optimizer and its learning-rate schedule. `step` counts the updates made, skipped ones left out.

    `replicas`: the ranks that hold copies of the module, each with batches of its own; None for one rank alone.
    `around` is entered for each micro-batch, where the kernels' launch settings are chosen.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        forward: Forward,
        config: OptimizerConfig,
        total_steps: int,
        replicas: Replicas | None = None,
        around: Around = untuned,
    ) -> None:
        self.module, self.config, self.total_steps, self.replicas = module, config, total_steps, replicas
        self.forward, self._around = forward, around
        self.step = 0
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = AdamW(self.parameters, config)

    def learn(self, batch: Batch, loss: Loss) -> Update:
        """One optimizer step on `batch`. A loss or gradient that is not finite leaves the weights as they are.

        With replicas every rank is told the same, metrics over all ranks included, and skips when one has to.
        """
        self.optimizer.zero_grad()
        metrics: dict[str, Metric] = {}
        reason = self._accumulate(batch, loss, metrics)
        if self.replicas is not None:
            reason = self._join(self.replicas, reason, metrics)
        if reason:
            return self._skip(metrics, reason)
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if not math.isfinite(norm):
            return self._skip(metrics, "the gradient is not finite")
        if self.config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, torch.tensor(norm))
        rate = self.learning_rate()
        self.optimizer.step(rate)
        self.step += 1
        return Update({**reduce(metrics), "lr": rate}, norm)

    def _accumulate(self, batch: Batch, loss: Loss, metrics: dict[str, Metric]) -> str:
        """Gradients and metrics of this rank's micro-batches; says what is not finite, or nothing."""
        for micro in micro_batches(batch):
            with self._around("learn", len(micro.tokens_T)):
                reason = self._add(micro, loss, metrics)
            if reason:
                return reason
        return ""

    def _add(self, micro: MicroBatch, loss: Loss, metrics: dict[str, Metric]) -> str:
        """One micro-batch's gradients and metrics; says what kept it from them, or nothing."""
        try:
            total, found = loss(*self.forward(self.module, micro), micro)
        except ValueError as error:
            if not not_finite(error):
                raise
            return "the forward pass is not finite"
        if not math.isfinite(float(total.detach())):
            return "the loss is not finite"
        total.backward()
        merge(metrics, found)
        return ""

    def _join(self, replicas: Replicas, reason: str, metrics: dict[str, Metric]) -> str:
        """Adds the ranks' gradients and metrics up; returns the first rank's reason to skip, if any has one."""
        told = replicas.gather((reason, dict(metrics)))
        metrics.clear()
        for _, found in told:
            merge(metrics, found)
        reason = next((each for each, _ in told if each), "")
        if not reason:
            for p in self.parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            replicas.add_up(p.grad for p in self.parameters if p.grad is not None)
        return reason

    def learning_rate(self) -> float:
        """Linear warm-up over `warmup_steps`, then the schedule down to `min_lr_ratio` at `total_steps`."""
        config = self.config
        if self.step < config.warmup_steps:
            return config.lr * (self.step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return config.lr
        span = max(1, self.total_steps - config.warmup_steps)
        done = min(1.0, (self.step - config.warmup_steps) / span)
        shape = 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * shape)

    def state(self) -> dict[str, torch.Tensor]:
        """All weights and the optimizer's moments by name, for a checkpoint. Tensors are the live ones, not copies."""
        state = {f"weight.{name}": p.detach() for name, p in self.module.named_parameters()}
        for name, p in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state.get(p, {}).items():
                state[f"{key}.{name}"] = value
        state["updates"] = torch.tensor(self.step)
        return state

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restores what `state` returned."""
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.copy_(state[f"weight.{name}"])
        for name, p in zip(self.names, self.parameters, strict=True):
            if f"exp_avg.{name}" in state:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimizer.state[p] = {key: state[f"{key}.{name}"].clone() for key in keys}
        self.step = int(state["updates"])

    def _skip(self, metrics: dict[str, Metric], reason: str) -> Update:
        self.optimizer.zero_grad()
        return Update(reduce(metrics), math.nan, skipped=reason)
