"""Experts on ranks: where a checkpoint numbers them against where they are planned, as the load drifts.

Each step every expert gets tokens in proportion to a popularity that falls as a power of its place in an order, noise
included, and every few hundred steps some experts change places in that order, so that a plan grows old. "static" keeps
contiguous runs; "planned" averages the loads (EMA) and plans anew every `--every` steps, paying for each expert that it
moves. A step lasts as long as its fullest rank: `speedup` is the static ranks' time over the planned ones', moves paid.
`balanced` is what one more plan on the step's own loads would reach, the bound of moving without copies.
No device and no model is needed: it is the plan that is judged. The seconds of a token and of a move are parameters.
Run: `python benchmarks/expert_placement.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from turns import environment, save

from seedthink.parallel.placement import Price, averaged, imbalance, planned, rank_loads, static_placement

# experts, ranks, exponent of the popularity
CASES = [(64, 8, 0.5), (128, 8, 0.5), (128, 8, 0.8), (128, 16, 0.5), (256, 32, 0.4)]
TOKENS, DRIFT_STEPS, DRIFTING, DECAY = 65536 * 8, 200, 0.1, 0.95


def loads_of(experts: int, exponent: float, steps: int, seed: int) -> list[list[float]]:
    """Tokens of each expert, step by step."""
    draw = np.random.default_rng(seed)
    popularity_E = np.arange(1, experts + 1) ** -exponent
    found = []
    for step in range(steps):
        if step and step % DRIFT_STEPS == 0:
            chosen = draw.choice(experts, max(2, int(DRIFTING * experts)), replace=False)
            popularity_E[chosen] = popularity_E[draw.permutation(chosen)]
        found.append(draw.multinomial(TOKENS, popularity_E / popularity_E.sum()).astype(float).tolist())
    return found


def measure(experts: int, ep: int, exponent: float, every: int, price: Price, steps: int) -> dict[str, Any]:
    """One row: imbalance of both ways over the steps after the first plan, experts moved, and seconds of all steps."""
    static = here = static_placement(experts, ep)
    mean_E: list[float] = []
    plan_ms, moved, paid = [], 0, 0.0
    times: dict[str, list[float]] = {"static": [], "planned": []}
    uneven: dict[str, list[float]] = {"static": [], "planned": [], "balanced": []}
    free = Price(token_seconds=price.token_seconds, move_seconds=0.0, steps=1)
    for step, tokens_E in enumerate(loads_of(experts, exponent, steps, seed=0)):
        for name, placement in (("static", static), ("planned", here)):
            times[name].append(max(rank_loads(tokens_E, placement, ep)) * price.token_seconds)
            uneven[name].append(imbalance(tokens_E, placement, ep))
        mean_E = averaged(mean_E, tokens_E, DECAY)
        if (step + 1) % every == 0:
            uneven["balanced"].append(planned(tokens_E, here, ep, free).imbalance_after)
            began = time.perf_counter()
            found = planned(mean_E, here, ep, price)
            plan_ms.append(1e3 * (time.perf_counter() - began))
            here, moved, paid = found.placement, moved + found.moved, paid + found.cost_seconds
    row: dict[str, Any] = {"experts": experts, "ep": ep, "exponent": exponent, "steps": steps, "every": every}
    later = {name: values[every:] if len(values) == steps else values for name, values in uneven.items()}
    row |= {f"{name}_imbalance_mean": statistics.mean(values) for name, values in later.items()}
    row |= {f"{name}_imbalance_most": max(values) for name, values in later.items()}
    row |= {"moved": moved, "paid_seconds": paid, "plan_ms": statistics.median(plan_ms)}
    return row | {"speedup": sum(times["static"]) / (sum(times["planned"]) + paid)}


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="steps between plans")
    parser.add_argument("--token-seconds", type=float, default=2e-6, help="an expert's work on one token, all layers")
    parser.add_argument("--move-seconds", type=float, default=0.02, help="to move one expert, optimizer state included")
    options = parser.parse_args()
    price = Price(token_seconds=options.token_seconds, move_seconds=options.move_seconds, steps=options.every)
    surroundings, rows = environment(), []
    print("experts  ep  exponent  fullest over mean: static  planned  balanced   moved  plan, ms  speedup")
    for experts, ep, exponent in CASES:
        row = measure(experts, ep, exponent, options.every, price, options.steps)
        rows.append(row)
        print(
            f"{experts:7}  {ep:2}  {exponent:8}  {row['static_imbalance_mean']:25.3f}  "
            f"{row['planned_imbalance_mean']:7.3f}  {row['balanced_imbalance_mean']:8.3f}  {row['moved']:6}  "
            f"{row['plan_ms']:8.2f}  {row['speedup']:7.2f}",
            flush=True,
        )
    save("expert_placement", rows, surroundings)


if __name__ == "__main__":
    main()
