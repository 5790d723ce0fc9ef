"""The online selector in worlds whose truth is known: it finds what is faster, within its budget, and nothing else."""

from __future__ import annotations

import pytest
from worlds import ARMS, LEFT, OTHER_BITS, World, constant, key

from seedthink.autotune.online import Policy
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load


def test_a_faster_arm_is_adopted() -> None:
    world = World(constant(left=0.8, right=1.3)).run(6000)
    assert world.incumbent() == "left"
    assert world.chosen[-1000:].count("left") > 990
    assert world.count("adopt") == 1


def test_a_gain_below_one_percent_is_not_adopted() -> None:
    world = World(constant(left=0.995), noise=0.001).run(6000)
    assert world.incumbent() == BUILT_IN.name


@pytest.mark.parametrize("seed", range(8))
def test_identical_arms_are_never_exchanged(seed: int) -> None:
    world = World(constant(), noise=0.1, seed=seed).run(20000)
    assert world.count("adopt") == 0
    assert world.incumbent() == BUILT_IN.name


@pytest.mark.parametrize("ratio", [1.05, 1.5, 4.0])
def test_exploring_bad_arms_costs_no_more_than_the_budget(ratio: float) -> None:
    policy = Policy(budget=0.01, retry_visits=1, settle_visits=1)
    world = World(constant(left=ratio, right=ratio), policy=policy).run(20000)
    lost = sum(ratio - 1 for name in world.chosen if name != BUILT_IN.name)
    assert 0 < lost / len(world.chosen) < 0.012


def test_each_load_class_has_a_choice_of_its_own() -> None:
    def times(step: int, config: Config, asked: Key) -> float:
        few = asked.load.tokens < 100
        return 0.8 if config.name == ("left" if few else "right") else 1.0

    world = World(times).run(20000, lambda step: 8 if step % 2 else 1024)
    assert (world.incumbent(8), world.incumbent(1024)) == ("left", "right")


def test_pairs_are_made_of_measurements_at_nearly_the_same_load() -> None:
    # Time grows faster than the cost model says: across loads, a gain of a tenth could not be seen.
    def times(step: int, config: Config, asked: Key) -> float:
        return asked.load.tokens**2 * (0.9 if config.name == "left" else 1.0)

    world = World(times, noise=0.01).run(3000, lambda step: (46, 90)[step % 2])
    assert world.incumbent() == "left"


def test_an_arm_that_becomes_slow_is_left() -> None:
    def times(step: int, config: Config, asked: Key) -> float:
        return {"left": 0.7 if step < 8000 else 2.0}.get(config.name, 1.0)

    world = World(times).run(8000)
    assert world.incumbent() == "left"
    world.run(800)
    assert world.count("drift") == 1
    assert world.incumbent() == BUILT_IN.name


def test_drift_at_one_load_reopens_the_question_at_the_others() -> None:
    def times(step: int, config: Config, asked: Key) -> float:
        return {"left": 0.7 if step < 12000 else 2.0}.get(config.name, 1.0)

    # The second load is rare: on its own it would take longer to notice than there is time.
    def tokens(step: int) -> int:
        return 512 if step % 40 == 0 else 64

    world = World(times).run(12000, tokens)
    assert (world.incumbent(64), world.incumbent(512)) == ("left", "left")
    world.run(40 * 36, tokens)
    assert (world.incumbent(64), world.incumbent(512)) == (BUILT_IN.name, BUILT_IN.name)


def test_what_slows_all_arms_down_alike_changes_nothing() -> None:
    world = World(lambda step, config, asked: 3.0 if step // 3000 % 2 else 1.0).run(20000)
    assert world.count("adopt") == 0


def test_exact_mode_stays_inside_one_numerics_class() -> None:
    arms = (*ARMS, OTHER_BITS)
    world = World(constant(bits=0.3), arms=arms).run(6000)
    assert OTHER_BITS.name not in world.chosen
    fast = World(constant(bits=0.3), arms=arms, exact=False).run(6000)
    assert fast.incumbent() == OTHER_BITS.name


def test_a_frozen_selector_gives_the_same_answers_and_asks_for_no_time() -> None:
    world = World(constant(left=0.8)).run(6000)
    timed = world.timed
    world.selector.freeze()
    world.run(500)
    assert set(world.chosen[-500:]) == {"left"}
    assert world.timed == timed


def test_one_launch_in_sixteen_is_timed_once_things_are_settled() -> None:
    world = World(constant(left=1.5, right=1.5)).run(6000)
    before = world.timed
    world.run(1600)
    assert world.timed - before == 100


def test_the_same_world_gives_the_same_decisions() -> None:
    one, other = (World(constant(left=0.9, right=0.8), seed=3).run(5000) for _ in range(2))
    assert one.chosen == other.chosen and one.events == other.events
    assert one.selector.state() == other.selector.state()


def test_it_starts_from_the_tables_choice_and_leaves_it_where_it_is_slow() -> None:
    world = World(constant(left=1.4), start=lambda asked: LEFT)
    assert world.selector.choose(key()) == LEFT
    assert world.run(6000).incumbent() == BUILT_IN.name


def test_what_was_learned_is_where_the_next_process_starts() -> None:
    first = World(constant(left=0.8)).run(6000)
    second = World(constant(left=0.8), learned=first.selector.state())
    assert second.selector.choose(key()) == LEFT
    assert second.run(2000).count("adopt") == 0
    assert second.selector.state()[str(second.selector.site(key()).place)]["incumbent"] == "left"


def test_an_unknown_arm_in_what_was_learned_is_ignored() -> None:
    place = str(World(constant()).selector.site(key()).place)
    learned = {place: {"incumbent": "gone", "since": 1.0, "arms": {"gone": [-0.5, 14, 1.0]}}}
    assert World(constant(), learned=learned).selector.choose(key()) == BUILT_IN


def test_every_decision_is_told_with_its_evidence() -> None:
    world = World(constant(left=0.8, right=1.3)).run(6000)
    adopted = next(event for event in world.events if event["event"] == "adopt")
    assert adopted["challenger"] == "left" and adopted["incumbent"] == BUILT_IN.name
    assert 0.15 < adopted["gain"] < 0.35 and adopted["pairs"] >= 14
    assert adopted["place"] == "norm/float32/128/6.0.0"


def test_times_that_come_late_or_for_another_arm_do_no_harm() -> None:
    world = World(constant()).run(100)
    world.selector.observe(key(), Config("stranger", {}), 1e-4)
    world.selector.observe(key(), BUILT_IN, 0.0)
    world.selector.observe(Key("rope", "float32", (4, 32), Load(0)), BUILT_IN, 1e-4)
    assert world.run(100).incumbent() == BUILT_IN.name
