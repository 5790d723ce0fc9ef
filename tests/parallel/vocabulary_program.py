"""What the two ranks of test_vocabulary.py run: every use of the matrices that they share, against one rank."""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from seedthink.kernels.linear import linear
from seedthink.kernels.logprob import COLUMNS, linear_logprob
from seedthink.parallel.cut import Seat, blocks_cut
from seedthink.parallel.group import Group
from seedthink.parallel.launch import launched
from seedthink.parallel.replicas import Replicas
from seedthink.parallel.runs import Run
from seedthink.parallel.vocabulary import SharedVocabulary

ROWS = 10  # of which the ranks have five each


def same_bits(one: Tensor | None, two: Tensor) -> bool:
    """Also the sign of a zero."""
    return one is not None and torch.equal(one.view(torch.int32), two.view(torch.int32))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def embedded(group: Group, vocabulary: SharedVocabulary, part: Tensor, whole: Tensor) -> dict[str, bool]:
    """Tokens of both ranks, some of them more than once."""
    last = len(whole) - 1
    tokens = torch.tensor([last, 0, 5, 0, last, 1, last // 2, 0, last, 5])
    dy, mine = drawn(ROWS, 6) * 10.0 ** drawn(ROWS, 1), slice(5 * group.index, 5 * group.index + 5)
    found, expected = vocabulary.embed(tokens[mine], part), F.embedding(tokens, whole)
    found.backward(dy[mine])
    expected.backward(dy)
    assert whole.grad is not None
    held = blocks_cut(len(whole), COLUMNS, Seat(2, group.index))
    return {
        "rows": same_bits(found.detach(), expected.detach()[mine]),
        "gradient of the embedding": same_bits(part.grad, held.of(whole.grad)),
    }


def scored(
    group: Group, vocabulary: SharedVocabulary, part: Tensor, whole: Tensor, wanted: list[int], compute: torch.dtype
) -> dict[str, bool]:
    """Log-probs and entropies of these rows, their gradients, and logits of the rows in ascending order."""
    hidden, source = drawn(ROWS, 6), torch.tensor(wanted, dtype=torch.int64)
    targets = torch.arange(len(wanted)) * (len(whole) // 8)
    run, mine = Run(ROWS, group, 2), slice(5 * group.index, 5 * group.index + 5)
    own, one = hidden[mine].clone().requires_grad_(), hidden.clone().requires_grad_()
    found = vocabulary.logprobs(own, run.choose(source), part, targets, 0.7, compute)
    expected = linear_logprob(one.index_select(0, source), whole, targets, 0.7, compute)
    grads = drawn(len(wanted)), drawn(len(wanted)) + 1
    torch.autograd.backward(found, grads)
    torch.autograd.backward(expected, grads)
    assert whole.grad is not None and one.grad is not None
    held = blocks_cut(len(whole), COLUMNS, Seat(2, group.index))
    rows = run.choose(source.unique())
    with torch.no_grad():
        logits = vocabulary.logits(own.detach(), rows, part, compute)
        whole_logits = linear(hidden[mine].index_select(0, rows.rows), whole, compute)
    return {
        "log-probs": same_bits(found[0].detach(), expected[0].detach()),
        "entropies": same_bits(found[1].detach(), expected[1].detach()),
        "gradient of the head": same_bits(part.grad, held.of(whole.grad)),
        "gradient of the rows": same_bits(own.grad, one.grad[mine]),
        "logits": same_bits(logits, whole_logits),
    }


def cases(group: Group) -> dict[str, bool]:
    found = {}
    for size in (2500, 67):
        vocabulary = SharedVocabulary(size, group, Group((group.ranks[group.index],), 0))
        cut = blocks_cut(size, COLUMNS, Seat(2, group.index))

        def matrices(size: int = size, cut: object = cut) -> tuple[Tensor, Tensor]:
            weight = drawn(size, 6)
            weight[5] = weight[-1] = weight[size // 2] = weight[0]
            weight[0, 0] = weight[-1, 1] = -0.0
            return cut.of(weight).clone().requires_grad_(), weight.clone().requires_grad_()  # type: ignore[attr-defined]

        found |= {f"{size}: {name}": same for name, same in embedded(group, vocabulary, *matrices()).items()}
        for wanted in ([7, 0, 3, 0, 9, 4, 2], [6, 5], [8], []):
            for compute in (torch.float32, torch.bfloat16):
                each = scored(group, vocabulary, *matrices(), wanted, compute)
                found |= {f"{size}, rows {wanted}, {compute}: {name}": same for name, same in each.items()}
    return found


if __name__ == "__main__":
    launch = launched()
    assert launch is not None
    replicas = Replicas(launch.rank, launch.size, sys.argv[1], 60.0)
    print(json.dumps(cases(replicas.group)), flush=True)
    replicas.close()
