"""From a prompt to its group of requests: names, and seeds that depend on what is asked and on nothing else.

seed = first 8 bytes, little-endian, of blake2b("run seed|step|prompt id|member"), without the sign bit. `member` is the
answer's index in its group; where one step draws a prompt again, members count on, so that answers are not repeated.
"""

from __future__ import annotations

from hashlib import blake2b

from seedthink.types import Prompt, Request, SamplingParams


def request_seed(run_seed: int, step: int, prompt_id: str, member: int) -> int:
    """The seed of one answer, 0 .. 2^63 - 1."""
    digest = blake2b(f"{run_seed}|{step}|{prompt_id}|{member}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def group_requests(
    prompt: Prompt, group: str, params: SamplingParams, *, size: int, run_seed: int, step: int, repeat: int
) -> list[Request]:
    """`size` requests for one prompt, named "<group>/<index>"; `repeat` counts earlier draws of it in this step."""
    return [
        Request(
            id=f"{group}/{index}",
            tokens_T=prompt.tokens_T,
            params=params,
            seed=request_seed(run_seed, step, prompt.id, repeat * size + index),
            group=group,
        )
        for index in range(size)
    ]
