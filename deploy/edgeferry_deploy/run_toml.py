"""run.toml on the workstation: compiled to the run.json a board reads, or written from one."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.manifest import Manifest
from edgeferry_runtime.run_config import MAX_BYTES, SCHEMA_VERSION, RunConfig, from_table

__all__ = ["compile_toml", "default_config", "to_toml"]


def compile_toml(source: Path | str | bytes) -> RunConfig:
    """The config in a TOML file; it has run.json's keys, and may leave schema_version out.

    Args:
        source: path of a file, or the content of one.

    Raises:
        UsageError: it cannot be read, is no TOML, or no config; every problem is named with file and key.
    """
    name = "run.toml" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name}: is longer than {MAX_BYTES} bytes", "Is it the right file?")
    try:
        table = tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except (ValueError, RecursionError) as error:  # of the encoding, and of TOML
        raise UsageError(f"{name}: is no TOML: {error}", "Correct it; docs/run-json.md has examples.") from None
    return from_table({"schema_version": SCHEMA_VERSION, **table}, name)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}", "Check the path.") from None


def to_toml(config: RunConfig) -> str:
    """The TOML that compiles to a config; the same for equal configs."""
    content = config.to_dict()
    del content["schema_version"]
    return "\n".join(_lines(content)).lstrip("\n") + "\n"


def _lines(content: dict[str, Any], path: str = "") -> Iterator[str]:
    """A table: its values first, then the tables in it under their own headings."""
    for key, value in content.items():
        if not isinstance(value, dict):
            yield f"{key} = {_value(value)}"
    for key, value in content.items():
        if isinstance(value, dict):
            if not value or not all(isinstance(part, dict) for part in value.values()):
                yield from ("", f"[{path}{key}]")
            yield from _lines(value, f"{path}{key}.")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + "".join(f"\n    {_value(item)}," for item in value) + "\n]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, float):
        text = repr(value)
        return text if re.search(r"[.e]", text) else text + ".0"
    # JSON's strings, integers and booleans are TOML's, once no character is written as two surrogates.
    return json.dumps(value, ensure_ascii=False)


def default_config(manifest: Manifest) -> RunConfig | None:
    """What a board runs when nobody says: the camera of the profile the bundle was made with, and no sinks.

    Returns:
        None where the profile names no camera, or the model takes tensors instead of frames.

    Raises:
        UsageError: the profile's camera is none that can be opened.
    """
    values = manifest.profile.get("values")
    camera = values.get("camera") if isinstance(values, dict) else None
    if camera is None or manifest.preprocessing is None:
        return None
    name = f"profile of bundle {manifest.name}"
    fields = Fields(camera, "camera")
    source = fields.text("source")
    size = [fields.integer(key, 0, minimum=0) for key in ("width", "height")]
    fps = fields.number("fps", 0, minimum=0)
    if fields.problems:  # keys nobody asked for are the profile's own business
        remedy = "Convert the model again with a profile that is sound, or say what to run: --config run.toml"
        raise UsageError("\n  ".join(f"{name}: {problem}" for problem in fields.problems), remedy)
    match = re.fullmatch(r"camera:(\d+)", source)
    source = f"/dev/video{match.group(1)}" if match else source
    if re.fullmatch(r"picamera2?:\d*|/dev/video\d+", source):
        options = [f"size={size[0]}x{size[1]}"] * all(size) + [f"fps={fps:g}"] * (fps > 0)
        source += "?" * bool(options) + "&".join(options)
    return from_table({"schema_version": SCHEMA_VERSION, "source": source}, name)
