"""summary.json: the headline of a run for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came out of a run. An accuracy is `{mean, low, high, k, problems, pass_at_k, families}`, fractions of 1.

    `peak_rss_bytes` is the largest sum of PSS (proportional set size) over the run's processes: shared pages count
    once. `logp_gap_max` is the largest absolute difference of a generator's and a trainer's log-prob; 0 in exact mode.
    """

    command: str
    status: str
    """"finished", "interrupted" or "failed"."""
    steps: int
    accuracy_before: Mapping[str, Any] | None = None
    accuracy_after: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per stage, for instance {"value": 41.0, "rl": 208.5, "eval": 12.1, "total": 262.0}."""
    peak_rss_bytes: int = 0
    value_explained: float = 0.0
    """Held-out explained variance of the critic after value pretraining; 0 without a critic."""
    logp_gap_max: float = 0.0
    tokens_per_second: float = 0.0
    """Generated tokens per second of generation."""
    parameters: int = 0
    active_parameters: int = 0
    """Parameters that one token passes through: all but the experts it is not sent to."""
    export: str = ""
    """Folder of the exported Hugging Face model."""
    notes: tuple[str, ...] = ()
    """Warnings in words."""

    def to_dict(self) -> dict[str, Any]:
        """Return what summary.json holds."""
        return asdict(self)
