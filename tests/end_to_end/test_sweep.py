"""A small sweep with nothing made up: recipes of one epoch, the front, the bundle, and its repetition."""

from __future__ import annotations

import io
import json
import os
import tomllib

import numpy as np
import pytest
from edgeferry_deploy.cli import main
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.check import check_here

pytest.importorskip("optuna")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = """
parts = [["prune"], ["qat"]]
[train]
epochs = 1
batch_size = 16
[prune]
kind = "channels"
target = [0.5, 0.8]
align = 2
rounds = 1
[qat]
epochs = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained model of three colours, and its data."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    folder = tmp_path_factory.mktemp("sweep")
    random = np.random.default_rng(0)
    frames = random.integers(0, 90, (120, 16, 16, 3))
    labels = np.arange(120) % 3
    for frame, label in zip(frames, labels, strict=True):
        frame[..., label] += random.integers(60, 160)
    for name, part in (("data", slice(0, 60)), ("train", slice(60, None))):
        with io.BytesIO() as file:
            np.savez(file, x=frames[part].astype(np.uint8), y=labels[part])
            (folder / f"{name}.npz").write_bytes(file.getvalue())
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.ReLU()(layers.Conv2D(16, 3, strides=2, padding="same", name="second")(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(frames / 255.0, labels, epochs=20, verbose=0)
    model.save(folder / "colours.keras")
    (folder / "space.toml").write_text(SPACE)
    return folder


def argv(place, *more):
    fixed = ["--profile", "host", "--preprocess", "unit", "--data", str(place / "data.npz"), "--json"]
    return [str(place / "colours.keras"), *fixed, "--train-data", str(place / "train.npz"), *more]


def test_a_sweep_and_the_repetition_of_its_best(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    options = ["--space", "space.toml", "--trials", "3", "--max-drop", "0.5", "--pick", "--jobs", "2"]
    assert main(["sweep", *argv(place, *options)]) == 0
    found = json.loads(capsys.readouterr().out)
    trials = {trial["number"]: trial for trial in found["trials"]}
    assert len(trials) == 4 and not any(trial["reason"] for trial in trials.values())
    pruned = [trial for trial in trials.values() if "prune" in trial["recipe"]]
    assert pruned and all(trial["bytes"] < trials[0]["bytes"] for trial in pruned)
    assert found["warnings"][0].startswith("the best of"), "no sample that judges was trained on"
    chosen = trials[found["picked"]["trial"]]
    assert check_here(found["picked"]["bundle"], None, None, None).ok
    with Bundle.open(found["picked"]["bundle"]) as bundle:
        carried = bundle.manifest.provenance["recipe"].get("compression", {})
        assert bundle.manifest.provenance["gate"]["variants"]["int8"]["metric"] == chosen["metric"]
    if chosen["number"] == 0:
        return
    recipe = tomllib.loads((place / found["picked"]["recipe"]).read_text())
    assert {key: carried[key] for key in ("name", "description")} == {key: recipe[key] for key in
                                                                   ("name", "description")}  # fmt: skip
    again = ["--recipe", found["picked"]["recipe"], "--max-drop", "0", "-o", "again.ferry"]
    assert main(["convert", *argv(place, *again)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["evaluation"]["variants"]["int8"]["bytes"] == pytest.approx(chosen["bytes"], rel=0.05)
    assert report["gate"]["int8"]["drop"]["value"] == pytest.approx(chosen["drop"], abs=0.2)
