"""Transfer protocols: how a worker method's arguments reach the ranks and how their results come back.

HybridFlow's abstraction (arXiv 2409.19256, section 4): inside a model all ranks run one program; the controller sees
one object whose methods carry a protocol. A worker class registers a method with `@remote(protocol)`; a group binds it
as `group.method(...)` = split the arguments, run on the ranks, gather the results.

A protocol is two plain functions, so a new one needs no change here:
`Transfer(to_all, concatenated)` polls every rank and chains what they found.
Rule for SPLIT and PER_RANK: positional arguments are cut up, keyword arguments reach every rank whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

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

    `split(size, args, kwargs)` returns the call of each rank that shall run, keyed by rank; ranks it leaves out do not
    run. `gather(results)` gets the answering ranks' results in rank order. With `answers` "first" the other ranks run
    too, but their results never leave them.
    """

    split: Callable[[int, tuple[Any, ...], Mapping[str, Any]], dict[int, Call]]
    gather: Callable[[list[Any]], Any]
    answers: Literal["all", "first"] = "all"


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
    """Cut positional sequences into contiguous parts, rank r getting [n * r // size, n * (r + 1) // size).

    Every rank runs, also with an empty part, because its method may take part in a collective. Raises ValueError when
    an argument is no sequence or lengths differ.
    """
    count = _common_length(args)
    bounds = [count * rank // size for rank in range(size + 1)]
    return {rank: Call(tuple(arg[bounds[rank] : bounds[rank + 1]] for arg in args), kwargs) for rank in range(size)}


def one_each(size: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, Call]:
    """Give rank r element r of every positional sequence. Raises ValueError unless there is one element per rank."""
    count = _common_length(args)
    if count != size:
        raise ValueError(f"one element per rank is needed: got {count} for {size} ranks")
    return {rank: Call(tuple(arg[rank] for arg in args), kwargs) for rank in range(size)}


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
SPLIT = Transfer(split_evenly, concatenated)
PER_RANK = Transfer(one_each, as_list)
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
