"""What a folder is a sweep of: trials of another model, other data or another space cannot be compared with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeferry_converter.errors import ModelNotFoundError, OptionError
from edgeferry_converter.profile import load_profile
from edgeferry_converter.request import ConversionRequest
from edgeferry_converter.sweep_space import Space

__all__ = ["check_same", "sweep_identity"]

IDENTITY = "sweep.json"


def sweep_identity(
    wanted: ConversionRequest, space: Space, measure_on: str | None, zipped: bool
) -> dict[str, Any]:
    """What a folder is a sweep of, by the option that says it; trials of anything else cannot be compared.

    Raises:
        ProfileError: there is no such profile. ModelNotFoundError: there is no such model.
        OptionError: no training data.
    """
    if not wanted.train_data:
        raise OptionError("every recipe trains, and nothing says on what", "Add --train-data.")
    if not wanted.model.exists():
        raise ModelNotFoundError(f"{wanted.model} does not exist", "Name the file of a Keras model.")
    load = wanted.load
    return {
        "MODEL": _content(wanted.model),
        "--profile": load_profile(wanted.profile).values(),
        "--data": _content(wanted.data),
        "--eval-data": _content(wanted.eval_data),
        "--train-data": _content(wanted.train_data),
        "--labels": _content(wanted.labels),
        "--preprocess": wanted.preprocess,
        "--task": wanted.task,
        "--keep-float": wanted.keep_float,
        "--seed": wanted.seed,
        "--builder": load.builder,
        "--signature": load.signature,
        "--input-shape": load.input_shapes,
        "--space": space.values(),
        "--measure-on": measure_on,
        "--bytes": "zipped" if zipped else "file",
    }


def _content(given: Path | str | None) -> str | None:
    """A file by its name and contents, a folder by the names and sizes in it, anything else as it was said."""
    if given is None:
        return None
    path = Path(given)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n".encode())
    elif path.is_file():
        with path.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    else:
        return str(given)
    return f"{path.name} ({digest.hexdigest()[:16]})"


def check_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what a folder is a sweep of, or compare with what it says.

    Args:
        identity: the option that says it -> what it says, as plain values.

    Raises:
        OptionError: the folder holds a sweep of something else; names each difference.
    """
    path = folder / IDENTITY
    identity = json.loads(json.dumps(identity))
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        raise OptionError(f"{path} is damaged", "Give --output another folder.") from None
    other = [name for name in identity if before.get(name) != identity[name]]
    if other:
        lines = [f"  {name} {_difference(before.get(name), identity[name])}" for name in other]
        raise OptionError(
            "\n".join([f"{folder} holds a sweep of something else:", *lines]),
            "Say the same again to go on with it, or give --output another folder.",
        )


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}" for key in keys)
    return f"was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
