"""Who gets what at the least cost in all: the assignment problem."""

from __future__ import annotations

import numpy as np

__all__ = ["assign"]


def assign(cost: np.ndarray) -> np.ndarray:
    """Columns for the rows, each at most once, of the least cost in all (the Hungarian method, n <= m).

    Args:
        cost: int [n, m].

    Returns:
        int [n].
    """
    n, m = cost.shape
    of_row, of_column = np.zeros(n + 1), np.zeros(m + 1)
    row_of = np.zeros(m + 1, int)  # 1-based; 0 is free
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least, before, used = np.full(m + 1, np.inf), np.zeros(m + 1, int), np.zeros(m + 1, bool)
        while row_of[column]:
            used[column] = True
            reduced = cost[row_of[column] - 1] - of_row[row_of[column]] - of_column[1:]
            closer = ~used[1:] & (reduced < least[1:])
            least[1:][closer], before[1:][closer] = reduced[closer], column
            nearest = int(np.where(used, np.inf, least)[1:].argmin()) + 1
            step = least[nearest]
            of_row[row_of[used]] += step
            of_column[used] -= step
            least[~used] -= step
            column = nearest
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    result = np.zeros(n, int)
    taken = np.flatnonzero(row_of[1:])
    result[row_of[1:][taken] - 1] = taken
    return result
