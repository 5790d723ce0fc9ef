"""Every kernel under the address and undefined-behaviour sanitizers, with valid and with broken arguments.

To repeat a case: the failure prints its number and seed, for `fuzz_kernels.py LIBRARY --seed SEED --only CASE` in the
environment of `under_sanitizers`. `fuzz_kernels.py` without sanitizers needs no special environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
CASES = 3000


def run_time_library(name: str) -> str:
    """Path of a library that belongs to the compiler."""
    done = subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def under_sanitizers(isa: str) -> dict[str, str]:
    """Environment of a Python that loads a sanitized library: its run-time libraries must be there first."""
    preloaded = " ".join(map(run_time_library, ("libasan.so", "libubsan.so", "libstdc++.so")))
    return {
        **os.environ,
        "LD_PRELOAD": preloaded,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "SEEDTHINK_ISA": isa,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """seedthink._C built with both sanitizers, in a folder of its own."""
    folder = tmp_path_factory.mktemp("sanitized")
    import pybind11

    options = {
        "SEEDTHINK_SANITIZE": "ON",
        "SEEDTHINK_CUDA": "off",
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS": "-O1",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(folder / "out"),
        "CMAKE_MAKE_PROGRAM": str(shutil.which("ninja", path=TOOLS)),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    cmake = shutil.which("cmake", path=TOOLS)
    flags = [f"-D{key}={value}" for key, value in options.items()]
    command = [cmake, "-S", str(HERE.parents[1]), "-B", str(folder / "build"), "-G", "Ninja", *flags]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run([cmake, "--build", str(folder / "build")], check=True, capture_output=True)
    (built,) = (folder / "out").glob("_C*.so")
    return built


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(shutil.which("cmake", path=TOOLS) is None, reason="needs cmake")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_no_call_reads_or_writes_where_it_must_not(library: Path, tmp_path: Path, isa: str) -> None:
    note = tmp_path / "case.txt"
    command = [sys.executable, str(HERE / "fuzz_kernels.py"), str(library), "--cases", str(CASES), "--note", str(note)]
    done = subprocess.run(command, env=under_sanitizers(isa), capture_output=True, text=True, timeout=1200)
    last = note.read_text() if note.exists() else "no case had begun"
    assert done.returncode == 0, f"{last}\n{done.stdout}\n{done.stderr[-6000:]}"
