"""A whole engine on the ranks of a layout, from and to folders: what `mesh_program.py` runs beside `mesh_cases.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mesh_cases
import numpy as np
import torch

from seedthink.config.sections import GenerationConfig, OptimizerConfig
from seedthink.engine.engine import Engine, EngineSettings, Losses
from seedthink.engine.micro_batch import MicroBatch, unlabelled_batch
from seedthink.engine.model_io import load_model, load_value_model, save_model, save_value_model
from seedthink.models.value import ValueModel
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.shards import shards_of
from seedthink.rl.loss import imitation
from seedthink.telemetry.metrics import Metric, Sum
from seedthink.types import (
    Batch,
    Judgement,
    Prompt,
    Request,
    Rollout,
    SamplingParams,
    Scored,
    Valued,
    Verdict,
)


def to_one(value_T: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, Metric]]:
    """A critic's loss: the mean square of what is missing to 1."""
    loss = (value_T.index_select(0, batch.predicted_R) - 1.0).square().sum() / batch.global_tokens
    return loss, {"vf_loss": Sum(float(loss.detach()))}


def folder_of(name: str, parent: str) -> Path:
    return save_model(mesh_cases.policy(name, None), Path(parent) / "model")


def loaded(name: str, mesh: Mesh | None) -> dict[str, torch.Tensor]:
    """Whether this rank's part of a folder's weights is its part of the first values, for policy and critic."""
    with tempfile.TemporaryDirectory() as parent:
        folder = folder_of(name, parent)
        found = dict(load_model(folder, shards=shards_of(mesh)).named_parameters())
        critic = save_value_model(ValueModel.from_policy(mesh_cases.policy(name, None)), Path(parent) / "critic")
        values = dict(load_value_model(critic, shards=shards_of(mesh)).named_parameters())
    wanted = dict(mesh_cases.policy(name, mesh).named_parameters())
    same = all(torch.equal(found[n], wanted[n]) for n in wanted)
    return {
        "loaded": torch.tensor(
            [same, all(torch.equal(values[f"trunk.{n}"], wanted[n]) for n in wanted if "unem" not in n)]
        )
    }


def engine_of(name: str, mesh: Mesh | None, folder: Path) -> Engine:
    """A policy, a critic, a reference; the policy's own log-probs are computed anew."""
    optimizer = OptimizerConfig(lr=1e-3)
    settings = EngineSettings(
        model=folder,
        dtype=mesh_cases.MODELS[name][1],
        rollout=GenerationConfig(max_batch_tokens=24, kv_memory_mib=1),
        policy_optimizer=optimizer,
        critic_optimizer=optimizer,
        total_updates=4,
        reference=True,
        recompute=True,
        micro_batch_tokens=64,
    )
    return Engine(settings, Losses(imitation, to_one), mesh=mesh)


def rollouts(engine: Engine, mesh: Mesh | None, step: int) -> list[Scored]:
    """Answers to this data index's share of four prompts, in the order of the prompts."""
    texts = mesh_cases.sequences(step)
    mine = mesh_cases.members(mesh)
    asked = [
        Request(
            str(n), texts[n][: mesh_cases.PROMPTS[n]], SamplingParams(max_tokens=9, ignore_eos=True), 100 * step + n
        )
        for n in mine
    ]
    engine.submit(asked)
    done: dict[str, Any] = {}
    while engine_busy(engine, mesh):
        done |= {each.id: each for each in engine.collect(1.0)}
    found = []
    for request in asked:
        prompt = Prompt(request.id, "test", "", request.tokens_T, {})
        rollout = Rollout(prompt, done[request.id], request.id, 0)
        found.append(Scored(rollout, Judgement(Verdict.RIGHT, 1.0), 1.0))
    return found


def engine_busy(engine: Engine, mesh: Mesh | None) -> bool:
    busy = not engine.generator.idle
    return busy if mesh is None else mesh.world.most([busy])[0] > 0


def packed(valued: list[Valued]) -> Batch:
    """Imitates the answers."""
    sequences, masks = [], []
    for each in valued:
        prompt_T, answer_T = each.scored.rollout.prompt.tokens_T, each.scored.rollout.completion.tokens_T
        sequences.append(np.concatenate([prompt_T, answer_T]))
        masks.append(np.concatenate([np.zeros(len(prompt_T)), np.ones(len(answer_T))]))
    return unlabelled_batch(sequences, masks, 64, 36.0, 4.0)


def runs(name: str, mesh: Mesh | None) -> dict[str, torch.Tensor]:
    """Two steps of generate, score, learn, publish. Every log-prob that was drawn is the one that scoring computes."""
    found: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as parent:
        engine = engine_of(name, mesh, folder_of(name, parent))
        for step in range(2):
            valued = engine.score(rollouts(engine, mesh, step))
            for each in valued:
                completion = each.scored.rollout.completion
                assert each.proximal_T.tobytes() == completion.logprob_T.tobytes(), (step, completion.id)
                assert len(each.value_T) == len(each.reference_T) == 9
                assert completion.version_T.tolist() == [step] * 9
                if step == 0:
                    found[f"tokens {completion.id}"] = torch.from_numpy(completion.tokens_T)
                    found[f"logprobs {completion.id}"] = torch.from_numpy(completion.logprob_T)
            update = engine.learn(packed(valued))
            assert not update.skipped and engine.publish() == step + 1
            if step == 0:
                found["losses"] = torch.tensor([update.metrics["train/loss"], update.metrics["critic/vf_loss"]])
        found["size"] = torch.tensor(list(engine.parameters().values()))
    return found
