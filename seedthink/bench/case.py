"""What a benchmark is made of: an operation at one shape and dtype, with its least work, its check and its sides.

A case is cheap to make and to list. `prepare` draws the inputs and returns the sides: our implementations and those of
other libraries, each behind a function that sets it up (packs a weight, compiles) outside the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Outputs = tuple[Tensor | None, ...]  # None: this implementation does not compute that output
Run = Callable[[], Outputs]
Maker = Callable[[], Run]
Place = dict[str, int | str]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ITEM_SIZE = {"float32": 4, "bfloat16": 2}


class Missing(Exception):
    """Why an implementation cannot run here: its package, its device or its dtype is missing."""


@dataclass(frozen=True, slots=True)
class Work:
    """The least that an operation must move and compute: the formulas of docs/kernels.md, "Measuring"."""

    bytes: float
    flops: float = 0.0
    rate: str = "float32"  # dtype whose matmul rate bounds the FLOPs


@dataclass(frozen=True, slots=True)
class Draw:
    """Random inputs on a device, the same for the same seed. Never zeros: they run faster and hide mistakes."""

    device: torch.device
    seed: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, std: float = 1.0) -> Tensor:
        """Normal numbers around zero."""
        made = torch.empty(shape).normal_(std=std, generator=self.generator)
        return made.to(self.device, dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Whole numbers in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator).to(self.device, dtype)

    def order(self, count: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """The numbers 0 .. count - 1, shuffled."""
        return torch.randperm(count, generator=self.generator).to(self.device, dtype)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The sides of a case on inputs that are drawn. `error`: the largest of a side's outputs against float64."""

    ours: Mapping[str, Maker]
    peers: Mapping[str, Maker]
    error: Callable[[Outputs], float]
    tolerance: float


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one shape and dtype."""

    op: str
    shape: Mapping[str, int | str]
    dtype: str
    work: Work
    prepare: Callable[[Draw], Prepared]
    memory: float = 0.0  # bytes of the largest operands, where they may not fit

    @property
    def place(self) -> str:
        """The shape as the command line takes it: "T=4096,D=2048"."""
        return ",".join(f"{name}={size}" for name, size in self.shape.items())


def row_dtypes(device: str) -> tuple[str, ...]:
    """What the rows of our kernels may be: float32 on a CPU, which rounds inside a product where it is asked to."""
    return ("float32",) if device == "cpu" else ("float32", "bfloat16")


def against(reference: Callable[[], Outputs], rows: int | None = None) -> Callable[[Outputs], float]:
    """The largest difference from `reference`, each output's relative to the largest value of its reference.

    Whole numbers count as exact or not: any difference is infinite, and so is NaN. rows: only the first ones of each
    output are compared, where a full float64 reference would take longer than the benchmark.
    """
    known: list[Outputs] = []

    def error(outputs: Outputs) -> float:
        if not known:
            known.append(reference())
        if len(outputs) != len(known[0]):
            raise ValueError(f"outputs: expected {len(known[0])}, got {len(outputs)}")
        return max(
            (
                _difference(made.detach()[:rows].cpu(), wanted[:rows].cpu())
                for made, wanted in zip(outputs, known[0], strict=True)
                if made is not None and wanted is not None
            ),
            default=float("inf"),
        )

    return error


def _difference(made: Tensor, wanted: Tensor) -> float:
    if made.shape != wanted.shape:
        return float("inf")
    if not made.is_floating_point():
        return 0.0 if torch.equal(made.long(), wanted.long()) else float("inf")
    if not wanted.numel():
        return 0.0
    error = (made.double() - wanted.double()).abs().max().item() / max(wanted.abs().max().item(), 1e-30)
    return error if error == error else float("inf")
