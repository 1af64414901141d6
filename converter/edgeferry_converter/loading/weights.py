"""Weights in HDF5 (``.weights.h5``, Keras 2's ``save_weights``, whole models) put into what a builder returns."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.errors import ModelError
from edgeferry_converter.loading.keras_files import AGAIN
from edgeferry_converter.loading.keras_source import KerasSource, check_finite
from edgeferry_converter.loading.restoring import Entry, match, mismatch
from edgeferry_converter.loading.source import LoadOptions, first_line, hash_files
from edgeferry_converter.loading.user_code import build_model

__all__ = ["load_weights"]

MEMBER = "model.weights.h5"


def load_weights(path: Path, options: LoadOptions) -> KerasSource:
    """Build the architecture, then restore every variable from an HDF5 file or a ``.keras`` zip.

    Raises:
        OptionError: there is no builder of that name.
        ModelError: no builder is given, or it fails, or the file is damaged or does not feed every variable.
    """
    with tempfile.TemporaryDirectory(prefix="edgeferry-") as name:
        folder = Path(name)
        file = _extract(path, folder) if zipfile.is_zipfile(path) else path
        entries, legacy = _entries(file, path)
        if options.builder is None:
            raise ModelError(
                f"{path}: no --builder is given, and weights alone do not say what the model is",
                "Say what builds the model: --builder module:function.",
            )
        model = build_model(options.builder)
        # Keras chooses its reader by the ending: the flat lists of Keras 2, or the tree of Keras 3.
        ending = ".h5" if legacy else ".weights.h5"

        def restore(numbers: Sequence[int]) -> None:
            numbered = folder / f"numbered{ending}"
            _write_numbered(file, numbered, dict(zip((e.name for e in entries), numbers, strict=True)))
            model.load_weights(numbered, skip_mismatch=True)

        try:
            matching = match(model, entries, restore)
        except Exception as error:  # Keras raises whatever the layer at fault raises
            raise mismatch(model, entries, path, first_line(error)) from error
        matching.check(path, options.strict)
        _restore(model, Path(shutil.copyfile(file, folder / f"weights{ending}")))
    check_finite(model, path)
    return KerasSource(model, path, "weights", hash_files([("", path)]), options)


def _restore(model: Any, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the matching has been checked
        model.load_weights(file)


def _extract(path: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive:
            return Path(archive.extract(MEMBER, folder))
    except KeyError:
        raise ModelError(f"{path}: is a zip without {MEMBER}, so no Keras model", "Save it again.") from None
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError) as error:
        raise ModelError(f"{path}: the file is damaged: {error}", AGAIN) from None


def _entries(file: Path, path: Path) -> tuple[list[Entry], bool]:
    """Every array of numbers, and whether Keras 2's reader is needed."""
    import h5py

    found: list[Entry] = []

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.is_virtual or item.external:
            raise ModelError(f"{path}: {name} lies in another file", "Save the weights into one file.")
        if item.dtype.kind in "fiu":
            item[()]  # a truncated file fails here
            found.append(Entry(name, tuple(item.shape)))

    try:
        with h5py.File(file, "r") as opened:
            opened.visititems(visit)
            legacy = "layer_names" in opened.attrs or "model_weights" in opened
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: the HDF5 file is damaged: {error}", AGAIN) from None
    if not found:
        raise ModelError(f"{path}: holds no arrays of numbers, so no weights", "Save the weights again.")
    if legacy:
        # A whole model may hold its optimizer beside the weights; Keras does not look at it.
        found = [e for e in found if not e.name.startswith("optimizer_weights/")]
    return found, legacy


def _write_numbered(file: Path, copy: Path, numbers: dict[str, int]) -> None:
    """The same groups and attributes, every array filled with its number."""
    import h5py

    with h5py.File(file, "r") as old, h5py.File(copy, "w") as new:
        new.attrs.update(old.attrs)

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Group):
                made = new.require_group(name)
            elif name in numbers:
                made = new.create_dataset(name, data=np.full(item.shape, numbers[name], item.dtype))
            else:
                made = new.create_dataset(name, data=item[()])
            made.attrs.update(item.attrs)

        old.visititems(visit)
