"""What a recipe's source tables stand for: streams of training prompts or examples, and held-out problems.

A puzzle source draws `count` problems (knob, default 2000) from the training side of its family's split; held-out ones
come from the other side. File sources are taken as they are; `limits.check_apart` refuses a problem on both sides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from seedthink.config.sections import EvalDataConfig, RlDataConfig, SftDataConfig, SourceConfig
from seedthink.controller.limits import repeated
from seedthink.data.prompts import Fields, TooLong, fits, load_prompts, puzzle_prompts, without_thinking
from seedthink.data.puzzles import Family, Habits, family, make
from seedthink.data.sft import SftExample, cold_start_examples, load_examples
from seedthink.data.sources import MixedSource, ShuffledSource, Source
from seedthink.data.tokenizer import Tokenizer
from seedthink.errors import ConfigError
from seedthink.types import Prompt

LOG = logging.getLogger("seedthink.controller")
PUZZLES = 2000
_DRAWING = ("count", "slips", "hasty")  # how many problems to draw and how they are answered, not how hard they are

Item = TypeVar("Item", Prompt, SftExample)


@dataclass(frozen=True)
class Training(Generic[Item]):
    """What is learned from, read once: as many streams over it as a run has attempts."""

    sources: Sequence[SourceConfig]
    lists: Sequence[Sequence[Item]]
    seed: int

    @property
    def items(self) -> Iterator[Item]:
        """All items, source by source."""
        return chain.from_iterable(self.lists)

    def stream(self) -> Source[Item]:
        """An endless stream from the beginning, mixed by weight."""
        return _mixed(self.sources, self.lists, self.seed)


def training_prompts(data: RlDataConfig, tokenizer: Tokenizer, seed: int) -> Training[Prompt]:
    """Reads and tokenizes the problems of all sources."""
    sources = _some(data.train, "data.train")
    return _training(sources, [_prompts(source, data, tokenizer, seed) for source in sources], seed)


def training_texts(data: SftDataConfig, tokenizer: Tokenizer, seed: int) -> Training[SftExample]:
    """Reads and tokenizes the texts of all sources."""
    sources = _some(data.train, "data.train")
    return _training(sources, [_examples(source, data, tokenizer, seed) for source in sources], seed)


def held_out_prompts(data: EvalDataConfig, tokenizer: Tokenizer, count: int, seed: int) -> list[Prompt]:
    """About `count` held-out problems, shared out over the sources by weight; the same for a seed."""
    if not data.eval:
        return []
    total = sum(source.weight for source in data.eval)
    found: list[Prompt] = []
    prompts: Sequence[Prompt]
    for source in data.eval:
        share = max(1, round(count * source.weight / total))
        if source.kind == "puzzle":
            chosen, _ = _family(source)
            drawn = puzzle_prompts(make(chosen, seed=seed, count=share, split="held_out"), tokenizer)
            prompts = _short_enough(drawn, source, data, "max_prompt_tokens")
        else:
            prompts = ShuffledSource(_file_prompts(source, data, tokenizer), seed=seed).items[:share]
        found += prompts
    return found


def asked(prompts: Sequence[Prompt], thinking: str, tokenizer: Tokenizer) -> list[Prompt]:
    """Held-out problems as `evaluation.thinking` has them asked."""
    return [without_thinking(prompt, tokenizer) for prompt in prompts] if thinking == "empty" else list(prompts)


def _prompts(source: SourceConfig, data: EvalDataConfig, tokenizer: Tokenizer, seed: int) -> Sequence[Prompt]:
    if source.kind == "puzzle":
        chosen, drawing = _family(source)
        drawn = puzzle_prompts(make(chosen, seed=seed, count=int(drawing.get("count", PUZZLES))), tokenizer)
        return _short_enough(drawn, source, data, "max_prompt_tokens")
    return _file_prompts(source, data, tokenizer)


def _file_prompts(source: SourceConfig, data: EvalDataConfig, tokenizer: Tokenizer) -> Sequence[Prompt]:
    loaded = load_prompts(
        source.path,
        tokenizer,
        fields=_fields(source),
        family=source.family or "math",
        system=data.system,
        max_prompt_tokens=data.max_prompt_tokens,
        too_long=_too_long(data),
    )
    _say_skipped(source, loaded.skipped, data.max_prompt_tokens)
    return loaded.prompts


def _examples(source: SourceConfig, data: SftDataConfig, tokenizer: Tokenizer, seed: int) -> Sequence[SftExample]:
    if source.kind == "puzzle":
        chosen, drawing = _family(source)
        problems = make(chosen, seed=seed, count=int(drawing.get("count", PUZZLES)))
        habits = Habits(slips=float(drawing.get("slips", 0.0)), hasty=float(drawing.get("hasty", 0.0)))
        drawn = cold_start_examples(chosen, problems, tokenizer, habits=habits, seed=seed)
        return _short_enough(drawn, source, data, "max_length")
    loaded = load_examples(
        source.path,
        tokenizer,
        fields=_fields(source),
        system=data.system,
        max_tokens=data.max_length,
        too_long=_too_long(data),
    )
    _say_skipped(source, loaded.skipped, data.max_length)
    return loaded.examples


def _family(source: SourceConfig) -> tuple[Family, dict[str, Any]]:
    knobs: dict[str, Any] = dict(source.knobs)
    drawing = {name: knobs.pop(name) for name in _DRAWING if name in knobs}
    return family(source.family, **knobs), drawing


def _fields(source: SourceConfig) -> Fields:
    return Fields(prompt=source.prompt_field, response=source.response_field, answer=source.answer_field)


def _short_enough(items: Sequence[Item], source: SourceConfig, data: EvalDataConfig, key: str) -> Sequence[Item]:
    """The puzzles within the limit data.`key`, as data.overlong says; files are measured while they are read."""
    limit = getattr(data, key)
    kept = [item for item in items if fits(item.tokens_T, limit, _too_long(data), f"puzzle {item.id}", "text")]
    if not kept:
        raise ConfigError(f"data.{key} = {limit} is too short for every {source.family} puzzle; raise it")
    _say_skipped(source, len(items) - len(kept), limit)
    return kept


def _too_long(data: EvalDataConfig) -> TooLong:
    return "skip" if data.overlong == "skip" else "refuse"


def _say_skipped(source: SourceConfig, skipped: int, limit: int) -> None:
    if skipped:
        LOG.warning("%s: %d rows skipped, longer than %d tokens", source.path or source.family, skipped, limit)


def _training(sources: Sequence[SourceConfig], lists: Sequence[Sequence[Item]], seed: int) -> Training[Item]:
    for source, items in zip(sources, lists, strict=True):
        if source.kind != "puzzle" and (count := repeated(items)):
            LOG.warning("%s: %d rows repeat an earlier one; they are kept and weigh more", source.path, count)
    return Training(sources, lists, seed)


def _mixed(sources: Sequence[SourceConfig], lists: Sequence[Sequence[Item]], seed: int) -> Source[Item]:
    named = {f"{i}:{s.family or s.path}": s for i, s in enumerate(sources)}
    streams: dict[str, Source[Item]] = {
        name: ShuffledSource(items, seed=seed, name=name) for name, items in zip(named, lists, strict=True)
    }
    return MixedSource(streams, {name: source.weight for name, source in named.items()})


def _some(sources: Sequence[SourceConfig], key: str) -> Sequence[SourceConfig]:
    if not sources:
        raise ConfigError(f'{key} is empty; add a source, e.g. [[{key}]] kind = "jsonl", path = "problems.jsonl"')
    return sources
