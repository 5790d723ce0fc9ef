"""Scheduling without a model: budgets, pages, groups, order. A driver plays the model and makes tokens 0, 1, 2, ..."""

from __future__ import annotations

import numpy as np

from seedthink.engine.scheduler import Plan, Scheduler
from seedthink.engine.sequence import Generation
from seedthink.types import Request, SamplingParams


def generation(name: str, prompt: int, max_tokens: int = 8, group: str = "", first: int = 0) -> Generation:
    tokens_T = np.arange(first, first + prompt, dtype=np.int32)
    request = Request(name, tokens_T, SamplingParams(max_tokens=max_tokens), seed=0, group=group)
    return Generation(request, tokens_T, np.zeros(0, dtype=np.float32), [(0, 0)])


def work(scheduler: Scheduler, plan: Plan) -> dict[str, int]:
    return {scheduler.table.owner(int(s)).id: int(n) for s, n in zip(plan.slots_B, plan.count_B, strict=True)}


def play(scheduler: Scheduler, plan: Plan) -> list[Generation]:
    """Run a plan as the generator does: one token per row that is fully computed; what ended."""
    table = scheduler.table
    wants_B = table.computed_S[plan.slots_B] + plan.count_B == table.length_S[plan.slots_B]
    slots_R = plan.slots_B[wants_B]
    tokens_R = table.length_S[slots_R]
    table.append(slots_R, tokens_R, np.zeros(len(slots_R), dtype=np.float32))
    scheduler.computed(plan)
    ended = [table.owner(int(slot)) for slot in slots_R if table.length_S[slot] >= table.limit_S[slot]]
    scheduler.remove(ended)
    return ended


def step(scheduler: Scheduler) -> dict[str, int]:
    plan = scheduler.schedule()
    found = work(scheduler, plan)
    play(scheduler, plan)
    return found


def names(generations: object) -> list[str]:
    return [each.id for each in generations]  # type: ignore[attr-defined]


def new(pages: int = 64, budget: int = 64, rows: int = 8, cache: bool = True) -> Scheduler:
    return Scheduler(pages, budget, rows, cache)


def test_a_prompt_is_computed_in_chunks_of_the_budget_and_then_decodes_one_by_one() -> None:
    scheduler = new(budget=16)
    scheduler.add(generation("a", prompt=40))
    assert [step(scheduler) for _ in range(5)] == [{"a": 16}, {"a": 16}, {"a": 8}, {"a": 1}, {"a": 1}]


def test_decoding_rows_come_first_and_prefill_takes_the_rest_of_the_budget() -> None:
    scheduler = new(budget=10)
    scheduler.add(generation("a", prompt=3))
    scheduler.add(generation("b", prompt=15, first=100))
    assert step(scheduler) == {"a": 3, "b": 7}
    assert step(scheduler) == {"a": 1, "b": 8}
    scheduler.add(generation("c", prompt=12, first=200))
    assert step(scheduler) == {"a": 1, "b": 1, "c": 8}


def test_a_budget_below_the_running_rows_serves_the_oldest_first_and_admits_nobody() -> None:
    scheduler = new(budget=2)
    for name, first in (("a", 0), ("b", 100), ("c", 200)):
        scheduler.add(generation(name, prompt=1, first=first, max_tokens=3))
    assert [step(scheduler) for _ in range(4)] == [{"a": 1, "b": 1}] * 3 + [{"c": 1}]


def test_no_more_than_the_rows_run_at_once() -> None:
    scheduler = new(rows=2)
    for number in range(3):
        scheduler.add(generation(str(number), prompt=2, max_tokens=2, first=100 * number))
    assert step(scheduler) == {"0": 2, "1": 2}
    assert step(scheduler) == {"0": 1, "1": 1}
    assert step(scheduler) == {"2": 2}


def test_the_head_of_the_queue_is_not_overtaken_by_a_smaller_request() -> None:
    scheduler = new(pages=4)
    scheduler.add(generation("a", prompt=20, max_tokens=4))
    step(scheduler)
    scheduler.add(generation("long", prompt=40, first=100))
    scheduler.add(generation("short", prompt=2, first=200))
    assert step(scheduler) == {"a": 1}
    assert names(scheduler.waiting) == ["long", "short"]


def test_when_pages_run_out_the_newest_is_pushed_out_and_computed_again_later() -> None:
    scheduler = new(pages=3, cache=False)
    scheduler.add(generation("a", prompt=15, max_tokens=20))
    scheduler.add(generation("b", prompt=1, max_tokens=20, first=100))
    assert step(scheduler) == {"a": 15, "b": 1}
    for _ in range(15):
        step(scheduler)
    assert scheduler.pool.available == 0
    while "b" in work(scheduler, plan := scheduler.schedule()):
        play(scheduler, plan)
    assert names(scheduler.waiting) == ["b"] and scheduler.preemptions == 1
    tokens = scheduler.waiting[0].tokens_T
    play(scheduler, plan)
    while names(scheduler.running) != ["b"]:
        plan = scheduler.schedule()
        found = work(scheduler, plan)
        play(scheduler, plan)
    assert found == {"b": len(tokens)}
    assert np.array_equal(scheduler.table.tokens_SM[scheduler.running[0].slot, : len(tokens)], tokens)


