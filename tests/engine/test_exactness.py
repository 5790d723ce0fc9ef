"""The consistency contract, bit for bit: what the generator says of a token is what the trainer computes for it.

Each test generates in another way and compares log-probs with one packed forward of the same weights, and tokens and
log-probs with the same requests generated one at a time. Models: Qwen3 and Qwen3-MoE (dense and sparse layers mixed),
random and trained weights, float32 and bfloat16, and the other families once each; sizes are no multiples of anything.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
import torch

from seedthink import _C
from seedthink.engine.generator import TokenGenerator
from seedthink.kernels.logprob import linear_logprob
from seedthink.kernels.rope_scaling import Llama3Scaling
from seedthink.models.config import ModelConfig
from seedthink.models.context import PackedContext
from seedthink.models.decoder import Transformer
from seedthink.models.variants import LatentSizes, Router
from seedthink.types import Completion, Request, SamplingParams

MODELS = list(product(("qwen3", "qwen3_moe"), ("float32", "bfloat16"), ("random", "trained")))
MODELS += [("llama", "float32", "random"), ("qwen2", "bfloat16", "trained"), ("mixtral", "bfloat16", "trained")]
MODELS += [("deepseek_v3", "float32", "random"), ("deepseek_v3", "bfloat16", "trained")]
LATENT = LatentSizes(q_rank=40, kv_rank=24, plain_dim=20, turned_dim=8, value_dim=18)
every_model = pytest.mark.parametrize(("family", "dtype", "weights"), MODELS)
Done = Mapping[str, Completion]


def config(family: str, **changes: object) -> ModelConfig:
    sizes: dict[str, object] = {
        "family": family,
        "vocab_size": 67,
        "hidden_size": 56,
        "intermediate_size": 72,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": family == "qwen3",
    }
    if family in ("qwen3_moe", "mixtral"):
        sizes |= {"num_experts": 7, "experts_per_token": 3, "moe_intermediate_size": 40}
        sizes |= {"mlp_only_layers": (1,)} if family == "qwen3_moe" else {"norm_topk_prob": True}
    if family == "deepseek_v3":
        sizes |= {"num_kv_heads": 6, "latent": LATENT, "head_dim": LATENT.head_dim, "mlp_only_layers": (0,)}
        sizes |= {"num_experts": 8, "experts_per_token": 3, "moe_intermediate_size": 40, "shared_expert_width": 40}
        sizes["router"] = Router(score="sigmoid", scale=2.5, groups=4, topk_groups=2, bias=True)
    if family == "llama":
        scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
        sizes["rope_scaling"] = Llama3Scaling(factor=4.0, **scaling)  # type: ignore[arg-type]
    return ModelConfig(**(sizes | changes))  # type: ignore[arg-type]


def forward(model: Transformer, sequences: Sequence[np.ndarray]) -> torch.Tensor:
    bounds = torch.tensor([0, *np.cumsum([len(each) for each in sequences])], dtype=torch.int32)
    context = PackedContext(bounds, model.compute, model.config.attention_scale)
    tokens_T: torch.Tensor = torch.from_numpy(np.concatenate(sequences).astype(np.int64))
    hidden_TD: torch.Tensor = model(tokens_T, context)
    return hidden_TD


def train(model: Transformer, steps: int = 12) -> None:
    """Learn a few fixed sequences by heart: peaked distributions, routers with preferences."""
    draw = np.random.default_rng(5)
    sequences = [draw.integers(0, model.config.vocab_size, 24) for _ in range(6)]
    targets_T = torch.from_numpy(np.concatenate([np.roll(each, -1) for each in sequences]))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        logprob_T, _ = linear_logprob(forward(model, sequences), model.head_VD, targets_T, 1.0, model.compute)
        (-logprob_T.mean()).backward()
        optimizer.step()


@lru_cache(maxsize=len(MODELS))
def model_of(family: str, dtype: str, weights: str) -> Transformer:
    torch.set_num_threads(2)
    model = Transformer(config(family, initializer_range=0.2), getattr(torch, dtype))
    model.init_weights(seed=3)
    for name, parameter in model.named_parameters():
        if name.endswith("router_bias_E"):
            parameter.data.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(1))
    if weights == "trained":
        train(model)
    return model


def requests(count: int = 10, temperature: float = 1.0, longest: int = 30) -> list[Request]:
    draw = np.random.default_rng(count)
    lengths = [1, 2, 15, 16, 17, 31, 33, 40, 64, 5][:count]
    return [
        Request(
            id=str(number),
            tokens_T=draw.integers(0, 67, length).astype(np.int32),
            params=SamplingParams(max_tokens=1 + (number * 7) % longest, temperature=temperature),
            seed=int(draw.integers(2**62)),
        )
        for number, length in enumerate(lengths)
    ]


def drain(engine: TokenGenerator) -> Done:
    found: list[Completion] = []
    while not engine.idle:
        found += engine.step()
    return {each.id: each for each in found}


def generate(model: Transformer, asked: Sequence[Request], **settings: int) -> tuple[Done, TokenGenerator]:
    engine = TokenGenerator(model, **{"pages": 128, **settings})
    engine.submit(asked)
    return drain(engine), engine


ALONE: dict[tuple[object, ...], Completion] = {}


def one_by_one(model: Transformer, asked: Sequence[Request]) -> Done:
    """Each request in an engine of its own; kept, since many tests ask the same of the same model."""
    done: dict[str, Completion] = {}
    for request in asked:
        key = (model, request.id, request.tokens_T.tobytes(), request.params, request.seed)
        if key not in ALONE:
            engine = TokenGenerator(model, pages=16, prefix_cache=False)
            engine.submit([request])
            ALONE[key] = drain(engine)[request.id]
        done[request.id] = ALONE[key]
    return done


def bits(values: np.ndarray) -> list[int]:
    return values.astype(np.float32).view(np.int32).tolist()  # type: ignore[no-any-return]


@torch.no_grad()
def trainer_logprobs(model: Transformer, asked: Sequence[Request], done: Done) -> dict[str, np.ndarray]:
    """One packed forward over all the sequences, longest first, at the requests' (one) temperature."""
    order = sorted(asked, key=lambda each: -len(each.tokens_T))
    sequences = [np.concatenate([each.tokens_T, done[each.id].tokens_T]) for each in order]
    ends = np.cumsum([len(each) for each in sequences])
    spans = [np.arange(end - len(done[each.id].tokens_T) - 1, end - 1) for each, end in zip(order, ends, strict=True)]
    rows_R = torch.from_numpy(np.concatenate(spans))
    targets_R = torch.from_numpy(np.concatenate(sequences).astype(np.int64))[rows_R + 1]
    temperature = asked[0].params.temperature or 1.0
    hidden_RD = forward(model, sequences)[rows_R]
    logprob_R, _ = linear_logprob(hidden_RD, model.head_VD, targets_R, temperature, model.compute)
    pieces = np.split(logprob_R.numpy(), np.cumsum([len(span) for span in spans])[:-1])
    return {each.id: piece for each, piece in zip(order, pieces, strict=True)}


