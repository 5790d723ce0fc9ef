"""The CUDA kernels of `seedthink._C`: results and workspaces allocated here, launched on the current stream.

Nothing waits for the device and nothing is read back, so every call can be captured in a graph. What a CPU operator
refuses by value cannot be refused here: a router row with NaN or +inf gets NaN weights, and a row number that lies
outside the rows gives NaN or is left out. Each function has the signature of the CPU kernel of the same operator, and
is its implementation for CUDA tensors; the last two exist on CUDA alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.errors import DeviceError

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
GROUP = 128  # columns that share a scale in the fused operations


def _launch(name: str, first: Tensor, *args: Any) -> None:
    """Call `_C.name(*args, stream)` on the device of `first`; DeviceError where the library was built without nvcc."""
    call: Callable[..., None] | None = getattr(_C, name, None)
    if call is None:
        raise DeviceError(
            f"{name}: this build has no CUDA kernels; see `seedthink doctor`, or move the tensors to the CPU"
        )
    index = first.get_device()
    if index == torch.cuda.current_device():  # the usual case, without the context manager's microseconds
        call(*args, torch.cuda.current_stream(index).cuda_stream)
        return
    with torch.cuda.device(index):
        call(*args, torch.cuda.current_stream(index).cuda_stream)


def _bytes(size: int, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def _matrix(name: str, x: Tensor) -> torch.Size:
    if x.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got {x.dim()}")
    return x.shape


def gae(
    reward_T: Tensor,
    value_T: Tensor,
    cu_seqlens_B1: Tensor,
    lambda_policy_B: Tensor,
    lambda_critic_B: Tensor,
    gamma: float,
    mask_T: Tensor | None,
    bootstrap_B: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(advantage_T, return_T) of kernels/gae.py. The values of cu_seqlens are not checked, but nothing outside the
    tensors is read or written whatever they are."""
    advantage_T, return_T = torch.empty_like(reward_T), torch.empty_like(reward_T)
    tokens, sequences = reward_T.shape[0], cu_seqlens_B1.shape[0] - 1
    size = _C.gae_cuda_workspace(tokens, sequences) if hasattr(_C, "gae_cuda_workspace") else 0
    given = (reward_T, value_T, cu_seqlens_B1, lambda_policy_B, lambda_critic_B, gamma, mask_T, bootstrap_B)
    _launch("gae_scan_cuda", reward_T, *given, advantage_T, return_T, _bytes(size, reward_T), tokens)
    return advantage_T, return_T


def route(
    logits_TE: Tensor,
    k: int,
    score: str,
    norm_topk: bool,
    scale: float,
    bias_E: Tensor | None,
    groups: int,
    topk_groups: int,
) -> tuple[Tensor, ...]:
    """(weight_TK, ids_TK, counts_E, offsets_E1, row_TK, token_R) of kernels/route.py in two launches.

    logits_TE: float32 or bfloat16, at most 512 experts, k and groups at most 32. The scores that experts are chosen by
    have the bits of the CPU, and so the choice is the same; weights agree to rounding.
    """
    tokens, experts = _matrix("logits", logits_TE)
    _sigmoid(score)
    if not 1 <= k <= experts:
        raise ValueError(f"k: {k} is not between 1 and the number of experts, {experts}")
    ids_TK = logits_TE.new_empty((tokens, k), dtype=torch.int32)
    weight_TK = logits_TE.new_empty((tokens, k), dtype=torch.float32)
    counts_E, offsets_E1 = (logits_TE.new_empty(size, dtype=torch.int32) for size in (experts, experts + 1))
    row_TK, token_R = torch.empty_like(ids_TK), ids_TK.new_empty(tokens * k)
    size = _C.route_cuda_workspace(experts) if hasattr(_C, "route_cuda_workspace") else 0
    rule = (bias_E, _sigmoid(score), norm_topk, scale, groups, topk_groups)
    places = (counts_E, offsets_E1, row_TK, token_R)
    _launch("route_forward_cuda", logits_TE, logits_TE, *rule, ids_TK, weight_TK, *places, _bytes(size, logits_TE))
    return weight_TK, ids_TK, *places


def route_backward(
    dweight_TK: Tensor, logits_TE: Tensor, ids_TK: Tensor, weight_TK: Tensor, score: str, norm_topk: bool, scale: float
) -> Tensor:
    """dlogits_TE in the dtype of the logits."""
    dlogits_TE = torch.empty_like(logits_TE)
    rule = (_sigmoid(score), norm_topk, scale)
    _launch("route_backward_cuda", logits_TE, dweight_TK, logits_TE, ids_TK, weight_TK, *rule, dlogits_TE)
    return dlogits_TE


def _sigmoid(score: str) -> bool:
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"score: {score!r} is not one of softmax, sigmoid")
    return score == "sigmoid"


