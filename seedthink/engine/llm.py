"""Offline generation from a model folder: prompts in, completions with log-probs out.

The tokenizer arrives as an object, since the engine reads no tokenizer files; `seedthink.LLM` brings the folder's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, get_type_hints

import numpy as np
import torch

from seedthink.config.convert import convert
from seedthink.config.suggest import did_you_mean
from seedthink.engine.generator import GeneratorStats, TokenGenerator
from seedthink.engine.model_io import load_model
from seedthink.engine.page_cache import pages_within
from seedthink.errors import ConfigError
from seedthink.types import Completion, Request, SamplingParams

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ChatTokenizer(Protocol):
    """What `LLM` needs of a tokenizer."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ids."""
        ...

    def apply_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a conversation, up to where the assistant begins to write."""
        ...


class LLMSettings(TypedDict, total=False):
    """Keywords of `LLM`: dtype "float32" (default) or "bfloat16" of matrix operands and KV cache; kv_memory_mib (512)
    MiB for the cache; max_batch_tokens (2048) per step; max_sequences (256) at once; prefix_cache (True)."""

    dtype: str
    kv_memory_mib: int
    max_batch_tokens: int
    max_sequences: int
    prefix_cache: bool


class LLM:
    """A model that answers lists of prompts. Answers depend on prompt, seed and sampling, not on what else is asked."""

    def __init__(self, path: str | Path, tokenizer: ChatTokenizer, **settings: Unpack[LLMSettings]) -> None:
        """Load a Hugging Face folder. DataError names what is wrong with it, ConfigError a setting."""
        unknown = [key for key in settings if key not in LLMSettings.__annotations__]
        if unknown:
            raise ConfigError(_unknown("LLM", unknown[0], LLMSettings.__annotations__))
        for key, value in settings.items():
            convert(value, get_type_hints(LLMSettings)[key], key)
        dtype = settings.get("dtype", "float32")
        if dtype not in DTYPES:
            raise ConfigError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
        model = load_model(path, DTYPES[dtype])
        sequences = settings.get("max_sequences", 256)
        self.tokenizer = tokenizer
        self._generator = TokenGenerator(
            model,
            pages=pages_within(model.config, model.compute, settings.get("kv_memory_mib", 512), sequences),
            max_batch_tokens=settings.get("max_batch_tokens", 2048),
            max_sequences=sequences,
            prefix_cache=settings.get("prefix_cache", True),
            detokenizer=tokenizer,
            eos_token_ids=sorted({*model.config.eos_token_ids, *tokenizer.eos_token_ids}),
        )

    @property
    def stats(self) -> GeneratorStats:
        """Counts over all calls."""
        return self._generator.stats

    def generate(
        self, prompts: Sequence[Prompt], n: int = 1, logprobs: bool = True, *, seed: int = 0, **sampling: Any
    ) -> list[list[Completion]]:
        """`n` completions for each prompt, in order.

        A prompt is a text, a list of chat messages ({"role", "content"}) or a list of token ids. `sampling` holds
        fields of `SamplingParams` (max_tokens, temperature, top_k, top_p, stop, stop_token_ids, ignore_eos). Member i
        of prompt p draws from (seed, p, i). With `logprobs` False the completions' `logprob_T` are empty.
        Errors: ConfigError on unknown or impossible settings, and where a prompt does not fit.
        """
        _check_prompts(prompts)
        n, seed = convert(_plain(n), int, "n"), convert(_plain(seed), int, "seed")
        if n < 1 or seed < 0:
            raise ConfigError(f"n = {n}, seed = {seed}: n must be at least 1 and seed at least 0")
        params = sampling_params(sampling)
        requests = [
            Request(f"{p}.{i}", tokens_T, params, _seed(seed, p, i), group=str(p) if n > 1 else "")
            for p, tokens_T in enumerate(np.array(self._encode(prompt), dtype=np.int32) for prompt in prompts)
            for i in range(n)
        ]
        try:
            self._generator.submit(requests)
            found: dict[str, Completion] = {}
            while not self._generator.idle:
                found |= {completion.id: completion for completion in self._generator.step()}
        except BaseException:  # Ctrl-C included: the next call starts clean
            self._generator.reset()
            raise
        if not logprobs:
            found = {id: replace(each, logprob_T=each.logprob_T[:0]) for id, each in found.items()}
        return [[found[f"{p}.{i}"] for i in range(n)] for p in range(len(prompts))]

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if len(prompt) and isinstance(prompt[0], Mapping):
            return self.tokenizer.apply_chat(prompt)  # type: ignore[arg-type]
        return list(prompt)  # type: ignore[arg-type]


def sampling_params(sampling: Mapping[str, Any]) -> SamplingParams:
    """`SamplingParams` from keywords; a single stop string may stand alone.

    ConfigError on an unknown keyword or a value of another type.
    """
    known = get_type_hints(SamplingParams)
    for key in sampling:
        if key not in known:
            raise ConfigError(_unknown("generate", key, known))
    values = dict(sampling)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    return SamplingParams(**{key: convert(_plain(value), known[key], key) for key, value in values.items()})


def _plain(value: Any) -> Any:
    """A numpy number as Python's, a set or generator of ids as a list; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set | frozenset | np.ndarray) else value


def _check_prompts(prompts: Any) -> None:
    """ConfigError where prompts are no list of texts, conversations and lists of token ids."""
    if not isinstance(prompts, Sequence | np.ndarray) or isinstance(prompts, str):
        raise ConfigError("prompts: expected a list of prompts; put a single text or conversation into a list")
    for at, prompt in enumerate(prompts):
        if isinstance(prompt, Mapping):
            raise ConfigError("prompts: expected a list of prompts; put a single text or conversation into a list")
        if isinstance(prompt, str):
            continue
        items = prompt if isinstance(prompt, Sequence | np.ndarray) else [None]
        if not (all(isinstance(item, Mapping) for item in items) or all(map(_is_token, items))):
            raise ConfigError(
                f"prompts[{at}] = {prompt!r:.80}: a prompt is a text, a list of messages or a list of token ids"
            )


def _is_token(item: Any) -> bool:
    return isinstance(item, int | np.integer) and not isinstance(item, bool)


def _unknown(where: str, key: str, known: Any) -> str:
    return f"{where} has no setting '{key}'{did_you_mean(key, known) or '.'} It knows {', '.join(known)}."


def _seed(seed: int, prompt: int, member: int) -> int:
    """63 bits that differ for every (seed, prompt, member)."""
    return int(np.random.SeedSequence((seed, prompt, member)).generate_state(1, np.uint64)[0] >> 1)
