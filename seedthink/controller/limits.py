"""What can be known before a run starts: texts that do not fit the model, problems that stand on both sides.

A prompt that is too long would otherwise end a run at the step that draws it, hours later and again after each resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from seedthink.data.sft import SftExample
from seedthink.errors import ConfigError, DataError
from seedthink.models.config import ModelConfig
from seedthink.types import Prompt

if TYPE_CHECKING:
    from seedthink.types import Int32


def check_prompts(prompts: Iterable[Prompt], model: ModelConfig, max_tokens: int, key: str) -> None:
    """ConfigError for a prompt that leaves no room for `max_tokens` more in the model; `key` is where that is set."""
    positions = model.max_position_embeddings
    if max_tokens >= positions:
        raise ConfigError(f"{key} = {max_tokens}: the model has only {positions} positions (max_position_embeddings)")
    for prompt in prompts:
        length = len(prompt.tokens_T)
        if length + max_tokens > positions:
            raise ConfigError(
                f"{prompt.id}: {length} prompt tokens and {key} = {max_tokens} make {length + max_tokens}, but the "
                f"model has {positions} positions (max_position_embeddings). Lower {key}, or set "
                f"data.max_prompt_tokens = {positions - max_tokens}, so that data.overlong applies"
            )
        _check_tokens(prompt.id, prompt.tokens_T, model)


def check_examples(examples: Iterable[SftExample], model: ModelConfig) -> None:
    """ConfigError for an example that is longer than the model's context."""
    positions = model.max_position_embeddings
    for example in examples:
        if len(example.tokens_T) > positions:
            raise ConfigError(
                f"{example.id}: the example has {len(example.tokens_T)} tokens, but the model has {positions} "
                f"positions (max_position_embeddings). Set data.max_length = {positions}, so that data.overlong applies"
            )
        _check_tokens(example.id, example.tokens_T, model)


def check_apart(training: Iterable[Prompt | SftExample], held_out: Sequence[Prompt]) -> None:
    """DataError where a training item asks what a held-out problem asks, token for token, or has its id."""
    asked = {prompt.tokens_T.tobytes(): prompt.id for prompt in held_out}
    ids = {prompt.id for prompt in held_out}
    shared = [
        (item.id, asked.get(_question(item), item.id))
        for item in training
        if item.id in ids or _question(item) in asked
    ]
    if shared:
        mine, other = shared[0]
        raise DataError(
            f"{len(shared)} training problems are held out too, for instance {mine} (held out as {other}); accuracy on "
            "them would say nothing. Take them out of data.train or data.eval"
        )


def repeated(items: Iterable[Prompt | SftExample]) -> int:
    """How many items ask or teach exactly what an earlier one does."""
    seen: set[bytes] = set()
    count = 0
    for item in items:
        content = item.tokens_T.tobytes()
        count += content in seen
        seen.add(content)
    return count


def _question(item: Prompt | SftExample) -> bytes:
    """The tokens before the answer."""
    if isinstance(item, Prompt):
        return item.tokens_T.tobytes()
    taught_T = item.mask_T.nonzero()[0]
    return item.tokens_T[: taught_T[0] if len(taught_T) else None].tobytes()


def _check_tokens(name: str, tokens_T: Int32, model: ModelConfig) -> None:
    highest = int(tokens_T.max(initial=0))
    if highest >= model.vocab_size:
        raise DataError(
            f"{name}: the tokenizer writes token {highest}, but the model has {model.vocab_size} (vocab_size); "
            "tokenizer and weights do not belong together"
        )
