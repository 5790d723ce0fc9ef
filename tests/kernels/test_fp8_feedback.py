"""Error feedback: the textbook's codes, smaller output errors, few moving codes, the activation Gram."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.fp8 import Fp8, dequantize_fp8, quantize_fp8, spread
from seedthink.kernels.fp8_feedback import (
    ActivationGram,
    feedback_factor,
    fp8_residual,
    output_error,
    quantize_fp8_feedback,
    reference_feedback,
)

BLOCK = (128, 128)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def gram_of(width: int, seed: int = 0) -> Tensor:
    """Inputs that live near a space of an eighth of the width."""
    x_TK = draw(4 * width, max(1, width // 8), seed=seed) @ draw(max(1, width // 8), width, seed=seed + 1)
    gram = ActivationGram(width)
    gram.update(x_TK + 0.3 * draw(4 * width, width, seed=seed + 2))
    return gram.mean()


def damped(gram_KK: Tensor) -> Tensor:
    return gram_KK + 0.01 * gram_KK.diagonal().mean() * torch.eye(len(gram_KK))


def plain_and_fed(weight: Tensor, gram: Tensor) -> tuple[Fp8, Fp8]:
    return quantize_fp8(weight, BLOCK), quantize_fp8_feedback(weight, feedback_factor(gram), BLOCK)


def test_two_columns_by_hand() -> None:
    # Inputs are (a, a): the second column must make good what the first one missed. Scale 1: the codes near 17 are 16
    # and 18 (17 goes to the even 16), so the second column aims at 17 + 1 and finds it.
    weight, gram = (
        torch.tensor([[17.0, 17.0, 448.0]]),
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
    )
    fed = quantize_fp8_feedback(weight, feedback_factor(gram, damping=1e-6), (1, 3))
    assert dequantize_fp8(fed).tolist() == [[16.0, 18.0, 448.0]]
    assert dequantize_fp8(quantize_fp8(weight, (1, 3))).tolist() == [[16.0, 16.0, 448.0]]


def test_the_factor_splits_the_damped_gram() -> None:
    gram = gram_of(200)
    factor = feedback_factor(gram).double()
    assert torch.equal(factor, factor.tril(-1))
    upper = torch.eye(200).double() + factor.T
    inner = torch.linalg.solve(upper, torch.linalg.solve(upper, damped(gram).double()).T)
    off = inner - torch.diag(inner.diagonal())
    assert off.abs().max() < 1e-4 * inner.diagonal().max() and (inner.diagonal() > 0).all()


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 70), (70, 200), (130, 129)])
def test_codes_are_those_of_the_textbook(n: int, k: int, format: str) -> None:
    weight, gram = draw(n, k), gram_of(k)
    fed = quantize_fp8_feedback(weight, feedback_factor(gram), BLOCK, format)
    truth = reference_feedback(weight, damped(gram), fed.scale, BLOCK, format)
    # A target at a middle may round either way, and moves the targets behind it.
    rows = (fed.codes.float() != truth.float()).any(1)
    assert rows.sum() <= 0.1 * n
    ours, theirs = (
        output_error(weight, value, gram) for value in (dequantize_fp8(fed), dequantize_fp8(Fp8(truth, *fed[1:])))
    )
    assert abs(ours - theirs) <= 0.01 * theirs


def test_outputs_are_nearer_than_with_plain_rounding() -> None:
    weight, gram = draw(256, 384), gram_of(384)
    plain, fed = (output_error(weight, dequantize_fp8(each), gram) for each in plain_and_fed(weight, gram))
    assert fed <= 0.7 * plain
    assert output_error(weight, weight, gram) == 0.0


def test_uncorrelated_inputs_get_plain_rounding() -> None:
    weight = draw(100, 150)
    plain, fed = plain_and_fed(weight, torch.eye(150))
    assert torch.equal(plain.codes.view(torch.uint8), fed.codes.view(torch.uint8))
    assert torch.equal(plain.scale, fed.scale)


def test_a_row_has_the_same_codes_in_any_company_and_on_any_number_of_threads() -> None:
    weight, factor, before = draw(300, 200), feedback_factor(gram_of(200)), _C.threads()
    # Blocks of one row: its scales are its own.
    whole = quantize_fp8_feedback(weight, factor, (1, 128)).codes.view(torch.uint8)
    for begin, end in ((0, 1), (60, 70), (299, 300)):
        part = quantize_fp8_feedback(weight[begin:end].contiguous(), factor, (1, 128))
        assert torch.equal(part.codes.view(torch.uint8), whole[begin:end])
    try:
        _C.set_threads(1)
        assert torch.equal(quantize_fp8_feedback(weight, factor, (1, 128)).codes.view(torch.uint8), whole)
    finally:
        _C.set_threads(before)


def test_hysteresis_keeps_codes_through_a_small_update() -> None:
    weight, gram = draw(128, 256), gram_of(256)
    factor = feedback_factor(gram)
    first = quantize_fp8_feedback(weight, factor, BLOCK, headroom=1.125)
    moved = weight * (1 + 1e-3 * draw(128, 256, seed=5))
    kept = quantize_fp8_feedback(moved, factor, BLOCK, headroom=1.125, previous=first)
    fresh = quantize_fp8_feedback(moved, factor, BLOCK, headroom=1.125, previous=first, hysteresis=0.5)
    assert torch.equal(kept.scale, first.scale)

    def share(other: Fp8) -> float:
        return (other.codes.view(torch.uint8) != first.codes.view(torch.uint8)).float().mean().item()

    assert share(kept) < 0.3 * share(fresh)
    plain = output_error(moved, dequantize_fp8(quantize_fp8(moved, BLOCK)), gram)
    assert output_error(moved, dequantize_fp8(kept), gram) < plain


def test_a_target_is_at_most_three_quarters_of_a_step_from_its_code() -> None:
    # Without correlation targets are the weights themselves. Scale 1, codes near 17: 16, 18; a step is 2.
    factor, scale = torch.zeros(2, 2), torch.ones(1, 1)
    old = Fp8(torch.tensor([[16.0, 448.0]]).to(torch.float8_e4m3fn), scale, (1, 2))
    for target, code in ((17.49, 16.0), (17.51, 18.0), (14.6, 15.0), (15.5, 16.0), (15.2, 15.0)):
        fed = quantize_fp8_feedback(torch.tensor([[target, 448.0]]), factor, (1, 2), previous=old)
        assert dequantize_fp8(fed)[0, 0].item() == code


def test_old_codes_do_not_count_where_the_scale_has_moved() -> None:
    weight, factor = draw(1, 256), torch.zeros(256, 256)
    first = quantize_fp8_feedback(weight, factor, (1, 128))
    moved = weight.clone()
    moved[0, weight[0, :128].abs().argmax()] *= 1.01  # its block's scale follows, and so do the codes beside it
    second, fresh = quantize_fp8_feedback(moved, factor, (1, 128), previous=first), quantize_fp8(moved, (1, 128))
    codes = [each.codes.view(torch.uint8) for each in (first, second, fresh)]
    assert not torch.equal(codes[0][:, :128], codes[2][:, :128])
    assert torch.equal(codes[1], codes[2]) and torch.equal(second.scale, fresh.scale)
    assert torch.equal(second.scale[:, 1], first.scale[:, 1])


def test_a_residual_leaves_a_sixteenth_of_the_error() -> None:
    weight, gram = draw(200, 256), gram_of(256)
    factor = feedback_factor(gram)
    for power_of_two in (False, True):
        main = quantize_fp8_feedback(weight, factor, BLOCK, power_of_two=power_of_two)
        extra = fp8_residual(weight, main, factor)
        both = dequantize_fp8(main) + dequantize_fp8(extra)
        assert output_error(weight, both, gram) < output_error(weight, dequantize_fp8(main), gram) / 16
        assert (torch.frexp(extra.scale).mantissa == 0.5).all() == power_of_two
    moved = fp8_residual(weight * 1.0001, main, factor, extra)
    assert torch.equal(moved.scale, extra.scale)


def test_a_gram_is_the_mean_of_its_inputs_and_fades() -> None:
    one, two = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0]])
    gram = ActivationGram(2, decay=0.5)
    assert torch.equal(gram.mean(), torch.zeros(2, 2))
    gram.update(one)
    assert gram.mean().tolist() == [[1.0, 2.0], [2.0, 4.0]]
    gram.update(two.bfloat16())
    assert gram.tokens == 1.5
    torch.testing.assert_close(gram.mean(), torch.tensor([[9.5, 1.0], [1.0, 2.0]]) / 1.5)
    gram.update(torch.zeros(0, 2))
    big = ActivationGram(300)
    big.update(draw(50, 300))
    assert torch.equal(big.mean(), big.mean().T)


def test_inputs_never_seen_are_harmless() -> None:
    weight = draw(20, 40)
    for gram in (torch.zeros(40, 40), torch.diag(torch.arange(40).float().clamp(max=1))):
        fed = quantize_fp8_feedback(weight, feedback_factor(gram), BLOCK)
        assert torch.equal(fed.codes.view(torch.uint8), quantize_fp8(weight, BLOCK).codes.view(torch.uint8))


def test_empty_shapes() -> None:
    for n, k in ((0, 5), (5, 0)):
        fed = quantize_fp8_feedback(torch.zeros(n, k), torch.zeros(k, k))
        assert fed.codes.shape == (n, k)


def test_bad_arguments_are_named() -> None:
    weight, factor = draw(4, 6), torch.zeros(6, 6)
    other = quantize_fp8(draw(5, 6), BLOCK)
    cases = [
        ("factor: dimension 0 is 5, expected 6", (weight, torch.zeros(5, 5)), {}),
        ("factor: expected 2 dimensions", (weight, torch.zeros(6)), {}),
        ("weight: holds NaN or infinity", (weight * torch.inf, factor), {}),
        ("hysteresis: 0.1 steps is outside 0.5 to 2", (weight, factor), {"hysteresis": 0.1}),
        (
            "previous: ..5, 6., .* does not fit ..4, 6., .*: shape, block and format",
            (weight, factor),
            {"previous": other},
        ),
        ("previous: .*.1, 6., .e4m3.. does not fit", (weight, factor), {"previous": quantize_fp8(weight, (1, 6))}),
        ("x: expected dtype float32 or bfloat16", (weight.double(), factor), {}),
    ]
    for message, arguments, more in cases:
        with pytest.raises(ValueError, match=message):
            quantize_fp8_feedback(*arguments, **more)
    for message, call in (
        ("decay: 2.0 is outside 0 to 1", lambda: ActivationGram(3, 2.0)),
        ("x: expected shape .T, 3., got .2, 4.", lambda: ActivationGram(3).update(torch.ones(2, 4))),
        ("x: holds NaN or infinity", lambda: ActivationGram(1).update(torch.full((2, 1), torch.nan))),
        ("damping: 0.0 must be positive", lambda: feedback_factor(torch.eye(2), 0.0)),
        ("gram: expected a square matrix", lambda: feedback_factor(torch.ones(2, 3))),
        ("gram: holds NaN or infinity", lambda: feedback_factor(torch.full((2, 2), torch.nan))),
        ("gram: not positive semidefinite", lambda: feedback_factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]]))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_batch_with_nan_leaves_the_gram_as_it_was() -> None:
    gram = ActivationGram(2)
    gram.update(torch.eye(2))
    before = gram.mean()
    with pytest.raises(ValueError, match="x: holds NaN"):
        gram.update(torch.tensor([[torch.inf, 0.0]]))
    assert torch.equal(gram.mean(), before) and gram.tokens == 2.0


def test_the_operator_passes_opcheck() -> None:
    weight, factor = draw(3, 70), feedback_factor(gram_of(70))
    plain = quantize_fp8(weight, BLOCK)
    old = plain.codes.view(torch.uint8)
    operator = torch.ops.seedthink.fp8_feedback.default
    torch.library.opcheck(operator, (weight, factor, plain.scale, [128, 128], "e4m3", None, None, 0.75))
    torch.library.opcheck(operator, (weight, factor, plain.scale, [128, 128], "e4m3", old, plain.scale, 0.75))
    assert torch.equal(spread(plain.scale, BLOCK, weight.shape), plain.scale.expand(3, 70))
