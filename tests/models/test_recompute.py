"""What the backward makes again, or fetches from elsewhere, has the bits of what it would have kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from seedthink.kernels.route import Routing
from seedthink.models.config import ModelConfig
from seedthink.models.context import PackedContext
from seedthink.models.decoder import Transformer
from seedthink.models.keeping import Keeping

WAYS = {
    "layers": Keeping("layers"),
    "every second layer": Keeping("layers", every=2),
    "selective": Keeping("selective"),
    "offloaded": Keeping(offload=True),
    "layers, offloaded": Keeping("layers", offload=True),
    "selective, offloaded": Keeping("selective", offload=True),
}
every_way = pytest.mark.parametrize("way", WAYS)
every_model = pytest.mark.parametrize(
    ("family", "compute"),
    [(family, compute) for family in ("qwen3", "qwen3_moe") for compute in (torch.float32, torch.bfloat16)],
    ids=str,
)


def model(family: str, compute: torch.dtype = torch.float32, keeping: Keeping | None = None) -> Transformer:
    """Three layers; of the sparse model's, the middle one is dense."""
    experts = {"num_experts": 8, "experts_per_token": 3, "moe_intermediate_size": 24, "mlp_only_layers": (1,)}
    made = Transformer(
        ModelConfig(
            family=family,
            vocab_size=67,
            hidden_size=40,
            intermediate_size=56,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            max_position_embeddings=64,
            initializer_range=0.2,
            **(experts if family == "qwen3_moe" else {}),
        ),
        compute,
    )
    made.init_weights(0)
    made.keeping = keeping or Keeping()
    return made


class Watching(PackedContext):
    """Remembers which of attention's operands and results are alive."""

    def attend(self, layer: int, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor) -> Tensor:
        o_TNH = super().attend(layer, q_TNH, k_TnH, v_TnH)
        for name, each in (("q", q_TNH), ("k", k_TnH), ("v", v_TnH), ("o", o_TNH)):
            self.seen[name, layer] = StorageWeakRef(each.untyped_storage())
        return o_TNH

    def note_routing(self, layer: int, routing: Routing, logits_TE: Tensor) -> None:
        super().note_routing(layer, routing, logits_TE)
        self.counts[layer] = self.counts.get(layer, 0) + routing.counts_E
        self.router.append((layer, logits_TE))

    seen: dict[tuple[str, int], StorageWeakRef]
    counts: dict[int, Tensor]
    router: list[tuple[int, Tensor]]

    def alive(self) -> set[tuple[str, int]]:
        return {place for place, storage in self.seen.items() if not storage.expired()}


def packed(compute: torch.dtype) -> Watching:
    """A prompt of 7 tokens with two answers of 5 and 9, and a sequence of 4 on its own; routing is collected."""
    bounds, prefix = torch.tensor([0, 7, 12, 21, 25]), torch.tensor([-1, 0, 0, -1])
    made = Watching(bounds.int(), compute, 0.25, prefix.int())
    made.seen, made.counts, made.router = {}, {}, []
    return made


TOKENS = torch.arange(25) * 11 % 67


def learned(made: Transformer, compute: torch.dtype) -> tuple[dict[str, Tensor], Watching]:
    """The outputs and every gradient, of a loss that asks for the router's logits as well."""
    context = packed(compute)
    hidden_TD = made(TOKENS, context)
    weight_TD = torch.linspace(-1, 1, hidden_TD.numel()).view_as(hidden_TD)
    balance = sum(logits_TE.logsumexp(-1).square().mean() for _, logits_TE in context.router)
    ((hidden_TD * weight_TD).sum() + balance).backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert len(gradients) >= len(list(made.named_parameters())) - 1, "all but the vocabulary projection"
    return {"hidden": hidden_TD.detach(), **gradients}, context


@every_way
@every_model
def test_outputs_and_gradients_are_the_bits_of_a_backward_that_keeps_everything(
    way: str, family: str, compute: torch.dtype
) -> None:
    expected, _ = learned(model(family, compute), compute)
    found, _ = learned(model(family, compute, WAYS[way]), compute)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@every_way
def test_the_routing_is_told_once(way: str) -> None:
    _, expected = learned(model("qwen3_moe"), torch.float32)
    _, context = learned(model("qwen3_moe", keeping=WAYS[way]), torch.float32)
    assert [layer for layer, _ in context.router] == [0, 2]
    assert all(torch.equal(context.counts[layer], expected.counts[layer]) for layer in (0, 2))


@every_way
def test_experts_that_the_forward_chose_get_the_gradient_whatever_the_router_would_say_later(way: str) -> None:
    made = model("qwen3_moe", keeping=WAYS[way])
    context = packed(torch.float32)
    loss = made(TOKENS[:1].repeat(25), context).sum()  # few experts are chosen
    with torch.no_grad():
        for block in (made.blocks[0], made.blocks[2]):
            block.mlp.router_ED.neg_()
    loss.backward()
    for layer in (0, 2):
        moved_E = made.blocks[layer].mlp.down_E_D_I.grad.flatten(1).any(1)
        assert torch.equal(moved_E, context.counts[layer] > 0)


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        ("layers", ""),
        ("selective", "o"),
        ("offloaded", ""),
        ("selective, offloaded", ""),
        ("every second layer", "qkvo of 1"),
    ],
)
def test_between_forward_and_backward_only_this_is_alive_of_attention(way: str, kept: str) -> None:
    everything = {(name, layer) for name in "qkvo" for layer in range(3)}
    context = packed(torch.float32)
    loss = model("qwen3")(TOKENS, context).sum()
    assert context.alive() == everything
    loss.backward()
    assert context.alive() == set()
    loss = model("qwen3", keeping=WAYS[way])(TOKENS, context).sum()
    names, _, layer = kept.partition(" of ")
    assert context.alive() == {(n, i) for n, i in everything if n in names and (not layer or i == int(layer))}
    loss.backward()
    assert context.alive() == set()


@every_way
def test_a_backward_that_keeps_its_graph_can_go_again(way: str) -> None:
    made = model("qwen3_moe", keeping=WAYS[way])
    loss = made(TOKENS, packed(torch.float32)).sum()
    parameters = [p for name, p in made.named_parameters() if name != "unembed_VD"]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@every_way
def test_a_forward_without_gradients_keeps_nothing_and_has_the_same_bits(way: str) -> None:
    with torch.no_grad():
        expected = model("qwen3_moe")(TOKENS, packed(torch.float32))
        context = packed(torch.float32)
        assert torch.equal(model("qwen3_moe", keeping=WAYS[way])(TOKENS, context), expected)
    assert context.alive() == set()
