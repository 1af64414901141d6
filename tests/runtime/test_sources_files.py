"""Synthetic frames, video files and folders: in order, or played at their own rate."""

from __future__ import annotations

import logging
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.pixels import FORMATS, frame_size, to_bgr
from edgeferry_runtime.sources import WAITING, avi, folder, open_source
from edgeferry_runtime.sources.avi import AviClip
from edgeferry_runtime.sources.clip import InOrder
from edgeferry_runtime.sources.damage import damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def write_video(path, count=12, fps=30, size=(64, 48)):
    cv2 = opencv.load("tests")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), fps, size)
    for i in range(count):
        writer.write(np.full((size[1], size[0], 3), 20 * i, np.uint8))
    writer.release()
    return str(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.avi")


@pytest.fixture(scope="module")
def content(video):
    return Path(video).read_bytes()


def read_all(source):
    with source:
        return list(iter(source.read, None))


# Synthetic.


def test_synthetic_frames_are_shared_and_cannot_be_written():
    with open_source("synthetic:40x30") as source:
        first, second = source.read(), source.read()
        with pytest.raises(ValueError, match="read-only"):
            first.pixels[0, 0, 0] = 1
        np.testing.assert_array_equal(first.pixels[:, 1:], second.pixels[:, :-1])
        # OpenCV takes read-only rows with gaps between them.
        cv2 = opencv.load("tests")
        np.testing.assert_array_equal(cv2.cvtColor(first.pixels, cv2.COLOR_BGR2RGB), first.pixels[..., ::-1])


def bars(count):
    source = open_source("synthetic:64x48")
    return [source.read().pixels for _ in range(count)]


@pytest.mark.parametrize("color", FORMATS)
def test_synthetic_formats_show_the_same_bars(color):
    cv2 = opencv.load("tests")
    plain = bars(64)
    with open_source(f"synthetic:64x48:{color}", encoded=True) as source:
        for number in range(10):
            frame = source.read()
            assert (frame.color, frame.number) == (color, number)
            assert damage(frame.pixels, color) == ""
            assert frame_size(frame.pixels, color) == (64, 48)
            if color in ("i420", "nv12", "jpeg"):  # eight steps for the whole width
                expected = plain[number % 8 * 8]
                if color == "jpeg":
                    expected = cv2.imdecode(cv2.imencode(".jpg", expected)[1], cv2.IMREAD_COLOR)
                else:
                    planes = cv2.cvtColor(expected, cv2.COLOR_BGR2YUV_I420)
                    expected = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420)
                np.testing.assert_array_equal(to_bgr(frame.pixels, color), expected)
            elif color == "gray":
                np.testing.assert_array_equal(frame.pixels, plain[number][..., 2])
            else:
                np.testing.assert_array_equal(frame.pixels, plain[number])


def test_a_rate_makes_synthetic_frames_live():
    with open_source("synthetic:40x30@50") as source:
        assert source.live
        started = time.monotonic_ns()
        first = source.read()
        time.sleep(0.3)
        second = source.read()
        assert second.number == pytest.approx(15, abs=8)
        assert source.dropped == second.number - 1
        # Stamped with the moment it was due, not with that of reading.
        assert second.captured_ns - first.captured_ns == pytest.approx(second.number * 20e6, abs=1)
        assert first.captured_ns >= started
        while source.read(0.0) is not WAITING:
            pass
        third = source.read()
        assert third.captured_ns <= time.monotonic_ns()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("synthetic:40x30:rgba", "no pixel format"),
        ("synthetic:41x30:i420", "even sides"),
        ("synthetic:40x30@0", "above 0"),
        ("synthetic:40x30@-1", "no synthetic source"),
        ("synthetic:40000x30", "sides may be"),
        ("synthetic:40x30:bgr:bgr", "no synthetic source"),
    ],
)
def test_synthetic_uris_that_are_none(uri, words):
    with pytest.raises(UsageError, match=words) as caught:
        open_source(uri)
    assert caught.value.remedy or "sides may be" in words


# Video.


def test_avi_frames_are_those_that_opencv_decodes(video):
    cv2 = opencv.load("tests")
    frames = read_all(open_source(video))
    capture = cv2.VideoCapture(video)
    assert [f.number for f in frames] == list(range(12))
    for frame in frames:
        ok, pixels = capture.read()
        assert ok
        assert np.abs(frame.pixels.astype(int) - pixels).max() <= 4
    assert not capture.read()[0]
    encoded = read_all(open_source(video, encoded=True))
    assert {f.color for f in encoded} == {"jpeg"}
    assert {f.color for f in frames} == {"bgr"}


