"""Two files of measured rows, row by row: what became slower by more than noise.

The two runs happened at different times on a machine whose speed may have changed between them. So a row is called
slower only where its time grew (the fast fifth of the new samples lies above the slow fifth of the old ones, and the
median grew by more than MARGIN), and where its share of the ceiling, measured beside it each time, fell by as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from seedthink.bench.rows import Row
from seedthink.bench.table import seconds

MARGIN = 0.05
Verdict = Literal["slower", "faster", "same", "broken", "gone", "new"]
REGRESSIONS: tuple[Verdict, ...] = ("slower", "broken")  # what is gone may just not have been asked for


@dataclass(frozen=True, slots=True)
class Difference:
    """One measurement in both files, or in one."""

    before: Row | None
    after: Row | None
    verdict: Verdict

    def __str__(self) -> str:
        row = self.after or self.before
        assert row is not None
        name = f"{row.op} {row.place} {row.dtype} {row.implementation}"
        shown = [seconds(each.seconds.median) if each and each.seconds else "-" for each in (self.before, self.after)]
        change = ""
        if self.before and self.after and self.before.seconds and self.after.seconds:
            change = f"  {self.after.seconds.median / self.before.seconds.median - 1:+.1%}"
        return f"{self.verdict:7} {name}  {shown[0]} -> {shown[1]}{change}"


def differences(before: Sequence[Row], after: Sequence[Row]) -> list[Difference]:
    """Every one of our rows that either file has; peers are no regressions of ours and are left out."""
    old, new = ({row.key: row for row in rows if row.ours} for rows in (before, after))
    keys = list(dict.fromkeys([*old, *new]))
    return [Difference(old.get(key), new.get(key), _verdict(old.get(key), new.get(key))) for key in keys]


def _verdict(before: Row | None, after: Row | None) -> Verdict:
    if after is not None and after.status == "FAIL":
        return "broken"
    if after is None or after.seconds is None:
        return "gone" if before and before.seconds else "same"
    if before is None or before.seconds is None:
        return "new"
    if _worse(before, after):
        return "slower"
    return "faster" if _worse(after, before) else "same"


def _worse(one: Row, other: Row) -> bool:
    """Whether `other` is slower than `one` by more than noise."""
    assert one.seconds and other.seconds
    longer = other.seconds.median > one.seconds.median * (1 + MARGIN) and other.seconds.p20 > one.seconds.p80
    if not one.of_ceiling or not other.of_ceiling:
        return longer
    return longer and other.of_ceiling * (1 + MARGIN) < one.of_ceiling
