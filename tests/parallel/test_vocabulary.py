"""Embedding and head that two ranks share by blocks of tokens: the bits of one rank, forwards and backwards.

Vocabularies of three blocks, of which the last is short, and of one, of which the second rank has nothing; tokens that
share a likelihood, zeros with a sign, rows wanted twice, and ranks without a wanted row.
"""

from __future__ import annotations

import json
from pathlib import Path

from ranks import outcome, start_ranks

from seedthink.parallel.launch import free_port

PROGRAM = str(Path(__file__).with_name("vocabulary_program.py"))


def test_two_ranks_embed_score_and_make_logits_with_the_bits_of_one_and_so_do_gradients() -> None:
    found = outcome(start_ranks(2, PROGRAM, f"127.0.0.1:{free_port()}"))
    assert [code for code, _, _ in found] == [0, 0], found
    for _, out, _ in found:
        other = [name for name, same in json.loads(out).items() if not same]
        assert not other
