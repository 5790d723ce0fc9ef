"""One optimizer step: what it learns, what it skips, and that its weights are the ones the next forward uses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from seedthink.config.sections import OptimizerConfig
from seedthink.engine.micro_batch import micro_batches
from seedthink.engine.trainer import Trainer, forward_only, policy_forward
from seedthink.errors import RunError
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer
from seedthink.rl.loss import imitation
from seedthink.types import Batch

NONE = np.zeros(0, np.float32)


def model() -> Transformer:
    made = Transformer(
        ModelConfig(
            family="qwen3_moe",
            vocab_size=32,
            hidden_size=32,
            intermediate_size=32,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            num_experts=4,
            experts_per_token=2,
            moe_intermediate_size=32,
        )
    )
    made.init_weights(0)
    return made


def batch(micro: tuple[int, ...] = (0, 0, 1)) -> Batch:
    """Three sequences of lengths 4, 3, 5; the first token of each is its prompt."""
    lengths = (4, 3, 5)
    mask = np.concatenate([[0.0] + [1.0] * (n - 1) for n in lengths]).astype(np.float32)
    return Batch(
        tokens_T=np.arange(12, dtype=np.int32) * 5 % 32,
        cu_seqlens=np.array([0, 4, 7, 12], np.int32),
        micro_B=np.array(micro, np.int32),
        mask_T=mask,
        logprob_T=NONE,
        proximal_T=NONE,
        reference_T=NONE,
        advantage_T=NONE,
        return_T=NONE,
        value_T=NONE,
        positive_T=NONE,
        sequence_weight_B=np.ones(3, np.float32),
        global_tokens=9.0,
        global_sequences=3.0,
        global_positive_tokens=0.0,
    )


def trainer(**settings: object) -> Trainer:
    config = OptimizerConfig(**{"lr": 1e-2, **settings})  # type: ignore[arg-type]
    return Trainer(model(), policy_forward, config, total_steps=10)


def test_micro_batches_keep_sequences_whole_and_predict_only_masked_tokens() -> None:
    first, second = micro_batches(batch())
    assert first.cu_seqlens_B1.tolist() == [0, 4, 7]
    assert first.predicted_R.tolist() == [1, 2, 3, 5, 6]
    assert second.cu_seqlens_B1.tolist() == [0, 5]
    assert second.predicted_R.tolist() == [1, 2, 3, 4]


def test_imitation_lowers_its_loss_and_every_step_is_seen_by_the_next_forward() -> None:
    learner = trainer()
    losses = [learner.learn(batch(), imitation).metrics["train/loss"] for _ in range(20)]
    assert losses[0] > 3.0 and losses[-1] < 0.5 * losses[0]
    assert all(later != earlier for earlier, later in pairwise(losses))


def test_the_cut_into_micro_batches_does_not_change_the_gradient() -> None:
    gradients = []
    for micro in ((0, 0, 0), (0, 1, 2)):
        learner = trainer()
        learner.learn(batch(micro), imitation)
        gradients.append(torch.cat([p.detach().flatten() for p in learner.parameters]))
    assert torch.allclose(gradients[0], gradients[1], atol=2e-5)


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_are() -> None:
    learner = trainer()
    before = [p.detach().clone() for p in learner.parameters]
    update = learner.learn(batch(), lambda logprob_T, *_: (logprob_T.sum() * math.nan, {}))
    assert update.skipped and learner.step == 0
    assert all(torch.equal(p, q) for p, q in zip(learner.parameters, before, strict=True))


def test_weights_that_route_nothing_skip_the_step_and_end_scoring_with_a_reason() -> None:
    learner = trainer()
    with torch.no_grad():
        next(learner.module.parameters())[5] = math.nan
    assert learner.learn(batch(), imitation).skipped == "the forward pass is not finite"
    with pytest.raises(RunError, match=r"computes NaN or infinity .*lower learning rate"):
        forward_only(learner.module, policy_forward, batch())


def test_a_mistake_in_calling_the_network_is_not_taken_for_divergence() -> None:
    def wrong(*_: object) -> tuple[torch.Tensor, ...]:
        raise ValueError("q: expected dtype float32, got bfloat16")

    learner = trainer()
    learner.forward = wrong
    with pytest.raises(ValueError, match="expected dtype"):
        learner.learn(batch(), imitation)
    with pytest.raises(ValueError, match="expected dtype"):
        forward_only(learner.module, wrong, batch())


def test_a_restored_trainer_goes_on_with_the_same_bits() -> None:
    one = trainer()
    for _ in range(3):
        one.learn(batch(), imitation)
    other = trainer()
    other.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    one.learn(batch(), imitation)
    other.learn(batch(), imitation)
    assert one.step == other.step == 4
    assert all(torch.equal(p, q) for p, q in zip(one.parameters, other.parameters, strict=True))


def test_the_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    learner = trainer(lr=1.0, warmup_steps=2, schedule="linear", min_lr_ratio=0.5)
    rates = []
    for step in (0, 1, 2, 6, 10):
        learner.step = step
        rates.append(learner.learning_rate())
    assert rates == [0.5, 1.0, 1.0, 0.75, 0.5]


def test_scoring_says_the_log_probs_of_predicted_tokens_and_zeros_elsewhere() -> None:
    learner = trainer()
    logprob_T = forward_only(learner.module, policy_forward, batch())
    assert logprob_T.shape == (12,)
    assert (logprob_T[[0, 4, 7]] == 0).all() and (logprob_T[[1, 2, 3, 5, 6, 8, 9, 10, 11]] < 0).all()
