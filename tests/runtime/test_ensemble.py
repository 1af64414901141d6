"""An ensemble: how scores become one answer, which frames are joined, and which are given up."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import Model
from edgeferry_runtime.ensemble import Ensemble, Joining, check_members, joined
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.sources.base import Region
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fake_lanes", HERE / "fake_lanes.py")
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
Kept, pictures, result = fake.Kept, fake.pictures, fake.result

LABELS = ("cat", "dog", "bird")
ONE, TWO, THREE = (np.array(row, np.float32) for row in ([0.6, 0.3, 0.1], [0.1, 0.5, 0.4], [0.2, 0.5, 0.3]))


def of(answer):
    return [(entry.label, round(entry.score, 6)) for entry in answer.classes]


def test_the_mean_of_the_scores():
    assert of(joined([ONE, TWO], Joining("e", "mean", LABELS))) == [("dog", 0.4), ("cat", 0.35), ("bird", 0.25)]
    assert of(joined([ONE, TWO], Joining("e", "mean", LABELS, 0.3, 5))) == [("dog", 0.4), ("cat", 0.35)]
    assert of(joined([ONE, TWO], Joining("e", "mean", LABELS, 0.0, 1))) == [("dog", 0.4)]


def test_the_class_most_members_put_first():
    joining = Joining("e", "vote", LABELS)
    assert of(joined([ONE, TWO, THREE], joining)) == [("dog", 0.666667), ("cat", 0.333333)]
    # One vote each: the mean decides, not the order.
    assert of(joined([ONE, TWO], joining)) == [("dog", 0.5), ("cat", 0.5)]
    assert of(joined([TWO, ONE], joining)) == [("dog", 0.5), ("cat", 0.5)]
    assert of(joined([ONE, TWO, THREE], joining._replace(threshold=0.5))) == [("dog", 0.666667)]


@given(arrays(np.float32, st.tuples(st.integers(2, 5), st.integers(1, 8)), elements=st.floats(0, 1, width=32)))
def test_joint_answers_are_what_their_definitions_say(scores):
    mean = joined(list(scores), Joining("e", "mean", top_k=100)).classes
    means = scores.astype(np.float64).mean(axis=0)
    assert [entry.score for entry in mean] == sorted(means.tolist(), reverse=True)
    assert all(entry.score == means[entry.index] for entry in mean)
    vote = joined(list(scores), Joining("e", "vote", top_k=100)).classes
    firsts = [int(row.argmax()) for row in scores]
    assert {entry.index: round(entry.score * len(scores)) for entry in vote} == {
        index: firsts.count(index) for index in firsts
    }
    best = max(firsts, key=lambda index: (firsts.count(index), means[index], -index))
    assert vote[0].index == best


def make(members=2, how="mean", live=True, **more):
    sink = Kept(**more)
    return Ensemble(Joining("pair", how, LABELS), members, [sink], live), sink


def give(ensemble, member, number, scores=ONE, region=None):
    frame = pictures(1)[0]._replace(number=number, region=region)
    ensemble.take(member, frame, result(number, region=region, bundle="ab"[member] + "-1"), scores)


def test_a_frame_is_answered_when_the_last_member_has_answered_it():
    ensemble, sink = make()
    give(ensemble, 0, 5, ONE)
    assert ensemble.frames == 0
    give(ensemble, 1, 5, TWO)
    ensemble.finish()
    (answer,) = sink.results
    assert (answer.frame, answer.bundle, answer.variant, answer.backend) == (5, "pair(a-1+b-1)", "mean", "fake 1")
    assert answer.model == "pair"
    assert of(answer.answer)[0] == ("dog", 0.4)
    # All but capture add up to the age, as in every result.
    assert sum(answer.stages_us[1:]) - sum(result(0).stages_us[1:]) == pytest.approx(answer.age_us - 5.0)
    assert answer.to_json()["model"] == "pair"
    assert ensemble.state()["sinks"]["kept:"]["written"] == 1


def test_members_may_be_a_few_frames_apart():
    ensemble, sink = make()
    for number in range(4):
        give(ensemble, 0, number)
    for number in range(4):
        give(ensemble, 1, number)
    ensemble.finish()
    assert (sink.numbers, ensemble.unmatched) == ([0, 1, 2, 3], 0)


def test_a_frame_a_member_has_passed_over_is_given_up_at_once():
    ensemble, sink = make(3)
    for member, number in [(0, 1), (1, 1), (0, 2), (1, 2), (2, 2), (2, 4), (0, 4), (1, 3), (1, 4)]:
        ensemble.take(member, pictures(1)[0]._replace(number=number), result(number), ONE)
    ensemble.finish()
    assert sink.numbers == [2, 4]
    assert ensemble.unmatched == 2  # 1, which the third never answered; 3, which only the second did
    assert sink.results[1].dropped == 1


def test_waiting_is_bounded():
    ensemble, sink = make()
    for number in range(100):
        give(ensemble, 0, number)
    assert ensemble.unmatched == 92
    for number in range(70, 100):
        give(ensemble, 1, number)
    ensemble.finish()
    assert sink.numbers == list(range(92, 100))
    assert (ensemble.frames, ensemble.unmatched) == (8, 92)


def test_what_waits_for_a_member_that_is_away_is_given_up():
    ensemble, sink = make(3)
    for member in range(2):
        ensemble.take(member, pictures(1)[0], result(0), ONE)
    ensemble.set_away(2, True)
    assert ensemble.unmatched == 1
    ensemble.take(0, pictures(1)[0]._replace(number=1), result(1), ONE)
    assert ensemble.unmatched == 2
    ensemble.set_away(2, False)
    for member in range(3):
        ensemble.take(member, pictures(1)[0]._replace(number=2), result(2), ONE)
    ensemble.finish()
    assert (sink.numbers, ensemble.unmatched) == ([2], 2)


def test_one_that_answered_before_it_went_away_still_counts():
    ensemble, sink = make()
    give(ensemble, 0, 3)
    ensemble.set_away(0, True)
    give(ensemble, 1, 3)
    ensemble.finish()
    assert (sink.numbers, ensemble.unmatched) == ([3], 0)


def test_crops_are_joined_by_frame_and_box():
    ensemble, sink = make()
    regions = [Region(box, "cat", 0.9, 0, 0, 5, 5) for box in range(2)]
    for member in range(2):
        for region in regions:
            give(ensemble, member, 4, region=region)
    ensemble.finish()
    assert [(answer.frame, answer.region.box) for answer in sink.results] == [(4, 0), (4, 1)]
    assert sink.results[1].to_json()["region"]["box"] == 1


def test_pixels_are_kept_only_for_sinks_that_look_at_them():
    ensemble, _ = make()
    give(ensemble, 0, 1)
    assert ensemble._waiting[(1,)].frame.pixels.size == 0
    ensemble.finish()
    ensemble, _ = make(wants_pixels=True)
    give(ensemble, 0, 1)
    assert ensemble._waiting[(1,)].frame.pixels.shape == (20, 30, 3)
    ensemble.finish()


def test_a_member_goes_on_when_joining_fails(bundle, caplog):
    ensemble, sink = make()
    with Model.open(bundle, threads=1) as model:
        model(pictures(1)[0].pixels)
        ensemble.take(0, pictures(1)[0], result(0), ONE)  # three classes, and the model has four
        ensemble.members[1].saw(pictures(1)[0], result(0), model)
    assert (ensemble.frames, ensemble.unmatched) == (0, 1)
    assert "ValueError" in ensemble.state()["trouble"]
    ensemble.finish()
    assert sink.results == []
    assert len(caplog.records) == 1


def test_what_a_member_is_asked_for_are_all_its_scores(bundle):
    ensemble, sink = make()
    with Model.open(bundle, threads=1, top_k=1, threshold=0.9) as model, Model.open(bundle, threads=1) as whole:
        frame = pictures(1)[0]
        model(frame.pixels)
        expected = whole(frame.pixels)
        for member in ensemble.members:
            member.saw(frame, result(0), model)
    ensemble.finish()
    scores = {entry.index: entry.score for entry in sink.results[0].answer.classes}
    assert scores == pytest.approx({entry.index: entry.score for entry in expected.classes})


def test_members_must_agree_on_the_classes(make_bundle):
    def labelled(text):
        def change(manifest, members):
            return manifest, dict(members, **{"labels.txt": text})

        return change

    def unlabelled(manifest, members):
        members = {name: data for name, data in members.items() if name != "labels.txt"}
        return replace(manifest, postprocessing=replace(manifest.postprocessing, labels="")), members

    def detecting(manifest, members):
        declared = replace(manifest.postprocessing, task="embed", outputs={"embedding": "scores"}, labels="")
        return replace(manifest, postprocessing=declared), members

    same = make_bundle("one"), make_bundle("two", 1)
    other = make_bundle("three", 0, labelled(b"alpha\nbeta\ngemma\ndelta\n"))
    plain, embedding = make_bundle("four", 0, unlabelled), make_bundle("five", 0, detecting)
    one, two, three, four, five = (Model.open(path, threads=1) for path in (*same, other, plain, embedding))
    try:
        assert check_members("e", [one, two]) == ("alpha", "beta", "gamma", "delta")
        assert check_members("e", [four, four]) == ("",) * 4
        with pytest.raises(UsageError) as caught:
            check_members("e", [one, two, three])
        assert one.identity in caught.value.message
        assert three.identity in caught.value.message
        assert "class 2 is 'gamma' and 'gemma'" in caught.value.message
        with pytest.raises(UsageError, match="class 0 is 'alpha' and ''"):
            check_members("e", [one, four])
        with pytest.raises(UsageError, match="does embed, and an ensemble joins classifiers"):
            check_members("e", [one, five])
    finally:
        for model in (one, two, three, four, five):
            model.close()
