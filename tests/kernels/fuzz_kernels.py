"""Calls every kernel of a native library with valid and with broken arguments; a program, see test_sanitizers.py.

    python fuzz_kernels.py LIBRARY [--cases 3000] [--seed 0] [--only CASE] [--note FILE]

A valid call must return, a broken one must return or raise ValueError (TypeError for what is no tensor or number at
all). Case i is a function of seed and i; it is written to FILE before it runs, so that a crash leaves it there.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from native_calls import CALLS, Call, Draw
from torch import Tensor

NO_KERNELS = {
    "build_info",
    "isa",
    "emulate_amx",
    "threads",
    "set_threads",
    "fp8_linear_pitch",
    "tune",
    "tuning",
    "watch",
    "watched",
    "imbalance",
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool, torch.half]
WHOLE = [0, -1, 1, 2, 3, 1000, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, -(2**63)]
REAL = [0.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")]


def load(path: Path) -> Any:
    """The library as seedthink._C, without the package around it."""
    spec = importlib.util.spec_from_file_location("seedthink._C", path)
    assert spec is not None and spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    return library


def broken(d: Draw, call: Call) -> Call:
    """The call with one argument changed, or two: into something the kernel may or may not refuse."""
    changed = list(call)
    for _ in range(d.random.choice([1, 1, 2])):
        at = d.random.randrange(len(changed))
        changed[at] = broken_argument(d, changed[at])
    return changed


def broken_argument(d: Draw, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return d.random.choice(WHOLE)
    if isinstance(value, float):
        return d.random.choice(REAL)
    if value is None:
        return d.f32(d.size())
    ways = [other_dtype, other_size, other_size, other_dims, strided, strange_values, strange_values]
    return None if d.random.random() < 0.1 else d.random.choice(ways)(d, value)


def other_dtype(d: Draw, x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=d.random.choice(DTYPES))


def other_size(d: Draw, x: Tensor) -> Tensor:
    """One dimension a little or much larger or smaller, or empty."""
    if x.dim() == 0:
        return x.reshape(1)
    shape, at = list(x.shape), d.random.randrange(x.dim())
    shape[at] = d.random.choice([0, max(0, shape[at] - 1), shape[at] + 1, 2 * shape[at], d.size()])
    larger = torch.zeros(shape, dtype=x.dtype)
    same = tuple(slice(0, min(a, b)) for a, b in zip(shape, x.shape, strict=True))
    larger[same] = x[same]
    return larger


def other_dims(d: Draw, x: Tensor) -> Tensor:
    if d.flag() or x.dim() == 0:
        return x[None]
    return x.flatten() if d.flag() or not x.shape[-1] else x[..., 0]


def strided(d: Draw, x: Tensor) -> Tensor:
    """The same values not densely in memory, or one value everywhere."""
    if x.dim() == 0 or not x.numel():
        return x
    if d.flag():
        return x.flatten()[:1].reshape([1] * x.dim()).expand(x.shape)
    if x.dim() > 1 and d.flag():
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return torch.stack([x, x], -1)[..., 0]


def strange_values(d: Draw, x: Tensor) -> Tensor:
    """One element, or all of them, replaced."""
    y = x.clone()
    if not y.numel():
        return y
    if y.dtype.itemsize == 1:  # FP8, bytes, bools
        y.view(torch.uint8).bitwise_xor_(1 if y.dtype == torch.bool else d.random.randrange(256))
        return y
    kinds = REAL if y.is_floating_point() else [n for n in WHOLE if y.dtype != torch.int32 or -(2**31) <= n < 2**31]
    value = d.random.choice(kinds)
    if d.flag():
        return y.fill_(value)
    y.view(-1)[d.random.randrange(y.numel())] = value
    return y


def described(name: str, call: Call) -> str:
    parts = []
    for value in call:
        if isinstance(value, Tensor):
            small = value.tolist() if value.numel() <= 12 else "..."
            parts.append(f"{str(value.dtype)[6:]}{list(value.shape)} strides {value.stride()} {small}")
        else:
            parts.append(repr(value))
    return f"{name}(\n  " + ",\n  ".join(parts) + ")"


def run(library: Any, seed: int, case: int, note: Path | None) -> None:
    """One case; raises where the kernel answers otherwise than it must."""
    d = Draw(f"{seed}/{case}", library)
    names = sorted(name for name in CALLS if hasattr(library, name))
    name = names[case % len(names)]
    library.emulate_amx(d.random.random() < 0.3)
    library.set_threads(d.random.choice([1, 2, 3]))
    call, valid = CALLS[name](d), d.random.random() < 0.3
    if not valid:
        call = broken(d, call)
    if note is not None:
        note.write_text(f"case {case} of seed {seed}, {'valid' if valid else 'broken'}: {described(name, call)}\n")
    try:
        getattr(library, name)(*call)
    except (ValueError, TypeError) as error:
        if valid or not str(error):
            raise AssertionError(f"a valid call was refused: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--note", type=Path)
    options = parser.parse_args()
    library = load(options.library)
    bound = {name for name in dir(library) if not name.startswith("_")} - NO_KERNELS
    if missing := bound - set(CALLS):
        sys.exit(f"native_calls.py has no call of {sorted(missing)}")
    torch.set_num_threads(1)
    for case in range(options.cases) if options.only is None else [options.only]:
        run(library, options.seed, case, options.note)
    print(f"{library.isa()}: {options.cases} cases")


if __name__ == "__main__":
    main()
