"""Differing bits of tokens, log-probs and logits between one rank and every layout of 2, 4 and 8 ranks, all families.

Small models with random weights (tests/parallel/mesh_cases.py) answer requests under each layout: prompts of 1 to 60
tokens, drawn, greedy and cut, some sharing a beginning, through chunked prefill and few pages, so that work is put off.
Compared with one rank: every token, the bits of every drawn log-prob, and the bits of the log-probs that the trainer's
forward gives the same texts (a log-prob is a function of all of a row's logits).
Run: `python benchmarks/exact_layouts.py` (about ten minutes on two cores).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parallel"))

import mesh_cases
import numpy as np
import torch
from turns import environment, save

from seedthink.engine.generator import TokenGenerator
from seedthink.engine.micro_batch import unlabelled_batch
from seedthink.engine.trainer import forward_only, policy_forward
from seedthink.kernels.build import set_threads
from seedthink.parallel.launch import free_port, launched
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.replicas import Replicas
from seedthink.types import Request, SamplingParams

WAYS: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}]


def requests(count: int, tokens: int) -> list[Request]:
    """Prompts of many lengths, every third going on from the one before it."""
    draw = np.random.default_rng(1)
    found: list[Request] = []
    for number in range(count):
        prompt = draw.integers(0, 67, 1 + 11 * number % 60).astype(np.int32)
        if number % 3 == 2:
            prompt = np.concatenate([found[-1].tokens_T, prompt])[:60]
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, **WAYS[number % len(WAYS)])
        found.append(Request(str(number), prompt, params, 100 + number))
    return found


def answered(model_name: str, mesh: Mesh | None, count: int, tokens: int) -> dict[str, torch.Tensor]:
    """Tokens, drawn log-probs and the trainer's log-probs of this rank's requests, by name."""
    model = mesh_cases.policy(model_name, mesh)
    generator = TokenGenerator(model, pages=40, max_batch_tokens=48, mesh=mesh)
    asked = requests(count, tokens)
    mine = asked if mesh is None else asked[mesh.layout.data_index(mesh.rank) :: mesh.layout.data]
    generator.submit(mine)
    done = {}
    while True:
        done |= {each.id: each for each in generator.collect(1.0)}
        busy = not generator.idle
        if not (mesh.meeting.most([busy])[0] if mesh is not None else busy):
            break
    texts = [np.concatenate([each.tokens_T, done[each.id].tokens_T]) for each in mine]
    masks = [np.r_[np.zeros(len(each.tokens_T)), np.ones(tokens)] for each in mine]
    packed = unlabelled_batch(texts, masks, 512, 1.0, 1.0)
    scored = forward_only(model, partial(policy_forward, temperature=1.0), packed, mesh)
    found = {}
    for at, each in enumerate(mine):
        begin, end = packed.cu_seqlens[at : at + 2]
        found[f"tokens {each.id}"] = torch.from_numpy(done[each.id].tokens_T.astype(np.int32))
        found[f"drawn {each.id}"] = torch.from_numpy(done[each.id].logprob_T).view(torch.int32)
        found[f"scored {each.id}"] = torch.from_numpy(scored[begin:end]).view(torch.int32)
    return found


def rank(rendezvous: str, folder: str, count: int, tokens: int) -> None:
    """One rank of a launch: every layout of that many ranks, every model."""
    launch = launched()
    assert launch is not None
    replicas = Replicas(launch.rank, launch.size, rendezvous, 300.0)
    found = {}
    for layout, axes in mesh_cases.LAYOUTS[launch.size].items():
        mesh = Mesh(axes, replicas)
        for model in mesh_cases.MODELS:
            found[layout, model] = answered(model, mesh, count, tokens)
    torch.save(found, Path(folder) / f"{launch.rank}.pt")
    replicas.group.tell("done")
    replicas.close()


def of_ranks(size: int, count: int, tokens: int) -> list[dict[Any, Any]]:
    """What each of `size` ranks found."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--rank", f"127.0.0.1:{free_port()}", folder, str(count), str(tokens)]
        started = [
            subprocess.Popen(
                words,
                env=os.environ
                | {"RANK": str(at), "WORLD_SIZE": str(size), "LOCAL_RANK": str(at), "LOCAL_WORLD_SIZE": str(size)},
            )
            for at in range(size)
        ]
        codes = [each.wait() for each in started]
        if any(codes):
            raise SystemExit(f"a rank of {size} failed; see above")
        return [torch.load(Path(folder) / f"{at}.pt", weights_only=False) for at in range(size)]


def differing(parts: list[dict[str, torch.Tensor]], alone: dict[str, torch.Tensor]) -> dict[str, int]:
    """Entries that differ, by kind, over all ranks; one that no rank has counts whole."""
    found = dict.fromkeys(("tokens", "drawn", "scored"), 0)
    for name, want in alone.items():
        held = [part[name] for part in parts if name in part]
        wrong = sum(int((each != want).sum()) if each.shape == want.shape else want.numel() for each in held)
        found[name.split()[0]] += wrong if held else want.numel()
    return found


def main() -> None:
    """Run every layout, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rank", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_threads(1)
    if options.rank:
        rank(*options.rank[:2], *map(int, options.rank[2:]))
        return
    surroundings, rows = environment(), []
    alone = {name: answered(name, None, options.requests, options.tokens) for name in mesh_cases.MODELS}
    for size in options.sizes:
        parts = of_ranks(size, options.requests, options.tokens)
        for layout in mesh_cases.LAYOUTS[size]:
            for model in mesh_cases.MODELS:
                found = differing([part[layout, model] for part in parts], alone[model])
                tokens = options.requests * options.tokens
                rows.append({"ranks": size, "layout": layout, "model": model, "tokens": tokens, "differing": found})
        mine = [row for row in rows if row["ranks"] == size]
        wrong = {kind: sum(row["differing"][kind] for row in mine) for kind in ("tokens", "drawn", "scored")}
        print(f"{size} ranks: {sum(row['tokens'] for row in mine)} tokens, differing {wrong}", flush=True)
        save("exact_layouts", rows, surroundings)


if __name__ == "__main__":
    main()
