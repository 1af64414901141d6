"""Labels files: one name a line, in the order of the model's outputs."""

from __future__ import annotations

from pathlib import Path

from edgeferry_converter.errors import DataError, OptionError

__all__ = ["read_labels"]


def read_labels(path: Path) -> list[str]:
    """Read a labels file.

    Raises:
        OptionError: there is no such file.
        DataError: it is not UTF-8 text, is empty, or names a class twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise OptionError(f"{path}: the labels file cannot be read: {error.strerror}", "Check --labels.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: the labels file is not UTF-8 text", "Save it as UTF-8.") from None
    labels = [line.strip() for line in text.strip().splitlines()]
    if not text.strip() or "" in labels:
        raise DataError(f"{path}: has an empty line where a label should be", "Write one label a line.")
    double = {label for label in labels if labels.count(label) > 1}
    if double:
        raise DataError(f"{path}: names {min(double)!r} twice", "Each class needs a name of its own.")
    return labels
