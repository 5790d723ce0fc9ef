"""Block-scaled FP8: eight mistakes that others made, the bits of torch's cast, sticky scales, residual carry."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seedthink import _C
from seedthink.kernels.fp8 import (
    FORMATS,
    LARGEST,
    Fp8,
    dequantize_fp8,
    quantize_fp8,
    quantize_fp8_carry,
    reference_codes,
    reference_scale,
    spread,
)

SHAPES = [(1, 1), (5, 129), (130, 257), (3, 1000)]
BLOCKS = [(1, 128), (128, 128), (1, 1000), (3, 17)]
UNIT = torch.ones(1, 1)  # the scale one, kept whatever the numbers are
FIXED = (0.0, float("inf"))


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers whose rows differ in size by powers of two."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    size = torch.randint(-20, 20, (shape[0], 1), generator=generator)
    return torch.randn(shape, generator=generator) * torch.exp2(size.float())


def bits(quantized: Fp8) -> tuple[Tensor, Tensor]:
    return quantized.codes.view(torch.uint8), quantized.scale.view(torch.int32)


def as_given(x: Tensor, format: str = "e4m3") -> Tensor:
    """The values of x's codes under the scale one."""
    whole = tuple(x.shape)
    return dequantize_fp8(quantize_fp8(x, whole, format, previous=UNIT, band=FIXED))


# Eight mistakes, each with a public victim.


@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_block_of_zeros_has_a_normal_scale_and_zero_codes(power_of_two: bool) -> None:
    for tiny in (0.0, 1e-45, 2.0**-140):
        quantized = quantize_fp8(torch.tensor([[tiny] * 128 + [1.0] * 128]), power_of_two=power_of_two)
        assert quantized.scale[0, 0].item() == 2.0**-126
        assert dequantize_fp8(quantized)[0, :128].isfinite().all()
        assert (quantized.codes[0, :128].float() == 0).all()


def test_codes_are_made_with_the_rounded_scale() -> None:
    # amax 449 needs the scale 2; codes made with 449 / 448 would come back about twice as large.
    x = torch.tensor([[449.0, 104.0, -28.0, 1.0]])
    quantized = quantize_fp8(x, power_of_two=True)
    assert quantized.scale.item() == 2.0
    assert dequantize_fp8(quantized).tolist() == [[448.0, 104.0, -28.0, 1.0]]


def test_powers_of_two_are_rounded_up_so_that_nothing_is_clipped() -> None:
    # 1.4 is nearer to 1 than to 2 on any scale, and would clip 627 to 448.
    assert quantize_fp8(torch.tensor([[448.0 * 1.4]]), power_of_two=True).scale.item() == 2.0
    x = draw(300, 256)
    scale = quantize_fp8(x, power_of_two=True).scale
    most = (x.abs().unflatten(1, (2, 128)).amax(2) / scale).flatten()
    assert most.max() <= 448 and most.min() > 224


@pytest.mark.parametrize("format", FORMATS)
def test_powers_of_two_are_exact_at_every_exponent(format: str) -> None:
    exponent = torch.arange(-110, 128)
    amax = (exponent + 127).int() << 23
    scale = quantize_fp8(amax.view(torch.float32)[:, None], (1, 1), format, power_of_two=True).scale
    field = scale.view(torch.int32)
    assert (field & 0x7FFFFF == 0).all()
    top = {"e4m3": 8, "e5m2": 15}[format]
    assert torch.equal((field >> 23).flatten() - 127, (exponent - top).int().clamp(min=-126))


