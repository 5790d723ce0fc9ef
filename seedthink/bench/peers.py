"""Sides that are not ours: a formula in torch, eagerly and compiled, and packages that may not be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seedthink.bench.case import Maker, Missing, Outputs, Run

Formula = Callable[..., Any]  # of tensors, returning a tensor or several


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Turns an import that fails into the reason why a peer is left out."""
    try:
        yield
    except ImportError as error:
        raise Missing(f"{package} cannot be imported ({error})") from error


def of_torch(formula: Formula, *inputs: Any) -> dict[str, Maker]:
    """A formula as torch runs it eagerly, and as inductor compiles it for just these shapes."""
    return {
        "eager": lambda: partial(as_outputs, formula, *inputs),
        "compile": lambda: partial(as_outputs, compiled(formula), *inputs),
    }


def of_torch_trained(formula: Formula, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[str, Maker]:
    """The same with the gradients of its tensors: see `trained`."""
    return {
        "eager": lambda: trained(formula, leaves, grads),
        "compile": lambda: trained(compiled(formula), leaves, grads),
    }


def compiled(formula: Formula) -> Formula:
    """`formula` through inductor. Earlier ones are forgotten: after a few of one function torch falls back to eager."""
    torch.compiler.reset()
    return torch.compile(formula, dynamic=False)


def trained(formula: Formula, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> Run:
    """Forward and backward of `formula(*leaves)`, to the leaves' gradients. grads: one per output of the formula."""
    own = [leaf.detach().requires_grad_() for leaf in leaves]  # the same memory

    def run() -> Outputs:
        with torch.enable_grad():
            made = formula(*own)
            return torch.autograd.grad([made] if isinstance(made, Tensor) else made, own, grads)

    return run


def as_outputs(formula: Formula, *inputs: Any) -> Outputs:
    """What a formula returns, as a tuple."""
    made = formula(*inputs)
    return (made,) if isinstance(made, Tensor) else tuple(made)


def in_float64(formula: Formula, *inputs: Tensor) -> Callable[[], Outputs]:
    """The formula on the CPU in float64, as a reference; tensors of whole numbers stay what they are."""

    def reference() -> Outputs:
        return as_outputs(formula, *(_widened(each) for each in inputs))

    return reference


def gradients_in_float64(formula: Formula, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> Callable[[], Outputs]:
    """The leaves' gradients on the CPU in float64, as a reference."""

    def reference() -> Outputs:
        return trained(formula, [_widened(leaf) for leaf in leaves], [_widened(grad) for grad in grads])()

    return reference


def _widened(x: Tensor) -> Tensor:
    return x.detach().cpu().double() if x.is_floating_point() else x.detach().cpu()
