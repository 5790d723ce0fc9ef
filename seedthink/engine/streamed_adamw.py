"""AdamW for parameters on a device that the moments would fill: they stand in the host (`memory.offload_optimizer`)."""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.engine.adamw import AdamW


class StreamedAdamW(AdamW):
    """AdamW whose moments stand in host memory and visit the parameters' device one parameter at a time.

    The update is the device's, with the bits of AdamW. Host memory is pinned where the device is another one.
    """

    def step(self, rate: float) -> None:
        """As of AdamW; the moments have arrived when it returns."""
        super().step(rate)
        for device in {p.device for p in self.state if p.is_cuda}:
            torch.cuda.synchronize(device)

    def _update(self, moved: list[Tensor], rate: float, decay: float) -> None:
        for p in moved:
            home = self._state_of(p)
            self.state[p] = {key: value.to(p.device, non_blocking=True, copy=True) for key, value in home.items()}
            super()._update([p], rate, decay)
            for key, value in self.state[p].items():
                home[key].copy_(value, non_blocking=True)
            self.state[p] = home

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        if p not in self.state:
            self.restore(
                p, {"step": torch.zeros(()), "exp_avg": torch.zeros(p.shape), "exp_avg_sq": torch.zeros(p.shape)}
            )
        return self.state[p]

    def restore(self, p: Tensor, state: dict[str, Tensor]) -> None:
        """As of AdamW, in host memory."""
        self.state[p] = {key: value.cpu().pin_memory() if p.is_cuda else value for key, value in state.items()}
