"""Run a command when a class comes into sight: three results in a row, then not again until it was gone.

python examples/react_when_seen.py pets.ferry /dev/video0 cat aplay miaow.wav
"""

from __future__ import annotations

import subprocess
import sys

from edgeferry_runtime import Pipeline

SURE = 0.6  # the least score that counts
IN_A_ROW = 3  # one wrong answer opens no door


def main(bundle: str, source: str, label: str, *command: str) -> None:
    streak = 0
    with Pipeline.open(source, bundle) as pipeline:
        for frame, result in pipeline:
            seen = any(best.label == label and best.score >= SURE for best in result.answer.classes)
            streak = streak + 1 if seen else 0
            if streak == IN_A_ROW:
                print(f"frame {frame.number}: {label}", flush=True)
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