def test_the_exponent_of_the_scale_depends_on_the_mantissa_of_amax() -> None:
    for amax, scale in ((256.0, 1.0), (448.0, 1.0), (448.0 + 2.0**-15, 2.0), (511.0, 2.0), (224.0, 0.5)):
        assert quantize_fp8(torch.tensor([[amax]]), power_of_two=True).scale.item() == scale
    for amax, scale in ((57344.0, 1.0), (57345.0, 2.0), (32768.0, 1.0), (28672.0, 0.5)):
        assert quantize_fp8(torch.tensor([[amax]]), format="e5m2", power_of_two=True).scale.item() == scale


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_is_to_nearest_even_up_to_the_largest_number(format: str) -> None:
    codes = torch.arange(0x80, dtype=torch.uint8)
    value = codes.view(FORMATS[format]).float()
    value = value[value.isfinite()]
    middles = [(low + high) / 2 for low, high in pairwise(value.tolist())]
    x = torch.tensor([middles])
    below, above = torch.nextafter(x, torch.tensor(0.0)), torch.nextafter(x, torch.tensor(1e9))
    even = torch.where(torch.arange(len(value)) % 2 == 0, value, 0.0)
    assert torch.equal(as_given(x, format), torch.maximum(even[:-1], even[1:])[None])
    assert torch.equal(as_given(below, format), value[None, :-1])
    assert torch.equal(as_given(above, format), value[None, 1:])
    assert torch.equal(as_given(-x, format), -as_given(x, format))
    assert torch.equal(as_given(value[None], format), value[None])


def test_numbers_are_divided_by_the_scale_not_multiplied_by_its_reciprocal() -> None:
    x = torch.randn(4000, 128, generator=torch.Generator().manual_seed(0))
    quantized = quantize_fp8(x)
    divided, multiplied = x / quantized.scale, x * (1 / quantized.scale)
    assert torch.equal(quantized.codes.view(torch.uint8), divided.to(torch.float8_e4m3fn).view(torch.uint8))
    assert not torch.equal(divided, multiplied)
    # 9.5 lies halfway between the codes 9 and 10 and goes to 10; a last place below it would go to 9.
    scale = float_with(lambda s: f32(f32(9.5 * s) / s) == 9.5 > f32(f32(9.5 * s) * f32(1 / s)))
    kept = quantize_fp8(torch.tensor([[9.5 * scale]]), previous=torch.tensor([[scale]]), band=FIXED)
    assert kept.codes.float().item() == 10.0


def f32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def float_with(holds) -> float:
    """The first float32 from one upwards for which something holds."""
    return next(s for s in (1 + i * 2.0**-23 for i in range(1 << 20)) if holds(s))


def test_both_formats_saturate_and_scales_round_up_where_torch_does_not() -> None:
    beyond = torch.tensor([[1e6, 61440.0, 57345.0, 500.0, 3e38, -3e38]])
    assert as_given(beyond).tolist() == [[448.0] * 5 + [-448.0]]
    largest = 57344.0
    assert as_given(beyond, "e5m2").tolist() == [[largest] * 3 + [512.0, largest, -largest]]
    amax = 448.0 * torch.tensor([[1.0], [1.4], [1.5], [3.0]])
    assert quantize_fp8(amax, power_of_two=True).scale.flatten().tolist() == [1.0, 2.0, 2.0, 4.0]


# Bits.


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", BLOCKS)
def test_codes_and_scales_have_the_bits_of_torch(block: tuple[int, int], dtype: torch.dtype, format: str) -> None:
    for shape in SHAPES:
        x = draw(*shape).to(dtype)
        for power_of_two in (False, True):
            quantized = quantize_fp8(x, block, format, power_of_two, headroom=1.25)
            scale = reference_scale(x, block, format, power_of_two, 1.25)
            assert torch.equal(quantized.scale, scale)
            codes = reference_codes(x, scale, block, format)
            assert torch.equal(quantized.codes.view(torch.uint8), codes.view(torch.uint8))
            values = codes.float() * spread(scale, block, x.shape)
            assert torch.equal(dequantize_fp8(quantized), values)
            assert torch.equal(dequantize_fp8(quantized, torch.bfloat16), values.bfloat16())


