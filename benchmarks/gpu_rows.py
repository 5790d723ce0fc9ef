"""The rows of benchmarks/gpu.py: for each case its inputs, our kernels, the peers, the checks, and the least work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]

GRAPH_BELOW_US = 300.0  # launches matter below: those calls are timed in a graph as well


@dataclass
class Made:
    """What a case holds in memory. Calls of one name go round over several sets of buffers."""

    ours: dict[str, Sequence[Call]]
    peers: dict[str, Sequence[Call]]
    check: Callable[[str], str]  # of one of ours, before it is timed
    bytes: float = 0.0
    flops: float = 0.0
    elsewhere: dict[str, Callable[[], float]] = field(default_factory=dict)  # peers that time themselves, microseconds
    peers_within: float | None = None  # relative error of a peer's first result against ours; None: not comparable

    def rows(
        self, start: dict[str, Any], ceilings: dict[str, float], known: dict[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Check, then time, everything; `known` are peers of an earlier run."""
        timed = {name: self._peer(calls) for name, calls in self.peers.items()}
        timed |= {name: _guarded(clock) for name, clock in self.elsewhere.items()}
        rows = []
        for name, calls in self.ours.items():
            row = start | {"impl": name}
            wrong = _first_line(lambda name=name: self.check(name))
            row |= {"status": "FAIL", "reason": wrong} if wrong else _timed(calls)
            rows.append(row | (self._rates(row, ceilings) if "us" in row else {}))
        rows += [start | {"impl": name, "peer": True} | row for name, row in timed.items()]
        for row in rows[: len(self.ours)]:
            row["ratios"] = {
                peer: round(device_us(other) / device_us(row), 2)
                for peer, other in (known | timed).items()
                if "us" in other and "us" in row
            }
        return rows

    def _peer(self, calls: Sequence[Call]) -> dict[str, Any]:
        def check() -> str:
            if self.peers_within is None:
                return ""
            mine, theirs = (_first(each[0]()).flatten() for each in (next(iter(self.ours.values())), calls))
            return near("against ours", theirs, mine, self.peers_within)

        wrong = _first_line(check)
        return {"status": "FAIL", "reason": wrong} if wrong else _timed(calls)

    def _rates(self, row: dict[str, Any], ceilings: dict[str, float]) -> dict[str, float]:
        seconds = device_us(row) / 1e6
        found: dict[str, float] = {}
        if self.bytes:
            found |= {"bytes": self.bytes, "gb_per_s": self.bytes / seconds / 1e9}
            found["of_copy"] = self.bytes / seconds / ceilings["copy"]
        if self.flops:
            found |= {"flops": self.flops, "tflop_per_s": self.flops / seconds / 1e12}
            found["of_matmul"] = self.flops / seconds / ceilings["matmul"]
        return found


@dataclass
class Case:
    """One row of the table: prepared only when its turn comes."""

    op: str
    shape: str
    reach: str
    prepare: Callable[[], Made]
    seconds: float = 15.0  # it may take


def device_us(row: dict[str, Any]) -> float:
    """Microseconds without the host's part: of the stream or the graph, whichever is less."""
    return min(float(row["us"]), float(row.get("graph_us", row["us"])))


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def _timed(calls: Sequence[Call]) -> dict[str, Any]:
    from gpu_clock import time_in_graph, time_in_stream

    try:
        row: dict[str, Any] = {"status": "ok"} | time_in_stream(calls)
    except Exception as error:
        return {"status": "ERROR", "reason": _sentence(error)}
    if row["us"] < GRAPH_BELOW_US:
        try:
            row["graph_us"] = time_in_graph(calls)["us"]
        except Exception as error:
            row["graph"] = _sentence(error)
    return row


def _guarded(clock: Callable[[], float]) -> dict[str, Any]:
    try:
        return {"status": "ok", "us": clock()}
    except Exception as error:
        return {"status": "left out", "reason": _sentence(error)}


def _first_line(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return _sentence(error)


def _sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def same(name: str, mine: Tensor, theirs: Tensor) -> str:
    """Empty where two tensors have the same bits."""
    mine, theirs = mine.cpu(), theirs.cpu()
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return f"{name}: {mine.dtype} {list(mine.shape)} against {theirs.dtype} {list(theirs.shape)}"
    if mine.dtype.is_floating_point and mine.dtype.itemsize == 1:
        mine, theirs = mine.view(torch.uint8), theirs.view(torch.uint8)
    differ = int((mine != theirs).sum())
    return f"{name}: {differ} of {mine.numel()} differ" if differ else ""


def near(name: str, mine: Tensor, theirs: Tensor, most: float) -> str:
    """Empty where the difference's norm is below `most` times the norm; NaN is never near."""
    mine, theirs = mine.cpu().double(), theirs.cpu().double()
    error = float((mine - theirs).norm() / theirs.norm().clamp(min=1e-30))
    return "" if error <= most else f"{name}: relative error {error:.2e} exceeds {most:.0e}"


def first_wrong(*found: str) -> str:
    """The first that is not empty."""
    return next((each for each in found if each), "")


def compiled(formula: Callable[..., Any], *sets: tuple[Any, ...]) -> list[Call]:
    """A formula through torch.compile, on each set of inputs; all have the same shapes."""
    torch.compiler.reset()
    run = torch.compile(formula, dynamic=False)
    return [partial(run, *inputs) for inputs in sets]


def cases() -> Iterator[Case]:
    """All rows, the small ones first."""
    import gpu_fp8
    import gpu_gae
    import gpu_moe

    yield from gpu_gae.cases()
    yield from gpu_moe.routing()
    yield from gpu_moe.rows()
    yield from gpu_fp8.cases()
    yield from gpu_moe.experts()
    yield from gpu_fp8.products()
