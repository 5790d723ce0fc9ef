"""The block-scaled product: exact where sums are exact, near float64 elsewhere, rows independent of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.fp8 import Fp8, dequantize_fp8, quantize_fp8
from seedthink.kernels.fp8_linear import fp8_linear, reference_fp8_linear
from seedthink.kernels.linear import linear

SHAPES = [(1, 1, 1), (3, 128, 64), (70, 300, 200), (130, 129, 65), (17, 512, 130), (600, 256, 10)]  # (T, K, N)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pair(t: int, k: int, n: int, formats: tuple[str, str] = ("e4m3", "e4m3", False)) -> tuple[Fp8, Fp8]:
    size = torch.exp2(torch.arange(t).remainder(7).float())[:, None]
    return quantize_fp8(draw(t, k) * size, (1, 128), formats[0]), quantize_fp8(draw(n, k), (128, 128), formats[1])


@pytest.mark.parametrize("formats", [("e4m3", "e4m3", False), ("e5m2", "e4m3"), ("e5m2", "e5m2")])
@pytest.mark.parametrize(("t", "k", "n"), SHAPES)
def test_the_product_is_near_float64(t: int, k: int, n: int, formats: tuple[str, str], half: torch.dtype) -> None:
    x, w = pair(t, k, n, formats)
    truth = reference_fp8_linear(x, w)
    values = [dequantize_fp8(each).double() for each in (x, w)]
    bound = 1e-6 * (values[0].abs() @ values[1].abs().T)
    assert ((values[0] @ values[1].T - truth).abs() <= bound).all()
    assert ((fp8_linear(x, w) - truth).abs() <= bound).all()


def test_sums_without_rounding_have_the_bits_of_the_reference(half: torch.dtype) -> None:
    # Codes are whole numbers up to 15, so a part is exact; what is left is the two products and the sum.
    generator = torch.Generator().manual_seed(0)
    x_codes, w_codes = (
        torch.randint(-15, 16, (size, 400), generator=generator).float().to(torch.float8_e4m3fn) for size in (90, 150)
    )
    x_scale, w_scale = (torch.rand(size, 4, generator=generator) + 0.5 for size in (90, 2))
    x, w = Fp8(x_codes, x_scale, (1, 128)), Fp8(w_codes, w_scale, (128, 128))
    assert torch.equal(fp8_linear(x, w), reference_fp8_linear(x, w, torch.float32))


def test_one_block_with_scales_of_one_is_the_bfloat16_product(half: torch.dtype) -> None:
    codes = [draw(size, 128).to(torch.float8_e4m3fn) for size in (50, 70)]
    x, w = Fp8(codes[0], torch.ones(50, 1), (1, 128)), Fp8(codes[1], torch.ones(1, 1), (128, 128))
    assert torch.equal(fp8_linear(x, w), linear(codes[0].float(), codes[1].float(), torch.bfloat16))


def test_a_row_has_the_same_bits_beside_any_number_of_rows(half: torch.dtype) -> None:
    x, w = pair(600, 300, 100)
    whole = fp8_linear(x, w)
    for begin, end in ((0, 1), (5, 22), (100, 400), (599, 600)):
        part = Fp8(x.codes[begin:end], x.scale[begin:end], x.block)
        assert torch.equal(fp8_linear(part, w), whole[begin:end])


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    (x, w), before, results = pair(150, 300, 200), _C.threads(), []
    try:
        for threads in (1, 2, 3):
            _C.set_threads(threads)
            results.append(fp8_linear(x, w))
    finally:
        _C.set_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_nan_stays_in_its_row_and_column() -> None:
    x, w = draw(9, 300), draw(140, 300)
    x[4, 7], w[66, 290] = torch.nan, torch.inf
    y = fp8_linear(quantize_fp8(x), quantize_fp8(w, (128, 128)))
    assert y[4].isnan().all() and y[:, 66].isnan().all()
    assert y[[0, 1, 2, 3, 5, 6, 7, 8]][:, [*range(66), *range(67, 140)]].isfinite().all()


def test_empty_shapes() -> None:
    for t, k, n in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        y = fp8_linear(quantize_fp8(torch.ones(t, k)), quantize_fp8(torch.ones(n, k), (128, 128)))
        assert y.shape == (t, n) and y.abs().sum() == 0


def test_bad_arguments_are_named() -> None:
    x, w = pair(4, 256, 130)
    cases = [
        ("x: expected blocks of", (Fp8(x.codes, x.scale, (1, 256)), w)),
        ("w: expected blocks of", (x, Fp8(w.codes, w.scale, (1, 128)))),
        ("w: dimension 1 is 256, expected 128", (pair(4, 128, 130)[0], w)),
        ("x scale: dimension 1 is 1, expected 2", (Fp8(x.codes, x.scale[:, :1].clone(), x.block), w)),
        ("w scale: dimension 0 is 1, expected 2", (x, Fp8(w.codes, w.scale[:1], w.block))),
    ]
    for message, arguments in cases:
        with pytest.raises(ValueError, match=message):
            fp8_linear(*arguments)


def test_the_fast_product_is_rounded_to_bfloat16() -> None:
    x, w = pair(3, 140, 5)
    assert torch.equal(fp8_linear(x, w, fast=True), fp8_linear(x, w).bfloat16())


@pytest.mark.parametrize("fast", [False, True])
def test_the_operator_passes_opcheck(fast: bool) -> None:
    x, w = pair(3, 140, 5)
    codes = [each.codes.view(torch.uint8) for each in (x, w)]
    arguments = (codes[0], x.scale, codes[1], w.scale, "e4m3", "e4m3", fast)
    torch.library.opcheck(torch.ops.seedthink.fp8_linear.default, arguments)
