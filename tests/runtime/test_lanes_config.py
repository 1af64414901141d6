"""Several models in run.json: what is read, what is refused, and all problems at once."""

from __future__ import annotations

import pytest
from edgeferry_runtime import ensemble, run_config
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.lanes_config import HOW, EnsembleConfig, LaneConfig, lanes_problems
from edgeferry_runtime.model_config import ModelConfig
from hypothesis import given
from hypothesis import strategies as st


def read(kind, value):
    fields = Fields(value, "models.a")
    config = kind.read(fields)
    return config, fields.finish()


def problems(lanes, ensembles=None, **more):
    lanes = {name: LaneConfig(**keys) for name, keys in lanes.items()}
    joint = {name: EnsembleConfig(**keys) for name, keys in (ensembles or {}).items()}
    return lanes_problems(lanes, joint, **more)


def test_an_empty_lane_is_the_release_on_every_frame():
    assert read(LaneConfig, {}) == (LaneConfig(), [])
    assert read(LaneConfig, {"bundle": None, "after": None}) == (LaneConfig(), [])
    assert LaneConfig().to_dict() == {}


def test_all_keys():
    value = {
        "bundle": "faces.ferry", "threads": 2, "delegate": "xnnpack", "threshold": 0.5, "every": 3,
        "after": "people", "classes": ["person"], "min_score": 0.4, "margin": 0.1, "max_crops": 3,
        "process": "worker", "load": "lazy", "sinks": ["jsonl:-"], "fps": 5.0, "max_age_ms": 100.0, "motion": 0.01,
    }  # fmt: skip
    config, found = read(LaneConfig, value)
    assert found == []
    assert config.model == ModelConfig(threads=2, delegate="xnnpack", threshold=0.5)
    assert (config.classes, config.load, config.sinks) == (("person",), "lazy", ("jsonl:-",))
    assert config.to_dict() == value
    value = {"of": ["a", "b"], "how": "vote", "threshold": 0.6, "top_k": 2, "sinks": ["jsonl:-"]}
    config, found = read(EnsembleConfig, value)
    assert (found, config.to_dict()) == ([], value)
    assert EnsembleConfig(("a", "b")).to_dict() == {"of": ["a", "b"]}


def test_every_problem_of_a_lane_is_named():
    value = {"every": 0, "process": "thred", "max_crops": 101, "margin": -1, "classes": [], "afer": "b"}
    value["motion"] = 2
    _, found = read(LaneConfig, value)
    assert found == [
        "models.a.every: is 0, must be at least 1",
        "models.a.classes: has 0 entries, needs at least 1",
        "models.a.margin: is -1.0, must be at least 0",
        "models.a.max_crops: is 101, must be at most 100",
        "models.a.process: is 'thred', must be one of 'auto', 'thread', 'worker', did you mean 'thread'?",
        "models.a.motion: is 2.0, must be at most 1",
        "models.a.afer: is unknown, did you mean 'after'?",
    ]


def test_the_contract_and_the_board_know_the_same_ways():
    assert tuple(ensemble.HOW) == HOW
    assert run_config.ModelConfig is ModelConfig


def test_what_fits_has_no_problems():
    lanes = {
        "people": {"sinks": ("jsonl:/a/people.jsonl",)},
        "faces": {"after": "people", "classes": ("person",), "sinks": ("jsonl:-",)},
        "eyes": {"after": "faces", "sinks": ("jsonl:-",)},
        "scene_1": {"every": 5},
        "scene-2": {"every": 5},
    }
    assert problems(lanes, {"scene": {"of": ("scene_1", "scene-2")}}) == []


