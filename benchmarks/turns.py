"""Times implementations in turns in one process, and says how much other processes disturbed the measurement."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from seedthink.kernels.build import build_info


def processor_seconds() -> tuple[float, float]:
    """(all processes, this one) since the start; Linux only, zeros elsewhere."""
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


def quiet_seconds(run: Callable[[], float | None], patience: float) -> tuple[float, float]:
    """`used_elsewhere` of a run that others disturb by less than a tenth of a core, if `patience` seconds bring one.

    On a shared machine a number taken in a crowd says nothing: wait for a quiet second, run, and accept the run if the
    quiet lasted. The least disturbed run is kept otherwise.
    """
    deadline, kept = time.monotonic() + patience, (float("inf"), float("inf"))
    while True:
        while time.monotonic() < deadline and used_elsewhere(lambda: time.sleep(1.0))[1] > 0.1:
            time.sleep(2.0)
        kept = min(kept, used_elsewhere(run), key=lambda found: found[1])
        if kept[1] <= 0.1 or time.monotonic() >= deadline:
            return kept


def _seconds(run: Callable[[], object], calls: int) -> float:
    """Mean of a few calls after one that wakes the threads, once the other side's threads have gone to sleep."""
    time.sleep(0.004)
    run()
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls


def in_turns(runs: Mapping[str, Callable[[], object]], samples: int, patience: int) -> dict[str, Any]:
    """Median, least and most milliseconds of each implementation, sampled in turns.

    A measurement that other processes disturbed by over a tenth of a core is repeated up to `patience` times; the least
    disturbed one is kept, and `cores_used_elsewhere` tells how disturbed it was.
    """
    calls = {name: max(1, min(100, int(0.005 / _seconds(run, 1)))) for name, run in runs.items()}
    kept: dict[str, Any] = {"cores_used_elsewhere": float("inf")}
    for _ in range(1 + patience):
        began, (all_before, own_before) = time.perf_counter(), processor_seconds()
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(samples):
            for name, run in runs.items():
                found[name].append(_seconds(run, calls[name]) * 1e3)
        wall, (all_after, own_after) = time.perf_counter() - began, processor_seconds()
        elsewhere = max(0.0, (all_after - all_before) - (own_after - own_before)) / wall
        if elsewhere < kept["cores_used_elsewhere"]:
            kept = {f"{name}_ms": statistics.median(values) for name, values in found.items()}
            kept |= {f"{name}_ms_least": min(values) for name, values in found.items()}
            kept |= {f"{name}_ms_most": max(values) for name, values in found.items()}
            kept["cores_used_elsewhere"] = elsewhere
        if elsewhere <= 0.1:
            break
    return kept


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": build_info()["isa"],
        "torch": torch.__version__,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "load_before": os.getloadavg()[0],
    }


def save(name: str, rows: list[dict[str, Any]], surroundings: dict[str, Any]) -> None:
    """Write `results/<name>.json` beside this file."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"environment": surroundings, "rows": rows}, indent=1) + "\n")
