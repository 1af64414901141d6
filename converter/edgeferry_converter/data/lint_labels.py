"""Linting the labels' order with the float model's answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeferry_converter.data.assignment import assign
from edgeferry_converter.data.finding import Finding, finding

__all__ = ["accuracy_in_order", "lint_labels_order"]

MOVED_MIN = 4  # images of a class to say where its answers go
MOVED_SHARE = 0.5
MOVED_TOTAL = 10


def lint_labels_order(scores: np.ndarray, truth: np.ndarray, labels: Sequence[str] = ()) -> list[Finding]:
    """Labels in another order than the model's outputs: what it answers is right but for a permutation.

    Suspected when the best assignment of answers to classes moves two classes or more, each with 4 images at
    least (10 together), at least half of each go where the assignment says and make half of what is there (a model
    that answers the same for everything moves nothing), and at most half as many are right.

    Args:
        scores: float [n, classes].
        truth: int [n], classes by the labels.
        labels: name of each class, for the message.
    """
    classes = scores.shape[1]
    table = _confusion(scores, truth)
    moved = _moved(table)
    total = sum(int(table[row].sum()) for row, _ in moved)
    hits, right = (sum(int(table[a, b]) for a, b in pairs) for pairs in (moved, [(a, a) for a, _ in moved]))
    if len(moved) < 2 or total < MOVED_TOTAL or right > hits / 2:
        return []
    names = {i: repr(labels[i]) if i < len(labels) else str(i) for i in range(classes)}
    told = [f"{names[a]} is answered as {names[b]}" for a, b in moved]
    message = (
        f"labels in the wrong order suspected: {len(moved)} classes are answered as others"
        f" ({hits} of their {total} images, {right} right): {'; '.join(told[:12])}"
    )
    remedy = "Give --labels with the names in the order of the model's outputs" + _proposal(moved, labels, classes)
    return [finding(202, "warning", message, remedy)]


def _confusion(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often class t (row) is answered as class a (column), int [classes, classes]."""
    classes = scores.shape[1]
    known = (truth >= 0) & (truth < classes)
    table = np.zeros((classes, classes), int)
    np.add.at(table, (truth[known], scores.argmax(axis=1)[known]), 1)
    return table


def _moved(table: np.ndarray) -> list[tuple[int, int]]:
    """Classes that the best assignment sends elsewhere, and where to."""
    rows = np.flatnonzero(table.sum(axis=1) >= MOVED_MIN)
    goal = assign(-table[rows]) if len(rows) else rows
    return [
        (int(row), int(to))
        for row, to in zip(rows, goal, strict=True)
        if row != to and table[row, to] >= MOVED_SHARE * max(table[row].sum(), table[:, to].sum())
    ]


def accuracy_in_order(scores: np.ndarray, truth: np.ndarray) -> float:
    """How often the model would be right with the labels put in order."""
    table = _confusion(scores, truth)
    moved = dict(_moved(table))
    return float(sum(table[c, moved.get(c, c)] for c in range(len(table)))) / len(truth)


def _proposal(moved: Sequence[tuple[int, int]], labels: Sequence[str], classes: int) -> str:
    """The order that would fit, where the moved classes change places among themselves."""
    if len(labels) != classes or {a for a, _ in moved} != {b for _, b in moved} or classes > 20:
        return "."
    order = list(labels)
    for name, place in moved:
        order[place] = labels[name]
    return f": {', '.join(order)}"
