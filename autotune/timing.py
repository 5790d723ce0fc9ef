"""Times alternatives in turns in one process, and says how much other processes disturbed the measurement.

The speed of a shared machine changes from second to second: two numbers taken one after the other compare the seconds
rather than the code. Here every turn times each side once, in an order drawn anew for the turn, and a comparison
divides samples of the same turn. The benchmarks and the tuner take all their times with `paired_seconds`.
"""

from __future__ import annotations

import functools
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


Run = Callable[[], object]
Clock = Callable[[Run, int], float]

REST_SECONDS = 0.006  # threads of torch's OpenMP spin for about 5 ms and take a core from whoever comes next
MOST_CALLS = 500
LEAST_TURNS = 3
QUIET_CORES = 0.1  # a measurement beside less than this is undisturbed
BACKLOG_CYCLES = 2_000_000  # about 1 ms of GPU time: what the host needs to enqueue a sample's calls
FLUSH_BYTES = 1 << 28  # more than four times the last cache of an H200


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some samples, and the values that a fifth of them lie below and above."""

    median: float
    p20: float
    p80: float


@dataclass(frozen=True, slots=True)
class Paired:
    """What `paired_seconds` found: seconds per call of each side, by turn. A slow side has fewer turns than others."""

    seconds: Mapping[str, Mapping[int, float]]
    cores_used_elsewhere: float  # mean number of cores that other processes used meanwhile

    def samples(self, side: str) -> list[float]:
        """Seconds per call, in the order of the turns."""
        return list(self.seconds[side].values())

    def spread(self, side: str) -> Spread:
        """Seconds per call."""
        return spread(self.samples(side))

    def ratios(self, side: str, base: str) -> list[float]:
        """How many times as long as `base` `side` takes: one number for each turn that timed both."""
        one, other = self.seconds[side], self.seconds[base]
        return [one[turn] / other[turn] for turn in one if turn in other]


def spread(samples: Sequence[float]) -> Spread:
    """Median, 20 % and 80 % quantile, between neighbours by linear interpolation. ValueError without samples."""
    if not samples:
        raise ValueError("samples: expected at least one")
    ordered = sorted(samples)

    def quantile(share: float) -> float:
        at = share * (len(ordered) - 1)
        low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
        return low + (high - low) * (at - math.floor(at))

    return Spread(statistics.median(ordered), quantile(0.2), quantile(0.8))


def wall_clock(run: Run, calls: int) -> float:
    """Mean seconds of `calls` calls, after one that wakes the threads, after the last side's threads went to sleep."""
    time.sleep(REST_SECONDS)
    run()
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls


def cuda_clock(run: Run, calls: int) -> float:
    """Mean device seconds of `calls` calls of CUDA work, the caches emptied before each.

    A pause on the device lets the host run ahead, so that no launch is waited for: on an idle stream a pair of events
    would time the host.
    """
    import torch

    run()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    flush = _flush_buffer(torch.cuda.current_device())
    torch.cuda.synchronize()
    torch.cuda._sleep(BACKLOG_CYCLES)
    for begin, end in marks:
        flush.zero_()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return sum(begin.elapsed_time(end) for begin, end in marks) * 1e-3 / calls


def clock_of(device: torch.device) -> Clock:
    """The clock for work on a device."""
    return cuda_clock if device.type == "cuda" else wall_clock


def paired_seconds(
    sides: Mapping[str, Run],
    repeats: int,
    *,
    sample_seconds: float = 0.005,
    side_seconds: float = math.inf,
    patience: int = 0,
    clock: Clock = wall_clock,
    seed: int = 0,
) -> Paired:
    """Time every side in `repeats` turns.

    sides: what to time, by name. Two calls of each are made first and not counted.
    sample_seconds: a sample is the mean of as many calls as fit into this time, but of at least one.
    side_seconds: what the samples of one side may take: a slow side takes part in fewer turns, evenly spread, but in
    at least three (or all, where there are fewer).
    patience: how often to measure again while others use more than a tenth of a core; the quietest attempt is kept.
    seed: of the order of the sides within the turns. ValueError without sides or turns.
    """
    if not sides:
        raise ValueError("sides: expected at least one")
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} is not at least 1")
    first = {name: min(clock(run, 1) for _ in range(2)) for name, run in sides.items()}
    plan = {name: _plan(took, repeats, sample_seconds, side_seconds) for name, took in first.items()}
    kept = Paired({}, math.inf)
    for _ in range(1 + patience):
        found: dict[str, dict[int, float]] = {name: {} for name in sides}
        elsewhere = used_elsewhere(functools.partial(_turns, sides, plan, repeats, clock, random.Random(seed), found))[
            1
        ]
        if elsewhere < kept.cores_used_elsewhere:
            kept = Paired(found, elsewhere)
        if elsewhere <= QUIET_CORES:
            break
    return kept


def processor_seconds() -> tuple[float, float]:
    """Processor seconds of (all processes, this one) since their start; Linux only, zeros elsewhere."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    own = os.times()
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def used_elsewhere(run: Callable[[], float | None]) -> tuple[float, float]:
    """(wall seconds of one call, mean number of cores that other processes used meanwhile).

    `run` may return the processor seconds of processes that it started: they are no others.
    """
    (all_before, own_before), began = processor_seconds(), time.perf_counter()
    started = run() or 0.0
    wall, (all_after, own_after) = time.perf_counter() - began, processor_seconds()
    return wall, max(0.0, (all_after - all_before) - (own_after - own_before) - started) / wall


def _plan(took: float, repeats: int, sample_seconds: float, side_seconds: float) -> tuple[int, int]:
    """(calls of a sample, every how many turns one is taken) for a side whose call takes `took` seconds."""
    calls = max(1, min(MOST_CALLS, int(sample_seconds / max(took, 1e-9))))
    sample = took * (calls + 1)
    affordable = repeats if sample * repeats <= side_seconds else int(side_seconds / sample)
    return calls, max(1, repeats // max(affordable, min(LEAST_TURNS, repeats)))


def _turns(
    sides: Mapping[str, Run],
    plan: Mapping[str, tuple[int, int]],
    repeats: int,
    clock: Clock,
    shuffled: random.Random,
    found: dict[str, dict[int, float]],
) -> None:
    """Time each side once a turn, in a new order each time."""
    for turn in range(repeats):
        taking_part = [name for name in sides if turn % plan[name][1] == 0]
        for name in shuffled.sample(taking_part, len(taking_part)):
            found[name][turn] = clock(sides[name], plan[name][0])


@functools.cache
def _flush_buffer(device: int) -> Any:
    import torch

    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=f"cuda:{device}")
