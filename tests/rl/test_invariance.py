"""However a mini-batch is cut into micro-batches, packs and ranks, every loss, gradient and metric stays the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_samples import BigramPolicy, random_credited

from seedthink.config.algorithm import PRESETS, AlgorithmConfig
from seedthink.rl import loss as losses
from seedthink.rl.algorithm import build_policy_loss, build_value_loss
from seedthink.rl.pack import pack
from seedthink.telemetry.metrics import reduce

torch.set_num_threads(1)

OFF_POLICY = {"recompute_proximal": True, "entropy_weight": 0.01, "kl_weight": 0.05}
POLICIES: dict[str, AlgorithmConfig] = {
    **PRESETS,
    "clip, sequence mean, dual": replace(PRESETS["vapo"], loss_aggregation="sequence", dual_clip=1.5, **OFF_POLICY),
    "clip, constant, tis": replace(PRESETS["vapo"], loss_aggregation="constant", correction="tis", **OFF_POLICY),
    "clip, token, icepop": replace(PRESETS["dapo"], correction="icepop", correction_high=1.2, **OFF_POLICY),
    "gspo, token, k1": replace(PRESETS["gspo"], loss_aggregation="token", kl_estimator="k1", **OFF_POLICY),
    "cispo, sequence, k2": replace(PRESETS["cispo"], loss_aggregation="sequence", kl_estimator="k2", **OFF_POLICY),
    "reinforce, sequence tis": replace(
        PRESETS["vapo"], policy_loss="reinforce", correction="sequence_tis", **OFF_POLICY
    ),
    "reinforce, sequence mis": replace(
        PRESETS["vapo"], policy_loss="reinforce", correction="sequence_mis", **OFF_POLICY
    ),
    "clip, sequence mask": replace(
        PRESETS["vapo"], correction="sequence_mask", correction_low=0.9, correction_high=1.1, **OFF_POLICY
    ),
}
LENGTHS = [5, 1, 9, 3, 3, 12, 2, 7, 4, 6, 1]

splits = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(0, 5))


def one_mini_batch(budget: int, ranks: int, seed: int = 0):
    (batches,) = pack(
        random_credited(LENGTHS),
        token_budget=budget,
        max_sequence_tokens=100,
        updates_per_rollout=1,
        ranks=ranks,
        seed=seed,
    )
    return batches


def assert_same(found, wanted) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-12, abs=1e-12)
    assert float((found[1] - wanted[1]).abs().max()) <= 1e-12 * max(1.0, float(wanted[1].abs().max()))
    assert reduce(found[2]) == pytest.approx(reduce(wanted[2]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=12, deadline=None)
@given(split=splits)
def test_a_policy_loss_does_not_depend_on_the_split(name: str, split: tuple[int, int, int]) -> None:
    policy, loss = BigramPolicy(), build_policy_loss(POLICIES[name], max_tokens=16)
    whole = policy.learn(one_mini_batch(1000, 1), policy.policy, loss)
    assert float(whole[1].abs().max()) > 1e-4
    assert_same(policy.learn(one_mini_batch(*split), policy.policy, loss), whole)


@pytest.mark.parametrize("clip", [0.0, 0.3])
@settings(max_examples=12, deadline=None)
@given(split=splits)
def test_the_value_loss_does_not_depend_on_the_split(clip: float, split: tuple[int, int, int]) -> None:
    policy, loss = BigramPolicy(), build_value_loss(replace(PRESETS["vapo"], value_clip=clip))
    whole = policy.learn(one_mini_batch(1000, 1), policy.value, loss)
    assert_same(policy.learn(one_mini_batch(*split), policy.value, loss), whole)


@settings(max_examples=12, deadline=None)
@given(split=splits)
def test_imitation_does_not_depend_on_the_split(split: tuple[int, int, int]) -> None:
    policy = BigramPolicy()
    whole = policy.learn(one_mini_batch(1000, 1), policy.policy, losses.imitation)
    assert_same(policy.learn(one_mini_batch(*split), policy.policy, losses.imitation), whole)


@settings(max_examples=12, deadline=None)
@given(split=splits)
def test_the_positive_nll_does_not_depend_on_the_split(split: tuple[int, int, int]) -> None:
    policy = BigramPolicy()

    def loss(logprob_T, entropy_T, batch):
        return losses.positive_nll(logprob_T, batch)

    whole = policy.learn(one_mini_batch(1000, 1), policy.policy, loss)
    assert_same(policy.learn(one_mini_batch(*split), policy.policy, loss), whole)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.booleans(), min_size=len(LENGTHS) - 1, max_size=len(LENGTHS) - 1))
def test_any_cut_into_runs_of_sequences_gives_the_loss_of_the_whole(cuts: list[bool]) -> None:
    policy, loss = BigramPolicy(), build_policy_loss(PRESETS["gspo"], max_tokens=16)
    (whole,) = one_mini_batch(1000, 1)
    cut = replace(whole, micro_B=np.concatenate([[0], np.cumsum(cuts)]).astype(np.int32))
    assert_same(policy.learn([cut], policy.policy, loss), policy.learn([whole], policy.policy, loss))


def test_a_loss_that_averages_each_micro_batch_would_be_noticed() -> None:
    policy = BigramPolicy()

    def local(logprob_T, entropy_T, batch):
        return logprob_T.sum() / len(batch.predicted_R), {}

    whole = policy.learn(one_mini_batch(1000, 1), policy.policy, local)
    with pytest.raises(AssertionError):
        assert_same(policy.learn(one_mini_batch(12, 2), policy.policy, local), whole)


def test_what_stands_on_prompt_tokens_is_never_read() -> None:
    policy, config = BigramPolicy(), POLICIES["clip, constant, tis"]
    (whole,) = one_mini_batch(1000, 1)
    dirty = {}
    for name in ("logprob_T", "proximal_T", "reference_T", "advantage_T", "return_T", "value_T"):
        dirty[name] = np.where(whole.mask_T > 0, getattr(whole, name), np.float32("nan"))
    spoiled = replace(whole, **dirty)
    for forward, loss in (
        (policy.policy, build_policy_loss(config, max_tokens=16)),
        (policy.value, build_value_loss(replace(config, value_clip=0.3))),
    ):
        clean, found = (policy.learn([b], forward, loss) for b in (whole, spoiled))
        assert found[0] == clean[0]
        assert torch.equal(found[1], clean[1])
