"""Mathematical answers, exact match, users' functions: values in, verdicts out, errors never a score."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import reward_functions
from samples import rollout

from seedthink.errors import ConfigError, RunError
from seedthink.rewards.custom import wrap
from seedthink.rewards.exact import exact
from seedthink.rewards.inline import InlineJudge
from seedthink.rewards.mathematics import extract, plain_number
from seedthink.rewards.mathematics import math as judge_math
from seedthink.rewards.verifiers import load_verifier, run_verifier
from seedthink.types import Judgement, Verdict

PROMPT = {"id": "1", "family": "words", "text": "q", "reference": {"due": 4}}


def own(name: str, text: str = "abc") -> Judgement:
    return run_verifier(load_verifier(f"reward_functions:{name}"), PROMPT, text)


@pytest.mark.parametrize(
    ("due", "given", "right"),
    [
        ("42", "42", True),
        ("42", "The answer is 42.", True),
        ("42", "So \\boxed{41}. No, \\boxed{42}", True),
        ("42", "#### 42", True),
        ("She has 40 + 2.\n#### 42", "\\boxed{42}", True),
        ("1234567", "1,234,567", True),
        ("1234567", "$1{,}234{,}567$", True),
        ("0.5", "1/2", True),
        ("0.5", "\\dfrac{1}{2}", True),
        ("-3", "-3.000", True),
        ("7", "007", True),
        ("18", "$18", True),
        (42, "42", True),
        ("42", "43", False),
        ("1/2", "1/3", False),
        ("42", "", False),
        ("42", "I do not know", False),
        ("2", "1+1=2 or 24", False),
        ("24", "\\boxed{1+1=2 or 24}", False),
        ("3", "1 or 2 or 3 or 4", False),
        ("42", "\u0664\u0662", False),
        ("2^{19}", "524288", True),
        ("1/3", "0.333333", True),
        ("1/3", "0.33", False),
        ("x^2+1", "1+x^2", True),
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("(1,2)", "(1, 2)", True),
        ("(1,2)", "(2,1)", False),
    ],
)
def test_mathematical_answers_are_equal_in_value_not_in_spelling(due: object, given: str, right: bool) -> None:
    judgement = judge_math({"reference": {"answer": due}}, given)
    assert judgement.verdict is (Verdict.RIGHT if right else Verdict.WRONG), judgement.evidence
    assert judgement.score == float(right)


def test_only_the_text_after_the_think_block_is_the_answer() -> None:
    reference = {"answer": "42", "think": "open"}
    assert judge_math({"reference": reference}, "\\boxed{41} </think> \\boxed{42}").verdict is Verdict.RIGHT
    assert judge_math({"reference": reference}, "\\boxed{42} and on, never closing").verdict is Verdict.WRONG
    assert judge_math({"reference": {"answer": "42"}}, "<think> \\boxed{42}").verdict is Verdict.WRONG


def test_a_reference_that_is_no_mathematics_is_an_error_not_a_wrong_answer() -> None:
    for reference in ("???", "", "\u2603"):
        judgement = run_verifier(judge_math, {"reference": {"answer": reference}}, "42")
        assert judgement.verdict is Verdict.ERROR
        assert "use the verifier 'exact'" in judgement.evidence


def test_the_final_answer_is_the_box_then_the_mark_then_the_last_line() -> None:
    assert extract("\\boxed{\\frac{1}{2}} and \\boxed{unclosed") == "\\frac{1}{2}"
    assert extract("answer is 3\nthe Answer: 4.\nbye") == "4"
    assert extract("first\n\n  last line. \n") == "last line"


def test_plain_numbers_are_exact_and_bounded() -> None:
    assert plain_number("-0.125") == Fraction(-1, 8)
    assert plain_number("\\frac{-1}{2}") is None
    assert plain_number("-\\frac{1}{2}") == Fraction(-1, 2)
    for other in ("1e999999999", "9" * 61, "1/0", "1,23", "\u0663", "0x10", ""):
        assert plain_number(other) is None


def test_an_absurdly_long_answer_is_wrong_at_once() -> None:
    assert judge_math({"reference": {"answer": "1"}}, "\\boxed{" + "9" * 5000 + "}").verdict is Verdict.WRONG


def test_exact_match_ignores_spaces_alone() -> None:
    assert exact({"reference": {"answer": "New  York"}}, " New York\n").verdict is Verdict.RIGHT
    assert exact({"reference": {"answer": "B"}}, "b").verdict is Verdict.WRONG
    assert exact({"reference": {"answer": "B", "think": "open"}}, "B").verdict is Verdict.WRONG


def test_a_users_float_is_a_score_and_half_is_right() -> None:
    assert own("length", "abcde").verdict is Verdict.RIGHT
    judgement = own("length", "abcd")
    assert (judgement.verdict, judgement.score) == (Verdict.WRONG, 0.4)


def test_a_users_dict_names_verdict_parts_and_evidence() -> None:
    judgement = own("detailed")
    assert (judgement.verdict, judgement.score, judgement.evidence) == (Verdict.RIGHT, 0.25, "words 4")
    assert judgement.parts == {"brevity": 1.0}


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("nan", "returned score = nan, which is not finite"),
        ("text", "returned score = 'good', which is no number"),
        ("nothing", "returned score = None, which is no number"),
        ("no_score", "without 'score'"),
        ("wrong_signature", "TypeError: wrong_signature() takes 1 positional argument but 2 were given"),
        ("raises", "LookupError: no such word (reward_functions.py:"),
    ],
)
def test_a_reward_that_fails_is_an_error_with_evidence_and_never_a_zero(name: str, evidence: str) -> None:
    judgement = own(name)
    assert judgement.verdict is Verdict.ERROR
    assert math.isnan(judgement.score)
    assert evidence in judgement.evidence


def test_a_reward_that_cannot_be_imported_or_found_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="'no_such_module:f' cannot be imported: ModuleNotFoundError"):
        load_verifier("no_such_module:f")
    with pytest.raises(ConfigError, match=r"reward_functions\.py has no callable 'NOT_CALLABLE'"):
        load_verifier("reward_functions:NOT_CALLABLE")
    with pytest.raises(ConfigError, match="no verifier for family 'poems'"):
        InlineJudge().submit([rollout("x", "poems")])


def test_the_inline_judge_uses_the_families_verifier_or_the_configured_one() -> None:
    judge = InlineJudge({"words": "reward_functions:length", "*": "exact"})
    judge.submit([rollout("B", "letters", answer="B"), rollout("abcde", "words")])
    assert judge.pending == 2
    (_, letters), (_, words) = judge.collect()
    assert letters.parts["answer"] == 1.0
    assert words.score == 0.5
    assert judge.collect() == []


def test_judging_that_mostly_fails_ends_the_run_with_the_evidence() -> None:
    judge = InlineJudge({"fine": "reward_functions:length", "broken": "reward_functions:raises"})
    judge.submit([rollout("x", "fine")] + [rollout("x", "broken")] * 62)
    assert len(judge.collect()) == 63
    judge.submit([rollout("x", "broken")])
    with pytest.raises(RunError, match=r"63 of the last 64 .* LookupError: no such word"):
        judge.collect()


def test_a_reward_that_never_judged_anything_ends_even_a_short_run() -> None:
    judge = InlineJudge({"*": "reward_functions:raises"})
    judge.submit([rollout("x")] * 7)
    assert len(judge.collect()) == 7
    judge.submit([rollout("x")])
    with pytest.raises(RunError, match=r"8 of the last 8 .* LookupError: no such word"):
        judge.collect()


@pytest.mark.parametrize("returned", [1e308, -2e6, {"score": 1.0, "length": 1e9}])
def test_a_score_beyond_all_sense_is_an_error(returned: object) -> None:
    judgement = run_verifier(wrap(lambda prompt, text: returned, "mine:score"), {}, "x")
    assert judgement.verdict is Verdict.ERROR and "beyond 1e+06" in judgement.evidence


def test_evidence_is_cut_and_can_be_written_to_a_file() -> None:
    found = {"score": 1.0, "evidence": "\ud800" + "long" * 10_000, "\udfff": 1}
    judgement = run_verifier(wrap(lambda prompt, text: found, "mine:score"), {}, "x")
    assert len(judgement.evidence.encode("utf-8")) == 2000 and judgement.evidence.startswith("?long")
    assert judgement.parts == {"?": 1.0}


def test_a_verifier_that_calls_exit_is_an_error_that_says_so() -> None:
    judgement = run_verifier(lambda prompt, text: sys.exit(3), {}, "x")
    assert judgement.verdict is Verdict.ERROR and judgement.evidence.startswith("SystemExit: 3")


def test_a_module_that_exits_when_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_rewards.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'leaving_rewards:f' cannot be imported: SystemExit: 3"):
        load_verifier("leaving_rewards:f")


def test_rewards_load_neither_torch_nor_sympy_nor_numpy_for_a_puzzle() -> None:
    code = (
        "import sys\nfrom seedthink.rewards.verifiers import load_verifier\nimport seedthink.rewards.worker\n"
        "load_verifier('countdown')\nprint([m for m in ('torch', 'sympy', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_module_of_user_rewards_is_the_one_beside_this_file() -> None:
    assert reward_functions.NOT_CALLABLE == 1
