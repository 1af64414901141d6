"""Hot swap: the new version takes over at a frame, and whatever is wrong with it leaves the old one running."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import shutil
import signal
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from edgeferry_runtime import Model, Pipeline, check
from edgeferry_runtime.errors import BackendError, BundleError, EdgeferryError, FrameError, UsageError
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.versions import Versions
from edgeferry_runtime.watcher import Watcher

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("tiny_versions", HERE / "tiny_versions.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

SOUND = {"ok": True}
WAIT_S = 60


@pytest.fixture(scope="module")
def bundles(make_contents, tmp_path_factory):
    """Two versions that differ in answers and labels; one that is float32; one whose goldens it does not meet."""
    folder, contents = tmp_path_factory.mktemp("versions"), make_contents("tiny", 0)
    return [
        tiny.write_version(folder / "a.ferry", contents, "rgb", "abcd"),
        tiny.write_version(folder / "b.ferry", contents, "bgr", "wxyz"),
        tiny.write_version(folder / "float.ferry", contents, "bgr", "wxyz", model="tiny_float32.tflite"),
        tiny.write_version(folder / "broken.ferry", contents, "bgr", "wxyz", broken=True),
    ]


@pytest.fixture
def paths(bundles, tmp_path):
    return [Path(shutil.copy(path, tmp_path)) for path in bundles]


def opened(path):
    return Model.open(path, threads=1), None


@pytest.fixture
def versions(paths):
    made = []

    def make(path=None, model=None, open_version=opened, check=lambda path: SOUND, **options):
        path = str(path or paths[0])
        made.append(Versions(path, model or opened(path)[0], open_version, check, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def answers_of(path, pairs):
    with Model.open(path, threads=1) as model:
        return [model(frame.pixels, frame.color) for frame, _ in pairs]


@pytest.mark.parametrize("other", ["int8", "float32"])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("pipelined", [False, True])
def test_versions_change_under_load_without_a_lost_frame_or_a_wrong_name(paths, versions, pipelined, live, other):
    paths = [paths[0], paths[1 if other == "int8" else 2]]
    both = versions()
    seen = tiny.Seen()
    source = tiny.Paced(tiny.pictures(50), 0.004, live=live)
    pipeline = Pipeline(source, both.running, pipelined=pipelined, roster=both, observers=[both, seen])
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    gaps = []
    try:
        for turn in range(6):
            done = len(seen.pairs)
            tiny.wait_for(lambda done=done: len(seen.pairs) > done + 10)
            swap = both.reload(str(paths[1 - turn % 2]))
            assert swap.wait(WAIT_S)
            assert swap.stage == "swapped", swap.why
            gaps.append(swap.gap_ms)
            tiny.wait_for(lambda: not both.state()["swap"] or both._before is None)
    finally:
        source.stopped = True
        thread.join(WAIT_S)
    identities = [Model.open(path, threads=1) for path in paths]
    names = [model.identity for model in identities]
    for model in identities:
        model.close()
    pairs, losses = seen.pairs, pipeline.state()["losses"]
    # Every frame the source gave is a result, or the source itself says that nobody came for it.
    assert len(pairs) + source.dropped == source.given
    assert [count for why, count in losses.items() if why != "unread"] == [0] * (len(losses) - 1)
    numbers = [result.frame for _, result in pairs]
    assert numbers == sorted(set(numbers))
    # The versions took turns, and each result is what the version it names answers to that very frame.
    turns = [name for i, name in enumerate(r.bundle for _, r in pairs) if i == 0 or name != pairs[i - 1][1].bundle]
    assert turns == [names[0], names[1]] * 3 + [names[0]]
    for path, name in zip(paths, names, strict=True):
        own = [(frame, result) for frame, result in pairs if result.bundle == name]
        assert [result.answer for _, result in own] == answers_of(path, own)
    other = [answer.classes[0].score for answer in answers_of(paths[1], pairs[:50])]
    assert other != [answer.classes[0].score for answer in answers_of(paths[0], pairs[:50])]
    assert all(gap > 0 for gap in gaps)
    assert both.state()["swaps"] == 6


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_loop_does_not_keep_the_old_version_in_memory(paths, versions, pipelined):
    both = versions()
    old = weakref.ref(both.running)
    seen = tiny.Seen()
    source = tiny.Paced(tiny.pictures(10), 0.002)
    pipeline = Pipeline(source, both.running, pipelined=pipelined, roster=both, observers=[both, seen])
    thread = threading.Thread(target=pipeline.run)
    thread.start()

    def gone():
        gc.collect()
        return old() is None

    try:
        tiny.wait_for(lambda: seen.pairs)
        assert both.reload(str(paths[1])).wait(WAIT_S)
        tiny.wait_for(gone)
    finally:
        source.stopped = True
        thread.join(WAIT_S)


def child_check(path, timeout_s=WAIT_S):
    return check.check_in_child(path, None, None, 1, timeout_s)


def test_goldens_are_replayed_in_a_child_before_anything_changes(paths, versions):
    both = versions(check=child_check)
    drive = tiny.Drive(both, both.running, tiny.pictures(10))
    drive.step()
    swap = both.reload(str(paths[1]))
    tiny.wait_for(lambda: swap.over or swap.stage == "ready")
    assert swap.stage == "ready", swap.why
    assert drive.step()[0].answer.classes[0].label in "wxyz"
    assert swap.stage == "swapped"


def script(folder, monkeypatch, text):
    """In the place of the child's Python."""
    program = folder / "python"
    program.write_text("#!/bin/sh\n" + text + "\n")
    program.chmod(0o755)
    monkeypatch.setattr(check.sys, "executable", str(program))