def test_other_videos_are_decoded_by_opencv(tmp_path):
    cv2 = opencv.load("tests")
    path = str(tmp_path / "clip.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 20, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write mp4")
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    frames = read_all(open_source(path, encoded=True))
    assert [f.number for f in frames] == list(range(6))
    assert frames[0].color == "bgr"
    with open_source(path + "?realtime=1") as source:
        assert source.live
        source.read()
        time.sleep(0.16)
        assert source.read().number >= 3
        assert source.dropped >= 2


def test_realtime_plays_at_the_rate_of_the_file(video):
    with open_source(video + "?realtime=1") as source:
        assert source.live
        frames = list(iter(source.read, None))
    numbers = [f.number for f in frames]
    assert numbers == sorted(set(numbers))
    spacing = np.diff([f.captured_ns for f in frames]) / np.diff(numbers)
    np.testing.assert_allclose(spacing, 1e9 / 30, rtol=1e-3)


def test_a_question_mark_in_a_name_is_no_option(tmp_path, video, content):
    path = tmp_path / "what?.avi"
    path.write_bytes(content)
    assert len(read_all(open_source(str(path)))) == 12
    with pytest.raises(UsageError, match="did you mean 'realtime'"):
        open_source(video + "?realtim=1")
    with pytest.raises(UsageError, match="must be 0 or 1"):
        open_source(video + "?realtime=yes")


def test_frames_without_huffman_tables_are_decoded(tmp_path, video, content):
    """Many cameras leave the standard tables out of MJPEG."""
    data = bytearray(content)
    at = 0
    while (at := data.find(b"\xff\xc4", at)) >= 0:
        length = struct.unpack_from(">H", data, at + 2)[0]
        data[at : at + 2 + length] = b"\xff\xfe" + struct.pack(">H", length) + bytes(length - 2)  # a comment
        at += 2 + length
    path = tmp_path / "plain.avi"
    path.write_bytes(data)
    for ours, theirs in zip(read_all(open_source(str(path))), read_all(open_source(video)), strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_files_beyond_two_gigabytes_go_on_in_another_riff(tmp_path, video, content):
    """OpenDML: the frames of a second RIFF chunk follow those of the first."""
    frames = read_all(open_source(video, encoded=True))
    comment = b"\xff\xfe\x00\x03x"  # five bytes: lengths become odd, and chunks are padded
    bodies = [b"\xff\xd8" + comment * (1 - f.pixels.size % 2) + f.pixels.tobytes()[2:] for f in frames]
    assert all(len(body) % 2 for body in bodies)
    body = b"".join(b"00dc" + struct.pack("<I", len(body)) + body + b"\0" for body in bodies)
    movi = b"LIST" + struct.pack("<I", len(body) + 4) + b"movi" + body
    path = tmp_path / "long.avi"
    path.write_bytes(content + b"RIFF" + struct.pack("<I", len(movi) + 4) + b"AVIX" + movi)
    assert [f.number for f in read_all(open_source(str(path)))] == list(range(24))


def test_a_video_that_was_cut_off_ends_with_its_last_whole_frame(tmp_path, content):
    data = content
    end = data.rfind(b"\xff\xd9", 0, data.rfind(b"idx1") - 400)
    path = tmp_path / "cut.avi"
    path.write_bytes(data[: end - 20] + bytes(1 << 20))
    frames = read_all(open_source(str(path)))
    assert 5 <= len(frames) < 12


def test_space_that_was_never_written_is_not_searched():
    assert list(avi._chunks(bytes(1000))) == []


def test_a_video_without_frames_is_an_error(tmp_path, content):
    data = content
    path = tmp_path / "empty.avi"
    path.write_bytes(data[: data.find(b"movi") + 4])
    with pytest.raises(SourceError, match="holds no frame"):
        open_source(str(path)).read()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_broken_videos_give_frames_or_an_error(data, content, tmp_path):
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(0, 8))):
        # Where the structure is, most often; anywhere, sometimes.
        at = data.draw(st.one_of(st.integers(0, 260), st.integers(0, len(broken) - 1)))
        broken[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(broken)), st.integers(0, len(broken))))
    path = tmp_path / "broken.avi"
    path.write_bytes(broken[:cut])
    clip = AviClip.open(str(path))
    if clip is None:
        return  # left to OpenCV
    with InOrder(clip) as source:
        source.encoded = True
        try:
            for _ in range(1000):
                frame = source.read()
                if frame is None:
                    break
                assert damage(frame.pixels, frame.color) == ""
            else:
                pytest.fail("never ends")
        except SourceError as error:
            assert "holds no frame" in str(error)


# Folders.


@pytest.fixture
def pictures(tmp_path):
    cv2 = opencv.load("tests")
    where = tmp_path / "pictures"
    where.mkdir()
    for i in range(12):
        cv2.imwrite(str(where / f"{i:02d}.{'jpg' if i % 2 else 'png'}"), np.full((10, 20, 3), 20 * i, np.uint8))
    return where


