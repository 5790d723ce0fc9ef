"""Examples for supervised fine-tuning: a prompt, a response, and a loss mask on the response alone.

Prompt and response are tokenized apart, so that the prompt's ids are the very ones generation starts from. Where the
template opens the think block and the response writes `<think>` too, it is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from seedthink.data.chat_template import Message
from seedthink.data.prompts import DEFAULT_FIELDS, Fields, TooLong, find, fits, messages_of, read_rows
from seedthink.data.puzzles import Family, Habits, Problem
from seedthink.data.tokenizer import Tokenizer
from seedthink.errors import DataError

if TYPE_CHECKING:
    from seedthink.types import Float32, Int32

THINK_OPEN = "<think>"


@dataclass(frozen=True, slots=True)
class SftExample:
    """Prompt and response back to back; `mask_T` is 1 on the response, which ends with the stop token."""

    tokens_T: Int32
    mask_T: Float32
    id: str = ""


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """Examples of a file in its order, and how many rows were skipped as too long."""

    examples: tuple[SftExample, ...]
    skipped: int


def sft_example(tokenizer: Tokenizer, messages: Sequence[Message], response: str, *, id: str = "") -> SftExample:
    """One example: the conversation up to the assistant's turn, then `response` and the stop token."""
    prompt = tokenizer.render_chat(messages)
    if prompt.rstrip().endswith(THINK_OPEN) and response.lstrip().startswith(THINK_OPEN):
        response = response.lstrip()[len(THINK_OPEN) :]
        if prompt[-1].isspace():
            response = response.lstrip()
    if not tokenizer.eos_token_ids:
        raise DataError(
            f"the tokenizer of {tokenizer.where} names no eos token, so a response has no end; set eos_token in its "
            "tokenizer_config.json, or eos_token_id in generation_config.json"
        )
    head = tokenizer.encode(prompt)
    tail = [*tokenizer.encode(response), tokenizer.eos_token_ids[0]]
    mask = np.zeros(len(head) + len(tail), np.float32)
    mask[len(head) :] = 1.0
    return SftExample(np.asarray([*head, *tail], np.int32), mask, id)


def load_examples(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    fields: Fields = DEFAULT_FIELDS,
    system: str = "",
    max_tokens: int = 4096,
    too_long: TooLong = "skip",
) -> LoadedExamples:
    """Examples of a JSONL or parquet file: `prompt` with `response`, or messages that end with the assistant's.

    Of a longer conversation only the last turn is learned. Rows with a `messages` field and no prompt use that.
    Raises `DataError` naming file and line for a bad row, for one over `max_tokens` with `too_long="refuse"`, and when
    none is left.
    """
    examples = []
    skipped = 0
    for row in read_rows(path):
        field = "messages" if "messages" in row.values and find(row, fields.prompt, None) is None else fields.prompt
        messages = messages_of(row, field, system)
        if messages[-1]["role"] == "assistant":
            *messages, last = messages
            response = last["content"]
        else:
            response = find(row, fields.response)
        if not isinstance(response, str) or not messages:
            raise DataError(f"{row.place}: the response must be text that answers at least one message")
        example = sft_example(tokenizer, messages, response, id=str(find(row, fields.id, row.place)))
        if fits(example.tokens_T, max_tokens, too_long, row.place, "example"):
            examples.append(example)
        else:
            skipped += 1
    if not examples and not skipped:
        raise DataError(f"{path} holds no rows")
    if not examples:
        raise DataError(f"{path}: all {skipped} examples are longer than data.max_length = {max_tokens}; raise it")
    return LoadedExamples(tuple(examples), skipped)


def cold_start_examples(
    family: Family, problems: Iterable[Problem], tokenizer: Tokenizer, *, habits: Habits, seed: int
) -> tuple[SftExample, ...]:
    """One imperfect chain of thought for each problem; the same for a seed."""
    examples = []
    for index, problem in enumerate(problems):
        response = family.cold_start(problem, Random(f"{seed}/{index}"), habits)
        message = {"role": "user", "content": problem.question}
        examples.append(sft_example(tokenizer, [message], response, id=problem.id))
    return tuple(examples)
