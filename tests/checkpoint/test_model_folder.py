"""Model folders: whole or absent, sharded or not, and what is said about broken ones."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seedthink.checkpoint import load_hf, open_hf, save_hf
from seedthink.checkpoint.hf import tokenizer_files
from seedthink.errors import DataError, RunError
from seedthink.parallel.cut import Cut, Piece

PLACES = {"left": ("both", (slice(0, 2),)), "right": ("both", (slice(2, 5),)), "bias": ("bias", ())}


def parameters() -> dict[str, torch.Tensor]:
    return {"both": torch.arange(15.0).reshape(5, 3), "bias": torch.tensor([0.5, -1.0])}


def tensors() -> dict[str, torch.Tensor]:
    values = parameters()
    return {name: values[ours][index] for name, (ours, index) in PLACES.items()}


def blank() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in parameters().items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_hf(tmp_path / "model", {"model_type": "toy"}, tensors(), torch.float32)


@pytest.mark.parametrize("shard_bytes", [10**9, 50, 1])
def test_weights_come_back_from_one_file_and_from_shards(tmp_path: Path, shard_bytes: int) -> None:
    path = save_hf(tmp_path / "m", {"model_type": "toy"}, tensors(), torch.float32, shard_bytes=shard_bytes)
    shards = {10**9: 0, 50: 2, 1: 3}[shard_bytes]
    assert len(list(path.glob("model-*-of-*.safetensors"))) == shards
    target = blank()
    load_hf(open_hf(path), target, PLACES)
    assert all(torch.equal(target[name], tensor) for name, tensor in parameters().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_fill_float32_parameters(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save_hf(tmp_path / "m", {"model_type": "toy"}, tensors(), dtype)
    assert load_file(path / "model.safetensors")["right"].dtype == dtype
    target = blank()
    load_hf(open_hf(path), target, PLACES)
    assert target["both"].dtype == torch.float32 and torch.equal(target["both"], parameters()["both"])


def test_json_files_and_tokenizer_travel_with_the_weights(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    (model / "notes.txt").write_text("private")
    again = save_hf(
        tmp_path / "b",
        {"model_type": "toy"},
        tensors(),
        torch.bfloat16,
        generation={"eos_token_id": 3},
        extra_files=tokenizer_files(model),
    )
    opened = open_hf(again)
    assert opened.config == {"model_type": "toy", "torch_dtype": "bfloat16"}
    assert opened.generation == {"eos_token_id": 3}
    assert sorted(p.name for p in again.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    modes = {path.stat().st_mode for path in (again / "config.json", again / "model.safetensors")}
    assert len(modes) == 1  # weights are as readable as any other file


def test_an_export_replaces_an_older_model_and_nothing_else(model: Path, tmp_path: Path) -> None:
    save_hf(model, {"model_type": "newer"}, tensors(), torch.float32)
    assert open_hf(model).config["model_type"] == "newer"
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="papers exists and holds no model"):
        save_hf(tmp_path / "papers", {"model_type": "toy"}, tensors(), torch.float32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "papers"]


def test_a_failed_export_leaves_the_older_model_and_no_rubbish(model: Path) -> None:
    before = (model / "model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses to grow a file beyond this
    try:
        with pytest.raises(RunError, match=r"cannot write .*model: .*It needs 4\.00 MB, and .* are free"):
            save_hf(model, {"model_type": "toy"}, {"left": torch.zeros(1_000_000)}, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (model / "model.safetensors").read_bytes() == before
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_a_missing_folder_and_a_folder_without_config_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_hf(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"no config\.json.*found: pytorch_model\.bin"):
        open_hf(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"neither model\.safetensors nor"):
        open_hf(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_config_that_is_no_json_object_is_named(model: Path, content: str) -> None:
    (model / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"config\.json"):
        open_hf(model)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_truncated_weights_are_named(model: Path, kept: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"model\.safetensors \(\d+ bytes\) is truncated"):
        open_hf(model)


def test_a_lost_shard_and_a_shard_without_its_tensor_are_named(tmp_path: Path) -> None:
    path = save_hf(tmp_path / "m", {"model_type": "toy"}, tensors(), torch.float32, shard_bytes=1)
    shutil.copy(path / "model-00001-of-00003.safetensors", path / "model-00002-of-00003.safetensors")
    with pytest.raises(DataError, match=r"00002-of-00003\.safetensors: tensor right is missing"):
        open_hf(path)
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DataError, match=r"00002-of-00003\.safetensors is missing"):
        open_hf(path)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(DataError, match="no weight_map"):
        open_hf(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": None}, r"1 tensor \(left\) missing"),
        ({"extra": torch.zeros(1)}, r"model\.safetensors: 1 unexpected tensor \(extra\)"),
        ({"bias": torch.zeros(3)}, r"model\.safetensors: bias has shape \(3,\), but config\.json makes it \(2,\)"),
        ({"bias": torch.zeros(2, dtype=torch.int32)}, "bias has dtype I32"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_anything_is_copied(
    model: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    held = {name: tensor for name, tensor in {**tensors(), **change}.items() if tensor is not None}
    save_file({name: tensor.clone() for name, tensor in held.items()}, model / "model.safetensors")
    target = blank()
    with pytest.raises(DataError, match=message):
        load_hf(open_hf(model), target, PLACES)
    assert all(not tensor.any() for tensor in target.values())


def test_a_tied_tensor_may_be_there_if_it_is_the_same(model: Path) -> None:
    copies = {name: tensor.clone() for name, tensor in tensors().items()}
    save_file(copies | {"head": tensors()["left"].clone()}, model / "model.safetensors")
    load_hf(open_hf(model), blank(), PLACES, {"head": "left"})
    save_file(copies | {"head": tensors()["left"] + 1}, model / "model.safetensors")
    with pytest.raises(DataError, match=r"head differs from left.*tie_word_embeddings"):
        load_hf(open_hf(model), blank(), PLACES, {"head": "left"})


def test_a_rank_reads_its_rows_and_holds_them_against_those_of_a_tied_tensor(model: Path) -> None:
    places = {"all": ("both", ())}
    whole = parameters()["both"]
    for piece in (Piece(0, 3, 1), Piece(3, 5, 1), Piece(5, 5, 1)):
        cuts = {"both": Cut(5, (piece,))}
        target = {"both": torch.zeros(piece.end - piece.begin, 3)}
        save_file({"all": whole, "head": whole.clone()}, model / "model.safetensors")
        load_hf(open_hf(model), target, places, {"head": "all"}, cuts=cuts)
        assert torch.equal(target["both"], whole[piece.begin : piece.end])
        for other in (whole + 1, torch.cat([whole, whole])):
            save_file({"all": whole, "head": other}, model / "model.safetensors")
            if piece.begin < 5 or len(other) > 5:
                with pytest.raises(DataError, match=r"head differs from all"):
                    load_hf(open_hf(model), target, places, {"head": "all"}, cuts=cuts)
