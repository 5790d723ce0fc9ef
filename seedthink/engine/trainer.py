"""One network that learns: forward, loss and backward over micro-batches, then one optimizer step.

    for micro in batch: loss(forward(module, micro), micro).backward()
    clip; step (skipped where the gradient is not finite)

The loss divides by global counts that the batch carries, so that the gradient does not depend on how the batch is cut;
the gradients of data-parallel ranks are therefore added up, and never averaged. Ranks that share the module meet within
each micro-batch, so all of them go through the same number of them, and none leaves early.
The trainer knows neither rewards nor algorithms: the loss arrives as a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seedthink.autotune.steps import Around, untuned
from seedthink.config.sections import MemoryConfig, OptimizerConfig, RouterConfig
from seedthink.engine.adamw import AdamW
from seedthink.engine.diverged import diverged
from seedthink.engine.keeping import KEEP_ALL, keeping_of
from seedthink.engine.micro_batch import MicroBatch, empty_micro_batch, micro_batches
from seedthink.engine.router_balance import UNGUIDED, RouterBalance
from seedthink.engine.rows import Rows
from seedthink.engine.streamed_adamw import StreamedAdamW
from seedthink.kernels.finite import not_finite
from seedthink.models.context import Context, PackedContext
from seedthink.models.cuts import cuts_of
from seedthink.models.decoder import Transformer
from seedthink.models.sharded_context import sharded
from seedthink.models.value import ValueModel
from seedthink.parallel.assembly import Assembly
from seedthink.parallel.cut import Cut
from seedthink.parallel.fsdp import Storage, storage_of
from seedthink.parallel.gradients import SharedGradients
from seedthink.telemetry.metrics import Metric, merge, reduce
from seedthink.types import Batch, Update

if TYPE_CHECKING:
    from seedthink.parallel.mesh import Mesh
    from seedthink.parallel.runs import EveryRow, Run

Outputs = tuple[torch.Tensor, ...]
Forward = Callable[[Any, MicroBatch], Outputs]
Loss = Callable[..., tuple[torch.Tensor, Mapping[str, Metric]]]


def policy_forward(model: Transformer, batch: MicroBatch, temperature: float = 1.0) -> Outputs:
    """(logprob_T, entropy_T) of the predicted tokens, zeros elsewhere."""
    rows = batch.rows()
    run = model.shards.run(len(rows.tokens_U))
    hidden_UD = model(run.own(rows.tokens_U), context_of(model, rows, run))
    targets_R = batch.tokens_T.index_select(0, batch.predicted_R)
    logprob_R, entropy_R = model.logprobs(hidden_UD, run.choose(rows.source_R), targets_R, temperature)
    return batch.scatter(logprob_R), batch.scatter(entropy_R)


def value_forward(model: ValueModel, batch: MicroBatch) -> Outputs:
    """(value_T,): the critic's value of the state before each predicted token, zeros elsewhere."""
    rows = batch.rows()
    run = model.shards.run(len(rows.tokens_U))
    value_U = model(run.own(rows.tokens_U), context_of(model, rows, run))
    wanted = run.choose(rows.source_R)
    (value_R,) = wanted.share(value_U.index_select(0, wanted.rows))
    return (batch.scatter(value_R),)


def routing_forward(model: Transformer | ValueModel, batch: MicroBatch) -> None:
    """The forward without its head, for whoever watches the routing."""
    rows = batch.rows()
    run = model.shards.run(len(rows.tokens_U))
    trunk = model.trunk if isinstance(model, ValueModel) else model
    trunk(run.own(rows.tokens_U), context_of(model, rows, run))


def context_of(model: Transformer | ValueModel, rows: Rows, run: EveryRow | Run) -> Context:
    """How a network's rows stand to each other, and which of them are here."""
    watch = None if model.watcher is None else model.watcher(run.own(rows.times_U))
    context = PackedContext(rows.cu_seqlens_S1, model.compute, model.config.attention_scale, rows.prefix_S, watch)
    return sharded(context, run, model.shards, model.compute)


