"""The camera loop beside the bare interpreter and beside the loops people write: CPU, frames a second, age, start.

make bench-runtime    or bench/runtime.py --quick --only b,d for a first look
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runtime_material
from runtime_material import MEDIAPIPE, Material
from table import Row, report

HERE = Path(__file__).resolve().parent
RUN = Path(sys.executable).parent / "edgeferry-run"
COLD_FRAMES = 30  # enough for the loop to have found its shape when memory is read
OLD_FRAMES = {"float32": 300, "int8": 40}  # of the bare loop: that pair takes its time over int8
LIVE_FRAMES = 150
OVERHEAD = {  # cases of runtime_overhead.py: what they are, and the share of invoke's CPU time that is allowed
    "720p": ("raw 720p, letterbox", 0.07),
    "720p-fast": ("raw 720p, letterbox, bilinear-fast", 0.05),
    "ready": ("224x224 from the source", 0.01),
    "ready-rgb": ("224x224 from the source, in RGB", None),
    "1080p": ("raw 1080p, letterbox", None),
    "720p-jsonl": ("raw 720p, letterbox, results as JSONL", None),
}


# As on a device: bytecode is compiled once and kept.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Outcome:
    """What one process did.

    Attributes:
        fps: results a second from the first to the last: its start does not count.
        first: seconds from the process' start to its first line of output.
        cpu: CPU seconds a result, its start included.
        rss: peak of its resident set, MB.
        summary: what our own loop says of itself, empty for peers.
    """

    fps: float
    first: float
    cpu: float
    rss: float
    summary: dict[str, Any]

    @property
    def slowest(self) -> float:
        """The slowest stage's mean, seconds; a frame that waits between two stages is no work."""
        return max(stats["mean"] for name, stats in self.summary["stages_us"].items() if name != "wait") / 1e6


