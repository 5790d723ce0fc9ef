"""GAE: numbers by hand, the serial recurrence in float64, masks, bootstrap; bits independent of batch and threads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.gae import advantage_moments, gae, reference_gae, reference_moments, whiten


def bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def draw(lengths: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values, bounds and lambdas between 0.8 and 1."""
    generator = torch.Generator().manual_seed(seed)
    total, count = sum(lengths), len(lengths)
    reward, value = torch.randn(2, total, generator=generator).unbind()
    policy, critic = (torch.rand(2, count, generator=generator) * 0.2 + 0.8).unbind()
    return reward, value, bounds(lengths), policy, critic


def both(reward: Tensor, value: Tensor, cu: Tensor, policy: Tensor, critic: Tensor, *rest: object) -> None:
    """The kernel against the serial loop in float64."""
    exact = [x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in rest]
    want = reference_gae(reward.double(), value.double(), cu, policy.double(), critic.double(), *exact)
    for mine, theirs in zip(gae(reward, value, cu, policy, critic, *rest), want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-5, atol=5e-5)


def test_three_tokens_by_hand() -> None:
    # deltas with gamma 1: 0.5 - 1 = -0.5, 0.25 - 0.5 = -0.25, 1 - 0.25 = 0.75
    reward, value = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.5, 0.25])
    advantage, returns = gae(reward, value, bounds([3]), torch.tensor([0.5]), torch.tensor([1.0]))
    assert advantage.tolist() == [-0.5 + 0.5 * (-0.25 + 0.5 * 0.75), -0.25 + 0.5 * 0.75, 0.75]
    assert returns.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bootstrapped", [False, True])
@pytest.mark.parametrize("lengths", [[1], [0, 1, 0], [2, 15, 16, 17, 31, 32, 33], [700, 3], list(range(40))])
def test_packed_sequences_match_the_serial_loop(lengths: list[int], bootstrapped: bool, masked: bool) -> None:
    inputs = draw(lengths)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(sum(lengths), generator=generator) > 0.3 if masked else None
    bootstrap = torch.randn(len(lengths), generator=generator) if bootstrapped else None
    both(*inputs, 0.97, mask, bootstrap)


@pytest.mark.parametrize("masked", [False, True])
def test_a_sequence_long_enough_to_be_shared_by_threads_matches_the_serial_loop(masked: bool) -> None:
    lengths = [5, 70000, 3]
    mask = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    both(*draw(lengths), 1.0, mask, torch.tensor([0.5, -2.0, 0.0]))


def test_a_masked_chunk_of_a_long_sequence_is_passed_over() -> None:
    reward, value, cu, policy, critic = draw([100000])
    mask = torch.ones(100000, dtype=torch.bool)
    mask[20000:80000] = False
    both(reward, value, cu, policy, critic, 1.0, mask, torch.tensor([1.5]))


def test_lambda_one_returns_the_monte_carlo_return_at_each_token() -> None:
    lengths = [1, 30, 100]
    reward, value, cu, _, _ = draw(lengths)
    ones = torch.ones(3)
    advantage, returns = gae(reward, value, cu, ones, ones)
    want = torch.cat([part.double().flip(0).cumsum(0).flip(0) for part in reward.split(lengths)])
    torch.testing.assert_close(returns.double(), want, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(advantage + value, returns, rtol=1e-6, atol=2e-6)


def test_lambda_zero_returns_the_one_step_error() -> None:
    reward, value, cu, _, _ = draw([20, 37])
    advantage, returns = gae(reward, value, cu, torch.zeros(2), torch.zeros(2), 0.5)
    after = torch.cat([value[1:], torch.zeros(1)])
    after[19] = 0.0  # the first sequence ends here
    delta = torch.addcmul(reward.double(), after.double(), torch.tensor(0.5).double()) - value.double()
    torch.testing.assert_close(advantage.double(), delta, rtol=1e-6, atol=1e-6)
    assert torch.equal(returns, value + advantage)


def test_the_last_token_sees_the_bootstrap_value() -> None:
    zero = torch.zeros(1)
    advantage, returns = gae(zero, zero + 2.0, bounds([1]), zero, zero, 0.5, None, torch.tensor([6.0]))
    assert advantage.tolist() == [1.0]
    assert returns.tolist() == [3.0]


def test_masked_tokens_are_skipped_not_zeroed() -> None:
    reward = torch.tensor([1.0, 50.0, 50.0, 2.0])
    value = torch.tensor([0.5, 99.0, 99.0, 0.25])
    mask = torch.tensor([True, False, False, True])
    half = torch.tensor([0.5])
    advantage, _ = gae(reward, value, bounds([4]), half, half, 1.0, mask)
    dense, _ = gae(reward[mask], value[mask], bounds([2]), half, half)
    assert torch.equal(advantage[mask], dense)
    assert advantage[1:3].tolist() == [1.75, 1.75]  # the next counted token's advantage, carried over


def test_a_fully_masked_sequence_has_no_advantage() -> None:
    reward, value, cu, policy, critic = draw([300, 10])
    mask = torch.ones(310, dtype=torch.bool)
    mask[:300] = False
    advantage, returns = gae(reward, value, cu, policy, critic, 1.0, mask)
    assert torch.equal(advantage[:300], torch.zeros(300))
    assert torch.equal(returns[:300], value[:300])


def test_a_mask_of_ones_gives_the_bits_of_no_mask_in_short_sequences() -> None:
    inputs = draw([256, 17, 100])
    for plain, masked in zip(gae(*inputs), gae(*inputs, 1.0, torch.ones(373, dtype=torch.bool)), strict=True):
        assert torch.equal(plain, masked)


def test_a_sequence_has_the_same_bits_alone_and_in_a_batch() -> None:
    lengths = [100, 7, 66000, 64, 1]
    reward, value, cu, policy, critic = draw(lengths)
    together = gae(reward, value, cu, policy, critic)
    starts = cu.tolist()
    for b, length in enumerate(lengths):
        at, row = slice(starts[b], starts[b + 1]), slice(b, b + 1)
        alone = gae(reward[at], value[at], bounds([length]), policy[row], critic[row])
        assert torch.equal(together[0][at], alone[0])
        assert torch.equal(together[1][at], alone[1])


def test_one_thread_and_two_give_the_same_bits() -> None:
    inputs, before, results = draw([70000, 50, 4000]), _C.threads(), []
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            results.append(gae(*inputs))
    finally:
        _C.set_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(4)}, "value: dimension 0 is 4, expected 5"),
        ({"reward": torch.zeros(5, dtype=torch.float64)}, "reward: expected dtype float32"),
        ({"cu": torch.tensor([0, 4], dtype=torch.int32)}, "cu_seqlens: must run from 0 to 5"),
        ({"cu": torch.tensor([0, 7, 5], dtype=torch.int32)}, "lambda_policy|cu_seqlens"),
        ({"policy": torch.ones(2)}, "lambda_policy: dimension 0 is 2, expected 1"),
        ({"gamma": 1.5}, "gamma"),
        ({"mask": torch.ones(5)}, "mask: expected dtype bool"),
        ({"bootstrap": torch.ones(3)}, "bootstrap: dimension 0 is 3, expected 1"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"reward": torch.zeros(5), "value": torch.zeros(5), "cu": bounds([5])}
    arguments |= {"policy": torch.ones(1), "critic": torch.ones(1), "gamma": 1.0, "mask": None, "bootstrap": None}
    with pytest.raises(ValueError, match=message):
        gae(*(arguments | change).values())


