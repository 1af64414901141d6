"""The registry: loaded once, within what memory there is, the longest unused going first, all of it counted."""

from __future__ import annotations

import threading

import pytest
from edgeferry_runtime import Model
from edgeferry_runtime import registry as registry_module
from edgeferry_runtime.budget import Entry, victims
from edgeferry_runtime.errors import BackendError, UsageError
from edgeferry_runtime.opening import Choices
from edgeferry_runtime.registry import Registry
from edgeferry_runtime.remote import open_remote_model
from hypothesis import given
from hypothesis import strategies as st


class Board:
    """A machine whose memory is a number: models take from it when they are opened and give back when closed."""

    def __init__(self, tmp_path, bundle, available_mb=1000):
        self.root, self.bundle = tmp_path / "root", bundle
        self.rss_mb, self.total_mb = 20.0, available_mb + 20
        self.opened, self.closed = [], []
        self.lock = threading.Lock()
        (self.root / "proc").mkdir(parents=True)
        self.take(0)

    def take(self, mb):
        with self.lock:
            self.rss_mb += mb
            kib = int((self.total_mb - self.rss_mb) * 1024)
            (self.root / "proc" / "meminfo").write_text(f"MemTotal: 4000000 kB\nMemAvailable: {kib} kB\n")

    def grow(self, mb):
        self.total_mb += mb
        self.take(0)

    def opener(self, name, mb, wait=lambda: None):
        def open_model():
            wait()
            model = Model.open(self.bundle, threads=1)
            self.take(mb)
            self.opened.append(name)
            close = model.close

            def closing():
                self.take(-mb)
                self.closed.append(name)
                close()

            model.close = closing
            return model

        return open_model

    def registry(self, sizes, budget_mb=None, reserve_mb=0.0, least=False):
        registry = Registry(budget_mb, reserve_mb, root=str(self.root), rss=lambda: self.rss_mb)
        for name, mb in sizes.items():
            registry.add(name, self.opener(name, mb), least_mb=mb if least else 0.0)
        return registry


@pytest.fixture
def board(tmp_path, bundle):
    return Board(tmp_path, bundle)


def loaded(registry):
    return [name for name, entry in registry.state()["models"].items() if entry["loaded"]]


def counts(registry):
    state = registry.state()
    return [state[key] for key in ("loads", "evictions", "reloads", "refusals")]


def test_a_model_is_loaded_when_it_is_asked_for_and_once(board):
    registry = board.registry({"a": 30, "b": 20})
    assert board.opened == []
    model = registry.get("a")
    assert registry.get("a") is model
    with registry.use("a") as again:
        assert again is model
    assert board.opened == ["a"]
    assert counts(registry) == [1, 0, 0, 0]
    assert registry.state()["models"]["a"] == {
        "loaded": True, "held_mb": 30.0, "measured": "alone", "loads": 1, "in_use": False,
    }  # fmt: skip
    assert registry.state()["held_mb"] == 30.0
    registry.close()
    assert board.closed == ["a"]


def test_asked_for_by_many_at_once_it_is_still_loaded_once_and_run_by_one_at_a_time(board):
    registry = board.registry({"a": 30})
    inside, most = 0, 0

    def run():
        nonlocal inside, most
        for _ in range(50):
            with registry.use("a") as model:
                inside += 1
                most = max(most, inside)
                model.invoke()
                inside -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (board.opened, most) == (["a"], 1)
    registry.close()


def test_the_longest_unused_goes_when_the_budget_is_full_and_comes_back_when_asked_for(board):
    registry = board.registry({"a": 30, "b": 30, "c": 30}, budget_mb=70)
    registry.get("a")
    registry.get("b")
    registry.get("a")
    registry.get("c")
    assert (loaded(registry), board.closed) == (["a", "c"], ["b"])
    registry.get("b")
    assert (loaded(registry), board.closed) == (["b", "c"], ["b", "a"])
    assert counts(registry) == [3, 2, 1, 0]
    registry.close()


