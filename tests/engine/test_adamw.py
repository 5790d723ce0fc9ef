"""AdamW against torch's class, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

from seedthink.config.sections import OptimizerConfig
from seedthink.engine.adamw import AdamW
from seedthink.engine.streamed_adamw import StreamedAdamW

CONFIG = OptimizerConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in ((7, 5), (5,), (3, 4, 2))]


def test_its_bits_are_those_of_torch() -> None:
    own, other = parameters(), parameters()
    optimizer = AdamW(own, CONFIG)
    decaying = {"params": [other[0], other[2]], "weight_decay": CONFIG.weight_decay}
    peer = torch.optim.AdamW(
        [decaying, {"params": [other[1]], "weight_decay": 0.0}], betas=CONFIG.betas, eps=CONFIG.eps, fused=True
    )
    for step in range(5):
        rate = CONFIG.lr / (1 + step)
        for p, q in zip(own, other, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for group in peer.param_groups:
            group["lr"] = rate
        optimizer.step(rate)
        peer.step()
        assert all(torch.equal(p, q) for p, q in zip(own, other, strict=True))
    for p, q in zip(own, other, strict=True):
        assert all(torch.equal(optimizer.state[p][name], peer.state[q][name]) for name in peer.state[q])


def test_a_parameter_without_a_gradient_stays_and_has_no_state() -> None:
    first, second, _ = made = parameters()
    before, optimizer = second.detach().clone(), AdamW(made, CONFIG)
    first.grad = torch.ones_like(first)
    optimizer.step(1e-2)
    assert torch.equal(second, before) and list(optimizer.state) == [first]


def test_an_update_is_seen_by_the_version_counter() -> None:
    p = torch.ones(2, 2, requires_grad=True)
    p.grad = torch.ones(2, 2)
    before = p._version
    AdamW([p], CONFIG).step(1e-2)
    assert p._version > before


def test_an_update_does_not_load_the_compiler_of_torch() -> None:
    code = (
        "import sys, torch\n"
        "from seedthink.engine.adamw import AdamW\n"
        "from seedthink.config.sections import OptimizerConfig\n"
        "p = torch.ones(2, 2, requires_grad=True)\n"
        "p.grad = torch.ones(2, 2)\n"
        "AdamW([p], OptimizerConfig()).step(0.1)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_moments_that_visit_one_parameter_at_a_time_leave_the_same_bits() -> None:
    own, other = parameters(), parameters()
    streamed, plain = StreamedAdamW(own, CONFIG), AdamW(other, CONFIG)
    for _ in range(3):
        for p, q in zip(own, other, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        streamed.step(1e-2)
        plain.step(1e-2)
    for p, q in zip(own, other, strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(streamed.state[p][name], plain.state[q][name]) for name in plain.state[q])