@pytest.mark.skipif(os.name != "posix", reason="shell scripts stand in for bad models")
@pytest.mark.parametrize(
    ("text", "why"), [("kill -SEGV $$", "SIGSEGV"), ("exec sleep 60", "did not end"), ("exit 3", "ended with 3")]
)
def test_a_version_that_crashes_or_hangs_when_checked_is_refused(
    paths, versions, tmp_path, monkeypatch, text, why
):
    script(tmp_path, monkeypatch, text)
    opens = []
    both = versions(open_version=opens.append, check=functools.partial(child_check, timeout_s=0.5))
    old = both.running
    drive = tiny.Drive(both, old, tiny.pictures(10))
    swap = both.reload(str(paths[1]))
    drive.step(5)
    assert swap.wait(WAIT_S)
    assert (swap.stage, both.running) == ("refused", old)
    assert why in swap.why
    assert {r.bundle for r in drive.step(5)} == {old.identity}
    assert opens == []  # it never came into this process
    assert (both.state()["swaps"], both.state()["refused"]) == (0, 1)


def test_a_version_that_fails_its_goldens_is_refused(paths, versions, caplog):
    both = versions(check=child_check)
    old = both.running
    with pytest.raises(EdgeferryError, match=r"was refused: .* runs this model wrongly.*goes on"):
        both.commands()["reload"]({"bundle": str(paths[3]), "wait_s": WAIT_S})
    assert both.running is old
    assert both.state()["swap"]["stage"] == "refused"
    assert "was refused" in caplog.text
    assert both.reload(str(paths[1])).stage in ("checking", "loading", "ready")  # the next one is welcome


def failing(path, after):
    """A model that warms up and then fails."""
    model = Model.open(path, threads=1)
    invoke, left = model.interpreter.invoke, [after]

    def fails():
        left[0] -= 1
        if left[0] < 0:
            raise BackendError("it broke")
        invoke()

    model.interpreter.invoke = fails
    return model


