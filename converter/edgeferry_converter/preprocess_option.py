"""What ``--preprocess`` means: a preset's name or a TOML or JSON file, and after it single keys.

--preprocess tf        --preprocess camera.toml        --preprocess tf,geometry=letterbox,decode=reduced
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from edgeferry_runtime.fields import Fields, did_you_mean
from edgeferry_runtime.preprocessing import PRESETS, Preprocessing

from edgeferry_converter.errors import OptionError

__all__ = ["read_preprocessing"]

# Without a word from the user the pixels reach the model as they are: it is what Keras' own
# image_dataset_from_directory hands to a model in training, which then starts with a Rescaling layer.
DEFAULT_PRESET = "raw"


def read_preprocessing(option: str | None, height: int | None, width: int | None, channels: int) -> Preprocessing:
    """The preprocessing to declare in the bundle.

    Args:
        option: a preset's name or a file, then ",key=value" for each key that differs from it; the name may be
            left out.  None for the default preset.
        height, width: of the model's input; None where the model takes any size.
        channels: of the model's input, 1 or 3.

    Raises:
        OptionError: no such preset or file, or what it declares breaks the contract; every problem listed.
    """
    name, keys = _split(option or DEFAULT_PRESET)
    if name in PRESETS:
        where, declared = f"preset {name}", {"preset": name}
    else:
        where, declared = name, _read_file(name)
    declared |= keys
    preset = declared.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise OptionError(
            f"{where}: {preset!r} is no preset{did_you_mean(str(preset), list(PRESETS))}",
            f"Presets are {', '.join(PRESETS)}.",
        )
    values: dict[str, Any] = {
        k: list(v) if isinstance(v, tuple) else v for k, v in PRESETS.get(preset or "", {}).items()
    }
    if channels == 1:
        values["color"] = "gray"
    values |= {key: size for key, size in (("width", width), ("height", height)) if size is not None}
    values |= declared
    fields = Fields(values)
    result = Preprocessing.read(fields)
    problems = fields.finish()
    for key, size in (("width", width), ("height", height)):
        if size is not None and values.get(key) != size:
            problems.append(f"{key}: is {values.get(key)}, the model's input is {size}")
    if result.channels != channels:
        problems.append(
            f"color: {result.color!r} has {result.channels} channels, the model's input has {channels}"
        )
    if problems:
        raise OptionError(
            "\n    ".join([f"{where}: the preprocessing cannot be used:", *problems]),
            "The keys are explained in docs/preprocessing.md.",
        )
    return result


def _split(option: str) -> tuple[str, dict[str, Any]]:
    """The preset's or file's name, and the keys after it.

    Raises:
        OptionError: something between two commas is no key=value.
    """
    # A comma may stand in a file's name, and between brackets: mean=[1, 2, 3].
    if Path(option).is_file():
        return option, {}
    first, *rest = re.split(r",(?![^\[]*\])", option)
    parts = [first, *rest] if "=" in first else rest
    keys = {}
    for part in parts:
        key, equals, text = part.partition("=")
        if not equals:
            raise OptionError(
                f"--preprocess {option!r}: {part!r} is no key=value",
                "Write a preset or a file, then for example ,geometry=letterbox,decode=reduced",
            )
        keys[key.strip()] = _value(text.strip())
    return DEFAULT_PRESET if "=" in first else first, keys


def _value(text: str) -> Any:
    """A value as TOML has it; a bare word is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read_file(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        raise OptionError(
            f"--preprocess {name!r} is neither a preset nor a file{did_you_mean(name, list(PRESETS))}",
            f"Presets are {', '.join(PRESETS)}.",
        )
    try:
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{path}: cannot be read: {error}", "Write it as TOML, or as JSON with the ending .json."
        ) from None
    if not isinstance(value, dict):
        raise OptionError(f"{path}: must hold keys and values", "The keys are explained in docs/preprocessing.md.")
    return value