def test_jpeg_files_come_undecoded_when_asked(pictures):
    encoded = read_all(open_source(str(pictures), encoded=True))
    assert [f.color for f in encoded] == ["bgr", "jpeg"] * 6
    for frame, plain in zip(encoded, read_all(open_source(f"folder:{pictures}")), strict=True):
        assert plain.color == "bgr"
        np.testing.assert_array_equal(to_bgr(frame.pixels, frame.color), plain.pixels)


def png(width, height, chunks=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        png(60_000, 60_000),  # asks for ten gigabytes
        png(8, 8, struct.pack(">I", 1 << 30) + b"tEXt"),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0 cut off",
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + bytes(9) + b"\xff\xd9",  # 65535 x 65535
        b"BM" + bytes(60),
    ],
)
def test_damaged_pictures_are_named_and_passed_over(pictures, content, caplog):
    (pictures / "05.jpg").write_bytes(content)
    (pictures / ".hidden.jpg").write_bytes(b"text")
    with caplog.at_level(logging.WARNING, "edgeferry"), open_source(str(pictures)) as source:
        frames = list(iter(source.read, None))
        assert len(frames) == 11
        assert source.skipped == 1
    assert [r.getMessage() for r in caplog.records if r.name == "edgeferry"] == [
        f"{pictures / '05.jpg'}: cannot be decoded as a picture, passed over"
    ]


def test_a_jpeg_with_something_behind_it_is_whole(pictures):
    """Phones put a film there."""
    path = pictures / "05.jpg"
    path.write_bytes(path.read_bytes() + b"a film" * 100)
    assert len(read_all(open_source(str(pictures)))) == 12


def test_pictures_beyond_the_bound_are_not_decoded(pictures, monkeypatch):
    monkeypatch.setattr(folder, "MAX_PIXELS", 20 * 10 - 1)
    with pytest.raises(SourceError, match="none of its 12 pictures"):
        open_source(str(pictures)).read()


def test_nothing_but_damaged_pictures_is_an_error(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(SourceError, match="none of its 2 pictures"):
        open_source(str(tmp_path)).read()


def test_a_run_that_was_interrupted_goes_on(pictures, tmp_path):
    state = tmp_path / "done"
    uri = f"folder:{pictures}?resume={state}"
    with open_source(uri) as source:
        for _ in range(10):
            source.read()
    # Eight may have been under way: they come again, none is lost.
    with open_source(uri) as source:
        assert source.read().name == "02.png"
        rest = list(iter(source.read, None))
        assert [f.name for f in rest][-1] == "11.jpg"
        assert [f.number for f in rest] == list(range(3, 12))
    with open_source(uri) as source:
        assert source.read() is None
    names = state.read_text().splitlines()
    assert len(names) == 12


def test_a_state_file_that_was_cut_off_is_used_as_far_as_it_goes(pictures, tmp_path):
    state = tmp_path / "done"
    state.write_text('"00.png"\n"01.jpg"\n"02.p')
    with open_source(f"{pictures}?resume={state}") as source:
        assert source.read().name == "02.png"
        assert len(list(iter(source.read, None))) == 9
    assert state.read_text().splitlines()[2:4] == ['"02.p', '"02.png"']


def test_a_state_file_that_cannot_be_written(pictures, tmp_path):
    with pytest.raises(SourceError, match="cannot keep what is done") as caught:
        open_source(f"folder:{pictures}?resume={tmp_path / 'no' / 'done'}")
    assert caught.value.remedy
    with pytest.raises(UsageError, match="did you mean 'resume'"):
        open_source(f"folder:{pictures}?resum=x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read(pictures):
    (pictures / "00.png").chmod(0)
    with pytest.raises(SourceError, match="Permission denied"):
        open_source(str(pictures)).read()


def test_a_source_named_in_a_file_keeps_its_password_off_the_command_line(tmp_path):
    (tmp_path / "source").write_text("synthetic:64x48\n")
    with open_source(f"@{tmp_path / 'source'}") as source:
        assert source.read().pixels.shape == (48, 64, 3)
    (tmp_path / "camera").write_text("rtsp://user:hunter2@127.0.0.1:1/x\n")
    with pytest.raises(SourceError) as caught:
        open_source(f"@{tmp_path / 'camera'}", timeout_s=1)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "a\nb\n", "x" * 9000])
def test_files_that_name_no_source(tmp_path, text):
    (tmp_path / "source").write_text(text)
    with pytest.raises(UsageError, match="holds no source"):
        open_source(f"@{tmp_path / 'source'}")
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(f"@{tmp_path / 'absent'}")
