"""The kernel auto-tuner on recorded times: regret, gain, cost of exploring, and what a choice takes.

`--record` measures the whole matrix of configurations and loads on this machine, in turns, and writes it to
traces/tuner_matrix.json. Without it, traces of loads are replayed against that file: steady, ramp, bursty and skewed
loads, an arm that becomes slow midway, and identical arms. The online selector begins without a table ("cold") and
with a table made of the samples that deciders see ("table"). Thresholds were set on the traces "saw" and "walk"
(`--traces saw walk`), which are not reported. Intervals are over seeds (95 %, of the trace and of the samples drawn).
Run: `python benchmarks/tuner.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from turns import environment, save

from seedthink import _C
from seedthink.autotune.buckets import bucket
from seedthink.autotune.cases import build
from seedthink.autotune.device import identity
from seedthink.autotune.install import MATTERS, arms_of, expected_of
from seedthink.autotune.online import OnlineSelector
from seedthink.autotune.replay import Cell, Column, Outcome, Slowdown, replay, total
from seedthink.autotune.roofline import Rates, measure
from seedthink.autotune.search import checked, timed
from seedthink.autotune.spaces import SHAPES, SPACES, Space
from seedthink.kernels import selector
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load

MATRIX = Path(__file__).parent / "traces" / "tuner_matrix.json"
STEPS, SEEDS = 20_000, 10
GENERATE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LEARN = (256, 512, 1024, 2048, 4096)
IMBALANCE, FILL = (1.0, 4.0), (0.125, 0.625)
Trace = Callable[[Sequence[Load], int, random.Random], list[Load]]


# Recording


def grid(space: Space) -> list[Load]:
    """The loads of an operation at which the matrix is measured."""
    tokens = LEARN if space.phase in ("learn", "credit") else GENERATE
    return [
        Load(rows, imbalance, fill)
        for imbalance in (IMBALANCE if "imbalance" in space.loads else (1.0,))
        for fill in (FILL if "cache_fill" in space.loads else (0.0,))
        for rows in tokens
    ]


def record(shape: str, samples: int, threads: int, ops: Sequence[str]) -> dict[str, Any]:
    """The matrix: every configuration of every space at every load, each checked before it is timed."""
    columns = []
    for op in ops:
        space = SPACES[op]
        if not space.relevant(SHAPES[shape]):
            continue
        cells, elsewhere = [], 0.0
        for load in grid(space):
            case = build(space.key(SHAPES[shape], "float32", load))
            right, wrong = checked(case, space.configs(threads))
            assert not wrong, wrong
            paired = timed(case, right, samples)
            elsewhere = max(elsewhere, paired.cores_used_elsewhere)
            microseconds = {c.name: [float(f"{s * 1e6:.4g}") for s in paired.samples(c.name)] for c in right}
            cells.append({"load": list(load), "microseconds": microseconds})
        selector.apply(op, {})
        configs = {c.name: dict(c.values) for c in space.configs(threads)}
        columns.append({"op": op, "dims": space.dims(SHAPES[shape]), "configs": configs, "cells": cells})
        print(f"{op}: {len(configs)} configurations, {len(cells)} loads, elsewhere {elsewhere:.2f}", flush=True)
    rates = measure(threads)
    return {
        "shape": shape,
        "threads": threads,
        "rates": rates.as_dict(),
        "environment": environment(),
        "columns": columns,
    }


def read(content: Mapping[str, Any]) -> list[Column]:
    """The recorded matrix. Configurations whose slow side had fewer samples than two are not there."""
    found = []
    for column in content["columns"]:
        configs = {name: Config(name, values) if values else BUILT_IN for name, values in column["configs"].items()}
        cells = {
            Load(*cell["load"]): {
                name: Cell.of([us * 1e-6 for us in samples]) for name, samples in cell["microseconds"].items()
            }
            for cell in column["cells"]
        }
        key = Key(column["op"], "float32", tuple(column["dims"]), Load(1))
        found.append(Column(key, configs, cells))
    return found


# Traces: sequences of the matrix's loads


def _at(loads: Sequence[Load], place: float) -> Load:
    return loads[min(len(loads) - 1, max(0, int(place * len(loads))))]


def steady(loads: Sequence[Load], steps: int, draw: random.Random) -> list[Load]:
    """One size of batch, one step in ten the next larger or smaller one."""
    same = _same_class(loads)
    middle = int(0.6 * len(same))
    moves = draw.choices((0, 1, -1), (18, 1, 1), k=steps)
    return [same[min(len(same) - 1, max(0, middle + move))] for move in moves]


def ramp(loads: Sequence[Load], steps: int, draw: random.Random) -> list[Load]:
    """From the smallest batch to the largest and back, four times, as sequences start and end."""
    same, phase = _same_class(loads), draw.random()
    return [_at(same, 1 - abs(2 * ((phase + 4 * step / steps) % 1) - 1)) for step in range(steps)]


def bursty(loads: Sequence[Load], steps: int, draw: random.Random) -> list[Load]:
    """Few rows, and bursts of many; either lasts 60 steps on average."""
    same, found, high = _same_class(loads), [], False
    third = max(1, len(same) // 3)
    for _ in range(steps):
        high ^= draw.random() < 1 / 60
        found.append(draw.choice(same[-third:] if high else same[:third]))
    return found


def skewed(loads: Sequence[Load], steps: int, draw: random.Random) -> list[Load]:
    """Imbalance and cache fill wander over all their classes, the size of the batch among neighbours."""
    sizes = sorted({load.tokens for load in loads})
    classes = sorted({(load.imbalance, load.cache_fill) for load in loads})
    at, size, found = len(classes) // 2, int(0.7 * len(sizes)), []
    for _ in range(steps):
        if draw.random() < 1 / 100:
            at = draw.randrange(len(classes))
        if draw.random() < 1 / 20:
            size = min(len(sizes) - 1, max(len(sizes) // 2, size + draw.choice((-1, 1))))
        found.append(Load(sizes[size], *classes[at]))
    return found


def saw(loads: Sequence[Load], steps: int, draw: random.Random) -> list[Load]:
    """For setting thresholds: from large to small, then at once large again, 30 times."""
    same, phase = _same_class(loads), draw.random()
    return [_at(same, 1 - (phase + 30 * step / steps) % 1) for step in range(steps)]


def walk(loads: Sequence[Load], steps: int, draw: random.Random) -> list[Load]:
    """For setting thresholds: a random walk over all loads in order of rows."""
    ordered, at, found = sorted(loads), draw.randrange(len(loads)), []
    for _ in range(steps):
        if draw.random() < 0.1:
            at = min(len(ordered) - 1, max(0, at + draw.choice((-1, 1))))
        found.append(ordered[at])
    return found


def _same_class(loads: Sequence[Load]) -> list[Load]:
    first = loads[0]
    return sorted(load for load in loads if (load.imbalance, load.cache_fill) == (first.imbalance, first.cache_fill))


TRACES: Mapping[str, Trace] = {
    "steady": steady,
    "ramp": ramp,
    "bursty": bursty,
    "skewed": skewed,
    "drift": bursty,
    "identical": bursty,
    "saw": saw,
    "walk": walk,
}
REPORTED = ("steady", "ramp", "bursty", "skewed", "drift", "identical")


# Replaying


def tabulated(columns: Sequence[Column], known: Mapping[tuple[str, Load], str]) -> Callable[[Key], Config]:
    """A table's choice: the best configuration at the measured load of the key's class, of the samples to decide by."""
    of = {column.key.op: column for column in columns}
    classes: dict[tuple[Any, ...], Config] = {}
    for column in columns:
        for load in sorted(column.cells, reverse=True):
            place = (column.key.op, bucket(load, MATTERS[column.key.op]))
            classes[place] = column.configs[known[column.key.op, load]]
    return lambda key: classes.get((key.op, bucket(key.load, MATTERS[key.op])), BUILT_IN) if key.op in of else BUILT_IN


def adopted(columns: Sequence[Column]) -> dict[tuple[str, Load], str]:
    """The best configuration at each load, where its samples to decide by are over 1 % below the built-in one's."""
    found = {}
    for column in columns:
        for load, row in column.cells.items():
            best = column.best(load)
            found[column.key.op, load] = best if row[best].median < 0.99 * row[BUILT_IN.name].median else BUILT_IN.name
    return found


