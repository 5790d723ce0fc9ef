"""Generation against transformers `generate`, in turns in one process: the same weights, prompts and lengths.

Model: Qwen3-MoE, vocabulary 128, width 256, 4 layers, 4 heads, 2 KV heads, head 64, 8 experts top-2 of width 256 (7.15
M parameters), random weights. 128 requests of 32 unshared prompt tokens, 2 threads. "uniform": 64 new tokens each.
"lognormal": lengths of median 32 and sigma 0.9, at most 512; the peer is a static batch, which runs until its longest
request is done. A token counts where it was asked for. Medians over repeats. Run: `python benchmarks/generate.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from products import generation_flops, matmul_peak
from rl_task import MIDDLE
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers import __version__ as transformers_version
from turns import environment, quiet_seconds

from seedthink.engine.generator import TokenGenerator
from seedthink.engine.model_io import save_model
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer
from seedthink.types import Request, SamplingParams

REQUESTS, PROMPT, NEW, LONGEST = 128, 32, 64, 512
CONFIG = ModelConfig(**MIDDLE)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def workload(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Prompts [128, 32] and the number of new tokens of each request."""
    draw = np.random.default_rng(0)
    prompts = draw.integers(0, CONFIG.vocab_size, (REQUESTS, PROMPT)).astype(np.int32)
    if name == "uniform":
        return prompts, np.full(REQUESTS, NEW)
    return prompts, np.clip(np.exp(draw.normal(np.log(32), 0.9, REQUESTS)), 1, LONGEST).astype(int)


def ours(engine: TokenGenerator, prompts: np.ndarray, lengths: np.ndarray, seed: int) -> Callable[[], None]:
    """One run of the generator, from an empty cache."""

    def run() -> None:
        engine.reset()
        engine.submit(
            [
                Request(
                    str(i), prompts[i], SamplingParams(max_tokens=int(n), ignore_eos=True), seed=seed * REQUESTS + i
                )
                for i, n in enumerate(lengths)
            ]
        )
        found = 0
        while not engine.idle:
            found += sum(len(each.tokens_T) for each in engine.step())
        assert found == lengths.sum()

    return run


def theirs(model: Any, prompts: np.ndarray, lengths: np.ndarray) -> Callable[[], None]:
    """One static batch of transformers, until the longest request is done."""
    settings = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=int(lengths.max()), pad_token_id=0)
    ids = torch.from_numpy(prompts.astype(np.int64))

    def run() -> None:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        assert out.shape[1] == PROMPT + lengths.max()

    return run


def measure(dtype: str, name: str, engine: TokenGenerator, peer: Any, repeats: int, patience: int) -> dict[str, Any]:
    """Ours and theirs in turns.

    `share_of_peak` is the FLOPs of the matrix products that were asked for over the whole time and the machine's peak;
    a static batch's rows that are done already count nowhere. Time inside matrix products is not measured: our decoding
    runs in fused native calls that no clock in Python can look into.
    """
    prompts, lengths = workload(name)
    tokens = int(lengths.sum())
    peer_run = theirs(peer, prompts, lengths)
    theirs(peer, prompts, np.minimum(lengths, 4))()
    ours(engine, prompts, lengths, seed=99)()
    runs = [
        (quiet_seconds(ours(engine, prompts, lengths, seed=repeat), patience), quiet_seconds(peer_run, patience))
        for repeat in range(repeats)
    ]
    own, other = [first[0] for first, _ in runs], [second[0] for _, second in runs]
    ours(engine, prompts, lengths, seed=0)()
    stats, peak = engine.stats, matmul_peak(DTYPES[dtype])
    needed = REQUESTS * PROMPT + tokens - REQUESTS  # the last token of an answer is drawn, not computed
    shares = [
        generation_flops(CONFIG, computed, tokens) / statistics.median(times) / peak
        for computed, times in ((stats.computed_tokens, own), (needed, other))
    ]
    return {
        "dtype": dtype,
        "lengths": name,
        "new_tokens": tokens,
        "steps": stats.steps,
        "ours_seconds": own,
        "peer_seconds": other,
        "cores_used_elsewhere": max(elsewhere for pair in runs for _, elsewhere in pair),
        "ours_tokens_per_second": tokens / statistics.median(own),
        "peer_tokens_per_second": tokens / statistics.median(other),
        "ratio": statistics.median(other) / statistics.median(own),
        "ratio_lowest": min(other) / max(own),
        "machine_matmul_flops": peak,
        "share_of_peak": shares[0],
        "peer_share_of_peak": shares[1],
    }


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for a quiet machine, per run")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--lengths", nargs="+", choices=["uniform", "lognormal"], default=["uniform", "lognormal"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "generate.json")
    options = parser.parse_args()
    torch.set_num_threads(2)
    found = {"environment": environment() | {"transformers": transformers_version}, "rows": []}
    model = Transformer(CONFIG)
    model.init_weights(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(model, Path(folder) / "model")
        for dtype in options.dtypes:
            peer = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype]).eval()
            own = Transformer(CONFIG, DTYPES[dtype])
            own.load_state_dict(model.state_dict())
            engine = TokenGenerator(own, pages=REQUESTS * (PROMPT + LONGEST) // 16)
            found["rows"] += [
                measure(dtype, name, engine, peer, options.repeats, options.patience) for name in options.lengths
            ]
    for row in found["rows"]:
        print(
            f"{row['dtype']:>8} {row['lengths']:>9}: {row['ours_tokens_per_second']:8.0f} tok/s, transformers "
            f"{row['peer_tokens_per_second']:7.0f}, ratio {row['ratio']:5.2f} (lowest {row['ratio_lowest']:.2f}); "
            f"{row['share_of_peak']:.0%} and {row['peer_share_of_peak']:.0%} of a matmul peak of "
            f"{row['machine_matmul_flops'] / 1e9:.0f} GFLOP/s"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
