"""One source for several readers: who is given which frame, who waits for whom, and every frame is counted."""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.hub import Hub
from edgeferry_runtime.sources.base import WAITING
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fake_lanes", HERE / "fake_lanes.py")
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
Given, pictures, wait_until = fake.Given, fake.pictures, fake.wait_until


class Reader(threading.Thread):
    """Reads a tap to its end; keeps the frames, and what was raised."""

    def __init__(self, tap, pause_s=0.0, limit=None):
        super().__init__(daemon=True)
        self.tap, self.pause_s, self.limit = tap, pause_s, limit
        self.frames, self.error = [], None
        self.start()

    def run(self):
        try:
            while self.limit is None or len(self.frames) < self.limit:
                frame = self.tap.read(0.05)
                if frame is None:
                    break
                if frame is not WAITING:
                    self.frames.append(frame)
                    time.sleep(self.pause_s)
        except Exception as error:
            self.error = error
        finally:
            self.tap.close()

    def done(self):
        self.join(30)
        assert not self.is_alive()
        return [frame.number for frame in self.frames]


def test_every_frame_of_a_file_reaches_every_tap_without_a_copy():
    frames = pictures(50)
    with Hub(Given(frames)) as hub:
        readers = [Reader(hub.tap()), Reader(hub.tap(), 0.002), Reader(hub.tap())]
        hub.start()
        assert [reader.done() for reader in readers] == [list(range(50))] * 3
    for reader in readers:
        assert all(given.pixels is frame.pixels for given, frame in zip(reader.frames, frames, strict=True))
        assert (reader.tap.taken, reader.tap.unread, reader.tap.passed) == (50, 0, 0)
    assert hub.frames == 50


def test_a_file_is_read_one_frame_ahead_of_the_slowest_and_no_further():
    source = Given(pictures(20))
    with Hub(source) as hub:
        fast, slow = hub.tap(), hub.tap()
        hub.start()
        assert fast.read(10).number == 0
        assert slow.read(10).number == 0
        assert fast.read(10).number == 1
        assert fast.read(0.05) is WAITING  # the slow one has not taken its second
        assert len(source.items) == 18
        assert slow.read(10).number == 1
        assert fast.read(10).number == 2


def test_a_tap_that_is_closed_holds_nobody_up():
    with Hub(Given(pictures(30))) as hub:
        reader, leaving, never = Reader(hub.tap()), hub.tap(), hub.tap()
        hub.start()
        assert leaving.read(10).number == 0
        never.close()
        leaving.close()
        leaving.close()
        assert reader.done() == list(range(30))
        assert leaving.read(0) is None


def test_a_file_nobody_reads_is_read_no_further():
    source = Given(pictures(30))
    with Hub(source) as hub:
        tap = hub.tap()
        hub.start()
        assert tap.read(10).number == 0
        tap.close()
        assert wait_until(lambda: hub.ended)
    assert len(source.items) >= 27


def test_an_error_of_the_source_reaches_all_behind_the_frames_before_it():
    with Hub(Given([*pictures(3), SourceError("torn off")])) as hub:
        readers = [Reader(hub.tap()), Reader(hub.tap(), 0.01)]
        hub.start()
        assert [reader.done() for reader in readers] == [[0, 1, 2]] * 2
        assert [str(reader.error) for reader in readers] == ["torn off"] * 2
        assert readers[0].tap.over


def test_a_live_source_is_never_held_and_a_tap_gives_the_newest_frame():
    source = Given(pictures(10), live=True)
    with Hub(source) as hub:
        quick, idle = hub.tap(), hub.tap()
        assert (quick.live, idle.live) == (True, True)
        hub.start()
        for number in range(5):
            source.release()
            assert quick.read(10).number == number
        assert idle.read(10).number == 4
        assert idle.read(0.01) is WAITING
        assert (idle.taken, idle.unread, idle.dropped) == (1, 4, 4)
        assert (quick.taken, quick.unread) == (5, 0)


def test_a_reader_that_waits_is_given_the_frame_when_it_comes():
    source = Given(pictures(1), live=True)
    with Hub(source) as hub:
        reader = Reader(hub.tap(), limit=1)
        hub.start()
        assert wait_until(lambda: source.asked > 1)
        source.release()
        assert reader.done() == [0]


def test_taps_mirror_what_the_source_says():
    source = Given(pictures(2), live=True)
    source.dropped, source.skipped, source.reopened, source.outage = 7, 3, 2, "unplugged"
    tap = Hub(source).tap()
    assert (tap.dropped, tap.skipped, tap.reopened, tap.outage) == (7, 3, 2, "unplugged")


@pytest.mark.parametrize("every", [2, 3, 7])
def test_one_frame_in_so_many(every):
    with Hub(Given(pictures(20))) as hub:
        some, all_of_them = Reader(hub.tap(every)), Reader(hub.tap())
        hub.start()
        assert some.done() == list(range(0, 20, every))
        assert all_of_them.done() == list(range(20))
    assert some.tap.taken + some.tap.passed == 20
    assert some.tap.unread == 0


def test_one_frame_in_so_many_is_the_first_that_is_there():
    frames = [frame for frame in pictures(12) if frame.number not in (3, 4, 6)]
    with Hub(Given(frames)) as hub:
        some = Reader(hub.tap(3))
        hub.start()
        assert some.done() == [0, 5, 7, 9]


