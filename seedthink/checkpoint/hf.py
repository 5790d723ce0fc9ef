"""Model folders in Hugging Face form: config.json, safetensors (one file or shards with an index), tokenizer files.

This module knows files and named tensors, not architectures: a map from Hugging Face names to places in our parameters
comes as an argument (models/names.py makes it), and the same map serves both directions. Names and shapes are checked
from the files' headers before the first weight is written; then tensors stream one by one into float32 parameters.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seedthink.checkpoint.folder import bytes_of, remove_abandoned, replacing, write_tensors
from seedthink.errors import DataError
from seedthink.parallel.cut import Cut, Index

Place = tuple[str, tuple[int | slice, ...]]
SHARD_BYTES = 4_000_000_000
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_FLOATS = ("F32", "BF16", "F16", "F64")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """An opened folder. `files` maps each tensor's name to the safetensors file that holds it."""

    path: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    files: Mapping[str, Path]


def open_hf(folder: str | Path) -> ModelFolder:
    """Reads a folder's JSON files and the headers of its weights.

    Errors: DataError where the folder, config.json or the weights are missing, are no JSON, or are cut short.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"model folder {path} does not exist; give the path of a folder with config.json in it")
    config_path = path / "config.json"
    if not config_path.is_file():
        raise DataError(f"{path} has no config.json, so it is no Hugging Face model folder; found: {_listing(path)}")
    generation = path / "generation_config.json"
    return ModelFolder(
        path=path,
        config=_read_json(config_path),
        generation=_read_json(generation) if generation.is_file() else {},
        files=_tensor_files(path),
    )


@torch.no_grad()
def load_hf(
    folder: ModelFolder,
    parameters: Mapping[str, Tensor],
    places: Mapping[str, Place],
    tied: Mapping[str, str] | None = None,
    left_out: tuple[str, ...] = (),
    cuts: Mapping[str, Cut] | None = None,
) -> None:
    """Copies every tensor of `folder` to its place; bf16, fp16 and fp64 are converted to the parameter's dtype.

    parameters: our name -> tensor. places: HF name -> (our name, index); parameter[index] is the whole HF tensor.
    tied: HF names that may be there too, and the HF name that each must equal. left_out: beginnings of HF names that
    may be there and are not read. cuts: our name -> the rows of the whole parameter that `parameters` holds; only those
    are read.
    Errors: DataError names the file and the tensor that is missing, unexpected, of another shape, no float, or (tied)
    not equal; names and shapes are checked before anything is copied.
    """
    tied, cuts = tied or {}, {name: cut for name, cut in (cuts or {}).items() if not cut.whole}
    shapes = {name: _shape(parameters[ours], cuts.get(ours), index) for name, (ours, index) in places.items()}
    _check_names(folder, shapes, tied, left_out)
    opened = {file: safe_open(file, framework="pt") for file in sorted(set(folder.files.values()))}
    for name, shape in shapes.items():
        _check_tensor(folder.files[name], opened[folder.files[name]].get_slice(name), name, shape)
    for name, (ours, index) in places.items():
        stored = opened[folder.files[name]]
        if ours not in cuts:
            parameters[ours][index].copy_(stored.get_tensor(name))
            continue
        for here, rows in cuts[ours].places(index):
            parameters[ours][here].copy_(stored.get_slice(name)[rows])
    for name, twin in tied.items():
        ours, index = places[twin]
        target = parameters[ours][index]
        if name in folder.files and not torch.equal(opened[folder.files[name]].get_tensor(name).float(), target):
            raise DataError(
                f"{folder.files[name]}: {name} differs from {twin}, but config.json ties them; "
                "set tie_word_embeddings to false to load both"
            )


def save_hf(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    generation: Mapping[str, Any] | None = None,
    extra_files: Sequence[Path] = (),
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a folder that transformers loads, whole or not at all, and returns its path.

    tensors: HF name -> tensor or view, converted to `dtype` one shard at a time; more than `shard_bytes` make shards
    with an index. extra_files are copied through (tokenizer files). An older model in `folder` is replaced.
    Errors: DataError where `folder` holds something else than a model; RunError where writing fails.
    """
    path = Path(folder)
    assert dtype in DTYPES, f"a model folder is written in {', '.join(DTYPES.values())}, not {dtype}"
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / "config.json").is_file())):
        raise DataError(f"{path} exists and holds no model; choose another folder for the export")
    if path.parent.is_dir():
        remove_abandoned(path.parent, path.name)
    total = bytes_of(tensors, dtype.itemsize)
    with replacing(path, total) as partial:
        for source in extra_files:
            shutil.copyfile(source, partial / source.name)
        if generation is not None:
            _write_json(partial / "generation_config.json", generation)
        _write_weights(partial, tensors, dtype, shard_bytes, total)
        _write_json(partial / "config.json", {**config, "torch_dtype": DTYPES[dtype]})
    return path


