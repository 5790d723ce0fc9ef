"""One step's experience: prompts out, judged groups back, refilled until enough of them carry a signal.

A group is useful when its scores differ (DAPO's dynamic sampling, arXiv 2503.14476): equal scores give no gradient. A
useless group is replaced by the next prompt at once, while the others still generate. How many prompts are drawn is the
smallest n whose first n groups hold `prompts` useful ones, so the outcome depends on what the answers say and never on
the order in which they arrive. Failed verifications are counted and left out, never scored 0.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from seedthink.errors import RunError
from seedthink.rollout.requests import group_requests
from seedthink.rollout.statistics import Statistics
from seedthink.types import (
    Completion,
    Finish,
    Generator,
    Judge,
    Judgement,
    Prompt,
    Rollout,
    SamplingParams,
    Scored,
    Verdict,
)

PromptSource = Callable[[int], Sequence[Prompt]]
Reward = Callable[[Rollout, Judgement], float]

_SHORT_WAIT = 0.02  # seconds on the generator while verdicts are due too, so that neither waits long for the other
_LONG_WAIT = 1.0  # seconds on the only side that owes something, so that deadlines are noticed


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectSettings:
    """What one step asks for.

    `prompts` useful groups of `group_size` answers. With `dynamic_sampling`, up to `max_refills * prompts` more prompts
    replace groups of equal scores; without it every group with a verdict is kept. `generate_seconds` and
    `judge_seconds` bound the time without any news from the side that owes some.
    """

    prompts: int
    group_size: int
    params: SamplingParams
    run_seed: int = 0
    step: int = 0
    dynamic_sampling: bool = False
    max_refills: int = 0
    generate_seconds: float = 600.0
    judge_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Collected:
    """Useful groups in the order their prompts were drawn, members by index; and what the collection saw."""

    groups: list[list[Scored]]
    statistics: Statistics


def collect(
    source: PromptSource,
    generator: Generator,
    judge: Judge,
    reward: Reward,
    settings: CollectSettings,
    clock: Callable[[], float] = time.monotonic,
) -> Collected:
    """Gathers one step's groups. `source(n)` gives the next n prompts; fewer mean that it is exhausted.

    RunError when generator or judge stay silent past their deadline; what was still generating is aborted first. Fewer
    than `prompts` groups come back, and `statistics.short` says how many are missing, when refills or prompts run out.
    """
    collection = _Collection(source, generator, judge, settings, clock)
    collection.draw(settings.prompts)
    try:
        while collection.generating or collection.judging:
            collection.wait()
    except BaseException:
        generator.abort(sorted(collection.generating))
        raise
    return collection.result(reward)


@dataclass(slots=True)
class _Group:
    """A prompt's answers so far; `due` have neither verdict nor failure."""

    prompt: Prompt
    due: int
    answers: dict[int, tuple[Rollout, Judgement]] = field(default_factory=dict)

    def scores(self) -> set[float]:
        return {judgement.score for _, judgement in self.answers.values()}


