"""Output-aware FP8 for weights: each rounding error is made good by the columns that are still to be rounded.

A layer computes y = W x, so what counts is E[||(Q(W) - W) x||^2] = tr(D G D^T) with D = Q(W) - W and the inputs' second
moment G = E[x x^T]. With the factorisation G = (I + U) S (I + U)^T, U strictly upper triangular and S diagonal,
    q[:, k] = fp8(w[:, k] + sum over j < k of (w[:, j] - q[:, j]) U[j, k])
leaves sum_k S[k] (rounding error of column k)^2. That is GPTQ (Frantar et al. 2022, arXiv:2210.17323), in the form that
Chee et al. 2023 (QuIP, arXiv:2307.13304) show to be the same codes: one Cholesky factor, no inverse.

At each publish plain feedback would change many codes, because a code that moves moves the targets behind it.
*Hysteresis inside the recursion* stops that: an old code stays while the target is within 0.75 steps of it, and its
error, a little larger, is handed on like any other. Scales are sticky (kernels/fp8.py).
A layer that is still too far off gets a *residual*: a second FP8 matrix, of W - Q(W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.fp8 import FORMATS, LARGEST, Fp8, dequantize_fp8, quantize_fp8, spread
from seedthink.kernels.packing import panels_of
from seedthink.kernels.registry import define

HYSTERESIS = 0.75


class ActivationGram:
    """Running mean of x x^T over a layer's inputs; earlier updates fade.

    decay: weight of what was there when the next batch comes, 0 to 1 (1 forgets nothing).
    """

    def __init__(self, width: int, decay: float = 0.95) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay: {decay} is outside 0 to 1")
        self.decay = decay
        self.tokens = 0.0
        self._sum_KK = torch.zeros(width, width)

    def update(self, x_TK: Tensor) -> None:
        """Add a batch of inputs, any floating dtype. ValueError, and no change, where it holds NaN or infinity."""
        width = len(self._sum_KK)
        if x_TK.dim() != 2 or x_TK.shape[1] != width:
            raise ValueError(f"x: expected shape [T, {width}], got {list(x_TK.shape)}")
        x_TK = x_TK.float()
        batch_KK = x_TK.T @ x_TK
        if not batch_KK.diagonal().isfinite().all():
            raise ValueError("x: holds NaN or infinity, or numbers whose squares overflow")
        self._sum_KK.mul_(self.decay).add_(batch_KK)
        self.tokens = self.decay * self.tokens + len(x_TK)

    def mean(self) -> Tensor:
        """G [K, K], symmetric to the last bit; zeros before the first token."""
        return (self._sum_KK + self._sum_KK.T) * (0.5 / max(self.tokens, 1.0))


def feedback_factor(gram_KK: Tensor, damping: float = 0.01) -> Tensor:
    """U^T of the damped Gram, for `quantize_fp8_feedback`: row k holds what column k takes of the errors before it.

    damping: share of the mean diagonal that is added to the diagonal. It bounds how hard a column is bent to correct
    others, and makes directions that were never seen harmless. One factor serves all layers with the same input.
    """
    if not damping > 0.0:
        raise ValueError(f"damping: {damping} must be positive")
    if gram_KK.dim() != 2 or gram_KK.shape[0] != gram_KK.shape[1]:
        raise ValueError(f"gram: expected a square matrix, got {list(gram_KK.shape)}")
    mean = gram_KK.diagonal().mean()
    if not mean.isfinite():
        raise ValueError("gram: holds NaN or infinity")
    # G = R R^T with R upper triangular is the Cholesky factorisation of G with rows and columns in reverse.
    turned_KK = gram_KK.flip(0, 1)
    turned_KK.diagonal().add_(damping * mean if mean > 0 else 1.0)
    lower_KK, failed = torch.linalg.cholesky_ex(turned_KK)
    if failed:
        raise ValueError(f"gram: not positive semidefinite, even with {damping} of its mean diagonal added")
    upper_KK = lower_KK.flip(0, 1)
    return (upper_KK / upper_KK.diagonal()).T.tril_(-1).contiguous()


def reference_feedback(
    weight_NK: Tensor, gram_KK: Tensor, scale_PQ: Tensor, block: tuple[int, int], format: str = "e4m3"
) -> Tensor:
    """Codes after the textbook: GPTQ's loop over columns with the Cholesky factor of the inverse Gram, in float64."""
    weight_NK, codes_NK = weight_NK.double().clone(), torch.empty(weight_NK.shape, dtype=FORMATS[format])
    scale_NK = spread(scale_PQ.double(), block, weight_NK.shape)
    upper_KK = torch.linalg.cholesky(torch.linalg.inv(gram_KK.double()), upper=True)
    for k in range(weight_NK.shape[1]):
        scaled_N = (weight_NK[:, k] / scale_NK[:, k]).clamp(-LARGEST[format], LARGEST[format])
        codes_NK[:, k] = scaled_N.to(FORMATS[format])
        error_N = (weight_NK[:, k] - codes_NK[:, k].double() * scale_NK[:, k]) / upper_KK[k, k]
        weight_NK[:, k + 1 :] -= error_N[:, None] * upper_KK[k, k + 1 :]
    return codes_NK


