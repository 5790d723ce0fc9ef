"""Frequencies of the rotary embedding stretched to longer contexts than those of pretraining.

A model names one of these rules. `frequencies` makes the radians per position from the powers theta^(2i/H), whose
inverses are the plain ones, in float32, operation by operation as transformers does: at position 100,000 a frequency
that differs in its last bit turns a head visibly further. Nothing here loads torch by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Every position counts 1/factor (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def frequencies(self, power: Tensor, theta: float) -> Tensor:
        """float32 [H/2], one per pair, from the powers of theta."""
        return 1.0 / power / self.factor

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's rule: short wavelengths stay, long ones are divided by factor, a ramp between (arXiv:2407.21783).

    Short: more than `high_freq_factor` turns within `original_max_position_embeddings`; long: fewer than
    `low_freq_factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def frequencies(self, power: Tensor, theta: float) -> Tensor:
        """float32 [H/2], one per pair, from the powers of theta."""
        context, low, high = self.original_max_position_embeddings, self.low_freq_factor, self.high_freq_factor
        frequency = 1.0 / power
        wavelength = 2 * math.pi / frequency
        stretched = frequency.where(wavelength <= context / low, frequency / self.factor)
        ramp = (context / wavelength - low) / (high - low)
        between = ~(wavelength < context / high) & ~(wavelength > context / low)
        return ((1 - ramp) * stretched / self.factor + ramp * stretched).where(between, stretched)

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN: a ramp over the pairs' numbers from plain to divided frequencies, and louder heads (arXiv:2309.00071).

    The ramp runs from the pair that turns `beta_fast` times within `original_max_position_embeddings` to the one that
    turns `beta_slow` times, both to whole pairs where `truncate`. `attention_factor` is the amplitude; without it the
    amplitude follows from factor, and from mscale / mscale_all_dim where both are given.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def frequencies(self, power: Tensor, theta: float) -> Tensor:
        """float32 [H/2], one per pair, from the powers of theta."""
        pairs = power.shape[0]
        low, high = self._pair(self.beta_fast, theta, pairs), self._pair(self.beta_slow, theta, pairs)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        width = high - low if high != low else 0.001
        plain = 1 - ((power.new_tensor(range(pairs)) - low) / width).clamp(0, 1)
        return 1.0 / (self.factor * power) * (1 - plain) + 1.0 / power * plain

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._gain(self.mscale) / self._gain(self.mscale_all_dim)
        return self._gain(1.0)

    @property
    def score_gain(self) -> float:
        """What DeepSeek-V3 multiplies all of q.k by, the part that is not turned included."""
        return self._gain(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _pair(self, turns: float, theta: float, pairs: int) -> float:
        """The number of the pair that turns so often within the original context."""
        return (
            2 * pairs * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))
        )

    def _gain(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling
