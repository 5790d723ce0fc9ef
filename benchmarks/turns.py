"""What the benchmarks share: times in turns, quiet seconds for a whole run, the environment, the results' files."""

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

from seedthink.autotune.timing import paired_seconds, used_elsewhere
from seedthink.kernels.build import build_info


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


def in_turns(runs: Mapping[str, Callable[[], object]], samples: int, patience: int) -> dict[str, Any]:
    """Median, least and most milliseconds of each side, and how many cores other processes used meanwhile."""
    paired = paired_seconds(runs, samples, patience=patience)
    found: dict[str, Any] = {"cores_used_elsewhere": paired.cores_used_elsewhere}
    for name in runs:
        values = [1e3 * seconds for seconds in paired.samples(name)]
        found |= {
            f"{name}_ms": statistics.median(values),
            f"{name}_ms_least": min(values),
            f"{name}_ms_most": max(values),
        }
    return found


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