def quantize_fp8_feedback(
    weight_NK: Tensor,
    factor_KK: Tensor,
    block: tuple[int, int] = (128, 128),
    format: str = "e4m3",
    power_of_two: bool = False,
    headroom: float = 1.0,
    previous: Fp8 | None = None,
    hysteresis: float = HYSTERESIS,
) -> Fp8:
    """Quantise weight_NK, float32 or bfloat16 [N, K], with error feedback by `feedback_factor`'s factor.

    previous: the last publish, whose scales and codes are kept where they may be (None: a first publish). hysteresis:
    steps of the format that a target may be away from an old code, 0.5 (nearly none) to 2. A row's codes depend on that
    row, its scales and the factor alone. ValueError names the argument that does not fit, or says that the weight is
    not finite.
    """
    old = old_scale = None
    if previous is not None:
        kind = (list(previous.codes.shape), tuple(previous.block), previous.format)
        if kind != (wanted := (list(weight_NK.shape), tuple(block), format)):
            raise ValueError(f"previous: {kind} does not fit {wanted}: shape, block and format")
        old, old_scale = previous.codes.view(torch.uint8), previous.scale
    plain = quantize_fp8(weight_NK, block, format, power_of_two, headroom, old_scale)
    codes_NK: Tensor = _feedback(
        weight_NK.float(), factor_KK, plain.scale, list(block), format, old, old_scale, float(hysteresis)
    )
    return Fp8(codes_NK.view(FORMATS[format]), plain.scale, plain.block)


def fp8_residual(weight_NK: Tensor, main: Fp8, factor_KK: Tensor, previous: Fp8 | None = None) -> Fp8:
    """What `main` leaves of the weight, quantised as `main` is; the layer then computes with the sum of both.

    previous: the last publish's residual, whose scales and codes stay where they may.
    """
    power_of_two = bool((torch.frexp(main.scale).mantissa == 0.5).all())
    left_NK = weight_NK.float() - dequantize_fp8(main)
    return quantize_fp8_feedback(left_NK, factor_KK, main.block, main.format, power_of_two, previous=previous)


def output_error(weight_NK: Tensor, approximate_NK: Tensor, gram_KK: Tensor) -> float:
    """Root of E||(A - W) x||^2 / E||W x||^2 for inputs with second moment G: how far off a layer's outputs are."""
    weight_NK, off_NK = weight_NK.float(), approximate_NK.float() - weight_NK.float()
    wrong, right = (((each @ gram_KK) * each).sum(dtype=torch.float64) for each in (off_NK, weight_NK))
    return float((wrong / right).sqrt())


def _feedback_cpu(
    weight_NK: Tensor,
    factor_KK: Tensor,
    scale_PQ: Tensor,
    block: list[int],
    format: str,
    old_NK: Tensor | None,
    old_scale_PQ: Tensor | None,
    hysteresis: float,
) -> Tensor:
    if factor_KK.dim() != 2:
        raise ValueError(f"factor: expected 2 dimensions, got {factor_KK.dim()}")
    codes_NK, dtype = torch.empty(weight_NK.shape, dtype=torch.uint8), FORMATS[format]
    panels = panels_of(factor_KK, torch.float32, name="factor")
    old = None if old_NK is None else old_NK.view(dtype)
    codes = codes_NK.view(dtype)
    _C.fp8_feedback(weight_NK, factor_KK, panels, scale_PQ, *block, old, old_scale_PQ, hysteresis, codes)
    return codes_NK


_feedback = define(
    "fp8_feedback(Tensor weight, Tensor factor, Tensor scale, int[] block, str format, Tensor? old, Tensor? old_scale, "
    "float hysteresis) -> Tensor",
    cpu=_feedback_cpu,
    fake=lambda weight, *rest: weight.new_empty(weight.shape, dtype=torch.uint8),
)