def test_who_runs_a_model_keeps_it(board):
    registry = board.registry({"a": 40, "b": 40, "c": 20}, budget_mb=70)
    with registry.use("a"):
        assert not registry.evict("a")
        with pytest.raises(BackendError, match=r"no room for model 'b' \(40.0 MB\).*loaded: a 40.0 MB \(in use\)"):
            registry.get("b")
        registry.get("c")
        assert loaded(registry) == ["a", "c"]
    registry.get("b")
    assert loaded(registry) == ["b", "c"]
    assert counts(registry) == [3, 1, 0, 1]
    assert registry.evict("b")
    assert not registry.evict("b")
    registry.close()
    assert board.rss_mb == 20.0  # what was opened and refused was closed again


def test_a_loop_holds_its_model_and_has_it_renewed_when_it_failed(board, monkeypatch):
    monkeypatch.setattr(registry_module, "_HOLD_S", 0.01)
    registry = board.registry({"a": 40, "b": 40}, budget_mb=70)
    failed = registry.hold("a")
    assert not registry.evict("a")
    with pytest.raises(BackendError, match="'a' is held by another loop"):
        registry.hold("a")
    model = registry.renew("a")
    assert model is not failed
    assert board.closed == ["a"]
    assert registry.get("a") is model
    with pytest.raises(BackendError, match="no room"):
        registry.hold("b")
    registry.release("a")
    registry.hold("b")
    assert loaded(registry) == ["b"]
    assert counts(registry) == [2, 1, 1, 1]
    registry.release("b")
    assert registry.evict("b")
    registry.close()


def test_a_known_size_is_refused_before_it_is_loaded_and_nothing_is_evicted_for_it(board):
    registry = board.registry({"a": 40, "b": 10, "c": 60}, budget_mb=70, least=True)
    registry.get("b")
    with registry.use("a"):
        with pytest.raises(BackendError, match="the budget is 70 MB"):
            registry.get("c")
        assert (loaded(registry), board.opened) == (["a", "b"], ["b", "a"])
    registry.close()


def test_refused_before_the_board_swaps(board):
    registry = board.registry({"a": 400, "b": 300, "c": 500}, reserve_mb=200)
    with registry.use("a"), registry.use("b"):
        words = r"'c' \(500.0 MB\): 100 MB are available, and 200 MB .*a 400.0 MB \(in use\), b 300.0 MB"
        board.grow(300)  # it is not known before the first time how much it takes
        with pytest.raises(BackendError, match=words):
            registry.get("c")
        board.grow(-300)
        opened = len(board.opened)
        with pytest.raises(BackendError, match="300 MB are available, and 200 MB must stay so"):
            registry.get("c")
        assert len(board.opened) == opened  # now it is
    registry.get("c")  # in the place of a
    assert loaded(registry) == ["b", "c"]
    assert counts(registry) == [3, 1, 0, 2]
    registry.close()


def test_a_system_whose_memory_others_have_taken(board):
    registry = board.registry({"a": 100}, reserve_mb=200)
    board.grow(-870)
    with pytest.raises(BackendError, match="130 MB are available, and 200 MB must stay so; loaded: nothing"):
        registry.get("a")
    with pytest.raises(BackendError, match="no room for the models"):
        registry.load_all()
    assert board.opened == []
    assert counts(registry) == [0, 0, 0, 2]


@pytest.mark.parametrize("way", ["get", "load_all", "measure_all"])
def test_a_budget_too_small_for_any_model_is_refused_at_the_start(board, way):
    registry = board.registry({"a": 80, "b": 90}, budget_mb=50)
    with pytest.raises(UsageError, match="budget of 50 MB is too small for model 'a', which holds 8"):
        registry.get("a") if way == "get" else getattr(registry, way)()
    assert loaded(registry) == []
    assert board.rss_mb == 20.0
    assert registry.state()["refusals"] == 1


def test_a_budget_that_cannot_be(board):
    with pytest.raises(UsageError, match="budget of 0 MB"):
        board.registry({}, budget_mb=0)
    with pytest.raises(UsageError, match=r"too small for model 'a', which holds 60\.0 MB"):
        board.registry({"a": 60}, budget_mb=50, least=True)
    with pytest.raises(UsageError, match="does not tell"):
        Registry(50, rss=lambda: None)
    registry = board.registry({"front": 1})
    with pytest.raises(UsageError, match="two models are called 'front'"):
        registry.add("front", lambda: None)
    with pytest.raises(UsageError, match="did you mean 'front'"):
        registry.get("frnt")


