"""Prompts and examples: tokenizer, chat rendering, JSONL and parquet sources with a resumable cursor, puzzles."""
