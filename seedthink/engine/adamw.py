"""AdamW: torch's fused update (decoupled weight decay, arXiv 1711.05101), called as a function.

Making a `torch.optim.AdamW` imports torch's compiler, about as long again as `import torch`, and no run needs it. The
bits are those of `torch.optim.AdamW(fused=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from seedthink.config.sections import OptimizerConfig


class AdamW:
    """Updates parameters in place from their gradients.

    `state[p]` holds "step", "exp_avg" and "exp_avg_sq" of a parameter that has been updated at least once. Parameters
    of fewer than two dimensions (norms, biases) do not decay.
    """

    def __init__(self, parameters: Sequence[Tensor], config: OptimizerConfig) -> None:
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._config = config
        self._groups = [
            ([p for p in parameters if p.ndim >= 2], config.weight_decay),
            ([p for p in parameters if p.ndim < 2], 0.0),
        ]

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for members, _ in self._groups:
            for p in members:
                p.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update of every parameter that has a gradient, at the learning rate `rate`."""
        for members, decay in self._groups:
            moved = [p for p in members if p.grad is not None]
            if moved:
                self._update(moved, rate, decay)

    def restore(self, p: Tensor, state: dict[str, Tensor]) -> None:
        """Takes over the state that a parameter had; the tensors are the optimizer's from then on."""
        self.state[p] = state

    def _update(self, moved: list[Tensor], rate: float, decay: float) -> None:
        states = [self._state_of(p) for p in moved]
        adamw(
            moved,
            [p.grad for p in moved if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=self._config.betas[0],
            beta2=self._config.betas[1],
            lr=rate,
            weight_decay=decay,
            eps=self._config.eps,
            maximize=False,
        )
        # NOTE: the fused kernel writes behind torch's version counter, which tells packed weights that they are stale.
        torch.autograd.graph.increment_version(moved)

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        if p not in self.state:
            self.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        return self.state[p]
