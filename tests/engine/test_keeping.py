"""The section `memory`: what a trainer keeps changes no weight, and what the device has no use for is refused."""

from __future__ import annotations

import pytest
import torch
from test_trainer import batch, model

from seedthink.config.sections import MemoryConfig, OptimizerConfig
from seedthink.engine.keeping import keeping_of
from seedthink.engine.trainer import Trainer, policy_forward, value_forward
from seedthink.errors import ConfigError
from seedthink.models.value import ValueModel
from seedthink.rl.loss import imitation


def trained(memory: MemoryConfig) -> Trainer:
    trainer = Trainer(model(), policy_forward, OptimizerConfig(lr=1e-2), total_steps=3, memory=memory)
    for _ in range(3):
        trainer.learn(batch(), imitation)
    return trainer


@pytest.mark.parametrize("recompute", ["selective", "layers"])
def test_steps_that_recompute_leave_the_weights_of_steps_that_keep(recompute: str) -> None:
    expected = trained(MemoryConfig()).parameters
    found = trained(MemoryConfig(recompute=recompute)).parameters  # type: ignore[arg-type]
    assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


def test_a_critic_recomputes_in_its_trunk() -> None:
    critic = ValueModel.from_policy(model())
    Trainer(critic, value_forward, OptimizerConfig(), 1, memory=MemoryConfig(recompute="layers", recompute_every=2))
    assert (critic.trunk.keeping.recompute, critic.trunk.keeping.every) == ("layers", 2)


@pytest.mark.parametrize("key", ["offload_activations", "offload_optimizer"])
def test_a_model_in_host_memory_has_nowhere_to_offload_to(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"memory\.{key} = true.*nothing to offload to.*recompute"):
        trained(MemoryConfig(**{key: True}))
    keeping_of(MemoryConfig(**{key: True}), torch.device("cuda"))
