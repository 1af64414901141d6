"""The process of a trial: reads its job, converts, and writes how that ended; `python -m` runs it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(folder: Path) -> int:
    """Carry out the job in a folder.

    Returns:
        0 when its result says how it ended.
    """
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    from edgeferry_runtime.errors import EdgeferryError

    from edgeferry_converter.sweep_trial import JOB, RESULT

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    reason = remedy = ""
    began = time.monotonic()
    try:
        _convert(job, folder)
    except EdgeferryError as error:
        reason, remedy = error.message, error.remedy
    except Exception as error:  # a fault of TensorFlow, the data's code or ours: the search goes on
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    part = folder / f"{RESULT}.part"
    found = {"reason": reason, "remedy": remedy, "seconds": time.monotonic() - began}
    part.write_text(json.dumps(found) + "\n", encoding="utf-8")
    part.replace(folder / RESULT)
    return 0


def _convert(job: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from edgeferry_converter.convert import convert
    from edgeferry_converter.loading.source import LoadOptions
    from edgeferry_converter.recipe import load_recipe
    from edgeferry_converter.request import ConversionRequest
    from edgeferry_converter.sweep_trial import RECIPE

    options = job["options"]
    shapes = tuple((name, tuple(sizes)) for name, sizes in options["load"].pop("input_shapes"))
    recipe = load_recipe(str(folder / RECIPE)) if (folder / RECIPE).exists() else None
    values = {
        **options,
        "model": Path(options["model"]),
        "labels": Path(options["labels"]) if options["labels"] else None,
        "schemes": tuple(options["schemes"]),
        "load": LoadOptions(**options["load"], input_shapes=shapes),
        "output": folder / f"{job['name']}.ferry",
        "recipe": recipe,
    }
    convert(ConversionRequest(**values), Console(file=sys.stderr, force_terminal=False))


def _end_with_the_parent() -> None:
    """Standard input ends when the process that holds its other side does."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
