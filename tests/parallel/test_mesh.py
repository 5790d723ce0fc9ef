"""Ranks that share a model compute what one rank computes: forward bit for bit, gradients to rounding.

Models with shared prompts, tied logits, routers that leave experts without a token or give one all of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import engine_cases
import mesh_cases
import pytest
import router_cases
import torch
from ranks import Found, found_by_ranks

from seedthink.models.cuts import cut_of
from seedthink.parallel.cut import Seat

SIZES = [2, 4, pytest.param(8, marks=pytest.mark.slow)]
every_size = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """size -> what each rank found in all cases; one launch for each size."""

    return lru_cache(lambda size: found_by_ranks(size, "mesh_cases", tmp_path_factory.mktemp(f"ranks-{size}")))


@lru_cache
def alone(case: str, model: str) -> Any:
    torch.set_num_threads(1)
    return next(vars(each)[case] for each in (mesh_cases, engine_cases, router_cases) if case in vars(each))(
        model, None
    )


def cases(size: int, wanted: str) -> list[tuple[str, str]]:
    return [(layout, model) for layout, model, case in mesh_cases.plan(size) if case == wanted]


def same_bits(found: Found, case: str, apart_from: str = "") -> None:
    """Everything that some rank found is what one rank finds, and nothing is missing."""
    for layout, model in cases(len(found), case):
        expected = {name: values for name, values in alone(case, model).items() if name != apart_from}
        seen = set()
        for rank, each in enumerate(found):
            for name, values in each[layout, model, case].items():
                assert name == apart_from or torch.equal(values, expected[name]), (layout, model, rank, name)
                seen.add(name)
        assert seen - {apart_from} == set(expected)


@every_size
def test_log_probs_and_values_have_the_bits_of_one_rank(size: int, on_ranks: Any) -> None:
    same_bits(on_ranks(size), "scores")


@every_size
def test_answers_have_the_tokens_and_the_bits_of_one_rank_also_where_ranks_have_no_request(
    size: int, on_ranks: Any
) -> None:
    same_bits(on_ranks(size), "answers")


@every_size
def test_an_engine_draws_scores_and_learns_as_on_one_rank(size: int, on_ranks: Any) -> None:
    found = on_ranks(size)
    same_bits(found, "runs", apart_from="losses")
    for layout, model in cases(size, "runs"):
        for each in found:
            assert torch.allclose(each[layout, model, "runs"]["losses"], alone("runs", model)["losses"], rtol=1e-6)


@every_size
def test_a_rank_reads_its_part_of_a_folder(size: int, on_ranks: Any) -> None:
    for each in on_ranks(size):
        assert all(each[layout, model, "loaded"]["loaded"].all() for layout, model in cases(size, "loaded"))


@every_size
def test_a_checkpoint_is_whole_and_its_parts_come_back(size: int, on_ranks: Any) -> None:
    for each in on_ranks(size):
        for layout, model in cases(size, "restored"):
            expected, saved = alone("restored", model), each[layout, model, "restored"]
            assert set(saved) == set(expected)
            for name, tensor in expected.items():
                # A first step of AdamW is lr * sign(gradient), and signs of gradients near 0 are noise.
                assert tensor.shape == saved[name].shape
                assert torch.allclose(saved[name], tensor, rtol=1e-3, atol=1e-3 if "weight" in name else 1e-7), name


@every_size
def test_numbers_that_are_not_finite_on_one_rank_make_all_skip(size: int, on_ranks: Any) -> None:
    for layout, model in cases(size, "spoilt"):
        why = [each[layout, model, "spoilt"] for each in on_ranks(size)]
        assert len(set(why)) == 1 and why[0] in ("the loss is not finite", "the forward pass is not finite"), why


def whole(parts: list[dict[str, torch.Tensor]], layout: str, model: str, size: int) -> dict[str, torch.Tensor]:
    """The parameters of all ranks put together; parts that several hold are the same on each."""
    plan = mesh_cases.LAYOUTS[size][layout]
    found: dict[str, torch.Tensor] = {}
    for rank, mine in enumerate(parts):
        seat = Seat(plan.tp, rank % plan.tp, plan.ep, rank % plan.ep)
        for name, part in mine.items():
            cut = cut_of(name, part, mesh_cases.config(model), seat)
            into = found.setdefault(name, torch.full((cut.rows, *part.shape[1:]), torch.nan))
            before = cut.of(into)
            assert before.isnan().all() or torch.equal(before[~before.isnan()], part[~before.isnan()]), name
            cut.put(part, into)
    assert not any(tensor.isnan().any() for tensor in found.values())
    return found


@every_size
def test_gradients_are_those_of_one_rank_to_rounding_and_the_same_on_all_that_hold_them(
    size: int, on_ranks: Any
) -> None:
    found = on_ranks(size)
    for layout, model in cases(size, "learnt"):
        expected = alone("learnt", model)["gradients"]
        mine = whole([each[layout, model, "learnt"]["gradients"] for each in found], layout, model, size)
        length = torch.cat([g.flatten() for g in expected.values()]).norm()
        apart = torch.cat([(mine[name] - expected[name]).flatten() for name in expected]).norm()
        # bfloat16 rounds each rank's part of a gradient before the next product.
        assert apart <= (3e-2 if "bfloat16" in mesh_cases.MODELS[model] else 1e-6) * length, (layout, model)


@every_size
def test_some_steps_lose_what_they_lose_on_one_rank_and_leave_holders_alike(size: int, on_ranks: Any) -> None:
    found = on_ranks(size)
    for layout, model in cases(size, "learnt"):
        expected, half = alone("learnt", model), "bfloat16" in mesh_cases.MODELS[model]
        for each in found:
            mine = each[layout, model, "learnt"]
            assert mine["losses"] == pytest.approx(expected["losses"], rel=2e-3 if half else 1e-6), (layout, model)
            assert mine["norms"] == pytest.approx(expected["norms"], rel=2e-2 if half else 1e-5), (layout, model)
        whole([each[layout, model, "learnt"]["weights"] for each in found], layout, model, size)


@every_size
def test_routers_are_evened_out_by_the_loads_losses_and_gradients_of_one_rank(size: int, on_ranks: Any) -> None:
    found = on_ranks(size)
    for layout, model in cases(size, "evened"):
        expected, mine = alone("evened", model), [each[layout, model, "evened"] for each in found]
        for each in mine:
            assert each["loads"] == expected["loads"], (layout, model)
            assert each["losses"] == pytest.approx(expected["losses"], rel=1e-6), (layout, model)
            assert each["biases"].keys() == expected["biases"].keys()
            assert all(torch.equal(each["biases"][name], bias_E) for name, bias_E in expected["biases"].items())
            assert all(torch.equal(each["later"][name], bias_E) for name, bias_E in mine[0]["later"].items())
        gradients = whole([each["gradients"] for each in mine], layout, model, size)
        length = torch.cat([g.flatten() for g in expected["gradients"].values()]).norm()
        apart = torch.cat([(gradients[name] - g).flatten() for name, g in expected["gradients"].items()]).norm()
        assert apart <= 1e-6 * length, (layout, model)


@every_size
def test_a_repetition_learns_the_same_bits(size: int, on_ranks: Any) -> None:
    for each in on_ranks(size):
        for layout, model in cases(size, "learnt_again"):
            first, again = each[layout, model, "learnt"], each[layout, model, "learnt_again"]
            assert first["norms"] == again["norms"] and first["losses"] == again["losses"]
            assert all(torch.equal(first["weights"][name], again["weights"][name]) for name in first["weights"])
