"""Builds `seedthink._C` in place, for the Python and the GPU that run this: CMake and ninja, or g++ and nvcc alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {
    "portable": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma -mamx-tile -mamx-bf16 "
    "-mprefer-vector-width=512",
}
PLAIN = "-O3 -std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -Wno-psabi -Wno-ignored-attributes"


def build(capability: tuple[int, int], rebuild: bool) -> str:
    """Make `seedthink._C` with CUDA kernels importable; says how. RuntimeError with the compiler's last words."""
    target = ROOT / "seedthink" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists() and not rebuild and _has_cuda():
        return "there already"
    arch = f"{capability[0]}{capability[1]}" + ("a" if capability >= (9, 0) else "")
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if shutil.which("cmake") and shutil.which("ninja"):
        _with_cmake(arch)
        return f"cmake, sm_{arch}"
    _by_hand(arch, nvcc, target)
    return f"g++ and nvcc, sm_{arch}"


def _has_cuda() -> bool:
    command = "import torch, seedthink._C as c; raise SystemExit(not hasattr(c, 'route_forward_cuda'))"
    return subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True).returncode == 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        words = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command[:3])} ... failed:\n{words}")


def _with_cmake(arch: str) -> None:
    import pybind11

    folder = str(ROOT / "build" / f"gpu-{sys.implementation.cache_tag}")
    options = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(ROOT / "seedthink"),
        "SEEDTHINK_CUDA": "on",
        "SEEDTHINK_CUDA_ARCHS": arch,
    }
    flags = [f"-D{key}={value}" for key, value in options.items()]
    _run(["cmake", "-S", str(ROOT), "-B", folder, "-G", "Ninja", *flags])
    _run(["cmake", "--build", folder, "--parallel", str(os.cpu_count())])


def _by_hand(arch: str, nvcc: str, target: Path) -> None:
    folder = ROOT / "build" / "gpu-by-hand"
    folder.mkdir(parents=True, exist_ok=True)
    steps = list(_steps(arch, nvcc, folder))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, [command for command, _ in steps]))
    objects = [str(made) for _, made in steps]
    _run([nvcc, "-shared", "-cudart=static", "-o", str(target), *objects, "-lpthread"])


def _steps(arch: str, nvcc: str, folder: Path) -> Iterator[tuple[list[str], Path]]:
    """(command, object file) of every compilation."""
    import pybind11

    paths = [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    defines = ["-DST_CUDA=1", '-DST_CUDA_NOTE="nvcc"', f'-DST_CUDA_ARCHS="{arch}"', '-DST_COMPILER="g++"']
    for source in sorted((ROOT / "csrc").rglob("*.cpp")):
        isas = FLAGS if source.name.endswith(".isa.cpp") else {"": ""}
        for isa, flags in isas.items():
            made = folder / f"{source.stem}-{isa}.o"
            own = [f"-DST_ISA={isa}", *flags.split()] if isa else defines
            yield ["g++", *PLAIN.split(), *own, *paths, "-c", str(source), "-o", str(made)], made
    code = f"arch=compute_{arch},code=sm_{arch}"
    for source in sorted((ROOT / "csrc").rglob("*.cu")):
        made = folder / f"{source.parent.name}-{source.stem}-cuda.o"
        options = [
            "-O3",
            "-std=c++17",
            "-Xcompiler",
            "-fPIC",
            f"-gencode={code}",
            "--expt-relaxed-constexpr",
            "-lineinfo",
        ]
        yield [nvcc, *options, *paths, "-c", str(source), "-o", str(made)], made


def importable(package: str) -> bool:
    """Whether a peer is installed."""
    return importlib.util.find_spec(package) is not None
