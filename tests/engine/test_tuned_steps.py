"""A tuner around the engine's steps: it is asked with the load there is, and no choice of its moves a bit."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from test_trainer import batch, model

from seedthink import _C
from seedthink.autotune.online import Decision
from seedthink.autotune.spaces import SPACES
from seedthink.autotune.steps import Around, StepTuner, untuned
from seedthink.config.sections import OptimizerConfig
from seedthink.engine.engine import shape_of
from seedthink.engine.generator import TokenGenerator
from seedthink.engine.trainer import Trainer, policy_forward
from seedthink.kernels import selector
from seedthink.kernels.selector import Config, Key
from seedthink.rl.loss import imitation
from seedthink.types import Completion, Request, SamplingParams


class Restless:
    """Another configuration of the space in every step, by chance."""

    def __init__(self) -> None:
        self.draw = random.Random(0)
        self.keys: list[Key] = []

    def decide(self, key: Key) -> Decision:
        self.keys.append(key)
        return Decision(self.draw.choice(SPACES[key.op].configs(2)), False)

    def observe(self, key: Key, config: Config, seconds: float) -> None:
        raise AssertionError("nothing was to be timed")


@pytest.fixture(autouse=True)
def built_in() -> Iterator[None]:
    before = _C.threads()
    _C.set_threads(2)
    yield
    _C.set_threads(before)
    selector.reset()


def tuner(decider: Restless) -> StepTuner:
    return StepTuner(decider, shape_of(model().config, pages=64), "float32")


def generated(around: Around) -> dict[str, Completion]:
    engine = TokenGenerator(model(), pages=64, max_batch_tokens=16, around=around)
    draw = np.random.default_rng(0)
    engine.submit(
        [
            Request(str(i), draw.integers(0, 32, 3 + 9 * i).astype(np.int32), SamplingParams(max_tokens=20), i)
            for i in range(5)
        ]
    )
    found: list[Completion] = []
    while not engine.idle:
        found += engine.step()
    return {each.id: each for each in found}


def test_generation_under_a_restless_tuner_has_the_same_bits() -> None:
    decider = Restless()
    plain, tuned = generated(untuned), generated(tuner(decider).step)
    for id, completion in plain.items():
        assert tuned[id].tokens_T.tolist() == completion.tokens_T.tolist()
        assert tuned[id].logprob_T.tobytes() == completion.logprob_T.tobytes()
    asked = [key for key in decider.keys if key.op == "linear"]
    assert max(key.load.tokens for key in asked) == 16 and min(key.load.tokens for key in asked) >= 1
    assert all(0 < key.load.cache_fill <= 1 for key in asked)
    assert {"attend_paged", "experts", "sampling"} <= {key.op for key in decider.keys}
    assert "linear_grad" not in {key.op for key in decider.keys}


def test_a_learning_step_under_a_restless_tuner_gives_the_same_weights() -> None:
    weights = []
    decider = Restless()
    for around in (untuned, tuner(decider).step):
        learner = Trainer(model(), policy_forward, OptimizerConfig(lr=1e-2), total_steps=10, around=around)
        for _ in range(3):
            learner.learn(batch(), imitation)
        weights.append([p.detach().clone() for p in learner.parameters])
    assert all(torch.equal(p, q) for p, q in zip(*weights, strict=True))
    assert {"linear_grad", "experts_grad", "attend"} <= {key.op for key in decider.keys}
    assert sorted({key.load.tokens for key in decider.keys}) == [5, 7]  # the two micro-batches
