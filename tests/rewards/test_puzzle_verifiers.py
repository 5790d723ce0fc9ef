"""The puzzle verifiers compute with the answer, and nothing that a model may write gets past or breaks them."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedthink.rewards.puzzles import countdown, evaluate, running_sum
from seedthink.types import Judgement, Verdict

TASK = {"reference": {"numbers": [3, 4, 2], "target": 14, "think": "open"}}
SUM = {"reference": {"terms": [3, 7, 9], "modulus": 10, "think": "open"}}


def answer(text: str) -> Judgement:
    return countdown(TASK, f"some thought </think> {text}")


@pytest.mark.parametrize("text", ["( 3 + 4 ) * 2", "2*(4+3)", "(3+4)*2 = 14", "((2))*((3)+4)", "(4+3)*2"])
def test_every_expression_that_reaches_the_target_is_right(text: str) -> None:
    judgement = answer(text)
    assert (judgement.verdict, judgement.score) == (Verdict.RIGHT, 1.0)
    assert judgement.parts == {"answer": 1.0, "format": 1.0}


def test_division_is_exact() -> None:
    task = {"reference": {"numbers": [8, 3, 8, 3], "target": 24}}
    assert countdown(task, "8 / (3 - 8 / 3)").verdict is Verdict.RIGHT


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("( 3 + 4 ) + 2", "is 9, the target is 14"),
        ("7 * 2", "uses 7 2, the numbers are 3 4 2"),
        ("(3 + 4) * 2 + 2 - 2", "uses 3 4 2 2 2"),
        ("14", "uses 14"),
        ("1+1=2 or 24", "'or 24' is not arithmetic"),
        ("(3+4)*2 or 2*(3+4)", "is not arithmetic"),
        ("(3+4)*2 = 15", "ends with = 15, the target is 14"),
        ("(3+4)*2 = 14 = 14", "'=' follows a complete expression"),
        ("= 14", "the expression breaks off"),
        ("3 ** 4 - 2", "'*' stands where a number belongs"),
        ("9**9**9**9", "'*' stands where a number belongs"),
        ("3 4 2", "'4' follows a complete expression"),
        ("34 / 2 - 3", "uses 34 2 3"),
        ("(3+4*2", "a parenthesis stays open"),
        ("(3+4))*2", r"'\)' follows a complete expression"),
        ("-3+4*2", "'-' stands where a number belongs"),
        ("3/(4-4)*2", "divides by zero"),
        ("\u0663+4*2", "is not arithmetic"),
        ("\uff13+4*2", "is not arithmetic"),
        ("3e2", "is not arithmetic"),
        ("0x3+4*2", "is not arithmetic"),
        ("__import__('os').system('true')", "is not arithmetic"),
        ("9999999999", "is not arithmetic"),
        ("(" * 60 + "3" + ")" * 60, "nested deeper than 40"),
        ("(" * 10_000 + "3", "10001 characters"),
        ("9" * 100_000, "100000 characters"),
        ("", "the expression breaks off"),
    ],
)
def test_everything_else_is_wrong_and_the_evidence_says_why(text: str, evidence: str) -> None:
    judgement = answer(text)
    assert (judgement.verdict, judgement.score) == (Verdict.WRONG, 0.0)
    assert re.search(evidence, judgement.evidence), judgement.evidence
    assert judgement.parts == {"answer": 0.0, "format": 1.0}


@given(st.text(alphabet="0123456789+-*/()= x\u0664\n", max_size=30) | st.text(max_size=30))
def test_no_text_makes_the_verifier_fail(text: str) -> None:
    assert answer(text).verdict in (Verdict.RIGHT, Verdict.WRONG)


def test_the_value_of_an_expression_is_exact_with_the_usual_precedence() -> None:
    assert evaluate("1 - 2 - 3 * 4 / 8") == (Fraction(-5, 2), [1, 2, 3, 4, 8])
    with pytest.raises(ValueError, match="breaks off"):
        evaluate("1 +")


@pytest.mark.parametrize(
    ("text", "verdict", "form"),
    [
        ("3 + 7 = 0 + 9 = 9 </think> 9", Verdict.RIGHT, 1.0),
        ("nonsense </think> 09", Verdict.RIGHT, 1.0),
        ("</think> 19", Verdict.WRONG, 1.0),
        ("</think> 9 9", Verdict.WRONG, 1.0),
        ("</think> 9 or 8", Verdict.WRONG, 1.0),
        ("</think> \u0669", Verdict.WRONG, 1.0),
        ("</think> " + "9" * 50, Verdict.WRONG, 1.0),
        ("9", Verdict.WRONG, 0.0),
        ("8 </think> 8 </think> 9", Verdict.WRONG, 0.0),
        ("<think> 8 <think> </think> 9", Verdict.WRONG, 0.0),
        ("", Verdict.WRONG, 0.0),
    ],
)
def test_a_running_sum_is_one_integer_after_a_think_block_closed_once(text: str, verdict: Verdict, form: float) -> None:
    judgement = running_sum(SUM, text)
    assert (judgement.verdict, judgement.parts["format"]) == (verdict, form)


def test_where_the_prompt_closed_the_block_no_tag_may_follow() -> None:
    task = {"reference": {**SUM["reference"], "think": "empty"}}
    assert running_sum(task, "9").verdict is Verdict.RIGHT
    assert running_sum(task, "</think> 9").verdict is Verdict.WRONG


def test_where_the_template_says_nothing_a_block_is_optional_but_whole() -> None:
    task = {"reference": {"terms": [3, 7, 9], "modulus": 10}}
    assert running_sum(task, "9").verdict is Verdict.RIGHT
    assert running_sum(task, "<think> 3 0 9 </think> 9").verdict is Verdict.RIGHT
    assert running_sum(task, "9 <think> 3 </think> 9").verdict is Verdict.WRONG
    assert running_sum(task, "<think> 9").verdict is Verdict.WRONG
