"""Architectures: one file per family, the context they run under, and the map to Hugging Face names."""
