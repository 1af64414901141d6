"""Where the time goes: clocks around operations that change nothing, and what is said when there are none."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import op_times, profiling
from edgeferry_runtime.backend import Interpreter, Operation, find_backend
from edgeferry_runtime.delegate import load, parse_delegate
from edgeferry_runtime.errors import BackendError, UsageError
from edgeferry_runtime.macs import macs
from edgeferry_runtime.op_profiler import OpProfiler
from edgeferry_runtime.op_times import operation_times
from edgeferry_runtime.opening import Choices
from edgeferry_runtime.profile_html import Box, flame, page
from edgeferry_runtime.profile_text import to_text
from edgeferry_runtime.profiling import bound, profile_bundle, profile_file
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "contract" / "data" / "tiny_int8.tflite"
# tiny_int8.tflite: 8x12x3 -> convolution, mean, fully connected, softmax.
FILE_OPERATIONS = ["CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
spec = importlib.util.spec_from_file_location("fake_backend", HERE / "fake_backend.py")
fake_backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_backend)


def watched(inner=None, inside=True, xnnpack=True):
    """The tiny model under clocks, in this process."""
    profiler = OpProfiler(inner, inside)
    interpreter = Interpreter(str(TINY), threads=1, delegate=profiler, xnnpack=xnnpack)
    profiler.attach(interpreter.operations())
    return interpreter, profiler


def answers(interpreter, frames):
    (given_to,) = interpreter.inputs
    (taken,) = interpreter.outputs
    found = []
    for frame in frames:
        interpreter.input(given_to.tensor)[...] = frame
        interpreter.invoke()
        found.append(interpreter.output(taken.tensor).copy())
    return np.array(found)


@pytest.fixture
def frames():
    return np.random.default_rng(3).integers(-128, 128, (6, 1, 8, 12, 3), dtype=np.int8)


@pytest.fixture(scope="module")
def measured():
    return operation_times(Choices("", threads=1), 0.2, model_path=str(TINY))


@pytest.mark.parametrize("xnnpack", [True, False])
def test_clocks_change_no_answer_and_count_every_invoke(frames, xnnpack):
    plain = answers(Interpreter(str(TINY), threads=1, xnnpack=xnnpack), frames)
    interpreter, profiler = watched(xnnpack=xnnpack)
    assert profiler.probes
    for nodes, inside in ((True, False), (False, False), (False, True), (True, False)):
        profiler.watch(nodes, inside)
        assert np.array_equal(answers(interpreter, frames), plain)
    assert [len(probe.times_ns) for probe in profiler.probes] == [12] * len(profiler.probes)
    assert all(ns > 0 for probe in profiler.probes for ns in probe.times_ns)


def test_without_xnnpack_every_operation_of_the_file_has_its_own_clock():
    interpreter, profiler = watched(xnnpack=False)
    names = [interpreter.operations()[probe.node].name for probe in profiler.probes]
    assert names == FILE_OPERATIONS
    assert not any(probe.delegate for probe in profiler.probes)


def test_xnnpack_tells_what_it_does_inside_its_block_and_only_when_asked(frames):
    interpreter, profiler = watched()
    profiler.watch(True)
    answers(interpreter, frames)
    assert not any(probe.inside_us for probe in profiler.probes)
    profiler.watch(False, inside=True)
    answers(interpreter, frames)
    blocks = [probe for probe in profiler.probes if probe.delegate]
    assert blocks
    assert [probe.custom_name for probe in blocks] == ["TfLiteXNNPackDelegate"] * len(blocks)
    names = " ".join(name for probe in blocks for _, name in probe.inside_us)
    assert "Convolution" in names
    assert all(len(times) == 6 for probe in blocks for times in probe.inside_us.values())
    assert not any(probe.inside_us for probe in profiler.probes if not probe.delegate)


def test_another_delegate_works_on_below_the_clocks(tmp_path, frames):
    backend = find_backend()
    library = fake_backend.build_delegate(tmp_path)

    def delegate():
        return load(parse_delegate(library), backend)

    plain = answers(Interpreter(str(TINY), backend, 1, delegate()), frames)
    interpreter, profiler = watched(delegate())
    profiler.watch(True)
    assert np.array_equal(answers(interpreter, frames), plain)
    last = profiler.probes[-1]
    assert last.delegate
    assert "XNNPack" not in last.custom_name
    assert len(last.times_ns) == 6


def test_a_graph_that_is_laid_out_otherwise_is_not_watched():
    profiler = OpProfiler()
    interpreter = Interpreter(str(TINY), threads=1, delegate=profiler)
    operations = interpreter.operations()
    for wrong in (None, operations[:1], [Operation("DELEGATE", (), ())] * len(operations)):
        with pytest.raises(BackendError, match="does not show"):
            profiler.attach(wrong)
    with pytest.raises(BackendError, match="does not show"):
        OpProfiler().attach(operations)


def test_every_operation_is_listed_with_its_time_and_its_work(measured):
    assert measured["measured"]
    assert measured["why"] == ""
    rows = measured["operations"]
    accounted = [one["name"] for row in rows for one in row["stands_for"]]
    accounted += [row["name"] for row in rows if not row["delegate"]]
    assert sorted(accounted) == sorted(FILE_OPERATIONS)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert all(0 < row["p50_us"] <= row["p90_us"] for row in rows)
    # A part is never more than the whole, but the two are medians of their own.
    assert 0 < measured["sum_us"] < 1.2 * measured["watched_us"]
    assert sum(row["macs"] for row in rows) > 0


@pytest.mark.slow
def test_operations_add_up_to_the_invoke(real_data):
    path = real_data / "coral" / "mobilenet_v1_0.25_128_quant.tflite"
    found = operation_times(Choices("", threads=1, xnnpack=False), 3.0, model_path=str(path))
    assert len(found["operations"]) == 31
    assert found["sum_us"] == pytest.approx(found["watched_us"], rel=0.1)
    # MobileNet v1 0.25 at 128x128 is published with 14 million.
    assert sum(row["macs"] or 0 for row in found["operations"]) == pytest.approx(14e6, rel=0.05)


@pytest.mark.parametrize(
    ("name", "inputs", "output", "expected"),
    [
        ("CONV_2D", [(1, 8, 8, 3), (16, 3, 3, 3)], (1, 4, 4, 16), 4 * 4 * 16 * 27),
        ("CONV_2D", [(1, 8, 8, 4), (16, 3, 3, 2)], (1, 8, 8, 16), 8 * 8 * 16 * 18),  # two groups
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 3), (1, 5, 5, 6)], (1, 8, 8, 6), 8 * 8 * 6 * 25),
        ("FULLY_CONNECTED", [(1, 64), (10, 64)], (1, 10), 640),
        ("TRANSPOSE_CONV", [(4,), (8, 2, 2, 3), (1, 5, 5, 3)], (1, 10, 10, 8), 5 * 5 * 3 * 8 * 4),
        ("SOFTMAX", [(1, 10)], (1, 10), 0),
        ("DELEGATE", [(1, 10)], (1, 10), None),
        ("CONV_2D", [], (1, 10), None),
    ],
)
def test_multiply_accumulates_come_from_shapes(name, inputs, output, expected):
    shapes = dict(enumerate([*inputs, output]))
    operation = Operation(name, tuple(range(len(inputs))), (len(inputs),))
    assert macs(operation, shapes) == expected


def test_a_profiler_that_ends_its_process_costs_the_times_and_nothing_else(monkeypatch):
    asked = []
    real = op_times._in_child

    def dying(task, timeout_s):
        asked.append(task["way"])
        return (
            {"error": "measuring ended its process with -11"} if task["way"] != "none" else real(task, timeout_s)
        )

    monkeypatch.setattr(op_times, "_in_child", dying)
    report = profile_file(str(TINY), 0.1, threads=1)
    assert asked == ["inside", "nodes", "none"]
    operations = report["operations"]
    assert not operations["measured"]
    assert [row["name"] for row in operations["operations"] if not row["delegate"]] == FILE_OPERATIONS
    shares = [row["macs_share"] for row in operations["operations"] if not row["delegate"]]
    assert sum(share or 0 for share in shares) == pytest.approx(1)
    text = to_text(report)
    assert "times of single operations cannot be had" in text
    assert text.count("-11") == 1
    assert "ESTIMATE" in text
    assert "p50" not in text
    assert "an estimate, not times" in page(report)


@pytest.mark.skipif(os.name != "posix", reason="a script in the place of Python")
def test_a_child_that_is_killed_is_told_of(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(op_times.sys, "executable", str(script))
    with pytest.raises(BackendError, match="ended its process with -9"):
        operation_times(Choices(""), 0.1, model_path=str(TINY))


def test_a_model_that_cannot_be_run_is_refused_with_the_interpreters_words(tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model at all")
    with pytest.raises(BackendError, match="refuses") as raised:
        operation_times(Choices(""), 0.1, model_path=str(broken))
    assert raised.value.remedy


# The loop.


def rows(**shares):
    threads = {"capture": "prepare", "invoke": "loop", "one": "loop"}
    return [{"stage": name, "thread": threads.get(name, ""), "share": share} for name, share in shares.items()]


@pytest.mark.parametrize(
    ("found", "live", "stage", "words"),
    [
        (rows(capture=0.2, invoke=0.9, wait=3.0), False, "invoke", "bound by invoke, 90 %"),
        (rows(capture=0.95, invoke=0.3), True, "capture", "the loop waits for its frames"),
        (rows(capture=0.95, invoke=0.3), False, "capture", "reading the source"),
        (rows(capture=0.5, invoke=0.3, one=0.3), False, "", "handing over between threads"),
        (
            rows(invoke=0.6, one=0.1),
            False,
            "invoke",
            "bound by invoke, 60 %",
        ),  # one thread alone hands nothing over
    ],
)
def test_what_bounds_the_loop(found, live, stage, words):
    answer = bound(found, live)
    assert answer["stage"] == stage
    assert words in answer["text"]


@pytest.fixture(scope="module")
def report(make_contents, tmp_path_factory):
    from edgeferry_runtime.bundle import write_bundle

    path = tmp_path_factory.mktemp("profile") / "tiny.ferry"
    write_bundle(path, *make_contents("tiny", 0))
    return profile_bundle(Choices(str(path)), 1, "synthetic:64x48", 0.6)


def test_a_bundle_is_profiled_in_both_shapes_and_by_operation(report):
    assert [loop["shape"] for loop in report["loop"]] == ["sequential", "pipelined"]
    for loop in report["loop"]:
        assert loop["frames"] > 0
        threads = {row["stage"]: row["thread"] for row in loop["stages"]}
        apart = loop["shape"] == "pipelined"
        assert threads["preprocess"] == ("prepare" if apart else "loop")
        assert threads["invoke"] == "loop"
        assert all(0 <= share <= 1.01 for share in loop["threads"].values())
        assert all(row["p50_us"] <= row["p90_us"] <= row["p99_us"] for row in loop["stages"])
    assert report["operations"]["measured"]
    assert report["operations"]["variant"] == report["variant"] == "int8"
    json.dumps(report, allow_nan=False)
    text = to_text(report)
    for word in ("sequential", "pipelined", "preprocess", "bound by", "SOFTMAX", "p99 ms"):
        assert word in text


def test_the_command_prints_and_writes(bundle, tmp_path, monkeypatch, capsys, report):
    monkeypatch.setattr(profiling, "profile_bundle", lambda *given: report)
    arguments = argparse.Namespace(
        bundle=str(bundle), variant=None, backend=None, threads=None, delegate=None, xnnpack=None, threshold=None,
        top_k=None, require_delegate=None, any_arch=None, source="synthetic:64x48", seconds=0.1, json=True,
        html=str(tmp_path / "profile.html"),
    )  # fmt: skip
    assert profiling.profile(arguments) == 0
    assert json.loads(capsys.readouterr().out)["profile"]["bundle"] == report["bundle"]
    assert (tmp_path / "profile.html").read_text("utf-8") == page(report)
    arguments.html = str(tmp_path / "no" / "folder.html")
    with pytest.raises(UsageError, match="cannot be written"):
        profiling.profile(arguments)


class Read(HTMLParser):
    """Tags of a page, and the bars of its graph as (depth, left, width, title)."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.bars = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given_to = dict(attrs)
        self.tags.append((tag, given_to))
        if tag == "button":
            top = float(given_to["style"].split("top:")[1].split("rem")[0])
            self.bars.append((top, float(given_to["data-x"]), float(given_to["data-w"]), given_to["title"]))