def tokenizer_files(folder: str | Path) -> list[Path]:
    """The files of `folder` that belong to its tokenizer and chat template."""
    return [Path(folder) / name for name in _TOKENIZER_FILES if (Path(folder) / name).is_file()]


def _write_weights(partial: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, limit: int, total: int) -> None:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * dtype.itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = _WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # A clone, because views of one parameter share memory and the format wants each tensor by itself.
        shard = {
            name: tensors[name].detach().to(dtype, copy=True, memory_format=torch.contiguous_format) for name in names
        }
        write_tensors(partial / file, shard)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _write_json(partial / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _tensor_files(path: Path) -> dict[str, Path]:
    if (path / _WEIGHTS).is_file():
        return dict.fromkeys(_header_names(path / _WEIGHTS), path / _WEIGHTS)
    if not (path / _INDEX).is_file():
        raise DataError(f"{path} has neither {_WEIGHTS} nor {_INDEX}; found: {_listing(path)}")
    weight_map = _read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise DataError(f"{path / _INDEX} has no weight_map; fetch the folder again")
    held = {file: set(_header_names(path / file)) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in held[file]:
            raise DataError(f"{path / file}: tensor {name} is missing, although {_INDEX} says it is there")
    return {name: path / file for file, names in held.items() for name in names}


def _header_names(file: Path) -> list[str]:
    if not file.is_file():
        raise DataError(f"{file} is missing, although {_INDEX} names it; fetch the folder again")
    try:
        with safe_open(file, framework="pt") as handle:
            return list(handle.keys())
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise DataError(
            f"{file} ({size} bytes) is truncated or no safetensors file: {error}; fetch it again"
        ) from error


def _shape(parameter: Tensor, cut: Cut | None, index: Index) -> tuple[int, ...]:
    """The shape of `index` of the whole parameter."""
    if cut is None:
        return tuple(parameter[index].shape)
    return tuple(torch.empty((cut.rows, *parameter.shape[1:]), device="meta")[index].shape)


def _check_names(
    folder: ModelFolder,
    targets: Mapping[str, tuple[int, ...]],
    tied: Mapping[str, str],
    left_out: tuple[str, ...],
) -> None:
    missing = targets.keys() - folder.files.keys()
    if missing:
        raise DataError(
            f"{folder.path}: {_some('tensor', missing)} missing from the weights; config.json asks for them"
        )
    unexpected = folder.files.keys() - targets.keys() - tied.keys()
    unexpected = {name for name in unexpected if not name.startswith(left_out)}
    if unexpected:
        files = sorted({folder.files[name].name for name in unexpected})
        raise DataError(
            f"{folder.path / files[0]}: {_some('unexpected tensor', unexpected)}; "
            "the model of config.json has no place for them"
        )


def _check_tensor(file: Path, header: Any, name: str, wanted: tuple[int, ...]) -> None:
    shape, dtype = tuple(header.get_shape()), header.get_dtype()
    if shape != wanted:
        raise DataError(f"{file}: {name} has shape {shape}, but config.json makes it {wanted}")
    if dtype not in _FLOATS:
        raise DataError(f"{file}: {name} has dtype {dtype}; supported: {', '.join(_FLOATS)}")


def _some(noun: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    listed = ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
    return f"{len(ordered)} {noun}{'s' if len(ordered) > 1 else ''} ({listed})"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
