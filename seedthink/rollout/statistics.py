"""What one collection saw, as numbers that reduce exactly over steps and ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

from seedthink.telemetry.metrics import Max, Mean, Metric, Sum
from seedthink.types import Finish, Judgement, Rollout, Verdict


@dataclass(slots=True)
class Statistics:
    """Counts of one `collect`. Scores and lengths cover every judged answer, those of dropped groups included.

    Seconds are spent inside the generator's and the judge's calls; `short` is how many useful groups are missing.
    """

    groups: int = 0
    kept: int = 0
    all_right: int = 0
    all_wrong: int = 0
    all_equal: int = 0
    refills: int = 0
    short: int = 0
    verifier_errors: int = 0
    verifier_timeouts: int = 0
    aborted: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generate_seconds: float = 0.0
    judge_seconds: float = 0.0
    lengths: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def note(self, rollout: Rollout, judgement: Judgement) -> None:
        """Counts one judged answer."""
        completion = rollout.completion
        self.verifier_errors += judgement.verdict is Verdict.ERROR
        self.verifier_timeouts += judgement.verdict is Verdict.TIMEOUT
        self.truncated += completion.finish is Finish.LENGTH
        self.prompt_tokens += len(rollout.prompt.tokens_T)
        self.cached_tokens += completion.cached_tokens
        self.lengths.append(len(completion.tokens_T))
        if judgement.verdict in (Verdict.RIGHT, Verdict.WRONG):
            self.scores.append(judgement.score)

    def metrics(self) -> dict[str, Metric]:
        """Named metrics; means over no answer are nan when reduced."""
        answers = len(self.lengths)
        return {
            "critic/score/mean": Mean(float(sum(self.scores)), len(self.scores)),
            "response_length/mean": Mean(float(sum(self.lengths)), answers),
            "response_length/max": Max(float(max(self.lengths, default=0))),
            "response_length/clip_ratio": Mean(float(self.truncated), answers),
            "prompt_length/mean": Mean(float(self.prompt_tokens), answers),
            "rollout/cached_tokens": Sum(float(self.cached_tokens)),
            "rollout/generated_tokens": Sum(float(sum(self.lengths))),
            "rollout/groups": Sum(float(self.groups)),
            "rollout/groups_kept": Sum(float(self.kept)),
            "rollout/groups_all_right": Mean(float(self.all_right), self.groups),
            "rollout/groups_all_wrong": Mean(float(self.all_wrong), self.groups),
            "rollout/groups_all_equal": Mean(float(self.all_equal), self.groups),
            "rollout/refills": Sum(float(self.refills)),
            "rollout/groups_short": Sum(float(self.short)),
            "response/aborted_ratio": Mean(float(self.aborted), answers + self.aborted),
            "verifier/errors": Sum(float(self.verifier_errors)),
            "verifier/timeouts": Sum(float(self.verifier_timeouts)),
            "timing_s/gen": Sum(self.generate_seconds),
            "timing_s/reward": Sum(self.judge_seconds),
        }
