"""Tensors in host memory come back with their bits, move once, and are never taken for another at their address."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seedthink.models.stores import HostStore, hooks_into


def test_what_two_operators_keep_is_moved_once_and_comes_back_apart_from_its_source() -> None:
    store, x = HostStore(), torch.arange(6.0).view(2, 3)
    handle = store.put(x)
    assert store.put(x.detach()) is handle
    assert store.put(x.flatten()) is not handle, "another shape"
    back = store.get(handle)
    assert torch.equal(back, x) and back.data_ptr() != x.data_ptr()


def test_a_tensor_that_was_written_to_is_moved_anew() -> None:
    store, x = HostStore(), torch.zeros(4)
    before = store.put(x)
    x.add_(1)
    after = store.put(x)
    assert store.get(before).tolist() == [0.0] * 4 and store.get(after).tolist() == [1.0] * 4


def test_another_tensor_at_the_address_of_a_freed_one_is_moved_anew() -> None:
    store, kept, memory = HostStore(), [], np.empty(64, np.float32)
    for value in range(5):
        memory[:] = value
        x = torch.from_numpy(memory)  # a tensor of its own every time, at one address
        kept.append(store.put(x))
        del x
    assert [float(store.get(handle)[0]) for handle in kept] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_weights_stay_where_they_are_and_what_they_are() -> None:
    pack, unpack = hooks_into(HostStore())
    weight = torch.nn.Parameter(torch.ones(3))
    assert unpack(pack(weight)) is weight
    activation: Tensor = weight * 2
    assert torch.equal(unpack(pack(activation)), activation) and not unpack(pack(activation)).requires_grad
