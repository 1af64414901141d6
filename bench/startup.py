"""How long the commands take to say anything, against Python with argparse and json alone.

make bench-startup
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from table import Row, report

BIN = Path(sys.executable).parent
BASE = [sys.executable, "-c", "import argparse, json"]
COMMANDS = {
    "edgeferry --help": ([BIN / "edgeferry", "--help"], 3.0),
    "edgeferry push --help": ([BIN / "edgeferry", "push", "--help"], 3.0),
    "edgeferry convert --help": ([BIN / "edgeferry", "convert", "--help"], None),
    "edgeferry-run --help": ([BIN / "edgeferry-run", "--help"], None),
}
ROUNDS = 25


def seconds(argv: list) -> float:
    started = time.perf_counter()
    subprocess.run([str(word) for word in argv], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    rows = []
    for name, (argv, goal) in COMMANDS.items():
        seconds(argv), seconds(BASE)
        ratios = [seconds(argv) / seconds(BASE) for _ in range(ROUNDS)]
        rows.append(Row(f"{name} / python -c 'import argparse, json'", ratios, "ratio", goal, "lower"))
    report("startup", rows)


if __name__ == "__main__":
    main()