def test_all_are_loaded_at_the_same_time(board):
    """Each waits until all others are being opened: one after the other none would ever be."""
    together = threading.Barrier(4, timeout=60)
    registry = board.registry({})
    for number in range(4):
        registry.add(str(number), board.opener(str(number), 25, together.wait))
    assert registry.load_all() == {}
    assert loaded(registry) == ["0", "1", "2", "3"]
    state = registry.state()
    assert {entry["measured"] for entry in state["models"].values()} == {"together"}
    assert state["held_mb"] == 100.0
    assert registry.load_all() == {}  # nothing is left to load
    assert counts(registry) == [4, 0, 0, 0]
    registry.close()


def test_a_model_that_cannot_be_opened_leaves_the_others(board):
    def broken():
        raise BackendError("no delegate")

    registry = board.registry({"a": 10, "b": 10})
    registry.add("broken", broken)
    errors = registry.load_all()
    assert {name: error.message for name, error in errors.items()} == {"broken": "no delegate"}
    assert loaded(registry) == ["a", "b"]
    assert list(registry.measure_all()) == ["broken"]
    registry.close()


def test_what_nobody_foresaw_closes_what_was_opened(board):
    def broken():
        raise ZeroDivisionError

    registry = board.registry({"a": 10})
    registry.add("broken", broken)
    with pytest.raises(ZeroDivisionError):
        registry.load_all()
    assert (loaded(registry), board.rss_mb) == ([], 20.0)


@pytest.mark.parametrize("least", [False, True])
def test_of_too_many_the_first_ones_stay(board, least):
    registry = board.registry({"a": 30, "b": 30, "c": 30}, budget_mb=65, least=least)
    assert registry.load_all() == {}
    assert loaded(registry) == ["a", "b"]
    assert counts(registry) == ([2, 0, 0, 0] if least else [3, 1, 0, 0])
    assert registry.measure_all() == {}
    assert {entry["held_mb"] for entry in registry.state()["models"].values()} == {30.0}
    registry.close()


def test_a_heap_that_keeps_its_memory_makes_no_model_smaller_than_it_is(board):
    registry = board.registry({"a": 30})
    registry.get("a")
    registry.evict("a")
    board.opened.clear()
    registry._rss = lambda: 50.0  # it did not go down, so it does not go up
    registry.get("a")
    assert registry.state()["models"]["a"]["held_mb"] == 30.0
    registry.close()


def test_a_worker_holds_what_its_process_holds(bundle):
    choices = Choices(str(bundle), threads=1)
    registry = Registry(budget_mb=4000)
    registry.add("a", lambda: open_remote_model(choices))
    registry.add("b", lambda: open_remote_model(choices))
    assert registry.load_all() == {}
    model = registry.get("a")
    entry = registry.state()["models"]["a"]
    if model.interpreter.rss_mb() is not None:
        assert entry["measured"] == "worker"
        assert 10 < entry["held_mb"] < 1000
    assert registry.evict("a")
    with pytest.raises(BackendError, match="was closed"):
        model.invoke()
    registry.close()


@given(st.lists(st.tuples(st.floats(0.1, 100), st.booleans(), st.booleans()), max_size=8), st.floats(-50, 400))
def test_no_more_go_than_must_and_never_one_that_is_in_use(models, too_much_mb):
    entries = [
        Entry(str(i), lambda: None, mb, model=object() if is_loaded else None, users=int(in_use), turn=-i)
        for i, (mb, is_loaded, in_use) in enumerate(models)
    ]
    idle = [entry for entry in entries if entry.model is not None and not entry.users]
    going = victims(entries, too_much_mb)
    if going is None:
        assert sum(entry.held_mb for entry in idle) < too_much_mb + 1e-6
        return
    assert all(entry in idle for entry in going)
    assert [entry.turn for entry in going] == sorted(entry.turn for entry in idle)[: len(going)]
    assert sum(entry.held_mb for entry in going) >= too_much_mb - 1e-6
    assert not going or sum(entry.held_mb for entry in going[:-1]) < too_much_mb + 1e-6
