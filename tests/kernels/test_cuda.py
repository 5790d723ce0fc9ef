"""The CUDA kernels without a device: compiled for it, run on the CPU, refused clearly; with one, against the CPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seedthink import _C
from seedthink.errors import DeviceError
from seedthink.kernels import cuda, fp8
from seedthink.kernels.gae import gae
from seedthink.kernels.route import route

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90a")
# Device code that runs on the CPU, and by how much its numbers may differ from float64 (bfloat16's are rounded).
PROGRAMS = {"gae": 5e-5, "route": 2e-3, "permute": 0.0, "fp8": 0.0}

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
built = pytest.mark.skipif(not hasattr(_C, "gae_scan_cuda"), reason="built without nvcc")
no_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
on_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the device code for the CPU")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_device_code_is_right_when_it_runs_on_the_cpu(name: str, tmp_path: Path) -> None:
    program, folder = tmp_path / name, ROOT / "tests" / "kernels"
    paths = [f"-I{ROOT / 'csrc'}", f"-I{folder}"]
    source = folder / f"{name}_cuda_on_cpu.cpp"
    # A device refuses what lies off its alignment, a CPU does not.
    options = ["-O1", "-std=c++17", "-w", "-fsanitize=alignment", "-fno-sanitize-recover=alignment"]
    subprocess.run(["g++", *options, *paths, str(source), "-o", str(program)], check=True, timeout=200)
    result = subprocess.run([program], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr  # the sentence that does not hold
    # false for NaN, too: a number that was never written
    assert all(float(error) <= PROGRAMS[name] for error in result.stdout.split())


def resources(report: str) -> dict[str, tuple[int, int, int]]:
    """From what `ptxas -v` prints: kernel and architecture -> registers, bytes of stack, bytes of spills."""
    found, kernel, stack, spills = {}, "", 0, 0
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            kernel = f"{entry[1]} {entry[2]}"
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(frame[1]), int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers", line):
            found[kernel] = int(used[1]), stack, spills
    return found


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").rglob("*.cu")), ids=lambda path: path.stem)
def test_every_kernel_compiles_for_both_architectures_without_spills(source: Path, tmp_path: Path) -> None:
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    options = ["-std=c++17", "--expt-relaxed-constexpr", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}"]
    command = [str(NVCC), "-fatbin", *options, *codes, str(source), "-o", str(tmp_path / "out")]
    report = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280).stderr
    kernels = resources(report)
    assert {kernel.split(" ")[1] for kernel in kernels} == {f"sm_{arch}" for arch in ARCHITECTURES}
    for kernel, (registers, stack, spills) in sorted(kernels.items()):
        print(f"{registers:4} registers  {kernel}")
        assert (stack, spills) == (0, 0), kernel


def test_the_report_of_a_spill_is_read() -> None:
    report = (
        "ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'\n"
        "ptxas info    : Function properties for _Z1kPf\n"
        "    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 0 barriers, 360 bytes cmem[0]\n"
    )
    assert resources(report) == {"_Z1kPf sm_80": (255, 8, 40)}


@built
@no_device
def test_without_a_driver_every_kernel_says_so() -> None:
    x, ids, workspace = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), torch.zeros(4096, dtype=torch.uint8)
    one, bounds, codes = torch.ones(1), torch.tensor([0, 1], dtype=torch.int32), x.to(torch.float8_e4m3fn)
    calls = {
        "gae_scan_cuda": (one, one, bounds, one, one, 1.0, None, None, one, one, workspace, 1),
        "route_forward_cuda": (x, None, False, True, 1.0, 1, 1, ids, x, ids[0], bounds, ids, ids[0], workspace),
        "route_backward_cuda": (x, x, ids, x, False, True, 1.0, x),
        "permute_forward_cuda": (x, ids, x),
        "permute_backward_cuda": (x, ids, x),
        "unpermute_forward_cuda": (x, x, ids, x),
        "unpermute_backward_cuda": (x, x, x, ids, x, x),
        "fp8_quantize_cuda": (x, None, None, 1, 128, False, 1.0, 0.0, 1.0, codes, x, None),
        "fp8_permute_cuda": (x, ids, False, codes, x),
        "fp8_rms_norm_cuda": (x, one, 1e-6, False, codes, x, None),
    }
    assert set(calls) == {name for name in dir(_C) if name.endswith("_cuda")}
    for name, arguments in calls.items():
        with pytest.raises(RuntimeError, match=r"on CUDA: .*nvidia-smi"):
            getattr(_C, name)(*arguments, 0)


@pytest.mark.skipif(hasattr(_C, "gae_scan_cuda"), reason="built with nvcc")
def test_a_build_without_nvcc_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="seedthink doctor"):
        cuda.permute(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))


@no_device
def test_the_benchmark_lists_its_rows_and_refuses_to_run_without_a_device() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    listed = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True, timeout=120).stdout
    operations = ("gae", "route", "permute", "combine", "fp8 1x128", "rms_norm + fp8", "experts", "fp8 product")
    assert [name for name in operations if f"\n{name} " not in f"\n{listed}"] == []
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (refused.returncode, refused.stdout.count("\n")) == (1, 1) and "no CUDA device" in refused.stdout


@on_device
def test_gae_on_the_device_agrees_with_the_cpu() -> None:
    lengths = [1, 0, 700, 5000, 20000]
    total = sum(lengths)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    inputs = [torch.randn(total), torch.randn(total), bounds, torch.full((5,), 0.95), torch.ones(5)]
    mask = torch.rand(total) > 0.3
    want = gae(*inputs, 0.99, mask)
    moved = [gae(*(x.cuda() for x in inputs), 0.99, mask.cuda()) for _ in range(3)]
    for mine, theirs, again in zip(moved[0], want, moved[1], strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-4)
        assert torch.equal(mine, again)


@on_device
def test_permute_and_back_on_the_device_is_the_sum_of_the_weights() -> None:
    x, logits = torch.randn(100, 64, device="cuda"), torch.randn(100, 16, device="cuda")
    weight, _, counts, _, row, token = cuda.route(logits, 4, "softmax", True, 1.0, None, 1, 1)
    assert int(counts.sum()) == 400
    rows = cuda.permute(x, row, token)
    assert torch.equal(rows, x[token.long()])
    torch.testing.assert_close(cuda.unpermute(rows, weight, row, token), x)


@on_device
@pytest.mark.parametrize("experts", [8, 100, 128, 256, 512])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_device_routes_as_the_cpu_does(experts: int, groups: int) -> None:
    bias = None if groups == 1 else 0.1 * torch.randn(experts)
    score = "softmax" if groups == 1 else "sigmoid"
    for tokens in (0, 1, 7, 8, 9, 33, 64, 100, 128, 129, 255, 256, 257, 1000, 5000):
        for logits in (torch.randn(tokens, experts), torch.randint(-2, 3, (tokens, experts)).float()):
            want = route(
                logits, 8 if groups == 1 else 2, score=score, bias_E=bias, groups=groups, topk_groups=groups // 2 or 1
            )
            moved = None if bias is None else bias.cuda()
            rule = (score, True, 1.0, moved, groups, groups // 2 or 1)
            for _ in range(2):
                weight, ids, counts, offsets, row, token = cuda.route(logits.cuda(), want.ids_TK.shape[1], *rule)
                for mine, theirs in zip((ids, counts, offsets, row, token), (want[0], *want[2:]), strict=True):
                    assert torch.equal(mine.cpu(), theirs)
                torch.testing.assert_close(weight.cpu(), want.weight_TK, rtol=1e-5, atol=1e-7)


@on_device
@pytest.mark.parametrize("broken", [float("nan"), -float("nan"), float("inf")])
def test_a_broken_row_has_nan_weights_and_leaves_the_others_alone(broken: float) -> None:
    logits = torch.randn(300, 128, device="cuda")
    logits[7, 5] = broken
    weight = cuda.route(logits, 8, "softmax", True, 1.0, None, 1, 1)[0]
    assert weight.isnan().any(1).nonzero().flatten().tolist() == [7]


@on_device
@pytest.mark.parametrize("block", [(1, 128), (128, 128), (1, 384)])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_the_device_quantises_to_the_bits_of_the_cpu(block: tuple[int, int], power_of_two: bool, format: str) -> None:
    for rows, dtype in ((1, torch.bfloat16), (130, torch.bfloat16), (257, torch.float32)):
        x = torch.randn(rows, 384) * torch.exp(6 * torch.randn(rows, 1))
        x[0, :6] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-42])
        x = x.to(dtype)
        how = (None, list(block), format, power_of_two, 1.0, [0.0, 1.0])
        codes, scale = fp8._quantize_cpu(x, *how)
        mine, theirs = cuda.quantize(x.cuda(), *how)
        assert torch.equal(theirs.cpu(), scale)
        top = 0x7F if format == "e4m3" else 0x7D  # NaN codes: their sign and payload mean nothing
        same = (mine.cpu() == codes) | (((mine.cpu() & 0x7F) >= top) & ((codes & 0x7F) >= top))
        assert same.all()
