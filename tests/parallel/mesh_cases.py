"""What one rank and the ranks of a layout both compute: log-probs, values, gradients and answers of small models.

Everything is a function of seeds, so that the ranks and the test that compares with them agree on it unsaid.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from seedthink.config.sections import OptimizerConfig, RouterConfig
from seedthink.engine.generator import TokenGenerator
from seedthink.engine.micro_batch import unlabelled_batch
from seedthink.engine.trainer import Trainer, forward_only, policy_forward, value_forward
from seedthink.models.config import ModelConfig
from seedthink.models.cuts import cut_of
from seedthink.models.decoder import Transformer
from seedthink.models.value import ValueModel
from seedthink.parallel.layout import Layout
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.shards import shards_of
from seedthink.rl.loss import imitation
from seedthink.types import Batch, Completion, Request, SamplingParams

# name -> (family, compute, what is special about its weights); names that begin with "large" have a vocabulary of
# several blocks, the last one short.
MODELS = {
    "dense": ("qwen3", "float32", ""),
    "dense bfloat16": ("qwen3", "bfloat16", "ties"),
    "sparse": ("qwen3_moe", "float32", "ties"),
    "sparse bfloat16": ("qwen3_moe", "bfloat16", ""),
    "empty experts": ("qwen3_moe", "float32", "equal routers"),
    "one expert": ("qwen3_moe", "bfloat16", "one expert"),
    "llama": ("llama", "float32", "ties"),
    "qwen2 bfloat16": ("qwen2", "bfloat16", "biases"),
    "mixtral": ("mixtral", "float32", ""),
    "deepseek": ("deepseek_v3", "float32", "biases"),
    "deepseek bfloat16": ("deepseek_v3", "bfloat16", "biases"),
    "large vocabulary": ("qwen3_moe", "float32", "ties"),
    "large vocabulary, tied, bfloat16": ("qwen3", "bfloat16", "ties"),
}
# What a family has beside the sizes that all have; keys of its config.json.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "qwen2": {"hidden_size": 128, "tie_word_embeddings": True},
    "mixtral": {"hidden_size": 128, "num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 24},
    "deepseek_v3": {
        **{"q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10},
        **{"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_group": 4, "topk_group": 2},
        **{"first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 8},
    },
}
LAYOUTS = {
    2: {
        "tp2": Layout(tp=2),
        "cp2": Layout(cp=2),
        "ep2": Layout(dp_shard=2, ep=2),
        "tp2 ep2": Layout(tp=2, ep=2),
        "dp2": Layout(dp_replicate=2),
    },
    4: {
        "tp4": Layout(tp=4, ep=2),
        "cp4": Layout(cp=4),
        "tp2 cp2 ep4": Layout(tp=2, cp=2, ep=4),
        "dp2 cp2 ep2": Layout(dp_shard=2, cp=2, ep=2),
        "dp2 tp2 ep4": Layout(dp_shard=2, tp=2, ep=4),
        "dp2 x dp2 ep2": Layout(dp_replicate=2, dp_shard=2, ep=2),
    },
    8: {
        "tp4 cp2 ep8": Layout(tp=4, cp=2, ep=8),
        "tp2 cp4": Layout(tp=2, cp=4, ep=2),
        "dp2 cp2 tp2 ep8": Layout(dp_shard=2, cp=2, tp=2, ep=8),
        "dp2 x dp2 tp2 ep4": Layout(dp_replicate=2, dp_shard=2, tp=2, ep=4),
    },
}
HF_SIZES: dict[str, Any] = {"vocab_size": 67, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3}
HF_SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128}
HF_SIZES |= {"initializer_range": 0.2}
FEW = ["sparse", "dense bfloat16", "one expert", "deepseek", "large vocabulary"]
LEARNT = ["sparse", "large vocabulary"]
LARGE = [name for name in MODELS if name.startswith("large")]
STEPS = 3


def plan(size: int) -> list[tuple[str, str, str]]:
    """(layout, model, case): every forward on two ranks; on more, where messages are slow, the telling ones."""
    found = []
    for layout, axes in LAYOUTS[size].items():
        found += [(layout, model, case) for model in (MODELS if size == 2 else FEW) for case in ("scores", "answers")]
        found += [(layout, model, "learnt") for model in ([*FEW, *LARGE] if size == 2 else LEARNT)]
        found += [(layout, model, "evened") for model in ("sparse", "deepseek")]
        if size == 2 or axes.ep == size:
            cases = ("learnt_again", "restored", "loaded", "runs", "spoilt")
            found += [(layout, "sparse", case) for case in cases]
            found += [(layout, LARGE[0], case) for case in (cases if size == 2 else ["restored"])]
            found.append((layout, LARGE[1], "loaded"))
    return list(dict.fromkeys(found))


def vocabulary(name: str) -> int:
    return 2500 if name in LARGE else 67


def config(name: str) -> ModelConfig:
    family, _, special = MODELS[name]
    if family in FAMILIES:
        return ModelConfig.from_hf(HF_SIZES | {"model_type": family} | FAMILIES[family])
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary(name),
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_layers": 3,
    }
    sizes |= {"num_layers": 3, "num_heads": 8, "num_kv_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
    if family == "qwen3_moe":
        sizes |= {"num_experts": 8, "experts_per_token": 1 if special == "one expert" else 3}
        sizes |= {"moe_intermediate_size": 24, "mlp_only_layers": (1,), "norm_topk_prob": True}
    return ModelConfig(family=family, tie_word_embeddings=family == "qwen3", initializer_range=0.2, **sizes)


def policy(name: str, mesh: Mesh | None) -> Transformer:
    _, compute, special = MODELS[name]
    model = Transformer(config(name), getattr(torch, compute), shards=shards_of(mesh))
    model.init_weights(seed=3)
    with torch.no_grad():
        if special == "ties":
            with_ties(model)
        if special == "biases":
            for n, parameter in model.named_parameters():
                if "bias" in n:
                    whole = torch.linspace(-0.3, 0.3, cut_of(n, parameter, model.config, model.shards.seat).rows)
                    parameter[:] = cut_of(n, parameter, model.config, model.shards.seat).of(whole)
        if special in ("equal routers", "one expert"):
            for parameter in (p for n, p in model.named_parameters() if "router" in n):
                parameter[:] = parameter[0].clone()
    return model


def with_ties(model: Transformer) -> None:
    """Tokens of one likelihood, in one block and in several."""
    one = Transformer(model.config)
    one.init_weights(seed=3)
    for begin in (40, 1100, 2040):
        one.head_VD[begin : begin + 20] = one.head_VD[: len(one.head_VD[begin : begin + 20])].clone()
    name = "embed_VD" if model.config.tie_word_embeddings else "unembed_VD"
    model.head_VD[:] = cut_of(name, model.head_VD, model.config, model.shards.seat).of(one.head_VD)


def sequences(step: int = 0, spread: int = 1) -> list[np.ndarray]:
    """Answers to three prompts, two of them to the first, of lengths that no number of ranks divides.

    spread: every how manieth token occurs.
    """
    draw = np.random.default_rng(step)
    prompts = [draw.integers(0, 67, length).astype(np.int32) for length in (19, 19, 5, 1)]
    prompts[1] = prompts[0]
    answers = [draw.integers(0, 67, length).astype(np.int32) for length in (7, 13, 2, 16)]
    return [np.concatenate(pair) * np.int32(spread) for pair in zip(prompts, answers, strict=True)]


PROMPTS = (19, 19, 5, 1)


def batch(name: str, members: list[int], step: int = 0) -> Batch:
    """These of the sequences, in micro-batches of at most 40 tokens; the counts are those of all."""
    texts = sequences(step, vocabulary(name) // 67)
    masks = [np.concatenate([np.zeros(p), np.ones(len(t) - p)]) for p, t in zip(PROMPTS, texts, strict=True)]
    chosen = [texts[at] for at in members], [masks[at] for at in members]
    return unlabelled_batch(*chosen, 60, float(sum(m.sum() for m in masks)), float(len(texts)))


def members(mesh: Mesh | None) -> list[int]:
    """Data index i of n has sequences i, i + n, ...; the last of four has none where there are five."""
    if mesh is None:
        return [0, 1, 2, 3]
    return [0, 1, 2, 3][mesh.layout.data_index(mesh.rank) :: mesh.layout.data]


def scores(name: str, mesh: Mesh | None) -> dict[str, torch.Tensor]:
    """Log-probs and values of every sequence of this rank."""
    model = policy(name, mesh)
    mine = members(mesh)
    packed = batch(name, mine)
    critic = ValueModel.from_policy(model)
    with torch.no_grad():
        critic.head_1D[:] = torch.linspace(-1, 1, model.config.hidden_size)
    logprobs = forward_only(model, partial(policy_forward, temperature=0.7), packed, mesh)
    values = forward_only(critic, value_forward, packed, mesh)
    found = {}
    for kind, array in (("logprob", logprobs), ("value", values)):
        for at, number in enumerate(mine):
            begin, end = packed.cu_seqlens[at : at + 2]
            found[f"{kind} {number}"] = torch.from_numpy(array[begin:end])
    return found


def learnt(name: str, mesh: Mesh | None) -> dict[str, Any]:
    """The first gradient, losses and norms of some steps, and the weights after them (this rank's parts)."""
    model = policy(name, mesh)
    trainer = Trainer(model, policy_forward, OptimizerConfig(lr=1e-3, grad_clip=0.5), STEPS, mesh)
    found: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(STEPS):
        update = trainer.learn(batch(name, members(mesh), step), imitation)
        found["losses"].append(update.metrics["train/loss"])
        found["norms"].append(update.grad_norm)
        if step == 0:
            found["gradients"] = parts(trainer, [p.grad for p in trainer.parameters if p.grad is not None])
    found["weights"] = parts(trainer, [p.detach() for p in trainer.parameters])
    return found


def parts(trainer: Trainer, held: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's parts by name, of what it holds of them."""
    return {n: trainer.storage.join(n, each).clone() for n, each in zip(trainer.names, held, strict=True)}


learnt_again = learnt


def asked(ignore_eos: bool = True) -> list[Request]:
    """Prompts of many lengths, two of them a group that shares its first page; drawn, greedy and cut."""
    draw = np.random.default_rng(7)
    prompts = [draw.integers(0, 67, length).astype(np.int32) for length in (1, 17, 17, 33, 5)]
    prompts[2] = prompts[1]
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7},
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"top_k": 5, "top_p": 0.9},
    ]
    return [
        Request(str(n), prompt, SamplingParams(max_tokens=4 + 2 * n, ignore_eos=ignore_eos, **way), 11 + n, group)
        for n, (prompt, way, group) in enumerate(zip(prompts, ways, ["", "g", "g", "", ""], strict=True))
    ]


