"""Who owns which page of the KV cache: a free list, reference counts and the prefix cache.

A full page's content is a function of the weights and of every token up to its end, so its key is a chain of digests:
key(page i) = blake2b(key(page i - 1) + the 16 token ids of page i), and the chain starts at the policy version. Pages
that nobody refers to keep their content until they are needed, least recently used first; a sequence lets its pages go
last page first, so that a chain is eaten from its end and what stays is a usable prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from seedthink.kernels.attention import PAGE

Key = bytes


def chain_keys(tokens_T: npt.NDArray[np.int32], keys: list[Key], version: int, pages: int) -> None:
    """Extend `keys` in place to the first `pages` full pages; keys[i] names tokens 0 .. (i + 1) * PAGE - 1."""
    assert pages * PAGE <= len(tokens_T), "only full pages have a key"
    for page in range(len(keys), pages):
        before = keys[page - 1] if page else b"version" + version.to_bytes(8, "little", signed=True)
        keys.append(blake2b(before + tokens_T[page * PAGE : (page + 1) * PAGE].tobytes(), digest_size=16).digest())


class PagePool:
    """`count` pages of `PAGE` positions, each free, in use by one or more sequences, or cached and unreferenced."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._references = [0] * count
        self._cached: OrderedDict[int, None] = OrderedDict()  # unreferenced pages with a key, least recently used first
        self._key_of: dict[int, Key] = {}
        self._page_of: dict[Key, int] = {}

    @property
    def available(self) -> int:
        """Pages that `allocate` can hand out now."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        """Pages that at least one sequence refers to."""
        return self.count - self.available

    def match(self, keys: Sequence[Key]) -> list[int]:
        """The cached pages of the longest known prefix of `keys`. Takes no reference: call `share` on them."""
        pages: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def idle(self, pages: Iterable[int]) -> int:
        """How many of `pages` nobody refers to: sharing them makes that many fewer available."""
        return sum(self._references[page] == 0 for page in pages)

    def share(self, pages: Iterable[int]) -> None:
        """Take one more reference to each page."""
        for page in pages:
            if self._references[page] == 0:
                del self._cached[page]
            self._references[page] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` pages with one reference each and unspecified content; the caller checks `available` first."""
        assert count <= self.available, "allocate() past the available pages"
        pages: list[int] = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._cached.popitem(last=False)
                del self._page_of[self._key_of.pop(page)]
            self._references[page] = 1
            pages.append(page)
        return pages

    def publish(self, page: int, key: Key) -> None:
        """A page in use is full and holds what `key` names. A key that another page has stays with that one."""
        assert self._references[page] > 0, "publish() of a page that is not in use"
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Give back one reference to each page, last page first."""
        for page in reversed(pages):
            self._references[page] -= 1
            assert self._references[page] >= 0, "release() of a page that is not in use"
            if self._references[page] == 0:
                if page in self._key_of:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def forget(self) -> None:
        """Drop every key, as new weights demand: nothing that is in the pages now is found again."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._key_of.clear()
        self._page_of.clear()
