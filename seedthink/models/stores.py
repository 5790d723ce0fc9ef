"""Where the tensors stand that a backward will want: on their device, or in the host's memory meanwhile.

Host memory is pinned, so that the copies run in the device's stream without a wait. What is kept twice (two operators
read it) is moved once. Weights stay where they are: they are kept anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Store(Protocol):
    """Keeps tensors for later."""

    def put(self, x: Tensor) -> Any:
        """A handle of `x`, which is not written to meanwhile."""
        ...

    def get(self, handle: Any) -> Tensor:
        """The tensor with its bits, on its device."""
        ...


class DeviceStore:
    """Keeps a tensor as it is, without the graph that made it."""

    def put(self, x: Tensor) -> Tensor:
        """Itself."""
        return x.detach()

    def get(self, handle: Tensor) -> Tensor:
        """Itself."""
        return handle


class _Moved:
    """A tensor in host memory, and the storage that it came from."""

    def __init__(self, x: Tensor) -> None:
        self.device, self.version = x.device, x._version
        self._storage = StorageWeakRef(x.untyped_storage())
        self.host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        self.host.copy_(x, non_blocking=True)

    def holds(self, x: Tensor) -> bool:
        """Whether its source is still there unchanged: another tensor may stand at its address by now."""
        return not self._storage.expired() and self.version == x._version


class HostStore:
    """Keeps tensors in host memory."""

    def __init__(self) -> None:
        self._moved: WeakValueDictionary[tuple[Any, ...], _Moved] = WeakValueDictionary()

    @torch.no_grad()
    def put(self, x: Tensor) -> _Moved:
        """A copy of `x`, or the copy that is there."""
        key = (x.device, x.data_ptr(), x.dtype, x.shape, x.stride())
        moved = self._moved.get(key)
        if moved is None or not moved.holds(x):
            moved = self._moved[key] = _Moved(x)
        return moved

    def get(self, handle: _Moved) -> Tensor:
        """A copy of the copy."""
        return handle.host.to(handle.device, non_blocking=True, copy=True)


def is_weight(x: Tensor) -> bool:
    """Whether `x` is kept anyway, and known to others by its identity (`kernels.packing`)."""
    return x.is_leaf and x.requires_grad


class _Weight:
    """A saved weight, told from the handles of a store."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


def hooks_into(store: Store) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """The two halves of a `saved_tensors_hooks` that keeps what operators save for their backward in `store`."""

    def pack(x: Tensor) -> Any:
        return _Weight(x) if is_weight(x) else store.put(x)

    def unpack(kept: Any) -> Tensor:
        return kept.weight if isinstance(kept, _Weight) else store.get(kept)

    return pack, unpack