def check(model: Transformer, asked: Sequence[Request], done: Done) -> None:
    expected = trainer_logprobs(model, asked, done)
    alone = one_by_one(model, asked)
    for request in asked:
        found = done[request.id]
        assert found.tokens_T.tolist() == alone[request.id].tokens_T.tolist(), request.id
        assert bits(found.logprob_T) == bits(alone[request.id].logprob_T), request.id
        assert bits(found.logprob_T) == bits(expected[request.id]), request.id


@every_model
def test_a_mixed_batch_says_what_the_trainer_says(family: str, dtype: str, weights: str) -> None:
    model = model_of(family, dtype, weights)
    for temperature in (1.0, 0.7, 0.0):
        asked = requests(temperature=temperature)
        done, _ = generate(model, asked)
        check(model, asked, done)


@every_model
def test_chunked_prefill_changes_no_bit(family: str, dtype: str, weights: str) -> None:
    model, asked = model_of(family, dtype, weights), requests()
    for budget in (1, 7, 33):
        done, engine = generate(model, asked, max_batch_tokens=budget)
        check(model, asked, done)
    assert engine.stats.steps > 1


@every_model
def test_late_joiners_change_no_bit(family: str, dtype: str, weights: str) -> None:
    model, asked = model_of(family, dtype, weights), requests()
    engine = TokenGenerator(model, pages=128, max_batch_tokens=24, max_sequences=5)
    done: dict[str, Completion] = {}
    for request in reversed(asked):
        engine.submit([request])
        for _ in range(2):
            done |= {each.id: each for each in engine.step()}
    check(model, asked, done | dict(drain(engine)))


@every_model
def test_preemption_changes_no_bit(family: str, dtype: str, weights: str) -> None:
    model, asked = model_of(family, dtype, weights), requests(longest=90)
    for prefix_cache in (False, True):
        done, engine = generate(model, asked, pages=8, prefix_cache=prefix_cache)
        assert engine.stats.preemptions > 0
        check(model, asked, done)


@every_model
def test_prefix_cache_hits_change_no_bit(family: str, dtype: str, weights: str) -> None:
    model = model_of(family, dtype, weights)
    prompt = np.arange(45, dtype=np.int32)
    asked = [
        Request(str(seed), prompt[: 45 - 13 * (seed % 3)], SamplingParams(max_tokens=20), seed, group=str(seed % 3))
        for seed in range(9)
    ]
    engine = TokenGenerator(model, pages=64)
    for _ in range(2):
        engine.submit(asked)
        done = drain(engine)
        check(model, asked, done)
    assert all(each.cached_tokens > 0 for each in done.values())
    generated = [
        Request(each.id, np.concatenate([each.tokens_T, done[each.id].tokens_T]), SamplingParams(max_tokens=9), 7)
        for each in asked
    ]
    engine.submit(generated)
    check(model, generated, drain(engine))
    assert engine.stats.cached_tokens > sum(each.cached_tokens for each in done.values())


