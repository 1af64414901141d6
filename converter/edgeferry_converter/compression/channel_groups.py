"""Which channels of a network stand or fall together, as arrays of slots; numpy alone.

Every channel of every tensor is a slot.  An addition joins slots, a concatenation chains them, a Flatten repeats
them.  What is joined in the end is one class: its channels are removed everywhere or nowhere.  Classes that occur
equally often along every axis of every weight form a group, and a group can be shrunk to any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["OUT", "IN", "ALONG", "Axis", "Group", "Slots", "Tracing", "Weight", "grouped"]

OUT, IN, ALONG = "out", "in", "along"  # the axis makes channels, takes them in, or has one value for each


class Slots:
    """Disjoint sets of channels; a set that is frozen is never removed, and says why."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> np.ndarray:
        """``count`` fresh slots, int64."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Let the i-th of one array and the i-th of the other be removed together."""
        for first, second in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self._root(first), self._root(second)))
            if low == high:
                continue
            self._parent[high] = low
            if high in self._reason:
                self._reason.setdefault(low, self._reason.pop(high))

    def freeze(self, slots: np.ndarray, reason: str) -> None:
        """Keep these for good; the first reason given is the one that is told."""
        for slot in np.unique(slots).tolist():
            self._reason.setdefault(self._root(slot), reason)

    def reason(self, slot: int) -> str:
        """Why the slot stays, or ""."""
        return self._reason.get(self._root(slot), "")

    def frozen(self, slots: np.ndarray) -> bool:
        """Whether all of them stay."""
        return all(self.reason(slot) for slot in np.unique(slots).tolist())

    def classes(self) -> np.ndarray:
        """For every slot the number of its class, counted from 0; -1 where it is frozen."""
        roots = np.array([self._root(slot) for slot in range(len(self._parent))], np.int64)
        free = np.array([root not in self._reason for root in roots.tolist()], bool)
        classes = np.full(len(roots), -1, np.int64)
        if free.any():
            classes[free] = np.unique(roots[free], return_inverse=True)[1]
        return classes

    def _root(self, slot: int) -> int:
        parent = self._parent
        while parent[slot] != slot:
            parent[slot] = parent[parent[slot]]
            slot = parent[slot]
        return slot


@dataclass(frozen=True)
class Axis:
    """One axis of a weight that follows the channels.

    Attributes:
        axis: counted from the end: -1 is the last.
        role: ``OUT``, ``IN`` or ``ALONG``.
        slots: int64 [length of the axis]: slots while tracing, in a ``Tracing`` classes, with -1 for what stays.
    """

    axis: int
    role: str
    slots: np.ndarray


@dataclass(frozen=True)
class Weight:
    """A weight of which at least one axis can be cut.

    Attributes:
        layer, index, name: ``model.get_layer(layer).weights[index]``, "kernel".
        shape: of the whole weight.
        macs: multiply-accumulates each element takes part in for one image; 0 for a bias, None when the size of
            the feature map is not known.
        axes: one or two of its axes.
    """

    layer: str
    index: int
    name: str
    shape: tuple[int, ...]
    macs: int | None
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Group:
    """Channels that can be removed independently of each other, and of no more than the layers named.

    Attributes:
        name: of the first layer that makes them, with "#2" after it where one layer feeds several groups.
        classes: int64 [size], the class of each of its channels.
        producers: names of the layers whose outputs they are.
        consumers: names of the layers whose kernels read them.
    """

    name: str
    classes: np.ndarray
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many channels there are to choose from."""
        return len(self.classes)


@dataclass(frozen=True)
class Tracing:
    """What can be cut out of a model, and what has to be cut with it.

    Attributes:
        model: the keras.Model that was traced: functional, nested models unfolded.
        groups: in the order of the graph.
        weights: every weight an axis of which belongs to a group.
        sizes: layer name to the key of its configuration that says how many channels it makes ("filters", "units",
            "target_shape"), and the classes of those channels.
        untouched: layer name to the reason why its channels stay.
    """

    model: Any
    groups: tuple[Group, ...]
    weights: tuple[Weight, ...]
    sizes: Mapping[str, tuple[str, np.ndarray]]
    untouched: Mapping[str, str]

    def alive(self, keeps: Mapping[str, Sequence[int] | np.ndarray]) -> np.ndarray:
        """Which classes stay when of each group named only the channels listed do.

        Returns:
            bool [classes + 1]; the last is True and answers for -1, so that it can be indexed by ``Axis.slots``.

        Raises:
            ValueError: a group that is not there, no channel left, or one that the group does not have.
        """
        alive = np.ones(sum(group.size for group in self.groups) + 1, bool)
        groups = {group.name: group for group in self.groups}
        for name, kept in keeps.items():
            if name not in groups:
                raise ValueError(f"there is no group of channels {name!r}; there are {', '.join(groups)}")
            chosen = np.unique(np.asarray(kept, np.int64))
            if not len(chosen) or chosen[0] < 0 or chosen[-1] >= groups[name].size:
                raise ValueError(f"{name}: keep some of the channels 0 to {groups[name].size - 1}, not {chosen}")
            alive[np.delete(groups[name].classes, chosen)] = False
        return alive


def grouped(weights: Sequence[Weight]) -> tuple[Group, ...]:
    """The groups of classes that occur equally often along every axis.

    Args:
        weights: in the order of the graph, their axes in classes.
    """
    axes = [(weight, axis) for weight in weights for axis in weight.axes]
    count = 1 + max((int(axis.slots.max(initial=-1)) for _, axis in axes), default=-1)
    if count == 0:
        return ()
    table = np.stack([np.bincount(axis.slots[axis.slots >= 0], minlength=count) for _, axis in axes])
    _, first, members = np.unique(table.T, axis=0, return_index=True, return_inverse=True)
    groups: list[Group] = []
    taken: dict[str, int] = {}
    for index in np.argsort(first):
        classes = np.flatnonzero(members.reshape(-1) == index)
        here = table[:, classes[0]] > 0
        touching = [pair for pair, touched in zip(axes, here, strict=True) if touched]
        layers = {
            role: tuple(dict.fromkeys(weight.layer for weight, axis in touching if axis.role == role))
            for role in (OUT, IN)
        }
        name = layers[OUT][0]
        taken[name] = taken.get(name, 0) + 1
        label = name if taken[name] == 1 else f"{name}#{taken[name]}"
        groups.append(Group(label, classes, layers[OUT], layers[IN]))
    return tuple(groups)