@torch.no_grad()
def forward_only(
    module: torch.nn.Module, forward: Forward, batch: Batch, mesh: Mesh | None = None, storage: Storage | None = None
) -> np.ndarray:
    """The forward's first output over the whole batch, float32 [T], without gradients. RunError where it diverged.

    storage: the module's, where it has one.
    """
    try:
        with nullcontext() if storage is None else storage.using():
            outputs = [forward(module, micro)[0].numpy() for micro in _equally_many(batch, mesh)]
        if mesh is not None and mesh.together and not all(np.isfinite(output).all() for output in outputs):
            raise diverged(ValueError("an output holds NaN or infinity"))
    except ValueError as error:
        if not not_finite(error):
            raise
        raise diverged(error) from error
    return np.concatenate(outputs) if outputs else np.zeros(0, np.float32)


def _equally_many(batch: Batch, mesh: Mesh | None) -> Iterator[MicroBatch]:
    """The batch's micro-batches; where ranks meet in them, empty ones up to the number of the rank that has most."""
    missing = 0
    if mesh is not None and mesh.together:
        count = len(np.unique(batch.micro_B))
        missing = mesh.learning.most([count])[0] - count  # asked before the first: ranks meet in each of them
    yield from micro_batches(batch)
    yield from (empty_micro_batch(batch) for _ in range(missing))


