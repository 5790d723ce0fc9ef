"""One step of reinforcement learning against TRL's: generation, rewards, one update; each side a process, in turns.

Model: Qwen3-MoE, vocabulary 128, width 256, 4 layers, 4 heads, 2 KV heads, head 64, 8 experts top-2 of width 256 (7.15
M parameters), random weights. 16 prompts of 32 tokens, 8 answers each, all of 64 tokens (the end-of-sequence token
cannot be drawn), the reward a function of the token ids. GRPO without a reference model, one AdamW step at 1e-4, 2
threads. Ours is the training loop in one process. TRL generates with transformers, in its fastest settings for this
model on a CPU (see `trl_run.py`; `--peer-settings` tries others): weights and products in float32, the same under
autocast to bfloat16, and weights in bfloat16. "float32" compares float32 with float32, "bfloat16" ours with the fastest
of the three. FLOPs are those of the matrix products that a side computes (`products.py`).
Run: `python benchmarks/rl_step.py`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from contestant import Contestant
from products import generation_flops, learning_flops, matmul_peak
from rl_task import MIDDLE, write_model
from turns import environment, quiet_seconds, save

from seedthink.models.config import ModelConfig

PROMPTS, GROUP, PROMPT, NEW = 16, 8, 32, 64
ROLLOUTS = PROMPTS * GROUP
OURS = {"ours float32": "float32", "ours bfloat16": "bfloat16"}
PEERS = {"TRL float32": "float32", "TRL autocast": "autocast", "TRL bfloat16": "bfloat16"}
WARM_UP = 2


def contestants(model: Path, threads: int, peer_settings: Sequence[str]) -> list[Contestant]:
    """All sides, started."""
    shared = [str(model), "--prompts", str(PROMPTS), "--prompt-tokens", str(PROMPT), "--tokens", str(NEW)]
    shared += ["--threads", str(threads)]
    own = [
        Contestant(name, "own_run.py", [*shared, "--dtype", kind], model.parent / name) for name, kind in OURS.items()
    ]
    endless = ["--turns", "--steps", "1000", *peer_settings]
    return own + [
        Contestant(name, "trl_run.py", [*shared, "--precision", kind, *endless], model.parent / name)
        for name, kind in PEERS.items()
    ]


def timed_turn(side: Contestant, patience: float) -> dict[str, Any]:
    """One step in a quiet moment, if there is one."""
    said: dict[str, Any] = {}

    def turn() -> float:
        said.update(side.turn())
        return float(said["processor_seconds"])

    elsewhere = quiet_seconds(turn, patience)[1]
    return said | {"cores_used_elsewhere": elsewhere}


def work(turn: dict[str, Any]) -> int:
    """FLOPs of a side's step. TRL computes each copy of a prompt; we say how many tokens we ran through the model."""
    config, answers = ModelConfig(**MIDDLE), ROLLOUTS * NEW
    generated = turn.get("generation_tokens", ROLLOUTS * (PROMPT + NEW - 1))
    learned = turn.get("learning_tokens", ROLLOUTS * (PROMPT + NEW))
    return generation_flops(config, generated, answers) + learning_flops(config, learned, answers)


def summary(name: str, turns: list[dict[str, Any]], peaks: dict[str, float]) -> dict[str, Any]:
    """Medians of one side."""
    median = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
    peak = peaks["float32" if "float32" in name else "bfloat16"]
    row = {
        "side": name,
        "seconds": [turn["seconds"] for turn in turns],
        "median_seconds": median["seconds"],
        "generation_share": median["generate_seconds"] / median["seconds"],
        "tokens_per_second": ROLLOUTS * NEW / median["seconds"],
        "share_of_matmul_peak": work(turns[-1]) / median["seconds"] / peak,
        "cores_used_elsewhere": max(turn["cores_used_elsewhere"] for turn in turns),
    }
    if "learn_seconds" in median:
        row["learning_share"] = median["learn_seconds"] / median["seconds"]
        row["logp_gap_max"] = max(turn["logp_gap_max"] for turn in turns)
    else:
        row["learning_share"] = 1.0 - row["generation_share"]  # rewards of token counts take next to nothing
    return row


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against TRL: medians, and the pairing that is worst for us."""
    sides = {row["side"]: row for row in rows}
    fastest = min((sides[name] for name in PEERS), key=lambda row: row["median_seconds"])
    found = []
    for own, peer in ((sides["ours float32"], sides["TRL float32"]), (sides["ours bfloat16"], fastest)):
        found.append(
            {
                "ours": own["side"],
                "peer": peer["side"],
                "ratio": peer["median_seconds"] / own["median_seconds"],
                "ratio_lowest": min(peer["seconds"]) / max(own["seconds"]),
            }
        )
    return found


def matmul_peaks() -> dict[str, float]:
    """FLOP/s of the best torch.mm, by dtype."""
    return {name: matmul_peak(getattr(torch, name)) for name in ("float32", "bfloat16")}


def race(model: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Turns of all sides; one row each, then the machine's peak and the ratios."""
    before = matmul_peaks()
    sides = contestants(model, options.threads, options.peer_settings)
    try:
        for _ in range(WARM_UP):
            for side in sides:
                side.turn()
        turns: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        for _ in range(options.repeats):
            for side in sides:
                turns[side.name].append(timed_turn(side, options.patience))
        peaks = {name: max(flops, before[name]) for name, flops in matmul_peaks().items()}
        rows = [summary(name, found, peaks) for name, found in turns.items()]
        for side, row in zip(sides, rows, strict=True):
            if side.name in PEERS:
                row["time_inside_matmul"] = side.turn("profile")["matmul_share"]
    finally:
        for side in sides:
            side.close()
    return [*rows, {"machine_matmul_flops": peaks}, *ratios(rows)]


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    for row in rows:
        if "side" in row:
            inside = f", {row['time_inside_matmul']:.0%} inside matmul" if "time_inside_matmul" in row else ""
            print(
                f"{row['side']:>14}: {row['median_seconds']:6.2f} s a step ({min(row['seconds']):.2f} to "
                f"{max(row['seconds']):.2f}), generation {row['generation_share']:.0%}, learning "
                f"{row['learning_share']:.0%}, {row['share_of_matmul_peak']:.0%} of matmul peak{inside}; elsewhere "
                f"{row['cores_used_elsewhere']:.2f}"
            )
        elif "ratio" in row:
            print(f"{row['ours']} against {row['peer']}: {row['ratio']:.2f} (lowest {row['ratio_lowest']:.2f})")
        else:
            print(
                ", ".join(f"{n} matmul {flops / 1e9:.0f} GFLOP/s" for n, flops in row["machine_matmul_flops"].items())
            )


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for a quiet machine, per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-settings", nargs=argparse.REMAINDER, default=[], help="passed on to trl_run.py")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    surroundings = environment() | {each: metadata.version(each) for each in ("trl", "transformers")}
    with tempfile.TemporaryDirectory() as folder:
        rows = race(write_model(Path(folder) / "model", MIDDLE), options)
    show(rows)
    save("rl_step", rows, surroundings)


if __name__ == "__main__":
    main()
