"""How old frames are when a slow model takes them up: a 30 fps source, an inference of 100 ms.

python bench/runtime_live.py MATERIAL FRAMES    the ages in milliseconds and the loop's summary, as JSON
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from edgeferry_runtime.model import Model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.sources import open_source
from runtime_material import Material

SOURCE = "synthetic:1280x720@30"
INVOKE = 0.1  # seconds


def main() -> None:
    material, frames = Material(Path(sys.argv[1])), int(sys.argv[2])
    started = 0
    with Model.open(str(material.bundle("letterbox")), threads=1) as model, open_source(SOURCE) as source:
        invoke = model.interpreter.invoke

        def padded() -> None:
            nonlocal started
            started = time.monotonic_ns()
            invoke()
            time.sleep(max(0.0, INVOKE - (time.monotonic_ns() - started) / 1e9))

        model.interpreter.invoke = padded
        pipeline = Pipeline(source, model, [], frames)
        # Measured here, not taken from the loop's word: the last invoke was this frame's.
        ages = [(started - frame.captured_ns) / 1e6 for frame, _ in pipeline]
    print(json.dumps({"ages": ages, "summary": pipeline.summary().to_json()}))


if __name__ == "__main__":
    main()
