"""Accuracy with problem-clustered intervals and the unbiased pass@k, on values checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedthink.controller.evaluation import accuracy, half_width, pass_at_k, summarise
from seedthink.types import Completion, Finish, Judgement, Prompt, Rollout, Scored, Verdict


def sample(problem: str, right: bool, family: str = "sum", tokens: int = 3, finish: Finish = Finish.STOP) -> Scored:
    prompt = Prompt(problem, family, problem, np.zeros(1, np.int32), {})
    answer = np.zeros(tokens, np.int32)
    completion = Completion(problem, answer, np.zeros(tokens, np.float32), answer, finish, "")
    verdict = Verdict.RIGHT if right else Verdict.WRONG
    return Scored(Rollout(prompt, completion, problem, 0), Judgement(verdict, float(right)), float(right))


def test_pass_at_k_is_the_chance_that_a_draw_without_replacement_holds_a_right_answer() -> None:
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # 1 - C(2,2)/C(4,2) = 1 - 1/6
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 3, 2) == 1.0


def test_the_interval_treats_the_problem_as_the_cluster() -> None:
    # Problem means 0, 1, 1: mean 2/3, deviation sqrt(1/3), t(2) = 4.303.
    assert half_width([0.0, 1.0, 1.0]) == pytest.approx(4.303 * math.sqrt(1 / 3) / math.sqrt(3))
    # Ten samples of one problem are one observation: nothing is known about other problems.
    assert half_width([0.5]) == math.inf


def test_accuracy_is_the_mean_of_the_problems_means() -> None:
    problems = [[sample("a", True), sample("a", False)], [sample("b", True), sample("b", True)]]
    found = accuracy(problems, k=2)
    assert (found.mean, found.pass_at_k, found.problems) == (0.75, 1.0, 2)
    assert found.low >= 0.0 and found.high <= 1.0


def test_a_summary_has_every_family_and_counts_what_was_cut() -> None:
    samples = [sample("a", True), sample("b", False, family="other", tokens=5, finish=Finish.LENGTH)]
    found = summarise(samples, k=1, failed_checks=2)
    assert {name: one.mean for name, one in found.families.items()} == {"other": 0.0, "sum": 1.0}
    assert (found.mean_length, found.truncated, found.overall.failed_checks) == (4.0, 0.5, 2)