def answers(name: str, mesh: Mesh | None) -> dict[str, torch.Tensor]:
    """Tokens and log-probs of every request of this rank: few pages and small steps, so that work is put off."""
    generator = TokenGenerator(policy(name, mesh), pages=8, max_batch_tokens=13, mesh=mesh)
    # All work to the first data index: the others step along without any.
    if mesh is None or mesh.layout.data_index(mesh.rank) == 0:
        generator.submit(asked())
    done: dict[str, Completion] = {}
    while len(done) < len(asked()):
        found = generator.collect(1.0)
        done |= {each.id: each for each in found}
        if mesh is not None and mesh.meeting.most([not generator.idle])[0] == 0:
            break
    tokens = {f"tokens {each.id}": torch.from_numpy(each.tokens_T) for each in done.values()}
    return tokens | {f"logprobs {each.id}": torch.from_numpy(each.logprob_T) for each in done.values()}


def restored(name: str, mesh: Mesh | None) -> dict[str, torch.Tensor]:
    """What rank 0 would save after a step; and the log-probs of a fresh trainer that restores it."""
    trainer = Trainer(policy(name, mesh), policy_forward, OptimizerConfig(lr=1e-2), STEPS, mesh)
    trainer.learn(batch(name, members(mesh)), imitation)
    saved = {key: value.clone() for key, value in trainer.state().items()}
    held = {n: p.detach().clone() for n, p in zip(trainer.names, trainer.parameters, strict=True)}
    whole = saved if mesh is None else mesh.world.tell(saved)[0]
    other = Trainer(policy(name, mesh), policy_forward, OptimizerConfig(lr=1e-2), STEPS, mesh)
    other.load_state(whole)
    same = all(torch.equal(p, held[n]) for n, p in zip(other.names, other.parameters, strict=True))
    assert same and other.step == 1, "a rank has its parts back"
    assert all(
        torch.equal(other.optimizer.state[p]["exp_avg"], trainer.optimizer.state[q]["exp_avg"])
        for p, q in zip(other.parameters, trainer.parameters, strict=True)
    )
    return whole


@torch.no_grad()
def spoil(name: str, model: Transformer) -> None:
    """NaN for a token that only one sequence of the first batch has."""
    token = int(sequences(0, vocabulary(name) // 67)[1][25])
    cut = cut_of("embed_VD", model.embed_VD, model.config, model.shards.seat)
    for here, _ in cut.places((slice(token, token + 1),)):
        model.embed_VD[here] = torch.nan


def spoilt(name: str, mesh: Mesh | None) -> str:
    """Why a step is skipped where a router computes NaN for a token that only one sequence has."""
    model = policy(name, mesh)
    spoil(name, model)
    router = RouterConfig(balance_loss=0.1)
    trainer = Trainer(model, policy_forward, OptimizerConfig(lr=1e-2), STEPS, mesh, router=router)
    packed = batch(name, members(mesh))
    before = [p.clone() for p in trainer.parameters]
    why = trainer.learn(packed, imitation).skipped
    assert all(torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(trainer.parameters, before, strict=True))
    return why
