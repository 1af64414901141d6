"""For each minute, how many of each kind were in sight at once.

python examples/count_objects.py detector.ferry rtsp://camera/street
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from itertools import groupby

from edgeferry_runtime import Pipeline


def main(bundle: str, source: str) -> None:
    with Pipeline.open(source, bundle) as pipeline:
        results = (result for _, result in pipeline)
        for minute, group in groupby(results, lambda result: time.strftime("%H:%M", time.localtime(result.time))):
            most: Counter[str] = Counter()
            for result in group:
                most |= Counter(box.label or str(box.index) for box in result.answer.boxes)  # the larger of each
            print(minute, ", ".join(f"{count} {label}" for label, count in most.most_common()) or "-", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
