"""Ranks that share a model compute what one rank computes: forward bit for bit, gradients to rounding.

Models with shared prompts, tied logits, routers that leave experts without a token or give one all of them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import mesh_cases
import pytest
import torch
from ranks import outcome, start_ranks

from seedthink.models.cuts import cut_of
from seedthink.parallel.cut import Seat
from seedthink.parallel.launch import free_port

PROGRAM = str(Path(__file__).with_name("mesh_program.py"))
SIZES = [2, 4, pytest.param(8, marks=pytest.mark.slow)]
every_size = pytest.mark.parametrize("size", SIZES)
Found = list[dict[tuple[str, str, str], Any]]


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """size -> what each rank found in all cases; one launch for each size."""

    @lru_cache
    def run(size: int) -> Found:
        folder = tmp_path_factory.mktemp(f"ranks-{size}")
        words = (PROGRAM, f"127.0.0.1:{free_port()}", str(folder))
        ended = outcome(start_ranks(size, *words), 280.0)
        assert [code for code, _, _ in ended] == [0] * size, ended
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]

    return run


@lru_cache
def alone(case: str, model: str) -> Any:
    torch.set_num_threads(1)
    return getattr(mesh_cases, case)(model, None)


def cases(size: int, wanted: str) -> list[tuple[str, str]]:
    return [(layout, model) for layout, model, case in mesh_cases.plan(size) if case == wanted]


@every_size
def test_log_probs_and_values_have_the_bits_of_one_rank(size: int, on_ranks: Any) -> None:
    found = on_ranks(size)
    for layout, model in cases(size, "scores"):
        expected = alone("scores", model)
        seen = set()
        for rank in range(size):
            for name, values in found[rank][layout, model, "scores"].items():
                assert torch.equal(values, expected[name]), (layout, model, rank, name)
                seen.add(name)
        assert seen == set(expected)


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
def test_a_repetition_learns_the_same_bits(size: int, on_ranks: Any) -> None:
    for each in on_ranks(size):
        for layout, model in cases(size, "learnt_again"):
            first, again = each[layout, model, "learnt"], each[layout, model, "learnt_again"]
            assert first["norms"] == again["norms"] and first["losses"] == again["losses"]
            assert all(torch.equal(first["weights"][name], again["weights"][name]) for name in first["weights"])
