"""Tasks whose answers are numbers: classify, regress, raw; and the table that makes any of them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.postprocessing import ROLES, TASKS, Postprocessing
from edgeferry_runtime.tasks import make_task
from edgeferry_runtime.tasks.base import Task, significant
from edgeferry_runtime.tasks.classify import Classification, Classify
from edgeferry_runtime.tasks.raw import LISTED_MAX, Raw
from edgeferry_runtime.tasks.regress import Regress

REGRESS = Postprocessing("regress", {"values": "v"})


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_made(name):
    decoder = {"detect": "yolo-v8", "keypoints": "movenet"}.get(name, "")
    declared = Postprocessing(name, {role: role for role in ROLES[name][0]}, decoder=decoder)
    task = make_task(declared, ["a"], (8, 8))
    assert isinstance(task, Task)
    assert (task.declared, task.labels, task.input_size) == (declared, ["a"], (8, 8))


def test_unknown_task():
    with pytest.raises(BackendError, match="did you mean 'detect'"):
        make_task(Postprocessing("detectt"))


def test_a_classifier_loads_no_other_task():
    code = (
        "import sys; from edgeferry_runtime.tasks import make_task\n"
        "from edgeferry_runtime.postprocessing import Postprocessing\n"
        "make_task(Postprocessing('classify', {'scores': 's'}))\n"
        "print(*[m for m in sys.modules if m.startswith('edgeferry_runtime.tasks.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert sorted(done.stdout.split()) == ["edgeferry_runtime.tasks.base", "edgeferry_runtime.tasks.classify"]


def test_classify_by_name_or_bare():
    classify = Classify(Postprocessing("classify", {"scores": "s"}), ["a", "b"])
    scores = np.array([[0.25, 0.75]], np.float32)
    answer = classify({"s": scores, "other": scores[:, :1]}, None, (4, 4))
    assert answer == classify(scores)
    assert answer.headline() == "b 75%"
    assert answer.to_json() == {
        "classes": [{"index": 1, "label": "b", "score": 0.75}, {"index": 0, "label": "a", "score": 0.25}]
    }
    assert Classification(()).headline() == "-"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_classify_refuses_what_is_not_finite(bad, kind):
    classify = Classify(Postprocessing("classify", {"scores": "s"}, scores=kind))
    with pytest.raises(BackendError, match="'s' is NaN or infinite"):
        classify({"s": np.array([[0.5, bad]], np.float32)})


def test_an_impossible_class_is_no_error():
    classify = Classify(Postprocessing("classify", {"scores": "s"}, scores="logits"))
    assert classify.scores({"s": np.array([[0.5, -np.inf]], np.float32)}).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [({"t": np.zeros((1, 2))}, "'s' is missing: the model has t"), ({"s": np.zeros((2, 2))}, "batch must be 1")],
)
def test_classify_refuses_other_outputs(outputs, message):
    with pytest.raises(BackendError, match=message):
        Classify(Postprocessing("classify", {"scores": "s"}))(outputs)


def test_regress():
    answer = Regress(REGRESS, ["angle", "speed"])({"v": np.array([[12.3456789, -3]], np.float32)})
    assert answer.values == (pytest.approx(12.3456789), -3)
    assert json.loads(json.dumps(answer.to_json())) == {"values": [12.3457, -3], "labels": ["angle", "speed"]}
    assert answer.headline() == "angle 12.35, speed -3"
    bare = Regress(REGRESS)({"v": np.array([0.5], np.float32)})
    assert bare.to_json() == {"values": [0.5]}
    assert bare.headline() == "0.5"
    assert Regress(REGRESS)({"v": np.ones((1, 1, 1, 3), np.float32)}).values == (1, 1, 1)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((1, 2, 2)), "not \\[1, values\\]"),
        (np.array([[1, np.nan]]), "NaN or infinite"),
        (np.array([[1, np.inf]]), "NaN or infinite"),
        (np.zeros((1, 3)), "3 values for 2 labels"),
    ],
)
def test_regress_refuses_other_outputs(output, message):
    with pytest.raises(BackendError, match=message):
        Regress(REGRESS, ["a", "b"])({"v": output.astype(np.float32)})


def test_raw_hands_out_copies():
    outputs = {"a": np.array([[1 / 3, np.nan, -np.inf]], np.float32), "b": np.zeros((1, 2, 2), np.float32)}
    answer = Raw(Postprocessing("raw"))(outputs)
    outputs["b"][:] = 9
    assert answer.outputs["b"].max() == 0
    with pytest.raises(ValueError, match="read-only"):
        answer.outputs["b"][:] = 1
    expected = {"outputs": {"a": [[0.333333, None, None]], "b": [[[0, 0], [0, 0]]]}}
    assert json.loads(json.dumps(answer.to_json(), allow_nan=False)) == expected
    assert answer.headline() == "a 1x3, b 1x2x2"


def test_raw_sums_large_outputs_up():
    large = np.arange(LISTED_MAX + 1, dtype=np.float32)[None]
    large[0, 1] = np.nan
    nothing = np.full((1, LISTED_MAX + 1), np.inf, np.float32)
    just = np.zeros((1, LISTED_MAX), np.float32)
    value = Raw(Postprocessing("raw"))({"large": large, "nothing": nothing, "just": just}).to_json()["outputs"]
    assert value["large"] == {"shape": [1, 4097], "min": 0, "max": 4096, "mean": 2048.5, "not_finite": 1}
    assert value["nothing"] == {"shape": [1, 4097], "min": None, "max": None, "mean": None, "not_finite": 4097}
    assert len(value["just"][0]) == LISTED_MAX


def test_significant_digits():
    assert [significant(v) for v in (1234567.0, 0.0001234567, -0.0, 5)] == [1234570, 0.000123457, 0, 5]
