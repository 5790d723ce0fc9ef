"""Our forward and backward against transformers' on folders that transformers wrote, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_folders import CONFIGS, SPARSE, build, folder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from seedthink.engine.model_io import load_model, load_value_model, save_model, save_value_model
from seedthink.models.config import ModelConfig
from seedthink.models.context import PackedContext
from seedthink.models.names import policy_places
from seedthink.models.qwen3 import Transformer
from seedthink.models.value import ValueModel

CONFIG = ModelConfig.from_hf({"model_type": "qwen3_moe", **SPARSE})


def packed(model: Transformer | ValueModel, *lengths: int) -> PackedContext:
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    return PackedContext(cu_seqlens, model.compute, model.config.head_dim**-0.5)


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    path, theirs = folder(tmp_path, CONFIGS[name])
    ours = load_model(path)
    tokens_T = torch.randint(0, CONFIGS[name]["vocab_size"], (41,))
    with torch.no_grad():
        logits = ours.logits(ours(tokens_T, packed(ours, 41)))
        assert gap(logits, theirs(tokens_T[None]).logits[0]) <= 1e-5


@pytest.mark.parametrize(
    "name", ["dense tied", "odd sizes", "every second layer sparse", "sparse, weights as they are"]
)
def test_a_folder_that_we_write_has_the_same_logits_in_transformers(name: str, tmp_path: Path) -> None:
    path, original = folder(tmp_path, CONFIGS[name])
    reloaded = AutoModelForCausalLM.from_pretrained(save_model(load_model(path), tmp_path / "ours"))
    tokens_T = torch.randint(0, CONFIGS[name]["vocab_size"], (1, 23))
    with torch.no_grad():
        assert torch.equal(reloaded(tokens_T).logits, AutoModelForCausalLM.from_pretrained(path)(tokens_T).logits)
        assert gap(reloaded(tokens_T).logits, original(tokens_T).logits) <= 1e-5


@pytest.mark.parametrize("name", ["head width is not hidden / heads", "named layers dense", "sparse"])
def test_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    path, theirs = folder(tmp_path, CONFIGS[name])
    ours = load_model(path)
    tokens_T = torch.randint(0, CONFIGS[name]["vocab_size"], (19,))
    slope_TV = torch.randn(19, CONFIGS[name]["vocab_size"])
    (ours.logits(ours(tokens_T, packed(ours, 19))) * slope_TV).sum().backward()
    (theirs(tokens_T[None]).logits[0] * slope_TV).sum().backward()
    theirs.save_pretrained(
        tmp_path / "gradients", state_dict={n: p.grad for n, p in theirs.named_parameters()}, safe_serialization=True
    )
    expected = load_file(tmp_path / "gradients" / "model.safetensors")
    found = dict(ours.named_parameters())
    places = policy_places(ours.config)
    assert places.keys() == expected.keys()
    for tensor, (parameter, index) in places.items():
        assert gap(found[parameter].grad[index], expected[tensor]) <= 5e-5, tensor


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
    policy = Transformer(CONFIG)
    policy.init_weights(1)
    critic = ValueModel.from_policy(policy)
    with torch.no_grad():
        critic.head_1D.normal_()
        critic.head_bias_1.fill_(0.25)
    path = save_value_model(critic, tmp_path / "critic")
    tokens_T = torch.arange(13)
    theirs = AutoModelForTokenClassification.from_pretrained(path).eval()
    again = load_value_model(path)
    with torch.no_grad():
        values_T = critic(tokens_T, packed(critic, 13))
        assert torch.equal(again(tokens_T, packed(again, 13)), values_T)
        assert gap(values_T, theirs(tokens_T[None]).logits[0, :, 0]) <= 1e-5
