"""Keras models in ``.keras`` and ``.h5`` files, written by Keras 3 or Keras 2."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeferry_converter.errors import ModelError, ModelNotFoundError
from edgeferry_converter.loading.keras2 import to_keras3, untranslatable, uses_hard_sigmoid
from edgeferry_converter.loading.keras_source import KerasSource, check_finite
from edgeferry_converter.loading.source import LoadOptions, first_line, hash_files
from edgeferry_converter.loading.user_code import custom_objects

__all__ = ["LoadedModel", "load_h5", "load_keras", "load_model", "starts_as"]

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
ZIP_SIGNATURE = b"PK\x03\x04"
AGAIN = "Copy or save the model again."
EXPORT_IT = "Where the model was made, write a SavedModel (model.export('folder')) and give that folder."


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
    if path.is_dir():
        raise ModelError(
            f"{path}: is a folder, not a Keras model",
            "Give a .keras or .h5 file: model.save('model.keras') in Python writes one.",
        )
    kind = starts_as(path)
    if kind not in ("h5", "keras"):
        raise ModelError(
            f"{path}: is no Keras model: neither the HDF5 file nor the zip that .h5 and .keras are",
            "Save the model again with model.save('model.keras').",
        )
    source = (load_h5 if kind == "h5" else load_keras)(path, LoadOptions())
    return LoadedModel(source.keras, path, kind, source.sha256)


def starts_as(path: Path) -> str:
    """What a file's first bytes say, whatever its name: "h5", "keras", "tflite", "pickle" or "".

    Raises:
        ModelNotFoundError: there is no such file.
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such model", "Check the path.") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", "Check its permissions.") from None
    if start[4:8] == b"TFL3":
        return "tflite"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    return "h5" if start == HDF5_SIGNATURE else "keras" if start.startswith(ZIP_SIGNATURE) else ""


def load_h5(path: Path, options: LoadOptions) -> KerasSource:
    """Load a whole model from an HDF5 file.

    Raises:
        ModelError: it holds no model, is damaged, or carries code.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
            version = file.attrs.get("keras_version", "")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: the HDF5 file is damaged: {error}", AGAIN) from None
    if config is None:
        raise ModelError(
            f"{path}: is an HDF5 file without a model's architecture (weights alone, perhaps)",
            "Save the whole model: model.save('model.keras'); or say what builds it: --builder module:function.",
        )
    parsed = _checked_config(config, str(version), path, options)
    with tempfile.TemporaryDirectory(prefix="edgeferry-") as folder:
        readable = path
        if (translated := to_keras3(parsed)) != parsed or path.suffix not in (".h5", ".hdf5"):
            readable = Path(shutil.copyfile(path, Path(folder) / "model.h5"))
            with h5py.File(readable, "r+") as file:
                # Long configurations do not fit into an attribute's header unless it is written anew.
                del file.attrs["model_config"]
                file.attrs["model_config"] = json.dumps(translated)
        model = _load(readable, path, options)
    return _source(model, path, "h5", options)


def load_keras(path: Path, options: LoadOptions) -> KerasSource:
    """Load a model from the zip that Keras 3 and late Keras 2 write.

    Raises:
        ModelError: it is something else, is damaged, or carries code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json")
            version = json.loads(archive.read("metadata.json")).get("keras_version", "")
            broken = archive.testzip()
    except KeyError:
        raise ModelError(f"{path}: is a zip without config.json, so no Keras model", "Save it again.") from None
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: the file is damaged: {error}", AGAIN) from None
    if broken is not None:
        raise ModelError(f"{path}: the file is damaged: {broken} does not match its checksum", AGAIN)
    parsed = _checked_config(config, str(version), path, options)
    with tempfile.TemporaryDirectory(prefix="edgeferry-") as folder:
        readable = path
        if (translated := to_keras3(parsed)) != parsed or path.suffix != ".keras":
            readable = Path(folder) / "model.keras"
            _copy_with_config(path, readable, json.dumps(translated))
        model = _load(readable, path, options)
    return _source(model, path, "keras", options)


def _source(model: Any, path: Path, kind: str, options: LoadOptions) -> KerasSource:
    check_finite(model, path)
    return KerasSource(model, path, kind, hash_files([("", path)]), options)


def _copy_with_config(path: Path, copy: Path, config: str) -> None:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            new.writestr(name, config if name == "config.json" else old.read(name))


def _checked_config(config: str | bytes, version: str, path: Path, options: LoadOptions) -> Any:
    """The parsed configuration, when nothing in it is code and Keras 3 knows everything."""
    try:
        parsed = json.loads(config)
    except ValueError as error:
        raise ModelError(f"{path}: the model's configuration is damaged: {error}", "Save it again.") from None
    names = _class_names(parsed)
    if not options.allow_unsafe and names & {"Lambda", "__lambda__"}:
        what = "has a Lambda layer, which" if "Lambda" in names else "has a lambda function, which"
        raise ModelError(
            f"{path}: the model {what} carries code that would run on this machine",
            "Replace it by a layer of Keras' own (Rescaling, for example) and save the model again;"
            " or trust the file with --allow-unsafe.",
        )
    if unknown := untranslatable(parsed):
        raise ModelError(
            f"{path}: Keras 2 recorded operations that Keras 3 cannot load: {', '.join(unknown[:5])}",
            EXPORT_IT,
        )
    if not version.startswith("3") and uses_hard_sigmoid(parsed):
        raise ModelError(
            f"{path}: uses the hard_sigmoid of Keras 2; Keras 3 computes something else under that name", EXPORT_IT
        )
    return parsed


def _class_names(config: Any) -> set[str]:
    names: set[str] = set()
    pending = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if isinstance(part.get("class_name"), str):
                names.add(part["class_name"])
            elif _is_byte_code(part):
                names.add("__lambda__")
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return names


def _is_byte_code(part: dict[str, Any]) -> bool:
    """A lambda as an activation: Keras writes its code, defaults and closure without a class name."""
    value = part.get("value")
    if set(part) != {"value"} or not isinstance(value, list) or len(value) != 3:
        return False
    code, defaults, closure = value  # a call's argument `value` is recorded as [layer, 0, 0]
    return isinstance(code, str) and not isinstance(defaults, int) and not isinstance(closure, int)


def _load(readable: Path, path: Path, options: LoadOptions) -> Any:
    import keras

    own = custom_objects(options.custom_objects)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Keras, about the legacy formats that this is for
            # Keras chooses its reader by the ending; the content has been recognised already.
            return keras.models.load_model(
                readable, custom_objects=own, compile=False, safe_mode=not options.allow_unsafe
            )
    except Exception as error:
        # Keras raises whatever the layer at fault raises; all of it means that the model did not load.
        raise ModelError(
            f"{path}: Keras cannot load it: {_reason(error)}",
            "If it has layers of your own, name their module with --custom-objects, or give what builds it with"
            " --builder; if it is damaged, copy it again.",
        ) from error


def _reason(error: BaseException) -> str:
    """Keras prints a layer's whole configuration and puts the reason last."""
    nested = [line for line in str(error).splitlines() if line.startswith("Exception encountered: ")]
    return nested[-1].removeprefix("Exception encountered: ")[:400] if nested else first_line(error)
