"""Sorting networks over lists of entries: descending, unrolled, elementwise in everything the entries hold.

An entry is a tuple of arrays of one shape: (scores, indices), ordered by the scores alone, or (scores,). None is an
entry below every other, and costs nothing. Equal entries come out in a fixed but arbitrary order.
"""

import jax.numpy as jnp


def power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()


def sort(entries: list) -> list:
    """Batcher's odd-even merge sort (1968); the length is a power of two. 191 exchanges for 32 entries."""
    half = len(entries) // 2
    if not half:
        return list(entries)
    # One half after the other: fewer entries are under way at a time, so more of them stay in registers.
    return _merge_odd_even(sort(entries[:half]) + sort(entries[half:]))


def _merge_odd_even(entries: list) -> list:
    """Sorts a list whose halves are sorted."""
    entries, n = list(entries), len(entries)
    for i in range(n // 2):
        _exchange(entries, i, i + n // 2)
    step = n // 4
    while step:
        for start in range(step, n - step, 2 * step):
            for i in range(start, start + step):
                _exchange(entries, i, i + step)
        step //= 2
    return entries


def merge(xs: list, ys: list, most: int) -> list:
    """The `most` best (a power of two) of two sorted lists, sorted: Batcher's bitonic merge, 80 exchanges for 32."""
    n = power_of_two(max(len(xs), len(ys)))
    xs, ys = xs + [None] * (n - len(xs)), ys + [None] * (n - len(ys))
    # Where all `most` places are taken, what loses the first round is out.
    entries = xs + ys[::-1] if n < most else [_larger(x, y) for x, y in zip(xs, ys[::-1], strict=True)]
    step = len(entries) // 2
    while step:
        for i in range(len(entries)):
            if not i & step:
                _exchange(entries, i, i + step)
        step //= 2
    return [entry for entry in entries if entry is not None]


def merge_all(lists: list[list], most: int) -> list:
    """The `most` best (a power of two) of many sorted lists, the shortest merged first."""
    lists = list(lists)
    while len(lists) > 1:
        lists.sort(key=len, reverse=True)
        lists.append(merge(lists.pop(), lists.pop(), most))
    return lists[0]


def _exchange(entries: list, i: int, j: int) -> None:
    """Leaves the larger at i."""
    a, b = entries[i], entries[j]
    if b is None:
        return
    if a is None:
        entries[i], entries[j] = b, a
    elif len(a) == 1:
        entries[i], entries[j] = (jnp.maximum(a[0], b[0]),), (jnp.minimum(a[0], b[0]),)
    else:
        wins = a[0] >= b[0]
        entries[i] = jnp.maximum(a[0], b[0]), jnp.where(wins, a[1], b[1])
        entries[j] = jnp.minimum(a[0], b[0]), jnp.where(wins, b[1], a[1])


def _larger(a, b):
    if a is None or b is None:
        return b if a is None else a
    if len(a) == 1:
        return (jnp.maximum(a[0], b[0]),)
    return jnp.maximum(a[0], b[0]), jnp.where(a[0] >= b[0], a[1], b[1])
