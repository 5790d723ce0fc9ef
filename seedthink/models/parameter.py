"""Parameters without values: loading a folder or `init_weights` fills them."""

from __future__ import annotations

import torch
from torch import nn


def empty(*shape: int, learns: bool = True) -> nn.Parameter:
    """A float32 parameter without values yet. learns False: part of the model's weights that no gradient moves."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32), requires_grad=learns)
