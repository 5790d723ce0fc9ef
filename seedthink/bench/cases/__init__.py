"""The operations that can be measured, one file per family, each with `cases(shapes, device)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from seedthink.bench.presets import Shapes
from seedthink.config.suggest import did_you_mean
from seedthink.errors import ConfigError

if TYPE_CHECKING:
    from seedthink.bench.case import Case

# operation -> (the file of its family, what it is). "_train": forward and backward.
OPS: dict[str, tuple[str, str]] = {
    "gae": ("gae", "advantages and returns of packed sequences, two lambdas in one pass"),
    "route": ("route", "scores, top-k, weights, counts, offsets and both index maps"),
    "route_permute": ("route", "the same, and the rows in expert order"),
    "permute": ("permute", "rows in expert order"),
    "combine": ("permute", "weighted sum of each token's rows, in expert order"),
    "experts": ("experts", "grouped SwiGLU MLP of the routed tokens"),
    "experts_train": ("experts", "the same with gradients"),
    "fp8_quantize": ("fp8", "codes and scales of blocks"),
    "fp8_carry": ("fp8", "codes and scales of matrix plus residual, and what they leave of it"),
    "fp8_linear": ("fp8", "product of two block-scaled FP8 matrices"),
    "linear": ("linear", "row-exact product"),
    "linear_train": ("linear", "the same with both gradients"),
    "linear_logprob": ("logprob", "log-probability and entropy without the full logits"),
    "linear_logprob_train": ("logprob", "the same with gradients"),
    "attend_packed": ("attention", "causal attention over packed sequences"),
    "attend_packed_train": ("attention", "the same with gradients"),
    "attend_paged": ("attention", "one new token of each sequence over its pages"),
    "rms_norm": ("norm", "RMSNorm"),
    "rms_norm_train": ("norm", "the same with gradients"),
    "add_rms_norm": ("norm", "residual sum and RMSNorm"),
    "rope": ("rope", "rotary position embedding"),
    "swiglu": ("swiglu", "SwiGLU"),
    "swiglu_train": ("swiglu", "the same with gradients"),
    "sample": ("sampling", "one draw per row, with its log-probability"),
    "karmarkar_karp": ("balance", "sequences into micro-batches of equal cost"),
}


def chosen_ops(words: Sequence[str]) -> list[str]:
    """Operations by name or else by family, in the order of the table; all without words. ConfigError if unknown."""
    families = {family for family, _ in OPS.values()} - set(OPS)
    for word in words:
        if word not in OPS and word not in families:
            hint = did_you_mean(word, [*OPS, *families]) or "; `seedthink bench list` shows all"
            raise ConfigError(f'--op: there is no operation "{word}"{hint}')
    return [op for op, (family, _) in OPS.items() if not words or op in words or family in families.intersection(words)]


def cases(ops: Sequence[str], shapes: Shapes, device: str) -> Iterator[Case]:
    """Yield the cases of some operations at a model's shapes. device: "cpu" or "cuda"."""
    for family in dict.fromkeys(OPS[op][0] for op in ops):
        made = import_module(f"seedthink.bench.cases.{family}").cases(shapes, device)
        yield from (case for case in made if case.op in ops)
