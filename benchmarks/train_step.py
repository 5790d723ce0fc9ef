"""One training step against transformers, in turns in one process: the same weights, tokens and optimizer.

Model: the 7.15 M Qwen3-MoE of rl_task.py. A step is forward, the negative log-likelihood of every next token, backward,
clipping at 1 and AdamW, on sequences of one length (padding would be the peer's loss alone). Ours is the exact mode,
the only one there is: packed, row-exact products, our attention. Peers: transformers with SDPA attention and grouped or
eager experts, in float32 and in bfloat16 weights, eager and under torch.compile (compiled before the clock starts).
`ratio` is the quickest peer of any dtype over ours, `over_eager` the quickest that is not compiled; `over_same_dtype`
is the quickest of the same dtype over ours: where it is above 1, exact mode costs nothing against them.
Run: `python benchmarks/train_step.py`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_task import MIDDLE
from transformers import AutoModelForCausalLM
from turns import environment, in_turns, save

from seedthink.config.sections import OptimizerConfig
from seedthink.engine.micro_batch import unlabelled_batch
from seedthink.engine.model_io import load_model, save_model
from seedthink.engine.trainer import Trainer, policy_forward
from seedthink.kernels.build import set_threads
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer
from seedthink.rl.loss import imitation

CONFIG = ModelConfig(**MIDDLE)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RATE, CLIP = 1e-5, 1.0
Step = Callable[[], float]


def ours(folder: Path, tokens_BL: np.ndarray, dtype: str) -> Step:
    """A step of our trainer; returns the loss before it."""
    count, length = tokens_BL.shape
    settings = OptimizerConfig(lr=RATE, grad_clip=CLIP, warmup_steps=0, schedule="constant")
    trainer = Trainer(load_model(folder, DTYPES[dtype]), policy_forward, settings, 1 << 30)
    mask_L = (np.arange(length) > 0).astype(np.float32)
    predicted = float(count * (length - 1))
    batch = unlabelled_batch(list(tokens_BL), [mask_L] * count, tokens_BL.size, predicted, float(count))
    return lambda: trainer.learn(batch, imitation).metrics["train/loss"]


def theirs(folder: Path, tokens_BL: np.ndarray, dtype: str, experts: str, compiled: bool) -> Step:
    """The same by transformers."""
    options = {"dtype": DTYPES[dtype], "attn_implementation": "sdpa", "experts_implementation": experts}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    ids = torch.from_numpy(tokens_BL.astype(np.int64))
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    return step


def sides(folder: Path, tokens_BL: np.ndarray) -> dict[str, Step]:
    """Every side that runs here, after its first step, which compiles; the losses of the first steps must agree."""
    made: dict[str, Step] = {f"ours {dtype}": ours(folder, tokens_BL, dtype) for dtype in DTYPES}
    for dtype in DTYPES:
        for experts in ("grouped_mm", "eager"):
            for compiled in (False, True):
                name = f"transformers {dtype} {experts}{' compiled' if compiled else ''}"
                made[name] = theirs(folder, tokens_BL, dtype, experts, compiled)
    found: dict[str, Step] = {}
    for name, step in made.items():
        try:
            loss = step()
        except Exception as error:  # a peer that cannot train is no peer
            print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
            continue
        print(f"{name}: first loss {loss:.4f}", flush=True)
        found[name] = step
    return found


def row(dtype: str, tokens: int, found: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Ours in one dtype, beside the quickest peers."""
    peers = [name for name in names if name.startswith("transformers")]
    own = found[f"ours {dtype}_ms"]
    quickest = min(peers, key=lambda name: found[f"{name}_ms"])
    alike = min((name for name in peers if dtype in name), key=lambda name: found[f"{name}_ms"])
    eager = min((name for name in peers if "compiled" not in name), key=lambda name: found[f"{name}_ms"])
    return {
        "dtype": dtype,
        "tokens": tokens,
        "ours_ms": own,
        "tokens_per_second": tokens / own * 1e3,
        "quickest_peer": quickest,
        "ratio": found[f"{quickest}_ms"] / own,
        "ratio_lowest": found[f"{quickest}_ms_least"] / found[f"ours {dtype}_ms_most"],
        "over_eager": found[f"{eager}_ms"] / own,
        "quickest_of_dtype": alike,
        "over_same_dtype": found[f"{alike}_ms"] / own,
        "times": found,
    }


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patience", type=int, default=1, help="times to repeat what others disturbed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_threads(options.threads)
    surroundings = environment()
    tokens_BL = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (options.sequences, options.length))
    with tempfile.TemporaryDirectory() as place:
        model = Transformer(CONFIG)
        model.init_weights(0)
        folder = save_model(model, Path(place) / "model")
        steps = sides(folder, tokens_BL)
        found = in_turns(steps, options.samples, options.patience)
    rows = [row(dtype, tokens_BL.size, found, list(steps)) for dtype in DTYPES]
    for each in rows:
        speed = f"{each['ours_ms']:.0f} ms ({each['tokens_per_second']:.0f} tokens/s)"
        peers = f"{each['quickest_peer']} {each['ratio']:.2f}x, not compiled {each['over_eager']:.2f}x"
        print(f"{each['dtype']:>8} ours {speed}; {peers}, of the same dtype {each['over_same_dtype']:.2f}x")
    print(f"cores used elsewhere {found['cores_used_elsewhere']:.2f}")
    save("train_step", rows, surroundings)


if __name__ == "__main__":
    main()
