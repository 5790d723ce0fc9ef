"""Rows of benchmarks/gpu.py: GAE over packed sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_build import importable
from gpu_rows import Call, Case, Made, compiled, first_wrong, near
from torch import Tensor

GAMMA, DECAY = 0.99, 0.95


def cases() -> Iterator[Case]:
    """Rectangles of the table, with mask and bootstrap and without, and lengths as an RL batch has them."""
    for count, length, reach in ((16, 65536, "<= 20 us"), (512, 8192, "<= 20 us"), (8192, 4096, "<= 150 us")):
        for masked in (True, False):
            shape = f"{count} x {length}{' mask, bootstrap' if masked else ''}"
            yield Case("gae", shape, reach if masked else "", partial(_rectangle, count, length, masked))
    yield Case("gae", "2048 x 1..8192 mask, bootstrap", "", partial(_ragged, 2048, 8192))


class Batch:
    """Packed rewards and values on the device."""

    def __init__(self, lengths: list[int], masked: bool) -> None:
        total, count = sum(lengths), len(lengths)
        self.reward, self.value = torch.randn(total, device="cuda"), torch.randn(total, device="cuda")
        self.bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
        self.policy = torch.full((count,), DECAY, device="cuda")
        self.critic = torch.ones(count, device="cuda")
        self.mask = torch.rand(total, device="cuda") > 0.1 if masked else None
        self.bootstrap = torch.randn(count, device="cuda") if masked else None

    def arguments(self) -> tuple[Tensor | float | None, ...]:
        """As `gae` takes them."""
        scalars = (self.policy, self.critic, GAMMA)
        return self.reward, self.value, self.bounds, *scalars, self.mask, self.bootstrap

    def on_cpu(self) -> list[Tensor | float | None]:
        """The same on the CPU."""
        return [each.cpu() if isinstance(each, Tensor) else each for each in self.arguments()]


def _kernel(batch: Batch) -> Call:
    from seedthink.kernels.gae import gae

    return lambda: gae(*batch.arguments())


def _check(batch: Batch, _: str) -> str:
    from seedthink.kernels.gae import gae, reference_gae

    small = Batch([1, 0, 700, 5000, 20000, 3], batch.mask is not None)
    exact = reference_gae(
        *(each.double() if isinstance(each, Tensor) and each.is_floating_point() else each for each in small.on_cpu())
    )
    found, mine, theirs = gae(*small.arguments()), gae(*batch.arguments()), gae(*batch.on_cpu())
    wrong = [near("advantage against float64", found[0], exact[0], 1e-5), near("return", found[1], exact[1], 1e-5)]
    wrong += [near("advantage against the CPU", mine[0], theirs[0], 1e-5), near("return", mine[1], theirs[1], 1e-5)]
    for _ in range(10):
        again = gae(*batch.arguments())
        wrong += ["" if torch.equal(a, b) else "two runs differ" for a, b in zip(mine, again, strict=True)]
    return first_wrong(*wrong)


def _made(lengths: list[int], masked: bool, rectangle: tuple[int, int] | None) -> Made:
    from gpu_clock import rotations

    total = sum(lengths)
    moved = (17.0 if masked else 16.0) * total
    batches = [Batch(lengths, masked) for _ in range(rotations(moved))]
    peers: dict[str, list[Call]] = {}
    elsewhere: dict[str, Callable[[], float]] = {}
    if rectangle is not None and not masked:
        shapes = [(batch.reward.view(rectangle), batch.value.view(rectangle)) for batch in batches]
        if rectangle[1] <= 8192:
            peers["triton row"] = [partial(_triton_row, *pair) for pair in shapes]
        if total <= 1 << 22:
            peers["powers"] = compiled(_by_powers, *shapes)
            elsewhere["jax"] = partial(_jax_us, *shapes[0])
    calls = [_kernel(batch) for batch in batches]
    return Made({"cuda": calls}, peers, partial(_check, batches[0]), moved, elsewhere=elsewhere, peers_within=1e-4)


def _rectangle(count: int, length: int, masked: bool) -> Made:
    return _made([length] * count, masked, (count, length))


def _ragged(count: int, most: int) -> Made:
    generator = torch.Generator().manual_seed(0)
    return _made(torch.randint(1, most + 1, (count,), generator=generator).tolist(), True, None)


def _by_powers(reward: Tensor, value: Tensor) -> Tensor:
    """One lambda, chunks of 128 tokens by a triangular matrix of powers, the carry from chunk to chunk in a loop."""
    count, length = reward.shape
    following = torch.nn.functional.pad(value[:, 1:], (0, 1))
    delta = (reward + GAMMA * following - value).view(count, -1, 128)
    steps = torch.arange(128, device=reward.device)
    power = (GAMMA * DECAY) ** (steps[None, :] - steps[:, None]).clamp(min=0)
    own = delta @ torch.where(steps[None, :] >= steps[:, None], power, 0.0).T
    ramp = (GAMMA * DECAY) ** (128 - steps)
    carry, chunks = torch.zeros(count, 1, device=reward.device), []
    for chunk in range(length // 128 - 1, -1, -1):
        chunks.append(own[:, chunk] + carry * ramp)
        carry = chunks[-1][:, :1]
    return torch.cat(chunks[::-1], dim=1)


def _triton_row(reward: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """One Triton program a row, one lambda: the public way of a scan."""
    from gpu_triton_row import scan_rows

    return scan_rows(reward, value, GAMMA, DECAY)


def _jax_us(reward: Tensor, value: Tensor) -> float:
    """Microseconds of a jitted jax.lax.associative_scan, one lambda, by the host's clock over twenty calls."""
    if not importable("jax"):
        raise ImportError("jax is not installed")
    import os

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    from jax import numpy as jnp

    def scan(r: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        following = jnp.pad(v[:, 1:], ((0, 0), (0, 1)))
        factors = jnp.full_like(r, GAMMA * DECAY)
        joined = jax.lax.associative_scan(
            lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (factors, r + GAMMA * following - v), axis=1, reverse=True
        )
        return joined[1], joined[1] + v

    arrays = [jax.device_put(jnp.asarray(each.cpu().numpy()), jax.devices("gpu")[0]) for each in (reward, value)]
    run = jax.jit(scan)
    jax.block_until_ready(run(*arrays))
    began = time.perf_counter()
    found = [run(*arrays) for _ in range(20)]
    jax.block_until_ready(found)
    return (time.perf_counter() - began) / 20 * 1e6
