"""The small tokenizer of the puzzles: numbers 0..99 are single tokens, so a step of arithmetic is a handful of them.

Words and marks are separated by spaces in decoded text; encoding needs no spaces. The chat template is two turn tokens
and opens the assistant's turn with `<think>`, which makes a puzzle prompt about a dozen tokens.
"""

from __future__ import annotations

import json

import tokenizers
from tokenizers import AddedToken, Regex, models, pre_tokenizers

from seedthink.data.tokenizer import Tokenizer

PAD, END, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unknown|>"
THINK = ("<think>", "</think>")
MARKS = ("+", "-", "*", "/", "(", ")", "=", "<", ">", ":", ",", ".", "?")
WORDS = ("sum", "mod", "make", "from", "big")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<|assistant|>{{ message.content }}<|end|>"
    "{% else %}{{ raise_exception('the puzzle template knows the roles user and assistant') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


def build_puzzle_tokenizer() -> Tokenizer:
    """The tokenizer in Hugging Face's format: `save` it, and transformers loads it too."""
    special = [PAD, END, USER, ASSISTANT, UNKNOWN]
    words = [*special, *THINK, *MARKS, *WORDS, *map(str, range(100))]
    backend = tokenizers.Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, UNKNOWN))
    pieces = Regex(r"[0-9]{1,2}|[a-z]+|[^\s]")
    backend.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
    }
    files = {
        "tokenizer.json": backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "special_tokens_map.json": json.dumps(
            {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}, indent=2
        ).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }
    return Tokenizer(files, where="the puzzle tokenizer")
