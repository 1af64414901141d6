"""Searching recipes with trials that are made up: order, resumption, failures, limits, the front."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from edgeferry_converter.errors import OptionError
from edgeferry_converter.sweep import search
from edgeferry_converter.sweep_front import Limits, SweepError, Tried, choose, nearest, pareto_front
from edgeferry_converter.sweep_identity import check_same
from edgeferry_converter.sweep_page import milliseconds, sweep_page, ticks
from edgeferry_converter.sweep_report import sweep_figures, sweep_text, write_page
from edgeferry_converter.sweep_space import load_space
from edgeferry_converter.sweep_storage import JOURNAL, FolderLock, Study
from edgeferry_converter.sweep_trial import Ran
from hypothesis import given
from hypothesis import strategies as st

optuna = pytest.importorskip("optuna")

SPACE = """
parts = [["prune"], ["qat"]]
[prune]
kind = "channels"
target = { low = 0.2, high = 0.9 }
importance = ["taylor", "l1"]
[qat]
epochs = [5, 10]
"""
BASELINE = Tried(0, metric=0.8, drop=0.001, latency_ms=2.0, ratio=1.0, bytes=100_000, zipped=80_000)


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(SPACE)
    return load_space(path)


@pytest.fixture
def study(tmp_path, space):
    def make(limits: Limits | None = None, seed: int = 0, space=space) -> Study:
        made = Study(tmp_path, space, seed, limits or Limits())
        if made.baseline() is None:
            made.add_baseline(BASELINE)
        return made

    return make


def made_up(asked) -> Tried:
    """Less left is faster and worse; QAT is as fast as the baseline and better."""
    prune = asked.recipe.get("prune")
    share = prune.get("target", 0.9) if prune else 1.0
    drop = 0.05 * (1 - share) ** 2 + (0.004 if prune and prune.get("importance") == "l1" else 0)
    return Tried(asked.number, asked.recipe, 0.8 - drop, drop, drop - 0.01, drop + 0.01, 2 * share, share,
                 int(100_000 * share), int(70_000 * share), 0, 3.0)  # fmt: skip


def at_once(_asked) -> Future:
    future: Future = Future()
    future.set_result(Ran("", 1.0))
    return future


def run(study: Study, wanted: int, finish=made_up, slots: int = 1) -> bool:
    return search(study, wanted, lambda: slots, at_once, lambda asked, _: finish(asked))


def recipes(study: Study) -> list[str]:
    return [json.dumps(trial.recipe, sort_keys=True) for trial in study.trials()]


def test_a_search_tries_as_many_new_recipes_as_it_should(study):
    first = study()
    assert run(first, 12) is False
    assert len(first.trials()) == 13
    assert len(set(recipes(first))) == 13
    assert first.trials()[0] == BASELINE


def test_a_seed_gives_the_same_search(tmp_path, space):
    found = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        one = Study(tmp_path / name, space, 7 if name != "c" else 8, Limits())
        one.add_baseline(BASELINE)
        run(one, 6)
        found.append(recipes(one))
    assert found[0] == found[1] != found[2]


def test_a_second_run_goes_on_and_counts_what_is_there(study):
    run(study(), 4)
    second = study()
    assert len(second.trials()) == 5
    run(second, 4)
    assert len(study().trials()) == 5
    run(second, 6)
    assert len(set(recipes(second))) == 7


def test_what_was_running_is_tried_again_with_the_same_recipe(study):
    """As after kill -9: the journal says of two trials that they run, and nobody runs them."""
    first = study()
    run(first, 2)
    lost = [first.ask(), first.ask()]
    second = study()
    assert len(second.trials()) == 3
    again = [second.ask(), second.ask()]
    assert [one.recipe for one in again] == [one.recipe for one in lost]
    assert [one.retry_of for one in again] == [one.number for one in lost]
    third = study()  # and once more: each is asked for once, not twice
    seen = []
    search(
        third, 4, lambda: 1, lambda asked: seen.append(asked) or at_once(asked), lambda asked, _: made_up(asked)
    )
    assert [one.recipe for one in seen] == [one.recipe for one in lost]
    assert len(third.trials()) == 5
    assert study().ask().retry_of is None


def test_an_enqueued_trial_that_nobody_began_is_begun(study):
    first = study()
    lost = first.ask()
    second = study()
    frozen = second._retries[0]
    second._study.enqueue_trial(frozen.params, user_attrs={"retry_of": frozen.number})  # and then it was killed
    third = study()
    assert third.ask().recipe == lost.recipe


def test_a_journal_that_was_cut_in_the_middle_is_read(study, tmp_path):
    run(study(), 3)
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes() + b'{"op_code": 6, "wor')
    (tmp_path / f"{JOURNAL}.lock").touch()
    second = study()
    assert len(second.trials()) == 4
    run(second, 5)
    assert len(study().trials()) == 6


def test_failures_are_kept_and_the_search_goes_on(study):
    def finish(asked):
        return Tried(asked.number, asked.recipe, reason="NaN") if "qat" in asked.recipe else made_up(asked)

    one = study()
    run(one, 8, finish)
    failed = [trial for trial in one.trials() if trial.reason]
    assert 1 <= len(failed) < 8
    assert len(one.trials()) == 9


def test_when_nothing_succeeds_the_search_stops_early(study):
    one = study()
    run(one, 50, lambda asked: Tried(asked.number, asked.recipe, reason="no training data"))
    assert len(one.trials()) == 6


def test_an_exhausted_space_ends_the_search(study, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('parts = [["qat"]]\n[qat]\nepochs = [1, 2]\nbits = [4, 8]\n')
    one = study(space=load_space(path))
    assert run(one, 10) is True
    assert len(one.trials()) == 5


def test_impossible_recipes_are_passed_over(study, tmp_path):
    path = tmp_path / "mixed.toml"
    path.write_text(
        'parts = [["prune", "qat"], ["prune"]]\n[prune]\nkind = ["channels", "magnitude"]\ntarget = [0.3, 0.6]\n'
        'pattern = ["unstructured", "2:4"]\nsparsity = [0.5, 0.8]\n'
    )
    one = study(space=load_space(path))
    assert run(one, 50) is True
    kinds = [
        (trial.recipe["prune"]["kind"], trial.recipe["prune"].get("pattern"), "qat" in trial.recipe)
        for trial in one.trials()[1:]
    ]
    assert ("magnitude", "unstructured", True) not in kinds
    assert ("magnitude", "2:4", True) not in kinds
    assert {kind for kind in kinds if kind[0] == "channels"} == {
        ("channels", None, True),
        ("channels", None, False),
    }
    assert all(trial.recipe["prune"]["sparsity"] == 0.5 for trial in one.trials()[1:]
               if trial.recipe["prune"].get("pattern") == "2:4")  # fmt: skip


def test_several_run_at_once_and_each_is_told_once(study):
    running, most = 0, 0
    one = study()

    def start(asked):
        nonlocal running, most
        running += 1
        most = max(most, running)
        return pool.submit(Ran, "", 1.0)

    def finish(asked, _):
        nonlocal running
        running -= 1
        return made_up(asked)

    with ThreadPoolExecutor(4) as pool:
        search(one, 9, lambda: 3, start, finish)
    assert most == 3
    assert sorted(trial.number for trial in one.trials()) == sorted({trial.number for trial in one.trials()})
    assert len(one.trials()) == 10


def test_what_runs_trials_may_vanish_and_nothing_is_lost(study):
    def start(asked):
        if asked.number < 3:
            return at_once(asked)
        future: Future = Future()
        future.set_exception(SweepError("the scheduler is gone", "Start it."))
        return future

    one = study()
    with pytest.raises(SweepError, match="scheduler is gone"):
        search(one, 6, lambda: 1, start, lambda asked, _: made_up(asked))
    second = study()
    assert len(second.trials()) == 3
    assert second.ask().retry_of == 3


def test_limits_steer_the_search(tmp_path, space):
    """With a limit on the drop more of the trials are within it than without."""
    inside = []
    for name, limits in (("free", Limits()), ("bound", Limits(max_drop=0.004))):
        (tmp_path / name).mkdir()
        one = Study(tmp_path / name, space, 0, limits)
        one.add_baseline(BASELINE)
        run(one, 40)
        inside.append(sum(trial.drop <= 0.004 for trial in one.trials()))
    assert inside[1] > inside[0]


def test_one_sweep_at_a_time(tmp_path):
    with FolderLock(tmp_path), pytest.raises(SweepError, match="another sweep"), FolderLock(tmp_path):
        pass
    with FolderLock(tmp_path):
        pass


def test_a_lock_dies_with_its_process(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from edgeferry_converter.sweep_storage import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    with FolderLock(tmp_path):
        pass


def test_another_sweep_in_the_same_folder_is_refused_by_option(tmp_path):
    identity = {"MODEL": "a.keras (1)", "--profile": {"name": "host", "threads": 1}, "--labels": None}
    check_same(tmp_path, identity)
    check_same(tmp_path, identity)
    other = {"MODEL": "b.keras (2)", "--profile": {"name": "host", "threads": 2}, "--labels": "x (3)"}
    with pytest.raises(OptionError) as caught:
        check_same(tmp_path, other)
    said = str(caught.value)
    assert "MODEL was a.keras (1) and is b.keras (2)" in said
    assert "--profile threads was 1 and is 2" in said
    assert "--labels was not given and is x (3)" in said
    assert "--output" in said
    check_same(tmp_path, identity)


def trials(*goals, **changes) -> list[Tried]:
    return [
        Tried(n, {"qat": {}} if n else {}, drop=drop, ratio=ratio, latency_ms=2 * ratio, bytes=size, **changes)
        for n, (drop, ratio, size) in enumerate(goals)
    ]


def test_the_front_by_hand():
    found = trials(
        (0.0, 1.0, 100), (0.02, 0.5, 50), (0.03, 0.5, 50), (0.01, 0.9, 120), (0.5, 2.0, 10), (0.02, 0.5, 50)
    )
    assert [trial.number for trial in pareto_front(found)] == [1, 3, 0, 4]
    assert pareto_front([Tried(1, reason="x")]) == []


GOAL = st.tuples(st.integers(-2, 4), st.integers(1, 4), st.integers(1, 4))


@given(st.lists(GOAL, min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats_and_covers_the_rest(goals):
    found = trials(*goals)
    front = pareto_front(found)

    def beats(one, other):
        return all(a <= b for a, b in zip(one.goals, other.goals, strict=True)) and one.goals != other.goals

    assert not any(beats(one, other) for one in front for other in front)
    for trial in found:
        assert trial in front or any(beats(one, trial) or one.goals == trial.goals for one in front)
    assert len({trial.goals for trial in front}) == len(front)


@given(st.lists(GOAL, min_size=1, max_size=20), GOAL)
def test_the_choice_is_the_fastest_within_the_limits(goals, most):
    found = trials(*goals)
    limits = Limits(most[0], 2 * most[1], most[2])
    fitting = [t for t in found if all(a <= b for a, b in zip(t.goals, most, strict=True))]
    chosen = choose(found, limits)
    if not fitting:
        assert chosen is None
        assert str(nearest(found, limits)).count("Loosen") == 1
        return
    assert chosen in fitting
    assert chosen.ratio == min(trial.ratio for trial in fitting)
    assert chosen.drop == min(trial.drop for trial in fitting if trial.ratio == chosen.ratio)


def test_a_clock_s_noise_does_not_choose():
    found = trials((0.0, 0.501, 10), (0.05, 0.499, 10))
    assert choose(found, Limits()).number == 0


def test_what_comes_nearest_and_what_would_let_it_in():
    found = trials((0.0, 1.0, 1000), (0.02, 0.6, 500), (0.2, 0.5, 400))
    limits = Limits(max_drop=0.013, max_latency_ms=1.3, max_bytes=2000)
    error = nearest(found, limits)
    assert "none of 3 trials" in error.message
    assert "trial 1 comes nearest: 0.02 where --max-drop 0.013" in error.message
    loosened = float(error.remedy.split("--max-drop ")[1].split()[0].rstrip(","))
    assert choose(found, Limits(loosened, 1.3, 2000)).number == 1


def figures(tmp_path):
    limits = Limits(0.03, 1.5)
    found = trials((0.0, 1.0, 100_000), (0.02, 0.5, 50_000), (0.03, 0.8, 60_000), low=-0.01, high=0.05)
    recipe = {"train": {"epochs": 1}, "qat": {"bits": 4, "weights": "<per-channel>"}}
    found += [
        Tried(7, recipe, drop=0.01, ratio=0.9, latency_ms=1.8, bytes=90_000),
        Tried(8, recipe, reason="a < b"),
    ]
    found += [
        Tried(
            9, {**recipe, "qat": {"bits": 8, "weights": "x"}}, drop=0.02, ratio=0.9, latency_ms=1.8, bytes=80_000
        )
    ]
    return sweep_figures(tmp_path, found, limits, "here", False, True)


def test_the_table_says_what_varies_what_failed_and_what_is_best(tmp_path):
    said = sweep_text(figures(tmp_path))
    assert "1*" in said and "2 " in said and "trial 8 failed: a < b" in said
    assert "best is trial 1" in said
    assert "qat(bits 4" in said
    assert "epochs 1" not in said
    assert "flatters" in said and "no more recipes" in said
    head = said.splitlines()[0]
    assert said.splitlines()[1].index("x") == head.index("latency") + len("latency") - len("x0.50")


def test_the_page_stands_alone_and_escapes(tmp_path):
    found = figures(tmp_path)
    write_page(tmp_path, found)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<circle") == 5
    assert "a &lt; b" in page and "&lt;per-channel&gt;" in page and "<per-channel>" not in page
    assert "--max-drop" in page and "--max-latency-ms" in page
    assert "http" not in page
    assert sweep_page(sweep_figures(tmp_path, [BASELINE], Limits(), "here", True, False)).count("<circle") == 1


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low, width):
    if low + width == low:
        return
    found = ticks(low, low + width)
    assert len(found) <= 12
    assert all(low - width * 0.01 <= value <= low + width * 1.01 for value in found)
    assert not any(math.isnan(value) for value in found)


def test_milliseconds_have_three_digits():
    shown = [milliseconds(value) for value in (0.00213, 0.5, 1.755, 17.55, 1234.5, 0.0)]
    assert shown == ["0.00213", "0.500", "1.75", "17.6", "1234", "0"]


def test_json_is_what_was_found(tmp_path):
    found = json.loads(json.dumps(figures(tmp_path)))
    assert found["front"] == [1, 7, 0]
    assert [trial["within_limits"] for trial in found["trials"]] == [False, True, False, False, False, False]
