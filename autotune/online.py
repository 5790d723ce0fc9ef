"""The online selector: learns, while a program runs, which configuration is fastest at the load there is.

Each place (operation, dtype, sizes, load class) has an incumbent and at most one duel: challenger and incumbent take
turns, and the ratio of their times is judged pair by pair (evidence.py), so that what slows both down cancels. The
incumbent changes only when the challenger is faster outside noise and by more than 2 %.

- *Budget.* A challenger runs only while the time lost to exploration, with what this run may lose, stays below a share
  of all time. So a selector is never slower than its start by more than the budget.
- *Drift.* One launch in `measure_every` of the incumbent is timed. When its times rise against their own discounted
  mean (CUSUM), what is believed of its rivals is void, here and wherever the operation runs the same configuration, and
  the built-in configuration challenges first.
- *Ageing.* A defeated rival may ask again after `retry_visits`, twice as many after each defeat.
- *Exact mode.* Only arms of the incumbent's numerics class are candidates, so a choice never changes bits.

Nothing here draws randomness or reads a clock of its own: times arrive through `observe`; the random source, and the
clock that stamps what was learned, are given. The same calls give the same decisions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from seedthink.autotune.buckets import Place, bucket, bucket_distance
from seedthink.autotune.evidence import CLEARLY_WORSE, Verdict, judge
from seedthink.autotune.watching import Drift, Level
from seedthink.kernels.selector import BUILT_IN, Config, Key

Expected = Callable[[Key, Config], float]
Arms = Callable[[Key], Sequence[Config]]
Note = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How carefully the selector explores. Shares are of the operation's time; visits are steps at one place."""

    budget: float = 0.005  # share of time that exploration may lose
    measure_every: int = 16  # one launch in so many of the incumbent is timed
    settle_visits: int = 32  # visits at a place before its first duel, and after each one
    retry_visits: int = 4096  # before a defeated rival asks again
    unknown_loss: float = 0.3  # what a challenger that nobody knows may lose, as a share of the incumbent's time
    near_tokens: float = 0.25  # octaves that the two measurements of a pair may lie apart


class Decision(NamedTuple):
    """What to run now, and whether to time it and tell `observe`."""

    config: Config
    timed: bool


@dataclass(slots=True)
class Belief:
    """What is known of an arm at a place: log of its time over the built-in one's, from how many pairs."""

    log_ratio: float = 0.0
    pairs: int = 0
    defeats: int = 0
    again: int = 0  # the visit from which on it may challenge
    at: float = 0.0  # when it was learned, seconds since 1970


@dataclass(slots=True)
class Duel:
    """A challenger against the incumbent. `half` holds the first measurement of the pair under way."""

    challenger: Config
    risk: float  # what its next run may lose, as a share of the incumbent's time
    log_ratios: list[float] = field(default_factory=list)
    half: tuple[bool, float, int] | None = None  # (of the challenger, log of normalised seconds, tokens)
    waited: int = 0  # visits at other loads since then
    challenger_next: bool = False


@dataclass(slots=True)
class Site:
    """The state of one place."""

    place: Place
    arms: dict[str, Config]
    incumbent: Config
    visits: int = 0
    quiet_until: int = 0
    since: float = 0.0  # when the incumbent was adopted
    duel: Duel | None = None
    beliefs: dict[str, Belief] = field(default_factory=dict)
    level: Level = field(default_factory=Level)
    drift: Drift = field(default_factory=Drift)

    def belief(self, name: str) -> Belief:
        """What is known of an arm."""
        return self.beliefs.setdefault(name, Belief())


def _loss(log_ratio: float) -> float:
    """What an arm with this log ratio loses, as a share of the incumbent's time; never taken for nothing."""
    return math.expm1(min(3.0, max(CLEARLY_WORSE, log_ratio)))


