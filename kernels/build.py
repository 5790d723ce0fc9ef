"""What the native library was built with, and what it finds on this machine.

A missing library is an error that says how to build it, never a silent fallback to something slower.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from seedthink.errors import DeviceError


def native() -> ModuleType:
    """The compiled module. DeviceError with the command that builds it when it is not there or does not load."""
    try:
        return import_module("seedthink._C")
    except ImportError as error:
        raise DeviceError(
            f"seedthink's native library is not usable ({error}). Build it with a C++ compiler at hand: "
            "`pip install -e .` in a checkout, or `pip install --force-reinstall --no-cache-dir seedthink`."
        ) from error


def build_info() -> dict[str, Any]:
    """What was built and what runs.

    Keys: compiler, isa (the device class: instruction set in use and way of bfloat16 products, docs/kernels.md), amx
    ("in use" or why not), threads, torch (version), cuda (kernels built), cuda_note (compiler or why not), cuda_archs,
    gpu (whether torch sees one), gpu_note. DeviceError when the native library is missing.
    """
    library = native()
    info: dict[str, Any] = dict(library.build_info())
    gpu = torch.cuda.is_available()
    if gpu:
        note = torch.cuda.get_device_name(0)
    elif torch.version.cuda is None:
        note = f"this torch ({torch.__version__}) is built without CUDA"
    else:
        note = "torch sees no CUDA device; check the driver with nvidia-smi"
    info.update(isa=library.isa(), threads=library.threads(), torch=torch.__version__, gpu=gpu, gpu_note=note)
    return info


def set_threads(count: int) -> None:
    """Use `count` threads, the caller included, in the native kernels of this process. No result depends on it."""
    native().set_threads(count)
