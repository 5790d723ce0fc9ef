"""Collection with a generator and a judge of wood: order, refills, failures, deadlines."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedthink.errors import RunError
from seedthink.rollout.collect import Collected, CollectSettings, collect
from seedthink.rollout.requests import request_seed
from seedthink.telemetry.metrics import reduce
from seedthink.types import Completion, Finish, Judgement, Prompt, Request, Rollout, SamplingParams, Verdict


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class WoodenGenerator:
    """Answers with its seed as the only content, in an order of its own; `silent` ids never come back."""

    def __init__(self, clock: Clock, order: int = 0, silent: Sequence[str] = (), aborted: Sequence[str] = ()) -> None:
        self.clock, self.random, self.silent, self.refused = clock, random.Random(order), set(silent), set(aborted)
        self.waiting: list[Request] = []
        self.seen: list[Request] = []
        self.aborted: list[str] = []

    def submit(self, requests: Sequence[Request]) -> None:
        self.waiting += requests
        self.seen += requests

    def collect(self, timeout: float) -> list[Completion]:
        ready = [r for r in self.waiting if r.id not in self.silent]
        if not ready:
            self.clock.now += timeout
            return []
        self.clock.now += 0.001
        taken = self.random.sample(ready, self.random.randint(1, len(ready)))
        self.waiting = [r for r in self.waiting if all(r is not t for t in taken)]
        return [self._complete(r) for r in taken]

    def abort(self, ids: Sequence[str]) -> None:
        self.aborted += ids

    def _complete(self, request: Request) -> Completion:
        length = 1 + request.seed % 5
        return Completion(
            id=request.id,
            tokens_T=np.full(length, request.seed % 7, np.int32),
            logprob_T=np.zeros(length, np.float32),
            version_T=np.zeros(length, np.int32),
            finish=Finish.ABORTED if request.id in self.refused else Finish.STOP,
            text="",
        )


class WoodenJudge:
    """Scores member i of a prompt as the prompt's reference says: a list with a number, "error" or "timeout" each."""

    def __init__(self, clock: Clock, order: int = 0, silent: Sequence[str] = ()) -> None:
        self.clock, self.random, self.silent = clock, random.Random(order), set(silent)
        self.waiting: list[Rollout] = []

    def submit(self, rollouts: Sequence[Rollout]) -> None:
        self.waiting += rollouts

    def collect(self, timeout: float) -> list[tuple[Rollout, Judgement]]:
        ready = [r for r in self.waiting if r.completion.id not in self.silent]
        taken = self.random.sample(ready, self.random.randint(0, len(ready)))
        self.clock.now += 0.001 if taken else timeout
        self.waiting = [r for r in self.waiting if all(r is not t for t in taken)]
        return [(r, self._judge(r)) for r in taken]

    def _judge(self, rollout: Rollout) -> Judgement:
        score = rollout.prompt.reference["scores"][rollout.index]
        if isinstance(score, str):
            return Judgement(Verdict(score), 0.0)
        return Judgement(Verdict.RIGHT if score == 1 else Verdict.WRONG, float(score))


class Source:
    """Prompts in order; `scores` has one list per prompt."""

    def __init__(self, *scores: Sequence[float | str], ids: Sequence[str] = ()) -> None:
        names = list(ids) or [f"p{i}" for i in range(len(scores))]
        self.prompts = [
            Prompt(id=name, family="test", text="", tokens_T=np.arange(3, dtype=np.int32), reference={"scores": s})
            for name, s in zip(names, scores, strict=True)
        ]
        self.given = 0

    def __call__(self, n: int) -> list[Prompt]:
        taken = self.prompts[self.given : self.given + n]
        self.given += len(taken)
        return taken


def run(source: Source, order: int = 0, clock: Clock | None = None, generator=None, judge=None, **changes) -> Collected:
    clock = clock or Clock()
    wanted = {"prompts": 2, "group_size": 2, "params": SamplingParams(), "step": 7} | changes
    return collect(
        source,
        generator or WoodenGenerator(clock, order),
        judge or WoodenJudge(clock, order + 1),
        lambda rollout, judgement: 2 * judgement.score - 1,
        CollectSettings(**wanted),
        clock,
    )


def names(found: Collected) -> list[str]:
    return [group[0].rollout.prompt.id for group in found.groups]


def test_groups_come_back_in_the_order_drawn_with_members_by_index_and_rewards() -> None:
    found = run(Source([1, 0], [0, 1]), order=5)
    assert names(found) == ["p0", "p1"]
    assert [[s.rollout.index for s in group] for group in found.groups] == [[0, 1], [0, 1]]
    assert [[s.reward for s in group] for group in found.groups] == [[1.0, -1.0], [-1.0, 1.0]]
    assert [[s.rollout.completion.id for s in group] for group in found.groups] == [
        ["7-0/0", "7-0/1"],
        ["7-1/0", "7-1/1"],
    ]


