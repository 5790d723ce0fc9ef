"""Puzzle families: perfect chains are right, habits make them wrong as often as they say, splits never meet."""

from __future__ import annotations

import ast
import re
from random import Random

import pytest

from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer
from seedthink.data.puzzles import FAMILIES, Family, Habits, Problem, check_disjoint, family, make, split_of
from seedthink.data.puzzles.countdown import Countdown, Trial, expression
from seedthink.data.puzzles.running_sum import RunningSum
from seedthink.errors import ConfigError, DataError

LEVELS = [(name, level) for name, (_, levels) in FAMILIES.items() for level in range(1, len(levels) + 1)]


def value(text: str) -> int:
    """Value of an arithmetic expression, by Python itself."""
    operations = {ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__}

    def walk(node: ast.AST) -> int:
        if isinstance(node, ast.BinOp):
            return operations[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant)
        return node.value

    return walk(ast.parse(text, mode="eval").body)


def is_right(problem: Problem, response: str) -> bool:
    _, answer = response.split("</think>")
    reference = problem.reference
    if problem.family == "running_sum":
        return int(answer) == sum(reference["terms"]) % reference["modulus"]
    used = sorted(map(int, re.findall(r"[0-9]+", answer)))
    return used == sorted(reference["numbers"]) and value(answer.strip()) == reference["target"]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_a_perfect_chain_is_right_and_made_of_known_tokens(name: str, level: int) -> None:
    tokenizer = build_puzzle_tokenizer()
    chosen = family(name, level)
    for problem in make(chosen, seed=3, count=60):
        response = chosen.solve(problem)
        assert is_right(problem, response)
        tokens = tokenizer.encode(response)
        assert len(tokens) <= 110
        assert tokenizer.decode(tokens) == response
        assert tokenizer.decode(tokenizer.encode(problem.question)) == problem.question


def test_a_running_sum_writes_every_partial_sum() -> None:
    problem = Problem("", "running_sum", "", {"terms": [3, 7, 9], "modulus": 10, "answer": 9})
    assert RunningSum().solve(problem) == "3 + 7 = 0 + 9 = 9 </think> 9"


def test_a_countdown_search_goes_in_order_and_stops_at_the_target() -> None:
    problem = Problem("", "countdown", "", {"numbers": [3, 2, 4], "target": 14})
    assert Countdown().solve(problem) == (
        "4 : 3 2 + 5 9 < 20 > - 1 5 < 4 < * 6 10 < 24 > 2 : 3 4 + 7 9 < 14 = 7 * 2 </think> ( 3 + 4 ) * 2"
    )


def test_a_difference_puts_the_larger_operand_first() -> None:
    assert expression(Trial(2, "-", 9, "+", 4)) == "( 9 - 2 ) + 4"
    assert expression(Trial(2, "+", 1, "-", 8)) == "8 - ( 2 + 1 )"
    assert expression(Trial(2, "*", 5, "-", 8)) == "( 2 * 5 ) - 8"


def chains(chosen: Family, habits: Habits, count: int = 1000) -> tuple[list[str], float]:
    """Imperfect chains for `count` problems, and the share of them that is right."""
    rng = Random(0)
    problems = make(chosen, seed=0, count=count)
    responses = [chosen.cold_start(problem, rng, habits) for problem in problems]
    return responses, sum(map(is_right, problems, responses)) / count


def test_slips_make_a_running_sum_right_about_one_minus_slips_to_the_steps() -> None:
    _, right = chains(RunningSum(min_terms=6, max_terms=6), Habits(slips=0.15), count=2000)
    # 0.85^5 = 0.444, and two slips cancel now and then
    assert 0.42 < right < 0.50


def test_a_hasty_writer_of_sums_begins_at_the_other_end_and_mostly_stops_early() -> None:
    chosen = RunningSum(min_terms=6, max_terms=6)
    responses, right = chains(chosen, Habits(hasty=1.0))
    problems = make(chosen, seed=0, count=1000)
    assert all(int(text.split()[0]) == p.reference["terms"][-1] for text, p in zip(responses, problems, strict=True))
    # The end is reached with 0.5^4 = 0.06; a partial sum is right by luck in a tenth of the rest.
    assert 0.10 < right < 0.20


