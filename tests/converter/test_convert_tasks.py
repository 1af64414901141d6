"""Tasks without labels, keypoints and embeddings: converted, judged against the float model, run."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.errors import OptionError
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.model import Model


@pytest.fixture(scope="module")
def pictures(image_folders):
    """Pictures in one folder: no classes."""
    return image_folders / "red"


def pose_model(keras, save_model, *shape):
    """A mean over the picture becomes keypoints, all of them seen."""

    def build(x):
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(int(np.prod(shape)), activation="sigmoid", bias_initializer="ones")(x)
        return keras.layers.Reshape(shape)(x)

    return save_model(build, (16, 16, 3))


@pytest.mark.parametrize(("shape", "decoder"), [((1, 17, 3), "movenet"), ((6, 56), "movenet-multipose")])
def test_keypoints(convert, keras, save_model, pictures, shape, decoder):
    result = convert(pose_model(keras, save_model, *shape), pictures, task="keypoints")
    assert result.figures["evaluation"]["metric"] == "PCK@0.05"
    assert result.figures["evaluation"]["variants"]["int8"]["agreement"] > 0.9
    with Model.open(result.bundle) as model:
        declared = model.bundle.manifest.postprocessing
        assert (declared.task, declared.decoder, declared.threshold) == ("keypoints", decoder, 0.3)
        poses = model(np.full((48, 64, 3), 120, np.uint8)).poses
        assert poses[0].keypoints[0].label == "nose"
        assert 0 <= poses[0].keypoints[0].x <= 64


@pytest.mark.parametrize("folders", [False, True])
def test_embeddings(convert, keras, save_model, image_folders, pictures, folders):
    def build(x):
        return keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(x))

    # Classes of the data are no labels of an embedding.
    data = image_folders if folders else pictures
    result = convert(save_model(build, (16, 16, 3)), data, task="embed")
    assert result.figures["evaluation"]["metric"] == "cosine similarity"
    assert result.figures["evaluation"]["variants"]["int8"]["agreement"] > 0.99
    with Model.open(result.bundle) as model:
        dark, light = (model(np.full((48, 64, 3), level, np.uint8)) for level in (40, 200))
        assert float(np.linalg.norm(dark.vector)) == pytest.approx(1)
        assert dark.similarity(dark) == pytest.approx(1)
        assert dark.similarity(light) > 0.5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((17, 4), r"is \[1, 17, 4\], which holds no keypoints"),
        ((2, 17, 3), r"is \[1, 2, 17, 3\], which holds no keypoints"),
        ((6, 5), r"is \[1, 6, 5\], which holds no keypoints"),
    ],
)
def test_outputs_that_hold_no_keypoints(convert, keras, save_model, pictures, shape, message):
    with pytest.raises(OptionError, match=message):
        convert(pose_model(keras, save_model, *shape), pictures, task="keypoints")


def test_labels_are_the_keypoints(convert, keras, save_model, image_folders, tmp_path):
    (tmp_path / "labels.txt").write_text("nose\ntail\npaw\n")
    with pytest.raises(OptionError, match="has 17 keypoints, the data 3 labels"):
        convert(
            pose_model(keras, save_model, 17, 3), image_folders, task="keypoints", labels=tmp_path / "labels.txt"
        )


def test_names_of_folders_are_no_keypoints(convert, keras, save_model, image_folders):
    with Bundle.open(convert(pose_model(keras, save_model, 17, 3), image_folders, task="keypoints").bundle) as b:
        assert b.manifest.postprocessing.labels == ""


def test_embeddings_are_vectors(convert, keras, save_model, pictures):
    with pytest.raises(OptionError, match="for --task embed it needs 2 dimensions"):
        convert(pose_model(keras, save_model, 2, 4), pictures, task="embed")