@pytest.mark.parametrize("format", FORMATS)
def test_every_bfloat16_is_cast_as_torch_casts_it(format: str) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite() & (every.abs().float() <= LARGEST[format])]
    codes = quantize_fp8(every[None], (1, len(every)), format, previous=UNIT, band=FIXED).codes[0]
    assert torch.equal(codes.view(torch.uint8), every.to(FORMATS[format]).view(torch.uint8))


@pytest.mark.parametrize("format", FORMATS)
def test_every_code_has_torchs_value(format: str) -> None:
    codes = torch.arange(256).to(torch.uint8)[None].view(FORMATS[format])
    values = dequantize_fp8(Fp8(codes, UNIT, (1, 256)))
    torch.testing.assert_close(values, codes.float(), rtol=0, atol=0, equal_nan=True)


PARTS = """
import torch
from seedthink.kernels.fp8 import FORMATS, dequantize_fp8, quantize_fp8, quantize_fp8_carry
x = torch.randn(133, 391, generator=torch.Generator().manual_seed(3)) * torch.logspace(-30, 30, 133)[:, None]
x[5, 7], x[9, 9], x[100] = torch.nan, torch.inf, 0.0
parts = []
for format in FORMATS:
    for block in ((1, 128), (128, 128), (1, 391)):
        for dtype in (torch.float32, torch.bfloat16):
            plain = quantize_fp8(x.to(dtype), block, format)
            carried, left = quantize_fp8_carry(x.to(dtype), (x / 64).bfloat16(), block, format, True)
            parts += [plain.codes, plain.scale, carried.codes, carried.scale, left]
            parts += [dequantize_fp8(plain), dequantize_fp8(carried, torch.bfloat16)]
bits = b"".join(bytes(part.view(torch.uint8).numpy()) for part in parts)
"""


def test_all_instruction_sets_give_the_same_bits() -> None:
    here: dict[str, bytes] = {}
    exec(PARTS, here)
    for isa in ("portable", "avx2"):
        command = [sys.executable, "-c", PARTS + "import sys\nsys.stdout.buffer.write(bits)"]
        environment = {**os.environ, "SEEDTHINK_ISA": isa}
        there = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        assert there == here["bits"], isa


def test_bits_do_not_depend_on_threads_and_rows_not_on_other_rows() -> None:
    x, before = draw(500, 300), _C.threads()
    try:
        _C.set_threads(1)
        alone = bits(quantize_fp8(x))
        _C.set_threads(3)
        together = bits(quantize_fp8(x))
    finally:
        _C.set_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    part = bits(quantize_fp8(x[7:20].contiguous()))
    assert torch.equal(part[0], alone[0][7:20]) and torch.equal(part[1], alone[1][7:20])


# What is not finite.


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("block", [(1, 128), (128, 128)])
def test_what_is_not_finite_becomes_nan_and_leaves_its_block_alone(block: tuple[int, int], format: str) -> None:
    x = draw(64, 200)
    broken = x.clone()
    places = [(0, 0), (0, 130), (33, 199), (63, 5)]
    for place, value in zip(places, (torch.nan, torch.inf, -torch.inf, -torch.nan), strict=True):
        broken[place], x[place] = value, 0.0
    clean, quantized = quantize_fp8(x, block, format), quantize_fp8(broken, block, format)
    assert torch.equal(clean.scale, quantized.scale)
    values = dequantize_fp8(quantized)
    for place in places:
        assert values[place].isnan() and quantized.codes.view(torch.uint8)[place] == 0x7F
        values[place] = 0.0
    assert torch.equal(values, dequantize_fp8(clean))


def test_a_block_without_a_finite_number_has_the_scale_of_zeros() -> None:
    quantized = quantize_fp8(torch.full((2, 128), torch.inf))
    assert (quantized.scale == 2.0**-126).all() and dequantize_fp8(quantized).isnan().all()


