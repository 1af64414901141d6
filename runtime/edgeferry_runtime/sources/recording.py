"""Recordings: a folder of frames, and beside them what was known about each.

FOLDER/results.jsonl        a JSON object a line: "frame" (its number), "captured_ns" (monotonic clock of the
                            machine that recorded), "color", and whatever the result holds besides
FOLDER/frames/000123.png    frame 123 as it was, without loss: .png for bgr and gray, .jpg for jpeg (the very
                            bytes), .npy for all other formats

A line is written after its frame, and a frame appears whole or not at all; what a power cut damages is passed over
when it is replayed.  So are lines without a frame: the results of a run serve with the few frames that were kept.
Where "captured_ns" is absent, "time" and "age_ms" tell when a frame was captured.
"""

from __future__ import annotations

import json
import os
from typing import Any, Iterator, Mapping, NamedTuple

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.pixels import FORMATS
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.sources.damage import damage
from edgeferry_runtime.sources.folder import load_picture

__all__ = ["LINES", "Entry", "RecordingWriter", "load_frame", "read_entries"]

LINES = "results.jsonl"
_FRAMES = "frames"
_ENDINGS = {"bgr": ".png", "gray": ".png", "jpeg": ".jpg"}  # all others .npy
_MAX_LINE = 1 << 20


class Entry(NamedTuple):
    """One frame of a recording.

    Attributes:
        number: as it was recorded.
        captured_ns: on the clock of the machine that recorded; only differences mean something.
        color: pixel format of the file, "" where the line does not say.
        path: of the file.
    """

    number: int
    captured_ns: int
    color: str
    path: str


def read_entries(path: str) -> list[Entry]:
    """All frames of a recording that are there, in the order of their lines.

    Args:
        path: of the folder, or of its lines.

    Raises:
        SourceError: there is no recording, or none of its frames is there.
    """
    lines = os.path.join(path, LINES) if os.path.isdir(path) else path
    folder = os.path.join(os.path.dirname(lines) or ".", _FRAMES)
    remedy = "A recording is a folder with {} and {}/000123.png beside it.".format(LINES, _FRAMES)
    try:
        files = {os.path.splitext(name)[0]: name for name in os.listdir(folder) if not name.startswith(".")}
        entries = []
        with open(lines, "rb") as file:
            for value in _objects(file):
                entry = _entry(value, folder, files)
                if entry is not None:
                    entries.append(entry)
    except OSError as error:
        raise SourceError("{}: cannot be read: {}".format(error.filename, error.strerror), remedy) from None
    if not entries:
        raise SourceError("{}: none of its frames is there".format(lines), remedy)
    return entries


def _objects(file: Any) -> Iterator[dict[str, Any]]:
    while True:
        line = file.readline(_MAX_LINE)
        if not line:
            return
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):  # cut off by a power cut, or no JSON at all
            continue
        if isinstance(value, dict):
            yield value


def _entry(value: Mapping[str, Any], folder: str, files: Mapping[str, str]) -> Entry | None:
    number, captured = _count(value.get("frame")), _count(value.get("captured_ns"))
    if number < 0:
        return None
    name = files.get("{:06d}".format(number))
    if name is None:
        return None
    if captured < 0:
        time_s, age_ms = value.get("time", 0), value.get("age_ms", 0)
        numbers = all(isinstance(x, (int, float)) and abs(x) < 1e12 for x in (time_s, age_ms))
        captured = int(time_s * 1e9 - age_ms * 1e6) if numbers else 0
    color = value.get("color", "")
    return Entry(number, captured, color if color in FORMATS else "", os.path.join(folder, name))


def _count(value: Any) -> int:
    """The value, or -1 when it is no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else -1


def load_frame(entry: Entry) -> tuple[np.ndarray, str] | None:
    """Pixels and their format; None when the file is damaged.

    Raises:
        SourceError: it cannot be read.
    """
    if not entry.path.endswith(".npy"):
        picture = load_picture(entry.path, encoded=True)
        if picture is not None and entry.color == "gray" and picture[1] == "bgr":
            return np.ascontiguousarray(picture[0][..., 0]), "gray"
        return picture
    try:
        # Mapped: a header that promises more than the file holds is an error, not an allocation.
        pixels = np.array(np.load(entry.path, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise SourceError("{}: cannot be read: {}".format(entry.path, error), "Check the file.") from None
    except (ValueError, EOFError, SyntaxError, OverflowError):
        return None
    color = entry.color or ("gray" if pixels.ndim == 2 else "bgr")
    return None if damage(pixels, color) else (pixels, color)


class RecordingWriter:
    """Writes a recording, frame by frame.

    Args:
        folder: made when it is absent; must not hold a recording yet.
        max_mb: frames beyond so many megabytes are not written.

    Attributes:
        written, refused: frames written, and frames that did not fit any more.

    Raises:
        OSError: the folder cannot be made or written, or holds a recording.
        DependencyError: OpenCV is absent.
    """

    def __init__(self, folder: str, max_mb: float = 1024.0) -> None:
        opencv.load("recording frames")
        self.written = self.refused = 0
        self._folder = os.path.join(folder, _FRAMES)
        self._left = int(max_mb * 1e6)
        os.makedirs(self._folder, exist_ok=True)
        self._lines = open(os.path.join(folder, LINES), "x", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, frame: Frame, result: Mapping[str, Any] | None = None) -> bool:
        """Write a frame, then its line.

        Args:
            frame: of any format.
            result: what its line says besides, as JSON.

        Returns:
            False when it did not fit any more.

        Raises:
            OSError: it cannot be written.
        """
        name, data = _encoded(frame)
        if len(data) > self._left:
            self.refused += 1
            return False
        path = os.path.join(self._folder, name)
        with open(path + ".part", "wb") as file:
            file.write(data)
        os.replace(path + ".part", path)
        line = dict(result or {}, frame=frame.number, captured_ns=frame.captured_ns, color=frame.color)
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        self._left -= len(data)
        self.written += 1
        return True

    def close(self) -> None:
        """Harmless twice."""
        self._lines.close()


def _encoded(frame: Frame) -> tuple[str, bytes]:
    ending = _ENDINGS.get(frame.color, ".npy")
    name = "{:06d}{}".format(frame.number, ending)
    if ending == ".jpg":
        return name, frame.pixels.tobytes()
    if ending == ".png":
        return name, opencv.load("recording frames").imencode(".png", frame.pixels)[1].tobytes()
    import io

    buffer = io.BytesIO()
    np.save(buffer, frame.pixels, allow_pickle=False)
    return name, buffer.getvalue()
