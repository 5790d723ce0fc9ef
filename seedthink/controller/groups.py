"""A worker group: one worker class on every rank of a pool, seen as one object.

`group.learn(batches)` looks up the verb that the worker class registered for `learn` (protocol.py), splits the
arguments, runs the ranks, gathers the results. `LocalGroup` runs the ranks in this process, `RayGroup` in one process
each; code that uses a group cannot tell which it has, except that payloads which crossed a process are read-only.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from seedthink.controller.protocol import Call, Verb, verbs_of
from seedthink.parallel.layout import Layout


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands; the first argument of every worker class.

    `layout` says which of the group's ranks share a batch, a sequence, a matrix, the experts. `rendezvous` is
    "host:port", free on rank 0's machine, for the group's own collectives; "" within one process. `threads` is how many
    CPU threads the worker may use.
    """

    group: str
    rank: int
    layout: Layout
    threads: int
    rendezvous: str = ""

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return self.layout.size


class Future(Protocol):
    """What a verb with `blocking=False` returns."""

    def result(self) -> Any:
        """Wait, within the verb's deadline, and return the gathered results or raise what a rank raised."""
        ...

    def done(self) -> bool:
        """Tell whether `result()` would return or raise at once."""
        ...


class WorkerGroup(ABC):
    """Base of the groups. A context manager: leaving it closes the group.

    Without a layout every rank has batches of its own.
    """

    def __init__(self, name: str, worker: type, size: int, deadline: float, layout: Layout | None = None) -> None:
        self.name = name
        self.size = size
        self.layout = layout or Layout(dp_shard=size)
        assert self.layout.size == size, f"{self.layout} lays out {self.layout.size} ranks, not {size}"
        self.deadline = deadline
        self.verbs = verbs_of(worker)

    @abstractmethod
    def start(self, verb: Verb, calls: Mapping[int, Call]) -> Future:
        """Run `calls[rank]` on each rank named there."""

    def gathered(self, verb: Verb, results: Mapping[int, Any]) -> Any:
        """What the caller gets of the ranks' results."""
        answering = verb.transfer.answering(self.layout, results)
        return verb.transfer.gather([results[rank] for rank in answering])

    @abstractmethod
    def close(self) -> None:
        """End the workers; may be called twice."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a verb by name. Returns the gathered results, or a `Future` where the verb is not blocking."""
        verb = self.verbs[name]
        future = self.start(verb, verb.transfer.calls(self.layout, args, kwargs))
        return future.result() if verb.blocking else future

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self.verbs:
            raise AttributeError(f"group {self.name!r} has no verb {name!r}; it has {', '.join(sorted(self.verbs))}")
        return functools.partial(self.call, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
