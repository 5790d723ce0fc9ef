"""From a judgement to one reward: the score, mapped to -1..1 where wanted, plus weighted parts such as the format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from seedthink.errors import ConfigError
from seedthink.types import Judgement, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardMix:
    """reward = score (or 2 score - 1 where `signed`) + sum over `weights` of weight times the part of that name."""

    signed: bool = True
    weights: Mapping[str, float] = field(default_factory=dict)

    def parts(self, judgement: Judgement) -> dict[str, float]:
        """The summands by name: `score`, then one for each weight. Raises `ConfigError` for a part nobody reports."""
        assert judgement.verdict in (Verdict.RIGHT, Verdict.WRONG), "an error or timeout has no reward"
        found = {"score": 2.0 * judgement.score - 1.0 if self.signed else judgement.score}
        for name, weight in self.weights.items():
            if name not in judgement.parts:
                raise ConfigError(
                    f"the reward weighs the part '{name}', but the verifier reports {sorted(judgement.parts) or 'none'}"
                )
            found[name] = weight * judgement.parts[name]
        return found

    def reward(self, judgement: Judgement) -> float:
        """The sum of `parts`."""
        return sum(self.parts(judgement).values())
