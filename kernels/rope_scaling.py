"""Frequencies of the rotary embedding stretched to longer contexts than those of pretraining.

A model names one of these rules; `stretch` applies it to the plain frequencies in float32, operation by operation as
transformers does: at position 100,000 a frequency that differs in its last bit turns a head visibly further. Nothing
here loads torch by itself.
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

    def stretch(self, frequency: Tensor) -> Tensor:
        """float32 radians per position, one per pair, in and out."""
        return frequency / self.factor


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

    def stretch(self, frequency: Tensor) -> Tensor:
        """float32 radians per position, one per pair, in and out."""
        context, low, high = self.original_max_position_embeddings, self.low_freq_factor, self.high_freq_factor
        wavelength = 2 * math.pi / frequency
        stretched = frequency.where(wavelength <= context / low, frequency / self.factor)
        ramp = (context / wavelength - low) / (high - low)
        between = ~(wavelength < context / high) & ~(wavelength > context / low)
        return ((1 - ramp) * stretched / self.factor + ramp * stretched).where(between, stretched)


RopeScaling = LinearScaling | Llama3Scaling
