"""Checkpoints of a run: one folder per step, complete or absent.

    step-00000012/  <group>.safetensors ...  extra.json  manifest.json

The manifest lists size and SHA-256 of every other file and is written last; the folder is written under a hidden name
and renamed (folder.py). So a process killed at any moment leaves the earlier checkpoints as they were, and a folder
whose bytes differ from its manifest is never taken.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from seedthink.checkpoint.folder import bytes_of, hidden_name, remove_abandoned, replacing, write_tensors
from seedthink.errors import DataError

_MANIFEST, _EXTRA, _FORMAT = "manifest.json", "extra.json", 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `load` returns: `groups[group][name]` are the tensors, `extra` the JSON-able state saved beside them."""

    step: int
    groups: Mapping[str, Mapping[str, Tensor]]
    extra: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints in `folder`, which is made when the first one is saved. One writer at a time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], extra: Mapping[str, Any]) -> Path:
        """Writes checkpoint `step` and returns its folder; an older one of the same step is replaced.

        Group names are letters, digits and underscores. Tensors keep dtype and bits; the caller keeps them still while
        this runs. `extra` is anything that json takes (TypeError, before anything is written, for the rest).
        Errors: RunError with the needed and the free space where writing fails; earlier checkpoints are untouched.
        """
        assert step >= 0 and all(re.fullmatch(r"\w+", name) for name in groups), (step, list(groups))
        state = json.dumps(extra)
        target = self.folder / f"step-{step:08d}"
        if self.folder.is_dir():
            remove_abandoned(self.folder, "step-")
        with replacing(target, sum(map(bytes_of, groups.values())) + len(state)) as partial:
            for name, tensors in groups.items():
                write_tensors(partial / f"{name}.safetensors", _separate(tensors))
            (partial / _EXTRA).write_text(state, encoding="utf-8")
            files = {path.name: _fingerprint(path) for path in sorted(partial.iterdir())}
            manifest = {"format": _FORMAT, "step": step, "files": files}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        return target

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None. A newer one that is not whole gets a warning that says why."""
        for path in reversed(self._steps()):
            try:
                _verify(path, contents=True)
            except DataError as error:
                warnings.warn(f"checkpoint passed over: {error}", RuntimeWarning, stacklevel=2)
            else:
                return path
        return None

    def load(self, path: str | Path) -> Checkpoint:
        """Reads a checkpoint back after checking every byte of it against its manifest.

        Errors: DataError names the file that is missing, cut short or changed.
        """
        path = Path(path)
        manifest = _verify(path, contents=True)
        groups = {
            name.removesuffix(".safetensors"): safetensors.torch.load_file(path / name)
            for name in manifest["files"]
            if name.endswith(".safetensors")
        }
        return Checkpoint(manifest["step"], groups, json.loads((path / _EXTRA).read_text(encoding="utf-8")))

    def prune(self, keep: int) -> list[Path]:
        """Deletes what is older than the `keep` newest complete checkpoints and returns the deleted folders' paths."""
        assert keep >= 1
        steps = self._steps()
        complete = [path for path in steps if _is_complete(path)]
        if len(complete) <= keep:
            return []
        doomed = steps[: steps.index(complete[-keep])]
        for path in doomed:
            hidden = path.rename(hidden_name(path))  # a half-deleted checkpoint must not look like one
            shutil.rmtree(hidden, ignore_errors=True)
        return doomed

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory: the file format refuses aliases."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        fresh = storage in seen or not tensor.is_contiguous()
        separate[name] = tensor.detach().clone(memory_format=torch.contiguous_format) if fresh else tensor.detach()
        seen.add(storage)
    return separate


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_complete(path: Path) -> bool:
    try:
        _verify(path, contents=False)
    except DataError:
        return False
    return True


def _verify(path: Path, contents: bool) -> dict[str, Any]:
    """The manifest of `path`; DataError where a file is missing or differs from it (its bytes only with `contents`)."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], dict(manifest["files"])
    except FileNotFoundError as error:
        raise DataError(f"{path} has no {_MANIFEST}: it was not written to the end") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / _MANIFEST} cannot be read: {error!r}") from error
    if version != _FORMAT:
        raise DataError(f"{path / _MANIFEST} has format {version}; this version of seedthink reads format {_FORMAT}")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise DataError(f"{file} is missing, although the manifest lists it")
        if file.stat().st_size != expected["bytes"]:
            raise DataError(f"{file} has {file.stat().st_size} bytes instead of {expected['bytes']}: it is cut short")
        if contents and _fingerprint(file) != expected:
            raise DataError(f"{file} differs from its SHA-256 in the manifest: its bytes have changed")
    return {**manifest, "files": files}
