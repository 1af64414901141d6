"""Keras models in ``.keras`` and ``.h5`` files, written by Keras 3 or Keras 2."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeferry_converter.errors import ModelError, ModelNotFoundError

__all__ = ["LoadedModel", "load_model"]

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIP_SIGNATURE = b"PK\x03\x04"


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        keras: the keras.Model, not compiled.
        path: the file.
        format: "keras" or "h5".
        sha256: of the file, in hex.
    """

    keras: Any
    path: Path
    format: str
    sha256: str

    def bare(self) -> LoadedModel:
        """The same layers with one bare tensor in and out; files of Keras 2 often wrap them in lists and dicts."""
        import keras

        first, last = self.keras.inputs[0], self.keras.outputs[0]
        return replace(self, keras=keras.Model(first, last, name=self.keras.name))


def load_model(path: Path) -> LoadedModel:
    """Load a model without running code that the file carries.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelError: it is no Keras model, is damaged, or carries code.
    """
    file_format = _recognise(path)
    model = _load(path)
    _check_variables(model, path)
    return LoadedModel(model, path, file_format, hashlib.sha256(path.read_bytes()).hexdigest())


def _recognise(path: Path) -> str:
    """The format, told from the file's first bytes and not from its name."""
    if path.is_dir():
        raise ModelError(
            f"{path}: is a folder, not a Keras model",
            "Give a .keras or .h5 file: model.save('model.keras') in Python writes one.",
        )
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such model", "Check the path.")
    with path.open("rb") as file:
        start = file.read(8)
    if start == HDF5_SIGNATURE:
        _check_hdf5(path)
        return "h5"
    if start.startswith(ZIP_SIGNATURE):
        _check_keras_zip(path)
        return "keras"
    raise ModelError(
        f"{path}: is no Keras model: neither the HDF5 file nor the zip that .h5 and .keras are",
        "Save the model again with model.save('model.keras').",
    )


def _check_hdf5(path: Path) -> None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
    except OSError as error:
        raise ModelError(f"{path}: the HDF5 file is damaged: {error}", "Copy or save the model again.") from None
    if config is None:
        raise ModelError(
            f"{path}: is an HDF5 file without a model's architecture (weights alone, perhaps)",
            "Save the whole model: model.save('model.keras').",
        )
    _refuse_code(config, path)


def _check_keras_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json")
    except KeyError:
        raise ModelError(f"{path}: is a zip without config.json, so no Keras model", "Save it again.") from None
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ModelError(f"{path}: the file is damaged: {error}", "Copy or save the model again.") from None
    _refuse_code(config, path)


def _refuse_code(config: str | bytes, path: Path) -> None:
    """Lambda layers carry byte code that would run on loading."""
    try:
        parsed = json.loads(config)
    except ValueError as error:
        raise ModelError(f"{path}: the model's configuration is damaged: {error}", "Save it again.") from None
    if "Lambda" in _class_names(parsed):
        raise ModelError(
            f"{path}: the model has a Lambda layer, which carries code that would run on this machine",
            "Replace it by a layer of Keras' own (Rescaling, for example) and save the model again.",
        )


def _class_names(config: Any) -> set[str]:
    names: set[str] = set()
    pending = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if isinstance(part.get("class_name"), str):
                names.add(part["class_name"])
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return names


def _load(path: Path) -> Any:
    import keras

    def without_groups(base: type) -> type:
        # Keras 2 wrote `groups` into the configuration of layers that never took it.
        def from_config(cls: Any, config: dict[str, Any]) -> Any:
            return cls(**{key: value for key, value in config.items() if key != "groups"})

        return type(base.__name__, (base,), {"from_config": classmethod(from_config)})

    layers = (keras.layers.DepthwiseConv2D, keras.layers.Conv2DTranspose)
    custom = {layer.__name__: without_groups(layer) for layer in layers}
    try:
        # Keras chooses its reader by the ending; the content has been recognised already.
        return keras.models.load_model(path, custom_objects=custom, compile=False, safe_mode=True)
    except Exception as error:
        # Keras raises whatever the layer at fault raises; all of it means that the model did not load.
        raise ModelError(
            f"{path}: Keras cannot load it: {_first_line(error)}",
            "If it has layers of your own, save it with Keras' own layers; if it is damaged, copy it again.",
        ) from error


def _check_variables(model: Any, path: Path) -> None:
    import numpy as np

    bad = [w.path for w in model.weights if not np.isfinite(np.asarray(w)).all()]
    if bad:
        raise ModelError(
            f"{path}: weights hold NaN or infinity: {', '.join(bad[:3])}",
            "The training diverged; use an earlier checkpoint.",
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
