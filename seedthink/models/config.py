"""What a model is made of, read from and written to a Hugging Face config.json.

Only what changes the computation is kept. A setting that this project does not compute (sliding windows, other biases,
quantised weights) is refused by name: ignoring it would load without a word and answer wrongly. Missing keys take the
defaults of the family's config class in transformers; sizes have none. What sets families apart stands in families/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seedthink.errors import ConfigError, DataError
from seedthink.kernels.rope_scaling import RopeScaling, YarnScaling
from seedthink.models.families.family import ExpertNames
from seedthink.models.families.registry import FAMILIES
from seedthink.models.families.rope import read_rope, write_rope
from seedthink.models.families.values import flag, integer, integers, number, token_id
from seedthink.models.variants import PLAIN_ROUTER, LatentSizes, Router

_CONSTANT = {  # in every family: keys of config.json for which one value is computed
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of a model; `family` is one of families/registry.py, as config.json's model_type spells it.

    `intermediate_size` is the width of dense MLPs, `moe_intermediate_size` that of one expert, `shared_expert_width`
    that of the MLP that all tokens of a sparse layer go through. A layer is sparse where `is_sparse(layer)` says so.
    `head_dim` is a head's width in attention and its cache, `max_position_embeddings` the longest sequence in tokens.
    Errors: ConfigError names the key and the value that cannot be.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    router: Router = PLAIN_ROUTER
    shared_expert_width: int = 0
    latent: LatentSizes | None = None
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"family = {self.family!r} is not supported; choose one of {', '.join(FAMILIES)}")
        sizes = [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        ]
        sizes += ["rope_theta", "rms_norm_eps", "max_position_embeddings"]
        if self.expert_names is not None:
            sizes += ["num_experts", "experts_per_token", "moe_intermediate_size", "decoder_sparse_step"]
        for key in sizes:
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} = {getattr(self, key)} must be positive")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads = {self.num_heads} must be a multiple of num_kv_heads = {self.num_kv_heads}")
        if self.head_dim % 16 or self.head_dim > 256:
            raise ConfigError(f"head_dim = {self.head_dim} must be a multiple of 16 up to 256 (attention kernels)")
        for key, value in FAMILIES[self.family].fixed.items():
            if getattr(self, key) != value:
                raise ConfigError(f"{key} = {getattr(self, key)} must be {value} in the family {self.family!r}")
        if self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"experts_per_token = {self.experts_per_token} is more than num_experts = {self.num_experts}"
            )
        FAMILIES[self.family].check(self)

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head."""
        return FAMILIES[self.family].qk_norm

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have a bias."""
        return FAMILIES[self.family].qkv_bias

    @property
    def expert_names(self) -> ExpertNames | None:
        """Hugging Face names of the sparse layers' tensors; None in a family without experts."""
        return FAMILIES[self.family].experts

    @property
    def rope_dim(self) -> int:
        """The entries of a head that carry its position."""
        return self.head_dim if self.latent is None else self.latent.turned_dim

    @property
    def attention_scale(self) -> float:
        """What q.k is multiplied by."""
        if self.latent is None:
            return self.head_dim**-0.5
        gain = self.rope_scaling.score_gain if isinstance(self.rope_scaling, YarnScaling) else 1.0
        return float(self.latent.key_dim**-0.5 * gain)

    def is_sparse(self, layer: int) -> bool:
        """Whether layer number `layer` (from 0) holds experts."""
        if self.num_experts == 0 or layer in self.mlp_only_layers:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
        """Reads the keys of a config.json; end-of-sequence ids come from `generation` (generation_config.json) first.

        Errors: DataError names the key that is missing, of the wrong type or not supported, and what is.
        """
        name = config.get("model_type")
        if name not in FAMILIES:
            supported = ", ".join(f"{each} ({FAMILIES[each].architecture})" for each in FAMILIES)
            raise DataError(f"config.json: model_type = {name!r} is not supported; supported: {supported}")
        family = FAMILIES[name]
        config = {**family.defaults, **config}
        _refuse_unsupported(config, {**_CONSTANT, **family.constant})
        ids = {**config, **{k: v for k, v in (generation or {}).items() if v is not None}}
        heads, hidden = integer(config, "num_attention_heads"), integer(config, "hidden_size")
        theta, scaling = read_rope(config)
        fields = {
            "family": name,
            "vocab_size": integer(config, "vocab_size"),
            "hidden_size": hidden,
            "intermediate_size": integer(config, "intermediate_size"),
            "num_layers": integer(config, "num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": integer(config, "num_key_value_heads", heads),
            "head_dim": integer(config, "head_dim", hidden // max(heads, 1)),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "rms_norm_eps": number(config, "rms_norm_eps", 1e-6),
            "tie_word_embeddings": flag(config, "tie_word_embeddings"),
            "max_position_embeddings": integer(config, "max_position_embeddings", 32768),
            "initializer_range": number(config, "initializer_range", 0.02),
            "eos_token_ids": integers(ids, "eos_token_id"),
            "bos_token_id": token_id(ids, "bos_token_id"),
            "pad_token_id": token_id(ids, "pad_token_id"),
        }
        try:
            return cls(**{**fields, **family.fixed, **family.read(config)})
        except ConfigError as error:
            raise DataError(f"config.json: {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """The config.json of this model, in the form of published folders: transformers 4 and 5 read it."""
        family, eos = FAMILIES[self.family], list(self.eos_token_ids)
        config: dict[str, Any] = {
            "architectures": [family.architecture],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": (eos[0] if len(eos) == 1 else eos) if eos else None,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.family,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": write_rope(self.rope_scaling),
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        return dict(sorted({**config, **family.constant, **family.write(self)}.items()))


def _refuse_unsupported(config: Mapping[str, Any], constant: Mapping[str, Any]) -> None:
    for key, value in constant.items():
        if config.get(key) not in (None, value):
            raise DataError(
                f"config.json: {key} = {config[key]!r} is not supported; supported: {json.dumps(value)}"
                + (" (export the weights in bf16, fp16 or fp32)" if key == "quantization_config" else "")
            )
    layer_types = sorted({kind for kind in config.get("layer_types") or () if kind != "full_attention"})
    if layer_types:
        raise DataError(
            f'config.json: layer_types = {layer_types!r} is not supported; supported: "full_attention" in every layer'
        )
