"""The section `memory` against the device that learns: what it has no use for is an error, not ignored."""

from __future__ import annotations

import torch

from seedthink.config.sections import MemoryConfig
from seedthink.errors import ConfigError
from seedthink.models.keeping import Keeping

KEEP_ALL = MemoryConfig()


def keeping_of(memory: MemoryConfig, device: torch.device) -> Keeping:
    """What blocks keep. Errors: ConfigError where something is to be offloaded from the host to itself."""
    if device.type == "cpu":
        for key in ("offload_activations", "offload_optimizer"):
            if getattr(memory, key):
                raise ConfigError(
                    f"memory.{key} = true, but the model is in host memory already: there is nothing to offload to. "
                    'Remove it; memory.recompute = "layers" and a smaller trainer.micro_batch_tokens take less memory'
                )
    return Keeping(memory.recompute, memory.recompute_every, memory.offload_activations)
