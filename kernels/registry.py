"""Declares torch operators of the namespace `seedthink`: schema, CPU kernel, shape function and derivative in one call.

Every operator stands in torch's dispatcher (`torch.library.Library` define / impl / fake / autograd): torch.compile,
export and dispatch modes see it. A plain eager call on the CPU goes around the dispatcher, which costs more than a
small kernel: straight to the kernel, or to an `autograd.Function` of the same parts when a gradient is recorded.
A kernel returns fresh tensors that alias none of its arguments (opcheck verifies it).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from seedthink.errors import DeviceError
from seedthink.kernels.remade import Declaration, told

LIBRARY = torch.library.Library("seedthink", "DEF")


class Operator:
    """One operator: call it with positional arguments, the first one a tensor. `overload` is the dispatcher's entry."""

    def __init__(self, overload: Callable[..., Any], cpu: Callable[..., Any], record: Callable[..., Any]) -> None:
        self.overload, self._cpu, self._record = overload, cpu, record

    def __call__(self, *args: Any) -> Any:
        """Run it; differentiable where the operator has a derivative."""
        if traced(args[0]):
            return self.overload(*args)
        if torch.is_grad_enabled():
            for value in args:
                if isinstance(value, Tensor) and value.requires_grad:
                    return self._record(*args)
        return self._cpu(*args)


def define(
    schema: str,
    *,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    remake: Declaration | None = None,
) -> Operator:
    """Register one operator and return it.

    schema: "name(Tensor x, int k) -> (Tensor, Tensor)" in torch's schema language.
    cpu, cuda: the kernels (`from_triton` for one of kernels/triton). fake: the same signature, returns empty outputs of
    the right shape and dtype.
    backward(ctx, *grads), setup_context(ctx, inputs, output): as `torch.library.register_autograd` takes them. Without
    them a gradient that reaches the operator raises RuntimeError.
    remake: which results can be made again cheaply from what is kept anyway (`kernels.remade`).
    """
    if remake is not None and setup_context is not None:
        setup_context = told(setup_context, remake)
    name = schema.split("(", 1)[0].strip()
    derivative = backward or _refuse(name)
    LIBRARY.define(schema)
    LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"seedthink::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"seedthink::{name}", derivative, setup_context=setup_context, lib=LIBRARY)
    overload = getattr(torch.ops.seedthink, name).default
    return Operator(overload, cpu, _recorder(name, cpu, derivative, setup_context))


def from_triton(module: str, function: str) -> Callable[..., Any]:
    """`function` of kernels/triton/<module>.py, for `cuda=`. It is loaded at its first call: Triton is slow to import.

    It runs on the device of its first argument. DeviceError at the first call where Triton is not installed.
    """

    def call(*args: Any) -> Any:
        try:
            loaded = import_module(f"seedthink.kernels.triton.{module}")
        except ImportError as error:
            raise DeviceError(f"{module}: its CUDA kernels need Triton, which does not load ({error})") from error
        with torch.cuda.device(args[0].device):
            return getattr(loaded, function)(*args)

    return call


def traced(first: Tensor) -> bool:
    """Whether a call with this first argument belongs to the dispatcher: not plain eager work on the CPU."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return type(first) not in (Tensor, Parameter) or not first.is_cpu


def wants_operator(*tensors: Tensor) -> bool:
    """Whether a call must go through its Operator: it is traced, or a gradient is recorded."""
    return traced(tensors[0]) or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def _recorder(
    name: str, cpu: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> Callable[..., Any]:
    def forward(ctx: Any, *args: Any) -> Any:
        output = cpu(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), parts)
    record: Callable[..., Any] = function.apply
    return record


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"seedthink::{name} has no derivative; detach its inputs, or call the operation it belongs to"
        )

    return refuse