def test_without_dynamic_sampling_groups_of_equal_scores_stay() -> None:
    found = run(Source([1, 1], [0, 0], [1, 0]))
    assert names(found) == ["p0", "p1"]
    assert (found.statistics.all_right, found.statistics.all_wrong, found.statistics.refills) == (1, 1, 0)


def test_useless_groups_are_replaced_until_enough_are_useful() -> None:
    source = Source([1, 1], [0, 1], [0, 0], [1, 0], [1, 0])
    found = run(source, dynamic_sampling=True, max_refills=4)
    assert names(found) == ["p1", "p3"]
    assert source.given == 4
    seen = found.statistics
    assert (seen.groups, seen.kept, seen.refills, seen.short) == (4, 2, 2, 0)
    assert (seen.all_right, seen.all_wrong, seen.all_equal) == (1, 1, 2)


def test_refills_end_at_their_limit_and_say_what_is_missing() -> None:
    source = Source(*[[0, 0]] * 50)
    found = run(source, dynamic_sampling=True, max_refills=2)
    assert found.groups == []
    assert source.given == 2 * (1 + 2)
    assert found.statistics.short == 2


def test_an_exhausted_source_ends_the_refills() -> None:
    found = run(Source([1, 0], [0, 0], [1, 1]), dynamic_sampling=True, max_refills=9)
    assert names(found) == ["p0"]
    assert (found.statistics.groups, found.statistics.short) == (3, 1)


@settings(max_examples=60, deadline=None)
@given(
    useful=st.lists(st.booleans(), min_size=1, max_size=14),
    wanted=st.integers(1, 5),
    refills=st.integers(0, 3),
    order=st.integers(0, 2**16),
)
def test_what_is_drawn_and_kept_does_not_depend_on_the_order_of_arrival(
    useful: list[bool], wanted: int, refills: int, order: int
) -> None:
    scores = [[1, 0] if u else [1, 1] for u in useful]
    source = Source(*scores)
    found = run(source, order, prompts=wanted, dynamic_sampling=True, max_refills=refills)
    limit = min(len(useful), wanted * (1 + refills))
    drawn = next((n for n in range(wanted, limit) if sum(useful[:n]) >= wanted), limit)
    assert source.given == drawn
    assert names(found) == [f"p{i}" for i in range(drawn) if useful[i]]
    again = run(Source(*scores), order + 1, prompts=wanted, dynamic_sampling=True, max_refills=refills)
    content = [[s.rollout.completion.tokens_T.tobytes() for s in group] for group in found.groups]
    assert content == [[s.rollout.completion.tokens_T.tobytes() for s in group] for group in again.groups]


def test_failed_verifications_are_counted_and_left_out_never_scored_zero() -> None:
    found = run(Source([1, "error", 0], ["timeout", 1, "error"]), group_size=3)
    assert [[s.rollout.index for s in group] for group in found.groups] == [[0, 2], [1]]
    assert all(s.judgement.verdict in (Verdict.RIGHT, Verdict.WRONG) for group in found.groups for s in group)
    seen = reduce(found.statistics.metrics())
    assert (seen["verifier/errors"], seen["verifier/timeouts"]) == (2, 1)
    assert seen["critic/score/mean"] == pytest.approx(2 / 3)


def test_a_failed_verification_can_make_a_group_useless_and_it_is_replaced() -> None:
    found = run(Source([1, "error"], [1, 0], [0, 1]), dynamic_sampling=True, max_refills=1)
    assert names(found) == ["p1", "p2"]


def test_a_group_without_any_verdict_is_left_out() -> None:
    found = run(Source(["error", "error"], [1, 0]))
    assert names(found) == ["p1"]
    assert found.statistics.short == 1


def test_aborted_answers_are_counted_and_left_out() -> None:
    clock = Clock()
    found = run(Source([1, 0], [1, 0]), clock=clock, generator=WoodenGenerator(clock, aborted=["7-0/1"]))
    assert [len(group) for group in found.groups] == [1, 2]
    assert found.statistics.aborted == 1
    assert reduce(found.statistics.metrics())["response/aborted_ratio"] == pytest.approx(0.25)


def test_a_silent_generator_ends_the_wait_with_a_message_and_is_told_to_give_up() -> None:
    clock = Clock()
    generator = WoodenGenerator(clock, silent=["7-1/0"])
    with pytest.raises(
        RunError, match=r"step 7: .* waits for the generator, which owes 1 completions .* 4\d s \(limit 40 s\)"
    ):
        run(Source([1, 0], [1, 0]), clock=clock, generator=generator, generate_seconds=40.0)
    assert generator.aborted == ["7-1/0"]
    assert 40 < clock.now < 45


