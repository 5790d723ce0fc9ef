"""`seedthink.LLM`: the engine's offline generator with the tokenizer of the model's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from seedthink.data.tokenizer import Tokenizer
from seedthink.engine.llm import LLM as EngineLLM
from seedthink.engine.llm import LLMSettings


class LLM(EngineLLM):
    """`LLM("path/to/folder").generate(["2 + 2 ="], n=4, max_tokens=64)`; see `generate` for prompts and sampling."""

    def __init__(self, path: str | Path, **settings: Unpack[LLMSettings]) -> None:
        """Load model and tokenizer of a Hugging Face folder. DataError names the file that is missing or broken."""
        super().__init__(path, Tokenizer.load(path), **settings)