class _Collection:
    """The state of one `collect`: what is under way, group by group."""

    def __init__(
        self,
        source: PromptSource,
        generator: Generator,
        judge: Judge,
        settings: CollectSettings,
        clock: Callable[[], float],
    ) -> None:
        self.source, self.generator, self.judge, self.settings, self.clock = source, generator, judge, settings, clock
        self.groups: dict[str, _Group] = {}
        self.generating: dict[str, tuple[str, int]] = {}
        self.judging: set[tuple[str, int]] = set()
        self.drawn: Counter[str] = Counter()
        self.exhausted = False
        self.statistics = Statistics()
        self.news_from = {"generator": clock(), "judge": clock()}

    def draw(self, count: int) -> None:
        """Asks for `count` more prompts and sends out their groups."""
        settings, prompts = self.settings, self.source(count)
        self.exhausted = len(prompts) < count
        for prompt in prompts:
            group = f"{settings.step}-{len(self.groups)}"
            requests = group_requests(
                prompt,
                group,
                settings.params,
                size=settings.group_size,
                run_seed=settings.run_seed,
                step=settings.step,
                repeat=self.drawn[prompt.id],
            )
            self.drawn[prompt.id] += 1
            self.groups[group] = _Group(prompt, settings.group_size)
            if not self.generating:
                self.news_from["generator"] = self.clock()
            self.generating |= {request.id: (group, index) for index, request in enumerate(requests)}
            self.generator.submit(requests)

    def wait(self) -> None:
        """Takes what generator and judge have, waiting a little; RunError past a deadline."""
        if self.generating:
            start = self.clock()
            arrived = self.generator.collect(_SHORT_WAIT if self.judging else _LONG_WAIT)
            self.statistics.generate_seconds += self.clock() - start
            self._take_completions(arrived)
            self._check("generator", len(self.generating), self.settings.generate_seconds, bool(arrived))
        if self.judging:
            start = self.clock()
            judged = self.judge.collect(0.0 if self.generating else _LONG_WAIT)
            self.statistics.judge_seconds += self.clock() - start
            self._take_judgements(judged)
            self._check("judge", len(self.judging), self.settings.judge_seconds, bool(judged))

    def result(self, reward: Reward) -> Collected:
        """Useful groups, rewarded; closes the statistics."""
        statistics, groups = self.statistics, []
        statistics.groups = len(self.groups)
        statistics.refills = max(0, len(self.groups) - self.settings.prompts)
        for group in self.groups.values():
            verdicts = {judgement.verdict for _, judgement in group.answers.values()}
            if group.answers and len(group.scores()) == 1:
                statistics.all_equal += 1
                statistics.all_right += verdicts == {Verdict.RIGHT}
                statistics.all_wrong += verdicts == {Verdict.WRONG}
            if self._useful(group):
                answers = [group.answers[index] for index in sorted(group.answers)]
                groups.append([Scored(rollout, found, reward(rollout, found)) for rollout, found in answers])
        statistics.kept, statistics.short = len(groups), max(0, self.settings.prompts - len(groups))
        return Collected(groups, statistics)

    def _take_completions(self, arrived: Sequence[Completion]) -> None:
        rollouts = []
        for completion in arrived:
            if completion.id not in self.generating:
                continue  # an earlier, interrupted collection's
            name, index = self.generating.pop(completion.id)
            if completion.finish is Finish.ABORTED:
                self.statistics.aborted += 1
                self._settle(name)
            else:
                rollouts.append(Rollout(self.groups[name].prompt, completion, name, index))
        if rollouts:
            if not self.judging:
                self.news_from["judge"] = self.clock()
            self.judging |= {(rollout.group, rollout.index) for rollout in rollouts}
            self.judge.submit(rollouts)

    def _take_judgements(self, judged: Sequence[tuple[Rollout, Judgement]]) -> None:
        for rollout, judgement in judged:
            if (rollout.group, rollout.index) not in self.judging:
                continue
            self.judging.remove((rollout.group, rollout.index))
            self.statistics.note(rollout, judgement)
            if judgement.verdict in (Verdict.RIGHT, Verdict.WRONG):
                self.groups[rollout.group].answers[rollout.index] = (rollout, judgement)
            self._settle(rollout.group)

    def _settle(self, name: str) -> None:
        """One answer of a group is done; a group that ends useless is replaced while the budget lasts."""
        group, settings = self.groups[name], self.settings
        group.due -= 1
        budget = settings.prompts * (1 + settings.max_refills)
        if group.due or self._useful(group) or not settings.dynamic_sampling:
            return
        if not self.exhausted and len(self.groups) < budget:
            self.draw(1)

    def _useful(self, group: _Group) -> bool:
        return len(group.scores()) > 1 if self.settings.dynamic_sampling else bool(group.answers)

    def _check(self, owner: str, owed: int, limit: float, news: bool) -> None:
        now = self.clock()
        if news or not owed:
            self.news_from[owner] = now
        silent = now - self.news_from[owner]
        if silent > limit:
            what = "completions" if owner == "generator" else "verdicts"
            key = "rollout.deadline_seconds" if owner == "generator" else "reward.timeout_seconds"
            raise RunError(
                f"step {self.settings.step}: rollout collection waits for the {owner}, which owes {owed} {what} and "
                f"has sent none for {silent:.0f} s (limit {limit:.0f} s); look at the {owner}'s log, or raise {key}"
            )