def test_a_hanging_judge_ends_the_wait_with_a_message() -> None:
    clock = Clock()
    judge = WoodenJudge(clock, silent=["7-0/0", "7-0/1"])
    with pytest.raises(RunError, match=r"waits for the judge, which owes 2 verdicts .*reward\.timeout_seconds"):
        run(Source([1, 0], [1, 0]), clock=clock, judge=judge, judge_seconds=5.0)
    assert 5 < clock.now < 10


def test_a_deadline_runs_only_while_its_side_owes_something() -> None:
    class Hesitant(WoodenGenerator):
        """Has nothing at the first call after every submission."""

        def submit(self, requests: Sequence[Request]) -> None:
            super().submit(requests)
            self.fresh = True

        def collect(self, timeout: float) -> list[Completion]:
            self.fresh, fresh = False, self.fresh
            if fresh:
                self.clock.now += 1.0
                return []
            return super().collect(timeout)

    class Slow(WoodenJudge):
        def collect(self, timeout: float) -> list[tuple[Rollout, Judgement]]:
            self.clock.now += 10.0  # beyond the generator's deadline, within its own
            return super().collect(timeout)

    clock = Clock()
    source = Source([1, 1], [1, 0], [0, 1])
    generator, judge = Hesitant(clock), Slow(clock, order=3)
    limits = {"dynamic_sampling": True, "max_refills": 1, "generate_seconds": 8.0, "judge_seconds": 100.0}
    found = run(source, clock=clock, generator=generator, judge=judge, **limits)
    assert names(found) == ["p1", "p2"]
    assert found.statistics.judge_seconds > 20


def test_the_judges_deadline_does_not_run_while_generation_is_slow() -> None:
    class Sluggish(WoodenGenerator):
        def collect(self, timeout: float) -> list[Completion]:
            self.clock.now += 30.0
            return super().collect(timeout)

    class Hesitant(WoodenJudge):
        calls = 0

        def collect(self, timeout: float) -> list[tuple[Rollout, Judgement]]:
            self.calls += 1
            self.clock.now += 1.0
            return super().collect(timeout) if self.calls % 2 == 0 else []

    clock = Clock()
    found = run(
        Source([1, 0]),
        clock=clock,
        prompts=1,
        generator=Sluggish(clock),
        judge=Hesitant(clock),
        judge_seconds=25.0,
        generate_seconds=100.0,
    )
    assert names(found) == ["p0"]


def test_seeds_depend_on_run_step_prompt_and_member_only() -> None:
    clock = Clock()
    generator = WoodenGenerator(clock)
    run(Source([1, 0], [1, 0]), clock=clock, generator=generator, run_seed=3)
    assert [r.seed for r in generator.seen] == [request_seed(3, 7, p, m) for p in ("p0", "p1") for m in (0, 1)]
    keys = [(3, 7, "p", 0), (4, 7, "p", 0), (3, 8, "p", 0), (3, 7, "q", 0), (3, 7, "p", 1)]
    assert len({request_seed(*key) for key in keys}) == 5
    assert all(0 <= request_seed(*key) < 2**63 for key in keys)
    assert request_seed(0, 0, "p", 0) == 5277889753452197020  # as `printf "0|0|p|0" | b2sum -l 64` says


def test_a_prompt_drawn_twice_in_a_step_gets_fresh_seeds() -> None:
    clock = Clock()
    generator = WoodenGenerator(clock)
    run(Source([1, 0], [1, 0], ids=["same", "same"]), clock=clock, generator=generator)
    assert len({r.seed for r in generator.seen}) == 4


def test_statistics_add_up() -> None:
    clock = Clock()
    generator = WoodenGenerator(clock)
    found = run(Source([1, 0], [0, 0], [1, 0]), clock=clock, generator=generator, dynamic_sampling=True, max_refills=1)
    lengths = [1 + r.seed % 5 for r in generator.seen]
    seen = reduce(found.statistics.metrics())
    assert seen["response_length/mean"] == pytest.approx(sum(lengths) / 6)
    assert seen["response_length/max"] == max(lengths)
    assert seen["rollout/generated_tokens"] == sum(lengths)
    assert seen["prompt_length/mean"] == 3
    assert seen["critic/score/mean"] == pytest.approx(2 / 6)
    assert (seen["rollout/groups"], seen["rollout/groups_kept"], seen["rollout/refills"]) == (3, 2, 1)
    assert seen["rollout/groups_all_wrong"] == pytest.approx(1 / 3)
    assert seen["timing_s/gen"] > 0
    assert seen["timing_s/gen"] + seen["timing_s/reward"] == pytest.approx(clock.now)
