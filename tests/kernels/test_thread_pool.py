"""The native thread pool: callers from several Python threads, and a child after a fork."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from seedthink import _C
from seedthink.kernels.linear import linear


@pytest.fixture
def two_threads():
    """Two pool threads for the test, then as many as before."""
    before = _C.threads()
    _C.set_threads(2)
    yield
    _C.set_threads(before)


def test_callers_in_several_threads_get_their_own_results(two_threads: None) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(200, 64, generator=draw) for _ in range(3)]
    weight = torch.randn(192, 64, generator=draw)
    expected = [linear(x, weight) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        for _ in range(100):
            if not torch.equal(linear(inputs[i], weight), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_a_forked_child_computes_with_a_pool_of_its_own(two_threads: None) -> None:
    x, weight = torch.ones(300, 64), torch.ones(256, 64)
    assert linear(x, weight).eq(64).all()
    child = os.fork()
    if child == 0:
        y = torch.empty(300, 256)  # no torch arithmetic here: its own threads do not survive a fork
        panels = torch.empty(1, 4, 64, 64)
        _C.pack_panels(weight.unsqueeze(0), False, panels)
        _C.linear_forward(x, panels, y)
        os._exit(0 if set(y.flatten().tolist()) == {64.0} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_number_of_threads_is_what_was_set(two_threads: None) -> None:
    _C.set_threads(3)
    assert _C.threads() == 3
    _C.set_threads(0)
    assert _C.threads() == 1
