"""Counts of verdicts, and the loud failure: judging that mostly fails ends the run instead of starving it.

A reward that has not judged anything yet is broken, and said to be so after the first few answers: a short run would
otherwise end without having learned, and call itself finished.
"""

from __future__ import annotations

from collections import Counter, deque

from seedthink.errors import RunError
from seedthink.types import Judgement, Verdict

WINDOW = 256
ENOUGH = 64
FIRST = 8
FAILED = (Verdict.ERROR, Verdict.TIMEOUT)


class VerdictWatch:
    """Counts verdicts; `check` raises once errors and timeouts pass a share of the last 256, given at least 64.

    It also raises where the first 8 all failed.
    """

    def __init__(self, limit: float) -> None:
        """`limit` is the share in 0..1 above which judging has failed."""
        self.counts: Counter[Verdict] = Counter()
        self.seconds = 0.0
        self._limit = limit
        self._recent: deque[Judgement] = deque(maxlen=WINDOW)

    def note(self, judgement: Judgement) -> None:
        """Count one judgement."""
        self.counts[judgement.verdict] += 1
        self.seconds += judgement.seconds
        self._recent.append(judgement)

    def check(self) -> None:
        """Raise `RunError` with the share and the commonest evidence when judging has failed."""
        failed = [judgement for judgement in self._recent if judgement.verdict in FAILED]
        never = len(failed) == self.counts.total() >= FIRST
        if not never and (len(self._recent) < ENOUGH or len(failed) <= self._limit * len(self._recent)):
            return
        evidence, times = Counter(judgement.evidence for judgement in failed).most_common(1)[0]
        raise RunError(
            f"{len(failed)} of the last {len(self._recent)} responses could not be judged (limit {self._limit:.0%}); "
            f"{times} times: {evidence}. Nothing was trained on them. Mend the reward and start again to resume"
        )

    def metrics(self) -> dict[str, float]:
        """Shares of the verdicts so far and the mean seconds of a judgement, named verifier/..."""
        total = max(1, sum(self.counts.values()))
        shares = {f"verifier/{verdict.value}": self.counts[verdict] / total for verdict in Verdict}
        return {**shares, "verifier/seconds": self.seconds / total}
