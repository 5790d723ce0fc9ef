"""Which layout a run gets, and what a user reads who asks for ranks that nobody has started."""

from __future__ import annotations

import pytest

from seedthink.config import ParallelConfig
from seedthink.controller.layouts import layout_of_run
from seedthink.errors import ConfigError
from seedthink.models.config import ModelConfig
from seedthink.parallel.layout import Layout

MODEL = ModelConfig(
    family="qwen3",
    vocab_size=32,
    hidden_size=64,
    intermediate_size=64,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)


def test_a_run_alone_has_one_rank_and_a_launch_all_of_its_own() -> None:
    assert layout_of_run(ParallelConfig(), 1, MODEL, "rl") == Layout()
    assert layout_of_run(ParallelConfig(tp=2), 4, MODEL, "rl") == Layout(dp_shard=2, tp=2)


def test_ranks_that_no_launcher_has_started_are_an_error_that_says_how_to_start_them() -> None:
    with pytest.raises(ConfigError) as caught:
        layout_of_run(ParallelConfig(tp=2, dp_shard=2), 1, MODEL, "sft")
    assert str(caught.value) == (
        "[parallel] dp_replicate * dp_shard * cp * tp = 4 ranks, but this run has one: only a launcher starts more, "
        "torchrun --nproc-per-node 4 -m seedthink sft ... or mpirun -n 4 seedthink sft ..."
    )


def test_what_would_not_fit_the_model_either_is_said_in_the_same_message() -> None:
    with pytest.raises(ConfigError) as caught:
        layout_of_run(ParallelConfig(tp=3), 1, MODEL, "rl")
    text = str(caught.value)
    assert "= 3 ranks, but this run has one" in text and "tp = 3 does not divide num_heads = 4" in text
    assert text.endswith("nearest layout of 3 ranks: tp = 1, dp_shard = 3 or tp = 1, dp_replicate = 3")


def test_experts_cannot_be_spread_over_one_rank() -> None:
    with pytest.raises(ConfigError, match="ep = 2, but the model has no experts"):
        layout_of_run(ParallelConfig(ep=2), 1, MODEL, "rl")
