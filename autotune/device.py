"""What a measurement belongs to: the device, its driver, the threads, the versions, and the sources of the kernels."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from importlib import metadata

import torch

from seedthink.autotune.spaces import SPACES
from seedthink.kernels.build import build_info
from seedthink.kernels.selector import source_hash
from seedthink.telemetry.environment import cpu_model


@dataclass(frozen=True, slots=True)
class Identity:
    """A configuration measured under one identity says nothing about another.

    device: processor or GPU by name; driver: the GPU's driver and CUDA, "" on a CPU; numerics: the device class
    (docs/kernels.md).
    """

    device: str
    driver: str
    threads: int
    numerics: str
    torch: str
    triton: str

    @property
    def slug(self) -> str:
        """A file name for it: device, threads and device class."""
        words = re.sub(r"\(r\)|\(tm\)|cpu|processor", " ", self.device.lower())
        name = re.sub(r"[^a-z0-9]+", "-", f"{words} {self.threads} threads {self.numerics}").strip("-")
        return name

    def as_dict(self) -> dict[str, str | int]:
        """For a file."""
        return asdict(self)

    def differences(self, other: dict[str, object]) -> list[str]:
        """What keeps a file with this identity from being used here, in words. Versions of torch do not: no CPU kernel
        comes from it; Triton's does where there is a driver."""
        binding = ("device", "driver", "threads", "numerics", *(("torch", "triton") if self.driver else ()))
        mine = self.as_dict()
        return [
            f"{name} {other.get(name)!r} is not {mine[name]!r}" for name in binding if other.get(name) != mine[name]
        ]


def identity() -> Identity:
    """This process's, on the CPU."""
    info = build_info()
    return Identity(cpu_model(), "", int(info["threads"]), str(info["isa"]), torch.__version__, _version("triton"))


def sources() -> dict[str, str]:
    """Operation -> name of the native sources behind it, as this process has them."""
    return {op: source_hash(space.families) for op, space in SPACES.items()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
