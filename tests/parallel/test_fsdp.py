"""Ranks that share one copy of the weights learn and answer as one rank does, and hold their share of it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import fsdp_cases
import mesh_cases
import pytest
import torch
from mesh_program import case_of
from ranks import found_by_ranks

from seedthink.kernels.linear import linear
from seedthink.parallel.cut import Cut, Piece
from seedthink.parallel.fsdp import Unit
from seedthink.parallel.group import Group
from seedthink.parallel.layout import Layout
from seedthink.parallel.strips import Strips

every_size = pytest.mark.parametrize("size", [2, 4, pytest.param(8, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """size -> what each rank found in all cases; one launch for each size."""

    return lru_cache(lambda size: found_by_ranks(size, "fsdp_cases", tmp_path_factory.mktemp(f"ranks-{size}")))


@lru_cache
def alone(case: str, model: str) -> Any:
    torch.set_num_threads(1)
    return case_of("fsdp_cases", case)(model, None)  # type: ignore[arg-type]


def cases(size: int, wanted: str) -> list[tuple[str, str]]:
    return [(layout, model) for layout, model, case in fsdp_cases.plan(size) if case == wanted]


def close(model: str) -> float:
    """bfloat16 rounds each rank's part of a gradient before the next product."""
    return 2e-3 if "bfloat16" in mesh_cases.MODELS[model] else 1e-6


def test_the_strips_of_all_ranks_are_the_parameter_and_each_element_of_a_piece_is_in_one() -> None:
    weight = torch.arange(21.0).view(7, 3)
    cut = Cut(20, (Piece(4, 6, 1), Piece(10, 15, 2)))
    ranks = [Strips([torch.nn.Parameter(weight.clone())], Group((0, 1, 2, 3), rank)) for rank in range(4)]
    assert [strips.held[0].shape for strips in ranks] == [(6, 1)] * 4
    assert torch.cat([strips.held[0].view(-1) for strips in ranks]).tolist() == [*range(21), 0.0, 0.0, 0.0]
    views = [strips.cut(0, cut).views(strips.held[0]) for strips in ranks]
    for at, rows in ((0, weight[:2]), (1, weight[2:])):
        assert torch.cat([each[at] for each in views]).tolist() == rows.flatten().tolist()


def test_a_parameter_that_is_not_in_use_reads_as_nan_and_has_no_memory() -> None:
    weight = torch.nn.Parameter(torch.ones(300, 4))
    strips = Strips([weight], Group((0,), 0))
    assert weight.shape == (300, 4) and weight.isnan().all() and weight.untyped_storage().nbytes() == 4
    strips.gather()
    assert torch.equal(weight, torch.ones(300, 4)) and weight.data_ptr() == strips.held[0].data_ptr()


