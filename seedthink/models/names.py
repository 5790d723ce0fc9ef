"""Where each Hugging Face tensor of a model lives in our parameters; read forwards to load, backwards to save.

A place is (parameter name, index): the HF tensor is exactly `parameter[index]`, a view, so one table serves import,
export and their shape checks. q, k, v and gate, up are row ranges of one weight; an expert is an index of a stack.
"""

from __future__ import annotations

from seedthink.models.config import ModelConfig
from seedthink.models.families.registry import FAMILIES

Place = tuple[str, tuple[int | slice, ...]]

_WHOLE: tuple[slice, ...] = ()


def policy_places(config: ModelConfig) -> dict[str, Place]:
    """HF tensor name -> place in a `Transformer`, in the order of the layers. A tied head has no tensor of its own."""
    places = _trunk_places(config, "")
    if not config.tie_word_embeddings:
        places["lm_head.weight"] = ("unembed_VD", _WHOLE)
    return places


def value_places(config: ModelConfig) -> dict[str, Place]:
    """HF tensor name -> place in a `ValueModel`; the names are those of a token classifier with one label."""
    places = _trunk_places(config, "trunk.")
    places["score.weight"] = ("head_1D", _WHOLE)
    places["score.bias"] = ("head_bias_1", _WHOLE)
    return places


def tied_names(config: ModelConfig) -> dict[str, str]:
    """HF tensors that a folder may hold although the model ties them -> the HF tensor that they must equal."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}


def left_out(config: ModelConfig) -> tuple[str, ...]:
    """Beginnings of the names of tensors that a folder may hold and the model does not."""
    return (f"model.layers.{config.num_layers}.",) if FAMILIES[config.family].further_layers else ()


def _trunk_places(config: ModelConfig, prefix: str) -> dict[str, Place]:
    places: dict[str, Place] = {"model.embed_tokens.weight": (f"{prefix}embed_VD", _WHOLE)}
    for layer in range(config.num_layers):
        hf, ours = f"model.layers.{layer}", f"{prefix}blocks.{layer}"
        places[f"{hf}.input_layernorm.weight"] = (f"{ours}.attention_norm_D", _WHOLE)
        attention = _attention_places if config.latent is None else _latent_places
        places |= attention(config, f"{hf}.self_attn", f"{ours}.attention")
        places[f"{hf}.post_attention_layernorm.weight"] = (f"{ours}.mlp_norm_D", _WHOLE)
        if config.is_sparse(layer):
            places |= _expert_places(config, hf, f"{ours}.mlp")
        else:
            places |= _dense_places(f"{hf}.mlp", f"{ours}.mlp", config.intermediate_size)
    places["model.norm.weight"] = (f"{prefix}norm_D", _WHOLE)
    return places


def _attention_places(config: ModelConfig, hf: str, ours: str) -> dict[str, Place]:
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    rows = {"q_proj": slice(0, q), "k_proj": slice(q, q + kv), "v_proj": slice(q + kv, q + 2 * kv)}
    places: dict[str, Place] = {f"{hf}.{name}.weight": (f"{ours}.qkv_weight", (part,)) for name, part in rows.items()}
    if config.qkv_bias:
        places |= {f"{hf}.{name}.bias": (f"{ours}.qkv_bias_X", (part,)) for name, part in rows.items()}
    if config.qk_norm:
        places |= {f"{hf}.{x}_norm.weight": (f"{ours}.{x}_norm_H", _WHOLE) for x in ("q", "k")}
    return places | {f"{hf}.o_proj.weight": (f"{ours}.out_weight", _WHOLE)}


def _latent_places(config: ModelConfig, hf: str, ours: str) -> dict[str, Place]:
    sizes = config.latent
    assert sizes is not None, "latent attention has its sizes"
    q = config.num_heads * sizes.key_dim if sizes.q_rank is None else sizes.q_rank
    places: dict[str, Place] = {
        f"{hf}.kv_a_proj_with_mqa.weight": (f"{ours}.first_weight", (slice(q, None),)),
        f"{hf}.kv_a_layernorm.weight": (f"{ours}.kv_norm_R", _WHOLE),
        f"{hf}.kv_b_proj.weight": (f"{ours}.kv_weight", _WHOLE),
        f"{hf}.o_proj.weight": (f"{ours}.out_weight", _WHOLE),
    }
    name = "q_proj" if sizes.q_rank is None else "q_a_proj"
    places[f"{hf}.{name}.weight"] = (f"{ours}.first_weight", (slice(0, q),))
    if sizes.q_rank is not None:
        places[f"{hf}.q_a_layernorm.weight"] = (f"{ours}.q_norm_R", _WHOLE)
        places[f"{hf}.q_b_proj.weight"] = (f"{ours}.q_weight", _WHOLE)
    return places


def _dense_places(hf: str, ours: str, width: int) -> dict[str, Place]:
    return {
        f"{hf}.gate_proj.weight": (f"{ours}.gate_up_2I_D", (slice(0, width),)),
        f"{hf}.up_proj.weight": (f"{ours}.gate_up_2I_D", (slice(width, 2 * width),)),
        f"{hf}.down_proj.weight": (f"{ours}.down_D_I", _WHOLE),
    }


def _expert_places(config: ModelConfig, layer: str, ours: str) -> dict[str, Place]:
    names, width = config.expert_names, config.moe_intermediate_size
    assert names is not None, "a family with sparse layers names their tensors"
    hf = f"{layer}.{names.module}"
    places: dict[str, Place] = {f"{hf}.gate.weight": (f"{ours}.router_ED", _WHOLE)}
    if config.router.bias:
        places[f"{hf}.gate.e_score_correction_bias"] = (f"{ours}.router_bias_E", _WHOLE)
    if config.shared_expert_width:
        places |= _dense_places(f"{hf}.shared_experts", f"{ours}.shared", config.shared_expert_width)
    for expert in range(config.num_experts):
        each = f"{hf}.experts.{expert}"
        places[f"{each}.{names.gate}.weight"] = (f"{ours}.gate_up_E_2I_D", (expert, slice(0, width)))
        places[f"{each}.{names.up}.weight"] = (f"{ours}.gate_up_E_2I_D", (expert, slice(width, 2 * width)))
        places[f"{each}.{names.down}.weight"] = (f"{ours}.down_E_D_I", (expert,))
    return places
