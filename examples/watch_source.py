"""A camera (or a video, or a folder) to one line a frame, with the frame's age; results go to sinks as well.

python examples/watch_source.py digits.ferry /dev/video0
python examples/watch_source.py digits.ferry clip.mp4 jsonl:results.jsonl mqtt://broker/digits annotate:seen.avi
"""

from __future__ import annotations

import sys

from edgeferry_runtime import Pipeline


def main(bundle: str, source: str, *sinks: str) -> None:
    with Pipeline.open(source, bundle, sinks) as pipeline:
        for frame, result in pipeline:
            print(f"{frame.number:6} {result.age_us / 1000:7.2f} ms  {result.answer.headline()}")
        print(pipeline.summary().to_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
