"""The critic: a network of its own, the policy's architecture with a scalar head instead of the vocabulary.

    value_t = hidden_t . w + b

w and b start at zero, so that an untrained critic says 0 everywhere. The head is always float32: values feed GAE.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seedthink.kernels.linear import linear
from seedthink.models.context import Context, Watcher
from seedthink.models.decoder import Transformer


class ValueModel(nn.Module):
    """Scalar head on `trunk`, which it owns."""

    def __init__(self, trunk: Transformer) -> None:
        super().__init__()
        self.trunk, self.config, self.compute, self.shards = trunk, trunk.config, trunk.compute, trunk.shards
        self.watcher: Watcher | None = None
        self.head_1D = nn.Parameter(torch.zeros(1, trunk.config.hidden_size))
        self.head_bias_1 = nn.Parameter(torch.zeros(1))

    @classmethod
    def from_policy(cls, policy: Transformer) -> ValueModel:
        """A critic whose trunk is a copy of the policy's weights."""
        model = cls(Transformer(policy.config, policy.compute, with_head=False, shards=policy.shards))
        source = dict(policy.named_parameters())
        with torch.no_grad():
            for name, parameter in model.trunk.named_parameters():
                parameter.copy_(source[name])
        return model

    def forward(self, tokens_T: Tensor, context: Context) -> Tensor:
        """int64 tokens_T -> float32 value_T, the expected return after each token."""
        hidden_TD = self.trunk(tokens_T, context)
        return linear(hidden_TD, self.head_1D, torch.float32).squeeze(-1) + self.head_bias_1
