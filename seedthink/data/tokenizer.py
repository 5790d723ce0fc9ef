"""A Hugging Face tokenizer folder read with the `tokenizers` library alone: same ids, same text, same chat rendering.

The folder's files are kept as they were read and written back byte for byte by `save`, so an exported model carries
the tokenizer it was trained with. transformers is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from seedthink.data.chat_template import Message, render_chat
from seedthink.errors import DataError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """Text to ids and back, and chat rendering. Make one with `Tokenizer.load(folder)`."""

    def __init__(self, files: Mapping[str, bytes], *, where: str, extra_eos: Sequence[int] = ()) -> None:
        """`files` are the folder's files by name, `where` names them in errors, `extra_eos` adds stop tokens."""
        self.files = dict(files)
        self.where = where
        try:
            self._backend = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"].decode())
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{where}/tokenizer.json cannot be read: {error}") from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self._config = {**self._json("special_tokens_map.json"), **self._json("tokenizer_config.json")}
        self._add_configured_tokens()
        self.special_tokens = {name: text for name in SPECIAL if (text := _content(self._config.get(name))) is not None}
        self.chat_template = self._find_template()
        self.eos_token_ids = self._find_eos(extra_eos)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template of a folder.

        Stop tokens are the tokenizer's eos token and those of generation_config.json. Raises `DataError` naming the
        file that is missing or broken.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(
                f"model folder {folder} does not exist; name one with config.json, safetensors and tokenizer"
            )
        if not (folder / "tokenizer.json").is_file():
            raise DataError(
                f"{folder} has no tokenizer.json. A fast tokenizer is needed: in transformers, "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes one"
            )
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        generation = folder / "generation_config.json"
        extra: Any = _parse(generation.read_bytes(), generation).get("eos_token_id") if generation.is_file() else None
        return cls(files, where=str(folder), extra_eos=[extra] if isinstance(extra, int) else (extra or ()))

    def save(self, folder: str | Path) -> None:
        """Write the files back, byte for byte as they were read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text; `add_special_tokens` adds what the tokenizer puts around a bare text (a BOS, say)."""
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts at once, without tokens around them."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of the ids. Think tags stay: reasoning models declare them as added, not special, tokens."""
        return self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """Id of a token's exact text; None where the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **switches: Any) -> str:
        """Text of a conversation through the folder's chat template; `switches` reach the template as variables."""
        if self.chat_template is None:
            raise DataError(f"{self.where} has no chat template (chat_template.jinja, or a key in tokenizer_config)")
        variables = {**self.special_tokens, **switches}
        try:
            return render_chat(
                self.chat_template, messages, add_generation_prompt=add_generation_prompt, variables=variables
            )
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from error

    def apply_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True, **switches: Any) -> list[int]:
        """Ids of a conversation; with `add_generation_prompt` it ends where the assistant begins to write."""
        return self.encode(self.render_chat(messages, add_generation_prompt=add_generation_prompt, **switches))

    def _json(self, name: str) -> dict[str, Any]:
        return _parse(self.files[name], Path(self.where) / name) if name in self.files else {}

    def _add_configured_tokens(self) -> None:
        """Add tokens that only the config declares, in the order of their ids, as Hugging Face does."""
        declared = self._config.get("added_tokens_decoder") or {}
        for _, entry in sorted(declared.items(), key=lambda item: int(item[0])):
            if self._backend.token_to_id(entry["content"]) is None:
                keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
                token = tokenizers.AddedToken(entry["content"], **{key: entry[key] for key in keys if key in entry})
                add = self._backend.add_special_tokens if entry.get("special") else self._backend.add_tokens
                add([token])

    def _find_template(self) -> str | None:
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"].decode()
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default")
        return template

    def _find_eos(self, extra: Sequence[int]) -> tuple[int, ...]:
        eos = self.special_tokens.get("eos_token")
        own = self._backend.token_to_id(eos) if eos is not None else None
        found = [*([own] if own is not None else []), *extra]
        return tuple(dict.fromkeys(found))


def _content(token: object) -> str | None:
    """A special token's text; configs hold it bare or as an object with a `content`."""
    if isinstance(token, Mapping):
        return str(token["content"])
    return token if isinstance(token, str) else None


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{path} holds a {type(parsed).__name__} where a JSON object belongs")
    return parsed