class OnlineSelector:
    """See the module's docstring. Not thread-safe: one step at a time asks and observes."""

    def __init__(
        self,
        arms: Arms,
        expected: Expected,
        matters: Mapping[str, tuple[str, ...]],
        *,
        start: Callable[[Key], Config] = lambda key: BUILT_IN,
        learned: Mapping[str, Mapping[str, Any]] | None = None,
        policy: Policy | None = None,
        exact: bool = True,
        source: random.Random | None = None,
        clock: Callable[[], float] = time.time,
        note: Note = lambda event: None,
    ) -> None:
        """arms(key): candidates at a place. expected(key, config): predicted seconds, of which only ratios count.

        matters: the fields of `Load`, besides tokens, that each operation depends on. start(key): the first incumbent
        (the table's choice). learned: what `state` returned in an earlier process. note: called with each decision.
        """
        self.policy = policy or Policy()
        self.frozen = False
        self.total_seconds = self.explored_seconds = 0.0
        self._arms, self._expected, self._matters, self._start = arms, expected, matters, start
        self._learned = dict(learned or {})
        self._exact, self._source, self._clock, self._note = exact, source or random.Random(0), clock, note
        self._sites: dict[tuple[Any, ...], Site] = {}

    # What a step calls

    def choose(self, key: Key) -> Config:
        """The configuration to run now (the `Selector` protocol)."""
        return self.decide(key).config

    def decide(self, key: Key) -> Decision:
        """The configuration to run now, and whether to time it. Once a step for each operation."""
        site = self.site(key)
        site.visits += 1
        self.total_seconds += site.level.seconds
        if self.frozen:
            return Decision(site.incumbent, False)
        if site.duel is not None:
            return self._duelling(site, site.duel, key.load.tokens)
        if site.visits % self.policy.measure_every == 0:
            if site.visits >= site.quiet_until:
                self._challenge(site, key)
            return Decision(site.incumbent, True)
        return Decision(site.incumbent, False)

    def observe(self, key: Key, config: Config, seconds: float) -> None:
        """What one timed launch took. It may be told late, and of a configuration that is no longer chosen."""
        if seconds <= 0.0 or self.frozen:
            return
        site = self.site(key)
        usual = max(1e-12, self._expected(key, BUILT_IN))
        normalised = math.log(seconds / usual)
        if config.name == site.incumbent.name:
            site.level.add(normalised, seconds)
            if site.drift.add(normalised):
                self._drifted(site)
                return
        elif site.level.known:
            lost = seconds - math.exp(site.level.mean) * usual
            self.explored_seconds += max(0.0, lost)
        if site.duel is not None:
            self._pair(site, site.duel, config, normalised, key.load.tokens)

    def freeze(self) -> None:
        """Stop to explore and to learn: the same answers from now on (captured graphs, runs to be repeated)."""
        self.frozen = True
        for site in self._sites.values():
            site.duel = None

    # What persists

    def state(self) -> dict[str, dict[str, Any]]:
        """What was learned, by place, as JSON can hold it: the incumbent, and what is known of each arm."""
        found = {place: dict(record) for place, record in self._learned.items()}
        for site in self._sites.values():
            known = {name: [b.log_ratio, b.pairs, b.at] for name, b in sorted(site.beliefs.items()) if b.pairs}
            if known:
                found[str(site.place)] = {"incumbent": site.incumbent.name, "since": site.since, "arms": known}
        return found

    def sites(self) -> Iterator[Site]:
        """The places seen so far, for reports and tests."""
        return iter(self._sites.values())

    def site(self, key: Key) -> Site:
        """The state at the place of a key; made at the first question."""
        op, dtype, dims, load = key
        here = bucket(load, self._matters.get(op, ()))
        found = self._sites.get((op, dtype, dims, here))
        if found is None:
            found = self._sites[op, dtype, dims, here] = self._open(Place(op, dtype, dims, here), key)
        return found

    def _open(self, place: Place, key: Key) -> Site:
        first = self._start(key)
        arms = {config.name: config for config in (first, BUILT_IN, *self._arms(key))}
        if self._exact:
            arms = {name: arm for name, arm in arms.items() if arm.numerics == first.numerics}
        site = Site(place, arms, first, quiet_until=self.policy.settle_visits)
        known = self._learned.get(str(place), {})
        for name, (log_ratio, pairs, at) in known.get("arms", {}).items():
            if name in arms:
                site.beliefs[name] = Belief(float(log_ratio), int(pairs), 1, self.policy.retry_visits, float(at))
        if known.get("incumbent") in arms:
            site.incumbent, site.since = arms[known["incumbent"]], float(known["since"])
        return site

    # Duels

    def _challenge(self, site: Site, key: Key) -> None:
        if not site.level.known:
            return
        rivals = [
            (self._outlook(site, key, arm), self._source.random(), arm)
            for arm in site.arms.values()
            if arm.name != site.incumbent.name and site.belief(arm.name).again <= site.visits
        ]
        if rivals:
            outlook, _, challenger = min(rivals, key=lambda rival: rival[:2])
            risk = max(self.policy.unknown_loss, _loss(outlook))
            site.duel = Duel(challenger, risk, challenger_next=self._source.random() < 0.5)

    def _outlook(self, site: Site, key: Key, arm: Config) -> float:
        """Log of an arm's time over the incumbent's, as well as it is known: here, next door, or by the cost model."""
        mine, its = site.beliefs.get(site.incumbent.name, Belief()), site.beliefs.get(arm.name)
        if its is not None and its.pairs:
            return its.log_ratio - mine.log_ratio
        near = self._neighbour(site, arm.name)
        if near is not None:
            theirs = near.beliefs.get(site.incumbent.name, Belief())
            return near.beliefs[arm.name].log_ratio - theirs.log_ratio
        mine_expected, its_expected = self._expected(key, site.incumbent), self._expected(key, arm)
        return math.log(max(1e-12, its_expected) / max(1e-12, mine_expected))

    def _neighbour(self, site: Site, arm: str) -> Site | None:
        """The nearest place of the operation, at most two octaves away, where this arm has fought."""
        others = [
            (bucket_distance(site.place.bucket, other.place.bucket), other.visits, other)
            for other in self._sites.values()
            if other.place[:3] == site.place[:3] and other is not site and arm in other.beliefs
        ]
        near = [entry for entry in others if entry[0] <= 2 and entry[2].beliefs[arm].pairs]
        return min(near, key=lambda entry: entry[:2])[2] if near else None

    def _affordable(self, site: Site, duel: Duel) -> bool:
        return self.explored_seconds + duel.risk * site.level.seconds <= self.policy.budget * self.total_seconds

    def _duelling(self, site: Site, duel: Duel, tokens: int) -> Decision:
        elsewhere = duel.half is not None and not self._near(duel.half[2], tokens)
        if elsewhere:  # the other half of the pair waits for the load of the first, but not for ever
            duel.waited += 1
            if duel.waited > self.policy.settle_visits:
                duel.half, duel.challenger_next = None, False
        if elsewhere or (duel.challenger_next and not self._affordable(site, duel)):
            return Decision(site.incumbent, site.visits % self.policy.measure_every == 0)
        if not duel.challenger_next:
            return Decision(site.incumbent, True)
        return Decision(duel.challenger, True)

    def _pair(self, site: Site, duel: Duel, config: Config, normalised: float, tokens: int) -> None:
        challenger = config.name == duel.challenger.name
        if not challenger and config.name != site.incumbent.name:
            return
        half = duel.half
        if half is None or half[0] == challenger:
            duel.half, duel.waited, duel.challenger_next = (challenger, normalised, tokens), 0, not challenger
            return
        if not self._near(half[2], tokens):
            return
        duel.log_ratios.append(normalised - half[1] if challenger else half[1] - normalised)
        duel.half, duel.risk = None, _loss(max(duel.log_ratios[-3:]))
        duel.challenger_next = self._source.random() < 0.5
        verdict = judge(duel.log_ratios)
        if verdict is not Verdict.OPEN:
            self._settle(site, duel, verdict)

    def _near(self, tokens: int, others: int) -> bool:
        return abs(math.log2(max(1, tokens) / max(1, others))) <= self.policy.near_tokens

    def _settle(self, site: Site, duel: Duel, verdict: Verdict) -> None:
        ordered = sorted(duel.log_ratios)
        middle = ordered[len(ordered) // 2]
        belief, base = site.belief(duel.challenger.name), site.belief(site.incumbent.name)
        belief.log_ratio, belief.pairs, belief.at = base.log_ratio + middle, len(ordered), self._clock()
        site.duel, site.quiet_until = None, site.visits + self.policy.settle_visits
        event = "keep"
        before = site.incumbent
        if verdict is Verdict.FASTER:
            event, site.incumbent, site.since = "adopt", duel.challenger, belief.at
            base.again = site.visits + self.policy.retry_visits
            site.level.shift(middle)
            site.drift.restart(site.level.mean)
        else:
            belief.again = site.visits + (self.policy.retry_visits << min(belief.defeats, 6))
            belief.defeats += 1
        self._tell(event, site, duel.challenger.name, before.name, middle, len(ordered))

    # Drift

    def _drifted(self, site: Site) -> None:
        """The incumbent got slower: nothing known of its rivals holds, here and where the operation runs the same."""
        name = site.incumbent.name
        for other in self._sites.values():
            if other.place[:3] != site.place[:3] or other.incumbent.name != name:
                continue
            for belief in other.beliefs.values():
                belief.pairs, belief.defeats, belief.again = 0, 0, 0
            rival = other.arms.get(BUILT_IN.name) if name != BUILT_IN.name else self._runner_up(other)
            other.duel = Duel(rival, self.policy.unknown_loss) if rival is not None else None
            other.quiet_until = other.visits
            other.level.restart()
            other.drift.restart(None)
        self._tell("drift", site, name, name, 0.0, 0)

    def _runner_up(self, site: Site) -> Config | None:
        rivals = [name for name in site.beliefs if name != site.incumbent.name and name in site.arms]
        best = min(rivals, key=lambda name: site.beliefs[name].log_ratio, default=None)
        return site.arms[best] if best is not None else None

    def _tell(self, event: str, site: Site, challenger: str, incumbent: str, log_ratio: float, pairs: int) -> None:
        self._note(
            {
                "event": event,
                "place": str(site.place),
                "visit": site.visits,
                "challenger": challenger,
                "incumbent": incumbent,
                "gain": round(math.expm1(-log_ratio), 4),
                "pairs": pairs,
                "explored": self.explored_seconds / self.total_seconds if self.total_seconds else 0.0,
            }
        )
