"""Our forward and backward against transformers' on folders that transformers wrote, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_folders import (
    CONFIGS,
    SPARSE,
    build,
    critic_gap,
    export_gap,
    folder,
    gradient_gaps,
    logits_gap,
    packed,
)
from safetensors.torch import load_file

from seedthink.engine.model_io import load_model, save_model
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer

CONFIG = ModelConfig.from_hf({"model_type": "qwen3_moe", **SPARSE})


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    assert logits_gap(tmp_path, CONFIGS[name]) <= 1e-5


@pytest.mark.parametrize(
    "name", ["dense tied", "odd sizes", "every second layer sparse", "sparse, weights as they are"]
)
def test_a_folder_that_we_write_has_the_same_logits_in_transformers(name: str, tmp_path: Path) -> None:
    assert export_gap(tmp_path, CONFIGS[name]) == 0.0


@pytest.mark.parametrize("name", ["head width is not hidden / heads", "named layers dense", "sparse"])
def test_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    gaps = gradient_gaps(tmp_path, CONFIGS[name])
    assert max(gaps.values()) <= 5e-5, gaps


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_packed_sequences_have_the_bits_of_separate_ones(compute: torch.dtype) -> None:
    model = Transformer(CONFIG, compute)
    model.init_weights(3)
    tokens_T = torch.randint(0, 97, (60,))
    lengths = (1, 17, 33, 9)
    with torch.no_grad():
        together = model(tokens_T, packed(model, *lengths)).split(lengths)
        for part, tokens in zip(together, tokens_T.split(lengths), strict=True):
            assert torch.equal(part, model(tokens, packed(model, len(tokens))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(SPARSE).to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    again = save_model(load_model(tmp_path / "theirs"), tmp_path / "ours", dtype)
    expected, found = load_file(tmp_path / "theirs" / "model.safetensors"), load_file(again / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == dtype and torch.equal(found[name], tensor)


def test_sharded_folders_load_and_our_config_reads_its_own_export(tmp_path: Path) -> None:
    path, theirs = folder(tmp_path, SPARSE, max_shard_size="30KB")
    assert (path / "model.safetensors.index.json").is_file()
    ours = load_model(path)
    assert torch.equal(ours.embed_VD, theirs.model.embed_tokens.weight)
    assert load_model(save_model(ours, tmp_path / "ours")).config == ours.config


def test_a_critic_is_a_token_classifier_to_transformers(tmp_path: Path) -> None:
    assert critic_gap(tmp_path, SPARSE) <= 1e-5
