"""Recipes carried out: what a conversion with one gives, and what it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from edgeferry_converter.errors import OptionError, RecipeError
from edgeferry_converter.recipe import load_recipe
from edgeferry_deploy.cli import main
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.check import check_here

RECIPES = {
    "channels": '[prune]\nkind = "channels"\ntarget = 0.6\nstart_epochs = 1\nrounds = 2\nalign = 2\n',
    "bytes": '[prune]\nkind = "channels"\nmeasure = "bytes"\ntarget = 0.9\nrounds = 1\nalign = 2\n',
    "magnitude": '[prune]\nkind = "magnitude"\nsparsity = 0.5\nexclude = ["classes"]\n',
    "recalibrated": "",
    "qat": "[qat]\nfloat_epochs = 1\nepochs = 2\n",
}
TRAIN = "[train]\nepochs = 2\nbatch_size = 16\n"


@pytest.fixture(scope="module")
def model(keras, tmp_path_factory) -> Path:
    """A small convolutional network that was not trained."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="second")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))
    path = tmp_path_factory.mktemp("compressed") / "small.keras"
    model.save(path)
    return path


@pytest.fixture
def recipe(tmp_path):
    def make(name: str, more: str = "") -> Path:
        path = tmp_path / f"{name}.toml"
        train = TRAIN if RECIPES[name] else "recalibrate = true\n"
        path.write_text(f'name = "{name}"\ndescription = "x"\n{train}{RECIPES[name]}{more}')
        return path

    return make


def convert(model: Path, images: Path, recipe: Path, tmp_path: Path, *more: str) -> int:
    argv = ["convert", str(model), "--profile", "host", "--data", str(images), "--preprocess", "unit"]
    argv += ["--recipe", str(recipe), "--train-data", str(images), "--max-drop", "0", "--json"]
    return main([*argv, "-o", str(tmp_path / "small.ferry"), *more])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_ends_in_a_proven_bundle_that_carries_it(
    model, image_folders, recipe, tmp_path, capsys, monkeypatch, name
):
    assert convert(model, image_folders, recipe(name), tmp_path) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["compression"]
    variants = report["evaluation"]["variants"]
    assert variants["int8"]["in_bundle"]
    assert not variants["int8 of the source"]["in_bundle"]
    assert ("int8, trained as long" in variants) == (name == "qat")
    expected = load_recipe(str(tmp_path / f"{name}.toml")).values()
    with Bundle.open(tmp_path / "small.ferry") as bundle:
        assert bundle.manifest.provenance["recipe"]["compression"] == expected
        assert [variant.name for variant in bundle.manifest.variants] == ["int8"]
    assert check_here(str(tmp_path / "small.ferry"), None, None, None).ok
    assert not (tmp_path / "small.training").exists()
    assert "Made smaller" in (tmp_path / "small.report.html").read_text()
    if name == "channels":
        before, after = found["macs"]
        assert after <= 0.6 * before
        told = [(history["name"], len(history["epochs"])) for history in found["training"]]
        assert told == [("before pruning", 1), ("round 1", 1), ("round 2", 2)]
    if name == "bytes":
        # Of so small a model the file is mostly names; what was asked for was looked for before training.
        assert found["macs"][1] < found["macs"][0]
    if name == "magnitude":
        assert all(
            share == pytest.approx(0.5, abs=0.1)
            for path, share in found["prune"]["zeros"].items()
            if "first" in path
        )
        assert variants["int8"]["compressed_bytes"] < variants["int8 of the source"]["compressed_bytes"]
        assert "latency is the same" in found["prune"]["note"]
    if name == "recalibrated":
        assert found["training"] == []
        assert found["macs"][0] == found["macs"][1]
    if name == "qat":
        assert found["qat"]["in_float"] == {}
        told = [(history["name"], len(history["epochs"])) for history in found["training"]]
        assert told == [("before rounding", 1), ("without rounding", 2), ("with rounding", 2)]


def test_an_interrupted_run_goes_on(model, image_folders, recipe, tmp_path, capsys, monkeypatch):
    """Ctrl-C after the first of three trainings: the second start trains only what is missing."""
    from edgeferry_converter.compression import flow

    real = flow.fine_tune
    rounds = []

    def interrupted(*arguments, **options):
        if rounds:
            raise KeyboardInterrupt
        rounds.append(1)
        return real(*arguments, **options)

    file = recipe("channels")
    monkeypatch.setattr(flow, "fine_tune", interrupted)
    assert convert(model, image_folders, file, tmp_path) == 130
    assert not (tmp_path / "small.ferry").exists()
    assert list((tmp_path / "small.training").rglob("training.npz"))
    monkeypatch.setattr(flow, "fine_tune", real)
    capsys.readouterr()
    assert convert(model, image_folders, file, tmp_path) == 0
    training = json.loads(capsys.readouterr().out)["compression"]["training"]
    assert [history["resumed_at"] for history in training] == [1, 0, 0]
    assert not (tmp_path / "small.training").exists()


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_teacher_s_answers_train_too(model, image_folders, recipe, tmp_path, capsys, epochs):
    """The teacher is trained first, once, as long as is said, and no longer than --epochs; the source is not."""
    file = recipe("channels", f"[distill]\nallow_weak = true\nteacher_epochs = {epochs}\n")
    source = model.read_bytes()
    assert convert(model, image_folders, file, tmp_path, "--epochs", "1") == 0
    training = json.loads(capsys.readouterr().out)["compression"]["training"]
    taught = [history for history in training if history["name"] != "teacher"]
    assert len(training) - len(taught) == (1 if epochs else 0)
    assert training[0]["name"] == ("teacher" if epochs else "before pruning")
    assert all(0 <= history["teacher"]["teacher"] <= 1 for history in taught)
    assert [len(history["epochs"]) for history in training] == [1] * len(training)
    assert model.read_bytes() == source


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train-data", "x"], "--train-data means nothing without --recipe"),
        (["--epochs", "3"], "--epochs means nothing without --recipe"),
        (["--recipe", "chanels-50"], 'Did you mean "channels-50"'),
        (["--recipe", "channels-50", "--epochs", "0"], "--epochs is 0"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_loaded(tmp_path, capsys, options, said):
    argv = ["convert", str(tmp_path / "none.keras"), "--profile", "host", "--data", str(tmp_path), *options]
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_training_needs_data_and_a_keras_model(model, image_folders, recipe, tmp_path, capsys, keras):
    argv = ["convert", str(model), "--profile", "host", "--data", str(image_folders), "--preprocess", "unit"]
    argv += ["--max-drop", "0", "-o", str(tmp_path / "small.ferry"), "--recipe", str(recipe("qat"))]
    assert main(argv) == 2
    assert "Add --train-data" in capsys.readouterr().err
    assert main([*argv, "--train-data", str(tmp_path / "nowhere")]) != 0
    assert "nowhere" in capsys.readouterr().err
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((4, 16, 16, 3), np.uint8), y=np.array([0, 1, 2, 9]))
    assert main([*argv, "--train-data", str(other)]) == 1
    assert "9" in capsys.readouterr().err
    assert list(tmp_path.glob("*.ferry")) == []