class Doubling(torch.nn.Module):
    """(x,) -> (x w^T + x,). again: its backward begins by running the forward once more."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(70, 70, generator=torch.Generator().manual_seed(1)))
        self.again = again

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        y = linear(x, self.weight)
        if self.again:
            self.again = False
            y.register_hook(lambda gradient: [gradient, self(x)][0])
        return (y + x,)


@pytest.mark.parametrize("again", [False, True], ids=["once", "again in the backward"])
def test_weights_are_here_for_a_block_alone_and_twice_where_its_forward_is_repeated(again: bool) -> None:
    x = torch.randn(5, 70, generator=torch.Generator().manual_seed(2)).requires_grad_()
    first, second = Doubling(again), Doubling(again)
    (want,) = second(*first(x))
    want.square().sum().backward()
    expected, x.grad = [x.grad, first.weight.grad, second.weight.grad], None
    first.weight.grad = second.weight.grad = None
    first.again = second.again = again
    strips = [Strips([block.weight], Group((0,), 0)) for block in (first, second)]
    for block, each in zip((first, second), strips, strict=True):
        unit = Unit([each])
        block.register_forward_pre_hook(unit.before_forward)
        block.register_forward_hook(unit.after_forward)
    (got,) = second(*first(x))
    assert torch.equal(got, want) and first.weight.isnan().all()
    got.square().sum().backward()
    for gradient, wanted in zip([x.grad, *(each.held[0].grad for each in strips)], expected, strict=True):
        assert gradient is not None and wanted is not None and torch.equal(gradient.view(wanted.shape), wanted)
    assert first.weight.grad is None and first.weight.isnan().all() and second.weight.isnan().all()


@every_size
def test_steps_lose_what_they_lose_on_one_rank(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "learnt"):
        expected = alone("learnt", model)
        for each in on_ranks(size):
            mine = each[layout, model, "learnt"]
            assert mine["losses"] == pytest.approx(expected["losses"], rel=close(model)), (layout, model)
            assert mine["norms"] == pytest.approx(expected["norms"], rel=10 * close(model)), (layout, model)


@every_size
def test_a_repetition_learns_the_same_bits(size: int, on_ranks: Any) -> None:
    for each in on_ranks(size):
        for layout, model in cases(size, "learnt_again"):
            first, again = each[layout, model, "learnt"], each[layout, model, "learnt_again"]
            assert first["norms"] == again["norms"] and first["losses"] == again["losses"]
            assert all(torch.equal(first["weights"][name], again["weights"][name]) for name in first["weights"])


@every_size
def test_ranks_without_a_sequence_take_part(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "one_sided"):
        for each in on_ranks(size):
            assert each[layout, model, "one_sided"] == pytest.approx(alone("one_sided", model), rel=close(model))


@every_size
def test_answers_have_the_tokens_and_the_bits_of_one_rank(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "answers"):
        expected, seen = alone("answers", model), set()
        for each in on_ranks(size):
            for name, values in each[layout, model, "answers"].items():
                assert torch.equal(values, expected[name]), (layout, model, name)
                seen.add(name)
        assert seen == set(expected)


@every_size
def test_an_engine_draws_scores_and_learns_as_on_one_rank(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "runs"):
        expected = alone("runs", model)
        for each in on_ranks(size):
            mine = each[layout, model, "runs"]
            assert torch.allclose(mine.pop("losses"), expected["losses"], rtol=1e-6), layout
            assert all(torch.equal(values, expected[name]) for name, values in mine.items()), layout


def strips_of(layout: Layout, model: str, rank: int) -> int:
    """Numbers in the strips of a rank, by hand: every parameter's part, divided and rounded up."""
    whole = mesh_cases.policy(model, None)
    config, total = mesh_cases.config(model), 0
    for name, p in whole.named_parameters():
        last, rows, ranks = name.rpartition(".")[2], p.shape[0], layout.dp_shard * layout.cp
        if p.ndim == 3:
            rows, ranks = rows // layout.ep, layout.dp_shard * layout.plane // layout.ep
        elif last == "qkv_weight":
            rows = config.head_dim * (config.num_heads // layout.tp + 2 * max(1, config.num_kv_heads // layout.tp))
        elif last in ("out_weight", "gate_up_2I_D", "down_D_I"):
            rows //= layout.tp
        elif last in ("embed_VD", "unembed_VD") and rank % layout.tp:
            rows = 0  # the vocabulary is one block, which the first rank has
        total += math.ceil(rows * (p.numel() // p.shape[0]) / ranks)
    return total


@every_size
def test_a_rank_holds_its_share_of_weights_gradients_and_moments_and_no_pack_between_uses(
    size: int, on_ranks: Any
) -> None:
    for layout, model in cases(size, "held"):
        for rank, each in enumerate(on_ranks(size)):
            strips = strips_of(fsdp_cases.LAYOUTS[size][layout], model, rank)
            mine = each[layout, model, "held"]
            assert (mine["weights"], mine["gradients"], mine["moments"]) == (strips, strips, 2 * strips), layout
            assert mine["module"] <= len(alone("learnt", model)["weights"]), "a NaN for each parameter at most"
            assert mine["packs"] == mine["packs let go"] == 0 < mine["packs held"]


@every_size
def test_a_checkpoint_of_one_rank_is_taken_up_by_many(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "continued"):
        for each in on_ranks(size):
            assert each[layout, model, "continued"] == pytest.approx(alone("continued", model), rel=close(model))


@every_size
def test_a_checkpoint_of_many_ranks_is_whole_and_taken_up_by_one(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "restored"):
        written, expected = on_ranks(size)[0][layout, model, "restored"], alone("restored", model)
        assert {name: tensor.shape for name, tensor in written.items()} == {n: t.shape for n, t in expected.items()}
        ours = fsdp_cases.losses_after(written, model, None)
        # A first step of AdamW is lr * sign(gradient), and signs of gradients near 0 are noise.
        assert ours == pytest.approx(fsdp_cases.losses_after(expected, model, None), rel=1e-4)


@every_size
def test_numbers_that_are_not_finite_on_one_rank_make_all_skip(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "spoilt"):
        why = {each[layout, model, "spoilt"] for each in on_ranks(size)}
        assert why in ({"the loss is not finite"}, {"the forward pass is not finite"}), (layout, why)


@every_size
def test_layers_that_are_computed_again_learn_the_same_bits(size: int, on_ranks: Any) -> None:
    for each in on_ranks(size):
        for layout, model in cases(size, "forgetful"):
            kept, forgotten = each[layout, model, "forgetful"]
            assert kept == forgotten, (layout, model)