# Properties.

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
FORMAT = st.sampled_from(list(FORMATS))


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=1, max_size=40), FORMAT, st.booleans())
def test_values_are_fixed_points_and_half_a_step_away_at_most(x: list[float], format: str, power: bool) -> None:
    row = torch.tensor([x])
    quantized = quantize_fp8(row, format=format, power_of_two=power)
    value, scale = dequantize_fp8(quantized), quantized.scale
    again = quantize_fp8(value, format=format, previous=scale, band=FIXED)
    # -0 of a code survives as -0; underflow of code * scale may lose the smallest codes of the smallest scales.
    if scale.item() > 2.0**-100:
        assert torch.equal(again.codes.view(torch.uint8), quantized.codes.view(torch.uint8))
    mantissa, least = {"e4m3": (3, -6), "e5m2": (2, -14)}[format]
    exponent = torch.frexp((row / scale).abs().double()).exponent - 1
    step = torch.exp2((exponent.clamp(min=least) - mantissa).double()) * scale.double()
    assert ((row.double() - value.double()).abs() <= 0.5 * step * (1 + 2.0**-18) + 2.0**-149).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=1, max_size=40), FORMAT, st.booleans(), st.integers(-20, 20))
def test_a_power_of_two_moves_from_x_to_the_scales(x: list[float], format: str, power: bool, shift: int) -> None:
    row = torch.tensor([x])
    row[row.abs() < 2.0**-60] = 0.0
    if not (row.abs() > 0).any():
        return
    one, other = (quantize_fp8(each, format=format, power_of_two=power) for each in (row, row * 2.0**shift))
    assert torch.equal(one.codes.view(torch.uint8), other.codes.view(torch.uint8))
    assert torch.equal(one.scale * 2.0**shift, other.scale)


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=2, max_size=40), FORMAT)
def test_a_larger_number_has_no_smaller_value(x: list[float], format: str) -> None:
    row = torch.tensor([sorted(x)])
    value = dequantize_fp8(quantize_fp8(row, format=format))[0]
    assert (value[1:] >= value[:-1]).all()


# Sticky ranges.


def test_a_scale_stays_inside_its_band_and_moves_outside_it() -> None:
    scale = torch.tensor([[2.0]])  # holds up to 896
    for amax, expected in ((896.0, 2.0), (300.0, 2.0), (224.0, 2.0), (223.0, 223 / 448), (897.0, 897 / 448)):
        assert quantize_fp8(torch.tensor([[amax]]), previous=scale).scale.item() == f32(expected)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_sticky_scales_have_the_bits_of_torch_and_never_clip(power_of_two: bool) -> None:
    weight, block = draw(300, 260), (128, 128)
    before = quantize_fp8(weight, block, power_of_two=power_of_two, headroom=1.125)
    factor = torch.cat([torch.full((rows, 1), size) for rows, size in ((128, 4.0), (128, 1.0), (44, 0.75))])
    after = quantize_fp8(weight * factor, block, power_of_two=power_of_two, headroom=1.125, previous=before.scale)
    expected = reference_scale(weight * factor, block, "e4m3", power_of_two, 1.125, before.scale)
    assert torch.equal(after.scale, expected)
    assert (after.scale == before.scale).tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert ((weight * factor).abs() <= 448 * (1 + 2.0**-22) * spread(after.scale, block, weight.shape)).all()


def test_a_previous_scale_that_cannot_be_one_is_replaced() -> None:
    for bad in (0.0, -1.0, torch.nan, torch.inf, 1e-40):
        assert quantize_fp8(torch.tensor([[448.0]]), previous=torch.tensor([[bad]])).scale.item() == 1.0


# Residual carry.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_left_is_what_the_codes_miss(dtype: torch.dtype) -> None:
    x, residual = draw(40, 300).to(dtype), (draw(40, 300, seed=9) / 64).bfloat16()
    quantized, left = quantize_fp8_carry(x, residual)
    total = x.float() + residual.float()
    assert torch.equal(quantized.scale, reference_scale(total, (1, 128)))
    assert torch.equal(left, (total - dequantize_fp8(quantized)).bfloat16())


