"""Which rows the next step computes: continuous batching with chunked prefill under a token budget.

Decoding rows get their one token first, prefill shares what is left in order of admission, then waiting generations are
admitted first come, first served, while rows, budget and pages last. A row that needs a page when none is left pushes
out the newest running one, which is computed again later; its tokens stay. The oldest is never pushed out and fits
alone (checked at submit), so every generation ends. Members of a group wait until the first one has published the
prompt's pages and share them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from seedthink.engine.pages import PagePool, chain_keys
from seedthink.engine.sequence import Generation, Int64, Table
from seedthink.kernels.attention import PAGE


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's work: row slots_B[b] computes count_B[b] >= 1 tokens, from its first uncomputed one on."""

    slots_B: Int64
    count_B: Int64


class Scheduler:
    """Queues, rows and pages of one generator. `version` is part of every page's key."""

    def __init__(
        self, pages: int, max_batch_tokens: int, max_sequences: int, prefix_cache: bool, version: int = 0
    ) -> None:
        self.pool = PagePool(pages)
        self.table = Table(max_sequences)
        self.max_batch_tokens = max_batch_tokens
        self.prefix_cache = prefix_cache
        self.version = version
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # in order of admission
        self.followers: dict[str, list[Generation]] = {}  # group -> members that wait for the prefill of the first
        self.preemptions = 0
        self.cached_tokens = 0
        self._slots_B = np.zeros(0, dtype=np.int64)

    @property
    def waiting_count(self) -> int:
        """Generations that hold no row, followers included."""
        return len(self.waiting) + sum(len(members) for members in self.followers.values())

    def add(self, generation: Generation) -> None:
        """Queue a generation."""
        group = generation.request.group
        if self.prefix_cache and group and generation.prompt_length > PAGE:
            if group in self.followers:
                self.followers[group].append(generation)
                return
            self.followers[group] = []
            generation.leads = True
        self.waiting.append(generation)

    def schedule(self) -> Plan:
        """The next step, with a page in place for each position it writes; empty where nothing waits or runs."""
        running = len(self.running)
        count_B = self._grow(self._grants())
        if len(self.running) == running:
            admitted = self._admit(self.max_batch_tokens - int(count_B.sum()))
            if admitted:
                count_B = np.concatenate([count_B, np.array(admitted, dtype=np.int64)])
        works_B = count_B > 0
        return Plan(self._slots_B, count_B) if works_B.all() else Plan(self._slots_B[works_B], count_B[works_B])

    def computed(self, plan: Plan) -> None:
        """Record that the step ran: positions advance, full pages become known, followers of finished prompts wake."""
        table = self.table
        table.computed_S[plan.slots_B] += plan.count_B
        if self.prefix_cache:
            full_B = table.computed_S[plan.slots_B] // PAGE > table.published_S[plan.slots_B]
            for slot in plan.slots_B[full_B].tolist():
                self._publish(table.owner(slot))

    def remove(self, gone: Iterable[Generation]) -> None:
        """Take generations out, finished or given up, wherever they are; their tokens are current afterwards."""
        leaving = dict.fromkeys(gone)  # in order, so that ranks that schedule the same work free the same pages
        if any(each.slot < 0 for each in leaving):
            self.waiting = deque(each for each in self.waiting if each not in leaving)
            for group, members in self.followers.items():
                self.followers[group] = [each for each in members if each not in leaving]
        for generation in leaving:
            if generation.slot >= 0:
                self.pool.release(self.table.leave(generation))
            if generation.leads:
                self._wake(generation, published=False)
        self.running = [each for each in self.running if each not in leaving]
        self._refresh()

    def forget(self, version: int) -> None:
        """New weights: every key is void, and what runs is computed again with them."""
        self.version = version
        while self.running:
            self._push_out()
        self._refresh()
        self.pool.forget()
        for generation in self.waiting:
            generation.keys.clear()

    def _refresh(self) -> None:
        self._slots_B = np.array([generation.slot for generation in self.running], dtype=np.int64)

    def _push_out(self) -> None:
        """Send the newest running generation back to the head of the queue."""
        generation = self.running.pop()
        self.pool.release(self.table.leave(generation))
        self.waiting.appendleft(generation)

    def _grants(self) -> Int64:
        """Tokens for each running row: one for each decoding row, then prefill in order until the budget is spent."""
        need_B = self.table.length_S[self._slots_B] - self.table.computed_S[self._slots_B]
        if need_B.sum() <= self.max_batch_tokens:
            return need_B
        grant_B = np.zeros_like(need_B)
        budget = self.max_batch_tokens
        decodes_B = need_B == 1
        for rows_B in (decodes_B, ~decodes_B):
            want = need_B[rows_B]
            grant_B[rows_B] = np.clip(budget - (np.cumsum(want) - want), 0, want)
            budget -= int(grant_B[rows_B].sum())
        return grant_B

    def _grow(self, grant_B: Int64) -> Int64:
        """Give rows the pages that their grants need, pushing out the newest where there are none; the grants left."""
        table, slots_B = self.table, self._slots_B
        missing_B = -(-(table.computed_S[slots_B] + grant_B) // PAGE) - table.pages_S[slots_B]
        for row in np.flatnonzero(missing_B > 0).tolist():
            missing = int(missing_B[row])
            while row < len(self.running) and self.pool.available < missing:
                self._push_out()
            if row >= len(self.running):
                break
            table.add_pages(int(slots_B[row]), self.pool.allocate(missing))
        kept = len(self.running)
        if kept < len(slots_B):
            self.preemptions += len(slots_B) - kept
            self._refresh()
        return grant_B[:kept]

    def _admit(self, budget: int) -> list[int]:
        """Move waiting generations to rows while there is room; the tokens each may compute in this step.

        A page per running row stays in reserve, so that the next few steps' growth does not undo an admission. The last
        token is always computed, since its logits are wanted: a page that ends with it is not shared.
        """
        granted: list[int] = []
        while self.waiting and budget > 0 and not self.table.full:
            generation = self.waiting[0]
            length = len(generation.tokens_T)
            shared = self._cached_pages(generation, (length - 1) // PAGE)
            fresh = -(-length // PAGE) - len(shared)
            if fresh + len(self.running) > self.pool.available - self.pool.idle(shared):
                break
            self.waiting.popleft()
            self.pool.share(shared)
            self.table.enter(generation, shared + self.pool.allocate(fresh), len(shared))
            self.running.append(generation)
            computed = len(shared) * PAGE
            if generation.cached_tokens < 0:
                generation.cached_tokens = computed
                self.cached_tokens += computed
            if generation.leads and len(shared) >= (generation.prompt_length - 1) // PAGE:
                self._wake(generation, published=True)
            granted.append(min(budget, length - computed))
            budget -= granted[-1]
        if granted:
            self._refresh()
        return granted

    def _cached_pages(self, generation: Generation, pages: int) -> list[int]:
        """Pages that already hold the first tokens of a generation, at most `pages`."""
        if not self.prefix_cache:
            return []
        chain_keys(generation.tokens_T, generation.keys, self.version, pages)
        return self.pool.match(generation.keys[:pages])

    def _publish(self, generation: Generation) -> None:
        """Make the full pages of a running generation findable."""
        table, slot = self.table, generation.slot
        full = int(table.computed_S[slot]) // PAGE
        chain_keys(table.tokens_SM[slot, : full * PAGE], generation.keys, self.version, full)
        for page in range(int(table.published_S[slot]), full):
            self.pool.publish(int(table.page_SP[slot, page]), generation.keys[page])
        table.published_S[slot] = full
        if generation.leads and full >= (generation.prompt_length - 1) // PAGE:
            self._wake(generation, published=True)

    def _wake(self, leader: Generation, published: bool) -> None:
        """Let a group's followers go on, ahead of the queue; if the leader left early, the first leads the others."""
        leader.leads = False
        members = self.followers.pop(leader.request.group)
        if members and not published:
            members[0].leads = True
            self.followers[leader.request.group] = members[1:]
            del members[1:]
        self.waiting.extendleft(reversed(members))
