"""Positions, routing records, initial weights, the critic's start and the balance loss."""

from __future__ import annotations

import pytest
import torch

from seedthink.kernels.route import Routing, balance_loss, expert_fraction
from seedthink.models.config import ModelConfig
from seedthink.models.context import PackedContext, Watch, packed_positions
from seedthink.models.decoder import Transformer
from seedthink.models.value import ValueModel

CONFIG = ModelConfig(
    family="qwen3_moe",
    vocab_size=40,
    hidden_size=32,
    intermediate_size=32,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    num_experts=4,
    experts_per_token=2,
    moe_intermediate_size=16,
    norm_topk_prob=True,
    mlp_only_layers=(1,),
    max_position_embeddings=32,
)


def policy(seed: int = 0, compute: torch.dtype = torch.float32) -> Transformer:
    model = Transformer(CONFIG, compute)
    model.init_weights(seed)
    return model


def context(lengths: tuple[int, ...], watch: Watch | None = None) -> PackedContext:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedContext(cu_seqlens, torch.float32, CONFIG.head_dim**-0.5, watch=watch)


def test_positions_start_anew_in_each_sequence_and_skip_empty_ones() -> None:
    positions = packed_positions(torch.tensor([0, 2, 2, 5], dtype=torch.int32))
    assert positions.tolist() == [0, 1, 0, 1, 2] and positions.dtype == torch.int32


def test_a_watch_is_told_of_sparse_layers_only_and_the_balance_loss_reaches_the_router_through_it() -> None:
    seen: list[tuple[int, Routing, torch.Tensor]] = []
    model = policy()
    model(torch.arange(8), context((5, 3), lambda *told: seen.append(told)))
    losses = [balance_loss(logits, expert_fraction(routing.counts_E), 8.0) for _, routing, logits in seen]
    sum(losses).backward()
    assert [layer for layer, _, _ in seen] == [0, 2]
    assert all(int(routing.counts_E.sum()) == 8 * 2 for _, routing, _ in seen)
    assert all(model.blocks[layer].mlp.router_ED.grad.abs().sum() > 0 for layer in (0, 2))


def test_initial_weights_depend_on_the_seed_and_not_on_threads() -> None:
    threads = torch.get_num_threads()
    first = policy(7).state_dict()
    try:
        torch.set_num_threads(1)
        assert all(torch.equal(first[name], tensor) for name, tensor in policy(7).state_dict().items())
    finally:
        torch.set_num_threads(threads)
    other = policy(8).state_dict()
    assert not torch.equal(first["embed_VD"], other["embed_VD"])
    assert first["norm_D"].unique().tolist() == [1.0]
    assert first["embed_VD"].std().item() == pytest.approx(CONFIG.initializer_range, rel=0.1)


def test_an_untrained_critic_says_zero_and_owns_its_trunk() -> None:
    model = policy()
    critic = ValueModel.from_policy(model)
    tokens_T = torch.arange(8)
    assert critic(tokens_T, context((8,))).tolist() == [0.0] * 8
    assert "trunk.unembed_VD" not in critic.state_dict()
    with torch.no_grad():
        before = model(tokens_T, context((8,)))
        critic.trunk.embed_VD.zero_()
        assert torch.equal(model(tokens_T, context((8,))), before)


def test_every_parameter_of_policy_and_critic_learns() -> None:
    model = policy(2)
    critic = ValueModel.from_policy(model)
    with torch.no_grad():
        critic.head_1D.fill_(0.1)
    tokens_T = torch.arange(40)
    model.logits(model(tokens_T[:30], context((30,)))).square().sum().backward()
    critic(tokens_T[:30], context((30,))).square().sum().backward()
    idle = [
        name
        for m in (model, critic)
        for name, p in m.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert idle == []


def test_bfloat16_compute_rounds_the_operands_and_keeps_float32_weights() -> None:
    exact, rounded = policy(5), policy(5, torch.bfloat16)
    tokens_T = torch.arange(12)
    with torch.no_grad():
        a, b = exact(tokens_T, context((12,))), rounded(tokens_T, context((12,)))
    assert a.dtype == b.dtype == rounded.embed_VD.dtype == torch.float32
    assert 1e-4 < float((a - b).abs().max() / a.abs().max()) < 5e-2
