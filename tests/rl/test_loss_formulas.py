"""Each loss against a hand-computed number and against the formula written as a loop over tokens in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rl_samples import random_credited

from seedthink.engine.micro_batch import MicroBatch, micro_batches
from seedthink.rl import loss as losses
from seedthink.rl.pack import pack
from seedthink.telemetry.metrics import Max, Mean, Sum, reduce

LENGTHS = [4, 2, 7, 1]


def micro_batch(**columns: list[float]) -> MicroBatch:
    """One prompt token, then the given tokens of one answer; every missing column is zero."""
    length = len(next(iter(columns.values())))

    def column(name: str) -> torch.Tensor:
        return torch.tensor([0.0, *columns.get(name, [0.0] * length)], dtype=torch.float64)

    return MicroBatch(
        tokens_T=torch.zeros(length + 1, dtype=torch.int64),
        cu_seqlens_B1=torch.tensor([0, length + 1], dtype=torch.int32),
        predicted_R=torch.arange(1, length + 1),
        mask_T=torch.tensor([0.0] + [1.0] * length),
        logprob_T=column("behaviour"),
        proximal_T=column("proximal") if "proximal" in columns else torch.zeros(0),
        reference_T=column("reference"),
        advantage_T=column("advantage"),
        return_T=column("returns"),
        value_T=column("value"),
        positive_T=column("positive"),
        sequence_weight_B=torch.ones(1),
        global_tokens=float(length),
        global_sequences=1.0,
        global_positive_tokens=float(sum(columns.get("positive", [1.0]))),
    )


def outputs(*numbers: float) -> torch.Tensor:
    return torch.tensor([0.0, *numbers], dtype=torch.float64, requires_grad=True)


def random_micro() -> tuple[MicroBatch, torch.Tensor]:
    """Four answers in one micro-batch, and log-probs near the proximal ones."""
    ((batch,),) = pack(random_credited(LENGTHS), token_budget=100, max_sequence_tokens=100, updates_per_rollout=1)
    (micro,) = micro_batches(batch)
    noise_T = torch.from_numpy(np.random.default_rng(3).normal(0, 0.3, len(micro.tokens_T)))
    return micro, (micro.proximal_T.double() + noise_T).requires_grad_()


def spans(micro: MicroBatch) -> list[list[int]]:
    """Predicted positions of each sequence."""
    bounds, mask = micro.cu_seqlens_B1.tolist(), micro.mask_T.tolist()
    return [[t for t in range(bounds[b], bounds[b + 1]) if mask[t]] for b in range(len(bounds) - 1)]


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def test_clipped_ppo_by_hand() -> None:
    # ratios 1.5 and 0.5; A = +2 is held at 1.28, A = +2 below stays free, A = -1 at 0.5 is held at 0.8
    micro = micro_batch(behaviour=[0.0, 0.0, 0.0, 0.0], advantage=[2.0, 2.0, -1.0, -1.0])
    logprob_T = outputs(math.log(1.5), math.log(0.5), math.log(0.5), math.log(1.5))
    loss, found = losses.policy_loss(logprob_T, micro, losses.clipped(0.2, 0.28))
    assert float(loss) == pytest.approx((-1.28 * 2 - 0.5 * 2 + 0.8 + 1.5) / 4)
    loss.backward()
    # gradient -u A / 4 where the ratio is free, 0 where it is held
    assert logprob_T.grad.tolist() == pytest.approx([0.0, 0.0, -0.25, 0.0, 0.375])
    assert found["actor/pg_clipfrac"] == Mean(2.0, 4.0)
    assert found["actor/ratio_max"].value == pytest.approx(1.5)


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely() -> None:
    micro = micro_batch(behaviour=[0.0, 0.0], advantage=[-1.0, -1.0])
    logprob_T = outputs(math.log(10.0), math.log(2.0))
    loss, found = losses.policy_loss(logprob_T, micro, losses.clipped(0.2, 0.2, dual=3.0))
    assert float(loss) == pytest.approx((3.0 + 2.0) / 2)
    loss.backward()
    assert logprob_T.grad.tolist() == pytest.approx([0.0, 0.0, 1.0])
    assert found["actor/pg_clipfrac_lower"] == Mean(1.0, 2.0)


def test_clipped_ppo_equals_the_loop() -> None:
    micro, logprob_T = random_micro()
    for dual in (0.0, 1.2):
        total = 0.0
        for t in micro.predicted_R.tolist():
            u, a = math.exp(float(logprob_T[t]) - float(micro.proximal_T[t])), float(micro.advantage_T[t])
            objective = min(u * a, clip(u, 0.8, 1.28) * a)
            if dual and a < 0:
                objective = max(objective, dual * a)
            total -= objective / sum(LENGTHS)
        loss, _ = losses.policy_loss(logprob_T, micro, losses.clipped(0.2, 0.28, dual))
        assert float(loss) == pytest.approx(total, rel=1e-12)


def test_gspo_clips_the_geometric_mean_of_the_sequence() -> None:
    micro, logprob_T = random_micro()
    gradient, total = torch.zeros_like(logprob_T), 0.0
    for span in spans(micro):
        s = math.exp(sum(float(logprob_T[t]) - float(micro.proximal_T[t]) for t in span) / len(span))
        for t in span:
            a, share = float(micro.advantage_T[t]), 1 / (len(span) * len(LENGTHS))
            total -= share * min(s * a, clip(s, 0.95, 1.05) * a)
            if s * a <= clip(s, 0.95, 1.05) * a:
                gradient[t] = -share * s * a
    loss, found = losses.policy_loss(logprob_T, micro, losses.gspo(0.05, 0.05), losses.sequence_mean)
    loss.backward()
    assert float(loss) == pytest.approx(total, rel=1e-12)
    assert torch.allclose(logprob_T.grad, gradient, rtol=1e-12, atol=0)
    assert 0 < found["actor/pg_clipfrac"].total < sum(LENGTHS)


def test_gspo_with_one_advantage_per_sequence_has_the_gradient_of_the_sequence_ratio() -> None:
    micro = micro_batch(behaviour=[-1.0, -2.0, -3.0], advantage=[0.7, 0.7, 0.7])
    logprob_T = outputs(-1.1, -1.8, -2.9)
    losses.policy_loss(logprob_T, micro, losses.gspo(1.0, 1.0), losses.sequence_mean)[0].backward()
    again_T = outputs(-1.1, -1.8, -2.9)
    (-0.7 * torch.exp((again_T[1:] - micro.logprob_T[1:]).mean())).backward()
    assert torch.allclose(logprob_T.grad, again_T.grad, rtol=1e-14, atol=0)


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    micro = micro_batch(behaviour=[0.0, 0.0], advantage=[1.0, 1.0])
    logprob_T = outputs(math.log(8.0), math.log(2.0))
    loss, found = losses.policy_loss(logprob_T, micro, losses.cispo(1.0, 4.0))
    assert float(loss) == pytest.approx(-(5 * math.log(8.0) + 2 * math.log(2.0)) / 2)
    loss.backward()
    assert logprob_T.grad.tolist() == pytest.approx([0.0, -2.5, -1.0])
    assert found["actor/pg_clipfrac"] == Mean(1.0, 2.0)


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    micro = micro_batch(behaviour=[-5.0, -5.0], advantage=[2.0, -1.0])
    logprob_T = outputs(-0.5, -0.25)
    loss, _ = losses.policy_loss(logprob_T, micro, losses.reinforce())
    assert float(loss) == pytest.approx((2.0 * 0.5 - 0.25) / 2)


def test_on_policy_all_surrogates_have_the_policy_gradient() -> None:
    micro = micro_batch(behaviour=[-1.0, -2.0, -0.5], advantage=[0.3, 0.3, 0.3])
    gradients = []
    for surrogate in (losses.clipped(0.2, 0.28), losses.gspo(1.0, 1.0), losses.cispo(1.0, 4.0), losses.reinforce()):
        logprob_T = outputs(-1.0, -2.0, -0.5)
        losses.policy_loss(logprob_T, micro, surrogate)[0].backward()
        gradients.append(logprob_T.grad)
    assert gradients[0].tolist() == pytest.approx([0.0, -0.1, -0.1, -0.1])
    assert all(torch.equal(gradients[0], g) for g in gradients[1:])


def test_the_three_aggregations_weigh_tokens_answers_and_nothing() -> None:
    micro, _ = random_micro()
    term_R = torch.arange(1.0, 1.0 + sum(LENGTHS), dtype=torch.float64)
    term_of = dict(zip(micro.predicted_R.tolist(), term_R.tolist(), strict=True))
    per_sequence = [[term_of[t] for t in span] for span in spans(micro)]
    total = float(term_R.sum())
    assert float(losses.token_mean(term_R, micro)) == pytest.approx(total / 14)
    assert float(losses.sequence_mean(term_R, micro)) == pytest.approx(sum(sum(s) / len(s) for s in per_sequence) / 4)
    assert float(losses.constant_mean(32)(term_R, micro)) == pytest.approx(total / (4 * 32))


def test_a_sequence_weight_scales_all_rows_of_its_sequence() -> None:
    micro, _ = random_micro()
    weights_B = torch.tensor([1.0, 0.0, 2.0, 0.5])
    weighted = replace(micro, sequence_weight_B=weights_B)
    ones_R = torch.ones(sum(LENGTHS), dtype=torch.float64)
    wanted = sum(w * len(span) for w, span in zip(weights_B.tolist(), spans(micro), strict=True)) / 14
    assert float(losses.token_mean(ones_R, weighted)) == pytest.approx(wanted)


def test_positive_nll_divides_by_the_tokens_of_right_answers_only() -> None:
    micro = micro_batch(positive=[1.0, 1.0, 0.0, 0.0])
    loss, found = losses.positive_nll(outputs(-0.5, -1.5, -9.0, -9.0), micro)
    assert float(loss) == pytest.approx(1.0)
    assert found == {"actor/nll_loss": Sum(float(loss))}


def test_imitation_is_minus_the_mean_logprob_over_global_tokens() -> None:
    micro = replace(micro_batch(advantage=[0.0, 0.0]), global_tokens=8.0)
    loss, found = losses.imitation(outputs(-0.5, -1.5), outputs(0.1, 0.3), micro)
    assert float(loss) == pytest.approx(0.25)
    assert found["train/loss"] == Sum(float(loss))
    assert reduce(found)["actor/entropy"] == pytest.approx(0.2)


def test_positive_nll_of_a_batch_without_right_answers_is_zero() -> None:
    loss, _ = losses.positive_nll(outputs(-0.5, -1.5), micro_batch(positive=[0.0, 0.0]))
    assert float(loss) == 0.0


@pytest.mark.parametrize(("estimator", "wanted"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 1 + 0.5)])
def test_kl_estimates_by_hand(estimator: str, wanted: float) -> None:
    loss, found = losses.kl_loss(outputs(-1.0, -1.0), micro_batch(reference=[-1.5, -1.5]), estimator)
    assert float(loss) == pytest.approx(wanted)
    assert found["actor/kl_loss"].value == pytest.approx(wanted)


def test_k1_and_k3_agree_with_the_divergence_in_expectation() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    log_p, log_q = torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))
    exact = float((p * np.log(p / q)).sum())
    for estimator in ("k1", "k3"):
        assert float((p * losses.kl_estimate(log_p, log_q, estimator).numpy()).sum()) == pytest.approx(exact)


def test_the_entropy_term_is_minus_the_mean_entropy() -> None:
    loss, found = losses.entropy_loss(outputs(1.0, 3.0), micro_batch(advantage=[0.0, 0.0]))
    assert float(loss) == pytest.approx(-2.0)
    assert found == {"actor/entropy": Mean(4.0, 2.0)}


def test_value_loss_by_hand_with_and_without_clipping() -> None:
    # errors 4, 1, 1; held at old +- 0.5 = 1.5, 0.5, 0.5: errors 2.25, 2.25, 0.25; the larger counts
    micro = micro_batch(value=[1.0, 1.0, 1.0], returns=[3.0, -1.0, 1.0])
    value_T = outputs(1.0, 0.0, 0.0)
    assert float(losses.value_loss(value_T, micro)[0]) == pytest.approx(0.5 * (4 + 1 + 1) / 3)
    loss, found = losses.value_loss(value_T, micro, clip=0.5)
    assert float(loss) == pytest.approx(0.5 * (4 + 2.25 + 1) / 3)
    loss.backward()
    assert value_T.grad.tolist() == pytest.approx([0.0, -2 / 3, 0.0, -1 / 3])
    assert found["critic/vf_clipfrac"] == Mean(1.0, 3.0)


def test_a_log_ratio_of_hundreds_stays_finite() -> None:
    micro = micro_batch(behaviour=[-400.0, 0.0], advantage=[-1.0, -1.0])
    logprob_T = outputs(0.0, -400.0)
    for surrogate in (losses.clipped(0.2, 0.28), losses.gspo(3e-4, 4e-4), losses.cispo(1.0, 4.0)):
        loss, found = losses.policy_loss(logprob_T, micro, surrogate)
        assert math.isfinite(float(loss))
        assert all(math.isfinite(m.total if isinstance(m, Mean) else m.value) for m in found.values())


def test_without_a_recomputed_policy_the_behaviour_policy_is_the_proximal_one() -> None:
    kept = {"behaviour": [-1.0, -2.0], "advantage": [1.0, -1.0]}
    without = losses.policy_loss(outputs(-0.9, -1.7), micro_batch(**kept), losses.clipped(0.2, 0.28))
    with_it = losses.policy_loss(
        outputs(-0.9, -1.7), micro_batch(**kept, proximal=kept["behaviour"]), losses.clipped(0.2, 0.28)
    )
    assert float(without[0]) == float(with_it[0])
    assert without[1] == with_it[1]


def test_metrics_of_a_micro_batch_without_predicted_tokens_leave_the_others_alone() -> None:
    micro = replace(micro_batch(behaviour=[0.0]), predicted_R=torch.zeros(0, dtype=torch.int64))
    loss, found = losses.policy_loss(outputs(0.0), micro, losses.gspo(0.1, 0.1), losses.sequence_mean)
    assert float(loss) == 0.0
    assert not any(isinstance(metric, Max) for metric in found.values())
    assert found["actor/pg_clipfrac"] == Mean(0.0, 0.0)
