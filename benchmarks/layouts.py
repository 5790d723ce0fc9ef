"""The quickstart's VAPO run under several layouts of four ranks, beside one rank: the same curve.

Each layout trains the quickstart's fine-tuned model for some steps, under torchrun or mpirun, from the same seed. Step
1 is drawn by the same weights, so its answers, log-probs and scores must be equal to the bit; later steps follow
gradients that agree to float32 rounding (with bfloat16 operands to theirs), so an answer may turn where two tokens
nearly tie, and curves stay close. `gap` is the largest difference between the generator's log-probs and the trainer's,
which must be 0 everywhere.
Needs a finished `make quickstart` (or --model). Run: `python benchmarks/layouts.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import environment, save

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS: dict[str, tuple[str, dict[str, int]]] = {
    "one rank": ("", {}),
    "tp2 ep2": ("torchrun", {"tp": 2, "ep": 2}),
    "cp2 dp2": ("mpirun", {"cp": 2}),
    "dp_shard 4": ("torchrun", {}),
    "tp2 cp2 ep4": ("torchrun", {"tp": 2, "cp": 2, "ep": 4}),
}
WATCHED = ("critic/score/mean", "actor/entropy", "actor/pg_loss", "critic/vf_loss", "actor/grad_norm")


def command(launcher: str, ranks: int) -> list[str]:
    """What starts the ranks."""
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "seedthink"]
    if launcher == "mpirun":
        start = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
        return [*start, sys.executable, "-m", "seedthink"]
    return [sys.executable, "-m", "seedthink"]


def curve(name: str, model: Path, steps: int) -> list[dict[str, Any]]:
    """The metrics of each step of a run under a layout."""
    launcher, axes = LAYOUTS[name]
    with tempfile.TemporaryDirectory() as place:
        options: dict[str, Any] = {"model.path": model, "run.folder": place, "run.steps": steps}
        options |= {"controller.kind": "local", "value_pretraining.max_steps": 2, "evaluation.problems": 8}
        options |= {f"parallel.{axis}": size for axis, size in axes.items()}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        recipe = str(ROOT / "recipes" / "quickstart" / "rl.toml")
        quiet = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command(launcher, 4), "rl", recipe, *words], env=quiet, capture_output=True, text=True, cwd=ROOT
        )
        if done.returncode:
            raise SystemExit(f"{name}: {(done.stdout + done.stderr)[-2000:]}")
        (metrics,) = Path(place).rglob("metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row for row in rows if row.get("stage") == "rl" and "critic/score/mean" in row]


def compared(name: str, mine: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """A layout's curve beside one rank's."""
    gap = max(row["rollout/logp_gap_max"] for row in mine)
    first = [key for key in WATCHED if key in alone[0] and mine[0][key] == alone[0][key]]
    return {
        "layout": name,
        "launcher": LAYOUTS[name][0],
        "gap": gap,
        "equal_in_step_1": first,
        "same_scores": sum(a["critic/score/mean"] == b["critic/score/mean"] for a, b in zip(mine, alone, strict=True)),
        "apart": {
            key: max(abs(a[key] - b[key]) for a, b in zip(mine, alone, strict=True))
            for key in WATCHED
            if key in alone[0]
        },
        "score": [row["critic/score/mean"] for row in mine],
        "seconds_per_step": sorted(row["timing_s/step"] for row in mine)[len(mine) // 2],
    }


def main() -> None:
    """Train under each layout, print, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "runs" / "quickstart" / "sft" / "export")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="", help="layouts whose name contains this, beside one rank")
    options = parser.parse_args()
    if not options.model.is_dir():
        raise SystemExit(f"{options.model} is no model folder: run `make quickstart` first, or give --model")
    surroundings, rows = environment(), []
    alone = curve("one rank", options.model, options.steps)
    for name in LAYOUTS:
        if options.only not in name and name != "one rank":
            continue
        mine = alone if name == "one rank" else curve(name, options.model, options.steps)
        rows.append(compared(name, mine, alone))
        row = rows[-1]
        scores = " ".join(f"{score:.2f}" for score in row["score"])
        print(f"{name:12} gap {row['gap']:g}, step {row['seconds_per_step']:.1f} s, score {scores}", flush=True)
        print(f"{'':12} apart {json.dumps({key: round(value, 6) for key, value in row['apart'].items()})}", flush=True)
        save("layouts", rows, surroundings)


if __name__ == "__main__":
    main()
