"""Evenly used experts: values and gradients of the losses, the way of the bias, and that no cut of a batch matters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from seedthink.config.sections import OptimizerConfig, RouterConfig
from seedthink.engine.generator import TokenGenerator
from seedthink.engine.micro_batch import micro_batches, unlabelled_batch
from seedthink.engine.router_balance import check_router, upwards
from seedthink.engine.trainer import Trainer, forward_only, policy_forward, value_forward
from seedthink.errors import ConfigError
from seedthink.kernels.route import Routing
from seedthink.models.config import ModelConfig
from seedthink.models.context import PackedContext
from seedthink.models.decoder import Transformer
from seedthink.models.value import ValueModel
from seedthink.models.variants import LatentSizes, Router
from seedthink.rl.loss import imitation
from seedthink.types import Batch, Request, SamplingParams

E, K = 8, 2
LATENT = LatentSizes(q_rank=None, kv_rank=16, plain_dim=8, turned_dim=8, value_dim=16)
FAMILIES = ["qwen3_moe", "deepseek_v3"]


def model(family: str = "deepseek_v3") -> Transformer:
    """Three layers, of which the first is dense."""
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_layers": 3}
    sizes |= {"num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "num_experts": E, "experts_per_token": K}
    sizes |= {"moe_intermediate_size": 16, "mlp_only_layers": (0,), "max_position_embeddings": 64}
    if family == "deepseek_v3":
        sizes |= {"latent": LATENT, "shared_expert_width": 16, "router": Router(score="sigmoid", bias=True)}
    made = Transformer(ModelConfig(family=family, initializer_range=0.2, **sizes))
    made.init_weights(1)
    return made


def trainer(family: str = "deepseek_v3", lr: float = 1e-2, **router: float) -> Trainer:
    config = OptimizerConfig(lr=lr, grad_clip=0.0)
    return Trainer(model(family), policy_forward, config, total_steps=100, router=RouterConfig(**router))


# Two answers to one prompt, an answer to another, and a text of which nothing is predicted.
TEXTS = [[3, 1, 4, 1, 5, 9, 2], [3, 1, 4, 6, 5, 3], [2, 7, 1, 8], [9, 9, 9, 9, 9]]
PROMPTS = [3, 3, 1, 5]


def batch(cut: str = "together") -> Batch:
    texts = [np.array(text, np.int32) for text in TEXTS]
    masks = [np.array([0.0] * p + [1.0] * (len(t) - p), np.float32) for p, t in zip(PROMPTS, TEXTS, strict=True)]
    return unlabelled_batch(texts, masks, {"together": 100, "apart": 1, "in two": 14}[cut], 10.0, 3.0)


def nothing(logprob_T: torch.Tensor, *_: object) -> tuple[torch.Tensor, dict[str, Any]]:
    return logprob_T.sum() * 0.0, {}


def biases(learner: Trainer) -> list[torch.Tensor]:
    return [p for name, p in learner.module.named_parameters() if name.endswith("router_bias_E")]


def gradients(learner: Trainer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


def reference(made: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Balance and z loss in float64, layers summed, each sequence in a forward of its own."""
    logits: dict[int, list[torch.Tensor]] = {}
    ids: dict[int, list[torch.Tensor]] = {}

    def watch(layer: int, routing: Routing, logits_TE: torch.Tensor) -> None:
        logits.setdefault(layer, []).append(logits_TE.double())
        ids.setdefault(layer, []).append(routing.ids_TK.flatten())

    for text in TEXTS[:3]:
        bounds = torch.tensor([0, len(text) - 1], dtype=torch.int32)
        made(torch.tensor(text[:-1]), PackedContext(bounds, made.compute, made.config.attention_scale, watch=watch))
    balance = z = torch.zeros((), dtype=torch.float64)
    for layer, parts in logits.items():
        logits_TE = torch.cat(parts)
        fraction_E = torch.bincount(torch.cat(ids[layer]), minlength=E) / (K * len(logits_TE))
        score_TE = logits_TE.softmax(-1)
        if made.config.router.score == "sigmoid":
            score_TE = logits_TE.sigmoid() / logits_TE.sigmoid().sum(-1, keepdim=True)
        balance = balance + E * (fraction_E * score_TE.mean(0)).sum()
        z = z + logits_TE.logsumexp(-1).square().mean()
    return balance, z