def identical(columns: Sequence[Column]) -> list[Column]:
    """The negative control: every configuration has the built-in one's samples."""
    return [
        Column(c.key, c.configs, {load: dict.fromkeys(row, row[BUILT_IN.name]) for load, row in c.cells.items()})
        for c in columns
    ]


def run_once(
    columns: Sequence[Column], trace: str, seed: int, rates: Rates, threads: int, warm: bool, steps: int
) -> tuple[dict[str, Outcome], OnlineSelector, list[Mapping[str, Any]]]:
    """One replay: a trace of this seed, a selector without or with a table."""
    draw, events = random.Random(seed), []
    if trace == "identical":
        columns = identical(columns)
    start = tabulated(columns, adopted(columns)) if warm else (lambda key: BUILT_IN)
    traces = {c.key.op: TRACES[trace](list(c.cells), steps, draw) for c in columns}
    slow = {c.key.op: _slowdown(c, traces[c.key.op], steps) for c in columns} if trace == "drift" else None
    online = OnlineSelector(
        arms_of(threads, rates),
        expected_of(threads, rates),
        MATTERS,
        start=start,
        source=random.Random(seed + 1),
        clock=lambda: 0.0,
        note=events.append,
    )
    return replay(columns, traces, online, start, seed=seed + 2, slowdowns=slow), online, events


