"""What a run ran on: versions, processor, memory, source commit. Written to env.json so that a number can be repeated.

Versions come from package metadata; nothing is imported for them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("seedthink", "torch", "triton", "ray", "tokenizers", "safetensors", "numpy", "pyarrow", "math-verify")


def environment(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe this machine and its packages; `extra` (build facts, for instance) is merged in by its owner."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "packages": versions(),
        "commit": commit(Path(__file__).resolve().parents[2]),
        "command": " ".join(sys.argv),
        **(extra or {}),
    }


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Map each installed package to its version; packages that are not installed are left out."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Return the processor's name as the kernel tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Return the machine's memory in bytes, 0 where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def commit(folder: Path) -> str:
    """Return the commit of a source checkout, with "+" for local changes; "" outside of one."""
    if not (folder / ".git").exists():
        return ""
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
