"""Choices that a second forward takes over from the first instead of making them again.

A choice is discrete (which experts a token goes to), so the smallest difference would move whole rows. Operators that
choose are wrapped in `decided`; a `Tape` keeps what they returned, or the ValueError that they raised, and a repetition
of the same calls gets the same in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor

_Outcome = tuple[Tensor, ...] | ValueError
_state = threading.local()  # of the thread: a backward of CUDA tensors runs on one of its own


class Tape:
    """The choices of one piece of a forward, in their order."""

    def __init__(self) -> None:
        self._outcomes: list[_Outcome] = []
        self._next: int | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within: choices are made, and kept."""
        with self._running(None):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Within: choices are the kept ones, from the first on."""
        with self._running(0):
            yield

    @contextmanager
    def _running(self, first: int | None) -> Iterator[None]:
        before = getattr(_state, "tape", None)
        self._next, _state.tape = first, self
        try:
            yield
        finally:
            _state.tape = before

    def outcome(self, kernel: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What the kernel returns, or returned. A kept tensor is never handed out itself: autograd marks results."""
        if self._next is None:
            self._outcomes.append(_outcome(kernel, args))
            found = self._outcomes[-1]
        else:
            found = self._outcomes[self._next]
            self._next += 1
        if isinstance(found, ValueError):
            raise ValueError(*found.args)
        return tuple(each.detach() for each in found)


def _outcome(kernel: Callable[..., Any], args: tuple[Any, ...]) -> _Outcome:
    try:
        return tuple(kernel(*args))
    except ValueError as error:
        return ValueError(*error.args)  # without the traceback, which holds on to the caller's tensors


def decided(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose results are choices: a tuple of tensors."""

    @wraps(kernel)
    def choose(*args: Any) -> Any:
        tape: Tape | None = getattr(_state, "tape", None)
        return kernel(*args) if tape is None else tape.outcome(kernel, args)

    return choose
