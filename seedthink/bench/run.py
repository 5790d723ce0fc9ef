"""Runs cases: checks every side against float64, then times those that passed in turns with the machine's ceilings."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from seedthink.autotune.timing import Paired, Spread, clock_of, paired_seconds, spread
from seedthink.bench.case import Case, Draw, Maker, Missing, Prepared, Run, Work
from seedthink.bench.ceilings import COPY, MATMUL, ceilings_of
from seedthink.bench.memory import free_bytes, peak_of
from seedthink.bench.rows import Row
from seedthink.errors import DeviceError
from seedthink.kernels.build import build_info
from seedthink.telemetry.environment import cpu_model, environment, versions

PEERS = ("torch", "triton", "transformers", "torchrl", "tensordict", "torchao")
MOST_SECONDS = 3.0  # a peer whose call takes longer is timed once, when it is checked


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure."""

    device: torch.device
    threads: int
    repeats: int = 15
    side_seconds: float = 4.0  # for the samples of one side
    patience: int = 1  # times to repeat a case that other processes disturbed
    implementations: tuple[str, ...] = ()  # only these; all where empty
    compiled: bool = True  # whether torch.compile is a peer
    shapes_file: str = ""  # that the shapes come from, where they are no preset


@dataclass(frozen=True, slots=True)
class Checked:
    """A side after its check."""

    row: Row
    run: Run | None = None  # None: not to be timed in turns


def measured(case: Case, preset: str, settings: Settings) -> list[Row]:
    """The rows of one case, ours first."""
    blank = _blank(case, preset, settings)
    if case.memory > free_bytes(settings.device):
        reason = f"takes {case.memory / 2**30:.1f} GiB, {free_bytes(settings.device) / 2**30:.1f} are free"
        return [replace(blank, implementation=settings.device.type, ours=True, reason=reason)]
    with torch.no_grad():
        prepared = case.prepare(Draw(settings.device))
        sides = {side.row.implementation: side for side in _checked(prepared, blank, settings)}
        return _timed(case.work, sides, settings)


def surroundings(settings: Settings) -> dict[str, Any]:
    """What the numbers depend on."""
    return environment(
        {
            "device": device_name(settings.device),
            "device_class": device_class(settings.device),
            "threads": settings.threads,
            "peers": versions(PEERS),
            "native": build_info(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "load_before": os.getloadavg()[0],
        }
    )


def device_name(device: torch.device) -> str:
    """The processor's or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_model()


def device_class(device: torch.device) -> str:
    """Within it, bits are promised: the CPU's instruction set, or the GPU's architecture."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return str(build_info()["isa"])


def _blank(case: Case, preset: str, settings: Settings) -> Row:
    """What all rows of a case share, before anything is known of a side."""
    shapes = settings.shapes_file or preset
    place = {"op": case.op, "shapes": shapes, "at": case.place, "dtype": case.dtype, "device": settings.device.type}
    chosen = {**place, "threads": settings.threads, "repeats": settings.repeats}
    if settings.implementations:
        chosen["impl"] = ",".join(settings.implementations)
    words = (word for name, value in chosen.items() for word in (f"--{name}", str(value)))
    return Row(
        op=case.op,
        implementation="",
        ours=False,
        preset=preset,
        shape=case.shape,
        dtype=case.dtype,
        device=settings.device.type,
        device_class=device_class(settings.device),
        threads=settings.threads,
        status="left out",
        command=shlex.join(["seedthink", "bench", "kernels", *words]),
        bytes=case.work.bytes,
        flops=case.work.flops,
    )


def _checked(prepared: Prepared, blank: Row, settings: Settings) -> Iterator[Checked]:
    wanted = settings.implementations
    for ours, makers in ((True, prepared.ours), (False, prepared.peers)):
        for name, maker in makers.items():
            if (name in wanted or not wanted) and (settings.compiled or name != "compile"):
                row = replace(blank, implementation=name, ours=ours, tolerance=prepared.tolerance)
                yield _check(maker, prepared, row, settings)


def _check(maker: Maker, prepared: Prepared, row: Row, settings: Settings) -> Checked:
    """Set one side up, call it, and hold its outputs against float64. A benchmark outlives a side that fails."""
    try:
        run = maker()
        error = prepared.error(run())
        began = time.perf_counter()
        _, peak = peak_of(run, settings.device)
        took = time.perf_counter() - began
    except (Missing, DeviceError, NotImplementedError) as absent:
        return Checked(replace(row, reason=_first_line(absent)))
    except Exception as failure:
        return Checked(replace(row, status="FAIL", reason=f"{type(failure).__name__}: {_first_line(failure)}"))
    row = replace(row, error=error, peak_bytes=peak)
    if not error <= prepared.tolerance:
        reason = f"error {error:.2g} against float64, {prepared.tolerance:.2g} allowed"
        return Checked(replace(row, status="FAIL", reason=reason))
    if took > MOST_SECONDS and not row.ours:
        return Checked(replace(row, status="ok", seconds=Spread(took, took, took), repeats=1))
    return Checked(replace(row, status="ok"), run)


def _timed(work: Work, sides: Mapping[str, Checked], settings: Settings) -> list[Row]:
    """The rows with their times: those of our implementations first, with a ratio for each peer."""
    runs: dict[str, Run] = {name: side.run for name, side in sides.items() if side.run is not None}
    if not runs:
        return [side.row for side in sides.values()]
    ceilings = ceilings_of(work, settings.device)
    paired = paired_seconds(
        {**runs, **{name: run for name, (run, _) in ceilings.items()}},
        settings.repeats,
        side_seconds=settings.side_seconds,
        patience=settings.patience,
        clock=clock_of(settings.device),
    )
    # What the machine can do shows in the faster turns: with the median, a disturbed run would flatter us.
    rates = {name: amount / paired.spread(name).p20 for name, (_, amount) in ceilings.items()}
    return [_finished(name, side, sides, paired, rates) for name, side in sides.items()]


def _finished(
    name: str, side: Checked, sides: Mapping[str, Checked], paired: Paired, rates: Mapping[str, float]
) -> Row:
    took, repeats = side.row.seconds, side.row.repeats
    if side.run is not None:
        took, repeats = paired.spread(name), len(paired.samples(name))
    row = replace(
        side.row,
        seconds=took,
        repeats=repeats,
        copy_bytes_per_second=rates.get(COPY),
        matmul_flops_per_second=rates.get(MATMUL),
        cores_used_elsewhere=paired.cores_used_elsewhere,
    )
    if took is None:
        return row
    if rates:
        least = max(row.bytes / rates[COPY], row.flops / rates.get(MATMUL, float("inf")))
        row = replace(row, of_ceiling=least / took.median)
    return replace(row, ratios=_ratios(name, took, sides, paired)) if row.ours else row


def _ratios(name: str, own: Spread, sides: Mapping[str, Checked], paired: Paired) -> dict[str, Spread]:
    """How many times as long each peer takes, from turns that timed both; a peer that was timed once, from that."""
    found = {}
    for peer, side in sides.items():
        if side.row.ours or side.row.status != "ok":
            continue
        if side.run is not None:
            found[peer] = spread(paired.ratios(peer, name))
        elif side.row.seconds is not None:
            ratio = side.row.seconds.median / own.median
            found[peer] = Spread(ratio, ratio, ratio)
    return found


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
