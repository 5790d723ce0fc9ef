"""Off-policy weights by hand, and their absence where proximal and behaviour policy are one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rl_samples import BigramPolicy, random_credited

from seedthink.config.algorithm import PRESETS
from seedthink.rl.algorithm import build_policy_loss
from seedthink.rl.correction import correction_weight, mismatch_metrics
from seedthink.rl.pack import pack
from seedthink.telemetry.metrics import reduce

# two sequences of two tokens; rho = 4, 0.5 | 0.1, 1
RHO = torch.tensor([4.0, 0.5, 0.1, 1.0], dtype=torch.float64)
SEQUENCE = torch.tensor([0, 0, 1, 1])


def weight(rule: str, low: float, high: float) -> list[float]:
    behaviour_R = torch.tensor([-3.0, -1.0, -2.0, -0.5], dtype=torch.float64)
    return correction_weight(RHO.log() + behaviour_R, behaviour_R, SEQUENCE, 2, rule, low, high).tolist()


@pytest.mark.parametrize(
    ("rule", "low", "high", "wanted"),
    [
        ("none", 0.5, 2.0, [1, 1, 1, 1]),
        ("tis", 0.5, 2.0, [2, 0.5, 0.1, 1]),
        ("icepop", 0.5 - 1e-9, 3.0, [0, 0.5, 0, 1]),
        ("sequence_tis", 0.5, 1.5, [1.5, 1.5, 0.1, 0.1]),
        ("sequence_mis", 0.5, 1.5, [0, 0, 0.1, 0.1]),
        ("sequence_mask", 0.9, 1.5, [4, 0.5, 0, 0]),  # geometric means 1.414 and 0.316
    ],
)
def test_each_rule_by_hand(rule: str, low: float, high: float, wanted: list[float]) -> None:
    assert weight(rule, low, high) == pytest.approx(wanted)


@pytest.mark.parametrize("rule", ["none", "tis", "icepop", "sequence_tis", "sequence_mis", "sequence_mask"])
def test_with_the_same_policies_the_off_policy_loss_is_the_on_policy_loss_bit_for_bit(rule: str) -> None:
    credited = []
    for item in random_credited([5, 3, 8, 1]):
        behaviour_T = item.valued.scored.rollout.completion.logprob_T
        credited.append(replace(item, valued=replace(item.valued, proximal_T=behaviour_T.copy())))
    (batches,) = pack(credited, token_budget=10, max_sequence_tokens=20, updates_per_rollout=1)
    on_policy = PRESETS["vapo"]
    off_policy = replace(
        on_policy, recompute_proximal=True, correction=rule, correction_low=0.999, correction_high=1.001
    )
    policy = BigramPolicy()
    wanted = policy.learn(batches, policy.policy, build_policy_loss(on_policy, max_tokens=16))
    found = policy.learn(batches, policy.policy, build_policy_loss(off_policy, max_tokens=16))
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])


def test_the_decoupled_loss_is_weight_times_the_clipped_proximal_ratio() -> None:
    config = replace(
        PRESETS["dapo"], recompute_proximal=True, correction="tis", correction_high=1.1, positive_nll_weight=0.0
    )
    (batches,) = pack(random_credited([3, 4]), token_budget=100, max_sequence_tokens=20, updates_per_rollout=1)
    policy = BigramPolicy()
    loss, _, metrics = policy.learn(batches, policy.policy, build_policy_loss(config, max_tokens=16))
    wanted, weights = 0.0, []
    (batch,) = batches
    log_VV = policy.logits_VV.detach().log_softmax(-1)
    for t in (batch.mask_T > 0).nonzero()[0]:
        u = math.exp(float(log_VV[batch.tokens_T[t - 1], batch.tokens_T[t]]) - float(batch.proximal_T[t]))
        weights.append(min(math.exp(float(batch.proximal_T[t]) - float(batch.logprob_T[t])), 1.1))
        a = float(batch.advantage_T[t])
        wanted -= weights[-1] * min(u * a, min(max(u, 0.8), 1.28) * a) / 7
    assert loss == pytest.approx(wanted, rel=1e-12)
    assert reduce(metrics)["mismatch/weight"] == pytest.approx(sum(weights) / 7, rel=1e-12)


def test_mismatch_metrics_by_hand() -> None:
    logprob_R = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    found = reduce(mismatch_metrics(logprob_R, torch.tensor([-1.0, -1.5], dtype=torch.float64)))
    assert found["mismatch/logp_gap_max"] == pytest.approx(0.5)
    assert found["mismatch/logp_gap_mean"] == pytest.approx(0.25)
    assert found["mismatch/kl"] == pytest.approx((math.exp(-0.5) - 1 + 0.5) / 2)
    assert found["mismatch/ratio_max"] == pytest.approx(1.0)


def test_equal_policies_show_exactly_no_mismatch() -> None:
    logprob_R = torch.randn(50) - 3
    found = reduce(mismatch_metrics(logprob_R, logprob_R.clone()))
    assert found == {
        "mismatch/logp_gap_max": 0.0,
        "mismatch/logp_gap_mean": 0.0,
        "mismatch/kl": 0.0,
        "mismatch/ratio_max": 1.0,
    }