def test_values_handed_out_add_up_to_what_came_in() -> None:
    generator, steps = torch.Generator().manual_seed(0), 50
    x = torch.randn(8, 256, generator=generator)
    residual, handed, came = torch.zeros(8, 256, dtype=torch.bfloat16), torch.zeros(8, 256).double(), 0.0
    for _ in range(steps):
        x = x + 1e-3 * torch.randn(8, 256, generator=generator)
        quantized, residual = quantize_fp8_carry(x, residual)
        handed, came = handed + dequantize_fp8(quantized).double(), came + x.double()
    step = quantized.scale.repeat_interleave(128, 1) * 32  # of the largest numbers
    assert ((came - handed) - residual.double()).abs().max() <= steps * step.max() * 2.0**-9
    assert (residual.float().abs() <= 0.5 * step * (1 + 2.0**-7)).all()
    plain = dequantize_fp8(quantize_fp8(x)).double() - x.double()
    assert (came - handed).abs().mean() < 0.05 * steps * plain.abs().mean()


def test_the_residual_starts_again_where_x_is_not_finite() -> None:
    x = torch.tensor([[torch.nan, torch.inf, 1.0]])
    _, left = quantize_fp8_carry(x, torch.ones(1, 3, dtype=torch.bfloat16))
    assert left.isfinite().all() and (left[0, :2] == 0).all()


# Arguments.


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(shape: tuple[int, int]) -> None:
    for block in ((1, 128), (128, 128)):
        quantized = quantize_fp8(torch.zeros(shape), block)
        assert quantized.codes.shape == shape and quantized.scale.numel() == 0
        assert dequantize_fp8(quantized).shape == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_MN": torch.zeros(2, 4, dtype=torch.float64)}, "x: expected dtype float32 or bfloat16, got float64"),
        ({"x_MN": torch.zeros(4)}, "x: expected 2 dimensions"),
        ({"x_MN": torch.zeros(4, 2).T}, "x: must be contiguous"),
        ({"block": (0, 128)}, "block: expected two positive sizes"),
        ({"format": "e3m4"}, "format: 'e3m4' is not one of e4m3, e5m2"),
        ({"headroom": 0.5}, "headroom: 0.5 is outside 1 to 256"),
        ({"headroom": float("nan")}, "headroom"),
        ({"previous": torch.ones(1, 2)}, "previous: dimension 0 is 1, expected 2"),
        ({"band": (1.0, 0.5)}, "band"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_fp8(**({"x_MN": torch.zeros(2, 4)} | change))
    with pytest.raises(ValueError, match="residual: dimension 0 is 3, expected 2"):
        quantize_fp8_carry(torch.zeros(2, 4), torch.zeros(3, 4, dtype=torch.bfloat16))


def test_operators_pass_opcheck() -> None:
    x, how = draw(3, 140), ([1, 128], "e4m3", False, 1.0, [0.25, 1.0])
    operators = torch.ops.seedthink
    torch.library.opcheck(operators.fp8_quantize.default, (x, None, *how))
    torch.library.opcheck(operators.fp8_quantize.default, (x.bfloat16(), torch.ones(3, 2), *how))
    torch.library.opcheck(operators.fp8_quantize_carry.default, (x, x.bfloat16(), None, *how))
    codes, scale = operators.fp8_quantize(x, None, *how)
    torch.library.opcheck(operators.fp8_dequantize.default, (codes, scale, [1, 128], "e4m3", torch.bfloat16))


def test_a_compiled_call_is_one_graph_with_the_same_bits() -> None:
    x = draw(3, 140)
    compiled = torch.compile(lambda x: dequantize_fp8(quantize_fp8(x)) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), dequantize_fp8(quantize_fp8(x)) * 2)
