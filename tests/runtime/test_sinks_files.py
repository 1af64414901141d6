"""Sinks that write files: options, whole lines, rotation, budget, tables, a full disk, pictures and videos."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import threading

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sinks.csvfile import COLUMNS, CsvSink
from edgeferry_runtime.sinks.jsonl import JsonlSink
from edgeferry_runtime.sinks.linefile import LineFile
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.segment import Area, Segmentation

CAT = Classification((ClassScore(3, "cat", 0.75),))


def frame(number=0, width=64, height=48, color="bgr"):
    shapes = {"bgr": (height, width, 3), "gray": (height, width), "nv12": (height * 3 // 2, width)}
    return Frame(np.full(shapes[color], 90, np.uint8), color, number, 0)


def result(number=0, answer=CAT, name=""):
    return Result(number, name, "pets-01234567", "int8", "fake", 0, 1e9 + number, 2500.0, (1.0,) * 6, 0, answer)


def numbers(path):
    return [json.loads(line).get("frame") for line in path.read_text().splitlines()]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


# Options


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("jsonl:x?rotate_mib=3", r"'rotate_mib' is no option, did you mean 'rotate_mb'"),
        ("jsonl:x?rotate_mb=0", "rotate_mb must be at least 0.001"),
        ("jsonl:x?rotate_mb=nan", "rotate_mb must be a number"),
        ("jsonl:x?rotate_mb=", "rotate_mb must be a number"),
        ("jsonl:x?rotate_mb=1&keep=1.5", "keep must be a whole number"),
        ("jsonl:x?rotate_mb=1&keep=1001", "keep must be at most 1000"),
        ("jsonl:x?rotate_mb=1&keep=2&keep=3", "'keep' is given twice"),
        ("jsonl:x?keep=3", "keep means nothing without rotate_mb"),
        ("jsonl:x?rotate_mb=1&&keep=3", "is no option"),
        ("jsonl:-?hourly_mb=1", "need a file"),
        ("csv:-", "need a file"),
        ("csv:?hourly_mb=1", "need a file"),
        ("annotate:x.avi?fps=0", "fps must be at least 0.01"),
        ("annotate:x?fps=10", "'fps' is no option"),
        ("annotate:x.mp4", r"Write \.avi"),
        ("csvs:x", "did you mean 'csv'"),
    ],
)
def test_options_that_are_wrong(uri, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        open_sink(uri)
    assert list(tmp_path.iterdir()) == []


def test_every_fault_is_named_at_once():
    with pytest.raises(UsageError) as caught:
        open_sink("jsonl:x?keeep=1&hourly_mb=no")
    assert "'keeep'" in str(caught.value)
    assert "hourly_mb must be" in str(caught.value)
    assert "rotate_mb=float, keep=int, hourly_mb=float" in caught.value.remedy


@pytest.mark.skipif(os.name != "posix", reason="such names are paths elsewhere on Windows")
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_path_is_all_between_the_first_colon_and_the_options(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_sink(rf"{kind}:C:\logs\x.txt?rotate_mb=1") as sink:
        sink.write(frame(), result())
    assert [p.name for p in tmp_path.iterdir()] == [r"C:\logs\x.txt"]
    assert sink.uri == rf"{kind}:C:\logs\x.txt?rotate_mb=1"


# Lines


def test_lines_are_appended_and_state_counts(tmp_path):
    path = tmp_path / "r.jsonl"
    for number in (0, 1):
        with open_sink(f"jsonl:{path}") as sink:
            sink.write(frame(number), result(number))
            assert sink.state() == {"dropped": 0}
        sink.close()
    assert numbers(path) == [0, 1]


def test_a_half_line_is_never_glued_to_the_next(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"frame":0}\n{"frame":1,"na')
    with open_sink(f"jsonl:{path}") as sink:
        sink.write(frame(2), result(2))
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"frame":0}', '{"frame":1,"na']
    assert json.loads(lines[2])["frame"] == 2


def test_a_half_line_longer_than_what_is_read_back(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"x" * 200000)
    with open_sink(f"jsonl:{path}") as sink:
        sink.write(frame(2), result(2))
    assert path.read_bytes().startswith(b"x" * 200000 + b'\n{"frame":2')


@pytest.mark.skipif(os.name != "posix", reason="Windows does not rename open files")
def test_a_file_that_was_moved_away_is_begun_anew(tmp_path):
    path = tmp_path / "r.jsonl"
    with open_sink(f"jsonl:{path}") as sink:
        sink.write(frame(0), result(0))
        path.rename(tmp_path / "moved")
        sink.write(frame(1), result(1))
        path.unlink()
        sink.write(frame(2), result(2))
    assert numbers(tmp_path / "moved") == [0]
    assert numbers(path) == [2]


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_named_pipe(tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    got = []

    def read():
        with open(pipe) as file:
            got.extend(file)

    reader = threading.Thread(target=read)
    reader.start()
    with open_sink(f"jsonl:{pipe}?rotate_mb=0.001") as sink:
        for number in range(10):
            sink.write(frame(number), result(number))
    reader.join(30)
    assert [json.loads(line)["frame"] for line in got] == list(range(10))


# Rotation and budget


def test_rotation_loses_nothing_but_the_oldest(tmp_path):
    path = tmp_path / "r.jsonl"
    size = len(json.dumps(result(0).to_json(), separators=(",", ":"))) + 1
    assert 3 * size < 1000 < 4 * size
    with open_sink(f"jsonl:{path}?rotate_mb=0.001&keep=2") as sink:
        for number in range(10):
            sink.write(frame(number), result(number))
    # Three a file: 0 to 2 made room.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "r.jsonl.1", "r.jsonl.2"]
    assert [numbers(tmp_path / f"r.jsonl{end}") for end in (".2", ".1", "")] == [[3, 4, 5], [6, 7, 8], [9]]


def test_rotation_fills_a_gap_that_a_power_cut_left(tmp_path):
    path = tmp_path / "lines"
    for end, text in (("", "now\n"), (".2", "older\n"), (".3", "oldest\n")):
        (tmp_path / f"lines{end}").write_text(text)
    file = LineFile(str(path), rotate_mb=0.000004, keep=3)
    file.write("new\n")
    file.close()
    texts = [(tmp_path / f"lines{end}").read_text() for end in ("", ".1", ".2", ".3")]
    assert texts == ["new\n", "now\n", "older\n", "oldest\n"]


def test_a_line_longer_than_a_file_still_has_one(tmp_path):
    file = LineFile(str(tmp_path / "lines"), rotate_mb=0.000004)
    for line in ("a" * 20 + "\n", "b\n", "c\n"):
        file.write(line)
    file.close()
    assert (tmp_path / "lines.1").read_text() == "a" * 20 + "\n"
    assert (tmp_path / "lines").read_text() == "b\nc\n"


def test_the_budget_drops_counts_and_says_so(tmp_path):
    path, clock = tmp_path / "r.jsonl", Clock()
    sink = JsonlSink(f"jsonl:{path}?hourly_mb=0.001", clock=clock)
    for number in range(8):
        sink.write(frame(number), result(number))
        clock.now += 60
    assert numbers(path) == [0, 1, 2]
    assert sink.state() == {"dropped": 5}
    clock.now = 3600
    sink.write(frame(8), result(8))
    sink.write(frame(9), result(9))
    sink.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()][3:]
    assert lines[0]["dropped_for_budget"] == 5
    assert [line.get("frame") for line in lines] == [None, 8, 9]
    assert sink.state() == {"dropped": 5}


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_full_disk_costs_results_but_leaves_no_half_one(small_disk, kind):
    path, ballast = small_disk / "r.txt", small_disk / "ballast"
    ballast.write_bytes(b"\0" * 57344)
    written, lost = [], []
    with open_sink(f"{kind}:{path}") as sink:
        for number in range(200):
            try:
                sink.write(frame(number), result(number))
                written.append(number)
            except SinkError as error:
                lost.append(number)
                assert "No space left" in str(error)
            if number == 150:
                ballast.unlink()
    assert lost
    assert max(lost) == 150
    assert set(range(151, 200)) < set(written)
    text = path.read_text()
    if kind == "jsonl":
        assert numbers(path) == written
    else:
        rows = list(csv.DictReader(text.splitlines()))
        assert [int(row["frame"]) for row in rows] == written
        assert all(len(row) == len(COLUMNS) and None not in row.values() for row in rows)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_that_takes_nothing():
    with open_sink("jsonl:/dev/full") as sink:
        for number in range(3):
            with pytest.raises(SinkError, match="No space left on device"):
                sink.write(frame(number), result(number))


# Tables


def rows_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_box_class_and_other_answer(tmp_path):
    path = tmp_path / "r.csv"
    boxes = Detection((Box(0, "person", 0.9, 1.5, 2, 3, 4), Box(7, "", 0.5, 5, 6, 7, 8)))
    mask = Segmentation(np.zeros((2, 2), np.uint8), (Area(0, "road", 1.0),), None, (2, 2), None)
    with open_sink(f"csv:{path}") as sink:
        for number, answer in enumerate((CAT, boxes, Detection(()), Classification(()), mask)):
            sink.write(frame(number), result(number, answer, 'a "quoted", name'))
    rows = rows_of(path)
    assert tuple(rows[0]) == COLUMNS
    assert [row["frame"] for row in rows] == ["0", "1", "1", "2", "3", "4"]
    assert [row["label"] for row in rows] == ["cat", "person", "7", "", "", ""]
    assert [row["score"] for row in rows] == ["0.75", "0.9", "0.5", "", "", ""]
    assert [rows[1][key] for key in ("x", "y", "width", "height")] == ["1.5", "2", "3", "4"]
    assert rows[0]["x"] == ""
    assert [json.loads(row["answer"]) if row["answer"] else None for row in rows] == [
        *[None] * 5, {"areas": [{"index": 0, "label": "road", "share": 1.0}]},
    ]  # fmt: skip
    assert {row["name"] for row in rows} == {'a "quoted", name'}
    assert rows[0]["age_ms"] == "2.5"


def test_the_header_stands_once_a_file(tmp_path):
    path = tmp_path / "r.csv"
    for start in (0, 12):
        with open_sink(f"csv:{path}?rotate_mb=0.001") as sink:
            for number in range(start, start + 12):
                sink.write(frame(number), result(number))
    header = ",".join(COLUMNS)
    assert path.read_text().splitlines().count(header) == 1
    seen = []
    for end in (".1", ""):
        assert (tmp_path / f"r.csv{end}").read_text().startswith(header + "\n")
        seen += [int(row["frame"]) for row in rows_of(f"{path}{end}")]
    assert seen == list(range(24))


def test_another_table_is_refused_and_stays(tmp_path):
    path = tmp_path / "r.csv"
    for text in ("date,temperature\n1,2\n", ",".join(COLUMNS) + ",more\n", "\n"):
        path.write_text(text)
        with pytest.raises(SinkError, match="its header is not that of results") as caught:
            open_sink(f"csv:{path}")
        assert "Choose another file" in caught.value.remedy
        assert path.read_text() == text


def test_half_a_header_and_half_a_row(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("time,frame,na")
    with open_sink(f"csv:{path}") as sink:
        sink.write(frame(0), result(0))
    with path.open("a") as file:
        file.write('1,1,"cut off in a, quot')
    with open_sink(f"csv:{path}") as sink:
        sink.write(frame(2), result(2))
    rows = rows_of(path)
    assert [row["frame"] for row in rows] == ["0", "1", "2"]
    assert rows[2]["label"] == "cat"


def test_the_budget_in_a_table(tmp_path):
    path, clock = tmp_path / "r.csv", Clock()
    with CsvSink(f"csv:{path}?hourly_mb=0.001", clock=clock) as sink:
        for number in range(40):
            sink.write(frame(number), result(number))
        clock.now = 4000
        sink.write(frame(40), result(40))
    dropped = sink.state()["dropped"]
    rows = rows_of(path)
    assert dropped == 40 - (len(rows) - 2) > 0
    assert json.loads(rows[-2]["answer"]) == {"dropped_for_budget": dropped}
    assert rows[-1]["frame"] == "40"


@pytest.mark.skipif(os.name != "posix", reason="names that are no UTF-8")
def test_a_name_that_is_no_utf8_keeps_its_bytes(tmp_path):
    path, name = tmp_path / "r.csv", os.fsdecode(b"caf\xe9.jpg")
    with open_sink(f"csv:{path}") as sink:
        sink.write(frame(), result(name=name))
    assert b",caf\xe9.jpg," in path.read_bytes()
    assert rows_of(path)[0]["name"] == name


# Pictures and videos


def read_video(path):
    capture = opencv.load("tests").VideoCapture(str(path))
    pictures = []
    while True:
        ok, picture = capture.read()
        if not ok:
            return pictures
        pictures.append(picture)


def test_a_video_of_every_format_and_size(tmp_path):
    path = tmp_path / "new" / "clip.avi"
    with open_sink(f"annotate:{path}?fps=10") as sink:
        assert sink.wants_pixels
        sink.write(frame(0), result(0))
        sink.write(frame(1, color="gray"), result(1))
        sink.write(frame(2, color="nv12"), result(2))
        sink.write(frame(3, width=32, height=96), result(3))
    pictures = read_video(path)
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 4
    # 32x96 becomes 16x48 in the middle, black beside it.
    assert pictures[3][:, :20].max() < 30
    assert pictures[3][20:28, 28:36].mean() > 40


def test_a_video_is_never_written_over_and_begins_anew_when_long(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeferry_runtime.sinks.annotate._VIDEO_BYTES", 20000)
    (tmp_path / "clip.avi").write_text("precious")
    with open_sink(f"annotate:{tmp_path / 'clip.avi'}") as sink:
        for number in range(40):
            noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
            sink.write(Frame(noise, "bgr", number, 0), result(number))
    assert (tmp_path / "clip.avi").read_text() == "precious"
    videos = sorted(tmp_path.glob("clip-*.avi"))
    assert len(videos) > 1
    assert sum(len(read_video(video)) for video in videos) == 40


def test_one_frame_in_ten_when_the_source_drops_some(tmp_path):
    with open_sink(f"annotate:{tmp_path / 'out'}?every=10") as sink:
        for number in range(1, 40, 3):  # none but 10 is a multiple of ten
            sink.write(frame(number), result(number))
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        f"frame-{n:06d}.jpg" for n in (1, 13, 25, 37)
    ]


def test_a_frame_that_cannot_be_drawn_is_a_sink_error(tmp_path):
    with open_sink(f"annotate:{tmp_path / 'out'}") as sink:
        with pytest.raises(SinkError, match="frame 4 cannot be drawn"):
            sink.write(Frame(np.zeros(10, np.uint8), "jpeg", 4, 0), result(4))
        sink.write(frame(5), result(5))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["frame-000005.jpg"]


@pytest.mark.parametrize("name", ["out", "out.avi"])
def test_a_full_disk_under_pictures_and_videos(small_disk, name):
    ballast = small_disk / "ballast"
    with open_sink(f"annotate:{small_disk / name}") as sink:
        ballast.write_bytes(b"\0" * 65536)
        with pytest.raises(SinkError, match="No space left"):
            sink.write(frame(0), result(0))
        ballast.unlink()
        sink.write(frame(1), result(1))
    left = small_disk / name
    if name == "out":
        assert [p.name for p in left.iterdir()] == ["frame-000001.jpg"]
    else:
        assert len(read_video(left)) == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/x.avi"):
        with pytest.raises(SinkError, match="cannot be made"):
            open_sink(f"annotate:{tmp_path / name}")
