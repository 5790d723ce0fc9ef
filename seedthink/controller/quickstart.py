"""`seedthink quickstart`: a small reasoning model from nothing, by the same commands that a real job uses.

    build a Qwen3-MoE and a tokenizer -> sft -> rl (value pretraining, VAPO) -> eval, thinking freely and not at all

The settings stand in recipes/quickstart. With `compare`, GRPO and longer SFT run for the same time from the same start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seedthink.config.commands import EvalConfig, RlConfig, SftConfig
from seedthink.config.loader import load
from seedthink.controller.run import run_eval, run_rl, run_sft
from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer
from seedthink.engine.model_io import save_model
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer

WIDTH, LAYERS, EXPERTS = 128, 4, 8
STEPS_WITHOUT_END = 1_000_000  # time ends it, so the schedule stays at its peak
LATE_RATE = 5e-4  # learning rate of SFT that goes on, after the cold start has decayed to 3e-4


def run_quickstart(
    *,
    folder: Path = Path("runs"),
    seed: int = 0,
    controller: str = "ray",
    compare: bool = False,
    fresh: bool = False,
    verbose: bool = False,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Runs the whole pipeline into `folder`/quickstart; returns the run folders, the VAPO run first
    (the cold start's alone where it was interrupted)."""
    run = folder / "quickstart"
    start = run / "start"
    if not (start / "config.json").exists():
        build_start(start, seed)
    placed: dict[str, Any] = {"run.folder": str(folder), "controller.kind": controller}
    common = {**placed, "run.seed": seed, "run.resume": "fresh" if fresh else "auto"}
    say("1/3  cold start: supervised fine-tuning on imperfect chains of thought")
    cold = run_sft(recipe("sft", SftConfig, {**common, "model.path": str(start)}), verbose)
    if not (cold / "export").exists():  # Ctrl-C: the same command goes on
        return [cold]
    exported = {"model.path": str(cold / "export")}
    say("2/3  reinforcement learning: value pretraining, then VAPO")
    trained = run_rl(recipe("rl", RlConfig, {**common, **exported}), verbose)
    if not (trained / "export").exists():
        return [trained]
    say("3/3  evaluation on other held-out problems")
    for thinking in ("free", "empty"):
        wanted = {"run.seed": seed + 1, "run.name": f"quickstart/eval-{thinking}", "evaluation.thinking": thinking}
        found = run_eval(recipe("eval", EvalConfig, {**placed, **wanted, "model.path": str(trained / "export")}))
        mean, low, high = (f"{100 * found[name]:.1f}" for name in ("mean", "low", "high"))
        say(f"accuracy with {thinking} think block: {mean} % ({low} to {high})")
    if not compare:
        return [trained]
    return [trained, *_compare(common | exported, trained, verbose, say)]


def recipe(name: str, cls: type, overrides: Mapping[str, Any]) -> Any:
    """A recipe of the quickstart with some settings replaced."""
    with as_file(files("seedthink.recipes") / "quickstart" / f"{name}.toml") as path:
        return load(path, cls, overrides)


def build_start(folder: Path, seed: int) -> Path:
    """A randomly initialised Qwen3-MoE and the puzzle tokenizer, as a Hugging Face folder."""
    tokenizer = build_puzzle_tokenizer()
    config = ModelConfig(
        family="qwen3_moe",
        vocab_size=-(-tokenizer.vocab_size // 16) * 16,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=2,
        head_dim=WIDTH // 4,
        num_experts=EXPERTS,
        experts_per_token=2,
        moe_intermediate_size=WIDTH,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=(),
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        eos_token_ids=tuple(tokenizer.eos_token_ids),
    )
    model = Transformer(config)
    model.init_weights(seed)
    with TemporaryDirectory() as files_of_tokenizer:
        tokenizer.save(files_of_tokenizer)
        return save_model(model, folder, tokenizer_folder=files_of_tokenizer)


def _compare(common: Mapping[str, Any], trained: Path, verbose: bool, say: Callable[[str], None]) -> list[Path]:
    """GRPO, and SFT continued, each for the training time that VAPO took, from the same start."""
    minutes = json.loads((trained / "summary.json").read_text())["seconds"]["total"] / 60.0
    timed = {**common, "run.time_limit_minutes": minutes}
    say(f"compare  GRPO for {minutes:.1f} minutes")
    grpo = run_rl(recipe("grpo", RlConfig, timed), verbose)
    say(f"compare  SFT for {minutes:.1f} more minutes")
    longer = {**timed, "run.name": "quickstart-sft", "run.steps": STEPS_WITHOUT_END, "optimizer.lr": LATE_RATE}
    return [grpo, run_sft(recipe("sft", SftConfig, longer), verbose)]
