"""Commands that follow a recipe, with the run itself replaced by a fake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seedthink.cli import estimate
from seedthink.cli.main import main
from seedthink.config import RlConfig, SftConfig, load
from seedthink.errors import ConfigError, DataError
from seedthink.models.config import ModelConfig
from seedthink.models.sizes import parameters
from seedthink.parallel.layout import Layout
from seedthink.planner.memory import load_of, memory

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MOE))
    return folder


def fake_controller(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    monkeypatch.setitem(sys.modules, "seedthink.controller.run", SimpleNamespace(**functions))


def finished_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"stage":"rl","step":1,"seconds":1,"actor/entropy":0.5}\n')
    accuracy = {"mean": 0.9, "low": 0.85, "high": 0.95, "k": 4, "problems": 100, "pass_at_k": 0.95, "families": {}}
    before = accuracy | {"mean": 0.4, "low": 0.35, "high": 0.45}
    summary = {"command": "rl", "steps": 1, "accuracy_before": before, "accuracy_after": accuracy, "export": "export"}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_rl_hands_the_resolved_settings_on_and_says_where_things_are(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[RlConfig, bool]] = []

    def run_rl(config: RlConfig, verbose: bool) -> Path:
        seen.append((config, verbose))
        return finished_run(in_tmp / "runs" / "rl")

    fake_controller(monkeypatch, run_rl=run_rl)
    assert main(["rl", "--rollout.group-size", "4", "-v"]) == 0
    assert seen[0][0].rollout.group_size == 4 and seen[0][1] is True
    text = capsys.readouterr().out
    assert "accuracy  40.0 % -> 90.0 % (85.0 to 95.0)" in text and "seedthink samples" not in text
    assert (in_tmp / "runs" / "rl" / "report.html").exists()


@pytest.mark.parametrize(
    ("flags", "again"),
    [
        (["--rollout.group-size", "4"], "seedthink rl --rollout.group-size 4"),
        (["--run.resume", "fresh", "--run.name", "a b"], "seedthink rl --run.name 'a b' --run.resume auto"),
        (["--run.resume=changed"], "seedthink rl --run.resume auto"),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_command_that_goes_on(
    flags: list[str], again: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_rl(config: RlConfig, verbose: bool) -> Path:
        run = finished_run(in_tmp / "runs" / "rl")
        (run / "summary.json").unlink()
        return run

    fake_controller(monkeypatch, run_rl=run_rl)
    assert main(["rl", *flags]) == 130
    assert capsys.readouterr().out.splitlines()[-1] == f"stopped   go on with: {again}"


def test_a_dry_run_starts_nothing(
    model: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_controller(monkeypatch)
    assert main(["rl", "--dry-run", "--model.path", str(model), "--run.name", "x"]) == 0
    text = capsys.readouterr().out
    assert f'path = "{model}"' in text and "in all, estimated" in text and not (in_tmp / "runs").exists()
    assert main(["sft", "--dry-run"]) == 0
    assert "model.path is not set" in capsys.readouterr().out


def test_a_mistake_in_settings_exits_with_two_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rl", "--rollout.temperature", "-1"]) == 2
    assert capsys.readouterr().err == (
        "seedthink: rollout.temperature = -1.0 is not allowed: it takes a number 0 or more\n"
    )


def test_eval_prints_a_line_per_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"mean": 0.5, "low": 0.4, "high": 0.6, "k": 4, "problems": 50, "pass_at_k": 0.75}
    fake_controller(monkeypatch, run_eval=lambda config, verbose: entry | {"families": {"sums": entry}})
    assert main(["eval", "--model.path", "m"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[1] == "sums           50.0 %  (40.0 to 60.0)  pass@4 75.0 %  50 problems"
    )


def test_the_parameter_count_is_that_of_the_model() -> None:
    from seedthink.models.decoder import Transformer

    changes = [{}, {"tie_word_embeddings": True}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0, 3]}]
    families = [{"model_type": "llama"}, {"model_type": "qwen2"}, {"model_type": "mixtral", "num_local_experts": 3}]
    latent = {"model_type": "deepseek_v3", "n_routed_experts": 8, "n_group": 1, "topk_group": 1, "q_lora_rank": 24}
    latent |= {"num_key_value_heads": MOE["num_attention_heads"], "first_k_dense_replace": 1}
    families += [latent, latent | {"q_lora_rank": None, "n_shared_experts": 2}]
    for change in changes + families:
        config = ModelConfig.from_hf(MOE | change)
        total, active = parameters(config)
        module = Transformer(config)
        experts = [p for name, p in module.named_parameters() if p.ndim == 3]
        idle = sum(p.numel() // len(p) * (len(p) - config.experts_per_token) for p in experts)
        assert total == sum(p.numel() for p in module.parameters())
        assert active == total - idle


def test_memory_counts_what_the_settings_ask_for(model: Path) -> None:
    config = ModelConfig.from_hf(MOE)

    def sizes(cls: type, **overrides: Any) -> dict[str, float]:
        return {part.name: part.bytes for part in memory(config, load_of(load(None, cls, overrides)), Layout())}

    def trained(found: dict[str, float]) -> float:
        return found["parameters"] + found["gradients"] + found["optimizer"]

    vapo, grpo = sizes(RlConfig), sizes(RlConfig, **{"algorithm.preset": "grpo"})
    total, _ = parameters(config)
    assert trained(grpo) == 24 * total and trained(vapo) == 2 * trained(grpo), "vapo trains a critic"
    assert trained(sizes(SftConfig, **{"model.dtype": "bfloat16"})) == 20 * total
    assert sizes(RlConfig, **{"algorithm.kl_weight": 0.1})["reference policy"] == 8 * total
    assert sizes(SftConfig)["KV cache, at most"] == 256 << 20
    half = sizes(SftConfig, **{"trainer.micro_batch_tokens": 4096})
    assert half["activations of a micro-batch"] * 2 == sizes(SftConfig)["activations of a micro-batch"]


def test_an_estimate_is_that_of_a_rank_under_the_layout_asked_for(model: Path) -> None:
    def words(**overrides: Any) -> list[str]:
        return estimate.in_words(load(None, RlConfig, {"model.path": str(model), **overrides}))

    total, _ = parameters(ModelConfig.from_hf(MOE))
    assert words()[0].startswith(f"parameters  {total:,} (") and words()[-1].endswith("  in all, estimated")
    split = words(**{"parallel.tp": 2, "parallel.dp_shard": 2, "parallel.ep": 4})
    assert split[1].startswith("layout      4 ranks: tp = 2, dp_shard = 2, ep = 4; ")
    assert split[-1].endswith("  a rank, estimated")
    with pytest.raises(ConfigError, match=r"tp = 3 does not divide num_heads = 4.*nearest layout of 3 ranks"):
        words(**{"parallel.tp": 3})


def test_an_estimate_without_a_model_says_so_and_with_a_broken_one_it_is_an_error(tmp_path: Path) -> None:
    assert estimate.in_words(load(None, RlConfig, {})) == ["parameters  unknown: model.path is not set"]
    with pytest.raises(DataError, match=r"holds no config\.json"):
        estimate.in_words(load(None, RlConfig, {"model.path": str(tmp_path)}))
