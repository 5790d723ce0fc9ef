"""Mathematical answers: equal in value, not in spelling.

Plain numbers and equal spellings are decided here, in microseconds and exactly; everything else goes to math-verify
(sympy), with its own timeouts off: they need SIGALRM in the main thread and fail silently elsewhere; the judge's
process is killed instead. The answer is the last `\\boxed{}`, else follows the last `####` or `answer is`, else is the
last line.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from seedthink.errors import ConfigError
from seedthink.rewards.response import split_response
from seedthink.types import Judgement, Verdict

MAX_ANSWER = 1000
_NUMBER = re.compile(r"([-+]?)([0-9]{1,60})(?:\.([0-9]{0,60}))?")
_THOUSANDS = re.compile(r"([-+]?[0-9]{1,3})((?:,[0-9]{3})+)(\.[0-9]+)?")
_FRACTION = re.compile(r"([-+]?)\\frac\{([0-9]{1,60})\}\{([0-9]{1,60})\}|([-+]?[0-9]{1,60})/([0-9]{1,60})")
_ANSWER_IS = re.compile(r"(?:####|answer\s*(?:is|:|=))[ \t]*([^\n]*)", re.IGNORECASE)
_NOISE = (r"\left", r"\right", r"\!", r"\,", r"\;", r"\ ", r"\$", "$", r"\(", r"\)", r"\[", r"\]", " ")


def prepare() -> None:
    """Import math-verify and let it build its grammar: a second that no answer's time limit should pay for.

    Raises `ConfigError` with the command to run where it is missing.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError('the verifier "math" needs math-verify, not installed here: pip install "seedthink[math]"')
    _same_by_algebra("x + 1", "1 + x")


def math(prompt: Mapping[str, Any], text: str) -> Judgement:
    """Right when the response's answer equals `reference["answer"]` (text or number; a `####` solution is read too)."""
    reference = prompt["reference"]
    response = split_response(text, reference)
    parts = {"answer": 0.0, "format": 0.0 if response.fault else 1.0}
    if response.fault:
        return Judgement(Verdict.WRONG, 0.0, parts, response.fault)
    due, given = extract(str(reference["answer"])), extract(response.answer)
    if not given:
        return Judgement(Verdict.WRONG, 0.0, parts, "there is no answer")
    if len(given) > MAX_ANSWER:
        return Judgement(Verdict.WRONG, 0.0, parts, f"the answer has {len(given)} characters")
    same = _same_plainly(due, given)
    if same is None:
        same = _same_by_algebra(due, given)
    words = f"{given[:80]!r} is {'' if same else 'not '}{due[:80]!r}"
    return Judgement(Verdict.RIGHT if same else Verdict.WRONG, float(same), {**parts, "answer": float(same)}, words)


def extract(text: str) -> str:
    """The final answer in a text: last box, else after the last `####` or `answer is`, else the last line."""
    boxed = _last_box(text)
    if boxed is not None:
        return boxed.strip()
    marked = _ANSWER_IS.findall(text)
    lines = [line for line in text.splitlines() if line.strip()]
    answer = marked[-1] if marked and marked[-1].strip() else (lines[-1] if lines else "")
    return answer.strip().rstrip(".").strip()


def plain_number(text: str) -> Fraction | None:
    """Exact value of an integer, decimal or fraction, thousands separators allowed; None for anything else."""
    grouped = _THOUSANDS.fullmatch(text)
    if grouped:
        text = grouped[1] + grouped[2].replace(",", "") + (grouped[3] or "")
    number = _NUMBER.fullmatch(text)
    if number:
        sign, whole, decimals = number[1], number[2], number[3] or ""
        value = Fraction(int(whole + decimals), 10 ** len(decimals))
        return -value if sign == "-" else value
    ratio = _FRACTION.fullmatch(text)
    if ratio:
        top, bottom = (int((ratio[1] or "") + ratio[2]), int(ratio[3])) if ratio[2] else (int(ratio[4]), int(ratio[5]))
        return Fraction(top, bottom) if bottom else None
    return None


def _normal(text: str) -> str:
    text = text.replace("dfrac", "frac").replace("tfrac", "frac")
    for noise in _NOISE:
        text = text.replace(noise, "")
    return text.strip().rstrip(".")


def _same_plainly(due: str, given: str) -> bool | None:
    """True or False where numbers or spellings decide; None where algebra has to."""
    due, given = _normal(due), _normal(given)
    if due == given:
        return True
    left, right = plain_number(due), plain_number(given)
    if left is None or right is None:
        return None
    if left == right:
        return True
    # A decimal may stand for a fraction rounded (0.333333 for 1/3): only math-verify's tolerance decides that.
    return False if left.denominator == right.denominator == 1 else None


def _same_by_algebra(due: str, given: str) -> bool:
    """math-verify's verdict. Raises `ValueError` where the reference itself cannot be read."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold = math_verify.parse(_as_latex(due), fallback_mode="no_fallback", parsing_timeout=None)
    if not gold:
        raise ValueError(
            f"the reference {due[:80]!r} cannot be read as mathematics; use the verifier 'exact' for words"
        )
    answer = math_verify.parse(_as_latex(given), parsing_timeout=None)
    return bool(answer) and math_verify.verify(gold, answer, timeout_seconds=None)


def _as_latex(text: str) -> str:
    return text if "$" in text or r"\(" in text or r"\[" in text else f"${text}$"


def _last_box(text: str) -> str | None:
    """Content of the last `\\boxed{...}` whose braces balance."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None