@every_model
def test_equal_pages_after_different_beginnings_are_not_shared(family: str, dtype: str, weights: str) -> None:
    model = model_of(family, dtype, weights)
    engine = TokenGenerator(model, pages=64)
    pages = np.random.default_rng(9).integers(0, 67, (4, 16)).astype(np.int32)
    for number, (first, second) in enumerate(((0, 1), (2, 3), (2, 1))):
        prompt = np.concatenate([pages[first], pages[second], pages[0][:3]])
        asked = [Request(str(number), prompt, SamplingParams(max_tokens=6), 1)]
        engine.submit(asked)
        done = drain(engine)
        check(model, asked, done)
    assert done["2"].cached_tokens == 16


@every_model
def test_duplicated_logits_change_no_bit(family: str, dtype: str, weights: str) -> None:
    model = copy.deepcopy(model_of(family, dtype, weights))
    with torch.no_grad():
        model.head_VD[20:40] = model.head_VD[:20].clone()
        model.head_VD[40:60] = model.head_VD[0].clone()
    for temperature in (1.0, 0.0):
        asked = requests(temperature=temperature)
        done, _ = generate(model, asked, max_batch_tokens=19)
        check(model, asked, done)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_routers_and_empty_experts_change_no_bit(dtype: str) -> None:
    model = copy.deepcopy(model_of("qwen3_moe", dtype, "random"))
    with torch.no_grad():
        for block in model.blocks:
            if hasattr(block.mlp, "router_ED"):
                block.mlp.router_ED[:] = block.mlp.router_ED[0].clone()
    counted: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        bounds = torch.tensor([0, 20], dtype=torch.int32)
        context = PackedContext(
            bounds, model.compute, 0.25, watch=lambda layer, routing, _: counted.update({layer: routing.counts_E})
        )
        model(torch.arange(20), context)
    assert all(counts.tolist() == [20, 20, 20, 0, 0, 0, 0] for counts in counted.values())
    done, _ = generate(model, requests(), max_batch_tokens=21)
    check(model, requests(), done)


@every_model
def test_new_weights_between_two_tokens_give_each_token_the_bits_of_its_own_version(
    family: str, dtype: str, weights: str
) -> None:
    old = model_of(family, dtype, weights)
    model, asked = copy.deepcopy(old), requests()
    engine = TokenGenerator(model, pages=128, max_batch_tokens=48)
    engine.submit(asked)
    done: dict[str, Completion] = {}
    for _ in range(7):
        done |= {each.id: each for each in engine.step()}
    train(model, steps=2)
    engine.set_version(1)
    done |= drain(engine)
    assert {v for each in done.values() for v in each.version_T.tolist()} == {0, 1}
    by_version = [trainer_logprobs(each, asked, done) for each in (old, model)]
    for request in asked:
        found = done[request.id]
        expected = np.choose(found.version_T, [each[request.id] for each in by_version])
        assert bits(found.logprob_T) == bits(expected), request.id


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_products_on_amx_tiles_change_no_bit_between_generator_and_trainer(family: str) -> None:
    model, asked = copy.deepcopy(model_of(family, "bfloat16", "random")), requests()
    own = trainer_logprobs(model, asked, generate(model, asked)[0])
    _C.emulate_amx(True)
    try:
        train(model, steps=2)
        done, _ = generate(model, asked, max_batch_tokens=33)
        check(model, asked, done)
        tiles = trainer_logprobs(model, asked, done)
    finally:
        _C.emulate_amx(False)
    assert any(bits(own[each.id]) != bits(tiles[each.id]) for each in asked)  # the products did go another way


def test_the_seed_alone_decides_what_is_drawn() -> None:
    model = model_of("qwen3_moe", "float32", "random")
    prompt = np.arange(20, dtype=np.int32)

    def draw(seed: int, name: str, params: SamplingParams) -> Request:
        return Request(name, prompt, params, seed)

    for params in (SamplingParams(20), SamplingParams(20, top_k=5), SamplingParams(20, temperature=1.5, top_p=0.8)):
        same, _ = generate(model, [draw(1, "a", params), draw(2, "b", params), draw(1, "c", params)])
        alone = one_by_one(model, [draw(2, "b", params)])
        assert same["a"].tokens_T.tolist() == same["c"].tokens_T.tolist() != same["b"].tokens_T.tolist()
        assert same["b"].tokens_T.tolist() == alone["b"].tokens_T.tolist()
