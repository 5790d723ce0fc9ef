"""The Triton kernels, run by Triton's interpreter in a process of its own, against their references.

The interpreter is chosen before Triton is imported. It is wrong about casts to bfloat16 and FP8 and about products of
bfloat16, so everything in `interpreted.py` is float32, and FP8 codes are left to the compiled tests and the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def test_every_kernel_matches_its_reference_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "interpreted.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[2])
    assert result.returncode == 0, result.stdout[-6000:]
