"""Exact hits of a least-recently-used cache, without stepping through it.

An access to a line hits iff fewer than `capacity` other lines were touched since the line was last: its stack distance
(Mattson et al. 1970). With previous[i] the access that touched i's line last, every line touched in between is touched
there for a first time, whose own previous lies before: so the distance is the count of j < i with previous[j] <
previous[i], less the previous[i] + 1 accesses up to there, all of which are among them. Counting smaller numbers to the
left is a merge sort, all blocks of a size at once.
"""

import numpy as np

Array = np.ndarray
NEVER = np.iinfo(np.int64).max


def stack_distances(lines: Array) -> Array:
    """How many other lines were touched since each access's line was last, NEVER at its first.

    `lines` and the result are (n,) int64.
    """
    previous = _previous(lines)
    distances = _smaller_to_the_left(previous) - (previous + 1)
    return np.where(previous >= 0, distances, NEVER)


def hits(rows: Array, rows_per_line: int, capacity: int, distances: Array | None = None) -> Array:
    """Which accesses to rows of memory find their row in a cache of `capacity` lines.

    A line holds `rows_per_line` neighbouring rows, of a sector (32 bytes) or several. A miss of its tag evicts another
    line, but fetches the sectors of the row alone; the line's other rows miss until they are asked for themselves.

    Args:
        rows: (n,) int64, the rows accessed, in order.
        distances: stack_distances(rows // rows_per_line), if they are known.

    Returns (n,) bool.
    """
    lines = rows // rows_per_line
    resident = (stack_distances(lines) if distances is None else distances) < capacity
    if rows_per_line == 1:
        return resident
    # which stay of its line in the cache an access belongs to: a row is there if it was asked for in the same one
    by_line = np.argsort(lines, kind="stable")
    stay = np.empty_like(lines)
    stay[by_line] = np.cumsum(~resident[by_line])
    previous = _previous(rows)
    return resident & (previous >= 0) & (stay[previous] == stay)


def _previous(names: Array) -> Array:
    """The access before each one that had its name, -1 where there was none."""
    order = np.argsort(names, kind="stable")
    before = np.full(len(names), -1)
    same = names[order[1:]] == names[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


def _smaller_to_the_left(numbers: Array) -> Array:
    """Of each number how many before it are smaller; numbers lie from -1 to below their count."""
    n = len(numbers)
    counts = np.zeros(n, np.int64)
    padded = 1 << max(0, n - 1).bit_length()
    # a number and its place in one integer; what fills up lies to the right of all, and counts for nobody
    keys = np.full(padded, padded)
    keys[:n] = numbers + 1
    keys = keys * padded + np.arange(padded)
    size = 1
    while size < padded:
        halves = keys.reshape(-1, 2, size)
        # left halves one after another are sorted once each is lifted above the one before
        lift = np.arange(len(halves))[:, None] * (padded + 1) * padded
        left, right = (halves[:, 0] + lift).ravel(), halves[:, 1] // padded * padded
        found = np.searchsorted(left, (right + lift).ravel()).reshape(-1, size) - np.arange(len(halves))[:, None] * size
        place = halves[:, 1] % padded
        real = place < n
        counts[place[real]] += found[real]
        keys = np.sort(keys.reshape(-1, 2 * size), axis=1).ravel()
        size *= 2
    return counts
