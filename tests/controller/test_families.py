"""Every family goes the whole way in one process: a start, sft, rl with a critic, an evaluation and the export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from seedthink.cli.main import main
from seedthink.config.commands import EvalConfig, RlConfig, SftConfig
from seedthink.config.loader import load
from seedthink.controller import quickstart
from seedthink.controller.run import run_eval, run_rl, run_sft
from seedthink.engine.model_io import load_model, save_model
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer
from seedthink.models.families.registry import FAMILIES
from seedthink.models.variants import LatentSizes, Router

SUM: dict[str, Any] = {"kind": "puzzle", "family": "running_sum", "min_terms": 2, "max_terms": 3}
EVALUATION: dict[str, Any] = {"data.eval": [SUM], "evaluation.problems": 3, "evaluation.samples": 2}
SFT: dict[str, Any] = {"data.train": [{**SUM, "count": 60}], "data.batch_tokens": 400, "run.steps": 4}
RL: dict[str, Any] = EVALUATION | {
    "data.train": [{**SUM, "count": 40}],
    "data.prompts_per_step": 2,
    "rollout.group_size": 2,
    "rollout.max_tokens": 12,
    "algorithm.dynamic_sampling": False,
    "value_pretraining.max_steps": 1,
    "run.steps": 1,
}
EVENED = {"router.bias_update_rate": 0.01, "router.balance_loss": 0.01, "router.z_loss": 0.001}
LATENT = LatentSizes(q_rank=24, kv_rank=24, plain_dim=16, turned_dim=8, value_dim=16)
CHANGES: dict[str, dict[str, Any]] = {
    "mixtral": {"norm_topk_prob": True},
    "deepseek_v3": {
        "latent": LATENT,
        "head_dim": LATENT.head_dim,
        "num_kv_heads": 4,
        "router": Router(score="sigmoid", scale=2.5, groups=4, topk_groups=2, bias=True),
        "shared_expert_width": 128,
    },
}


def config_of(family: str, like: ModelConfig) -> ModelConfig:
    """A model of `like`'s sizes; dense families have no experts."""
    sizes = {field.name: getattr(like, field.name) for field in dataclasses.fields(like)}
    if FAMILIES[family].experts is None:
        sizes |= {"num_experts": 0, "experts_per_token": 0, "moe_intermediate_size": 0}
    return ModelConfig(**(sizes | {"family": family, "num_layers": 2} | CHANGES.get(family, {})))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model folder, whose sizes and tokenizer the others take over."""
    folder = tmp_path_factory.mktemp("start") / "model"
    quickstart.build_start(folder, seed=0)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_taught_trained_evaluated_and_exported(family: str, start: Path, tmp_path: Path) -> None:
    model = Transformer(config_of(family, load_model(start).config))
    model.init_weights(1)
    save_model(model, tmp_path / "model", tokenizer_folder=start)

    def settings(cls: type, path: Path, wanted: dict[str, Any]) -> Any:
        placed = {"model.path": str(path), "run.folder": str(tmp_path), "controller.kind": "local", "reward.workers": 1}
        return load(None, cls, {**placed, **wanted})

    evened = EVENED if model.config.router.bias else {}
    cold = run_sft(settings(SftConfig, tmp_path / "model", SFT | evened))
    run = run_rl(settings(RlConfig, cold / "export", RL | evened))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["logp_gap_max"] == 0.0
    limit = {"generation.max_tokens": 8}
    assert run_eval(settings(EvalConfig, run / "export", EVALUATION | limit))["problems"] == 3
    assert main(["checkpoint", "export", str(run), str(tmp_path / "again")]) == 0
    if evened:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        learned = [line for line in lines if "router/bias_max" in line]
        assert learned and all(line["router/bias_max"] > 0 and line["critic/router/bias_max"] > 0 for line in learned)
        assert any(
            name.endswith("router_bias_E") and p.any() for name, p in load_model(run / "export").named_parameters()
        )
    weights = [(path / "model.safetensors").read_bytes() for path in (run / "export", tmp_path / "again")]
    assert weights[0] == weights[1]
    exported = AutoModelForCausalLM.from_pretrained(run / "export")
    assert exported.config.model_type == family
    with torch.no_grad():
        assert exported(torch.arange(9)[None]).logits.isfinite().all()
