"""Keeping the experts of a network that learns evenly used: auxiliary losses, the bias of the choice, and the loads.

    begin:     where there is a balance loss, forwards without gradients count the tokens of the whole mini-batch
    backward:  a router's logits get the gradient of the losses added to their own
    step:      bias_e += rate * sign(mean load - load_e)                       (aux-loss-free, arXiv:2408.15664)

The balance loss needs each expert's share of the mini-batch before the first backward (kernels/route.py), and experts
are known only after a forward of everything before them: so that cutting the mini-batch changes nothing, the trunk runs
once more. A row counts once for every sequence that goes through it, so that sharing a prompt changes nothing either;
rows that fill up a run, and sequences in which nothing is predicted, count nowhere. Ranks count their own rows, and
whole numbers and float64 sums are added in the order of the ranks: every rank moves its copy of a bias by equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from seedthink.config.sections import RouterConfig
from seedthink.engine.micro_batch import MicroBatch
from seedthink.errors import ConfigError
from seedthink.kernels.finite import not_finite
from seedthink.kernels.route import Routing, balance_loss, expert_fraction, z_loss
from seedthink.models.config import ModelConfig
from seedthink.models.context import Watch
from seedthink.models.value import ValueModel
from seedthink.types import Batch

if TYPE_CHECKING:
    from seedthink.parallel.mesh import Mesh

UNGUIDED = RouterConfig()


def check_router(router: RouterConfig, model: ModelConfig) -> None:
    """Errors: ConfigError where the settings ask for what the model does not have, before any of it is loaded."""
    for key in ("balance_loss", "z_loss", "bias_update_rate"):
        if getattr(router, key) and not _sparse_layers(model):
            raise ConfigError(f"router.{key} = {getattr(router, key)}: the model has no experts; set it to 0")
    if router.bias_update_rate and not model.router.bias:
        raise ConfigError(
            f"router.bias_update_rate = {router.bias_update_rate}: models of the family {model.family!r} store no bias "
            "of the router, so an export would lose it; set it to 0, and use router.balance_loss instead"
        )


def upwards(counts_E: Tensor) -> Tensor:
    """sign(mean load - load_e) of int64 counts, without rounding: 1 for an expert below the mean, -1 for one above."""
    return torch.sign(counts_E.sum() - len(counts_E) * counts_E)


class RouterBalance:
    """Watches the routers of a policy or critic while it learns; see the module's docstring.

    `mesh`: the ranks that learn together. Each makes one and makes the same calls.
    Errors: as `check_router`.
    """

    def __init__(self, module: Any, router: RouterConfig, mesh: Mesh | None = None) -> None:
        config: ModelConfig = module.config
        check_router(router, config)
        self.config, self._module, self._mesh = router, module, mesh
        trunk = module.trunk if isinstance(module, ValueModel) else module
        self._biases = [p for name, p in trunk.named_parameters() if name.endswith("router_bias_E")]
        self._layers = {layer: at for at, layer in enumerate(_sparse_layers(config))}
        self._score, self._k = config.router.score, config.experts_per_token
        self._counts_LE = torch.zeros(len(self._layers), config.num_experts, dtype=torch.int64)
        self._fraction_LE, self._tokens = torch.zeros_like(self._counts_LE, dtype=torch.float32), 1.0
        self._losses = torch.zeros(2, dtype=torch.float64)  # balance and z, summed over layers, of this rank's rows

    @contextmanager
    def watching(
        self, batch: Batch, micros: Iterable[MicroBatch], forward: Callable[[Any, MicroBatch], None]
    ) -> Iterator[None]:
        """Around the forwards and backwards of a mini-batch; `forward` runs the trunk over each of `micros`."""
        if not self._layers:
            yield
            return
        self._module.watcher = self._watch
        try:
            if self.config.balance_loss:
                self._count(micros, forward)
                self._fraction_LE = torch.stack([expert_fraction(counts_E) for counts_E in self._counts_LE])
            if self.config.balance_loss or self.config.z_loss:
                self._tokens = self._counted_tokens(batch)
            self._counts_LE, self._losses = torch.zeros_like(self._counts_LE), torch.zeros_like(self._losses)
            yield
        finally:
            self._module.watcher = None

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Moves the biases by the loads of the mini-batch, once its step is made; returns its metrics."""
        if not self._layers:
            return {}
        self._counts_LE = self._over_ranks(self._counts_LE)
        load_LE = self._counts_LE / self._counts_LE.double().mean(1, keepdim=True).clamp(min=1e-9)
        found = {
            "router/load_max_over_mean": float(load_LE.max()),
            "router/load_min_over_mean": float(load_LE.min()),
        }
        balance, z = (self._over_ranks(self._losses) / len(self._layers)).tolist()
        if self.config.balance_loss:
            found["router/balance_loss"] = balance
        if self.config.z_loss:
            found["router/z_loss"] = z
        if self._biases:
            self._move()
            found["router/bias_max"] = max(float(bias_E.abs().max()) for bias_E in self._biases)
        return found

    def _move(self) -> None:
        if self.config.bias_update_rate:
            for bias_E, counts_E in zip(self._biases, self._counts_LE, strict=True):
                bias_E += self.config.bias_update_rate * upwards(counts_E).to(bias_E.dtype)

    def _watch(self, times_T: Tensor) -> Watch:
        times_R, mask_T = times_T.repeat_interleave(self._k), times_T.float()

        def note(layer: int, routing: Routing, logits_TE: Tensor) -> None:
            at = self._layers[layer]
            self._counts_LE[at].index_add_(0, routing.ids_TK.flatten(), times_R)
            if logits_TE.requires_grad and (self.config.balance_loss or self.config.z_loss):
                values_TE = logits_TE.detach()
                logits_TE.register_hook(lambda grad_TE: grad_TE + self._gradient(at, values_TE, mask_T))

        return note

    def _gradient(self, at: int, values_TE: Tensor, mask_T: Tensor) -> Tensor:
        """Of the losses of some rows of a layer; their values are added up."""
        with torch.enable_grad():
            logits_TE = values_TE.detach().requires_grad_()
            total = logits_TE.new_zeros(())
            if self.config.balance_loss:
                balance = balance_loss(logits_TE, self._fraction_LE[at], self._tokens, mask_T, score=self._score)
                self._losses[0] += balance.detach()
                total = total + self.config.balance_loss * balance
            if self.config.z_loss:
                z = z_loss(logits_TE, self._tokens, mask_T)
                self._losses[1] += z.detach()
                total = total + self.config.z_loss * z
            (gradient_TE,) = torch.autograd.grad(total, logits_TE)
        return gradient_TE

    @torch.no_grad()
    def _count(self, micros: Iterable[MicroBatch], forward: Callable[[Any, MicroBatch], None]) -> None:
        """Counts of the mini-batch, all ranks included; a forward that is not finite is left to the step to tell."""
        self._counts_LE = torch.zeros_like(self._counts_LE)
        for micro in micros:
            try:
                forward(self._module, micro)
            except ValueError as error:
                if not not_finite(error):
                    raise
        self._counts_LE = self._over_ranks(self._counts_LE)

    def _counted_tokens(self, batch: Batch) -> float:
        """Rows of the mini-batch that count, each as often as it does: all but the last of a sequence; at least 1."""
        lengths_B = np.diff(batch.cu_seqlens)
        predicted_B = np.diff(np.concatenate([[0], np.cumsum(batch.mask_T > 0)])[batch.cu_seqlens])
        mine = int((lengths_B - 1)[predicted_B > 0].sum())
        first = self._mesh is None or self._mesh.plane.index == 0  # the ranks of a data index have the same batch
        return float(max(1, int(self._over_ranks(torch.tensor(mine if first else 0)))))

    def _over_ranks(self, own: Tensor) -> Tensor:
        """The sum over the ranks, in their order."""
        if self._mesh is None:
            return own
        first, *others = self._mesh.world.gather(own)
        for other in others:
            first = first + other
        return first


def _sparse_layers(model: ModelConfig) -> list[int]:
    return [layer for layer in range(model.num_layers) if model.is_sparse(layer)]