@pytest.mark.parametrize("cut", ["together", "in two", "apart"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_whole_mini_batch_however_it_is_cut(family: str, cut: str) -> None:
    learner, made = trainer(family, balance_loss=0.5, z_loss=0.25), model(family)
    found = learner.learn(batch(cut), nothing).metrics
    balance, z = reference(made)
    (0.5 * balance + 0.25 * z).backward()
    assert found["router/balance_loss"] == pytest.approx(balance.item() / 2, rel=1e-6)
    assert found["router/z_loss"] == pytest.approx(z.item() / 2, rel=1e-6)
    by_name = dict(made.named_parameters())
    for name, p in zip(learner.names, learner.parameters, strict=True):
        expected = by_name[name].grad
        if expected is None:
            assert p.grad is None or not p.grad.any(), name
        else:
            assert p.grad is not None and torch.allclose(p.grad, expected, rtol=1e-4, atol=2e-6), name


def test_the_losses_add_to_what_the_network_learns_and_do_not_replace_it() -> None:
    plain, both, alone = trainer(), trainer(balance_loss=0.5), trainer(balance_loss=0.5)
    for learner, loss in ((plain, imitation), (both, imitation), (alone, nothing)):
        learner.learn(batch(), loss)
    assert torch.allclose(gradients(both), gradients(plain) + gradients(alone), rtol=1e-4, atol=1e-6)
    assert float(gradients(alone).norm()) > 1e-3


def test_counting_loads_changes_no_bit_of_the_gradient() -> None:
    learner, unwatched = trainer(), model()
    learner.learn(batch("in two"), imitation)
    for micro in micro_batches(batch("in two")):
        imitation(*policy_forward(unwatched, micro), micro)[0].backward()
    assert torch.equal(
        gradients(learner), torch.cat([p.grad.flatten() for p in unwatched.parameters() if p.grad is not None])
    )
    assert learner.module.watcher is None


def even_scores(learner: Trainer) -> None:
    with torch.no_grad():
        for name, p in learner.module.named_parameters():
            if name.endswith("router_ED"):
                p.zero_()


def test_the_bias_rises_for_experts_below_the_mean_load_and_falls_for_those_above() -> None:
    learner = trainer(bias_update_rate=0.125)
    even_scores(learner)
    found = learner.learn(batch(), nothing).metrics
    # All scores are equal, so each token goes to experts 0 and 1: 4 times the mean of 2 in 8.
    assert found["router/load_max_over_mean"] == 4.0 and found["router/load_min_over_mean"] == 0.0
    assert [b.tolist() for b in biases(learner)] == [[-0.125] * 2 + [0.125] * 6] * 2
    assert found["router/bias_max"] == 0.125
    learner.learn(batch(), nothing)  # now to experts 2 and 3
    assert [b.tolist() for b in biases(learner)] == [[0.0, 0.0, 0.0, 0.0] + [0.25] * 4] * 2


def test_an_expert_with_the_mean_load_keeps_its_bias_to_the_last_token() -> None:
    assert upwards(torch.tensor([4, 0, 2, 2])).tolist() == [-1, 1, 0, 0]
    assert upwards(torch.tensor([10**9, 10**9 + 1, 10**9 - 1])).tolist() == [0, -1, 1]
    assert upwards(torch.tensor([0, 0])).tolist() == [0, 0]


def test_a_step_that_is_skipped_moves_no_bias_and_the_next_one_does_not_count_it() -> None:
    learner = trainer(bias_update_rate=0.125, balance_loss=0.5)
    even_scores(learner)
    update = learner.learn(batch("apart"), lambda logprob_T, *_: (logprob_T.sum() * math.nan, {}))
    assert update.skipped and all(not b.any() for b in biases(learner))
    found = learner.learn(batch("apart"), nothing).metrics
    assert found["router/load_max_over_mean"] == 4.0 and found["router/balance_loss"] == pytest.approx(1.0, rel=1e-6)


def test_a_forward_that_is_not_finite_is_a_skipped_step_also_where_it_is_met_in_counting() -> None:
    learner = trainer(bias_update_rate=0.125, balance_loss=0.5)
    with torch.no_grad():
        learner.module.embed_VD[TEXTS[1][3]] = math.nan
    assert learner.learn(batch(), imitation).skipped == "the forward pass is not finite"
    assert all(not b.any() for b in biases(learner))


def test_a_restored_trainer_goes_on_with_the_same_bits() -> None:
    settings = {"balance_loss": 0.1, "z_loss": 0.01, "bias_update_rate": 0.01}
    one, other = trainer(**settings), trainer(**settings)
    for _ in range(3):
        one.learn(batch(), imitation)
    other.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    first, second = one.learn(batch(), imitation), other.learn(batch(), imitation)
    assert first == second
    assert all(torch.equal(p, q) for p, q in zip(one.module.parameters(), other.module.parameters(), strict=True))
    assert all(b.any() for b in biases(one))


@pytest.mark.parametrize(
    ("family", "router"), [("qwen3_moe", {"balance_loss": 1.0}), ("deepseek_v3", {"bias_update_rate": 0.05})]
)
def test_a_skewed_router_gets_evener_over_30_steps(family: str, router: dict[str, float]) -> None:
    guided, unguided = trainer(family, **router), trainer(family)
    loads: list[list[float]] = []
    for learner in (guided, unguided):
        with torch.no_grad():
            for block in learner.module.blocks[1:]:  # experts 0 and 1 get nearly all tokens
                if family == "deepseek_v3":
                    block.mlp.router_bias_E[:2] = 0.5
                else:
                    block.mlp.router_ED[:] = 0.1 * block.mlp.router_ED
                    block.mlp.router_ED[:2] += block.mlp_norm_D * 0.05
        found = [learner.learn(batch(), imitation).metrics for _ in range(30)]
        loads.append([each["router/load_max_over_mean"] for each in found])
    assert loads[0][0] == loads[1][0] >= 2.5
    assert min(loads[1][-5:]) > max(loads[0][-5:])


def test_answers_are_routed_by_the_moved_bias_with_the_bits_of_the_trainer() -> None:
    learner = trainer(bias_update_rate=0.05)
    assert isinstance(learner.module, Transformer)
    generator = TokenGenerator(learner.module, pages=32, max_batch_tokens=16)
    for version in range(1, 4):
        learner.learn(batch(), imitation)
        generator.set_version(version)
        prompt_T = np.array([3, 1, 4], np.int32)
        generator.submit([Request(str(version), prompt_T, SamplingParams(max_tokens=9, ignore_eos=True), version)])
        (answer,) = generator.collect(60.0)
        whole_T = np.concatenate([prompt_T, answer.tokens_T])
        packed = unlabelled_batch([whole_T], [np.array([0.0] * 3 + [1.0] * 9, np.float32)], 100, 9.0, 1.0)
        assert np.array_equal(forward_only(learner.module, policy_forward, packed)[3:], answer.logprob_T)
    assert all(b.any() for b in biases(learner))


def test_a_critic_is_kept_even_as_well() -> None:
    critic = ValueModel.from_policy(model())
    learner = Trainer(
        critic, value_forward, OptimizerConfig(), 10, router=RouterConfig(bias_update_rate=0.125, z_loss=1)
    )
    found = learner.learn(batch(), lambda value_T, *_: (value_T.square().sum(), {})).metrics
    assert found["router/bias_max"] == 0.125 and found["router/z_loss"] > 0


def test_what_a_model_does_not_have_is_refused_by_name() -> None:
    plain = model("qwen3_moe").config
    with pytest.raises(
        ConfigError, match=r"router\.bias_update_rate = 0\.1: models of the family 'qwen3_moe' store no"
    ):
        check_router(RouterConfig(bias_update_rate=0.1), plain)
    check_router(RouterConfig(balance_loss=0.1, z_loss=0.1), plain)
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 32, "num_layers": 1}
    dense = ModelConfig(family="qwen3", num_heads=2, num_kv_heads=1, head_dim=16, **sizes)
    with pytest.raises(ConfigError, match=r"router\.z_loss = 0\.1: the model has no experts"):
        check_router(RouterConfig(z_loss=0.1), dense)
