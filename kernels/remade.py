"""Results that are cheap to make again from what an operator keeps anyway: norms, attention's operands, activations.

An operator declares a `Remake` beside its derivative. Whoever watches gets one for each recorded call, and may then
keep the recipe in place of the result, which another operator would save for its own backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor


class Remake(NamedTuple):
    """`results` of a call, in the order in which kernel(*inputs) returns them again, bit for bit."""

    results: tuple[Tensor, ...]
    kernel: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[Any, ...]


Declaration = Callable[[tuple[Any, ...], Any], Remake]  # (inputs, output) of a call
_state = threading.local()


@contextmanager
def watched(watcher: Callable[[Remake], None]) -> Iterator[None]:
    """Within, `watcher` hears of each recorded call of an operator whose results can be made again."""
    before = getattr(_state, "watcher", None)
    _state.watcher = watcher
    try:
        yield
    finally:
        _state.watcher = before


def told(setup_context: Callable[..., None], remake: Declaration) -> Callable[..., None]:
    """An operator's `setup_context` that tells the watcher too."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, output)
        watcher = getattr(_state, "watcher", None)
        if watcher is not None:
            watcher(remake(inputs, output))

    return setup
