"""GAE on CUDA: the device code against the serial loop on the CPU, and a clear error where there is no driver."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from seedthink import _C
from seedthink.kernels.gae import gae

ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(not hasattr(_C, "gae_scan_cuda"), reason="built without nvcc")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the device code for the CPU")
def test_the_device_code_matches_the_serial_loop_when_run_on_the_cpu(tmp_path: Path) -> None:
    program = tmp_path / "gae"
    source = ROOT / "tests" / "kernels" / "gae_cuda_on_cpu.cpp"
    command = ["g++", "-O1", "-std=c++17", "-w", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    result = subprocess.run([program], check=True, capture_output=True, text=True, timeout=120)
    differences = [float(line) for line in result.stdout.split()]
    assert len(differences) == 6
    assert all(difference < 5e-5 for difference in differences)  # false for NaN: a token that was never written


@built
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_driver_the_call_says_so() -> None:
    one, size = torch.ones(1), _C.gae_cuda_workspace(1, 1)
    bounds, workspace = torch.tensor([0, 1], dtype=torch.int32), torch.empty(size, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"gae on CUDA: .*nvidia-smi"):
        _C.gae_scan_cuda(one, one, bounds, one, one, 1.0, None, None, one, one, workspace, 1, 0)


@built
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_agrees_with_the_cpu() -> None:
    lengths = [1, 0, 700, 5000, 20000]
    total = sum(lengths)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    inputs = [torch.randn(total), torch.randn(total), bounds, torch.full((5,), 0.95), torch.ones(5)]
    mask = torch.rand(total) > 0.3
    want = gae(*inputs, 0.99, mask)
    moved = gae(*(x.cuda() for x in inputs), 0.99, mask.cuda())
    for mine, theirs in zip(moved, want, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-4)
