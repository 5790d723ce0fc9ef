"""Small rollouts to credit and pack, and a policy of one matrix whose gradients are easy to compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from seedthink.engine.micro_batch import MicroBatch, micro_batches
from seedthink.telemetry.metrics import Metric, merge
from seedthink.types import (
    Batch,
    Completion,
    Credited,
    Finish,
    Judgement,
    Prompt,
    Rollout,
    Scored,
    Valued,
    Verdict,
)

VOCABULARY = 11


def make_valued(
    length: int,
    *,
    score: float = 1.0,
    reward: float | None = None,
    group: str = "g0",
    index: int = 0,
    prompt_length: int = 2,
    finish: Finish = Finish.STOP,
    verdict: Verdict | None = None,
    value: Sequence[float] = (),
    logprob: Sequence[float] | None = None,
    proximal: Sequence[float] = (),
    reference: Sequence[float] = (),
    seed: int = 0,
) -> Valued:
    """A judged answer of `length` random tokens; RIGHT where the score is above 0.5."""
    rng = np.random.default_rng([seed, index, length])
    prompt = Prompt(
        id=f"p-{group}",
        family="test",
        text="",
        tokens_T=rng.integers(0, VOCABULARY, prompt_length, dtype=np.int32),
        reference={},
    )
    completion = Completion(
        id=f"{group}/{index}",
        tokens_T=rng.integers(0, VOCABULARY, length, dtype=np.int32),
        logprob_T=np.asarray(rng.normal(-2, 0.3, length) if logprob is None else logprob, np.float32),
        version_T=np.zeros(length, np.int32),
        finish=finish,
        text="",
    )
    verdict = verdict or (Verdict.RIGHT if score > 0.5 else Verdict.WRONG)
    scored = Scored(
        Rollout(prompt, completion, group, index), Judgement(verdict, score), score if reward is None else reward
    )
    value_T, proximal_T, reference_T = (np.asarray(a, np.float32) for a in (value, proximal, reference))
    return Valued(scored, value_T, proximal_T, reference_T)


def random_credited(lengths: Sequence[int], seed: int = 0) -> list[Credited]:
    """One kept rollout per length with random advantages, returns, values, proximal and reference log-probs."""
    rng = np.random.default_rng(seed)
    made = []
    for i, length in enumerate(lengths):
        behaviour = rng.normal(-2.4, 0.4, length)
        valued = make_valued(
            length,
            score=float(rng.integers(2)),
            group=f"g{i // 3}",
            index=i % 3,
            prompt_length=int(rng.integers(1, 4)),
            value=rng.normal(0, 1, length),
            logprob=behaviour,
            proximal=behaviour + rng.normal(0, 0.3, length),
            reference=rng.normal(-2.4, 0.4, length),
            seed=seed,
        )
        advantage_T, return_T = rng.normal(0, 1, (2, length)).astype(np.float32)
        made.append(Credited(valued, advantage_T, return_T, kept=True))
    return made


class BigramPolicy:
    """log pi(token | previous token) from one float64 matrix, and a value that is one number per previous token."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits_VV = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64) * 0.7
        self.value_V = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
        self.logits_VV.requires_grad_()
        self.value_V.requires_grad_()

    def policy(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        previous_R = micro.tokens_T[micro.predicted_R - 1]
        log_RV = self.logits_VV[previous_R].log_softmax(-1)
        logprob_R = log_RV.gather(1, micro.tokens_T[micro.predicted_R][:, None])[:, 0]
        return micro.scatter(logprob_R), micro.scatter(-(log_RV.exp() * log_RV).sum(-1))

    def value(self, micro: MicroBatch) -> tuple[Tensor]:
        return (micro.scatter(self.value_V[micro.tokens_T[micro.predicted_R - 1]]),)

    def learn(
        self, batches: Sequence[Batch], forward: Callable[[MicroBatch], tuple[Tensor, ...]], loss: Callable
    ) -> tuple[float, Tensor, dict[str, Metric]]:
        """(loss, gradient, merged metrics) summed over the micro-batches of every rank's batch."""
        self.logits_VV.grad = self.value_V.grad = None
        total, metrics = 0.0, {}
        for batch in batches:
            for micro in micro_batches(batch):
                part, found = loss(*forward(micro), micro)
                part.backward()
                total += float(part.detach())
                merge(metrics, found)
        used = self.logits_VV if self.logits_VV.grad is not None else self.value_V
        return total, used.grad.clone(), metrics
