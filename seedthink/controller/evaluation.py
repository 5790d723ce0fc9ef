"""Accuracy on held-out problems, with intervals that know that samples of one problem are not independent.

avg@k is the mean over problems of the share of right samples; its 95 % interval is Student's t over the problems'
means (the problem is the cluster). pass@k is the unbiased estimator 1 - C(n - c, k) / C(n, k) of arXiv 2107.03374.
Samples whose verifier failed are counted and left out; a problem without a judged sample is left out too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from seedthink.types import Scored, Verdict

# Two-sided 97.5 % quantiles of Student's t for few degrees of freedom; the normal's 1.96 beyond the table.
_T_QUANTILE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 10: 2.228, 15: 2.131, 20: 2.086}
_T_QUANTILE |= {30: 2.042, 60: 2.0}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """avg@k with its 95 % interval [low, high], pass@k, the number of problems, and the samples left out."""

    mean: float
    low: float
    high: float
    k: int
    problems: int
    pass_at_k: float
    failed_checks: int = 0

    def __str__(self) -> str:
        mean, low, high, passed = (100 * value for value in (self.mean, self.low, self.high, self.pass_at_k))
        return f"{mean:.1f} % ({low:.1f} to {high:.1f}), pass@{self.k} {passed:.1f} %"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy over all problems and per family, mean answer length in tokens, and the share cut at `max_tokens`."""

    overall: Accuracy
    families: Mapping[str, Accuracy]
    mean_length: float
    truncated: float
    samples: Sequence[Scored] = field(default=(), repr=False)

    def summary(self) -> dict[str, Any]:
        """JSON-able headline, as `summary.json` holds it."""
        families = {name: asdict(accuracy) for name, accuracy in self.families.items()}
        return {
            **asdict(self.overall),
            "families": families,
            "mean_length": self.mean_length,
            "truncated": self.truncated,
        }


def summarise(samples: Sequence[Scored], k: int, failed_checks: int = 0) -> Evaluation:
    """Evaluation of judged samples; those of one problem share `prompt.id`. `failed_checks` were left out before."""
    by_problem: dict[str, list[Scored]] = defaultdict(list)
    for sample in samples:
        by_problem[sample.rollout.prompt.id].append(sample)
    by_family: dict[str, list[list[Scored]]] = defaultdict(list)
    for members in by_problem.values():
        by_family[members[0].rollout.prompt.family].append(members)
    lengths = [len(sample.rollout.completion.tokens_T) for sample in samples]
    truncated = [sample.rollout.completion.finish == "length" for sample in samples]
    return Evaluation(
        overall=accuracy(list(by_problem.values()), k, failed_checks),
        families={name: accuracy(problems, k) for name, problems in sorted(by_family.items())},
        mean_length=float(np.mean(lengths)) if lengths else 0.0,
        truncated=float(np.mean(truncated)) if truncated else 0.0,
        samples=samples,
    )


def accuracy(problems: Sequence[Sequence[Scored]], k: int, failed_checks: int = 0) -> Accuracy:
    """avg@k and pass@k over problems, each a sequence of its judged samples."""
    means, passes = [], []
    for members in problems:
        right = sum(m.judgement.verdict == Verdict.RIGHT for m in members)
        means.append(right / len(members))
        passes.append(pass_at_k(len(members), right, min(k, len(members))))
    if not means:
        return Accuracy(math.nan, math.nan, math.nan, k, 0, math.nan, failed_checks)
    mean, half = float(np.mean(means)), half_width(means)
    return Accuracy(
        mean, max(0.0, mean - half), min(1.0, mean + half), k, len(means), float(np.mean(passes)), failed_checks
    )


def half_width(means: Sequence[float]) -> float:
    """Half of the 95 % Student interval of the mean of independent problems; infinite for a single one."""
    n = len(means)
    if n < 2:
        return math.inf
    quantile = next((q for df, q in sorted(_T_QUANTILE.items(), reverse=True) if df <= n - 1), 12.706)
    return quantile * float(np.std(means, ddof=1)) / math.sqrt(n)


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold at least one of the `right` ones."""
    if n - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - right + 1, n + 1))