def _slowdown(column: Column, trace: Sequence[Load], steps: int) -> Slowdown:
    """Half-way, the configuration that is best over the trace takes twice as long."""
    sums = {name: sum(column.cells[load][name].median for load in set(trace)) for name in column.configs}
    return Slowdown(steps // 2, min(sums, key=lambda name: sums[name]), 2.0)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval over seeds."""
    mean = statistics.fmean(values)
    half = 2.26 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, mean - half, mean + half


def rows_of(
    columns: Sequence[Column], trace: str, rates: Rates, threads: int, warm: bool, seeds: int, steps: int
) -> Iterator[dict[str, Any]]:
    """One row for each operation and one for all together."""
    runs = [run_once(columns, trace, 100 * seed, rates, threads, warm, steps) for seed in range(seeds)]
    adoptions = [sum(event["event"] == "adopt" for event in events) for _, _, events in runs]
    for op in [*(c.key.op for c in columns), "all"]:
        outcomes = [total(list(found.values())) if op == "all" else found[op] for found, _, _ in runs]
        row: dict[str, Any] = {"trace": trace, "start": "table" if warm else "cold", "op": op}
        row["regret"] = interval([o.regret for o in outcomes])
        row["gain"] = interval([o.gain for o in outcomes])
        row["gain_over_built_in"] = interval([1 - o.online / o.built_in for o in outcomes])
        row["explored"] = interval([o.lost / o.online for o in outcomes])
        row["start_regret"] = interval([o.start / o.oracle - 1 for o in outcomes])
        row["static_regret"] = interval([o.best_static / o.oracle - 1 for o in outcomes])
        if op == "all":
            row["adoptions"] = statistics.fmean(adoptions)
        yield row


# What else is judged


def choice_microseconds(online: OnlineSelector, key: Key) -> float:
    """Median over batches of what one `decide` takes, the key's making included, in processor time of this thread."""
    took = []
    for _ in range(51):
        began = time.thread_time()
        for _ in range(1000):
            online.decide(Key(key.op, key.dtype, key.dims, key.load))
        took.append((time.thread_time() - began) * 1e3)
    return statistics.median(took)


def pruning(columns: Sequence[Column], rates: Rates, threads: int) -> dict[str, Any]:
    """How often the cost model threw the true best away, and how much slower the best that it kept is there."""
    lost, losses, kept, of = 0, [], 0, 0
    arms = arms_of(threads, rates)
    for column in columns:
        for load, row in column.cells.items():
            names = [config.name for config in arms(column.key._replace(load=load))]
            kept, of = kept + len(names), of + len(row)
            best, remaining = column.best(load), min(names, key=lambda name: row[name].median)
            lost += best not in names
            losses.append(row[remaining].charged / row[best].charged - 1)
    points = len(losses)
    return {
        "points": points,
        "best_pruned": lost / points,
        "kept_share": kept / of,
        "mean_loss": statistics.fmean(losses),
        "worst_loss": max(losses),
    }


def in_bucket(columns: Sequence[Column]) -> dict[str, float]:
    """What classes of loads cost: the choice made at the class's centre against the best at each load of it."""
    start = tabulated(columns, {(c.key.op, load): c.best(load) for c in columns for load in c.cells})
    losses = [
        row[start(c.key._replace(load=load)).name].charged / row[c.best(load)].charged - 1
        for c in columns
        for load, row in c.cells.items()
    ]
    return {"mean": statistics.fmean(losses), "worst": max(losses)}


def show(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    parts = [
        f"{row[name][0]:+7.2%} [{row[name][1]:+.2%}, {row[name][2]:+.2%}]" for name in ("regret", "gain", "explored")
    ]
    adoptions = f"adopted {row['adoptions']:g} times" if "adoptions" in row else ""
    return f"{row['trace']:>9} {row['start']:5} {row['op']:13} " + "  ".join(f"{part:28}" for part in parts) + adoptions


def main() -> None:
    """Record or replay; print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--shape", default="quickstart", choices=list(SHAPES))
    parser.add_argument("--ops", nargs="*", default=list(SPACES))
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--traces", nargs="*", default=list(REPORTED), choices=list(TRACES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    _C.set_threads(options.threads)
    if options.record:
        MATRIX.parent.mkdir(exist_ok=True)
        content = record(options.shape, options.samples, options.threads, options.ops)
        MATRIX.write_text(json.dumps(content, separators=(",", ":")) + "\n")
        return
    content = json.loads(MATRIX.read_text())
    columns, rates = [c for c in read(content) if c.key.op in options.ops], Rates(**content["rates"])
    threads = content["threads"]
    rows = []
    print(f"{'':29}{'regret':28}  {'gain over best static':28}  {'lost to exploring':28}")
    for trace in options.traces:
        for warm in (False, True):
            for row in rows_of(columns, trace, rates, threads, warm, options.seeds, options.steps):
                rows.append(row)
                print(show(row), flush=True)
    online = run_once(columns, options.traces[0], 0, rates, threads, False, 2000)[1]
    extra = {"what": "choice", "microseconds": choice_microseconds(online, columns[0].key._replace(load=Load(64)))}
    extra |= {"pruning": pruning(columns, rates, threads), "in_bucket_regret": in_bucket(columns)}
    print(json.dumps(extra, indent=1))
    save("tuner", [*rows, extra], {**environment(), "matrix": content["environment"], "identity": identity().as_dict()})


if __name__ == "__main__":
    main()