class Trainer:
    """A module, its optimizer and its learning-rate schedule. `step` counts the updates made, skipped ones left out.

    `mesh`: the ranks that learn together, holding copies or parts of the module; None for one rank alone.
    `around` is entered for each micro-batch, where the kernels' launch settings are chosen. `memory` says what is
    kept, and where; `router` how experts are kept evenly used. ConfigError where they ask for what the module or its
    device does not have.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        forward: Forward,
        config: OptimizerConfig,
        total_steps: int,
        mesh: Mesh | None = None,
        around: Around = untuned,
        memory: MemoryConfig = KEEP_ALL,
        router: RouterConfig = UNGUIDED,
    ) -> None:
        self.module, self.config, self.total_steps, self.mesh = module, config, total_steps, mesh
        self.forward, self._around = forward, around
        self.step = 0
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.storage = module_storage(module, mesh)
        self.parameters = [self.storage.held[name] for name in self.names]
        trunk: Any = module.trunk if isinstance(module, ValueModel) else module
        trunk.keeping = keeping_of(memory, self.parameters[0].device)
        self.optimizer = (StreamedAdamW if memory.offload_optimizer else AdamW)(self.parameters, config)
        self.balance = RouterBalance(module, router, mesh)
        self._shared = None if mesh is None else _shared_gradients(module, self.names, self.storage, mesh)
        self._assembly = _assembly(module, mesh) if mesh is not None and mesh.entangled else None

    def learn(self, batch: Batch, loss: Loss) -> Update:
        """One optimizer step on `batch`. A loss or gradient that is not finite leaves the weights as they are.

        Of several ranks every one is told the same, metrics over all ranks included, and skips when one has to.
        """
        self.optimizer.zero_grad()
        self.storage.let_go()
        metrics: dict[str, Metric] = {}
        watching = self.balance.watching(batch, _equally_many(batch, self.mesh), routing_forward)
        with self.storage.using(gradients=True), watching:
            reason = self._accumulate(batch, loss, metrics)
        if self.mesh is not None:
            reason = self._join(self.mesh, reason, metrics)
        if reason:
            return self._skip(metrics, reason)
        norm = self._norm()
        if not math.isfinite(norm):
            return self._skip(metrics, "the gradient is not finite")
        if self.config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, torch.tensor(norm))
        rate = self.learning_rate()
        self.optimizer.step(rate)
        self.step += 1
        return Update({**reduce(metrics), **self.balance.step(), "lr": rate}, norm)

    def forward_only(self, batch: Batch) -> np.ndarray:
        """`forward_only` of the module."""
        return forward_only(self.module, self.forward, batch, self.mesh, self.storage)

    def _accumulate(self, batch: Batch, loss: Loss, metrics: dict[str, Metric]) -> str:
        """Gradients and metrics of this rank's micro-batches; says what is not finite, or nothing."""
        first = ""
        together = self.mesh is not None and self.mesh.together
        for micro in _equally_many(batch, self.mesh):
            with self._around("learn", len(micro.tokens_T)):
                reason = self._add(micro, loss, metrics, together)
            first = first or reason
            if reason and not together:
                break
        return first

    def _add(self, micro: MicroBatch, loss: Loss, metrics: dict[str, Metric], together: bool) -> str:
        """One micro-batch's gradients and metrics; says what kept it from them, or nothing.

        together: other ranks wait for this one's backward, whatever it is about.
        """
        try:
            outputs = self.forward(self.module, micro)
        except ValueError as error:
            if not not_finite(error):
                raise
            return "the forward pass is not finite"
        if not len(micro.tokens_T):
            torch.stack([output.sum() for output in outputs]).sum().backward()
            return ""
        total, found = loss(*outputs, micro)
        finite = math.isfinite(float(total.detach()))
        if finite or together:
            total.backward()
        if not finite:
            return "the loss is not finite"
        merge(metrics, found)
        return ""

    def _join(self, mesh: Mesh, reason: str, metrics: dict[str, Metric]) -> str:
        """Adds the ranks' gradients and metrics up; returns the first rank's reason to skip, if any has one."""
        told = mesh.world.tell((reason, dict(metrics)))
        metrics.clear()
        for _, found in told[:: mesh.plane.size]:  # the ranks of a data index found the same
            merge(metrics, found)
        reason = next((each for each, _ in told if each), "")
        if not reason and self._shared is not None:
            for p in self.parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self._shared.add_up(self._gradients())
        return reason

    def _gradients(self) -> list[torch.Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _norm(self) -> float:
        """Of the whole gradient, once it is added up."""
        if self._shared is not None:
            return self._shared.norm(self._gradients())
        return float(torch.nn.utils.get_total_norm(self._gradients()))

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
        """All weights and the optimizer's moments by name, for a checkpoint. Tensors are the live ones, not copies.

        Where ranks share the module all of them ask: rank 0 gets whole tensors, the others their parts.
        """
        state = {f"weight.{name}": weight for name, weight in self.weights().items()}
        for name, p in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state.get(p, {}).items():
                state[f"{key}.{name}"] = self._whole(name, value) if value.ndim else value
        state["updates"] = torch.tensor(self.step)
        return state

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights of `state`, by name, also those that do not learn."""
        return {name: self._whole(name, held.detach()) for name, held in self.storage.held.items()}

    def _whole(self, name: str, held: torch.Tensor) -> torch.Tensor:
        whole = self.storage.join(name, held)
        if self._assembly is not None:
            whole = self._assembly.whole(name, whole)
        return whole if self.mesh is None or self.mesh.rank == 0 else held

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restores what `state` returned, wherever: every rank takes its parts of whole tensors."""
        cuts = _cuts(self.module)
        self.storage.let_go()

        def mine(key: str, name: str) -> torch.Tensor:
            return self.storage.own(name, cuts[name].of(state[f"{key}.{name}"]))

        with torch.no_grad():
            for name, held in self.storage.held.items():
                held.copy_(mine("weight", name))
        for name, p in zip(self.names, self.parameters, strict=True):
            if f"exp_avg.{name}" in state:
                moments = {key: mine(key, name).clone() for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.restore(p, {"step": state[f"step.{name}"].clone(), **moments})
        self.step = int(state["updates"])

    def _skip(self, metrics: dict[str, Metric], reason: str) -> Update:
        self.optimizer.zero_grad()
        return Update(reduce(metrics), math.nan, skipped=reason)


def _cuts(module: Any) -> dict[str, Cut]:
    """Which rows of each parameter are here."""
    return cuts_of(module, module.config, module.shards.seat)


def module_storage(module: Any, mesh: Mesh | None) -> Storage:
    """How the ranks of a mesh keep a policy or critic."""
    trunk = module.trunk if isinstance(module, ValueModel) else module
    return storage_of(module, trunk.blocks, _cuts(module), mesh)


def _shared_gradients(module: Any, names: list[str], storage: Storage, mesh: Mesh) -> SharedGradients:
    cuts = _cuts(module)
    return SharedGradients(mesh, [storage.cut(name, cuts[name]) for name in names], storage.sharded)


def _assembly(module: Any, mesh: Mesh) -> Assembly:
    return Assembly(mesh, partial(cuts_of, module, module.config))
