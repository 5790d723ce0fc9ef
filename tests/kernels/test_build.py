"""build_info says what was built and what runs; a missing library says how to build it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from seedthink.errors import DeviceError
from seedthink.kernels.build import build_info, native, set_threads


def test_build_info_names_what_was_built_and_what_runs() -> None:
    info = build_info()
    way, _, pairs = info["isa"].partition("-")
    assert way in ("portable", "avx2", "avx512")
    assert pairs in ("", "bf16", "amx", "amx-undocumented", "amx_emulated")
    assert (info["amx"] == "in use") is (pairs in ("amx", "amx-undocumented"))
    assert info["torch"] == torch.__version__
    assert info["threads"] >= 1
    assert info["gpu"] is torch.cuda.is_available()
    assert isinstance(info["cuda"], bool)
    assert info["cuda_note"]
    assert info["gpu_note"]


def test_a_missing_library_is_an_error_that_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seedthink._C", None)
    with pytest.raises(DeviceError, match="pip install -e"):
        build_info()


def test_threads_can_be_set_and_read_back() -> None:
    before = native().threads()
    try:
        set_threads(1)
        assert build_info()["threads"] == 1
    finally:
        set_threads(before)


def test_a_source_distribution_holds_what_the_build_reads(root: Path) -> None:
    words = (root / "MANIFEST.in").read_text().split()
    listed = [path for path in ("csrc", "recipes", "CMakeLists.txt", "autotune/README.md") if path in words]
    assert listed == ["csrc", "recipes", "CMakeLists.txt", "autotune/README.md"]
    assert all((root / path).exists() for path in listed)
