"""seedthink: post-training for reasoning models, with one engine that trains and generates.

Importing this package loads neither torch nor the native library; the names below load what they need on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "LLM": "seedthink.controller.llm",
    "train_rl": "seedthink.controller.api",
    "build_info": "seedthink.kernels.build",
}
__all__ = ["LLM", "__version__", "build_info", "train_rl"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'seedthink' has no attribute '{name}'; it offers {', '.join(__all__)}")
