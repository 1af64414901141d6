"""Every error the converter raises on purpose, one branch of the runtime's tree.

    EdgeferryError                     a known failure; exit code 1
    └── ConverterError                 the conversion cannot go on
        ├── SchemaError                a file of ours breaks its schema; exit code 2      (ValueError)
        │   ├── ProfileError           a device profile does
        │   │   └── ProfileNotFoundError   no profile of that name, no such file         (LookupError)
        │   ├── RecipeError            a recipe is missing, or does
        │   └── SpaceError             a search space is missing, or does
        ├── OptionError                an option of convert cannot be used; exit code 2  (ValueError)
        │   └── TargetError            a share that removing channels cannot reach
        ├── ModelError                 the model cannot be loaded, or not be converted   (ValueError)
        │   └── ModelNotFoundError     there is no such file; exit code 2                (FileNotFoundError)
        ├── DataError                  images or labels do not serve                     (ValueError)
        ├── ConversionError            TensorFlow's converter or its result failed       (RuntimeError)
        ├── TrainingError              training diverged, or its checkpoint is of another run  (RuntimeError)
        │   └── WeakTeacherError       the teacher is worse than its pupil on the training stream
        ├── SweepError                 a search found nothing to take, or cannot go on
        ├── MeasurementError           a latency cannot be measured
        └── GateError                  a variant lost more than is allowed

What a message says and why ``remedy`` travels separately is told in ``edgeferry_runtime.errors``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeferry_runtime.errors import EdgeferryError

if TYPE_CHECKING:
    from pathlib import Path

    from edgeferry_converter.schema import Problem

__all__ = [
    "ConversionError",
    "ConverterError",
    "DataError",
    "GateError",
    "ModelError",
    "ModelNotFoundError",
    "OptionError",
    "ProfileError",
    "ProfileNotFoundError",
    "RecipeError",
    "SchemaError",
    "TrainingError",
]


class ConverterError(EdgeferryError):
    """The conversion cannot go on."""


class SchemaError(ConverterError, ValueError):
    """A file of ours breaks its schema.

    Args:
        message: which file, and how many things are wrong with it; the problems are added line by line.
        remedy: the next step.
        problems: every fault with its dotted path, so that one reading repairs them all.
    """

    exit_code = 2

    def __init__(self, message: str, remedy: str | None = None, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), remedy)
        self.problems = tuple(problems)


class ProfileError(SchemaError):
    """A device profile cannot be used."""


class RecipeError(SchemaError):
    """A recipe cannot be used."""


class ProfileNotFoundError(ProfileError, LookupError):
    """No profile has that name, or the file does not exist; ``known`` lists the names there are."""

    def __init__(self, message: str, remedy: str | None = None, known: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.known = tuple(known)


class OptionError(ConverterError, ValueError):
    """An option of convert, or the file it names, cannot be used."""

    exit_code = 2


class ModelError(ConverterError, ValueError):
    """The model cannot be loaded, or is of a kind that cannot be converted."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no such model file."""

    exit_code = 2


class DataError(ConverterError, ValueError):
    """Images or labels do not serve to calibrate or judge the model."""


class ConversionError(ConverterError, RuntimeError):
    """TensorFlow's converter failed, or what it made cannot be used."""


class TrainingError(ConverterError, RuntimeError):
    """Training cannot begin or go on; ``checkpoint`` is the last good one, if there is any."""

    def __init__(self, message: str, remedy: str | None = None, checkpoint: Path | None = None) -> None:
        super().__init__(message, remedy)
        self.checkpoint = checkpoint


class GateError(ConverterError):
    """A variant lost more than is allowed, so there is no bundle; ``report`` is where the reasons are."""

    def __init__(self, message: str, remedy: str | None = None, report: str = "") -> None:
        super().__init__(message, remedy)
        self.report = report