def test_parts_of_one_frame_are_chosen_together():
    frames = [frame._replace(number=frame.number // 2) for frame in pictures(12)]
    with Hub(Given(frames)) as hub:
        some = Reader(hub.tap(2))
        hub.start()
        assert some.done() == [0, 0, 2, 2, 4, 4]


def test_a_group_is_given_the_newest_frame_when_its_last_member_asks():
    source = Given(pictures(10), live=True)
    with Hub(source) as hub:
        one, other, alone = hub.tap(group="pair"), hub.tap(group="pair"), hub.tap()
        hub.start()
        early = Reader(one, limit=1)
        for number in range(3):
            source.release()
            assert alone.read(10).number == number
        assert early.frames == []  # the other member has not asked
        assert other.read(10).number == 2  # and now both have the newest, not the one the first waited for
        assert early.done() == [2]
        assert (one.taken, one.unread, other.taken, other.unread) == (1, 2, 1, 2)


def test_members_of_a_group_see_the_same_frames():
    with Hub(Given(pictures(200), live=True, period_s=0.001)) as hub:
        pair = [Reader(hub.tap(group="pair"), 0.004), Reader(hub.tap(group="pair"))]
        hub.start()
        first, second = (reader.done() for reader in pair)
    # The slow one may close last: until then both were given the same.
    shorter = min(len(first), len(second))
    assert first[:shorter] == second[:shorter]
    assert shorter > 5
    assert first == sorted(set(first))


def test_a_group_goes_on_without_a_member_that_rests_and_with_it_again():
    with Hub(Given(pictures(9))) as hub:
        one, other = hub.tap(group="pair"), hub.tap(group="pair")
        hub.start()
        other.set_resting(True)
        assert [one.read(10).number for _ in range(4)] == [0, 1, 2, 3]
        other.set_resting(False)
        waiting = Reader(other)
        numbers = [one.read(10).number for _ in range(5)]
        assert numbers == [4, 5, 6, 7, 8]
        assert one.read(10) is None
        assert waiting.done() == numbers
    assert (other.taken, other.unread) == (5, 4)


def test_a_group_has_one_rhythm():
    hub = Hub(Given([]))
    hub.tap(2, group="pair")
    with pytest.raises(ValueError, match="'pair' takes one frame in 2, not in 3"):
        hub.tap(3, group="pair")


def jpegs(count):
    cv2 = opencv.load("tests")
    frames = pictures(count, (48, 64))
    return [f._replace(pixels=cv2.imencode(".jpg", f.pixels)[1].reshape(-1), color="jpeg") for f in frames]


def test_jpeg_is_decoded_once_for_all_who_want_pixels(monkeypatch):
    frames = jpegs(6)
    expected = [opencv.load("tests").imdecode(frame.pixels, 1) for frame in frames]
    frames[4] = frames[4]._replace(pixels=frames[4].pixels[:200] * 0)  # no JPEG any more
    decoded = []
    from edgeferry_runtime import pixels

    to_bgr = pixels.to_bgr
    monkeypatch.setattr(pixels, "to_bgr", lambda data, color: (decoded.append(1), to_bgr(data, color))[1])
    with Hub(Given(frames)) as hub:
        plain = [Reader(hub.tap()), Reader(hub.tap(), 0.001)]
        raw = Reader(hub.tap(encoded=True))
        hub.start()
        assert [reader.done() for reader in plain] == [[0, 1, 2, 3, 5]] * 2
        assert raw.done() == list(range(6))
    assert len(decoded) == 6
    assert all(frame.color == "jpeg" for frame in raw.frames)
    for one, other in zip(plain[0].frames, plain[1].frames, strict=True):
        assert one.color == "bgr"
        assert one.pixels is other.pixels
        np.testing.assert_array_equal(one.pixels, expected[one.number])
    assert [reader.tap.skipped for reader in (*plain, raw)] == [1, 1, 0]


def test_nobody_who_wants_pixels_nothing_decoded(monkeypatch):
    from edgeferry_runtime import pixels

    monkeypatch.setattr(pixels, "to_bgr", None)
    with Hub(Given(jpegs(3))) as hub:
        readers = [Reader(hub.tap(encoded=True)) for _ in range(2)]
        hub.start()
        assert [reader.done() for reader in readers] == [[0, 1, 2]] * 2


def test_closing_ends_the_readers():
    source = Given([], live=True)
    hub = Hub(source)
    readers = [Reader(hub.tap()), Reader(hub.tap(group="pair")), Reader(hub.tap(group="pair"))]
    hub.start()
    hub.close()
    hub.close()
    assert [reader.done() for reader in readers] == [[], [], []]
    assert not source.closed


def test_a_frame_that_waits_for_a_tap_that_closes_was_not_read():
    source = Given(pictures(5), live=True)
    with Hub(source) as hub:
        tap = hub.tap()
        hub.start()
        source.release(3)
        assert wait_until(lambda: hub.frames == 3)
        tap.close()
        assert (tap.taken, tap.unread) == (0, 3)


def test_an_owned_source_is_closed_when_its_last_tap_is():
    source = Given(pictures(10))
    with Hub(source, owned=True) as hub:
        tap = hub.tap()
        hub.start()
        tap.read(10)
        tap.close()
        assert wait_until(lambda: source.closed)


@settings(max_examples=25, deadline=None)
@given(
    live=st.booleans(),
    taps=st.lists(
        st.tuples(st.sampled_from([None, "x"]), st.sampled_from([0.0, 0.001]), st.sampled_from([None, 3])),
        min_size=1,
        max_size=4,
    ),
    every=st.integers(1, 3),
)
def test_every_frame_is_counted_by_every_tap(live, taps, every):
    frames = pictures(25, (2, 2))
    with Hub(Given(frames, live, period_s=0.0005)) as hub:
        readers = [Reader(hub.tap(every, group), pause_s, limit) for group, pause_s, limit in taps]
        hub.start()
        for reader in readers:
            reader.done()
        for reader in readers:
            tap = reader.tap
            assert tap.taken == len(reader.frames)
            if reader.limit is None:
                assert tap.taken + tap.unread + tap.passed == 25
                if not live:
                    assert tap.unread == 0