def test_the_page_stands_alone_and_shows_every_operation(report):
    text = page(report)
    found = Read(text)
    assert not [
        tag for tag, attrs in found.tags if tag in ("link", "img", "iframe") or {"src", "href"} & set(attrs)
    ]
    assert "http" not in text
    assert "@import" not in text
    titles = [title for *_, title in found.bars]
    for row in report["operations"]["operations"]:
        assert any(title.startswith("{} {}".format(row["node"], row["name"])) for title in titles)


def test_names_cannot_write_into_the_page(report):
    evil = "<script>alert('x')</script>"
    operations = [dict(row, name=evil) for row in report["operations"]["operations"]]
    text = page(dict(report, bundle=evil, operations=dict(report["operations"], operations=operations)))
    assert evil not in text
    assert [tag for tag, _ in Read(text).tags].count("script") == 1


def boxes(inside):
    """Boxes whose contents fill at most all of them."""

    def fitted(drawn):
        us, shares, inner = drawn
        total = sum(shares[: len(inner)]) or 1.0
        scaled = [one._replace(us=us * share / total) for one, share in zip(inner, shares, strict=False)]
        return Box("n", us, "t", "#fff", [profiling_scaled(one) for one in scaled])

    return st.tuples(st.floats(1, 1e6), st.lists(st.floats(0, 1), min_size=3, max_size=3), inside).map(fitted)


def profiling_scaled(box):
    from edgeferry_runtime.profile_html import _scaled

    return box._replace(inside=_scaled(box.inside, box.us))


LEAF = st.floats(1, 1e6).map(lambda us: Box("n", us, "t", "#fff"))


@given(st.recursive(LEAF, lambda inner: boxes(st.lists(inner, max_size=3)), max_leaves=12))
def test_a_bar_lies_within_the_one_above_it(root):
    above = {}
    for top, left, width, _ in Read(flame(root)).bars:
        level = round(top, 2)
        over = above.get(round(top - 1.85, 2))
        if over is not None:
            assert left >= over[0] - 1e-5
            assert left + width <= over[0] + over[1] + 1e-5
        above[level] = (left, width)
    assert above[0.0] == pytest.approx((0.0, 1.0))
