"""The task of the RL benchmarks: a random Qwen3-MoE, a tokenizer of numbered words and prompts of a fixed length.

Answers never end early on either side, and nobody pays for suppressing a token: model and tokenizer name no token that
ends a sequence, and the one that TRL insists on has an id beyond what the model can draw.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

VOCABULARY = 128
END, PAD = "<end>", "<pad>"

# 7.15 M parameters: the RL step.
MIDDLE: dict[str, Any] = {
    "family": "qwen3_moe",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "num_experts": 8,
    "experts_per_token": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "max_position_embeddings": 1024,
}
# 0.3 M parameters: starting up.
SMALL = (
    MIDDLE
    | {"hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "head_dim": 16}
    | {"moe_intermediate_size": 80}
)


def word(token: int) -> str:
    """A token's text."""
    return f"t{token}"


def prompts(tokens: int, count: int = 64) -> list[str]:
    """Texts of so many tokens, all different."""
    draw = Random(0)
    return [" ".join(word(draw.randrange(VOCABULARY)) for _ in range(tokens)) for _ in range(count)]


def write_prompts(path: Path, tokens: int) -> Path:
    """The prompts as the JSON lines that `data.train` reads."""
    path.write_text("".join(json.dumps({"prompt": text, "answer": ""}) + "\n" for text in prompts(tokens)))
    return path


def write_model(folder: Path, sizes: dict[str, Any]) -> Path:
    """A Hugging Face folder with random weights and the tokenizer, which both sides load."""
    from seedthink.engine.model_io import save_model
    from seedthink.models.config import ModelConfig
    from seedthink.models.decoder import Transformer

    model = Transformer(ModelConfig(**sizes))
    model.init_weights(seed=0)
    with TemporaryDirectory() as tokenizer:
        _write_tokenizer(Path(tokenizer))
        return save_model(model, folder, tokenizer_folder=tokenizer)


def _write_tokenizer(folder: Path) -> None:
    import tokenizers

    words = [*map(word, range(VOCABULARY)), END, PAD]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({each: i for i, each in enumerate(words)}, PAD))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([END, PAD])
    (folder / "tokenizer.json").write_text(backend.to_str())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
