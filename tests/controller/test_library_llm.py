"""`seedthink.LLM` on a folder: the model and the tokenizer beside it."""

from __future__ import annotations

from pathlib import Path

import torch

import seedthink
from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer
from seedthink.engine.model_io import save_model
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer


def test_a_folder_answers_texts_and_conversations_with_its_own_tokenizer(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    tokenizer = build_puzzle_tokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    config = ModelConfig(
        family="qwen3",
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = Transformer(config)
    model.init_weights(seed=0)
    llm = seedthink.LLM(save_model(model, tmp_path / "model", tokenizer_folder=tmp_path / "tokenizer"))
    assert isinstance(llm, seedthink.LLM)
    text, chat = llm.generate(["sum 1 2", [{"role": "user", "content": "sum 1 2"}]], max_tokens=8, temperature=0)
    rendered = tokenizer.apply_chat([{"role": "user", "content": "sum 1 2"}])
    assert chat[0].tokens_T.tolist() == llm.generate([rendered], max_tokens=8, temperature=0)[0][0].tokens_T.tolist()
    assert text[0].text == tokenizer.decode([t for t in text[0].tokens_T.tolist() if t not in tokenizer.eos_token_ids])
