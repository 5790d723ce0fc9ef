"""The judge without processes: the same verifiers, called in `submit`. For cheap, trusted rules, and for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seedthink.rewards.verifiers import Verifier, load_verifier, prompt_dict, run_verifier, verifier_name
from seedthink.rewards.watch import VerdictWatch
from seedthink.types import Judgement, Rollout


class InlineJudge:
    """A `seedthink.types.Judge`. It cannot stop a verifier that hangs: `JudgePool` can."""

    def __init__(self, verifiers: Mapping[str, str] | None = None, *, error_limit: float = 0.5) -> None:
        """`verifiers` maps a family (or "*") to a built-in's name or `module:function`, as in `JudgePool`."""
        self._verifiers = dict(verifiers or {})
        self._loaded: dict[str, Verifier] = {}
        self._done: list[tuple[Rollout, Judgement]] = []
        self.watch = VerdictWatch(error_limit)

    def submit(self, rollouts: Sequence[Rollout]) -> None:
        """Judge the rollouts now. Raises `ConfigError` for a family without a verifier or one that does not import."""
        for rollout in rollouts:
            name = verifier_name(rollout.prompt.family, self._verifiers)
            if name not in self._loaded:
                self._loaded[name] = load_verifier(name)
            judgement = run_verifier(self._loaded[name], prompt_dict(rollout), rollout.completion.text)
            self.watch.note(judgement)
            self._done.append((rollout, judgement))

    def collect(self, timeout: float = 0.0) -> Sequence[tuple[Rollout, Judgement]]:
        """Judgements since the last call. Raises `RunError` when most of them are errors."""
        self.watch.check()
        done, self._done = self._done, []
        return done

    @property
    def pending(self) -> int:
        """Rollouts submitted and not yet collected."""
        return len(self._done)

    def close(self) -> None:
        """Nothing to stop."""
