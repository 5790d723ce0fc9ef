"""Folders that appear whole or not at all.

A folder is written under a hidden name beside its place, every file is synced to disk, and a rename puts it there. A
process that dies in between leaves only the hidden folder. Its writer holds a lock on it, which dies with the process:
that is how a later save tells an abandoned folder, which it removes, from one that is being written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from seedthink.errors import RunError

_PARTIAL = ".partial-"


@contextmanager
def replacing(target: Path, needed: int) -> Iterator[Path]:
    """Yields an empty folder; leaving the block without an error makes it `target`, in place of what stood there.

    needed: bytes that the block is about to write, for the message.
    Errors: a write that fails is a RunError which names the folder, the cause, the needed and the free bytes; nothing
    of the new folder stays, and the old one is untouched.
    """
    partial, lock = hidden_name(target), -1
    try:
        partial.mkdir(parents=True)
        lock = os.open(partial, os.O_RDONLY)
        with suppress(OSError):  # NFS cannot lock folders: abandoned ones then stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield partial
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        _swap(partial, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(_failure(target, needed, error)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if lock >= 0:
            os.close(lock)


def hidden_name(target: Path) -> Path:
    """A fresh hidden name beside `target`; `remove_abandoned` takes whatever stays under such a name for rubbish."""
    return target.parent / f".{target.name}{_PARTIAL}{uuid4().hex[:8]}"


def remove_abandoned(parent: Path, name: str) -> None:
    """Deletes hidden folders that a dead process left in `parent` for targets whose name starts with `name`."""
    for path in parent.glob(f".{name}*{_PARTIAL}*"):
        with suppress(OSError):  # gone already, or somebody is writing it
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file with the permissions that any other new file gets (the library makes it private)."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def bytes_of(tensors: Mapping[str, Tensor], itemsize: int = 0) -> int:
    """Bytes of all tensors, at `itemsize` bytes an element if given."""
    return sum(t.numel() * (itemsize or t.element_size()) for t in tensors.values())


def _swap(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        _sync(target.parent)
        return
    # Not a name that `remove_abandoned` knows: killed between the two renames, the old folder is still there.
    old = target.rename(target.parent / f".{target.name}.replaced-{uuid4().hex[:8]}")
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(target: Path, needed: int, error: Exception) -> str:
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    return (
        f"cannot write {target}: {error}. It needs {_size(needed)}, and {_size(free)} are free there. "
        f"What was saved before is untouched; make room or choose another folder, then start again"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
