"""Packed weights, cached per tensor: panels of 64 columns over the whole reduction (csrc/linear/linear.h).

A pack belongs to one version of a weight: torch counts in-place writes (`copy_`, `add_`), and the next use packs anew.
Writes that it does not count (through `.data`, a raw pointer, or by torch's fused optimizers) must be followed by
`torch.autograd.graph.increment_version(weight)` or `forget(weight)`. Packs die with their tensor.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seedthink import _C

PANEL = 64


@dataclass(slots=True)
class _Packs:
    owner: weakref.ref[Tensor]
    version: int
    address: int
    panels: dict[tuple[torch.dtype, bool], Tensor] = field(default_factory=dict)

    def fits(self, weight: Tensor) -> bool:
        return self.version == weight._version and self.address == weight.data_ptr() and self.owner() is weight


_cache: dict[int, _Packs] = {}


def panels_of(weight: Tensor, compute: torch.dtype, transposed: bool = False, name: str = "weight") -> Tensor:
    """The panels of weight [N, K] or of a stack [E, N, K], packed now or at an earlier use of the same version.

    compute: float32 gives [E, P, K, 64], bfloat16 gives pairs [E, P, ceil(K / 2), 64, 2]. transposed: panels of W^T.
    Treat them as read-only. Raises ValueError for a weight that is not dense float32 on the CPU, calling it `name`.
    """
    if weight.is_inference():  # torch keeps no version of such a tensor, so a pack of it could be stale
        return pack(weight, compute, transposed, name)
    found = _packs(weight).panels.get((compute, transposed))
    if found is None:
        found = _packs(weight).panels[compute, transposed] = pack(weight, compute, transposed, name)
    return found


def rounded(weight: Tensor, compute: torch.dtype) -> Tensor:
    """The weight as a product on a device reads it: itself, or a copy in `compute` made once per version. Read-only."""
    if weight.dtype == compute:
        return weight.detach()
    if weight.is_inference():
        return weight.to(compute)
    found = _packs(weight).panels.get((compute, False))
    if found is None:
        found = _packs(weight).panels[compute, False] = weight.detach().to(compute)
    return found


def _packs(weight: Tensor) -> _Packs:
    """The packs of this version of a weight, perhaps none yet."""
    entry = _cache.get(id(weight))
    if entry is None or not entry.fits(weight):
        slot = id(weight)
        owner = weakref.ref(weight, lambda dead: _drop(slot, dead))
        entry = _cache[slot] = _Packs(owner, weight._version, weight.data_ptr())
    return entry


def kept_panels(weight: Tensor, compute: torch.dtype, transposed: bool = False) -> Tensor | None:
    """The panels that an earlier `panels_of` made of this version of the weight, if it did."""
    entry = None if weight.is_inference() else _cache.get(id(weight))
    return entry.panels.get((compute, transposed)) if entry is not None and entry.fits(weight) else None


def forget(weight: Tensor) -> None:
    """Drop the packs of a weight: after writing to it behind torch's back, or to free their memory."""
    _cache.pop(id(weight), None)


def kept_bytes() -> int:
    """Of all packs that are kept, also of those that the next use of their weight replaces."""
    return sum(panels.nbytes for entry in _cache.values() for panels in entry.panels.values())


def _drop(slot: int, dead: weakref.ref[Tensor]) -> None:
    entry = _cache.get(slot)
    if entry is not None and entry.owner is dead:
        del _cache[slot]


def pack(
    weight: Tensor,
    compute: torch.dtype,
    transposed: bool = False,
    name: str = "weight",
    memory: Tensor | None = None,
) -> Tensor:
    """Panels as `panels_of` gives them, made now and kept nowhere: for a part of a weight that is used once.

    They lie at the front of `memory` (flat, of dtype `compute`) where it is given; see `pack_memory`.
    """
    if weight.dim() not in (2, 3):
        raise ValueError(f"{name}: expected 2 or 3 dimensions, got {weight.dim()}")
    if weight.dtype != torch.float32 or not weight.is_cpu or not weight.is_contiguous():
        place = f"{weight.dtype}, {weight.device}, strides {weight.stride()}"
        raise ValueError(f"{name}: expected contiguous torch.float32 on the CPU, got {place}")
    stack = weight.detach() if weight.dim() == 3 else weight.detach().unsqueeze(0)
    count, rows, columns = stack.shape
    if transposed:
        rows, columns = columns, rows
    width = -(-rows // PANEL)
    if compute == torch.float32:
        shape = [count, width, columns, PANEL]
    elif compute == torch.bfloat16:
        shape = [count, width, -(-columns // 2), PANEL, 2]
    else:
        raise ValueError(f"compute: {compute} is not one of torch.float32, torch.bfloat16")
    panels = torch.empty(shape, dtype=compute) if memory is None else memory[: math.prod(shape)].view(shape)
    _C.pack_panels(stack, transposed, panels)
    return panels


def pack_memory(rows: int, columns: int, compute: torch.dtype) -> Tensor:
    """Room for a pack of a weight [rows, columns], in either orientation."""
    return torch.empty(-(-rows // PANEL) * -(-columns // PANEL) * PANEL**2, dtype=compute)
