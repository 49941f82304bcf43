"""Warp time: find the cheapest path through a table of distances, compiled by numba."""

import numba
import numpy as np


@numba.njit  # compiles in two seconds, at the first call of a process
def find_path(distances: np.ndarray) -> np.ndarray:
    """Find the path from the first to the last corner with the smallest sum of distances.

    Args:
        distances: (T, T'), between each frame of one sound and each of another.

    Returns:
        (n, 2), the pairs of frames on the path: from one to the next, either frame or both move on
        by one.
    """
    n_left, n_right = distances.shape
    sums = np.full((n_left + 1, n_right + 1), np.inf)  # the smallest sum on the way to each pair
    sums[0, 0] = 0.0
    for i in range(n_left):
        for j in range(n_right):
            best = min(sums[i, j], sums[i, j + 1], sums[i + 1, j])
            sums[i + 1, j + 1] = distances[i, j] + best
    path = np.empty((n_left + n_right - 1, 2), dtype=np.int64)
    i, j, start = n_left - 1, n_right - 1, n_left + n_right - 2
    path[start] = i, j
    while i > 0 or j > 0:
        both, left, right = sums[i, j], sums[i, j + 1], sums[i + 1, j]  # the ways to this pair
        if both <= min(left, right):
            i, j = i - 1, j - 1
        elif left <= right:
            i -= 1
        else:
            j -= 1
        start -= 1
        path[start] = i, j
    return path[start:]