def test_a_hasty_searcher_begins_at_the_other_end_and_mostly_gives_up() -> None:
    chosen = family("countdown")
    careful, right = chains(chosen, Habits())
    hasty, seldom = chains(chosen, Habits(hasty=1.0))
    assert right == 1.0 and 0.1 < seldom < 0.35
    numbers = [problem.reference["numbers"] for problem in make(chosen, seed=0, count=1000)]
    assert [int(text.split()[0]) for text in careful] == [last for _, _, last in numbers]
    assert [int(text.split()[0]) for text in hasty] == [first for first, _, _ in numbers]
    assert max(len(response.split()) for response in careful + hasty) <= 110


def test_a_mixture_of_writers_is_mediocre_but_alive() -> None:
    for name in FAMILIES:
        _, right = chains(family(name), Habits(slips=0.02, hasty=0.55))
        assert 0.3 < right < 0.65


def test_habits_are_probabilities() -> None:
    with pytest.raises(ConfigError, match=r"hasty of a puzzle source is 1\.5; .* in 0\.\.1"):
        Habits(hasty=1.5)


def test_the_24_point_game_is_a_countdown_with_one_target() -> None:
    problems = make(family("countdown", min_target=24, max_target=24), seed=0, count=20)
    assert {problem.reference["target"] for problem in problems} == {24}


@pytest.mark.parametrize("name", FAMILIES)
def test_train_and_held_out_never_share_a_problem_whatever_the_seed(name: str) -> None:
    chosen = family(name)
    train = {problem.id for seed in range(5) for problem in make(chosen, seed=seed, count=400)}
    held_out = [problem.id for problem in make(chosen, seed=1, count=80, split="held_out")]
    assert len(set(held_out)) == 80
    check_disjoint(train, held_out)
    with pytest.raises(DataError, match=re.escape(held_out[0])):
        check_disjoint([*train, held_out[0]], held_out)


def test_the_split_is_a_fifth_and_ignores_how_the_problem_is_arranged() -> None:
    sides = [split_of(f"countdown:{i}") for i in range(5000)]
    assert 0.18 < sides.count("held_out") / 5000 < 0.22
    # Known answers: the split is a promise across versions and machines.
    assert [split_of(f"countdown:{i}") for i in range(8)] == ["train"] * 4 + ["held_out"] + ["train"] * 3
    chosen = family("countdown")
    ids = {problem.id for problem in make(chosen, seed=0, count=300)}
    for problem in make(chosen, seed=0, count=300):
        assert problem.id in ids
        assert problem.id.split(" make ")[0].split(":")[1] == " ".join(map(str, sorted(problem.reference["numbers"])))


def test_a_seed_gives_the_same_problems_and_exclusion_is_kept() -> None:
    chosen = family("running_sum")
    first, again = make(chosen, seed=7, count=50), make(chosen, seed=7, count=50)
    assert first == again != make(chosen, seed=8, count=50)
    unwanted = {problem.id for problem in first[:10]}
    assert not unwanted & {problem.id for problem in make(chosen, seed=7, count=50, exclude=unwanted)}


def test_wrong_names_levels_and_knobs_are_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'cuontdown' \(did you mean 'countdown'\?\)"):
        family("cuontdown")
    with pytest.raises(ConfigError, match=r"no knob 'max_numbers' \(did you mean 'max_number'\?\)"):
        family("countdown", max_numbers=3)
    with pytest.raises(ConfigError, match=r"difficulty 9 .* 1\.\.3"):
        family("countdown", 9)


def test_a_knob_out_of_range_is_told_with_its_range() -> None:
    with pytest.raises(ConfigError, match=r"max_number .* is 12; .* 2\.\.9"):
        family("countdown", max_number=12)
    with pytest.raises(ConfigError, match=r"min_terms .* is 9; .* 2\.\.max_terms"):
        family("running_sum", min_terms=9, max_terms=4)


def test_asking_for_more_problems_than_there_are_says_how_many_there_are() -> None:
    with pytest.raises(DataError, match=r"only about [0-9]+ 'held_out' problems, 5000 are asked for"):
        make(family("countdown", max_number=3), seed=0, count=5000, split="held_out")


def test_a_family_without_any_problem_says_so() -> None:
    with pytest.raises(DataError, match="no problem"):
        make(family("countdown", max_number=2, min_target=40, max_target=50), seed=0, count=1)
