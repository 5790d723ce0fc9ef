"""Presets compose; switches that do nothing are named."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from rl_samples import BigramPolicy, make_valued

from seedthink.config.algorithm import PRESETS, AlgorithmConfig, ineffective, preset, without_effect
from seedthink.errors import ConfigError
from seedthink.rl.algorithm import build_policy_loss, build_value_loss
from seedthink.rl.credit import credit
from seedthink.rl.pack import pack
from seedthink.types import Valued


def step_groups() -> list[list[Valued]]:
    """Three groups of four, two of them useful, with everything any preset asks for."""
    rng = np.random.default_rng(1)
    scores = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    return [
        [
            make_valued(
                n := int(rng.integers(2, 9)),
                score=score,
                group=f"g{g}",
                index=i,
                value=rng.normal(0, 0.3, n),
                reference=rng.normal(-2, 0.3, n),
            )
            for i, score in enumerate(row)
        ]
        for g, row in enumerate(scores)
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_from_rewards_to_gradients(name: str) -> None:
    config, policy = PRESETS[name], BigramPolicy()
    credited = credit(step_groups(), config)
    mini_batches = pack(
        credited, token_budget=20, max_sequence_tokens=30, updates_per_rollout=config.updates_per_rollout
    )
    assert sum(c.kept for c in credited) == (8 if config.dynamic_sampling else 12)
    for batches in mini_batches:
        loss, _, metrics = policy.learn(batches, policy.policy, build_policy_loss(config, max_tokens=16))
        assert np.isfinite(loss)
        assert {"actor/loss", "actor/pg_loss", "actor/entropy", "mismatch/logp_gap_max"} <= set(metrics)
        assert ("actor/nll_loss" in metrics) == (name == "vapo")
        if config.critic:
            value, value_gradient, _ = policy.learn(batches, policy.value, build_value_loss(config))
            assert value > 0
            assert float(value_gradient.abs().max()) > 0
    assert config.preset == name
    assert ineffective(config) == {}


def test_the_default_section_is_vapo_with_the_papers_numbers() -> None:
    config = AlgorithmConfig()
    assert config == preset("vapo")
    assert (config.clip_low, config.clip_high, config.gae_lambda_critic) == (0.2, 0.28, 1.0)
    assert (config.gae_lambda_adaptive, config.gae_length_alpha) == (True, 0.05)
    assert (config.positive_nll_weight, config.updates_per_rollout) == (0.1, 16)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (replace(PRESETS["vapo"], gae_lambda_policy=0.9), "gae_lambda_policy"),
        (replace(PRESETS["ppo"], gae_length_alpha=0.9), "gae_length_alpha"),
        (replace(PRESETS["grpo"], value_clip=0.2), "value_clip"),
        (replace(PRESETS["gspo"], dual_clip=3.0), "dual_clip"),
        (replace(PRESETS["grpo"], policy_loss="reinforce", clip_high=0.5), "clip_high"),
        (replace(PRESETS["vapo"], kl_estimator="k1"), "kl_estimator"),
        (replace(PRESETS["vapo"], correction="tis"), "correction"),
        (replace(PRESETS["vapo"], recompute_proximal=True, correction="tis", correction_low=0.1), "correction_low"),
        (replace(PRESETS["vapo"], overlong_cache=0.5), "overlong_cache"),
        (replace(PRESETS["grpo"], max_refills=9), "max_refills"),
        (replace(PRESETS["reinforce_pp"], whiten_advantages=True), "whiten_advantages"),
    ],
)
def test_a_switch_that_nothing_reads_is_named_with_the_reason(config: AlgorithmConfig, key: str) -> None:
    assert list(ineffective(config)) == [key]
    assert ineffective(config)[key]


def test_a_switch_that_is_read_is_not_named() -> None:
    config = replace(
        PRESETS["vapo"],
        gae_length_alpha=1.0,
        kl_weight=0.1,
        kl_estimator="k2",
        recompute_proximal=True,
        correction="icepop",
        correction_low=0.4,
        correction_high=5.0,
        overlong_penalty=1.0,
        overlong_cache=0.5,
        dual_clip=3.0,
        value_clip=0.2,
    )
    assert ineffective(config) == {}


@pytest.mark.parametrize("name", PRESETS)
def test_a_switch_named_without_effect_changes_neither_credit_nor_loss(name: str) -> None:
    config, policy = PRESETS[name], BigramPolicy()
    other = {
        "gae_lambda_critic": 0.5,
        "gae_lambda_adaptive": not config.gae_lambda_adaptive,
        "gae_length_alpha": 0.7,
        "gae_lambda_policy": 0.3,
        "value_clip": 0.01,
        "whiten_advantages": not config.whiten_advantages,
        "dual_clip": 1.01,
        "clip_low": 0.001,
        "clip_high": 0.001,
        "kl_estimator": "k2",
        "kl_in": "reward" if config.kl_in == "loss" else "loss",
        "correction": "icepop",
        "correction_low": 1.5,
        "correction_high": 1.6,
        "overlong_cache": 0.9,
        "max_refills": 0,
    }
    ignored = without_effect(config)
    assert ignored.keys() <= other.keys()
    changed = replace(config, **{key: other[key] for key in ignored})

    def outcome(c: AlgorithmConfig) -> tuple[float, ...]:
        (batches,) = pack(credit(step_groups(), c), token_budget=99, max_sequence_tokens=30, updates_per_rollout=1)
        losses = (policy.learn(batches, policy.policy, build_policy_loss(c, max_tokens=16)),)
        if c.critic:
            losses += (policy.learn(batches, policy.value, build_value_loss(c)),)
        return tuple(x for loss, gradient, _ in losses for x in (loss, float(gradient.abs().sum())))

    assert outcome(changed) == outcome(config)


def test_contradictions_are_errors_that_name_the_keys() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.dual_clip is 0\.5"):
        replace(PRESETS["vapo"], dual_clip=0.5)
    with pytest.raises(ConfigError, match=r"algorithm\.correction_low 5 is above algorithm\.correction_high 2"):
        replace(PRESETS["vapo"], correction="icepop", correction_low=5.0)
    with pytest.raises(ConfigError, match=r"algorithm\.reward_wrong is 1"):
        replace(PRESETS["vapo"], reward_wrong=1.0)
    with pytest.raises(ConfigError, match="'papo'; choose one of vapo"):
        preset("papo")


def test_every_switch_is_documented() -> None:
    from seedthink.config.fields import field_docs

    docs = field_docs(AlgorithmConfig)
    assert [f.name for f in fields(AlgorithmConfig) if not docs[f.name]] == []
