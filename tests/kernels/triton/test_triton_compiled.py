"""Triton kernels compiled for sm_90 without a device: nothing spills, and the instructions are those meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from launches import Launch, launches
from offline import compiled_by

LAUNCHES = [pytest.param(each, id=each.name, marks=() if each.quick else pytest.mark.slow) for each in launches()]
SHARED_MEMORY = 227 * 1024  # bytes that a program may have on an H100 or H200
ON_TENSOR_CORES = ("matmul", "fp8 matmul", "experts", "attention", "linear_logprob")
VECTOR_LOADS = (
    "rms_norm",
    "add_rms_norm",
    "swiglu",
    "rope",
    "fp8 1x128",
    "fp8 128x128",
    "fp8 rows",
    "permute",
    "combine",
)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_kernel_fits_its_registers_and_uses_the_hardware(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))  # always compiled anew
    kernels = compiled_by(launch.call, tmp_path)
    assert kernels
    for each in kernels:
        print(f"{launch.name}: {each.kernel} {each.registers} registers, {each.shared} bytes of shared memory")
        assert each.stack == 0
        assert each.shared <= SHARED_MEMORY
    ptx = "".join(each.ptx for each in kernels)
    if launch.name.startswith(ON_TENSOR_CORES) and "float32" not in launch.name:
        assert "wgmma.mma_async" in ptx
    if launch.name.startswith(VECTOR_LOADS):
        assert "ld.global.v4" in ptx
    if "FP8" in launch.name or launch.name.startswith(("fp8 1x128", "fp8 128x128", "fp8 rows")):
        assert "cvt.rn.satfinite.e4m3x2" in ptx