def test_the_list_of_recipes(capsys):
    assert main(["recipes", "--json"]) == 0
    names = [recipe["name"] for recipe in json.loads(capsys.readouterr().out)]
    assert "channels-50" in names
    assert main(["recipes"]) == 0
    assert all(name in capsys.readouterr().out for name in names[:1])
    assert main(["recipes", "qat"]) == 0
    assert json.loads(capsys.readouterr().out)["qat"]["bits"] == 8
    assert main(["recipes", "--reference"]) == 0
    assert "[prune]" in capsys.readouterr().out


def test_the_epochs_of_the_command_line_count_for_all_trainings():
    assert load_recipe("qat").with_epochs(3).qat.epochs == 3
    with pytest.raises(RecipeError):
        load_recipe("nothing")
    assert issubclass(OptionError, ValueError)


def test_statistics_alone_need_images_without_labels(keras, tmp_path, capsys):
    """A model whose BatchNorm knows far brighter pictures answers one class for all, until it is measured anew."""
    random = np.random.default_rng(0)
    classes = np.arange(60) % 2
    pictures = (
        random.integers(0, 20, (60, 16, 16, 3), dtype=np.uint8)
        + (classes * 8).astype(np.uint8)[:, None, None, None]
    )
    for kind, names in (("labelled", ["dark", "light"]), ("plain", ["", ""])):
        for i, picture in enumerate(pictures):
            folder = tmp_path / kind / names[classes[i]]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{i}.png"), picture)
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization(momentum=0.5)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="classes")(x))
    model.get_layer("classes").set_weights([np.array([[-3.0, 3.0]] * 3, np.float32), np.zeros(2, np.float32)])
    model.layers[1].set_weights([np.ones(3), np.zeros(3), np.full(3, 0.5), np.full(3, 0.0004)])
    model.save(tmp_path / "net.keras")
    argv = ["convert", str(tmp_path / "net.keras"), "--profile", "host", "--data", str(tmp_path / "labelled")]
    argv += ["--preprocess", "unit", "--recipe", "recalibrate", "--json", "-o", str(tmp_path / "net.ferry")]
    assert main(argv) == 2
    assert "needs images" in json.loads(capsys.readouterr().out)["error"]
    assert main([*argv, "--train-data", str(tmp_path / "plain")]) == 0
    variants = json.loads(capsys.readouterr().out)["evaluation"]["variants"]
    assert variants["int8 of the source"]["metric"] < 0.6
    assert variants["int8"]["metric"] > 0.9


SUBCLASS = """
import keras

@keras.saving.register_keras_serializable("own")
class Small(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = keras.layers.Conv2D(8, 3, padding="same", name="conv")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.head = keras.layers.Dense(3, activation="softmax", name="head")

    def call(self, x):
        return self.head(self.pool(keras.ops.relu(self.conv(x))))
"""


def test_a_model_of_a_class_of_ones_own_is_pruned_by_magnitude_and_refused_by_name_else(
    image_folders, recipe, tmp_path, capsys, monkeypatch
):
    (tmp_path / "own_model.py").write_text(SUBCLASS)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.import_module("own_model")
    model = own.Small(name="small")
    model(np.zeros((1, 16, 16, 3), np.float32))
    model.save(tmp_path / "own.keras")
    own_flags = ("--custom-objects", "own_model", "--input-shape", "16,16,3")
    assert convert(tmp_path / "own.keras", image_folders, recipe("magnitude"), tmp_path, *own_flags) == 0
    found = json.loads(capsys.readouterr().out)["compression"]
    assert found["macs"] is None
    assert {path.split("/")[-2]: share for path, share in found["prune"]["zeros"].items()}["conv"] > 0.3
    for name, words in (("channels", "Pruning by magnitude"), ("qat", "no layer can be quantised: small")):
        assert convert(tmp_path / "own.keras", image_folders, recipe(name), tmp_path, *own_flags) in (1, 2)
        said = json.loads(capsys.readouterr().out)
        assert words in said["error"] + said["remedy"]