def test_everything_ends_with_all_its_tokens_under_any_pressure() -> None:
    draw = np.random.default_rng(1)
    for cache in (False, True):
        scheduler = new(pages=9, budget=7, rows=5, cache=cache)
        wanted = {}
        for number in range(40):
            prompt, tokens = int(draw.integers(1, 70)), int(draw.integers(1, 70))
            each = generation(str(number), prompt, tokens, group=str(number // 4), first=number // 4)
            wanted[each.id] = np.arange(number // 4, number // 4 + prompt).tolist() + list(
                range(prompt, prompt + tokens)
            )
            scheduler.add(each)
        ended = []
        for _ in range(20_000):
            plan = scheduler.schedule()
            assert 0 < plan.count_B.sum() <= 7 and (plan.count_B > 0).all()
            ended += play(scheduler, plan)
            if len(ended) == 40:
                break
        assert {each.id: each.tokens_T.tolist() for each in ended} == wanted
        assert scheduler.preemptions > 0 and scheduler.pool.used == 0 and not scheduler.followers


def test_group_members_wait_for_the_first_prefill_and_share_its_full_pages() -> None:
    scheduler = new(budget=20)
    for name in ("a", "b", "c"):
        scheduler.add(generation(name, prompt=36, group="g"))
    assert step(scheduler) == {"a": 20}
    assert step(scheduler) == {"a": 16}
    assert step(scheduler) == {"a": 1, "b": 4, "c": 4}
    pages = [scheduler.table.page_SP[each.slot, :3].tolist() for each in scheduler.running]
    assert pages[0][:2] == pages[1][:2] == pages[2][:2]
    assert len({each[2] for each in pages}) == 3
    assert [each.cached_tokens for each in scheduler.running] == [0, 32, 32]


def test_the_last_token_of_a_prompt_is_computed_even_where_every_page_is_known() -> None:
    scheduler = new()
    scheduler.add(generation("a", prompt=32))
    step(scheduler)
    scheduler.add(generation("b", prompt=32))
    assert step(scheduler) == {"a": 1, "b": 16}


def test_a_group_whose_prompt_is_cached_does_not_wait() -> None:
    scheduler = new()
    scheduler.add(generation("a", prompt=40))
    step(scheduler)
    for name in ("b", "c"):
        scheduler.add(generation(name, prompt=40, group="g"))
    assert step(scheduler) == {"a": 1, "b": 8, "c": 8}


def test_without_the_cache_and_with_prompts_below_a_page_nobody_waits() -> None:
    scheduler = new(cache=False)
    for name in ("a", "b"):
        scheduler.add(generation(name, prompt=20, group="g"))
    assert step(scheduler) == {"a": 20, "b": 20}
    scheduler = new()
    for name in ("a", "b"):
        scheduler.add(generation(name, prompt=16, group="g"))
    assert step(scheduler) == {"a": 16, "b": 16}


def test_when_the_first_of_a_group_is_given_up_the_next_one_leads() -> None:
    scheduler = new(budget=20)
    members = [generation(name, prompt=36, group="g") for name in ("a", "b", "c")]
    for member in members:
        scheduler.add(member)
    step(scheduler)
    scheduler.remove(members[:1])
    assert step(scheduler) == {"b": 20}, "the page that the first one did finish is used"
    assert step(scheduler) == {"b": 1, "c": 4}
    scheduler.remove(members[1:])
    assert scheduler.waiting_count == 0 and scheduler.pool.used == 0


def test_new_weights_send_everybody_back_in_order_and_void_the_cache() -> None:
    scheduler = new()
    scheduler.add(generation("a", prompt=20))
    scheduler.add(generation("b", prompt=20, first=100))
    step(scheduler)
    scheduler.forget(version=1)
    assert names(scheduler.waiting) == ["a", "b"] and scheduler.pool.used == 0
    assert step(scheduler) == {"a": 21, "b": 21}


def test_what_leaves_together_frees_its_pages_in_the_order_named() -> None:
    # Ranks that plan the same steps must hand out, and so evict, the same pages.
    scheduler = new()
    each = [generation(str(n), 3) for n in range(8)]
    for one in each:
        scheduler.add(one)
    step(scheduler)
    leaving = each[3:] + each[:3]
    pages = [int(scheduler.table.page_SP[one.slot, 0]) for one in leaving]
    scheduler.remove(leaving)
    assert scheduler.pool.allocate(8) == pages[::-1]