def permute(x_TD: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    """x_RD of kernels/permute.py."""
    (tokens, width), (_, k) = _matrix("x", x_TD), _matrix("routing.row_TK", row_TK)
    x_RD = x_TD.new_empty((tokens * k, width))
    _launch("permute_forward_cuda", x_TD, x_TD, row_TK, x_RD)
    return x_RD


def permute_backward(dx_RD: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    """dx_TD: the sum of a token's rows in expert order."""
    dx_TD = dx_RD.new_empty((row_TK.shape[0], dx_RD.shape[1]))
    _launch("permute_backward_cuda", dx_RD, dx_RD, row_TK, dx_TD)
    return dx_TD


def unpermute(y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    """y_TD of kernels/permute.py."""
    (_, width), (tokens, _) = _matrix("y", y_RD), _matrix("routing.row_TK", row_TK)
    y_TD = y_RD.new_empty((tokens, width))
    _launch("unpermute_forward_cuda", y_RD, y_RD, weight_TK, row_TK, y_TD)
    return y_TD


def unpermute_backward(
    dy_TD: Tensor, y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor
) -> tuple[Tensor, Tensor]:
    """(dy_RD, dweight_TK)."""
    dy_RD, dweight_TK = torch.empty_like(y_RD), torch.empty_like(weight_TK)
    _launch("unpermute_backward_cuda", dy_TD, dy_TD, y_RD, weight_TK, row_TK, dy_RD, dweight_TK)
    return dy_RD, dweight_TK


def quantize(
    x_MN: Tensor,
    previous_PQ: Tensor | None,
    block: list[int],
    format: str,
    power_of_two: bool,
    headroom: float,
    band: list[float],
) -> tuple[Tensor, Tensor]:
    """(codes uint8 [M, N], scale_PQ) of kernels/fp8.py, bit for bit."""
    codes_MN, scale_PQ = _codes_and_scale(x_MN, block)
    how = (*block, power_of_two, headroom, *band)
    _launch("fp8_quantize_cuda", x_MN, x_MN, None, previous_PQ, *how, codes_MN.view(FP8[format]), scale_PQ, None)
    return codes_MN, scale_PQ


def quantize_carry(
    x_MN: Tensor,
    residual_MN: Tensor,
    previous_PQ: Tensor | None,
    block: list[int],
    format: str,
    power_of_two: bool,
    headroom: float,
    band: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scale, left_MN) of kernels/fp8.py, bit for bit."""
    codes_MN, scale_PQ = _codes_and_scale(x_MN, block)
    left_MN, codes = torch.empty_like(x_MN, dtype=torch.bfloat16), codes_MN.view(FP8[format])
    how = (*block, power_of_two, headroom, *band)
    _launch("fp8_quantize_cuda", x_MN, x_MN, residual_MN, previous_PQ, *how, codes, scale_PQ, left_MN)
    return codes_MN, scale_PQ, left_MN


def _codes_and_scale(x_MN: Tensor, block: list[int]) -> tuple[Tensor, Tensor]:
    shape = _matrix("x", x_MN)
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"block: expected two positive sizes, got {tuple(block)}")
    sizes = [-(-size // side) for size, side in zip(shape, block, strict=True)]
    return x_MN.new_empty(shape, dtype=torch.uint8), x_MN.new_empty(sizes, dtype=torch.float32)


def permute_fp8(
    x_TD: Tensor, row_TK: Tensor, format: str = "e4m3", power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """(codes uint8 [R, D], scale float32 [R, ceil(D / 128)]): a token is quantised once, its codes go to its K rows."""
    (tokens, width), (_, k) = _matrix("x", x_TD), _matrix("routing.row_TK", row_TK)
    codes_RD = x_TD.new_empty((tokens * k, width), dtype=torch.uint8)
    scale_RQ = x_TD.new_empty((tokens * k, -(-width // GROUP)), dtype=torch.float32)
    _launch("fp8_permute_cuda", x_TD, x_TD, row_TK, power_of_two, codes_RD.view(FP8[format]), scale_RQ)
    return codes_RD, scale_RQ


def rms_norm_fp8(
    x_TD: Tensor, weight_D: Tensor, eps: float, format: str = "e4m3", power_of_two: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes uint8 [T, D], scale float32 [T, D / 128], rstd_T) of RMSNorm, rounded to x's dtype, then quantised.

    x_TD: float32 or bfloat16, D a multiple of 128 up to 16384; weight_D: float32.
    """
    tokens, width = _matrix("x", x_TD)
    codes_TD, rstd_T = x_TD.new_empty((tokens, width), dtype=torch.uint8), x_TD.new_empty(tokens, dtype=torch.float32)
    scale_TQ = x_TD.new_empty((tokens, width // GROUP), dtype=torch.float32)
    codes = codes_TD.view(FP8[format])
    _launch("fp8_rms_norm_cuda", x_TD, x_TD, weight_D, eps, power_of_two, codes, scale_TQ, rstd_T)
    return codes_TD, scale_TQ, rstd_T
