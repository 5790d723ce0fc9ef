"""Continuous-batching generation on the trainer's own weights and kernels.

One step: schedule rows, run the model on them, logits of the rows whose next token is unknown, sample, keep or finish.
A token and its log-prob are a function of the weights, the tokens before it, the request's seed and its own position:
batch, chunking, preemption and cache hits do not enter. Log-probs come from the row function that training uses.
The ranks of a data index that share the model are given the same requests and plan the same steps; each computes its
part and draws the tokens of its rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from seedthink.autotune.steps import Around, untuned
from seedthink.engine.diverged import diverged
from seedthink.engine.page_cache import PageCache
from seedthink.engine.scheduler import Plan, Scheduler
from seedthink.engine.sequence import Generation, Int64, StopText
from seedthink.errors import ConfigError
from seedthink.kernels.attention import PAGE
from seedthink.kernels.finite import not_finite
from seedthink.kernels.sampling import sample
from seedthink.models.decoder import Transformer
from seedthink.types import Completion, Detokenizer, Finish, Request

if TYPE_CHECKING:
    from seedthink.parallel.mesh import Mesh


@dataclass(frozen=True, slots=True)
class GeneratorStats:
    """Counts since construction or `reset`; `running`, `waiting`, `pages_used` are of now, `seconds` inside steps."""

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    steps: int
    preemptions: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    seconds: float


class TokenGenerator:
    """Completes requests with `model`, as the `Generator` protocol says; the caller drives it by `step` or `collect`.

    pages: KV pages of 16 positions. max_batch_tokens: tokens that one step computes. max_sequences: how many run at
    once. eos_token_ids None means the model's own. around: entered for each step, where launch settings are
    chosen. mesh: the ranks that make every step together with this one, if any. After the weights change, call
    `set_version`.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        pages: int,
        max_batch_tokens: int = 2048,
        max_sequences: int = 256,
        prefix_cache: bool = True,
        detokenizer: Detokenizer | None = None,
        eos_token_ids: Sequence[int] | None = None,
        around: Around = untuned,
        mesh: Mesh | None = None,
    ) -> None:
        for name, value in (("pages", pages), ("max_batch_tokens", max_batch_tokens), ("max_sequences", max_sequences)):
            if value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        self.model = model
        self.detokenizer, self._around = detokenizer, around
        self._peers = mesh.meeting if mesh is not None and mesh.entangled else None
        self.version = 0
        self._settings = (pages, max_batch_tokens, max_sequences, prefix_cache)
        self._cache = PageCache(model.config, pages, model.compute, model.shards)
        self._eos_V = np.zeros(model.config.vocab_size, dtype=np.bool_)
        for token in model.config.eos_token_ids if eos_token_ids is None else eos_token_ids:
            if not 0 <= token < model.config.vocab_size:
                raise ConfigError(
                    f"end-of-sequence token {token} is outside 0..{model.config.vocab_size - 1}; tokenizer, "
                    "generation_config.json and config.json do not belong to one model"
                )
            self._eos_V[token] = True
        self.reset()

    def reset(self) -> None:
        """Forget every request, cached page and count; the version stays."""
        self._scheduler = Scheduler(*self._settings, version=self.version)
        self._live: dict[str, Generation] = {}
        self._done: list[Completion] = []
        self._steps = self._computed_tokens = self._generated_tokens = 0
        self._seconds = 0.0

    @property
    def idle(self) -> bool:
        """True where there is nothing to run and nothing to collect."""
        return not self._live and not self._done

    @property
    def stats(self) -> GeneratorStats:
        """The counts of now."""
        scheduler = self._scheduler
        return GeneratorStats(
            running=len(scheduler.running),
            waiting=scheduler.waiting_count,
            pages_used=scheduler.pool.used,
            pages_total=scheduler.pool.count,
            steps=self._steps,
            preemptions=scheduler.preemptions,
            cached_tokens=scheduler.cached_tokens,
            computed_tokens=self._computed_tokens,
            generated_tokens=self._generated_tokens,
            seconds=self._seconds,
        )

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none: ConfigError names the first one that can never run and why."""
        ids = set(self._live)
        for request in requests:
            self._check(request, ids)
            ids.add(request.id)
        for request in requests:
            params = request.params
            generation = Generation(
                request=request,
                tokens_T=np.asarray(request.tokens_T, dtype=np.int32),
                logprob_T=np.zeros(0, dtype=np.float32),
                marks=[(0, self.version)],
                stop_text=StopText(params.stop, self.detokenizer) if params.stop and self.detokenizer else None,
                stop_ids=frozenset(params.stop_token_ids),
            )
            self._live[request.id] = generation
            self._scheduler.add(generation)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """One scheduling step; what finished in it, and what was aborted since the last one. RunError on NaN logits.

        A rank without work takes part while another one of the mesh has some.
        """
        began = time.perf_counter()
        scheduler = self._scheduler
        plan = scheduler.schedule()
        if self._anywhere(len(plan.slots_B) > 0)[0]:
            tokens_T, batch = self._cache.lay_out(plan, scheduler.table)
            try:
                with self._around("generate", len(tokens_T), scheduler.pool.used / scheduler.pool.count):
                    hidden_TD = self.model.advance(tokens_T, batch)
                    slots_R, rows_R = self._wanting(plan)
                    token_R = self._sample(hidden_TD, len(tokens_T), slots_R, rows_R)
            except ValueError as error:
                if not not_finite(error):
                    raise
                raise diverged(error) from error
            scheduler.computed(plan)
            self._finish(slots_R, token_R)
            self._steps += 1
            self._computed_tokens += len(tokens_T)
            self._generated_tokens += len(token_R)
            self._seconds += time.perf_counter() - began
        done, self._done = self._done, []
        return done

    def collect(self, timeout: float) -> list[Completion]:
        """Step until something finished, at most about `timeout` seconds (one step at least).

        Ranks that step together also stop together, as soon as one has reason to.
        """
        deadline = time.monotonic() + timeout
        while True:
            done = self.step()
            stop, busy = self._anywhere(bool(done) or time.monotonic() >= deadline, not self.idle)
            if stop or not busy:
                return done

    def abort(self, ids: Sequence[str]) -> None:
        """Give requests up; each comes back as an aborted completion with its tokens so far. Ignores unknown ids."""
        gone = [self._live.pop(id) for id in ids if id in self._live]
        self._scheduler.remove(gone)
        self._done += [generation.complete(Finish.ABORTED, self.detokenizer) for generation in gone]

    def set_version(self, version: int) -> None:
        """The weights are now those of `version`.

        The prefix cache is void. Requests in flight go on from the token where they are: their keys and values are
        computed again, so that every token's log-prob is that of its own version on the whole text before it.
        """
        self.version = version
        self._scheduler.forget(version)
        for generation in self._live.values():
            generation.mark(len(generation.logprob_T), version)

    def _anywhere(self, *flags: bool) -> list[bool]:
        """Each flag, or whether it is set on any rank that this one steps with."""
        return list(flags) if self._peers is None else [most > 0 for most in self._peers.most(flags)]

    def _wanting(self, plan: Plan) -> tuple[Int64, Int64]:
        """Rows (slots) whose next token is unknown after this step, and where in the step their last token stands."""
        table = self._scheduler.table
        wants_B = table.computed_S[plan.slots_B] + plan.count_B == table.length_S[plan.slots_B]
        return plan.slots_B[wants_B], plan.count_B.cumsum()[wants_B] - 1

    def _sample(self, hidden_TD: torch.Tensor, computed: int, slots_R: Int64, rows_R: Int64) -> Int64:
        """Draw the next token of each row, of `computed` that the step had, and append it to the table."""
        if not len(slots_R):
            return slots_R
        table = self._scheduler.table
        wanted = self.model.shards.run(computed).choose(torch.from_numpy(rows_R))
        if len(wanted.rows) < len(hidden_TD):
            hidden_TD = hidden_TD.index_select(0, wanted.rows)
        own_r = wanted.among(torch.from_numpy(slots_R)).numpy()
        drawn = sample(
            self.model.logits(hidden_TD),
            torch.from_numpy(table.temperature_S[own_r]),
            torch.from_numpy(table.top_k_S[own_r]),
            torch.from_numpy(table.top_p_S[own_r]),
            torch.from_numpy(table.seed_S[own_r]),
            torch.from_numpy(table.length_S[own_r]),
        )
        tokens, logprobs = wanted.share(*drawn)
        token_R: Int64 = tokens.numpy()
        table.append(slots_R, token_R, logprobs.numpy())
        return token_R

    def _finish(self, slots_R: Int64, token_R: Int64) -> None:
        """Complete the rows that the new tokens end: by a stop token, a stop string, or their number."""
        table = self._scheduler.table
        stop_token_R: npt.NDArray[np.bool_] = self._eos_V[token_R] & table.eos_S[slots_R]
        stop_R = stop_token_R.copy()
        for row in np.flatnonzero(table.watched_S[slots_R] & ~stop_R).tolist():
            generation, token = table.owner(int(slots_R[row])), int(token_R[row])
            stop_token_R[row] = token in generation.stop_ids
            stop_R[row] = stop_token_R[row] or (generation.stop_text is not None and generation.stop_text.found(token))
        ended_R = np.flatnonzero(stop_R | (table.length_S[slots_R] >= table.limit_S[slots_R])).tolist()
        if not ended_R:
            return
        ended = [table.owner(int(slots_R[row])) for row in ended_R]
        self._scheduler.remove(ended)
        for generation, row in zip(ended, ended_R, strict=True):
            finish = Finish.STOP if stop_R[row] else Finish.LENGTH
            self._done.append(generation.complete(finish, self.detokenizer, bool(stop_token_R[row])))
            del self._live[generation.id]

    def _check(self, request: Request, ids: set[str]) -> None:
        """ConfigError where a request can never run here."""
        tokens_T, params, vocab = np.asarray(request.tokens_T), request.params, self.model.config.vocab_size
        prompt = len(tokens_T)
        total, name = prompt + params.max_tokens, f"request '{request.id}'"
        positions, room = self.model.config.max_position_embeddings, self._scheduler.pool.count * PAGE
        if request.id in ids:
            raise ConfigError(f"{name}: another request in flight has this id; ids must be unique")
        if prompt == 0:
            raise ConfigError(f"{name}: the prompt has no tokens; give at least one")
        if tokens_T.min() < 0 or tokens_T.max() >= vocab:
            raise ConfigError(f"{name}: a prompt token is outside 0..{vocab - 1}; tokenizer and model do not match")
        if params.max_tokens < 1:
            raise ConfigError(f"{name}: max_tokens = {params.max_tokens}; must be at least 1")
        if not (params.temperature >= 0 and 0 < params.top_p <= 1 and params.top_k >= 0):
            raise ConfigError(
                f"{name}: temperature = {params.temperature} (allowed: 0 or more), top_p = {params.top_p} (allowed: "
                f"above 0, at most 1), top_k = {params.top_k} (allowed: 0 or more)"
            )
        if "" in params.stop or (params.stop and self.detokenizer is None):
            raise ConfigError(f"{name}: stop = {params.stop}; stop strings may not be empty and need a detokenizer")
        if total > positions:
            raise ConfigError(
                f"{name}: {prompt} prompt tokens + max_tokens {params.max_tokens} = {total}, but the model has "
                f"{positions} positions (max_position_embeddings); shorten the prompt or lower max_tokens"
            )
        if total > room:
            raise ConfigError(
                f"{name}: {prompt} prompt tokens + max_tokens {params.max_tokens} = {total}, but the cache has {room} "
                f"({self._scheduler.pool.count} pages of {PAGE}); raise pages, shorten the prompt or lower max_tokens"
            )
