"""Checkpoints of a run, and model folders in Hugging Face form: the only place that knows safetensors."""

from __future__ import annotations

from seedthink.checkpoint.hf import load_hf, open_hf, save_hf
from seedthink.checkpoint.store import Checkpoint, CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "load_hf", "open_hf", "save_hf"]
