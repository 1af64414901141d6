"""On which pictures two bundles differ: an old model and its successor, or two ways to quantise one.

python examples/compare_bundles.py old.ferry new.ferry pictures
"""

from __future__ import annotations

import sys

from edgeferry_runtime import Model
from edgeferry_runtime.sources import open_source


def main(old: str, new: str, folder: str) -> None:
    agreed = total = 0
    with Model.open(old, threshold=0) as a, Model.open(new, threshold=0) as b, open_source(folder) as source:
        while (frame := source.read()) is not None:
            answers = [model(frame.pixels, frame.color) for model in (a, b)]
            one, other = (answer.classes[0].label or answer.classes[0].index for answer in answers)
            if one != other:
                print(f"{frame.name}: {answers[0].headline()}, {answers[1].headline()}")
            agreed += one == other
            total += 1
    print(f"the same answer for {agreed} of {total} pictures")


if __name__ == "__main__":
    main(*sys.argv[1:])
