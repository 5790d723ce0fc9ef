"""Fully sharded data parallelism: ranks along dp_shard (and cp) share one copy of weights, gradients and optimizer.

    a block's forward:  gather its weights; compute; let them go
    its backward:       gather again; compute; sum the gradients to their owners; let go
    what is outside of blocks (embedding, head, norms) is there for all micro-batches of a step

(ZeRO stage 3, arXiv:1910.02054; PyTorch FSDP, arXiv:2304.11277.) Experts are shared by the ranks that hold the same
ones. Gradients are summed in the order of the ranks, and the optimizer works on plain tensors. torch's `fully_shard`
sums in an order that depends on the element, hands out DTensors outside of a module's forward, where generation reads
weights, and does not know when packed weights must go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from seedthink.parallel.cut import Cut, Pieces
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.strips import Strips


class Storage:
    """Where a module's parameters live: `held` names what this rank keeps of each, here the parameters themselves."""

    sharded = False

    def __init__(self, module: nn.Module) -> None:
        self.held: dict[str, Tensor] = dict(module.named_parameters())

    def using(self, gradients: bool = False) -> AbstractContextManager[None]:
        """Around the forwards of a step, and with `gradients` its backwards, which are done when it ends."""
        return nullcontext()

    def hold(self) -> None:
        """Have all weights here until `let_go`, for many forwards without gradients."""

    def let_go(self) -> None:
        """Keep no more than `held`; comes before `held` is written."""

    def own(self, name: str, part: Tensor) -> Tensor:
        """What this rank keeps of a tensor that is shaped like the parameter `name`."""
        return part

    def join(self, name: str, held: Tensor) -> Tensor:
        """Undoes `own`, together with the ranks that keep the rest."""
        return held

    def cut(self, name: str, cut: Cut) -> Pieces:
        """What is held of the pieces of the parameter `name`, of which `cut` tells the rows that are here."""
        return cut


class ShardedStorage(Storage):
    """Parameters that learn are held as strips. What does not learn stays whole."""

    sharded = True

    def __init__(self, module: nn.Module, blocks: Iterable[nn.Module], cuts: Mapping[str, Cut], mesh: Mesh) -> None:
        """Every rank makes one of a module with values; from now on they are there while they are used.

        blocks: the modules whose weights come and go together, each used by calling it. cuts: of every parameter.
        """
        super().__init__(module)
        self._strips: dict[str, tuple[Strips, int]] = {}
        names = {p: name for name, p in module.named_parameters() if p.requires_grad}
        self._units = [
            self._unit({p: names.pop(p) for p in block.parameters() if p in names}, cuts, mesh) for block in blocks
        ]
        for block, unit in zip(blocks, self._units, strict=True):
            block.register_forward_pre_hook(unit.before_forward)
            block.register_forward_hook(unit.after_forward)
        self._root = self._unit(names, cuts, mesh)
        self._units.append(self._root)

    def _unit(self, names: Mapping[nn.Parameter, str], cuts: Mapping[str, Cut], mesh: Mesh) -> Unit:
        """The unit of some parameters: experts are shared by other ranks than the rest."""
        found = []
        for experts in (False, True):
            members = {p: name for p, name in names.items() if cuts[name].experts is experts}
            if members:
                strips = Strips(list(members), mesh.strips(experts))
                self._strips |= {name: (strips, at) for at, name in enumerate(members.values())}
                self.held |= dict(zip(members.values(), strips.held, strict=True))
                found.append(strips)
        return Unit(found)

    @contextmanager
    def using(self, gradients: bool = False) -> Iterator[None]:
        """As of Storage: what stands outside of blocks is here for the whole step."""
        self._root.gather()
        try:
            yield
            if gradients:
                self._root.reduce()
        finally:
            for unit in self._units:
                unit.release()

    def hold(self) -> None:
        """As of Storage; every rank asks alike."""
        for unit in self._units:
            unit.gather()
            unit.kept = True

    def let_go(self) -> None:
        """As of Storage."""
        for unit in self._units:
            unit.kept = False
            unit.release()

    def own(self, name: str, part: Tensor) -> Tensor:
        """As of Storage: a copy."""
        strips, at = self._strips.get(name, (None, 0))
        return part if strips is None else strips.own(at, part)

    def join(self, name: str, held: Tensor) -> Tensor:
        """As of Storage."""
        strips, at = self._strips.get(name, (None, 0))
        return held if strips is None else strips.join(at, held)

    def cut(self, name: str, cut: Cut) -> Pieces:
        """As of Storage, of parameters that learn."""
        strips, at = self._strips[name]
        return strips.cut(at, cut)


class Unit:
    """Parameters that are gathered together: those of a block, or all that stand outside of blocks."""

    def __init__(self, strips: list[Strips]) -> None:
        self._strips = strips
        self._here = self._in_backward = False
        self.kept = False

    def gather(self) -> None:
        """Have the values here."""
        if not self._here:
            for strips in self._strips:
                strips.gather()
        self._here = True

    def release(self) -> None:
        """Give their memory back, unless they are to be kept."""
        self._in_backward = False
        if self._here and not self.kept:
            for strips in self._strips:
                strips.release()
            self._here = False

    def reduce(self) -> None:
        """Hand the gradients to the strips."""
        for strips in self._strips:
            strips.reduce()

    def before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook. Gradients of the inputs are the last thing that a block's backward computes."""
        self.gather()
        return _then(self._after_backward, args)

    def after_forward(self, module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook. A forward that is repeated within the backward leaves the values to it."""
        if not self._in_backward:
            self.release()
        return _then(self._before_backward, output)

    def _before_backward(self) -> None:
        self.gather()
        self._in_backward = True

    def _after_backward(self) -> None:
        self.reduce()
        self.release()


def _then(call: Callable[[], None], values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values; when all their gradients have come in a backward, `call` is made before they go on."""
    chosen = [at for at, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    if not chosen or not torch.is_grad_enabled():
        return values
    found = list(values)
    for at, value in zip(chosen, _Then.apply(call, *(values[at] for at in chosen)), strict=True):  # type: ignore[no-untyped-call]
        found[at] = value
    return tuple(found)


class _Then(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Callable[[], None], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call()
        return None, *grads


def storage_of(module: nn.Module, blocks: Iterable[nn.Module], cuts: Mapping[str, Cut], mesh: Mesh | None) -> Storage:
    """How a module is kept under a layout: in strips where ranks share one copy."""
    if mesh is None or not mesh.sharded:
        return Storage(module)
    return ShardedStorage(module, blocks, cuts, mesh)
