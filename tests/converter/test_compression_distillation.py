"""Distillation: the loss is the formula, soft targets teach, weak teachers are sent away with figures."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.distillation import (
    DistillOptions,
    SoftTargets,
    Standing,
    WeakTeacherError,
    _loss,
    check_teacher,
    distill,
    measure,
)
from edgeferry_converter.compression.training import TrainOptions, fine_tune
from edgeferry_converter.errors import OptionError

CLASSES = 4
OPTIONS = TrainOptions(15, 0.03, 32)


class Batches:
    def __init__(self, data, size, augment):
        self.epoch, self.data, self.size, self.turned = 0, data, size, augment == "shift"

    def __len__(self):
        return len(self.data.x) // self.size

    def __getitem__(self, i):
        part = slice(i * self.size, (i + 1) * self.size)
        x = self.data.x[part, ::-1] if self.turned else self.data.x[part]
        return (x,) if self.data.y is None else (x, self.data.y[part])


class Data:
    """Points of four classes; "augmented" ones are mirrored, so that classes look like others."""

    classes, description = CLASSES, "points"

    def __init__(self, labelled=True):
        random = np.random.default_rng(0)
        y = random.integers(0, CLASSES, 128).astype(np.int32)
        self.x = (np.eye(CLASSES)[y] * 3 + random.normal(0, 0.7, (128, CLASSES))).astype(np.float32)
        self.truth, self.y = y, y if labelled else None
        self.task, self.size = "classify" if labelled else "", 128

    def batches(self, batch_size, seed=0, augment=None):
        return Batches(self, batch_size, augment)


@pytest.fixture
def build(keras):
    def build(activation="softmax", seed=1, classes=CLASSES):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(24, "relu"), keras.layers.Dense(classes, activation)]
        return keras.Sequential([keras.Input((CLASSES,)), *layers])

    return build


@pytest.fixture
def teacher(build):
    model = build(None, seed=7)
    fine_tune(model, Data(), TrainOptions(10, 0.03, 32))
    return model


def right(model, data):
    return float((model.predict(data.x, verbose=0).argmax(axis=1) == data.truth).mean())


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("logits", [True, False])
def test_the_loss_is_the_published_one(keras, logits):
    random = np.random.default_rng(0)
    own, taught = random.normal(0, 2, (2, 5, CLASSES))
    label = np.array([0, 3, 2, -1, 1])
    temperature, alpha = 3.0, 0.4
    hard = -np.log(softmax(own)[np.arange(5), label])
    wanted, given = softmax(taught / temperature), softmax(own / temperature)
    soft = temperature**2 * (wanted * np.log(wanted / given)).sum(axis=1)
    expected = np.where(label < 0, soft, alpha * hard + (1 - alpha) * soft)
    targets = np.concatenate([label[:, None], taught], axis=1).astype(np.float32)
    answers = (own if logits else softmax(own)).astype(np.float32)
    found = _loss(DistillOptions(temperature, alpha), logits)(targets, keras.ops.convert_to_tensor(answers))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("activation", ["softmax", None])
def test_a_student_learns_with_and_without_labels(build, teacher, labelled, activation):
    data, student = Data(labelled), build(activation)
    before = [np.asarray(weight).copy() for weight in teacher.weights]
    result = distill(student, teacher, data, OPTIONS)
    assert right(student, data) > 0.9
    assert (result.standing is not None) == labelled
    if labelled:
        assert result.standing.teacher > 0.9 > result.standing.student
        assert result.history.epochs[-1]["accuracy"] > 0.85
    for one, other in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))
    assert teacher.trainable_weights


def test_soft_targets_are_the_teacher_s_answers_on_the_very_batch(build, teacher):
    data = Data()
    for augment in ("none", "shift"):
        x, targets = SoftTargets(data, teacher, logits=True).batches(32, 0, augment)[1]
        np.testing.assert_allclose(targets[:, 1:], teacher.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
        assert targets[:, 0].tolist() == data.y[32:64].tolist()


def test_a_teacher_who_fails_on_augmented_images_is_refused(build, teacher):
    options = TrainOptions(2, 0.03, 32, augment="shift")
    standing = measure(build(), teacher, Data(), options, 128)
    assert standing.teacher < 0.2 and standing.teacher_plain > 0.9
    with pytest.raises(WeakTeacherError, match=r"as augmented; .*on plain ones it is right on (9|100)") as e:
        distill(build(), teacher, Data(), options)
    assert e.value.standing == standing and "fine-tune the teacher" in e.value.remedy
    forced = distill(build(), teacher, Data(), options, DistillOptions(force=True))
    assert forced.standing == standing


def test_a_teacher_weaker_than_the_student_or_the_limit_is_refused(build, teacher):
    with pytest.raises(WeakTeacherError, match="the student itself is right on"):
        distill(teacher, build(), Data(), OPTIONS)
    with pytest.raises(WeakTeacherError, match=r"right on 80.0% .*at least 90.0% are asked for"):
        check_teacher(Standing(0.8, 0.5, 0.8), DistillOptions(min_accuracy=0.9))
    check_teacher(Standing(0.8, 0.8, 0.82), DistillOptions(min_accuracy=0.8))


def test_other_classes_are_refused(build, teacher):
    with pytest.raises(OptionError, match=r"student answers \[None, 3\], the teacher \[None, 4\]"):
        distill(build(classes=3), teacher, Data(), OPTIONS)
    with pytest.raises(OptionError, match="temperature"):
        DistillOptions(temperature=0)
