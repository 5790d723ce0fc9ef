"""The memory of a rank: what each axis cuts, what is on every rank, and which settings fit where one does not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from seedthink.models.config import ModelConfig
from seedthink.parallel.layout import Layout
from seedthink.parallel.layout_check import fits, layouts
from seedthink.planner.fitting import Choice, explain, nearest_that_fit
from seedthink.planner.memory import Load, kv_bytes_per_token, memory, rank_parameters, sizes_of, total

SHARED = {"vocab_size": 100, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
DENSE = ModelConfig(family="qwen3", intermediate_size=48, **SHARED)
SPARSE = ModelConfig(
    family="qwen3_moe",
    intermediate_size=48,
    num_experts=8,
    experts_per_token=2,
    moe_intermediate_size=16,
    mlp_only_layers=(0,),
    **SHARED,
)
LOAD = Load(item=4, micro_batch_tokens=1024, kv_memory_mib=64, sequences=8, critic=True)

# By hand: embedding, head (of one block, which one rank holds), norms; q and out; k and v; gate, up and down.
WHOLE = 2 * 100 * 32 + 32 + 2 * (2 * 32 + 2 * 16)
QUERIES, KEYS = 2 * (2 * 32 * 16 * 4), 2 * (2 * 32 * 16 * 2)
MLP, ROUTER, EXPERT = 3 * 32 * 48, 32 * 8, 3 * 32 * 16


def parts(model: ModelConfig, load: Load, layout: Layout, fsdp: bool = True) -> dict[str, float]:
    return {part.name: part.bytes for part in memory(model, load, layout, fsdp)}


def test_tensor_ranks_cut_attention_and_dense_mlps() -> None:
    assert rank_parameters(DENSE, Layout()) == WHOLE + QUERIES + KEYS + 2 * MLP
    assert rank_parameters(DENSE, Layout(tp=2)) == WHOLE + (QUERIES + KEYS + 2 * MLP) / 2
    assert rank_parameters(DENSE, Layout(tp=4)) == WHOLE + (QUERIES + 2 * MLP) / 4 + KEYS / 2, "two kv heads, repeated"
    assert rank_parameters(DENSE, Layout(cp=4)) == rank_parameters(DENSE, Layout(dp_replicate=4))


def test_tensor_ranks_cut_embedding_and_head_by_blocks_of_1024_tokens_and_the_fullest_rank_counts() -> None:
    def held(tp: int) -> float:
        large, small = (replace(DENSE, vocab_size=size) for size in (2500, 100))
        return rank_parameters(large, Layout(tp=tp)) - rank_parameters(small, Layout(tp=tp)) + 2 * 100 * 32

    assert held(1) == 2 * 2500 * 32
    assert held(2) == pytest.approx(2 * 2048 * 32)
    assert held(4) == pytest.approx(2 * 1024 * 32)


def test_expert_ranks_cut_the_experts() -> None:
    dense = WHOLE + QUERIES + KEYS + MLP + ROUTER
    assert rank_parameters(SPARSE, Layout()) == dense + 8 * EXPERT
    assert rank_parameters(SPARSE, Layout(tp=4, ep=4), fsdp=False) == (
        WHOLE + ROUTER + (QUERIES + MLP) / 4 + KEYS / 2 + 2 * EXPERT
    )
    assert rank_parameters(SPARSE, Layout(tp=2)) == WHOLE + ROUTER + (QUERIES + KEYS + MLP) / 2 + 8 * EXPERT


def test_ranks_that_share_one_copy_each_hold_their_part_where_weights_are_sharded() -> None:
    assert rank_parameters(DENSE, Layout(dp_shard=4), fsdp=True) == rank_parameters(DENSE, Layout()) / 4
    assert rank_parameters(DENSE, Layout(dp_replicate=4), fsdp=True) == rank_parameters(DENSE, Layout())
    for layout in (Layout(dp_shard=4, ep=2), Layout(dp_shard=2, cp=2, ep=4), Layout(dp_shard=8)):
        held = rank_parameters(SPARSE, layout, fsdp=True)
        assert held == rank_parameters(SPARSE, Layout()) / layout.size, "nothing is held twice"


def test_ranks_that_share_one_copy_have_no_pack_between_uses_and_the_policy_whole_while_it_generates() -> None:
    shared, alone = rank_parameters(DENSE, Layout(dp_shard=4)), rank_parameters(DENSE, Layout())
    found = parts(DENSE, LOAD, Layout(dp_shard=4))
    assert found["parameters"] + found["gradients"] + found["optimizer"] == 2 * shared * 16
    assert found["policy while it generates"] == alone * (4 + 4)
    assert "policy while it generates" not in parts(DENSE, LOAD, Layout(dp_replicate=4))
    assert rank_parameters(DENSE, Layout(cp=2)) == alone, "cp cuts weights where dp_shard does"


def test_training_holds_sixteen_bytes_and_two_packed_copies_of_each_parameter() -> None:
    held = rank_parameters(DENSE, Layout(tp=2))
    found = parts(DENSE, LOAD, Layout(tp=2))
    assert found["parameters"] + found["gradients"] + found["optimizer"] == 2 * held * (16 + 2 * 4)
    assert found["gradients"] == 2 * 4 * held and found["optimizer"] == 2 * 8 * held
    idle = Load(item=2, micro_batch_tokens=0, kv_memory_mib=64, sequences=8, reference=True)
    found = parts(DENSE, idle, Layout())
    assert found["parameters"] == found["reference policy"] == 6 * rank_parameters(DENSE, Layout())
    assert not {"gradients", "optimizer", "activations of a micro-batch"} & set(found)


def test_activations_are_shared_by_the_ranks_of_a_batch_but_for_what_tensor_ranks_gather() -> None:
    one, cp, tp = (
        parts(DENSE, LOAD, layout)["activations of a micro-batch"] for layout in (Layout(), Layout(cp=2), Layout(tp=2))
    )
    assert cp == one / 2
    gathered = 4 * 1024 * (2 * (32 + 64 + 32 + 48) + 32)  # inputs of four products, two layers; of the head
    assert tp == (one - gathered) / 2 + gathered


def test_a_rank_caches_its_own_key_heads() -> None:
    assert kv_bytes_per_token(DENSE, 4, Layout()) == 2 * 2 * 2 * 16 * 4
    assert kv_bytes_per_token(DENSE, 4, Layout(tp=2)) == kv_bytes_per_token(DENSE, 4, Layout(tp=2, cp=2)) == 256
    cap = parts(DENSE, LOAD, Layout())["KV cache, at most"]
    assert cap == 64 << 20
    few = Load(item=4, micro_batch_tokens=0, kv_memory_mib=1024, sequences=1)
    assert parts(DENSE, few, Layout())["KV cache, at most"] == 512 * DENSE.max_position_embeddings


def needs(model: ModelConfig, choice: Choice) -> float:
    return total(memory(model, choice.load, choice.layout))


@pytest.mark.parametrize("model", [DENSE, SPARSE])
@pytest.mark.parametrize("layout", [Layout(), Layout(dp_shard=2), Layout(tp=2, dp_shard=2)])
def test_proposals_fit_are_valid_and_nothing_nearer_fits(model: ModelConfig, layout: Layout) -> None:
    present = total(memory(model, LOAD, layout))
    for share in (1.0, 0.97, 0.9, 0.87):
        found = nearest_that_fit(model, LOAD, layout, share * present)
        assert found, "a smaller KV cache alone gives an eighth"
        for choice in found:
            assert needs(model, choice) <= share * present and needs(model, choice) < present
            assert fits(choice.layout, sizes_of(model)) and choice.layout.size % layout.size == 0
        assert [c.distance for c in found] == sorted(c.distance for c in found)
        if len(found) == 2:
            assert not found[1].goes_further_than(found[0])
        nearer = [
            (tokens, cache)
            for tokens, cache in product(range(11), range(7))
            if tokens + cache < found[0].distance
            and total(
                memory(
                    model,
                    Load(
                        item=4, micro_batch_tokens=1024 >> tokens, kv_memory_mib=64 >> cache, sequences=8, critic=True
                    ),
                    layout,
                )
            )
            <= share * present - 1
        ]
        assert nearer == []


def test_one_halving_is_proposed_where_one_is_enough() -> None:
    half = total(memory(DENSE, LOAD, Layout())) - (31 << 20)
    first, *_ = nearest_that_fit(DENSE, LOAD, Layout(), half)
    assert first.settings("rollout") == "rollout.kv_memory_mib = 32"
    assert first.layout == Layout() and first.load.micro_batch_tokens == 1024


def test_more_ranks_are_proposed_only_where_settings_alone_do_not_do() -> None:
    big = ModelConfig(family="qwen3", intermediate_size=65536, **SHARED)
    shrunk = Load(item=4, micro_batch_tokens=1, kv_memory_mib=1, sequences=8)
    available = 0.8 * total(memory(big, shrunk, Layout()))
    found = nearest_that_fit(big, shrunk, Layout(), available)
    assert [choice.settings("rollout") for choice in found] == ["parallel.tp = 2", "parallel.dp_shard = 4"]
    assert found[0].layout == Layout(tp=2)
    assert nearest_that_fit(big, shrunk, Layout(), 1.0) == []


def test_the_message_names_the_estimate_what_is_there_and_the_settings_that_fit() -> None:
    text = explain(DENSE, LOAD, Layout(), total(memory(DENSE, LOAD, Layout())) - (16 << 20), "rollout").splitlines()
    assert text[0] == "420 MiB are needed by estimate, 404 MiB are there (one rank):"
    assert text[1].split() == ["1", "MiB", "parameters"]
    assert "rollout.kv_memory_mib = 32 would need 388 MiB" in text
    assert explain(DENSE, LOAD, Layout(), 1.0, "rollout").splitlines()[-1] == (
        "no setting fits, on up to 8 ranks: take a smaller model"
    )


def test_layouts_of_the_ranks_there_are_come_before_more_ranks() -> None:
    assert {layout.size for layout in layouts(4)} == {4}
    choices = nearest_that_fit(DENSE, LOAD, Layout(dp_shard=2), total(memory(DENSE, LOAD, Layout())) * 0.999)
    assert all(choice.layout.size == 2 for choice in choices)
