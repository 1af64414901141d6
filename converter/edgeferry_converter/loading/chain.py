"""Any model: recognised by its content, read by whatever can be meant, and every failure remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeferry_converter.errors import ModelError, ModelNotFoundError
from edgeferry_converter.loading.checkpoint import checkpoint_prefix, load_checkpoint
from edgeferry_converter.loading.keras_files import load_h5, load_keras, starts_as
from edgeferry_converter.loading.pickled import load_pickle
from edgeferry_converter.loading.saved_model import load_saved_model
from edgeferry_converter.loading.source import Attempt, LoadOptions, NotLoadedError, SourceModel
from edgeferry_converter.loading.tflite import load_tflite
from edgeferry_converter.loading.weights import load_weights

__all__ = ["load_source"]

Loader = tuple[str, Callable[[Path, LoadOptions], SourceModel]]

DEFAULTS = LoadOptions()
KERAS_3 = ("a .keras file", load_keras)
HDF5 = ("a Keras .h5 file", load_h5)
WEIGHTS = ("weights for the builder's model", load_weights)
CHECKPOINT = ("a tf.train.Checkpoint", load_checkpoint)
SAVED_MODEL = "a SavedModel"
TFLITE = ("a .tflite file", load_tflite)
PICKLE = ("a pickle", load_pickle)


def load_source(path: Path, options: LoadOptions = DEFAULTS, listing: bool = False) -> SourceModel:
    """Load a model.

    Args:
        path: a .keras, .h5, .weights.h5 or .tflite file, a SavedModel folder, or a checkpoint's prefix.
        options: what the file does not say itself.
        listing: only to look at: several signatures, none of them chosen, are no error.

    Raises:
        ModelNotFoundError: there is no such file.
        OptionError: an option names something that does not exist, or is missing.
        NotLoadedError: nothing could read it; every attempt and its reason are in the message.
        ModelError: it is nothing this knows.
    """
    attempts: list[Attempt] = []
    errors: list[ModelError] = []
    for name, load in _loaders(path, options, listing):
        try:
            source = load(path, options)
        except ModelError as error:
            attempts.append(Attempt(name, error.message.removeprefix(f"{path}: ")))
            errors.append(error)
            continue
        source.attempts = tuple(attempts)
        return source
    raise _not_loaded(path, tuple(attempts), errors) from errors[0]


def _not_loaded(path: Path, attempts: tuple[Attempt, ...], errors: list[ModelError]) -> NotLoadedError:
    remedy = " ".join(dict.fromkeys(error.remedy for error in errors))
    if len(attempts) == 1:
        (attempt,) = attempts
        return NotLoadedError(f"{path}: {attempt.reason} (tried as {attempt.loader})", remedy, attempts)
    lines = [f"  as {attempt.loader}: {attempt.reason}" for attempt in attempts]
    return NotLoadedError("\n".join([f"{path}: cannot be loaded", *lines]), remedy, attempts)


def _loaders(path: Path, options: LoadOptions, listing: bool) -> list[Loader]:
    """What the path may be, the likeliest first.

    Raises:
        ModelNotFoundError: there is nothing.
        ModelError: it is nothing this knows.
    """
    if path.is_dir():
        return _folder_loaders(path, options, listing)
    if checkpoint_prefix(path) is not None:
        return [CHECKPOINT]
    kind = starts_as(path)
    # A builder that does not fit is an error, never a reason to take the file's own architecture instead.
    if kind in ("h5", "keras") and options.builder is not None:
        return [WEIGHTS]
    if kind == "h5":
        return [HDF5, WEIGHTS]
    if kind == "keras":
        return [KERAS_3]
    if kind == "tflite":
        return [TFLITE]
    if kind == "pickle":
        return [PICKLE]
    if path.suffix == ".index" or ".data-" in path.name:
        raise ModelNotFoundError(
            f"{path}: is one half of a checkpoint, the other is not there",
            "Copy the .index and all .data files into one folder.",
        )
    raise ModelError(
        f"{path}: is no Keras model: neither the HDF5 file nor the zip that .h5 and .keras are,"
        " no .tflite file and no checkpoint",
        "Save the model again with model.save('model.keras').",
    )


def _folder_loaders(path: Path, options: LoadOptions, listing: bool) -> list[Loader]:
    is_saved_model = (path / "saved_model.pb").is_file()
    if checkpoint_prefix(path) is not None and (options.builder is not None or not is_saved_model):
        return [CHECKPOINT]
    if is_saved_model:
        return [(SAVED_MODEL, lambda path, options: load_saved_model(path, options, listing))]
    raise ModelError(
        f"{path}: is a folder, not a Keras model: it holds neither saved_model.pb nor a checkpoint",
        "Give a .keras or .h5 file: model.save('model.keras') in Python writes one.",
    )
