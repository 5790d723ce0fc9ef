"""The quickstart as a whole: its time, memory and accuracy on several seeds, and what it is measured against.

For each seed: `seedthink quickstart` in a fresh folder (Ray), wall time from process start and the largest sum of PSS
over its process tree; accuracy before and after with 95 % intervals; accuracy with an empty think block. With
`--compare` GRPO and longer SFT follow, each for the training time of VAPO. Then transformers samples the exported
folder, at temperature 1, on problems of another seed, judged by the same verifiers; so do we, on the same problems.
Run: `python benchmarks/quickstart.py --compare` (about 15 minutes a seed on two cores).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import environment, save

import seedthink
from seedthink.config.commands import EvalConfig
from seedthink.controller.evaluation import Accuracy, accuracy
from seedthink.controller.quickstart import recipe
from seedthink.controller.sources import held_out_prompts
from seedthink.data.tokenizer import Tokenizer
from seedthink.rewards.inline import InlineJudge
from seedthink.telemetry.memory import MemorySampler
from seedthink.types import Completion, Finish, Prompt, Rollout, Scored

SAMPLES, MAX_TOKENS, OTHER_SEED = 4, 120, 1000


def quickstart(folder: Path, seed: int, *flags: str) -> dict[str, float]:
    """Run the command; wall seconds and the peak of its process tree's PSS."""
    command = [sys.executable, "-m", "seedthink", "quickstart", "--folder", str(folder), "--seed", str(seed), *flags]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with MemorySampler(root=process.pid) as memory:
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"wall_seconds": time.monotonic() - began, "peak_pss_gib": memory.peak_bytes / 2**30}


def summary(run: Path) -> dict[str, Any]:
    """A run folder's summary.json."""
    return dict(json.loads((run / "summary.json").read_text()))


def points(entry: dict[str, Any]) -> dict[str, float]:
    """Mean and interval, in per cent."""
    return {name: round(100 * entry[name], 2) for name in ("mean", "low", "high")}


def judged(prompts: list[Prompt], answers: list[list[Completion]]) -> Accuracy:
    """Accuracy of answers to prompts, by the product's verifiers."""
    judge = InlineJudge()
    for prompt, completions in zip(prompts, answers, strict=True):
        judge.submit([Rollout(prompt, completion, prompt.id, i) for i, completion in enumerate(completions)])
    by_problem: dict[str, list[Scored]] = {}
    for rollout, judgement in judge.collect():
        by_problem.setdefault(rollout.prompt.id, []).append(Scored(rollout, judgement, judgement.score))
    return accuracy(list(by_problem.values()), SAMPLES)


def by_transformers(export: Path, prompts: list[Prompt]) -> Accuracy:
    """transformers' own `generate` on the exported folder, plain sampling, a batch of one prompt's samples each."""
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.load(export)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    torch.manual_seed(0)
    answers = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt.tokens_T.astype("int64")).repeat(SAMPLES, 1)
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS)
        answers.append([as_completion(row.tolist(), tokenizer) for row in out[:, ids.shape[1] :]])
    return judged(prompts, answers)


def as_completion(tokens: list[int], tokenizer: Tokenizer) -> Completion:
    """A completion as verifiers see it: they read the text, without stop and padding tokens."""
    tokens_T = np.array(tokens, np.int32)
    nothing_T = np.zeros(len(tokens))
    return Completion(
        "", tokens_T, nothing_T.astype("f4"), nothing_T.astype("i4"), Finish.STOP, tokenizer.decode(tokens)
    )


def by_ours(export: Path, prompts: list[Prompt]) -> Accuracy:
    """Our generator on the same folder and problems."""
    llm = seedthink.LLM(export)
    answers = llm.generate([p.tokens_T.tolist() for p in prompts], n=SAMPLES, max_tokens=MAX_TOKENS, seed=0)
    return judged(prompts, answers)


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """One seed, start to end."""
    shutil.rmtree(folder, ignore_errors=True)
    row: dict[str, Any] = {"seed": seed, **quickstart(folder, seed)}
    run = folder / "quickstart"
    trained = summary(run)
    row |= {
        "before": points(trained["accuracy_before"]),
        "after": points(trained["accuracy_after"]),
        "gain": round(100 * (trained["accuracy_after"]["mean"] - trained["accuracy_before"]["mean"]), 2),
        "value_explained": round(trained["value_explained"], 3),
        "logp_gap_max": trained["logp_gap_max"],
        "rl_seconds": trained["seconds"],
        "parameters": trained["parameters"],
        "active_parameters": trained["active_parameters"],
        "thinking_free": points(summary(run / "eval-free")["accuracy_after"]),
        "thinking_empty": points(summary(run / "eval-empty")["accuracy_after"]),
    }
    export = run / "export"
    config = recipe("eval", EvalConfig, {"model.path": str(export)})
    prompts = held_out_prompts(config.data, Tokenizer.load(export), config.evaluation.problems, OTHER_SEED + seed)
    row["by_transformers"] = points(vars_of(by_transformers(export, prompts)))
    row["by_ours"] = points(vars_of(by_ours(export, prompts)))
    return row


def rivals(folder: Path, seed: int) -> dict[str, Any]:
    """GRPO and longer fine-tuning from the same start, each for VAPO's time; the finished run is not run again."""
    quickstart(folder, seed, "--compare")
    names = {"grpo": "quickstart-grpo", "longer_sft": "quickstart-sft"}
    return {key: points(summary(folder / name)["accuracy_after"]) for key, name in names.items()}


def vars_of(found: Accuracy) -> dict[str, Any]:
    """Mean and interval of an accuracy."""
    return {"mean": found.mean, "low": found.low, "high": found.high}


def main() -> None:
    """Measure, print a table, write results/quickstart.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--compare", action="store_true", help="GRPO and longer SFT for the same time too")
    options = parser.parse_args()
    surroundings = environment() | {"command": "python benchmarks/quickstart.py " + " ".join(sys.argv[1:])}
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        rows.append(measure(options.folder / f"seed-{seed}", seed))
        save("quickstart", rows, surroundings)
        print(json.dumps(rows[-1]), flush=True)
    for row in rows if options.compare else []:
        row |= rivals(options.folder / f"seed-{row['seed']}", row["seed"])
        save("quickstart", rows, surroundings)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
