"""`seedthink doctor`: what this machine can do, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from seedthink.cli.arguments import Parser

EXAMPLES = """Examples:
  seedthink doctor
  seedthink doctor --json
  seedthink doctor && seedthink quickstart       exit code 1 says that something needed is missing"""

Status = Literal["ok", "note", "fail"]
REQUIRED = ("torch", "ray", "tokenizers", "safetensors", "jinja2", "pyarrow", "tyro", "rich", "numpy")
OPTIONAL = {
    "math-verify": "verifiers of mathematical answers: pip install 'seedthink[math]'",
    "mpi4py": "runs that mpirun starts: pip install 'seedthink[mpi]'",
    "fastapi": "serving over HTTP: pip install 'seedthink[serve]'",
    "tensorboard": "metrics for TensorBoard: pip install 'seedthink[tensorboard]'",
    "wandb": "metrics for Weights & Biases: pip install 'seedthink[wandb]'",
}
GIB = 2**30
LANDLOCK_CREATE_RULESET = 444  # the same system call number on every architecture


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: "note" is worth knowing, "fail" keeps seedthink from working."""

    name: str
    status: Status
    says: str
    fix: str = ""


def run(arguments: Sequence[str]) -> int:
    """Look at everything and print it; 1 when something needed is missing."""
    parser = Parser("seedthink doctor", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    chosen = parser.parse_args(arguments)
    findings = examine()
    if chosen.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print("\n".join(in_words(findings)))
    return int(any(finding.status == "fail" for finding in findings))


def examine() -> list[Finding]:
    """Return every finding, in the order in which a machine is set up."""
    checks: list[Callable[[], Finding]] = [python, packages, native, processor, gpu, extras]
    return [*(check() for check in checks), memory(), disk(), shared_memory(), sandbox()]


def in_words(findings: Sequence[Finding]) -> list[str]:
    """Return aligned lines, a fix under each finding that has one, and a verdict."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.status:4}  {finding.name:{width}}  {finding.says}")
        if finding.fix:
            lines.append(f"{'':{width + 6}}  -> {finding.fix}")
    failed = [finding.name for finding in findings if finding.status == "fail"]
    verdict = f"not ready: {', '.join(failed)}" if failed else "ready: seedthink quickstart"
    return [*lines, "", verdict]


def python() -> Finding:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} at {sys.executable}")


def packages() -> Finding:
    """What seedthink cannot do without."""
    found = {name: version_of(name) for name in REQUIRED}
    missing = [name for name, version in found.items() if not version]
    if missing:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def native() -> Finding:
    """The compiled library."""
    info, problem = _build_info()
    if info is None:
        compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")
        fix = "pip install -e . in a checkout" if compiler else "install a C++ compiler, then pip install -e ."
        return Finding("native library", "fail", problem, fix)
    return Finding("native library", "ok", f"{info['isa']}, {info['threads']} threads, built by {info['compiler']}")


def processor() -> Finding:
    """The processor and the cores this process may use."""
    from seedthink.telemetry.environment import cpu_model

    return Finding("processor", "ok", f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores usable")


def gpu() -> Finding:
    """CUDA kernels and devices."""
    info, _ = _build_info()
    if info is None:
        return Finding("gpu", "note", "unknown until the native library is built")
    if not info["gpu"]:
        return Finding("gpu", "note", f"none in use: {info['gpu_note']}. Everything runs on the CPU")
    if not info["cuda"]:
        fix = "install nvcc, then SEEDTHINK_CUDA=on pip install -e ."
        return Finding("gpu", "note", f"{info['gpu_note']}, but no CUDA kernels: {info['cuda_note']}", fix)
    return Finding("gpu", "ok", f"{info['gpu_note']}, kernels for {info['cuda_archs']}")


def extras() -> Finding:
    """Optional packages."""
    missing = [text for name, text in OPTIONAL.items() if not version_of(name)]
    present = [f"{name} {version_of(name)}" for name in OPTIONAL if version_of(name)]
    says = f"installed: {', '.join(present) or 'none'}"
    return Finding("extras", "note" if missing else "ok", says, "; ".join(missing))


def memory() -> Finding:
    """Memory that is free now."""
    free = _meminfo("MemAvailable")
    if free and free < 4 * GIB:
        return Finding(
            "memory", "note", f"{free / GIB:.1f} GiB free; the quickstart takes up to 4", "close other programs"
        )
    return Finding("memory", "ok", f"{free / GIB:.1f} GiB free")


def disk() -> Finding:
    """Disk space where runs would go."""
    free = shutil.disk_usage(Path.cwd()).free
    if free < GIB:
        return Finding(
            "disk", "fail", f"{free / GIB:.1f} GiB free in {Path.cwd()}", "free some, or set run.folder elsewhere"
        )
    return Finding("disk", "ok", f"{free / GIB:.1f} GiB free in {Path.cwd()}")


def shared_memory() -> Finding:
    """/dev/shm, which Ray keeps its objects in."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("/dev/shm", "note", "missing; Ray falls back to the disk", "or run with --controller.kind local")
    free = shutil.disk_usage(path).free
    if free < GIB // 4:
        fix = "in Docker: --shm-size=1g; or run with --controller.kind local"
        return Finding("/dev/shm", "note", f"{free / GIB:.2f} GiB free; Ray falls back to the disk", fix)
    return Finding("/dev/shm", "ok", f"{free / GIB:.1f} GiB free")


def sandbox() -> Finding:
    """What can hold untrusted code: Landlock needs no rights, namespaces may be switched off."""
    abi = landlock_abi()
    spaces = Path("/proc/sys/user/max_user_namespaces")
    namespaces = spaces.is_file() and int(spaces.read_text()) > 0
    says = f"Landlock {f'ABI {abi}' if abi else 'missing'}, user namespaces {'allowed' if namespaces else 'off'}"
    if not abi and not namespaces:
        return Finding(
            "sandbox", "note", f"{says}: rewards that run code will refuse", "use a kernel with Landlock (5.13+)"
        )
    return Finding("sandbox", "ok", says)


def landlock_abi() -> int:
    """Return the kernel's Landlock version, 0 where it has none."""
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except OSError:
        return 0
    return max(0, int(call(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def version_of(package: str) -> str:
    """Return the installed version of a package, "" where it is missing; nothing is imported."""
    try:
        return metadata.version(package) if find_spec(package.replace("-", "_")) else ""
    except metadata.PackageNotFoundError:
        return ""


def _build_info() -> tuple[dict[str, Any] | None, str]:
    """Facts about the compiled library, or why there are none. An import can fail in any way the loader knows."""
    try:
        from seedthink.kernels.build import build_info

        return build_info(), ""
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def _meminfo(name: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
