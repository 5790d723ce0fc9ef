"""The row-exact product: bits against itself, values and gradients against float64, packs against weight versions."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels import packing
from seedthink.kernels.linear import linear, linear_packed, reference_linear
from seedthink.kernels.packing import forget, panels_of

SHAPES = [(1, 1), (7, 5), (16, 16), (33, 65), (64, 64), (129, 200), (256, 48), (255, 193)]  # (K, N)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture
def threads():
    """Sets the number of threads and puts it back."""
    before = _C.threads()
    yield _C.set_threads
    _C.set_threads(before)


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_a_row_has_the_same_bits_beside_any_number_of_rows(k: int, n: int, compute: torch.dtype) -> None:
    x, weight = draw(70, k), draw(n, k)
    alone = torch.cat([linear(x[t : t + 1], weight, compute) for t in range(70)])
    for rows in range(1, 71):
        assert torch.equal(linear(x[:rows], weight, compute), alone[:rows]), rows


def test_rows_may_be_permuted(compute: torch.dtype) -> None:
    x, weight = draw(300, 96), draw(130, 96)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(linear(x[order], weight, compute), linear(x, weight, compute)[order])


def test_columns_may_be_split(compute: torch.dtype) -> None:
    x, weight = draw(50, 128), draw(200, 128)
    whole = linear(x, weight, compute)
    for cut in (1, 16, 63, 64, 100, 199):
        parts = [linear(x, weight[:cut].clone(), compute), linear(x, weight[cut:].clone(), compute)]
        assert torch.equal(torch.cat(parts, 1), whole), cut


def test_bits_do_not_depend_on_the_number_of_threads(threads, compute: torch.dtype) -> None:
    x, weight, dy = draw(500, 160), draw(300, 160), draw(500, 300)
    results = []
    for count in (1, 2, 3):
        threads(count)
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = linear(a, w, compute)
        y.backward(dy)
        results.append((y.detach(), a.grad, w.grad))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_one_output_is_one_chain_of_fused_multiply_adds() -> None:
    # A chain keeps 2^24 + 1 at 2^24 (round to even) each time; any tree of partial sums would find the ones.
    x = torch.cat([torch.tensor([[2.0**24]]), torch.ones(1, 64)], 1)
    assert linear(x, torch.ones(1, 65)).item() == 2.0**24
    assert linear(x.flip(1), torch.ones(1, 65)).item() == 2.0**24 + 64


def test_a_multiply_add_rounds_once() -> None:
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: a product rounded by itself loses the last term.
    if _C.isa() == "portable":
        pytest.skip("the portable build has no fused multiply-add")
    one = torch.tensor([[-1.0 - 2.0**-11, 1.0 + 2.0**-12]])
    assert linear(one, torch.tensor([[1.0, 1.0 + 2.0**-12]])).item() == 2.0**-24


@pytest.mark.parametrize(("t", "k", "n"), [(64, 128, 128), (37, 256, 512), (200, 1024, 64), (3, 33, 65)])
def test_float32_is_as_near_to_float64_as_torch(t: int, k: int, n: int) -> None:
    x, weight, dy = draw(t, k), draw(n, k), draw(t, n)
    truths, ours, theirs = gradients(reference_linear, x.double(), weight.double(), dy.double()), None, None
    ours = gradients(linear, x, weight, dy)
    theirs = gradients(torch.nn.functional.linear, x, weight, dy)
    for truth, our, their in zip(truths, ours, theirs, strict=True):
        assert (our - truth).norm() <= 2 * (their - truth).norm() + 1e-7 * truth.norm()


def gradients(function, x: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight)
    y.backward(dy)
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize(("t", "k", "n"), [(64, 128, 128), (37, 255, 130), (600, 64, 40), (1, 3, 2)])
def test_bfloat16_is_the_product_of_rounded_operands(half: torch.dtype, t: int, k: int, n: int) -> None:
    x, weight, dy = draw(t, k), draw(n, k), draw(t, n)
    y, dx, dw = gradients(lambda a, w: linear(a, w, half), x, weight, dy)
    rounded = [value.bfloat16().double() for value in (x, weight, dy)]
    truths = rounded[0] @ rounded[1].T, rounded[2] @ rounded[1], rounded[2].T @ rounded[0]
    for got, truth in zip((y, dx, dw), truths, strict=True):
        assert (got - truth).norm() <= 1e-6 * truth.norm()


def test_bfloat16_rounds_to_nearest_even(half: torch.dtype) -> None:
    # 1 + 2^-8 is a tie between 1 and 1 + 2^-7; 1 + 3 * 2^-8 one between 1 + 2^-7 and 1 + 2^-6.
    x = torch.tensor([[1 + 2.0**-8, 0.0], [1 + 3 * 2.0**-8, 0.0]])
    eye = torch.eye(2)
    expected = torch.tensor([[1.0, 0.0], [1 + 2.0**-6, 0.0]])
    assert torch.equal(linear(x, eye, half), expected)
    assert torch.equal(linear(eye, x, half), expected.T)


def test_weight_gradient_has_the_same_bits_whatever_rows_of_weight_stand_beside(compute: torch.dtype) -> None:
    def product(a: Tensor, w: Tensor) -> Tensor:
        return linear(a, w, compute)

    x, dy = draw(700, 80), draw(700, 150)
    _, _, whole = gradients(product, x, draw(150, 80), dy)
    for begin, end in ((0, 1), (5, 70), (149, 150)):
        _, _, part = gradients(product, x, draw(end - begin, 80), dy[:, begin:end].contiguous())
        assert torch.equal(part, whole[begin:end])


def test_empty_shapes(compute: torch.dtype) -> None:
    for t, k, n in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        y, dx, dw = gradients(lambda a, w: linear(a, w, compute), torch.ones(t, k), torch.ones(n, k), torch.ones(t, n))
        assert y.shape == (t, n) and dx.shape == (t, k) and dw.shape == (n, k)
        assert y.abs().sum() == 0 and dx.abs().sum() == 0 and dw.abs().sum() == 0


def test_nan_and_infinity_stay_in_their_row_and_column(compute: torch.dtype) -> None:
    x, weight = draw(9, 40), draw(70, 40)
    x[4, 7], weight[66, 3] = float("nan"), float("inf")
    y = linear(x, weight, compute)
    assert y[4].isnan().all()
    assert not y[:, 66].isfinite().any()
    rest = [t for t in range(9) if t != 4]
    assert y[rest][:, :66].isfinite().all() and y[rest][:, 67:].isfinite().all()


def test_packed_product_has_the_bits_of_linear(compute: torch.dtype) -> None:
    x, weight = draw(5, 96), draw(70, 96)
    assert torch.equal(linear_packed(x, panels_of(weight, compute), 70), linear(x, weight, compute))


def test_a_pack_is_made_once_per_version_and_dies_with_its_weight() -> None:
    gc.collect()  # whatever earlier tests left in a cycle
    weight = torch.nn.Parameter(draw(8, 8))
    size = len(packing._cache)
    first = panels_of(weight, torch.float32)
    assert panels_of(weight, torch.float32) is first
    assert len(packing._cache) == size + 1
    forget(weight)
    assert panels_of(weight, torch.float32) is not first
    del weight, first
    gc.collect()
    assert len(packing._cache) == size


def test_a_write_in_place_makes_a_new_pack() -> None:
    weight, x = torch.nn.Parameter(draw(8, 8)), draw(3, 8)
    before = linear(x, weight).detach()
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(linear(x, weight), 2 * before)
    weight.data = weight.data * 2
    assert torch.equal(linear(x, weight), 4 * before)
    torch.optim.SGD([weight], lr=1.0).zero_grad()
    linear(x, weight).sum().backward()
    torch.optim.SGD([weight], lr=1.0).step()
    assert torch.equal(linear(x, weight), linear(x, weight.detach().clone()))


def test_weights_made_under_inference_mode_are_never_stale() -> None:
    with torch.inference_mode():
        weight, x = draw(4, 4), draw(2, 4)
        before = linear(x, weight)
        weight.mul_(2)
        assert torch.equal(linear(x, weight), 2 * before)


def test_bad_input_is_an_error_that_names_the_argument() -> None:
    x, weight = torch.ones(2, 4), torch.ones(3, 4)
    cases = [
        ("x: expected shape", (x[0], weight)),
        ("x: expected shape", (torch.ones(2, 5), weight)),
        ("x: expected dtype float32, got float64", (x.double(), weight)),
        ("x: must be contiguous", (torch.ones(4, 2).T, weight)),
        ("weight: expected 2 dimensions", (x, torch.ones(1, 3, 4))),
        ("weight: expected contiguous torch.float32", (x, weight.double())),
        ("weight: expected contiguous torch.float32", (x, torch.ones(4, 3).T)),
        ("compute: torch.float16 is not one of", (x, weight, torch.float16)),
    ]
    for message, arguments in cases:
        with pytest.raises(ValueError, match=message):
            linear(*arguments)
    with pytest.raises(ValueError, match="panels: dimension"):
        linear_packed(x, panels_of(torch.ones(3, 5), torch.float32), 3)


def test_a_second_derivative_is_refused() -> None:
    x, weight = torch.ones(2, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(linear(x, weight).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_input_grad has no derivative"):
        dx.sum().backward()


def test_operators_pass_opcheck(compute: torch.dtype) -> None:
    x, weight = draw(3, 8).requires_grad_(), draw(5, 8).requires_grad_()
    torch.library.opcheck(torch.ops.seedthink.linear.default, (x, weight, compute))
    torch.library.opcheck(torch.ops.seedthink.linear_input_grad.default, (draw(3, 5), draw(5, 8), compute))
    torch.library.opcheck(torch.ops.seedthink.linear_weight_grad.default, (draw(3, 5), draw(3, 8), compute))


def test_a_compiled_call_is_one_graph_with_the_same_bits() -> None:
    x, weight = draw(3, 8), draw(5, 8).requires_grad_()
    compiled = torch.compile(lambda a, w: linear(a, w).relu(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), linear(x, weight).relu())
