"""Pickles: refused, since reading one runs whatever it says, unless the user trusts it."""

from __future__ import annotations

import pickle
from pathlib import Path

from edgeferry_converter.errors import ModelError
from edgeferry_converter.loading.keras_source import KerasSource, check_finite
from edgeferry_converter.loading.source import LoadOptions, first_line, hash_files
from edgeferry_converter.loading.user_code import custom_objects

__all__ = ["load_pickle"]


def load_pickle(path: Path, options: LoadOptions) -> KerasSource:
    """Load a pickled keras.Model, with ``allow_unsafe`` only.

    Raises:
        ModelError: it is not allowed, is damaged, or holds something else.
    """
    import keras

    if not options.allow_unsafe:
        raise ModelError(
            f"{path}: is a pickle, which carries code that would run on this machine",
            "Save the model with model.save('model.keras'); or trust the file with --allow-unsafe.",
        )
    try:
        with keras.saving.custom_object_scope(custom_objects(options.custom_objects)), path.open("rb") as file:
            model = pickle.load(file)  # noqa: S301 - the user said so
    except Exception as error:  # a pickle can raise anything
        raise ModelError(f"{path}: the pickle cannot be read: {first_line(error)}", "Copy it again.") from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"{path}: holds a {type(model).__name__}, no keras.Model", "Save the model itself.")
    check_finite(model, path)
    return KerasSource(model, path, "pickle", hash_files([("", path)]), options)