def test_the_operator_is_registered_soundly() -> None:
    inputs = draw([3, 4])
    torch.library.opcheck(torch.ops.seedthink.gae.default, (*inputs, 1.0, None, None))


def test_moments_by_hand_are_those_of_the_tokens_that_count() -> None:
    values, mask = torch.tensor([1.0, 99.0, 2.0, 3.0, 6.0]), torch.tensor([True, False, True, True, True])
    assert advantage_moments(values, bounds([2, 3]), mask).tolist() == [4.0, 3.0, 3.5]
    assert advantage_moments(values[:0], bounds([])).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("masked", [False, True])
def test_moments_of_values_far_from_zero_match_float64(masked: bool) -> None:
    values = draw([100, 0, 1, 70000])[0] * 0.01 + 1000.0
    mask = torch.rand(len(values), generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    want = reference_moments(values, mask)
    torch.testing.assert_close(advantage_moments(values, bounds([100, 0, 1, 70000]), mask), want, rtol=1e-12, atol=0.0)


def test_the_order_of_the_sequences_does_not_change_the_moments() -> None:
    parts = draw([70000, 3, 500, 0, 40])[0].split([70000, 3, 500, 0, 40])
    found = []
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
        packed = torch.cat([parts[i] for i in order])
        found.append(advantage_moments(packed, bounds([len(parts[i]) for i in order])))
    assert torch.equal(*found)


def test_one_thread_and_two_give_the_same_moments() -> None:
    values, before, found = draw([70000, 50, 4000])[0], _C.threads(), []
    try:
        for threads in (1, 2):
            _C.set_threads(threads)
            found.append(whiten(values, bounds([70000, 50, 4000])))
    finally:
        _C.set_threads(before)
    assert torch.equal(*found)


def test_whitened_advantages_have_mean_zero_and_deviation_one_and_masked_ones_are_zero() -> None:
    values = draw([300, 20])[0] * 3.0 + 5.0
    mask = torch.arange(320) % 3 != 0
    values[0] = float("nan")  # where nothing counts
    whitened = whiten(values, bounds([300, 20]), mask)
    assert whitened[mask].double().mean().item() == pytest.approx(0.0, abs=1e-7)
    assert whitened[mask].double().std(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(whitened[~mask], torch.zeros(107))
    assert torch.equal(whiten(torch.full((4,), 2.0), bounds([4])), torch.zeros(4))


def test_bad_arguments_of_whitening_are_named() -> None:
    with pytest.raises(ValueError, match="advantage: sequence 1 holds NaN or infinity"):
        whiten(torch.tensor([0.0, 1.0, float("nan")]), bounds([1, 2]))
    with pytest.raises(ValueError, match="mask: expected dtype bool"):
        whiten(torch.zeros(3), bounds([3]), torch.ones(3))
    with pytest.raises(ValueError, match="cu_seqlens: must run from 0 to 3"):
        whiten(torch.zeros(3), bounds([2]))
    with pytest.raises(ValueError, match=r"epsilon: 0\.0 is not above 0"):
        whiten(torch.zeros(3), bounds([3]), None, 0.0)


def test_the_operators_of_whitening_are_registered_soundly() -> None:
    values = draw([3, 4])[0]
    torch.library.opcheck(torch.ops.seedthink.advantage_moments.default, (values, bounds([3, 4]), None))
    torch.library.opcheck(torch.ops.seedthink.shift_and_scale.default, (values, values > 0, 0.5, 2.0))