def test_a_version_that_fails_on_its_first_frame_gives_way_to_the_old_one(paths, versions):
    both = versions(open_version=lambda path: (failing(path, 2), None))
    old = both.running
    drive = tiny.Drive(both, old, tiny.pictures(10))
    drive.step(3)
    swap = both.reload(str(paths[1]))
    tiny.wait_for(lambda: swap.stage == "ready")
    assert [r.bundle for r in drive.step(3)] == [old.identity] * 3
    assert swap.stage == "refused"
    assert "it broke" in swap.why
    assert both.running is old


def test_a_version_that_fails_later_is_the_affair_of_its_own_standby(paths, versions):
    class Second(Roster):
        def __init__(self, path):
            self.model = Model.open(path, threads=1)
            self.closed = 0

        def replace(self, failed, error):
            return self.model

        def close(self):
            self.closed += 1
            self.model.close()

    stands_by = Second(paths[1])
    both = versions(open_version=lambda path: (failing(path, 4), stands_by))
    drive = tiny.Drive(both, both.running, tiny.pictures(10))
    swap = both.reload(str(paths[1]))
    tiny.wait_for(lambda: swap.stage == "ready")
    drive.step(2)
    assert swap.stage == "swapped"
    drive.step(2)
    assert both.running is stands_by.model
    both.close()
    assert stands_by.closed >= 1


def test_another_variant_of_the_version_that_runs(paths, versions):
    opens = []

    def open_variant(path, name):
        opens.append((path, name))
        return opened(paths[2])  # the one whose variant has this name

    both = versions(open_variant=open_variant, check=None)
    drive = tiny.Drive(both, both.running, tiny.pictures(10))
    assert both.use_variant(None) is None
    swap = both.use_variant("other")
    tiny.wait_for(lambda: drive.step()[0].variant == "other")
    assert swap.stage == "swapped"
    assert opens == [(str(paths[0].resolve()), "other")]
    assert both.use_variant("other") is None
    tiny.wait_for(lambda: both._before is None)
    both.use_variant(None)
    tiny.wait_for(lambda: drive.step()[0].variant == "int8")
    with pytest.raises(UsageError, match="cannot be changed"):
        versions().use_variant("other")


def test_the_variant_that_was_asked_for_is_kept_where_a_new_version_has_it(paths, versions):
    opens = []

    def open_variant(path, name):
        opens.append((path, name))
        return opened(path)

    both = versions(open_variant=open_variant)
    drive = tiny.Drive(both, both.running, tiny.pictures(10))
    swap = both.use_variant("int8")
    tiny.wait_for(lambda: drive.step() and swap.over and both._before is None)
    for path, asked in ((paths[1], True), (paths[2], False)):
        opens.clear()
        swap = both.reload(str(path))
        tiny.wait_for(lambda swap=swap: drive.step() and swap.over and both._before is None)
        assert swap.stage == "swapped"
        assert opens == ([(str(path.resolve()), "int8")] if asked else [])


def test_nothing_of_the_old_version_stays(paths, versions):
    both = versions()
    drive = tiny.Drive(both, both.running, tiny.pictures(10))
    old = weakref.ref(both.running)
    drive.step(2)
    assert both.reload(str(paths[1])).path == str(paths[1].resolve())
    tiny.wait_for(lambda: drive.step()[0].answer.classes[0].label in "wxyz")

    def gone():
        gc.collect()
        return old() is None

    tiny.wait_for(gone)


def test_what_cannot_be_loaded_is_said_at_once(paths, versions, tmp_path):
    both = versions()
    with pytest.raises(UsageError, match="already runs"):
        both.reload()
    with pytest.raises(BundleError, match="no such bundle"):
        both.reload(str(tmp_path / "none.ferry"))
    (tmp_path / "torn.ferry").write_bytes(paths[1].read_bytes()[:500])
    with pytest.raises(BundleError):
        both.reload(str(tmp_path / "torn.ferry"))
    with pytest.raises(UsageError, match="must be a path"):
        both.commands()["reload"]({"bundle": 3})
    release = threading.Event()
    slow = versions(check=lambda path: (release.wait(WAIT_S), SOUND)[1])
    swap = slow.reload(str(paths[1]))
    with pytest.raises(UsageError, match="still being loaded"):
        slow.reload(str(paths[1]))
    slow.close()
    release.set()
    assert (swap.stage, swap.why) == ("refused", "the loop ended")
    with pytest.raises(UsageError, match="ending"):
        slow.reload(str(paths[1]))