def test_all_problems_at_once():
    lanes = {
        "People": {"margin": 0.5, "max_crops": 2},
        "faces": {"after": "Peple"},
        "both": {"after": "both"},
        "one": {"after": "three", "sinks": ("jsonl:a.jsonl",)},
        "two": {"after": "one", "sinks": ("csv:./x/../a.jsonl?keep=3",)},
        "three": {"after": "two", "sinks": ("record:/r", "annotate:/r")},
        "behind": {"after": "one"},
        "crop": {"after": "solo"},
    }
    ensembles = {
        "both": {"of": ("faces",)},
        "solo": {"of": ("faces", "crop", "solo", "faces", "crops")},
        "a b": {"of": ("one", "one")},
    }
    assert problems(lanes, ensembles, sinks=("jsonl:/r",)) == [
        ("models.People", "is no name: 1 to 32 of a-z, 0-9, - and _"),
        ("ensembles.a b", "is no name: 1 to 32 of a-z, 0-9, - and _"),
        ("ensembles.both", "is the name of a model as well; results could not be told apart"),
        ("models.People.margin", "is about boxes, and needs the model that finds them: after = NAME"),
        ("models.People.max_crops", "is about boxes, and needs the model that finds them: after = NAME"),
        (
            "models.faces.after",
            "'Peple' is no model, did you mean 'People'?; there are "
            "People, faces, both, one, two, three, behind, crop",
        ),
        ("models.both.after", "goes in a circle: both after both"),
        ("models.one.after", "goes in a circle: one after three after two after one"),
        ("models.crop.after", "'solo' is an ensemble, which gives no boxes"),
        ("ensembles.both.of", "names 1 models, an ensemble has two or more"),
        ("ensembles.solo.of[2]", "'solo' is an ensemble; name its members"),
        ("ensembles.solo.of[3]", "'faces' is named twice"),
        (
            "ensembles.solo.of[4]",
            "'crops' is no model, did you mean 'crop'?; there are "
            "People, faces, both, one, two, three, behind, crop",
        ),
        ("ensembles.solo.of", "'faces' and 'crop' do not run the same frames: their after differs"),
        ("ensembles.a b.of[1]", "'one' is named twice"),
        ("models.two.sinks[0]", "writes where models.one.sinks[0] writes already; each needs a place of its own"),
        ("models.three.sinks[0]", "writes where sinks[0] writes already; each needs a place of its own"),
        ("models.three.sinks[1]", "writes where sinks[0] writes already; each needs a place of its own"),
    ]


def test_members_must_run_the_same_frames():
    lanes = {"a": {"every": 2, "fps": 5.0}, "b": {}}
    assert problems(lanes, {"ab": {"of": ("a", "b")}}) == [
        ("ensembles.ab.of", "'a' and 'b' do not run the same frames: their every and fps differ")
    ]


@pytest.mark.parametrize("uri", ["jsonl:-", "mqtt://broker/topic", "webhook:https://host/x"])
def test_what_may_be_shared(uri):
    assert problems({"a": {"sinks": (uri,)}, "b": {"sinks": (uri,)}}, sinks=(uri,)) == []


def test_sinks_are_judged_one_by_one_where_nobody_else_does():
    def judge(uri):
        return ["is no sink"]

    found = problems({"a": {"sinks": ("jsnl:x",)}}, sinks=("bad:y",), sink_problems=judge)
    assert found == [("models.a.sinks[0]", "is no sink")]


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([None, *"abcdef"]), min_size=1))
def test_every_circle_is_found_once_and_nothing_else_is_one(after):
    def meets_itself(name):
        seen = set()
        while name in after and name not in seen:
            seen.add(name)
            name = after[name]
        return name in seen

    found = [problem for _, problem in problems({name: {"after": to} for name, to in after.items()})]
    circles = [problem for problem in found if "circle" in problem]
    named = {name for problem in circles for name in problem.rpartition(": ")[2].split(" after ")}
    assert bool(circles) == any(meets_itself(name) for name in after)
    assert sum(len(set(problem.rpartition(": ")[2].split(" after "))) for problem in circles) == len(named)
    for name in named:
        assert meets_itself(name)
