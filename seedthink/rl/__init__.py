"""The mathematics of reinforcement learning as pure functions: no engine, no Ray, no prompt source.

advantage -> estimators; credit -> who learns, and what; pack -> mini-batches; loss and correction -> terms over global
counts; shaping -> rewards; algorithm -> an `AlgorithmConfig` put together.
"""

from seedthink.rl.algorithm import build_policy_loss, build_value_loss
from seedthink.rl.credit import credit, credit_metrics
from seedthink.rl.pack import pack
from seedthink.rl.shaping import build_reward

__all__ = ["build_policy_loss", "build_reward", "build_value_loss", "credit", "credit_metrics", "pack"]
