"""The page pool: references, reuse, and the prefix cache."""

from __future__ import annotations

import numpy as np

from seedthink.engine.pages import Key, PagePool, chain_keys


def keys_of(tokens: list[int], version: int = 0) -> list[Key]:
    keys: list[Key] = []
    chain_keys(np.array(tokens, dtype=np.int32), keys, version, len(tokens) // 16)
    return keys


def published(pool: PagePool, keys: list[Key]) -> list[int]:
    pages = pool.allocate(len(keys))
    for page, key in zip(pages, keys, strict=True):
        pool.publish(page, key)
    return pages


def test_a_key_depends_on_every_earlier_token_and_on_the_version() -> None:
    tokens = list(range(48))
    keys = keys_of(tokens)
    assert len(keys) == 3 and len(set(keys)) == 3
    changed = keys_of([99, *tokens[1:]])
    assert all(a != b for a, b in zip(keys, changed, strict=True))
    assert keys_of([*tokens[:47], 99])[:2] == keys[:2]
    assert all(a != b for a, b in zip(keys, keys_of(tokens, version=1), strict=True))


def test_keys_grow_in_place_to_the_same_chain() -> None:
    tokens = np.arange(64, dtype=np.int32)
    keys: list[Key] = []
    for pages in (1, 1, 3, 4):
        chain_keys(tokens, keys, 0, pages)
    assert keys == keys_of(list(range(64)))


def test_a_released_page_can_be_allocated_again_and_no_page_is_given_twice() -> None:
    pool = PagePool(3)
    first = pool.allocate(3)
    assert sorted(first) == [0, 1, 2] and pool.available == 0 and pool.used == 3
    pool.release(first[:1])
    assert pool.available == 1
    assert pool.allocate(1) == first[:1]


def test_a_shared_page_is_free_only_when_everybody_let_go() -> None:
    pool = PagePool(2)
    pages = published(pool, keys_of(list(range(16))))
    pool.share(pages)
    pool.release(pages)
    assert pool.used == 1
    pool.release(pages)
    assert pool.used == 0


def test_the_longest_known_prefix_is_found_even_after_its_owner_is_gone() -> None:
    pool = PagePool(4)
    pages = published(pool, keys_of(list(range(48))))
    pool.release(pages)
    assert pool.match(keys_of([*range(32), *range(100, 116)])) == pages[:2]
    assert pool.match(keys_of(list(range(1, 49)))) == []
    assert pool.idle(pages) == 3


def test_sharing_an_unreferenced_page_makes_it_unavailable() -> None:
    pool = PagePool(2)
    pages = published(pool, keys_of(list(range(16))))
    pool.release(pages)
    assert pool.available == 2
    pool.share(pages)
    assert pool.available == 1 and pool.idle(pages) == 0
    assert pool.allocate(1) != pages


def test_cached_pages_are_reused_last_least_recently_used_first_and_from_the_end_of_a_chain() -> None:
    pool = PagePool(5)
    old, new = keys_of(list(range(32))), keys_of(list(range(50, 82)))
    old_pages, new_pages = published(pool, old), published(pool, new)
    pool.release(old_pages)
    pool.release(new_pages)
    pool.allocate(1)
    assert pool.match(old) == old_pages and pool.match(new) == new_pages, "the free page goes first"
    assert pool.allocate(1) == old_pages[1:]
    assert pool.match(old) == old_pages[:1] and pool.match(new) == new_pages
    assert pool.allocate(2) == [old_pages[0], new_pages[1]]
    assert pool.match(old) == [] and pool.match(new) == new_pages[:1]


def test_two_pages_with_the_same_content_keep_one_entry() -> None:
    pool = PagePool(2)
    keys = keys_of(list(range(16)))
    first, second = published(pool, keys), published(pool, keys)
    assert pool.match(keys) == first
    pool.release(second)
    pool.release(first)
    assert pool.match(keys) == first and pool.available == 2


def test_forgetting_leaves_nothing_to_find_and_loses_no_page() -> None:
    pool = PagePool(4)
    held, cached = keys_of(list(range(16))), keys_of(list(range(20, 36)))
    held_pages = published(pool, held)
    pool.release(published(pool, cached))
    pool.forget()
    assert pool.match(held) == [] and pool.match(cached) == []
    assert pool.used == 1 and pool.available == 3
    pool.release(held_pages)
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]


def test_random_use_never_gives_a_page_that_is_in_use() -> None:
    draw, pool, owned = np.random.default_rng(0), PagePool(12), list[list[int]]()
    chains = [keys_of([int(t) for t in draw.integers(0, 9, 64)]) for _ in range(6)]
    for _ in range(3000):
        if owned and draw.random() < 0.45:
            pool.release(owned.pop(int(draw.integers(len(owned)))))
            continue
        keys = chains[int(draw.integers(len(chains)))][: int(draw.integers(1, 5))]
        shared = pool.match(keys)
        if len(keys) - len(shared) > pool.available - pool.idle(shared):
            continue
        pool.share(shared)
        fresh = pool.allocate(len(keys) - len(shared))
        in_use = {page for pages in owned for page in pages} | set(shared)
        assert not in_use & set(fresh)
        for page, key in zip(fresh, keys[len(shared) :], strict=True):
            pool.publish(page, key)
        owned.append(shared + fresh)
        assert pool.used == len({page for pages in owned for page in pages})
    for pages in owned:
        pool.release(pages)
    assert pool.used == 0 and sorted(pool.allocate(12)) == list(range(12))
