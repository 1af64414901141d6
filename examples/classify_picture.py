"""One picture to one answer.

python examples/classify_picture.py digits.ferry picture.png
"""

from __future__ import annotations

import sys

from edgeferry_runtime import Model
from edgeferry_runtime.sources import open_source


def main(bundle: str, picture: str) -> None:
    with Model.open(bundle) as model, open_source(picture) as source:
        frame = source.read()
        for best in model(frame.pixels, frame.color).classes:
            print(f"{best.score:6.1%}  {best.label or best.index}")


if __name__ == "__main__":
    main(*sys.argv[1:])
