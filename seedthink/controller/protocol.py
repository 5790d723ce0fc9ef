"""Transfer protocols: how a worker method's arguments reach the ranks and how their results come back.

HybridFlow's abstraction (arXiv 2409.19256, section 4): inside a model all ranks run one program; the controller sees
one object whose methods carry a protocol. A worker class registers a method with `@remote(protocol)`; a group binds it
as `group.method(...)` = split the arguments, run on the ranks, gather the results.

A protocol is two plain functions, so a new one needs no change here:
`Transfer(to_all, concatenated)` polls every rank and chains what they found.
Rule for SPLIT and PER_RANK: positional arguments are cut up, keyword arguments reach every rank whole.

Ranks that share a sequence or a matrix (cp, tp) work on the same part: a protocol `over` "data" deals one part to each
data index of the layout, every rank of the index gets it, and the first one answers for it. Where each rank is an index
of its own, that is plain data parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from seedthink.parallel.layout import Layout

Method = TypeVar("Method", bound=Callable[..., Any])
_MARK = "_seedthink_verb"


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one method call on one rank."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A (dispatch, collect) pair.

    `split(size, args, kwargs)` returns the call of each receiver that shall run, keyed by number; receivers it leaves
    out do not run. A receiver is a rank, or with `over` "data" all ranks of a data index. `gather(results)` gets the
    answering ranks' results in rank order. With `answers` "first" the other ranks run too, but their results never
    leave them; likewise those of all but the first rank of a data index.
    """

    split: Callable[[int, tuple[Any, ...], Mapping[str, Any]], dict[int, Call]]
    gather: Callable[[list[Any]], Any]
    answers: Literal["all", "first"] = "all"
    over: Literal["ranks", "data"] = "ranks"

    def calls(self, layout: Layout, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Call]:
        """The call of each rank that shall run."""
        if self.over == "ranks":
            return self.split(layout.size, args, kwargs)
        parts = self.split(layout.data, args, kwargs)
        index = {rank: layout.data_index(rank) for rank in range(layout.size)}
        return {rank: parts[at] for rank, at in index.items() if at in parts}

    def answering(self, layout: Layout, ranks: Iterable[int]) -> list[int]:
        """Which of the ranks that run send their results, ascending."""
        if self.answers == "first":
            return [min(ranks)]
        return [rank for rank in sorted(ranks) if self.over == "ranks" or layout.leads(rank)]


@dataclass(frozen=True, slots=True)
class Verb:
    """A registered method. Not `blocking`: a group returns a `Future`. `deadline` in seconds overrides the group's."""

    name: str
    transfer: Transfer
    blocking: bool = True
    deadline: float | None = None


def remote(transfer: Transfer, *, blocking: bool = True, deadline: float | None = None) -> Callable[[Method], Method]:
    """Register a worker method under a protocol; the method itself stays as it is and can be called directly."""

    def register(method: Method) -> Method:
        setattr(method, _MARK, Verb(method.__name__, transfer, blocking, deadline))
        return method

    return register


def verbs_of(worker: type) -> dict[str, Verb]:
    """Return the registered methods of a worker class by the name they have there, inherited ones included."""
    marks = ((name, getattr(getattr(worker, name), _MARK, None)) for name in dir(worker))
    return {name: Verb(name, m.transfer, m.blocking, m.deadline) for name, m in marks if m is not None}


def to_all(size: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Call]:
    """Give every rank the same arguments."""
    return {rank: Call(args, kwargs) for rank in range(size)}


def to_first(size: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Call]:
    """Run on rank 0 only."""
    return {0: Call(args, kwargs)}


def split_evenly(size: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Call]:
    """Cut positional sequences into contiguous parts, receiver r getting [n * r // size, n * (r + 1) // size).

    Every receiver runs, also with an empty part, because its method may take part in a collective. Raises ValueError
    when an argument is no sequence or lengths differ.
    """
    count = _common_length(args)
    bounds = [count * at // size for at in range(size + 1)]
    return {at: Call(tuple(arg[bounds[at] : bounds[at + 1]] for arg in args), kwargs) for at in range(size)}


def one_each(size: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Call]:
    """Give receiver r element r of every positional sequence. Raises ValueError unless each of them gets one."""
    count = _common_length(args)
    if count != size:
        raise ValueError(f"one element per data index is needed: got {count} for {size}")
    return {at: Call(tuple(arg[at] for arg in args), kwargs) for at in range(size)}


def as_list(results: list[Any]) -> list[Any]:
    """Return the results in rank order."""
    return results


def only(results: list[Any]) -> Any:
    """Return the one result there is."""
    (result,) = results
    return result


def concatenated(results: list[Any]) -> Any:
    """Chain the ranks' sequences in rank order: arrays along axis 0, other sequences into a list, Nones into None."""
    if all(result is None for result in results):
        return None
    if all(isinstance(result, np.ndarray) for result in results):
        return np.concatenate(results)
    return [item for part in results for item in part]


ONE_TO_ALL = Transfer(to_all, as_list)
RANK_ZERO = Transfer(to_first, only)
SPLIT = Transfer(split_evenly, concatenated, over="data")
PER_RANK = Transfer(one_each, as_list, over="data")
GATHERED = Transfer(to_all, concatenated, over="data")
FIRST = Transfer(to_all, only, answers="first")


def _common_length(args: tuple[Any, ...]) -> int:
    for index, arg in enumerate(args):
        if not isinstance(arg, Sequence | np.ndarray) or isinstance(arg, str | bytes):
            raise ValueError(
                f"argument {index} is split over ranks and must be a list, tuple or array, not {type(arg).__name__}; "
                "pass what every rank needs whole by keyword"
            )
    lengths = {len(arg) for arg in args}
    if len(lengths) != 1:
        raise ValueError(f"arguments split over ranks need one common length, got {[len(arg) for arg in args]}")
    return lengths.pop()
