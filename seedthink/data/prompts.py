"""Prompts from puzzles, and from a user's JSONL or parquet file: one row, one problem.

A row has the problem (`prompt`: a string or a list of chat messages), what its verifier needs (`answer`: a value or a
whole object) and optionally `family` and `id`. Field names are settable and reach into objects with a dot. A row that
lacks a field is an error naming file and line; a prompt over the limit is skipped and counted, or refused, never cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seedthink.data.chat_template import Message
from seedthink.data.puzzles import Problem
from seedthink.data.tokenizer import Tokenizer
from seedthink.errors import ConfigError, DataError
from seedthink.types import Prompt

TooLong = Literal["skip", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Names of a row's fields; a dot reaches into an object (`reward_model.ground_truth`)."""

    prompt: str = "prompt"
    """The problem: a string (one user message) or a list of `{"role", "content"}` messages."""
    response: str = "response"
    """SFT only: what the assistant answers; not used where `prompt` ends with an assistant's message."""
    answer: str = "answer"
    """What the verifier compares with; becomes `{"answer": ...}` unless it is an object already."""
    family: str = "family"
    """Names the verifier and the metrics of the row."""
    id: str = "id"
    """Unique name of the problem; `<file>:<line>` where rows have none."""


DEFAULT_FIELDS = Fields()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file and where it stands, `file:line`, for errors."""

    values: Mapping[str, Any]
    place: str


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """Prompts of a file in its order, and how many rows were skipped as too long."""

    prompts: tuple[Prompt, ...]
    skipped: int


def read_rows(path: str | Path) -> Iterator[Row]:
    """Rows of a .jsonl or .parquet file; empty lines are passed over. `DataError` names the line that is no object."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist (data files are .jsonl or .parquet)")
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        yield from _read_jsonl(path)
    else:
        raise DataError(f"{path} has the ending '{path.suffix}'; data files are .jsonl or .parquet")


def load_prompts(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    fields: Fields = DEFAULT_FIELDS,
    family: str = "math",
    system: str = "",
    max_prompt_tokens: int = 1024,
    too_long: TooLong = "skip",
) -> LoadedPrompts:
    """Every problem of a file, rendered through the chat template and tokenized.

    `family` is for rows without that field; `system` is put first where a row has no system message. Raises `DataError`
    naming file and line for a bad row, for a prompt over `max_prompt_tokens` with `too_long="refuse"`, and when no row
    remains.
    """
    if too_long not in ("skip", "refuse"):
        raise ConfigError(f"too_long is '{too_long}'; it can be 'skip' or 'refuse'")
    drafts: list[Prompt] = []
    rendered: list[str] = []
    places: dict[str, str] = {}
    for row in read_rows(path):
        messages = messages_of(row, fields.prompt, system)
        draft = Prompt(
            id=str(find(row, fields.id, default=row.place)),
            family=str(find(row, fields.family, default=family)),
            text=str(messages[-1].get("content", "")),
            tokens_T=np.zeros(0, np.int32),
            reference=_reference(find(row, fields.answer)),
        )
        if draft.id in places:
            raise DataError(f"{row.place}: the id '{draft.id}' was used at {places[draft.id]} already; ids are unique")
        places[draft.id] = row.place
        drafts.append(draft)
        rendered.append(tokenizer.render_chat(messages))
    prompts = [
        prompt
        for prompt in _with_tokens(drafts, rendered, tokenizer)
        if fits(prompt.tokens_T, max_prompt_tokens, too_long, places[prompt.id], "prompt")
    ]
    if not drafts:
        raise DataError(f"{path} holds no rows")
    if not prompts:
        raise DataError(
            f"{path}: all {len(drafts)} prompts are longer than data.max_prompt_tokens = {max_prompt_tokens}; raise it"
        )
    return LoadedPrompts(tuple(prompts), len(drafts) - len(prompts))


def puzzle_prompts(problems: Iterable[Problem], tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    """Puzzles as prompts: the question as one user message through the chat template."""
    empty = np.zeros(0, np.int32)
    drafts = [Prompt(each.id, each.family, each.question, empty, each.reference) for each in problems]
    rendered = [tokenizer.render_chat([{"role": "user", "content": draft.text}]) for draft in drafts]
    return tuple(_with_tokens(drafts, rendered, tokenizer))


def without_thinking(prompt: Prompt, tokenizer: Tokenizer) -> Prompt:
    """The same prompt with its think block closed at once: what the model answers without thinking.

    The reference gains `"think": "empty"`, which tells format checks that the block was closed in the prompt.
    """
    text = tokenizer.decode(prompt.tokens_T.tolist(), skip_special_tokens=False).rstrip()
    opened = "" if text.endswith("<think>") else "<think>"
    tail = tokenizer.encode(f"{opened}</think>")
    tokens_T = np.concatenate([prompt.tokens_T, np.asarray(tail, np.int32)])
    return replace(prompt, tokens_T=tokens_T, reference={**prompt.reference, "think": "empty"})


def _with_tokens(drafts: Sequence[Prompt], rendered: Sequence[str], tokenizer: Tokenizer) -> Iterator[Prompt]:
    """Fill in tokens, and tell the verifier where the template has opened the think block, or closed it too."""
    for draft, text, ids in zip(drafts, rendered, tokenizer.encode_all(rendered), strict=True):
        tail = text.rstrip()
        reference = dict(draft.reference)
        if tail.endswith(("<think>", "</think>")):
            reference["think"] = "open" if tail.endswith("<think>") else "empty"
        yield replace(draft, tokens_T=np.asarray(ids, np.int32), reference=reference)


def messages_of(row: Row, field: str, system: str = "") -> list[Message]:
    """A row's conversation. Raises `DataError` where the field is neither text nor a list of messages."""
    value = find(row, field)
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    well_formed = isinstance(value, list) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message
        for message in value
    )
    if not well_formed or not value:
        raise DataError(f"{row.place}: '{field}' must be text or a list of {{role, content}} messages")
    if system and value[0]["role"] != "system":
        value = [{"role": "system", "content": system}, *value]
    return value


_MISSING = object()


def find(row: Row, field: str, default: Any = _MISSING) -> Any:
    """A field of a row, through dots into objects; `DataError` naming the row and its fields where it lacks it."""
    value: Any = row.values
    for part in field.split("."):
        if not isinstance(value, Mapping) or value.get(part) is None:
            if default is _MISSING:
                raise DataError(f"{row.place} has no field '{field}'; its fields are {', '.join(row.values)}")
            return default
        value = value[part]
    return value


def fits(ids: Sized, limit: int, too_long: TooLong, place: str, what: str) -> bool:
    """Whether the ids are within the limit. Raises `DataError` where they are not and `too_long` is "refuse"."""
    if len(ids) > limit and too_long == "refuse":
        raise DataError(
            f"{place}: the {what} has {len(ids)} tokens, the limit is {limit}; shorten it, or skip such rows"
        )
    return len(ids) <= limit


def _reference(answer: Any) -> Mapping[str, Any]:
    return answer if isinstance(answer, Mapping) else {"answer": answer}


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                values = json.loads(line)
                if b"\\u" in line:
                    json.dumps(values, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(f"{place} holds half of a surrogate pair, which is no text: {error}") from error
            except (ValueError, RecursionError) as error:
                hint = "; a data file holds one JSON object per line" if number == 1 else ""
                raise DataError(f"{place} is no JSON: {error}{hint}") from error
            if not isinstance(values, dict):
                raise DataError(f"{place} holds a {type(values).__name__} where a JSON object belongs")
            yield Row(values, place)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable parquet file: {error}") from error
