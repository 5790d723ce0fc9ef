"""GRPO with TRL on the task of `rl_task`: the peer of the RL benchmarks, a script of its own.

Settings are those that make TRL fast on a CPU: no reference model, no gradient checkpointing, no auxiliary loss, fused
AdamW, the whole batch in one forward where memory allows. After each step one line of JSON goes to the file descriptor
`--report`; with `--turns` each step waits for a line on standard input first, so that others can take turns with it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from even_reward import score_all
from rl_task import END, PAD, prompts
from torch.profiler import profile
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

# How numbers are kept and multiplied: (dtype of the weights, autocast to bfloat16).
PRECISIONS = {"float32": ("float32", False), "autocast": ("float32", True), "bfloat16": ("bfloat16", False)}
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm", "aten::mkldnn_linear"}


class TimedTrainer(GRPOTrainer):
    """Adds up the seconds inside generation."""

    generating = 0.0

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return super()._generate_single_turn(*args, **kwargs)
        finally:
            self.generating += time.perf_counter() - began


class Turns(TrainerCallback):
    """Reports each step's end, and its seconds since it was this process's turn.

    A turn that is asked for with the word "profile" also reports the share of its time inside matrix products.
    """

    def __init__(self, trainer: TimedTrainer, report: int, wait: bool) -> None:
        self.trainer, self.report, self.wait = trainer, report, wait
        self.profiler: profile | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Waits for the first turn."""
        self._next()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Reports, and waits for the next turn."""
        line: dict[str, float] = {
            "time": time.time(),
            "seconds": time.perf_counter() - self.began,
            "generate_seconds": self.trainer.generating - self.generated,
            "processor_seconds": time.process_time() - self.processor,
        }
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)
            line["matmul_share"] = matmul_seconds(self.profiler) / line["seconds"]
            self.profiler = None
        os.write(self.report, (json.dumps(line) + "\n").encode())
        self._next()

    def _next(self) -> None:
        if self.wait:
            word = sys.stdin.readline().strip()
            if not word:
                raise SystemExit
            if word == "profile":
                self.profiler = profile().__enter__()
        self.began, self.generated, self.processor = time.perf_counter(), self.trainer.generating, time.process_time()


def matmul_seconds(profiler: profile) -> float:
    """Seconds of the profiled step inside matrix products with weights."""
    return sum(event.self_cpu_time_total for event in profiler.key_averages() if event.key in PRODUCTS) / 1e6


def main() -> None:
    """Train for some steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--experts", default="grouped_mm")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=0, help="sequences in one forward and backward; 0: all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=1)
    parser.add_argument("--turns", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(options, folder)
        trainer.add_callback(Turns(trainer, options.report, options.turns))
        trainer.train()


def build(options: argparse.Namespace, folder: str) -> TimedTrainer:
    """The trainer."""
    group, rollouts = 8, 8 * options.prompts
    batch = options.batch or rollouts
    weights, autocast = PRECISIONS[options.precision]
    settings = GRPOConfig(
        output_dir=folder,
        max_steps=options.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=rollouts // batch,
        num_generations=group,
        max_completion_length=options.tokens,
        loss_type="grpo",
        beta=0.0,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        bf16=autocast,
        activation_checkpointing=False,
        router_aux_loss_coef=0.0,
        model_init_kwargs={"dtype": weights, "experts_implementation": options.experts},
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return TimedTrainer(
        model=options.model,
        reward_funcs=score_all,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(options.prompt_tokens)]),
        processing_class=AutoTokenizer.from_pretrained(options.model, eos_token=END, pad_token=PAD),
    )


if __name__ == "__main__":
    main()