def outcome(argv: list, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run one contender, which prints one line of JSON a result."""
    with tempfile.TemporaryFile() as complaints:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=ENVIRONMENT | dict(environment or {}),
        )
        assert process.stdout is not None
        head = process.stdout.readline()
        first = time.perf_counter() - started
        rest = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # the one way to this child's memory alone
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaints.seek(0)
            sys.exit(f"{process.args} failed:\n{complaints.read().decode('utf-8', 'replace')[-2000:]}")
    lines = [json.loads(line) for line in (head + rest).splitlines()]
    times = [line["time"] for line in lines if "time" in line]
    return Outcome(
        fps=(len(times) - 1) / (times[-1] - times[0]),
        first=first,
        cpu=(usage.ru_utime + usage.ru_stime) / len(times),
        rss=usage.ru_maxrss / 1000 if sys.platform != "darwin" else usage.ru_maxrss / 1e6,
        summary=next((line["summary"] for line in lines if "summary" in line), {}),
    )


def in_turns(contenders: Mapping[str, Callable[[], Outcome]], rounds: int) -> list[dict[str, Outcome]]:
    """All of them once to warm up (the disk's cache, and what is measured at a first start), then in turns."""
    for run in contenders.values():
        run()
    return [{name: run() for name, run in contenders.items()} for _ in range(rounds)]


def ours(bundle: Path, video: Path, *options: object, command: tuple = (RUN,), **environment: str) -> Outcome:
    argv = [*command, "run", "--bundle", bundle, "--source", video, "--sink", "jsonl:-", "--json", *options]
    return outcome(argv, environment)


def peer(python: Path | str, script: str, *arguments: object) -> Outcome:
    return outcome([python, HERE / f"runtime_{script}.py", *arguments])


def child(script: str, *arguments: object) -> str:
    """What a script of ours prints; in a process of its own, which keeps this one small (see ``outcome``)."""
    argv = [sys.executable, HERE / f"runtime_{script}.py", *map(str, arguments)]
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout


def overhead(material: Material, rounds: int) -> list[Row]:
    """a: what the loop costs beside invoke."""
    samples = json.loads(child("overhead", material.folder, rounds))
    rows = [
        Row(f"CPU beside invoke, share of it: {OVERHEAD[case][0]}", shares, "ratio", OVERHEAD[case][1], "lower")
        for case, shares in samples.items()
    ]
    for case, row in zip(samples, rows, strict=True):
        if row.met is False:
            print(f"\nwhere the time goes, {row.name}:\n{child('overhead', material.folder, rounds, case)}")
    return rows


def throughput(material: Material, rounds: int) -> list[Row]:
    """b: 720p MJPEG to results."""
    video, frames, cores = material.video, runtime_material.FRAMES, os.cpu_count()
    int8, uint8 = material.tflite("stretch"), material.tflite("uint8")
    mediapipe, pillow = runtime_material.mediapipe_python(), runtime_material.pil_python()
    bundle, options = material.bundle("stretch"), ("--variant", "int8")
    runs = in_turns(
        {
            "ours": lambda: ours(bundle, video, *options),
            "naive": lambda: peer(sys.executable, "naive", int8, video, frames, 1),
            "ours, 1 thread": lambda: ours(bundle, video, *options, "--threads", 1),
            "mediapipe": lambda: peer(mediapipe, "mediapipe", uint8, video, frames),
            "naive, all cores": lambda: peer(sys.executable, "naive", int8, video, frames, cores),
            "pil": lambda: peer(pillow, "pil", uint8, video, frames),
        },
        rounds,
    )

    def row(name: str, mine: str, theirs: str, goal: float | None, of: str = "fps") -> Row:
        ratios = [getattr(run[mine], of) / getattr(run[theirs], of) for run in runs]
        return Row(name, ratios, "ratio", goal, "higher" if of == "fps" else "lower")

    bound = [run["ours"].fps * run["ours"].slowest for run in runs]
    rows = [
        row("720p MJPEG, frames/s: ours / naive LiteRT loop", "ours", "naive", 2.0),
        row(f"720p MJPEG, frames/s: ours / MediaPipe {MEDIAPIPE} LIVE_STREAM", "ours", "mediapipe", 2.2),
        row("720p MJPEG, frames/s: ours / Pillow loop as pycoral's", "ours", "pil", 4.0),
        Row("720p MJPEG, frames/s: ours / (1 / slowest stage)", bound, "ratio", 0.9, "higher"),
        row("720p MJPEG, frames/s: ours / naive loop with all cores", "ours", "naive, all cores", None),
        row("720p MJPEG, frames/s: ours / ours with --threads 1", "ours", "ours, 1 thread", None),
        row("720p MJPEG, CPU a frame: ours / naive LiteRT loop", "ours", "naive", None, "cpu"),
        row(f"720p MJPEG, CPU a frame: ours / MediaPipe {MEDIAPIPE}", "ours", "mediapipe", None, "cpu"),
        *(
            Row(f"720p MJPEG: {name}", [run[name].fps for run in runs], "frames/s", None, "higher")
            for name in runs[0]
        ),
    ]
    if any(row.met is False for row in rows):
        show_stages("720p MJPEG", runs[-1]["ours"].summary)
    return rows


def live(material: Material, rounds: int) -> list[Row]:
    """c: how old frames are at a slow inference."""
    runs = [json.loads(child("live", material.folder, LIVE_FRAMES)) for _ in range(rounds)]
    rows = [
        Row(f"30 fps source, 100 ms inference: age at invoke, {name}", values, "ms", goal, "lower")
        for name, values, goal in (
            ("median", [statistics.median(run["ages"]) for run in runs], 40.0),
            ("largest", [max(run["ages"]) for run in runs], 100.0),
        )
    ]
    if any(row.met is False for row in rows):
        show_stages("30 fps source", runs[-1]["summary"])
    return rows


def cold(material: Material, rounds: int) -> list[Row]:
    """d: from the process' start to its first result."""
    video, bundle = material.video, material.bundle("stretch")
    python = runtime_material.mediapipe_python()
    options = ("--variant", "int8", "--threads", 1)
    runs = in_turns(
        {
            "ours": lambda: ours(bundle, video, *options, "--frames", COLD_FRAMES),
            "bare": lambda: peer(sys.executable, "naive", material.tflite("stretch"), video, COLD_FRAMES, 1),
            "mediapipe": lambda: peer(python, "mediapipe", material.tflite("uint8"), video, COLD_FRAMES),
        },
        rounds,
    )

    def row(name: str, theirs: str, of: str, goal: float | None) -> Row:
        ratios = [getattr(run["ours"], of) / getattr(run[theirs], of) for run in runs]
        return Row(name, ratios, "ratio", goal, "lower")

    rows = [
        row("cold start to first result: ours / bare LiteRT + cv2 script", "bare", "first", 1.15),
        row(f"cold start to first result: ours / MediaPipe {MEDIAPIPE}", "mediapipe", "first", 0.25),
        row("peak memory: ours / bare LiteRT + cv2 script", "bare", "rss", 1.2),
        row(f"peak memory: ours / MediaPipe {MEDIAPIPE}", "mediapipe", "rss", None),
        *(Row(f"cold start: {name}", [run[name].first for run in runs], "s", None, "lower") for name in runs[0]),
        *(Row(f"peak memory: {name}", [run[name].rss for run in runs], "MB", None, "lower") for name in runs[0]),
    ]
    if any(row.met is False for row in rows):
        show_imports([RUN, "run", "--bundle", bundle, "--source", video, *options, "--frames", 1])
    return rows


def old(material: Material, rounds: int) -> list[Row]:
    """e: the oldest pair that is supported."""
    python = runtime_material.old_python()
    if python is None:
        print("Python 3.7: no row, there is neither ~/.pyenv/versions/3.7* nor a python3.7 on PATH")
        return []
    rows, video, bundle = [], material.video, material.bundle("stretch")
    command, runtime = (python, "-m", "edgeferry_runtime"), str(runtime_material.REPOSITORY / "runtime")
    for scheme, frames in OLD_FRAMES.items():
        options = ("--variant", scheme, "--threads", 1)
        tflite = material.tflite("stretch", scheme)
        runs = in_turns(
            {
                "ours": lambda o=options: ours(bundle, video, *o, command=command, PYTHONPATH=runtime),
                "bare": lambda t=tflite, f=frames: peer(python, "naive", t, video, f, 1),
            },
            rounds,
        )
        name = f"Python 3.7 + tflite-runtime {runtime_material.TFLITE_RUNTIME}, {scheme}, frames/s"
        ratios = [run["ours"].fps / run["bare"].fps for run in runs]
        rows.append(Row(f"{name}: ours / that pair's bare loop", ratios, "ratio", 1.0, "higher"))
        if rows[-1].met is False:
            show_stages(name, runs[-1]["ours"].summary)
    return rows


def show_stages(what: str, summary: dict[str, Any]) -> None:
    print(f"\nwhere the time goes, {what}, microseconds:")
    for name, stats in summary["stages_us"].items():
        print(f"  {name:12}" + "".join(f"{key:>6} {value:9.1f}" for key, value in stats.items()))


def show_imports(argv: list) -> None:
    """The costliest imports of a start, their own parts included."""
    words = [sys.executable, "-X", "importtime", *map(str, argv)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stderr.splitlines()
    parts = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    times = sorted(((int(p[1]), p[2].strip()) for p in parts if p[1].strip().isdigit()), reverse=True)
    print("\nwhere the time goes, cold start: imports, milliseconds with what they import:")
    for microseconds, module in times[:15]:
        print(f"  {microseconds / 1000:8.1f}  {module}")


GROUPS = {  # letter: (what is measured, rounds, rounds of --quick)
    "a": (overhead, 21, 4),
    "b": (throughput, 9, 2),
    "c": (live, 3, 1),
    "d": (cold, 21, 5),
    "e": (old, 7, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument(
        "--only",
        default=",".join(GROUPS),
        metavar="a,b",
        help="; ".join(
            f"{letter}: {function.__doc__.rstrip('.').split(': ')[1]}" for letter, (function, *_) in GROUPS.items()
        ),
    )
    arguments = parser.parse_args()
    letters = arguments.only.split(",")
    if not set(letters) <= set(GROUPS):
        parser.error(f"--only takes letters of {','.join(GROUPS)}")
    material, rows = runtime_material.material(), []
    for letter in letters:
        measure, full, quick = GROUPS[letter]
        print(f"{measure.__doc__} ...", file=sys.stderr)
        rows += measure(material, quick if arguments.quick else full)
    whole = not arguments.quick and len(letters) == len(GROUPS)
    report("runtime" if whole else "runtime_part", rows)


if __name__ == "__main__":
    main()
