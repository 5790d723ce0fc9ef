"""What a model is made of, read from and written to a Hugging Face config.json.

Only what changes the computation is kept. A setting that this project does not compute (rope scaling, sliding windows,
biases, quantised weights) is refused by name: ignoring it would load without a word and answer wrongly. Missing keys
take the defaults of transformers' Qwen3Config and Qwen3MoeConfig; sizes have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seedthink.errors import ConfigError, DataError

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of a Qwen3 ("qwen3") or Qwen3-MoE ("qwen3_moe") model.

    `intermediate_size` is the width of dense MLPs, `moe_intermediate_size` that of one expert. A layer is sparse where
    `is_sparse(layer)` says so. `max_position_embeddings` is the longest sequence in tokens.
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
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.family not in ARCHITECTURES:
            raise ConfigError(f"family = {self.family!r} is not supported; choose one of {', '.join(ARCHITECTURES)}")
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
        if self.family == "qwen3_moe":
            sizes += ["num_experts", "experts_per_token", "moe_intermediate_size", "decoder_sparse_step"]
        for key in sizes:
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} = {getattr(self, key)} must be positive")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads = {self.num_heads} must be a multiple of num_kv_heads = {self.num_kv_heads}")
        if self.head_dim % 16 or self.head_dim > 256:
            raise ConfigError(f"head_dim = {self.head_dim} must be a multiple of 16 up to 256 (attention kernels)")
        if self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"experts_per_token = {self.experts_per_token} is more than num_experts = {self.num_experts}"
            )

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
        family = config.get("model_type")
        if family not in ARCHITECTURES:
            supported = ", ".join(f"{name} ({ARCHITECTURES[name]})" for name in ARCHITECTURES)
            raise DataError(f"config.json: model_type = {family!r} is not supported; supported: {supported}")
        _refuse_unsupported(config)
        ids = {**config, **{k: v for k, v in (generation or {}).items() if v is not None}}
        heads, hidden = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
        sparse: dict[str, Any] = {}
        if family == "qwen3_moe":
            experts = "num_experts" if "num_experts" in config else "num_local_experts"
            sparse = {
                "num_experts": _integer(config, experts),
                "experts_per_token": _integer(config, "num_experts_per_tok"),
                "moe_intermediate_size": _integer(config, "moe_intermediate_size"),
                "norm_topk_prob": _flag(config, "norm_topk_prob"),
                "decoder_sparse_step": _integer(config, "decoder_sparse_step", 1),
                "mlp_only_layers": _integers(config, "mlp_only_layers"),
            }
        try:
            return cls(
                family=family,
                vocab_size=_integer(config, "vocab_size"),
                hidden_size=hidden,
                intermediate_size=_integer(config, "intermediate_size"),
                num_layers=_integer(config, "num_hidden_layers"),
                num_heads=heads,
                num_kv_heads=_integer(config, "num_key_value_heads", heads),
                head_dim=_integer(config, "head_dim", 128 if family == "qwen3" else hidden // max(heads, 1)),
                rope_theta=_rope_theta(config),
                rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
                tie_word_embeddings=_flag(config, "tie_word_embeddings"),
                max_position_embeddings=_integer(config, "max_position_embeddings", 32768),
                initializer_range=_number(config, "initializer_range", 0.02),
                eos_token_ids=_integers(ids, "eos_token_id"),
                bos_token_id=_token_id(ids, "bos_token_id"),
                pad_token_id=_token_id(ids, "pad_token_id"),
                **sparse,
            )
        except ConfigError as error:
            raise DataError(f"config.json: {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """The config.json of this model, in the form of the published Qwen3 folders: transformers 4 and 5 read it."""
        eos = list(self.eos_token_ids)
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.family]],
            "attention_bias": False,
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
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }
        if self.family == "qwen3_moe":
            config |= {
                "decoder_sparse_step": self.decoder_sparse_step,
                "mlp_only_layers": list(self.mlp_only_layers),
                "moe_intermediate_size": self.moe_intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.experts_per_token,
            }
        return config


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    rope = _rope(config)
    layer_types = sorted({kind for kind in config.get("layer_types") or () if kind != "full_attention"})
    found = {
        "attention_bias": (config.get("attention_bias", False), "false"),
        "attention_dropout": (config.get("attention_dropout", 0.0), "0"),
        "use_sliding_window": (config.get("use_sliding_window", False), "false"),
        "layer_types": (layer_types, '"full_attention" in every layer'),
        "quantization_config": (config.get("quantization_config"), "none: export the weights in bf16, fp16 or fp32"),
        "rope_parameters (or rope_scaling)": (
            {k: v for k, v in rope.items() if not _plain_rope(k, v)},
            'rope_type "default" with one rope_theta',
        ),
        "partial_rotary_factor": (config.get("partial_rotary_factor", 1) != 1, "1"),
        "hidden_act": (None if config.get("hidden_act", "silu") == "silu" else config["hidden_act"], '"silu"'),
    }
    for key, (value, allowed) in found.items():
        if value:
            raise DataError(f"config.json: {key} = {value!r} is not supported; supported: {allowed}")


def _plain_rope(key: str, value: Any) -> bool:
    if key in ("rope_type", "type"):
        return bool(value == "default")
    if key == "partial_rotary_factor":
        return bool(value == 1)
    return key == "rope_theta"


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def _rope_theta(config: Mapping[str, Any]) -> float:
    rope = _rope(config)
    return _number(rope if "rope_theta" in rope else config, "rope_theta", 10000.0)


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise DataError(f"config.json: {key} is missing; this model cannot be built without it")
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"config.json: {key} = {value!r} must be an integer")
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"config.json: {key} = {value!r} must be a number")
    return float(value)


def _token_id(config: Mapping[str, Any], key: str) -> int | None:
    return None if config.get(key) is None else _integer(config, key)


def _integers(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config.get(key)
    several = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(_integer({key: one}, key) for one in several)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise DataError(f"config.json: {key} = {value!r} must be true or false")
    return value
