"""One generation in flight, and the table that holds the running ones as arrays.

A waiting sequence owns its tokens; while it runs, its row (`slot`) of the table does, so that a step over a batch is
numpy over rows and not Python over tokens. Columns of the table grow with the longest sequence admitted so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from seedthink.engine.pages import Key
from seedthink.kernels.attention import PAGE
from seedthink.types import Completion, Detokenizer, Finish, Request

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class StopText:
    """Watches the text of one generation for stop strings, one token at a time.

    Decoders may join or hold back characters at token borders, so the text of the newest tokens is the difference of
    two decodings that start at the same earlier token; an unfinished character (U+FFFD at the end) waits for its rest.
    """

    def __init__(self, stop: tuple[str, ...], detokenizer: Detokenizer) -> None:
        self._stop = stop
        self._reach = max(len(text) for text in stop) - 1
        self._detokenizer = detokenizer
        self._tokens: list[int] = []
        self._begin = 0  # decoding starts here,
        self._read = 0  # and the text of the tokens before this one is already in `text`
        self.text = ""

    def found(self, token: int) -> bool:
        """Take one more token; True where a stop string is complete, and then `text` ends before it."""
        self._tokens.append(token)
        known = self._detokenizer.decode(self._tokens[self._begin : self._read])
        longer = self._detokenizer.decode(self._tokens[self._begin :])
        if longer.endswith("\ufffd") or len(longer) <= len(known):
            return False
        self._begin, self._read = self._read, len(self._tokens)
        start = max(0, len(self.text) - self._reach)
        self.text += longer[len(known) :]
        hits = [at for at in (self.text.find(stop, start) for stop in self._stop) if at >= 0]
        if hits:
            self.text = self.text[: min(hits)]
        return bool(hits)


@dataclass(slots=True, eq=False)
class Generation:
    """One request on its way to a completion.

    `tokens_T` (prompt, then what is generated) and `logprob_T` (one entry per generated token) are current while it
    waits. `keys` names its full pages, as far as they are known; `marks` lists (generated tokens, policy version) where
    a version begins. `cached_tokens` is -1 until the first admission.
    """

    request: Request
    tokens_T: Int32
    logprob_T: Float32
    marks: list[tuple[int, int]]
    stop_text: StopText | None = None
    stop_ids: frozenset[int] = frozenset()
    keys: list[Key] = field(default_factory=list)
    slot: int = -1
    leads: bool = False
    cached_tokens: int = -1

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.tokens_T)

    def mark(self, generated: int, version: int) -> None:
        """From the token with index `generated` on, the policy is `version`."""
        if self.marks and self.marks[-1][0] == generated:
            self.marks.pop()
        self.marks.append((generated, version))

    def complete(self, finish: Finish, detokenizer: Detokenizer | None, stop_token: bool = False) -> Completion:
        """What the user gets; `stop_token` says that the last token is a stop token, which is no part of the text."""
        generated_T = self.tokens_T[self.prompt_length :].copy()
        starts = np.array([start for start, _ in self.marks] + [len(generated_T)])
        versions = np.array([version for _, version in self.marks], dtype=np.int32)
        text = ""
        if self.stop_text is not None and finish is Finish.STOP and not stop_token:
            text = self.stop_text.text
        elif detokenizer is not None:
            text = detokenizer.decode(generated_T[: len(generated_T) - stop_token].tolist())
        return Completion(
            id=self.id,
            tokens_T=generated_T,
            logprob_T=self.logprob_T.copy(),
            version_T=np.repeat(versions, np.diff(starts)),
            finish=finish,
            text=text,
            cached_tokens=max(0, self.cached_tokens),
        )


class Table:
    """The running generations, one row each. Suffixes: S rows (slots), M positions, P pages of a sequence.

    length_S counts known tokens, computed_S those whose keys and values are in the pages; a row whose length is one
    more than computed is decoding, any other is in prefill.
    """

    def __init__(self, slots: int) -> None:
        self.tokens_SM = np.zeros((slots, PAGE), dtype=np.int32)
        self.logprob_SM = np.zeros((slots, PAGE), dtype=np.float32)
        self.page_SP = np.zeros((slots, 1), dtype=np.int32)
        self.length_S = np.zeros(slots, dtype=np.int64)
        self.computed_S = np.zeros(slots, dtype=np.int64)
        self.limit_S = np.zeros(slots, dtype=np.int64)
        self.pages_S = np.zeros(slots, dtype=np.int64)
        self.published_S = np.zeros(slots, dtype=np.int64)
        self.temperature_S = np.zeros(slots, dtype=np.float32)
        self.top_k_S = np.zeros(slots, dtype=np.int32)
        self.top_p_S = np.zeros(slots, dtype=np.float32)
        self.seed_S = np.zeros(slots, dtype=np.int64)
        self.eos_S = np.zeros(slots, dtype=np.bool_)  # ends at an end-of-sequence token
        self.watched_S = np.zeros(slots, dtype=np.bool_)  # has stop strings or stop ids of its own
        self._owner_S: list[Generation | None] = [None] * slots
        self._empty = list(range(slots - 1, -1, -1))

    @property
    def full(self) -> bool:
        """True where every row is taken."""
        return not self._empty

    def owner(self, slot: int) -> Generation:
        """Whose row this is."""
        generation = self._owner_S[slot]
        assert generation is not None, "an empty row has no owner"
        return generation

    def enter(self, generation: Generation, pages: list[int], ready: int) -> None:
        """Give a row to a generation; the first `ready` of its pages are full and already known to the pool."""
        slot = generation.slot = self._empty.pop()
        self._owner_S[slot] = generation
        params, length, prompt = generation.request.params, len(generation.tokens_T), generation.prompt_length
        self._reserve(prompt + params.max_tokens)
        self.tokens_SM[slot, :length] = generation.tokens_T
        self.logprob_SM[slot, prompt:length] = generation.logprob_T
        self.length_S[slot], self.computed_S[slot] = length, ready * PAGE
        self.limit_S[slot] = prompt + params.max_tokens
        self.pages_S[slot], self.published_S[slot] = 0, ready
        self.temperature_S[slot], self.top_p_S[slot] = params.temperature, params.top_p
        self.top_k_S[slot], self.seed_S[slot] = params.top_k, generation.request.seed
        self.eos_S[slot] = not params.ignore_eos
        self.watched_S[slot] = bool(generation.stop_ids) or generation.stop_text is not None
        self.add_pages(slot, pages)

    def leave(self, generation: Generation) -> list[int]:
        """Take a generation off its row, its tokens with it; the pages it held, for the pool."""
        slot, generation.slot = generation.slot, -1
        length = int(self.length_S[slot])
        generation.tokens_T = self.tokens_SM[slot, :length].copy()
        generation.logprob_T = self.logprob_SM[slot, generation.prompt_length : length].copy()
        self._owner_S[slot] = None
        self._empty.append(slot)
        pages: list[int] = self.page_SP[slot, : self.pages_S[slot]].tolist()
        return pages

    def add_pages(self, slot: int, pages: list[int]) -> None:
        """Append pages to a row's list."""
        have = int(self.pages_S[slot])
        self.page_SP[slot, have : have + len(pages)] = pages
        self.pages_S[slot] = have + len(pages)

    def append(self, slots_B: Int64, token_B: Int64, logprob_B: Float32) -> None:
        """One generated token for each row."""
        length_B = self.length_S[slots_B]
        self.tokens_SM[slots_B, length_B] = token_B
        self.logprob_SM[slots_B, length_B] = logprob_B
        self.length_S[slots_B] = length_B + 1

    def _reserve(self, positions: int) -> None:
        have = self.tokens_SM.shape[1]
        if positions <= have:
            return
        columns = -(-max(positions, 2 * have) // PAGE) * PAGE
        self.tokens_SM = _widened(self.tokens_SM, columns)
        self.logprob_SM = _widened(self.logprob_SM, columns)
        self.page_SP = _widened(self.page_SP, columns // PAGE)


def _widened(array_SM: npt.NDArray, columns: int) -> npt.NDArray:
    """The same rows with more columns."""
    return np.pad(array_SM, ((0, 0), (0, columns - array_SM.shape[1])))
