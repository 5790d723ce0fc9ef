"""Every CUDA and Triton kernel on one GPU: built, checked against the CPU, timed, and held against ceilings and peers.

One call builds the native library for this machine, checks every kernel on fresh random data (a kernel that is wrong
prints FAIL and no time), measures what the device can do at best (copy, bfloat16 matmul), and times every row of the
table below in microseconds: in a busy stream, and in a CUDA graph where launches matter. Results are written after each
row, so a crash or an interruption keeps what there is; rows of an earlier run stay in the file until they are measured
again, each with its date.
Needs a CUDA GPU, torch, nvcc and g++; no network. Run: `python benchmarks/gpu.py`; `--dry-run` lists the rows anywhere.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_build import build
from gpu_rows import Case, cases


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    query = "driver_version,clocks.sm,clocks.mem,power.limit"
    smi = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    found = subprocess.run(smi, capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver, clocks, power": found.stdout.strip() if found.returncode == 0 else "",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def _commit() -> str:
    folder = Path(__file__).resolve().parents[1]
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


class Results:
    """The rows so far, on disk after every one. Rows of an earlier run stay until their case is measured again."""

    def __init__(self, path: Path, today: str) -> None:
        self.path, self.today = path, today
        self.table: dict[str, Any] = {"environment": {}, "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self.table = json.loads(path.read_text(encoding="utf-8"))

    def peers_of(self, op: str, shape: str) -> dict[str, dict[str, Any]]:
        """A case's peers as an earlier run found them."""
        found = (row for row in self.table["rows"] if (row["op"], row["shape"]) == (op, shape))
        return {row["impl"]: row for row in found if row.get("peer")}

    def forget(self, op: str, shape: str, impls: set[str]) -> None:
        """Drop a case's earlier rows of these implementations."""
        gone = {(op, shape, impl) for impl in (*impls, "-")}
        self.table["rows"] = [row for row in self.table["rows"] if (row["op"], row["shape"], row["impl"]) not in gone]

    def write(self) -> None:
        """Replace the file in one step."""
        text = json.dumps(self.table, indent=1) + "\n"
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.path)

    def add(self, row: dict[str, Any]) -> None:
        """Keep and print one row."""
        self.table["rows"].append(row | {"date": self.today})
        self.write()
        print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """One row of the printed table."""
    start = f"{row['op']:<18} {row['shape']:<34} {row['impl']:<12}"
    if "us" not in row:
        return f"{start} {row['status']}: {row.get('reason', '')}"
    parts = [f"{row['us']:9.1f} us"]
    parts += [f"graph {row['graph_us']:.1f}"] if "graph_us" in row else []
    parts += [f"{row['gb_per_s']:.0f} GB/s", f"{row['of_copy']:.0%} of copy"] if "of_copy" in row else []
    parts += [f"{row['tflop_per_s']:.0f} TFLOP/s", f"{row['of_matmul']:.0%} of matmul"] if "of_matmul" in row else []
    parts += [f"ratios {row['ratios']}"] if row.get("ratios") else []
    return f"{start} {', '.join(parts)}  [{row.get('reach', '')}]"


def measure(case: Case, ceilings: dict[str, float], results: Results, seconds_left: float, peers: bool) -> None:
    """Check and time one case; a failure becomes a row of its own. Without `peers`, earlier times of theirs stand."""
    start = {"op": case.op, "shape": case.shape, "reach": case.reach}
    if seconds_left < case.seconds:
        print(f"{case.op} {case.shape}: skipped, {seconds_left:.0f} s left", flush=True)
        return
    try:
        made = case.prepare()
        if peers:
            rows = made.rows(start, ceilings, {})
        else:
            made.peers, made.elsewhere = {}, {}
            rows = made.rows(start, ceilings, results.peers_of(case.op, case.shape))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        traceback.print_exc(limit=4)
        rows = [start | {"impl": "-", "status": "ERROR", "reason": reason[:300]}]
    results.forget(case.op, case.shape, {row["impl"] for row in rows})
    for row in rows:
        results.add(row)
    gc.collect()
    torch.cuda.empty_cache()


def run(options: argparse.Namespace, chosen: list[Case]) -> int:
    """Build, measure, write; the number of rows that failed their check."""
    began = time.monotonic()
    built = build(torch.cuda.get_device_capability(0), options.rebuild)
    print(f"native library: {built}, {time.monotonic() - began:.0f} s", flush=True)
    from gpu_clock import copy_rate, matmul_rate

    torch.manual_seed(0)
    surroundings = environment()
    results = Results(Path(options.out or _default_path()), surroundings["date"][:10])
    ceilings = {"copy": copy_rate(), "matmul": matmul_rate()}
    results.table["environment"] = surroundings | {"build": built, "ceilings": ceilings}
    print(f"copy {ceilings['copy'] / 1e9:.0f} GB/s, bf16 matmul {ceilings['matmul'] / 1e12:.0f} TFLOP/s", flush=True)
    for case in chosen:
        measure(case, ceilings, results, options.seconds - (time.monotonic() - began), not options.ours)
    results.table["environment"]["seconds"] = round(time.monotonic() - began)
    results.table["environment"]["ceilings_after"] = {"copy": copy_rate(), "matmul": matmul_rate()}
    results.write()
    print(f"{results.path}: {len(results.table['rows'])} rows, {time.monotonic() - began:.0f} s")
    return sum(row["status"] in ("FAIL", "ERROR") for row in results.table["rows"])


def _default_path() -> Path:
    name = torch.cuda.get_device_name(0).lower().replace("nvidia", "").strip().replace(" ", "_")
    return Path(__file__).parent / "results" / f"gpu_{name}.json"


def main() -> int:
    """Parse the command line; 0 when every kernel is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="list the rows and what each should reach, then stop")
    parser.add_argument("--only", default="", metavar="A,B", help="cases whose name or shape contains one of these")
    parser.add_argument("--seconds", type=float, default=430.0, help="cases that would end later are skipped")
    parser.add_argument("--ours", action="store_true", help="leave the peers as an earlier run found them")
    parser.add_argument("--out", default="", help="JSON file (default: results/gpu_DEVICE.json beside this file)")
    parser.add_argument("--rebuild", action="store_true", help="build the native library even if it is there")
    options = parser.parse_args()
    words = options.only.split(",")
    chosen = [case for case in cases() if any(word in f"{case.op} {case.shape}" for word in words)]
    if options.dry_run:
        for case in chosen:
            print(f"{case.op:<18} {case.shape:<34} {case.reach}")
        return 0
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device; run it on a machine with a GPU (check nvidia-smi).")
        return 1
    return min(run(options, chosen), 1)


if __name__ == "__main__":
    raise SystemExit(main())
