"""Every kernel of the suite on this machine, kept as `results/kernels/<device>.json`: what docs/kernels.md shows.

The same as `seedthink bench kernels --shapes qwen3-30b-a3b --json ...`; further options are handed on.
Run: `python benchmarks/kernels.py [--device cuda]` (about half an hour on two cores: inductor compiles every peer).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from seedthink.bench.run import device_class, device_name
from seedthink.cli.main import main


def place(device: torch.device) -> Path:
    """The file of a device: its name and the class that its bits belong to."""
    words = f"{device_name(device)} {device_class(device)}".lower()
    return Path(__file__).parent / "results" / "kernels" / f"{re.sub('[^a-z0-9]+', '-', words).strip('-')}.json"


if __name__ == "__main__":
    given = sys.argv[1:]
    device = torch.device(given[given.index("--device") + 1] if "--device" in given else "cpu")
    shapes = [] if "--shapes" in given else ["--shapes", "qwen3-30b-a3b"]
    sys.exit(main(["bench", "kernels", *shapes, "--json", str(place(device)), *given]))
