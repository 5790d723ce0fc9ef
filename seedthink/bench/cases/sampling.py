"""One draw per row of logits: the row is read once at least, and three times by ours (maximum, sum, choice).

The peers draw with torch's own random numbers, so what is checked is the log-probability of the token that each drew.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from seedthink.bench.case import Case, Draw, Outputs, Place, Prepared, Work
from seedthink.bench.peers import of_torch
from seedthink.bench.presets import Shapes
from seedthink.kernels.sampling import sample

TEMPERATURE = 0.8
CUTS = {"none": (0, 1.0), "k50_p95": (50, 0.95)}  # top-k, top-p


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """B rows of the vocabulary, with and without cuts."""
    for rows in shapes.sampled_rows if device == "cpu" and shapes.vocabulary else ():
        for name, cuts in CUTS.items():
            place: Place = {"B": rows, "V": shapes.vocabulary, "cuts": name}
            least = work(rows, shapes.vocabulary)
            yield Case("sample", place, "float32", least, partial(prepare, (rows, shapes.vocabulary), cuts))


def work(rows: int, vocabulary: int) -> Work:
    """Logits in; five settings in, two numbers out per row; an exp per logit."""
    return Work(bytes=4.0 * rows * vocabulary + 44.0 * rows, flops=1.0 * rows * vocabulary)


def prepare(size: tuple[int, int], cuts: tuple[int, float], draw: Draw) -> Prepared:
    """Logits with a standard deviation of 3, so that a few hundred tokens hold most of the mass."""
    logits_BV, rows = draw.normal(*size, std=3.0), size[0]
    settings = (
        torch.full((rows,), TEMPERATURE),
        torch.full((rows,), cuts[0], dtype=torch.int32),
        torch.full((rows,), cuts[1]),
        draw.integers(0, 1 << 40, rows),
        torch.arange(rows),
    )
    formula = cut_draw if cuts[0] else plain_draw
    return Prepared(
        ours={"cpu": lambda: partial(sample, logits_BV, *settings)},
        peers=of_torch(partial(formula, cuts=cuts), logits_BV),
        error=partial(error, logits_BV),
        tolerance=1e-5,
    )


def plain_draw(logits_BV: Tensor, *, cuts: tuple[int, float]) -> Outputs:
    """Softmax, one multinomial draw, its log-probability."""
    log_p = torch.log_softmax(logits_BV / TEMPERATURE, dim=-1)
    token_B1 = torch.multinomial(log_p.exp(), 1)
    return token_B1[:, 0], log_p.gather(1, token_B1)[:, 0]


def cut_draw(logits_BV: Tensor, *, cuts: tuple[int, float]) -> Outputs:
    """The k largest, of these the smallest set that reaches p, one draw; its log-probability before the cuts."""
    top_k, top_p = cuts
    log_p = torch.log_softmax(logits_BV / TEMPERATURE, dim=-1)
    best = log_p.topk(min(top_k, log_p.shape[1]))
    kept = best.values.softmax(-1)
    kept = kept.masked_fill(kept.cumsum(-1) - kept >= top_p, 0.0)
    token_B1 = best.indices.gather(1, torch.multinomial(kept, 1))
    return token_B1[:, 0], log_p.gather(1, token_B1)[:, 0]


def error(logits_BV: Tensor, outputs: Outputs) -> float:
    """The largest error of a drawn token's log-probability in nats, over the largest of them."""
    token_B, logprob_B = outputs
    assert token_B is not None and logprob_B is not None
    wanted = torch.log_softmax(logits_BV.cpu().double() / TEMPERATURE, dim=-1).gather(1, token_B.cpu()[:, None])[:, 0]
    return ((logprob_B.cpu() - wanted).abs().max() / wanted.abs().max()).item()