def test_a_model_of_tensors_is_refused(versions, make_bundle):
    def tensors(manifest, members):
        golden = manifest.golden
        members = {name: data for name, data in members.items() if "frame-" not in name}
        members["golden/image.npy"] = members["golden/int8.npy"]
        variant = replace(manifest.variants[0], input_sha256=())
        golden = replace(golden, frames=(), inputs={"image": "golden/image.npy"})
        return replace(manifest, preprocessing=None, variants=(variant,), golden=golden), members

    path = make_bundle("tensors", 5, tensors)
    with pytest.raises(FrameError, match="takes tensors"):
        versions().reload(str(path))


def test_a_version_that_does_not_come_to_be_loaded_is_given_up(paths, versions):
    now, release = [0.0], threading.Event()

    def hangs(path):
        release.wait(WAIT_S)
        return opened(path)

    both = versions(open_version=hangs, clock=lambda: now[0], deadline_s=30.0)
    old = both.running
    swap = both.reload(str(paths[1]))
    tiny.wait_for(lambda: swap.stage == "loading")
    now[0] = 30.0
    both.tick()
    assert swap.stage == "loading"
    now[0] = 30.1
    both.tick()
    assert (swap.stage, swap.why) == ("refused", "it was not loaded within 30 s")
    release.set()  # too late: what it then loads is closed, and never runs
    drive = tiny.Drive(both, old, tiny.pictures(5))
    assert {r.bundle for r in drive.step(20)} == {old.identity}


@pytest.mark.skipif(os.name != "posix", reason="releases on a board are reached by a link")
def test_a_link_that_comes_to_lead_elsewhere_is_noticed(paths, versions, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(paths[0])
    both = versions(link)
    watcher = Watcher(both)
    drive = tiny.Drive(both, both.running, tiny.pictures(10))
    watcher.tick()
    drive.step(2)
    new = tmp_path / "new"
    new.symlink_to(paths[1])
    os.replace(new, link)
    watcher.tick()
    assert both.state()["swap"] is None  # it must lie still for a tick
    watcher.tick()
    assert both.state()["swap"] is not None
    tiny.wait_for(lambda: drive.step()[0].answer.classes[0].label in "wxyz")
    assert both.state()["path"] == str(paths[1].resolve())
    for _ in range(3):
        watcher.tick()
    assert both.state()["swaps"] == 1


def test_a_file_that_is_copied_over_the_bundle_is_taken_when_it_is_whole(paths, versions, tmp_path, caplog):
    place = tmp_path / "bundle.ferry"
    place.write_bytes(paths[0].read_bytes())
    both = versions(place)
    watcher = Watcher(both)
    data = paths[1].read_bytes()
    place.write_bytes(data[: len(data) // 2])
    for _ in range(3):
        watcher.tick()
    assert both.state()["swap"] is None
    assert caplog.text.count("no other version is loaded") == 1
    place.write_bytes(data)
    watcher.tick()
    watcher.tick()
    assert both.state()["swap"]["stage"] in ("checking", "loading", "ready")
    place.unlink()
    watcher.tick()
    watcher.tick()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_signal_asks_for_a_reload(paths, versions, tmp_path, caplog):
    both = versions()
    watcher = Watcher(both)
    before = signal.signal(signal.SIGHUP, lambda number, frame: watcher.ask())
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        tiny.wait_for(lambda: watcher._asked)
    finally:
        signal.signal(signal.SIGHUP, before)
    watcher.tick()
    assert "already runs" in caplog.text  # whoever asked is told
    watcher.tick()
    assert caplog.text.count("already runs") == 1
