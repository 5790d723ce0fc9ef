"""Small model folders made by transformers itself, and our models held against them: the yardstick of these tests.

Options are keys of config.json; without model_type they are Qwen3's, or Qwen3-MoE's where they name experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from seedthink.engine.model_io import load_model, load_value_model, save_model, save_value_model
from seedthink.models.context import PackedContext
from seedthink.models.decoder import Transformer
from seedthink.models.names import policy_places
from seedthink.models.value import ValueModel

DENSE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.2}
DENSE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
SPARSE = DENSE | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}

CONFIGS: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "dense tied": DENSE | {"tie_word_embeddings": True},
    "one kv head": DENSE | {"num_key_value_heads": 1, "rope_theta": 1000000.0},
    "as many kv heads": DENSE | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "head width is not hidden / heads": DENSE | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 48},
    "odd sizes": DENSE | {"vocab_size": 101, "hidden_size": 37, "intermediate_size": 53, "head_dim": 32},
    "sparse": SPARSE,
    "sparse, weights as they are": SPARSE | {"norm_topk_prob": False, "tie_word_embeddings": True},
    "every second layer sparse": SPARSE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "rope_theta": 500.0},
    "named layers dense": SPARSE | {"num_hidden_layers": 3, "mlp_only_layers": [0, 2], "norm_topk_prob": False},
    "one expert of odd width": SPARSE | {"num_experts": 5, "num_experts_per_tok": 1, "moe_intermediate_size": 19},
    "all experts": SPARSE | {"num_experts": 3, "num_experts_per_tok": 3, "hidden_size": 45, "num_key_value_heads": 4},
}


def build(options: dict[str, Any]) -> PreTrainedModel:
    """A transformers model in float32 whose norms are not all ones, nor its biases zeros."""
    torch.manual_seed(len(str(options)))
    options = {"model_type": "qwen3_moe" if "num_experts" in options else "qwen3"} | options
    config = AutoConfig.for_model(**options, attn_implementation="eager", experts_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.3)
    return model


def folder(path: Path, options: dict[str, Any], **saving: Any) -> tuple[Path, PreTrainedModel]:
    """`build(options)` and the folder that its save_pretrained wrote under `path`."""
    model = build(options)
    model.save_pretrained(path / "model", **saving)
    return path / "model", model


def packed(model: Transformer | ValueModel, *lengths: int) -> PackedContext:
    """Whole sequences of these lengths."""
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    return PackedContext(cu_seqlens, model.compute, model.config.attention_scale)


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


@torch.no_grad()
def logits_gap(path: Path, options: dict[str, Any], tokens: int = 41) -> float:
    """How far our logits of a folder are from those of the model that wrote it."""
    written, theirs = folder(path, options)
    ours = load_model(written)
    tokens_T = torch.randint(0, options["vocab_size"], (tokens,))
    return gap(ours.logits(ours(tokens_T, packed(ours, tokens))), theirs(tokens_T[None]).logits[0])


def gradient_gaps(path: Path, options: dict[str, Any]) -> dict[str, float]:
    """How far the gradient of each Hugging Face tensor, cut out of our parameters, is from transformers' own."""
    written, theirs = folder(path, options)
    ours = load_model(written)
    tokens_T = torch.randint(0, options["vocab_size"], (19,))
    slope_TV = torch.randn(19, options["vocab_size"])
    (ours.logits(ours(tokens_T, packed(ours, 19))) * slope_TV).sum().backward()
    (theirs(tokens_T[None]).logits[0] * slope_TV).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    theirs.save_pretrained(path / "gradients", state_dict=gradients)
    expected = load_file(path / "gradients" / "model.safetensors")
    found = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    places = {name: place for name, place in policy_places(ours.config).items() if place[0] in found}
    assert places.keys() == expected.keys()
    return {name: gap(found[ours].grad[index], expected[name]) for name, (ours, index) in places.items()}


@torch.no_grad()
def export_gap(path: Path, options: dict[str, Any]) -> float:
    """How far transformers' logits of the folder that we write are from those of the folder that we read.

    Both are read from disk; they must also agree with the model that never left memory.
    """
    written, original = folder(path, options)
    again = AutoModelForCausalLM.from_pretrained(save_model(load_model(written), path / "ours"))
    first = AutoModelForCausalLM.from_pretrained(written)
    tokens_T = torch.randint(0, options["vocab_size"], (1, 23))
    assert gap(again(tokens_T).logits, original(tokens_T).logits) <= 1e-5
    return gap(again(tokens_T).logits, first(tokens_T).logits)


@torch.no_grad()
def critic_gap(path: Path, options: dict[str, Any]) -> float:
    """How far transformers' token classifier, read from a critic's folder, is from the critic; ours reads its bits."""
    critic = ValueModel.from_policy(load_model(folder(path, options)[0]))
    critic.head_1D.normal_()
    critic.head_bias_1.fill_(0.25)
    written = save_value_model(critic, path / "critic")
    again, theirs = load_value_model(written), AutoModelForTokenClassification.from_pretrained(written).eval()
    tokens_T = torch.arange(13)
    values_T = critic(tokens_T, packed(critic, 13))
    assert torch.equal(again(tokens_T, packed(again, 13)), values_T)
    return gap(values_T, theirs(tokens_T[None]).logits[0, :, 0])
