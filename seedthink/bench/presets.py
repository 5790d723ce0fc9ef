"""Shapes of models that the kernels are measured at: data in presets.toml, or in a file of the same form."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from seedthink.config.suggest import did_you_mean
from seedthink.errors import ConfigError

MOST_PRODUCT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Shapes:
    """One model's sizes, and how much work an operation gets. Zero or empty: the model has no such operation."""

    name: str
    source: str  # where the sizes come from
    width: int  # of the residual stream, D
    experts: int = 0  # E
    experts_per_token: int = 0  # K
    expert_width: int = 0  # of one expert's hidden layer, I
    score: str = "softmax"  # of the router: softmax or sigmoid
    groups: int = 1  # of experts, for group-limited top-k
    topk_groups: int = 1
    scale: float = 1.0  # of the routing weights
    bias: bool = False  # whether the router has a bias for the choice alone
    heads: int = 0  # query heads, N
    kv_heads: int = 0
    head_dim: int = 0  # H
    vocabulary: int = 0  # V
    rows: tuple[int, ...] = ()  # of a call of linear
    tokens: tuple[int, ...] = ()  # of a call of an operation on tokens
    scored_tokens: tuple[int, ...] = ()  # of a call of linear-log-prob
    sampled_rows: tuple[int, ...] = ()  # of a call of the sampler
    contexts: tuple[tuple[int, int], ...] = ()  # decoding: (sequences, positions that each has in the cache)
    packed: tuple[tuple[int, int], ...] = ()  # training: (sequences, tokens of each)
    matrices: tuple[tuple[int, int], ...] = ()  # that FP8 quantises: (rows, columns)
    linears: tuple[tuple[int, int], ...] = ()  # weights: (inputs, outputs)
    scans: tuple[tuple[int, int], ...] = ()  # advantage estimation: (sequences, tokens of each)
    balances: tuple[tuple[int, int], ...] = ()  # balancing: (sequences, micro-batches)

    def product_tokens(self, device: str) -> tuple[int, ...]:
        """`tokens` for operations that multiply matrices: on a CPU more only repeat the rate, for minutes."""
        return tuple(count for count in self.tokens if device != "cpu" or count <= MOST_PRODUCT_TOKENS)


def presets() -> dict[str, Shapes]:
    """The shapes that come with the package, by name."""
    text = (files("seedthink.bench") / "presets.toml").read_text(encoding="utf-8")
    return _parse(text, "presets.toml")


def chosen_shapes(word: str) -> list[Shapes]:
    """The shapes that `--shapes` names: presets, separated by commas, "all" of them, or a TOML file.

    ConfigError for an unknown preset, a file that cannot be read or a key that is unknown or of the wrong type.
    """
    if word.endswith(".toml"):
        try:
            return list(_parse(Path(word).read_text(encoding="utf-8"), word).values())
        except OSError as error:
            raise ConfigError(f"--shapes: {word} cannot be read ({error.strerror})") from None
    known = presets()
    names = list(known) if word == "all" else word.split(",")
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f'--shapes: there is no preset "{name}"{hint}; known: {", ".join(known)}, or a .toml file'
            )
    return [known[name] for name in names]


def only_first(shapes: Shapes) -> Shapes:
    """`shapes` with one amount of work per operation, for a quick look."""
    lists = {each.name: getattr(shapes, each.name)[:1] for each in fields(Shapes) if "tuple" in str(each.type)}
    return replace(shapes, **lists)


def _parse(text: str, place: str) -> dict[str, Shapes]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{place}: {error}") from None
    if not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"{place}: expected a table for each model, such as [my-model]")
    return {name: _shapes(name, table, place) for name, table in tables.items()}


def _shapes(name: str, table: Mapping[str, Any], place: str) -> Shapes:
    known = {each.name: each for each in fields(Shapes) if each.name != "name"}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f'{place}: [{name}] has no key "{key}"{did_you_mean(key, known)}')
        if not _fits(value, str(known[key].type)):
            raise ConfigError(f"{place}: [{name}] {key} = {value!r} is not of the type {known[key].type}")
    for key in ("source", "width"):
        if key not in table:
            raise ConfigError(f"{place}: [{name}] lacks {key}")
    return Shapes(name, **{key: _frozen(value) for key, value in table.items()})


def _fits(value: Any, wanted: str) -> bool:
    """Whether a TOML value has the type of a field: int, float, str, bool, or numbers or pairs of them."""
    if wanted == "tuple[int, ...]":
        return isinstance(value, list) and all(type(each) is int and each > 0 for each in value)
    if wanted == "tuple[tuple[int, int], ...]":
        pairs = isinstance(value, list) and all(isinstance(each, list) and len(each) == 2 for each in value)
        return pairs and all(_fits(each, "tuple[int, ...]") for each in value)
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    return type(value) in kinds[wanted] and (wanted == "bool" or isinstance(value, str) or value >= 0)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value
