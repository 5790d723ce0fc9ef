"""Models from and to Hugging Face folders: architecture, name table and files put together.

Weights are float32 parameters whatever the folder holds; `compute` only decides how products round their operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seedthink.checkpoint.hf import load_hf, open_hf, save_hf, tokenizer_files
from seedthink.errors import DataError
from seedthink.models.config import ModelConfig
from seedthink.models.cuts import cuts_of
from seedthink.models.decoder import Transformer
from seedthink.models.names import left_out, policy_places, tied_names, value_places
from seedthink.models.value import ValueModel
from seedthink.parallel.shards import WHOLE, Shards


def load_model(folder: str | Path, compute: torch.dtype = torch.float32, shards: Shards = WHOLE) -> Transformer:
    """A policy with the folder's weights, or with this rank's part of them, which alone is read then.

    Errors: DataError names the file, key or tensor that is missing, cut short, unsupported or of another shape.
    """
    opened = open_hf(folder)
    config = _config(opened.path, opened.config, opened.generation)
    model = Transformer(config, compute, shards=shards)
    places, cuts = policy_places(config), cuts_of(model, config, shards.seat)
    load_hf(opened, dict(model.named_parameters()), places, tied_names(config), left_out(config), cuts)
    return model


def read_config(folder: str | Path) -> ModelConfig:
    """What a folder's model is made of, without its weights, of which only the headers are read. Errors: as there."""
    opened = open_hf(folder)
    return _config(opened.path, opened.config, opened.generation)


def load_value_model(folder: str | Path, compute: torch.dtype = torch.float32, shards: Shards = WHOLE) -> ValueModel:
    """A critic from a folder that `save_value_model` wrote. Errors: as `load_model`."""
    opened = open_hf(folder)
    config = _config(opened.path, opened.config, opened.generation)
    model = ValueModel(Transformer(config, compute, with_head=False, shards=shards))
    load_hf(opened, dict(model.named_parameters()), value_places(config), cuts=cuts_of(model, config, shards.seat))
    return model


def save_model(
    model: Transformer,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    tokenizer_folder: str | Path | None = None,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Exports a policy as a folder that transformers loads, whole or not at all; returns its path.

    dtype: float32 (exact), bfloat16 or float16. tokenizer_folder: where tokenizer and chat template are copied from.
    parameters: the whole parameters by name, where the model holds parts of them.
    generation_config.json asks for plain sampling at temperature 1, which is how the policy was trained.
    Errors: DataError where `folder` holds something else than a model; RunError where the disk is full.
    """
    parameters = dict(model.named_parameters()) if parameters is None else parameters
    tensors = {name: parameters[ours][index] for name, (ours, index) in policy_places(model.config).items()}
    config = model.config.to_hf()
    generation = {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None
    }
    generation |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    files = tokenizer_files(tokenizer_folder) if tokenizer_folder is not None else []
    return save_hf(folder, config, tensors, dtype, generation=generation, extra_files=files)


def save_value_model(
    model: ValueModel,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Exports a critic as a token classifier with one label, which transformers loads too. As `save_model`."""
    parameters = dict(model.named_parameters()) if parameters is None else parameters
    tensors = {name: parameters[ours][index] for name, (ours, index) in value_places(model.config).items()}
    config = model.config.to_hf()
    name = config["architectures"][0].replace("ForCausalLM", "ForTokenClassification")
    labels = {"id2label": {"0": "value"}, "label2id": {"value": 0}}
    return save_hf(folder, {**config, "architectures": [name], **labels}, tensors, dtype)


def _config(path: Path, config: Any, generation: Any) -> ModelConfig:
    try:
        return ModelConfig.from_hf(config, generation)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
