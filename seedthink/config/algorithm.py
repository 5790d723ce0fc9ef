"""The algorithm's switches and the presets made of them; `rl` composes its pure functions from one `AlgorithmConfig`.

A preset is a set of values, nothing more: `AlgorithmConfig()` is `vapo`, and `PRESETS` lists where the others differ.
Values come from the papers (VAPO 2504.05118, DAPO 2503.14476, VC-PPO 2503.01491, GRPO 2402.03300, GSPO 2507.18071,
CISPO 2506.13585, RLOO 2402.14740, REINFORCE++ 2501.03262, Dr.GRPO 2503.20783); where a paper is silent, the choice is
the one that adds no term. No preset keeps a reference policy (GRPO's own kl_weight was 0.04).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from seedthink.config.fields import Amount, Count, Fraction, Positive, PositiveAmount, Share
from seedthink.errors import ConfigError

Preset = Literal["vapo", "dapo", "ppo", "grpo", "gspo", "cispo", "rloo", "reinforce_pp", "dr_grpo"]
Estimator = Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce_pp", "reward_to_go"]
PolicyLoss = Literal["clip", "gspo", "cispo", "reinforce"]
Aggregation = Literal["token", "sequence", "constant"]
KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "tis", "icepop", "sequence_tis", "sequence_mis", "sequence_mask"]

GROUP_ESTIMATORS = frozenset({"grpo", "dr_grpo", "rloo"})


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """How rewards become advantages, and advantages a loss. Discounting is absent: gamma is 1 throughout."""

    preset: Preset = "vapo"
    """Named set of values that the other keys of this section start from."""
    estimator: Estimator = "gae"
    """Advantages: "gae" (with a critic), "grpo" (group mean and deviation), "dr_grpo" (group mean), "rloo" (mean of the
    other members), "reinforce_pp" (whitened over the batch's tokens), "reward_to_go" (no baseline)."""
    gae_lambda_critic: Fraction = 1.0
    """Lambda of the critic's targets; 1 makes them Monte-Carlo returns."""
    gae_lambda_adaptive: bool = True
    """Policy lambda grows with the answer's length l as 1 - 1/(gae_length_alpha * l); false takes gae_lambda_policy."""
    gae_length_alpha: PositiveAmount = 0.05
    """Horizon of adaptive policy GAE as a share of the answer's length; 0.5 to 1 suits answers below 200 tokens."""
    gae_lambda_policy: Fraction = 0.95
    """Constant policy lambda, used when gae_lambda_adaptive is false."""
    whiten_advantages: bool = False
    """Shift and scale advantages to mean 0 and deviation 1 over all tokens of a rollout batch."""
    policy_loss: PolicyLoss = "clip"
    """Surrogate: "clip" (PPO), "gspo" (clipped sequence ratio), "cispo" (clipped detached weight), "reinforce"."""
    clip_low: Fraction = 0.2
    """The policy ratio is clipped from below at 1 - clip_low."""
    clip_high: Amount = 0.28
    """The policy ratio is clipped from above at 1 + clip_high."""
    dual_clip: Amount = 0.0
    """Bound on the ratio of tokens with a negative advantage, above 1; 0 sets none."""
    loss_aggregation: Aggregation = "token"
    """Mean over the mini-batch's tokens, over its sequences of their means, or "constant": sum over tokens divided by
    sequences times rollout.max_tokens."""
    value_clip: Amount = 0.0
    """Move of a value from the one at rollout time, in units of reward, where its gradient stops; 0 sets no limit."""
    positive_nll_weight: Amount = 0.1
    """Weight of the language-model loss on right answers, per token of them."""
    entropy_weight: Amount = 0.0
    """Weight of the entropy bonus, per nat."""
    kl_weight: Amount = 0.0
    """Weight of the KL divergence from the start policy, per nat; 0 keeps no reference policy."""
    kl_estimator: KlEstimator = "k3"
    """Per-token estimate from d = log pi - log reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL term goes: a term of the loss, or taken off each token's reward."""
    recompute_proximal: bool = False
    """Recompute log-probs at the start of an update and clip against them; false clips against the behaviour policy."""
    correction: Correction = "none"
    """Weight for the gap between proximal and behaviour policy: "tis" (capped at correction_high), "icepop" (0 outside
    the band); per sequence "sequence_tis", "sequence_mis" (0 above), "sequence_mask" (0 if the geometric mean is
    outside)."""
    correction_low: Amount = 0.5
    """Lower end of the band: icepop 0.5, sequence_mask 0.999."""
    correction_high: PositiveAmount = 2.0
    """Cap or upper end of the band: tis 2, icepop 5, sequence_tis and sequence_mis 2 to 10, sequence_mask 1.002."""
    updates_per_rollout: Positive = 16
    """Mini-batches, each one optimizer step, that a rollout batch is cut into."""
    reward_right: float = 1.0
    """Reward of a right answer (score 1)."""
    reward_wrong: float = -1.0
    """Reward of a wrong answer (score 0); scores in between are interpolated."""
    overlong_penalty: Amount = 0.0
    """Reward taken off an answer as long as rollout.max_tokens, linearly less over overlong_cache; 0 takes nothing."""
    overlong_cache: Share = 0.2
    """Last part of rollout.max_tokens, as a share of it, over which the overlong penalty grows."""
    overlong_filter: bool = False
    """Leave truncated answers out of the loss; they still count in their group's baseline."""
    dynamic_sampling: bool = True
    """Replace groups whose answers all score the same, and never learn from them."""
    max_refills: Count = 4
    """Most prompts drawn as replacements in one step, in units of data.prompts_per_step."""

    def __post_init__(self) -> None:
        if 0 < self.dual_clip <= 1:
            raise ConfigError(
                f"algorithm.dual_clip is {self.dual_clip:g}; set it above 1 (3 is usual), or to 0 for none"
            )
        banded = self.correction in ("icepop", "sequence_mask")
        if banded and self.correction_low > self.correction_high:
            raise ConfigError(
                f"algorithm.correction_low {self.correction_low:g} is above algorithm.correction_high "
                f"{self.correction_high:g}; the band of '{self.correction}' would be empty: swap them"
            )
        if self.reward_wrong >= self.reward_right:
            raise ConfigError(
                f"algorithm.reward_wrong is {self.reward_wrong:g} and algorithm.reward_right {self.reward_right:g}; "
                "set reward_wrong below reward_right"
            )

    @property
    def critic(self) -> bool:
        """Whether rollouts need values."""
        return self.estimator == "gae"

    @property
    def reference(self) -> bool:
        """Whether rollouts need a reference policy's log-probs."""
        return self.kl_weight > 0

    @property
    def grouped(self) -> bool:
        """Whether advantages compare the members of a group."""
        return self.estimator in GROUP_ESTIMATORS


def without_effect(config: AlgorithmConfig) -> dict[str, str]:
    """Keys that this composition never reads, each with the reason in words."""
    found: dict[str, str] = {}

    def mark(condition: bool, reason: str, *names: str) -> None:
        if condition:
            found.update(dict.fromkeys(names, reason))

    no_critic = config.estimator != "gae"
    lambdas = ("gae_lambda_critic", "gae_lambda_adaptive", "gae_length_alpha", "gae_lambda_policy", "value_clip")
    mark(config.gae_lambda_adaptive, "gae_lambda_adaptive is true", "gae_lambda_policy")
    mark(not config.gae_lambda_adaptive, "gae_lambda_adaptive is false", "gae_length_alpha")
    mark(no_critic, f"estimator '{config.estimator}' has no critic", *lambdas)
    mark(config.estimator == "reinforce_pp", "estimator 'reinforce_pp' always whitens", "whiten_advantages")
    mark(config.policy_loss != "clip", f"policy_loss '{config.policy_loss}' has no dual clip", "dual_clip")
    mark(config.policy_loss == "reinforce", "policy_loss 'reinforce' clips nothing", "clip_low", "clip_high")
    mark(config.kl_weight == 0, "kl_weight is 0", "kl_estimator", "kl_in")
    mark(config.correction not in ("icepop", "sequence_mask"), f"'{config.correction}' has no band", "correction_low")
    mark(config.correction == "none", "correction is 'none'", "correction_high")
    same = "recompute_proximal is false, so proximal and behaviour policy are one"
    mark(not config.recompute_proximal, same, "correction", "correction_low", "correction_high")
    mark(config.overlong_penalty == 0, "overlong_penalty is 0", "overlong_cache")
    mark(not config.dynamic_sampling, "dynamic_sampling is false", "max_refills")
    return found


def ineffective(config: AlgorithmConfig) -> dict[str, str]:
    """Keys set to something else than their preset's value although nothing reads them, each with the reason."""
    base = PRESETS[config.preset]
    ignored = without_effect(config)
    return {name: reason for name, reason in ignored.items() if getattr(config, name) != getattr(base, name)}


def preset(name: str) -> AlgorithmConfig:
    """The values of a named preset. ConfigError for a name that is none."""
    if name not in PRESETS:
        raise ConfigError(f"algorithm.preset is '{name}'; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _presets() -> dict[str, AlgorithmConfig]:
    vapo = AlgorithmConfig()
    plain = replace(
        vapo, clip_high=0.2, positive_nll_weight=0.0, dynamic_sampling=False, updates_per_rollout=1, reward_wrong=0.0
    )
    grpo = replace(plain, preset="grpo", estimator="grpo", loss_aggregation="sequence")
    dapo = replace(
        vapo, preset="dapo", estimator="grpo", positive_nll_weight=0.0, overlong_penalty=1.0, updates_per_rollout=16
    )
    return {
        "vapo": vapo,
        "dapo": dapo,
        "ppo": replace(
            plain,
            preset="ppo",
            gae_lambda_adaptive=False,
            whiten_advantages=True,
            updates_per_rollout=16,
            reward_wrong=-1.0,
        ),
        "grpo": grpo,
        "gspo": replace(grpo, preset="gspo", policy_loss="gspo", clip_low=3e-4, clip_high=4e-4, updates_per_rollout=4),
        "cispo": replace(
            dapo, preset="cispo", policy_loss="cispo", clip_low=1.0, clip_high=4.0, updates_per_rollout=16
        ),
        "rloo": replace(plain, preset="rloo", estimator="rloo", kl_estimator="k1", kl_in="reward"),
        "reinforce_pp": replace(
            plain, preset="reinforce_pp", estimator="reinforce_pp", kl_estimator="k1", kl_in="reward"
        ),
        "dr_grpo": replace(plain, preset="dr_grpo", estimator="dr_grpo", loss_aggregation="constant"),
    }


PRESETS: Mapping[str, AlgorithmConfig] = _presets()
