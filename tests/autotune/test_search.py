"""The offline search: wrong outputs are never timed or adopted, the budget ends it, settings are left built in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from seedthink.autotune import search
from seedthink.autotune.cases import build, error_of, same_bits
from seedthink.autotune.roofline import Rates
from seedthink.autotune.spaces import SHAPES, SPACES
from seedthink.kernels import selector
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load

QUICKSTART = SHAPES["quickstart"]


@pytest.fixture(autouse=True)
def built_in() -> Iterator[None]:
    yield
    selector.reset()


def key(op: str = "norm", tokens: int = 8) -> Key:
    return SPACES[op].key(QUICKSTART, "float32", Load(tokens))


def test_a_point_is_measured_and_says_what_it_found() -> None:
    (found,) = search.search([key()], 2, Rates(), {"norm": "n1"})
    assert found.entry is not None and found.note == ""
    assert found.entry.load == Load(8) and found.entry.sources == "n1"
    assert found.entry.p20 <= found.entry.seconds <= found.entry.p80
    assert found.entry.repeats == search.DUEL_TURNS
    assert "norm" in search.in_words(found) and "T=8" in search.in_words(found)
    assert selector.applied("norm") == {}


def test_a_configuration_with_other_bits_is_left_out_and_named() -> None:
    case = build(key())
    calls: list[dict[str, int]] = []

    def run() -> tuple[torch.Tensor, ...]:
        calls.append(selector.applied("norm"))
        (y,) = case.run()
        return (y + 1e-6 if selector.applied("norm") == {"threads": 1} else y,)

    wrong, right = Config("wrong", {"threads": 1}), Config("right", {"grain": 2048})
    kept, problems = search.checked(replace(case, run=run), [BUILT_IN, wrong, right])
    assert kept == [BUILT_IN, right]
    assert problems == ["norm wrong: other bits than the built-in configuration"]
    split = wrong._replace(numerics="split-k")
    assert search.checked(replace(case, run=run), [BUILT_IN, split])[0] == [BUILT_IN, split]


def test_nothing_is_timed_where_the_built_in_output_is_wrong() -> None:
    case = build(key())
    kept, problems = search.checked(replace(case, reference=lambda: (case.run()[0] + 1,)), [BUILT_IN])
    assert kept == [] and "error" in problems[0]


def test_the_budget_ends_the_search_after_the_point_under_way() -> None:
    now = iter(range(100))
    points = list(search.search([key()] * 10, 2, Rates(), {}, budget_seconds=5, clock=lambda: float(next(now))))
    assert 1 <= len(points) <= 2


def test_operations_take_turns_so_that_a_short_search_has_seen_each() -> None:
    ops = [point.op for point in search.points(QUICKSTART, "float32", ["norm", "linear", "swiglu"])]
    assert ops[:2] == ["norm", "linear"] and "swiglu" not in ops  # the quickstart's model has no dense layers


@pytest.mark.parametrize("op", sorted(SPACES))
def test_a_case_is_what_its_reference_says_and_repeats_its_bits(op: str) -> None:
    dims = {"swiglu": (64,), "rope": (4, 32)}.get(op, SPACES[op].dims(QUICKSTART))
    case = build(key(op, 40)._replace(dims=dims, load=Load(40, 2.0, 0.25)))
    assert error_of(case.run(), case.reference()) <= case.tolerance
    assert same_bits(case.run(), case.run())


def test_an_unknown_operation_has_no_case() -> None:
    with pytest.raises(ValueError, match="op: 'nope'"):
        build(key()._replace(op="nope"))
