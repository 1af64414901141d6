"""Sparsity schedules: which share of the weights is zero at which optimiser step.

Names as in the TensorFlow Model Optimization Toolkit; the polynomial is equation 1 of Zhu & Gupta, "To prune, or
not to prune" (2017, arXiv:1710.01878):

    s_t = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_n - t_0)) ** power

Unlike the toolkit, masks are also updated at ``end_step`` itself, so that the final sparsity is reached whatever
the frequency.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from edgeferry_converter.errors import OptionError

__all__ = ["ConstantSparsity", "PolynomialDecay", "Schedule"]

NEVER_ENDS = -1


class Schedule(ABC):
    """A sparsity for every step; steps count finished optimiser updates.

    Attributes:
        begin_step: the first step at which masks are made.
        end_step: the last one at which they are renewed; -1 for no end.
        frequency: steps between two renewals.
    """

    begin_step: int
    end_step: int
    frequency: int

    @property
    @abstractmethod
    def final(self) -> float:
        """The sparsity that is reached in the end."""

    @property
    def settled_step(self) -> int:
        """From this step on the sparsity grows no more."""
        return self.begin_step

    @abstractmethod
    def _value(self, step: int) -> float: ...

    def sparsity(self, step: int) -> float:
        """The share of zeros, 0 to 1, that the formula gives at a step; 0 before ``begin_step``."""
        return 0.0 if step < self.begin_step else self._value(step)

    def updates(self, step: int) -> bool:
        """Whether masks are renewed at a step."""
        if step < self.begin_step or (self.end_step != NEVER_ENDS and step > self.end_step):
            return False
        return (step - self.begin_step) % self.frequency == 0 or step == self.end_step

    def last_update(self, step: int) -> int | None:
        """The last step up to this one at which masks were renewed; None before the first."""
        if step < self.begin_step:
            return None
        if self.end_step != NEVER_ENDS and step >= self.end_step:
            return self.end_step
        return step - (step - self.begin_step) % self.frequency

    def _check(self) -> None:
        if self.begin_step < 0 or self.frequency < 1:
            raise _refused(self, "begin_step is 0 or more, frequency 1 or more")
        if self.end_step != NEVER_ENDS and self.end_step < self.begin_step:
            raise _refused(self, "end_step comes before begin_step")


@dataclass(frozen=True)
class ConstantSparsity(Schedule):
    """The same sparsity from ``begin_step`` on.

    Raises:
        OptionError: a value is out of its range.
    """

    target_sparsity: float
    begin_step: int
    end_step: int = NEVER_ENDS
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_share(self, "target_sparsity", self.target_sparsity)
        self._check()

    @property
    def final(self) -> float:
        return self.target_sparsity

    def _value(self, step: int) -> float:
        return self.target_sparsity


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """The density decays from ``1 - initial_sparsity`` to ``1 - final_sparsity``, fast first and slowly later.

    Raises:
        OptionError: a value is out of its range.
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_share(self, "initial_sparsity", self.initial_sparsity)
        _check_share(self, "final_sparsity", self.final_sparsity)
        self._check()
        if self.end_step <= self.begin_step:
            raise _refused(self, "end_step comes after begin_step")
        if self.final_sparsity < self.initial_sparsity:
            raise _refused(self, "final_sparsity is at least initial_sparsity: weights that are gone stay gone")
        if self.power <= 0:
            raise _refused(self, "power is greater than 0")

    @property
    def final(self) -> float:
        return self.final_sparsity

    @property
    def settled_step(self) -> int:
        return self.end_step

    def _value(self, step: int) -> float:
        part = min(1.0, (step - self.begin_step) / (self.end_step - self.begin_step))
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1 - part) ** self.power


def _check_share(schedule: Schedule, name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise _refused(schedule, f"{name} is at least 0 and less than 1")


def _refused(schedule: Schedule, rule: str) -> OptionError:
    return OptionError(f"the pruning schedule {schedule} cannot be followed: {rule}", "Correct the recipe.")
